"""Counts given the library size in a multi-facet model: the conditional program, its start, its use, its clusters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.handlers import seed, substitute, trace
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from inference import evidence, fit, posterior
from inference.checking.log_evidence import checksums
from inference.clustering import plain_numbers
from inference.fitting.objectives import init_params
from ppl_models.datasets import counts
from ppl_models.mfcvae import MFCVAE, MLP, Additive, Counts, Facet, assign, decode, encode, pack, sample, swap, traverse
from ppl_models.mfcvae.counts_start import poisson_regression, principal
from ppl_models.mfcvae.panels_counts import marks, panels
from ppl_models.program import take

KEY = jax.random.key(0)
K, D, N = 3, 30, 450


def cells() -> tuple[np.ndarray, np.ndarray]:
    """Three types of cells: log shares that differ by N(0, .8^2), over-dispersed counts, unequal libraries."""
    r = np.random.default_rng(0)
    log_share = r.normal(size=D) + 0.8 * r.normal(size=(K, D))
    share = np.exp(log_share) / np.exp(log_share).sum(1, keepdims=True)
    kind, library = r.integers(0, K, N), 150 * np.exp(0.5 * r.normal(size=N))
    mean = library[:, None] * share[kind]
    return r.poisson(mean * r.gamma(3.0, 1 / 3.0, mean.shape)), kind


def spec_of(found: object, **more: object) -> MFCVAE:
    settings = {
        "facets": (Facet("kind", dim=3, clusters=K, covariance="tied"),), "shape": (D,),
        "likelihood": Counts(names=found.names, library=found.library), "network": Additive((8,)),  # type: ignore[attr-defined]
        "posterior": "full",
    }  # fmt: skip
    return MFCVAE(**{**settings, **more})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fitted():
    """Types, data, and a fit of a few updates from the classical start."""
    x, kind = cells()
    found = counts(x)
    program = spec_of(found).build(KEY)
    return kind, found.x, fit(program, found.x, steps=60, batch_size=64, key=KEY, progress=False)


def test_the_types_are_found_as_well_as_by_k_means_on_log_shares(fitted) -> None:
    kind, x, done = fitted
    ours = adjusted_rand_score(kind, assign(done, x, key=KEY, draws=4)["kind"].labels)
    plain = KMeans(K, n_init=5, random_state=0).fit_predict(plain_numbers(done.program, x))
    assert ours > 0.95 and ours > adjusted_rand_score(kind, plain) - 0.02


def test_the_start_is_better_than_shares_alone(fitted) -> None:
    """log p(x | l) beats one negative binomial a column, whose parameters are those of the data."""
    _, x, done = fitted
    few = take(x, slice(100))
    table = evidence(done, few, particles=32, key=KEY, refine="none", progress=False)
    likelihood = done.program.spec.likelihood
    start = {name: jnp.asarray(value, "float32") for name, value in likelihood.start(x).items()}
    law = likelihood.distribution(jnp.zeros(D), start, jnp.asarray(few["library"]))
    alone = np.asarray(law.log_prob(jnp.asarray(few["x"], "float32")))
    assert table["log_px"].mean() > alone.mean() + 2
    assert "given the library size" in table.attrs["observation"] and table.attrs["bits_offset"] == 0


def test_the_program_is_of_counts_given_the_library(fitted) -> None:
    _, x, done = fitted
    program = done.program
    assert program.observation.given == ("library",) and program.shape == {"x": (D,), "library": ()}
    model = seed(substitute(program.model, data=done.params), KEY)
    library = jnp.asarray([10.0, 100.0, 1000.0])
    site = trace(model).get_trace({"library": library})["x"]
    assert not site["is_observed"] and site["value"].shape == (3, D)
    np.testing.assert_allclose(site["fn"].mean.sum(-1), library, rtol=1e-4)
    typical = trace(model).get_trace(size=2)["x"]["fn"]
    np.testing.assert_allclose(typical.library, np.median(x["library"]), rtol=1e-6)
    drawn = program.from_draw({"x": site["value"], "library": library})
    assert set(drawn) == {"x", "library"} and program.from_draw({"x": site["value"]})["library"].shape == (3,)
    # The same row at twice the library is another datum.
    few = {"x": x["x"][:2], "library": x["library"][:2]}
    twice = {**few, "library": 2 * few["library"]}
    assert (checksums(few) != checksums(twice)).all()
    held = seed(substitute(program.model, data={**done.params, "z_kind": jnp.zeros((2, 3))}), KEY)
    laws = [trace(held).get_trace(data)["x"]["fn"] for data in (few, twice)]
    scores = [law.log_prob(jnp.asarray(few["x"], "float32")) for law in laws]
    assert (scores[0] > scores[1]).all()


def test_what_a_fit_is_used_for(fitted) -> None:
    _, x, done = fitted
    typical = done.program.spec.likelihood.library
    found = sample(done, "kind", 1, 5, key=KEY)
    np.testing.assert_allclose(found.x.sum(1), typical, rtol=1e-4)
    a, b = take(x, slice(3)), take(x, slice(3, 6))
    swapped = swap(done, a, b, "kind")
    np.testing.assert_allclose(swapped.a_swapped.x, swapped.b.x, rtol=1e-4)  # one facet holds everything
    assert traverse(done, a, "kind").x.shape == (3, K, D)
    np.testing.assert_allclose(decode(done, encode(done, a)), swapped.a.x, rtol=1e-4)
    tree = posterior(done, a, draws=4, predictive_draws=2, key=KEY, progress=False)
    assert tree["posterior"]["z_kind"].shape == (1, 4, 3, 3)


def test_columns_that_mark_a_cluster_are_those_whose_share_is_larger_there(fitted) -> None:
    p = np.repeat(np.eye(2), 2, axis=0)
    x = np.array([[90, 10, 0], [90, 10, 0], [30, 10, 60], [30, 10, 60]])
    np.testing.assert_allclose(marks(p, x)[0, :2], np.log2([3, 1]), atol=0.03)
    _, data, done = fitted
    p = {"kind": assign(done, data, key=KEY, draws=4)["kind"].probabilities}
    panel = panels(done.program.spec, p, data["x"])[0]
    assert panel.name == "kind_columns" and len(panel.draw().axes) == 3


def test_the_start_sets_shares_for_every_layout_and_labels_travel_beside_them() -> None:
    found = counts(cells()[0])
    facets = (Facet("kind", dim=2, clusters=K, labelled=True), Facet("rest", dim=2, clusters=2))
    spec = spec_of(
        found, facets=facets, network=MLP((8,)), posterior="diag",
        likelihood=Counts(law="multinomial", names=found.names, library=found.library),
    )  # fmt: skip
    program = spec.build(KEY)
    data = pack(spec, found.x, {"kind": np.arange(N) % K})
    assert set(data) == {"x", "library", "c_kind"} == set(program.shape)
    program.observation.check(data)
    prepared = program.observation.prepare(jax.tree.map(jnp.asarray, data), KEY, True)
    params, _, _ = init_params(program, KEY, prepared)
    event = program.training.events[0]
    changed = event.apply(params, prepared, KEY)
    share = found.x["x"].sum(0) / found.x["x"].sum()
    np.testing.assert_allclose(np.exp(changed["likelihood"]["log_share"]), share, atol=1e-4)
    live = jax.tree.map(jnp.asarray, {**params, **changed})
    sites = trace(seed(substitute(program.model, data=live), KEY)).get_trace(prepared)
    assert np.isfinite(sites["x"]["fn"].log_prob(prepared["x"])).all() and sites["c_kind"]["is_observed"]
    assert program.observation.bits_offset is None and program.observed == ("x", "c_kind")


def test_poisson_regression_finds_the_effects_of_given_scores() -> None:
    r = np.random.default_rng(0)
    z, W, b = r.normal(size=(2000, 2)), 0.5 * r.normal(size=(2, 5)), np.log(np.full(5, 0.02))
    library = r.uniform(500, 5000, 2000)
    x = r.poisson(library[:, None] * np.exp(b + z @ W)).astype("float64")
    base, effects = poisson_regression(z, x, library, b)
    np.testing.assert_allclose(base, b, atol=0.03)
    np.testing.assert_allclose(effects, W, atol=0.03)


def test_principal_directions_of_data_with_few() -> None:
    h = np.outer(np.random.default_rng(0).normal(size=50), [3.0, 4.0, 0.0]).astype("float32")
    centre, U, variances, noise = principal(h, 5, 0)
    assert U.shape == (3, 1) and noise > 0
    np.testing.assert_allclose(np.abs(U[:, 0]), [0.6, 0.8, 0.0], atol=1e-4)
    np.testing.assert_allclose(variances[0], 25 * (h[:, 0] / 3).var(ddof=1), rtol=1e-4)


def test_specs_that_cannot_be_built_are_refused() -> None:
    found = counts(cells()[0])
    with pytest.raises(ValueError, match="one a name"):
        spec_of(found, shape=(D + 1,))
    with pytest.raises(ValueError, match="missing"):
        spec_of(found, missing=True, network=MLP((8,)), posterior="diag")
