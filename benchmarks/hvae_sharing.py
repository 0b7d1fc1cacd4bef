"""Do tied weights make a better hierarchy than untied ones of as many parameters?

Black-and-white Fashion-MNIST at 14x14 (means over 2x2 pixels, grey > 127.5; MNIST where it is not installed), a pyramid
of 1x1, 7x7 and 14x14 with twelve levels.  Three models, three seeds, the same steps, batches, learning rate:

untied      each cell has weights of its own.
tied        the same widths; plain cells of a resolution share weights: half the parameters, the same computation.
tied, wide  tied, and wider until it has as many parameters as the untied one: more computation, said in the record.

Held-out ELBO of 1,000 test images, a mean over draws, compared in pairs.  Falck et al., A Multi-Resolution Framework
for U-Nets with Applications to Hierarchical VAEs, NeurIPS 2022, tie weights on larger images.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks._small_images import gain, over_mixture, said, small_images
from benchmarks.harness import Claim
from benchmarks.hvae_clock import elbo, trained
from ppl_models.hvae import HVAE

SEEDS, STEPS, DRAWS = (0, 1, 2), 3_000, 8
UNTIED = HVAE(enc="14x3,14d2,7x3,7d7,1x1", dec="1x1,7m1,7x5,14m7,14x5", shape=(14, 14), width=24, zdim=4)
SPECS = {
    "untied": UNTIED,
    "tied": dataclasses.replace(UNTIED, share="resolution"),
    "tied, wide": dataclasses.replace(UNTIED, share="resolution", width=38),
}


def scores(specs: dict[str, HVAE], seeds: tuple[int, ...], steps: int, data: tuple[Any, Any], draws: int) -> Any:
    """Held-out ELBO (seeds, data) of each spec, its parameters, and CPU seconds of its fits."""
    train, test = data
    found: dict[str, np.ndarray] = {}
    cost: dict[str, dict[str, Any]] = {}
    for name, spec in specs.items():
        rows, start = [], time.process_time()
        fits = [trained(spec, seed, train, steps) for seed in seeds]
        seconds = time.process_time() - start
        for seed, fitted in zip(seeds, fits, strict=True):
            rows.append(elbo(fitted.program, fitted.params, test, jax.random.key(200 + seed), draws))
            print(f"{name}, seed {seed}: ELBO {rows[-1].mean():.2f}", file=sys.stderr, flush=True)
        found[name] = np.stack(rows)
        rates = {n: float(fits[-1].history[f"kl/{n}"].iloc[-1]) for n in fits[-1].program.latents}
        cost[name] = {"parameters": fits[-1].info["parameters"], "cpu_seconds": seconds, "rates_last_seed": rates,
                      "elbo_by_seed": [float(r.mean()) for r in rows]}  # fmt: skip
    return found, cost


def run(quick: bool) -> Iterator[Claim]:
    """Yield what tying gains at equal parameters and at equal widths; quick: narrow, shallow, one seed."""
    name, *data = small_images(quick)
    specs, steps, draws = SPECS, STEPS, DRAWS
    seeds: tuple[int, ...] = SEEDS
    if quick:
        small: dict[str, Any] = {"enc": "1x1", "dec": "1x3", "width": 8}
        specs = {key: dataclasses.replace(spec, **small) for key, spec in list(SPECS.items())[:2]}
        specs["tied, wide"] = specs["tied"]
        seeds, steps, draws = (0,), 6, 2
    found, cost = scores(specs, seeds, steps, (data[0], data[1]), draws)
    words = f"{name} 14x14, black and white"
    for key, label, target in (
        ("tied, wide", "tied less untied at equal parameters", ">= 0.5"),
        ("tied", "tied less untied at equal widths, half the parameters", ""),
    ):
        gained = gain(found[key], found["untied"])
        yield Claim(
            "equal_parameters" if target else "equal_steps", f"{words}, {label}: held-out ELBO", gained["gain"], "nats",
            target="" if quick else target, seeds=seeds, reference=said(gained),
            detail={"gain": gained, "models": cost, "steps": steps, "draws": draws},
            if_missed="so few steps do not use up what the untied weights can hold" if target else "",
        )  # fmt: skip
    yield over_mixture(
        f"{words}: ELBO of the wide tied hierarchy", found["tied, wide"], (data[0], data[1]), seeds, quick
    )
