"""The diagnosis lines and the figures, on trees and fits that are known to be right or wrong."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg

from ppl_models.surrogate import FNO, Bernoulli, Normal, Surrogate
from ppl_models.surrogate.checks import checks
from ppl_models.surrogate.own import heat

SHAPE = {"x": (8, 8, 1), "y": (8, 8, 1)}
SMALL = FNO(width=4, modes=2, layers=1)


def tree(y, draws=None, mean=None):
    groups = {"observed_data": {"y": (("datum", "i", "j", "k"), y)}}
    if draws is not None:
        groups["posterior_predictive"] = {"y": (("chain", "draw", "datum", "i", "j", "k"), draws[None])}
    if mean is not None:
        groups["reconstruction"] = {"y": (("datum", "i", "j", "k"), mean)}
    return xr.DataTree.from_dict({f"/{name}": xr.Dataset(values) for name, values in groups.items()})


@pytest.mark.parametrize(("sd", "verdict"), [(1.0, "ok"), (0.5, "fail"), (2.0, "fail"), (0.85, "warn")])
def test_a_pixel_lies_within_the_range_of_draws_as_often_as_it_should(sd, verdict):
    """(S - 1) / (S + 1) of S draws of the right law, whatever the law."""
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(400, 8, 8, 1))
    draws = mean + sd * rng.normal(size=(10, 400, 8, 8, 1))
    (line,) = checks(Surrogate(SHAPE, SMALL), tree(mean + rng.normal(size=mean.shape), draws))
    assert line.verdict == verdict
    if sd == 1:
        assert line.value == pytest.approx(9 / 11, abs=0.01)
    else:
        assert ("wider" if sd > 1 else "narrower") in line.meaning
    assert checks(Surrogate(SHAPE, SMALL), tree(mean)) == []


@pytest.mark.parametrize(("power", "verdict"), [(1.0, "ok"), (1.5, "fail")])
def test_calibration_of_masks(power, verdict):
    rng = np.random.default_rng(0)
    p = rng.random((200, 8, 8, 1))
    (line,) = checks(Surrogate(SHAPE, SMALL, Bernoulli()), tree((rng.random(p.shape) < p**power).astype("u1"), mean=p))
    assert line.verdict == verdict


@pytest.mark.parametrize("likelihood", [Normal(), Bernoulli()])
def test_panels_draw(likelihood):
    spec = Surrogate(SHAPE, SMALL, likelihood)
    program = spec.build(jax.random.key(0))
    data = jax.tree.map(np.asarray, heat(spec, jax.random.key(1), 8))
    net = program.views.modules["network"]
    from flax import nnx

    fit = SimpleNamespace(program=program, params={"network$params": nnx.to_pure_dict(nnx.split(net)[1])})
    found = program.views.panels(fit, data, {}, None)
    assert [panel.name for panel in found] == ["predictions", "reliability"]
    for panel in found:
        figure = panel.draw()
        FigureCanvasAgg(figure).draw()
        assert len(figure.axes) >= 1
