"""The inference gap and its parts against closed forms: a correlated posterior, guides wrong by a known amount.

With precision L, the best diagonal q has the exact mean and precisions L_ii, so the approximation gap is
(sum log L_ii - log det L) / 2; a guide off by d in mean and by a factor f in its standard deviations loses
(D (f^2 - 1) + d' L d) / 2 - D log f on top of it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from inference.checking.gap_decomposition import gap_summary, inference_gaps, own_family
from inference.checking.log_evidence import evidence, exact_table
from inference.checking.nuts_evidence import nuts_evidence
from inference.checking.refinement import refine
from inference.fitting import Fit
from ppl_models.program import Program
from tests.closed_forms import linear_gaussian_hierarchy, linear_gaussian_program, mixture_program

KEY = jax.random.key(0)
W = np.array([[1.5, 1.2], [0.2, 1.0], [-0.7, 0.5]], "float32")
NOISE = 0.5
PRECISION = np.eye(2) + W.T @ W / NOISE**2
OFF, FACTOR = 0.15, 1.3
APPROXIMATION = 0.5 * (np.log(np.diag(PRECISION)).sum() - np.linalg.slogdet(PRECISION)[1])
MEAN = np.full(2, OFF)
AMORTISATION = 0.5 * (2 * (FACTOR**2 - 1) + MEAN @ PRECISION @ MEAN) - 2 * np.log(FACTOR)


def correlated(full: bool = False) -> tuple[Fit, np.ndarray]:
    """Factor analysis with a guide whose means are off and whose standard deviations are too wide; and 12 data."""

    def model(x=None, *, size=None):
        with numpyro.plate("data", size if x is None else x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1), infer={"ctx": None})
            numpyro.sample("x", dist.Normal(z @ W.T, NOISE).to_event(1), obs=x)

    def guide(x):
        mean = x @ W @ np.linalg.inv(PRECISION) / NOISE**2 + OFF
        if full:
            root = np.linalg.cholesky(np.linalg.inv(PRECISION)).astype("float32")
            return lambda site, ctx: dist.MultivariateNormal(mean, scale_tril=FACTOR * jnp.asarray(root))
        return lambda site, ctx: dist.Normal(mean, FACTOR / np.sqrt(np.diag(PRECISION))).to_event(1)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 2)) @ W.T + NOISE * rng.normal(size=(12, 3))
    return Fit(Program(None, model, guide, ("z",), (3,)), {}, {}, None, {}), x.astype("float32")


def log_px(x):
    law = dist.MultivariateNormal(jnp.zeros(3), W @ W.T + NOISE**2 * np.eye(3))
    return np.asarray(law.log_prob(x), float)


def parts(fit, x, exact, **arguments):
    """The gaps against a log p(x) that is known."""
    return inference_gaps(fit, x, key=KEY, reference=exact_table(fit.program, x, exact), progress=False, **arguments)


@pytest.fixture(scope="module")
def diagonal():
    fit, x = correlated()
    return fit, x, inference_gaps(fit, x, key=KEY, particles=512, progress=False)


def test_the_parts_are_the_closed_forms(diagonal):
    _, x, table = diagonal
    assert table.attrs["family"] == "diag" and table.attrs["kept"] == () and table["trusted"].all()
    for gap, exact in (("approximation", APPROXIMATION), ("amortisation", AMORTISATION)):
        error = table[gap] - exact
        assert abs(error.mean()) < 0.02 + 3 * np.sqrt((table[f"{gap}_se"] ** 2).sum()) / 12
        # 12 independent rows, each within its own error: an optimum that is missed by a little costs its square.
        assert (error.abs() < 0.03 + 4 * table[f"{gap}_se"]).all()
    np.testing.assert_allclose(table["log_px"], log_px(x), atol=0.05)


def test_the_parts_add_up_to_the_total(diagonal):
    table = diagonal[2]
    np.testing.assert_allclose(table["approximation"] + table["amortisation"], table["total"], atol=1e-9)
    exact = APPROXIMATION + AMORTISATION
    assert (abs(table["total"] - exact) < 0.03 + 4 * table["total_se"]).all()


def test_a_full_covariance_leaves_no_approximation_gap():
    fit, x = correlated(full=True)
    table = parts(fit, x[:4], log_px(x[:4]), particles=256)
    assert table.attrs["family"] == "full" == own_family(fit, x)
    assert (table["approximation"].abs() < 0.03 + 3 * table["approximation_se"]).all()
    shift = 0.5 * (2 * (FACTOR**2 - 1) + MEAN @ PRECISION @ MEAN) - 2 * np.log(FACTOR)
    assert (abs(table["amortisation"] - shift) < 0.03 + 4 * table["amortisation_se"]).all()


def test_an_exact_guide_has_no_gap_and_no_part_of_one():
    form = linear_gaussian_program(spoil=0.0)
    x = form.sample(KEY, 3)
    table = parts(form.fit, x, form.log_px(x), particles=64, steps=20)
    for gap in ("total", "approximation", "amortisation"):
        assert (table[gap].abs() < 0.02).all()


def test_a_hierarchy_through_its_contexts():
    form = linear_gaussian_hierarchy(levels=2, spoil=0.2)
    x = form.sample(KEY, 3)
    table = parts(form.fit, x, form.log_px(x), particles=256, steps=150)
    total = 6 * (0.5 * (1.2**2 - 1 + 0.2**2) - np.log(1.2))  # six numbers, exact but for the spoiling
    assert (abs(table["amortisation"] - total) < 0.05 + 4 * table["amortisation_se"]).all()
    assert (table["approximation"].abs() < 0.05 + 4 * table["approximation_se"]).all()


def test_a_reference_from_elsewhere(diagonal):
    fit, x, table = diagonal
    exact = exact_table(fit.program, x, log_px(x))
    found = inference_gaps(fit, x, key=KEY, reference=exact, particles=64, steps=20, progress=False)
    np.testing.assert_allclose(found["log_px"], log_px(x))
    assert (found["se"] == 0).all() and found["trusted"].all()
    with pytest.raises(ValueError, match="other data"):
        inference_gaps(fit, x[:5], key=KEY, reference=exact)


def test_nuts_and_a_bridge_give_the_closed_form(diagonal):
    fit, x, _ = diagonal
    table = nuts_evidence(fit, x[:2], key=KEY, draws=400, warmup=200, chains=2, progress=False)
    assert (table["rhat"] < 1.02).all() and table.attrs["estimator"] == "nuts"
    assert (abs(table["log_px"] - log_px(x[:2])) < 3 * table["se"] + 0.005).all() and (table["se"] < 0.03).all()
    found = inference_gaps(fit, x[:2], key=KEY, reference=table, particles=64, steps=5, progress=False)
    assert found["trusted"].all() and (found["estimator"] == "nuts").all()


def test_rows_without_a_reference_are_flagged_and_left_out(diagonal):
    fit, x, table = diagonal
    bad = evidence(fit, x, key=KEY, particles=64, progress=False)
    bad.loc[3, "khat"], bad.loc[5, "log_px"] = 0.9, np.nan
    with pytest.warns(RuntimeWarning, match="2 of 12"):
        found = inference_gaps(fit, x, key=KEY, reference=bad, particles=64, steps=5, progress=False)
    assert list(np.flatnonzero(~found["trusted"])) == [3, 5]
    row = gap_summary({"diagonal": found, "exact": table}).loc["diagonal"]
    assert (row["data"], row["untrusted"]) == (10, 2)
    kept = found[found["trusted"]]
    assert row["total"] == pytest.approx(kept["total"].mean()) and row["share"] == pytest.approx(
        kept["amortisation"].mean() / kept["total"].mean()
    )


def test_a_refined_fit_is_taken_apart_as_it_was_trained(diagonal):
    fit, x, _ = diagonal
    refined = refine(fit, x[:3], key=KEY, steps=5, particles=32, progress=False)
    one, two = (inference_gaps(f, x[:3], key=KEY, steps=5, particles=32, progress=False) for f in (fit, refined))
    np.testing.assert_allclose(one["amortisation"], two["amortisation"], atol=1e-5)


def test_bad_arguments(diagonal):
    fit, x, _ = diagonal
    for more, words in (({"family": "flow"}, "family"), ({"steps": 0}, "steps"), ({"particles": 3}, "particles")):
        with pytest.raises(ValueError, match=words):
            inference_gaps(fit, x, key=KEY, **more)
    mixture = mixture_program()
    with pytest.raises(ValueError, match="no latent whose posterior can be optimised"):
        inference_gaps(mixture.fit, mixture.sample(KEY, 2), key=KEY)
    with pytest.raises(ValueError, match="map from noise"):
        nuts_evidence(mixture.fit, mixture.sample(KEY, 2), key=KEY)
