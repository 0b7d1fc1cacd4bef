"""Calibration runs over every registered family, a conditional one and one of dicts among them; no skip."""

from pathlib import Path

import jax
import numpy as np
import pytest

from inference import Fit
from inference.checking.calibration import calibrate
from inference.cli.common import load_plugins
from inference.fitting.objectives import init_params
from ppl_models.program import families
from tests.test_contract import batch, stored_data

KEY = jax.random.key(0)
EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
load_plugins([EXAMPLES / "poisson_factor.py", EXAMPLES / "noisy_regression.py"])


def started(family):
    """A fit with the parameters that a family's tiny preset starts from, and stored data."""
    program = families()[family].presets["tiny"].build(KEY)
    data = stored_data(program)
    params, transforms, mutable = init_params(program, KEY, batch(program, data))
    params = {name: value if isinstance(value, dict) else transforms[name](value) for name, value in params.items()}
    return Fit(program, params, mutable, None, {}), data


@pytest.mark.parametrize("family", list(families()))
def test_every_family_is_calibrated_in_one_call(family):
    fit, data = started(family)
    settings = {"simulations": 12, "draws": 4, "chunk": 6, "key": KEY, "progress": False}
    inputs = data if fit.program.observation.given else None
    if not fit.program.latents:
        with pytest.raises(ValueError, match="program with latents"):
            calibrate(fit, **settings)
        return
    found = calibrate(fit, inputs=inputs, **settings)
    pits = np.stack(list(found.ranks.values()))
    assert pits.shape == (len(found.table), 12) and (pits > 0).all() and (pits < 1).all()
    assert found.table["p_value"].between(0, 1).all() and len(found.coverage()) == 11
    if family not in ("hvae", "noisy_regression"):  # a hierarchy, and a conditional program whose datum is a dict
        return
    near = calibrate(fit, around=data, **settings)
    assert list(near.table.index) == list(found.table.index) and (near.ess > 0).all()
