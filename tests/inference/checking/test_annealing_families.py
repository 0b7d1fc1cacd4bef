"""Every family with latents is annealed and bounded from both sides, at its smallest preset."""

from typing import Any

import jax
import numpy as np
import pytest

from inference import Fit, evidence, sandwich
from inference.fitting.objectives import init_params
from ppl_models.program import families
from tests.test_contract import FAMILIES, KEY, batch, stored_data

SMALL: dict[str, Any] = {
    "particles": 16, "temperatures": 2, "leapfrog": 1, "refine": "none", "key": KEY, "progress": False,
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_annealed_and_bounded(family: str) -> None:
    tiny = families()[family].presets["tiny"].build(KEY)
    data = jax.tree.map(lambda leaf: leaf[:3], stored_data(tiny))
    params, transforms, mutable = init_params(tiny, KEY, batch(tiny, data))
    params = {name: value if isinstance(value, dict) else transforms[name](value) for name, value in params.items()}
    start = Fit(tiny, params, mutable, None, {})
    if not tiny.latents:
        with pytest.raises(ValueError, match="no latents"):
            sandwich(start, 3, **SMALL)
        return
    table = evidence(start, data, method="smc", **SMALL)
    assert np.isfinite(table[["log_px", "se", "elbo"]]).all(axis=None) and (table["estimator"] == "smc").all()
    bounds = sandwich(start, 3, **SMALL).table
    assert np.isfinite(bounds.drop(columns="within")).all(axis=None)
