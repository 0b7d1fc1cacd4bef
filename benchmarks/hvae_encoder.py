"""Is a learned encoder worth its parameters, against average pooling and the Haar pyramid?

Black-and-white Fashion-MNIST at 14x14 (means over 2x2 pixels, grey > 127.5; MNIST where it is not installed), a pyramid
of 1x1, 7x7 and 14x14 with six levels.  Three encoders, three seeds, the same steps; the hierarchies whose encoder has
fewer parameters are wider, so that all have as many.  Held-out ELBO of 1,000 test images, compared in pairs.

learned  blocks at every resolution, then pooling, as in Child, "Very Deep VAEs".
pool     no blocks: averages of the first layer's activations.
haar     no parameters: averages of the image itself, its projections on coarser grids (Falck et al. 2022).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from benchmarks._small_images import gain, over_mixture, said, small_images
from benchmarks.harness import Claim
from benchmarks.hvae_sharing import scores
from ppl_models.hvae import HVAE

SEEDS, STEPS, DRAWS = (0, 1, 2), 2_000, 8
LEARNED = HVAE(enc="14x2,14d2,7x1,7d7,1x1", dec="1x1,7m1,7x2,14m7,14x2", shape=(14, 14), width=24, zdim=4)
SPECS = {
    "learned": LEARNED,  # 31,775 parameters; the others 31,956 and 31,675
    "pool": dataclasses.replace(LEARNED, encoder="pool", mid_ratio=0.3),
    "haar": dataclasses.replace(LEARNED, encoder="haar", width=26, mid_ratio=0.27),
}


def run(quick: bool) -> Iterator[Claim]:
    """Yield what each parameter-poor encoder gains over the learned one; quick: dense, narrow, one seed."""
    name, *data = small_images(quick)
    specs, steps, draws = SPECS, STEPS, DRAWS
    seeds: tuple[int, ...] = SEEDS
    if quick:
        small: dict[str, Any] = {"enc": "1x1", "dec": "1x2", "width": 8}
        specs = {key: dataclasses.replace(spec, **small) for key, spec in SPECS.items()}
        seeds, steps, draws = (0,), 6, 2
    found, cost = scores(specs, seeds, steps, (data[0], data[1]), draws)
    words = f"{name} 14x14, black and white"
    for key in ("pool", "haar"):
        gained = gain(found[key], found["learned"])
        yield Claim(
            key, f"{words}, as many parameters: held-out ELBO with encoder {key} less with a learned one",
            gained["gain"], "nats", seeds=seeds, reference=said(gained),
            detail={"gain": gained, "models": cost, "steps": steps, "draws": draws},
        )  # fmt: skip
    yield over_mixture(f"{words}: ELBO with a learned encoder", found["learned"], (data[0], data[1]), seeds, quick)
