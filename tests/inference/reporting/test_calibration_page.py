"""The figure and the section on calibration say what the ranks say."""

import io

import numpy as np
import pandas as pd
import pytest

from inference.checking.calibration import Calibration
from inference.checking.column_checks import holm
from inference.checking.ecdf_bands import p_values
from inference.reporting.calibration_figures import calibration, calibration_section
from inference.reporting.drawn import Drawn

rng = np.random.default_rng(0)


def made(power=1.0, latents=3, n=200):
    names = [*(f"z[{i}]" for i in range(latents)), "log_lik", "log_q", "log_weight", "tarp"]
    ranks = {name: rng.random(n) ** power for name in names}
    p = p_values(np.stack(list(ranks.values()), axis=1))
    columns = dict.fromkeys(("coverage_50", "coverage_90", "mean", "ks"), 0.5)
    table = pd.DataFrame({**columns, "p_value": p, "p_holm": holm(p)}, index=pd.Index(names, name="quantity"))
    table.attrs.update(simulations=n, draws=10, around=0, posterior="amortised")
    return Calibration(table, ranks, np.full(n, 10.0))


@pytest.mark.parametrize("latents", [1, 60])
def test_the_figure_draws_every_curve_with_its_bands(latents):
    found = made(latents=latents)
    figure = calibration(found)
    figure.savefig(io.BytesIO(), format="png", dpi=20)
    left, middle, right = figure.axes
    assert len(left.get_lines()) == 2 + min(latents, 40) + 4  # two edges of the joint band, latents, functions
    curve = middle.get_lines()[1]
    # Expected coverage at c is the share of simulations whose log q is above that of a share 1 - c of the draws.
    c = curve.get_xdata()[30]
    assert curve.get_ydata()[30] == pytest.approx((1 - found.ranks["log_q"] <= c).mean())
    assert right.get_lines()[1].get_ydata()[30] == pytest.approx((found.ranks["tarp"] <= c).mean())


def test_the_section_names_the_verdict_and_the_worst(tmp_path):
    drawn = Drawn(tmp_path)
    page = drawn.section(calibration_section(made()))
    assert not drawn.failed and (tmp_path / "calibration.png").is_file()
    assert "200 data were drawn from the fitted model" in page and "nothing speaks against calibration" in page
    bad = made(power=1.6)
    page = Drawn(tmp_path).section(calibration_section(bad))
    assert "the ranks speak against calibration" in page and bad.table["p_value"].idxmin() in page
    joint, single = bad.bands(joint=True), bad.bands()
    assert (joint.low <= single.low).all() and (joint.high >= single.high).all()
