"""One network of ``unet_speed`` in a process of its own: one core, one thread; told by lines what to do.

Started with a line of JSON (a network of ``unet_speed`` and the sizes), it answers one line of JSON to each line on its
input: ``train N`` and ``sample N`` with the CPU seconds of a step, of N; ``memory`` with resident megabytes.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def main(given: dict[str, Any]) -> None:
    """Build, compile, then serve."""
    from inference import tune_runtime

    tune_runtime(allocator=given["tuned"])
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from benchmarks._plain_unet import Net, copy_weights
    from ppl_models.networks.pure import pure
    from ppl_models.networks.time_embedding import fourier_features
    from ppl_models.networks.unet import ScoreUNet

    spec = ScoreUNet(base=given["base"], multipliers=tuple(given["multipliers"]), down=given["down"], convolution="lax")
    ours = spec.build(nnx.Rngs(0))
    module: Any = ours
    if given["plain"]:
        module = Net(spec)
        copy_weights(ours, module)
    apply, params = pure(module)

    def net(params: Any, x: Any, level: Any) -> Any:
        return apply(params, x, fourier_features(level, spec.base) if given["plain"] else level)

    optimiser = optax.adam(1e-3)
    state = optimiser.init(params)
    key = jax.random.key(0)
    x = jax.random.normal(key, (given["batch"], given["side"], given["side"], 1))

    def step(params: Any, state: Any, key: Any) -> Any:
        noise_key, level_key = jax.random.split(key)
        eps, level = jax.random.normal(noise_key, x.shape), jax.random.normal(level_key, (len(x),))
        phi = jnp.arctan(jnp.exp(level))[:, None, None, None]
        loss, g = jax.value_and_grad(
            lambda p: jnp.mean((net(p, jnp.cos(phi) * x + jnp.sin(phi) * eps, level) - eps) ** 2)
        )(params)
        update, state = optimiser.update(g, state, params)
        return optax.apply_updates(params, update), state, loss

    train = jax.jit(step, donate_argnums=(0, 1))
    sample = jax.jit(lambda p, x, level: x - 0.01 * net(p, x, level))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    first = float(jnp.abs(sample(jax.tree.map(lambda leaf: leaf + 0.01, params), x, jnp.zeros(len(x)))).sum())
    steps = 0
    print(json.dumps({"parameters": count, "value": first}), flush=True)
    for line in sys.stdin:
        what, _, number = line.strip().partition(" ")
        if what == "memory":
            status = Path("/proc/self/status").read_text()
            found = {name: int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024 for name in ("VmRSS", "VmHWM")}  # type: ignore[index]
            print(json.dumps({"megabytes": found["VmRSS"], "peak": found["VmHWM"], "steps": steps}), flush=True)
            continue
        start = time.process_time()
        for _ in range(int(number)):
            if what == "train":
                params, state, loss = train(params, state, jax.random.fold_in(key, steps))
                steps += 1
            else:
                loss = sample(params, x, jnp.zeros(len(x)))
        jax.block_until_ready(loss)
        print(json.dumps({"seconds": (time.process_time() - start) / int(number)}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
