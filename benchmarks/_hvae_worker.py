"""One training step of ``hvae_speed`` in a process of its own: one core, one thread; told by lines what to do.

Started with a line of JSON, it compiles and answers a line of JSON: parameters, CPU seconds of tracing and of
compiling, megabytes of XLA's temporaries.  Then it answers each line on its input: ``train N`` with the CPU seconds of
a step, of N; ``memory`` with resident megabytes now, and at most since it was asked before.
"""

from __future__ import annotations

import dataclasses
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

    if given["tuned"]:
        tune_runtime()
    import jax

    jax.config.update("jax_enable_compilation_cache", False)  # what is measured is a compilation
    import jax.numpy as jnp
    import numpy as np
    import optax
    from flax import nnx

    from benchmarks._plain_hvae import Net, plain_parameters
    from inference.fitting.objectives import fused_elbo
    from ppl_models.hvae import HVAE, PRESETS

    spec = HVAE(**given["spec"]) if isinstance(given["spec"], dict) else PRESETS[given["spec"]]
    spec = dataclasses.replace(spec, execution=given.get("execution", "unroll"))
    program = spec.build(jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).random((given["batch"], *spec.shape)) < 0.3, "float32")
    modules = program.views.modules
    params: Any = {f"{name}$params": nnx.to_pure_dict(nnx.state(module, nnx.Param)) for name, module in modules.items()}
    if given["plain"]:
        split: Any = nnx.split(nnx.eval_shape(lambda: Net(spec)), nnx.Param)
        graph, shapes = split
        params = plain_parameters(params)

        def loss(params: Any, key: Any) -> Any:
            state = jax.tree.map(lambda leaf: leaf, shapes)
            nnx.replace_by_pure_dict(state, params)
            keys = jax.random.split(key, len(spec.latents))
            noise = [
                jax.random.normal(k, (len(x), cell.res, cell.res, spec.zdim))
                for k, cell in zip(keys, spec.decoder_cells, strict=True)
            ]
            return nnx.merge(graph, state)(x, noise)
    else:

        def loss(params: Any, key: Any) -> Any:
            return fused_elbo(program, params, key, x)[0]

    optimiser = optax.adam(1e-3)
    state = optimiser.init(params)
    params = jax.tree.map(jnp.copy, params)  # donated, and the modules hold the others

    def step(params: Any, state: Any, key: Any) -> Any:
        value, g = jax.value_and_grad(loss)(params, key)
        update, state = optimiser.update(g, state, params)
        return optax.apply_updates(params, update), state, value

    start = time.process_time()
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, jax.random.key(0))
    traced = time.process_time()
    train = lowered.compile()
    built = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "trace_seconds": traced - start,
        "compile_seconds": time.process_time() - traced,
        "temporaries": train.memory_analysis().temp_size_in_bytes / 1e6,
    }
    print(json.dumps(built), flush=True)
    steps, value = 0, 0.0
    for line in sys.stdin:
        what, _, number = line.strip().partition(" ")
        if what == "memory":
            status = Path("/proc/self/status").read_text()
            found = {name: int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024 for name in ("VmRSS", "VmHWM")}  # type: ignore[index]
            print(json.dumps({"resident": found["VmRSS"], "peak": found["VmHWM"], "steps": steps}), flush=True)
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
            continue
        start = time.process_time()
        for _ in range(int(number)):
            params, state, value = train(params, state, jax.random.fold_in(jax.random.key(1), steps))
            jax.block_until_ready(value)
            steps += 1
        print(json.dumps({"seconds": (time.process_time() - start) / int(number), "loss": float(value)}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
