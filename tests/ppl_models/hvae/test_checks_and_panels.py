"""The verdict on the hierarchy and its figures, on made-up posteriors with known faults."""

import io
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import xarray
from numpyro import handlers

from ppl_models.hvae import HVAE
from ppl_models.hvae.checks import level_table, levels
from ppl_models.hvae.panels import clock, shared, shown_cuts, truncated

KEY = jax.random.key(0)
N, S = 60, 20
SPEC = HVAE(enc="1x1", dec="1x3", shape=(4, 4), levels=17, width=8, zdim=2)


def tree(rates, follow=(True, True, True), earlier=False):
    """A posterior with the given rates, whose units vary with the datum where they ``follow`` it.

    ``earlier``: as files of earlier versions hold it.
    """
    rng = np.random.default_rng(0)
    group = {"state_norm": (("chain", "draw", "datum", "unit"), rng.uniform(1, 2, (1, S, N, 3)).cumsum(-1))}
    stats = group if earlier else {}
    for name, rate, does in zip(SPEC.latents, rates, follow, strict=True):
        mean = rng.normal(size=(N, 1, 1, 2)) if does else np.zeros((N, 1, 1, 2))
        dims = ("chain", "draw", "datum", *(f"unit_{name}_{i}" for i in range(3)))
        group[name] = (dims, (mean + rng.normal(size=(1, S, N, 1, 1, 2))).astype("float32"))
        stats[f"rate_{name}"] = (("chain", "draw", "datum"), np.full((1, S, N), rate, "float32"))
    data = xarray.Dataset({"x": (("datum", "a", "b"), np.zeros((N, 4, 4), "float32"))})
    more = {} if earlier else {"sample_stats": xarray.Dataset(stats)}
    return xarray.DataTree.from_dict({"posterior": xarray.Dataset(group), "observed_data": data, **more})


@pytest.fixture(scope="module")
def program():
    return SPEC.build(KEY)


def verdict(program, *arguments):
    (line,) = program.views.checks(tree(*arguments))
    return line


def test_a_healthy_hierarchy_is_ok(program):
    line = verdict(program, (1.0, 2.0, 0.5))
    assert (line.value, line.verdict, line.remedy) == (0, "ok", "") and "3.5 nats" in line.meaning


def test_a_collapsed_level_is_named(program):
    line = verdict(program, (1.0, 0.001, 0.5), (True, False, True))
    assert (line.value, line.verdict) == (1, "warn") and "z_01 (1x1)" in line.meaning and "z_00" not in line.meaning


def test_a_silent_level_that_follows_its_parents_is_told_from_a_collapsed_one(program):
    line = verdict(program, (1.0, 0.001, 0.5))
    assert (line.value, line.verdict) == (0, "warn") and "only follow the levels above: z_01 (1x1)" in line.meaning


def test_total_collapse_fails(program):
    line = verdict(program, (0.001, 0.0, 0.002), (False, False, False))
    assert (line.value, line.verdict) == (3, "fail") and "ignores its latents" in line.meaning


def test_files_of_earlier_versions_are_read(program):
    found = levels(tree((1.0, 0.001, 0.5), (True, False, True), earlier=True), SPEC)
    assert [level.collapsed for level in found] == [False, True, False] and found[2].rate == pytest.approx(0.5)


def test_levels_are_named_by_resolution_and_step():
    spec = HVAE(enc="4x1,4d4,1x1", dec="1x1,4m1,4x1", shape=(4, 4), levels=17, width=8, zdim=2)
    dims = ("chain", "draw", "datum")
    sides = (1, 4, 4)
    z = {
        f"z_{i:02d}": ((*dims, *(f"{i}{c}" for c in "abc")), np.zeros((1, 4, 3, s, s, 2))) for i, s in enumerate(sides)
    }
    norm = {"state_norm": ((*dims, "unit"), np.broadcast_to([1.0, 2.0, 4.0], (1, 4, 3, 3)))}
    stats = {f"rate_z_{i:02d}": (dims, np.full((1, 4, 3), 0.5 * i)) for i in range(3)}
    groups = {"posterior": xarray.Dataset(z | norm), "sample_stats": xarray.Dataset(stats)}
    found = level_table(xarray.DataTree.from_dict(groups), spec)
    assert list(found["resolution"]) == [1, 4, 4] and list(found["step"]) == [0, 0, 1]
    assert list(found["rate"]) == [0, 0.5, 1] and list(found["norm"]) == list(found["norm_95"]) == [1, 2, 4]
    assert list(found["units"]) == [2, 32, 32] and list(found["collapsed"]) == [True, False, False]


def test_a_quiet_level_with_a_rate_has_not_collapsed(program):
    assert verdict(program, (1.0, 0.02, 0.5), (True, False, True)).verdict == "ok"


def test_active_units_are_not_made_by_the_number_of_draws():
    """The mean of 20 draws varies by 1/20 where nothing follows the datum: five times the threshold."""
    found = levels(tree((1.0, 0.0, 0.0), (True, False, False)), SPEC)
    assert [level.active for level in found] == [2, 0, 0]


def test_the_clock_reads_time_off_the_norm():
    steady = np.arange(1.0, 6.0)[None] + np.zeros((7, 1))
    assert clock(steady) == (pytest.approx(1.0), 1.0)
    assert clock(np.ones((7, 5))) == (0.0, 0.0)


def test_shown_cuts_start_at_none_and_end_at_all():
    assert shown_cuts(3) == [0, 1, 2, 3]
    assert (shown_cuts(43)[0], shown_cuts(43)[-1]) == (0, 43) and len(shown_cuts(43)) <= 10


@pytest.fixture(scope="module")
def fit(program):
    def run():
        sites = handlers.trace(handlers.seed(program.model, KEY)).get_trace(np.zeros((1, 4, 4), "float32"))
        return {name: site["value"] for name, site in sites.items() if site["type"] == "param"}

    return SimpleNamespace(model=handlers.substitute(program.model, data=jax.jit(run)()))


def test_truncation_takes_the_leading_levels_from_the_posterior(fit):
    z = {name: np.random.default_rng(i).normal(size=(5, 1, 1, 2)) for i, name in enumerate(SPEC.latents)}
    images = truncated(SPEC, fit, z, [0, 1, 3])
    assert images.shape == (3, 5, 4, 4)
    np.testing.assert_allclose(images[0], images[0][:1].repeat(5, 0), atol=1e-6)  # no level: one image for all
    assert np.abs(images[1] - images[1][:1]).max() > 1e-4
    everything = {**z, "z_02": z["z_02"] + 1}
    np.testing.assert_allclose(truncated(SPEC, fit, everything, [0, 1, 2])[:2], images[:2], atol=1e-6)


def test_sharing_all_levels_leaves_one_image(fit):
    images = shared(SPEC, fit, [0, 3], 6, key=KEY)
    np.testing.assert_allclose(images[1], images[1][:1].repeat(6, 0), atol=1e-6)
    assert np.abs(images[0] - images[0][:1]).max() > 1e-4


def test_panels_draw(program, fit):
    panels = program.views.panels(fit, np.zeros((N, 4, 4), "uint8"), {}, tree((1.0, 2.0, 0.5)))
    assert [p.name for p in panels] == ["state_norm", "what_levels_add", "what_levels_leave_open"]
    assert "100% of steps rise" in panels[0].caption
    for panel in panels:
        file = io.BytesIO()
        panel.draw().savefig(file, dpi=50)
        assert file.tell() > 1000
