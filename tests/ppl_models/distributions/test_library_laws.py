"""Laws of counts given their library size: masses, moments, draws, and what the likelihood refuses."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ppl_models.distributions import Counts, MultinomialLibrary, NegativeBinomialLibrary
from ppl_models.distributions.counts import multinomial_log_prob
from ppl_models.distributions.library_counts import concentrations

LOGITS = np.log(np.array([0.5, 0.3, 0.15, 0.05])).astype("float32")


def shares(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits.astype("float64"))
    return p / p.sum()


@pytest.mark.parametrize("library", [0, 1, 5])
def test_multinomial_masses_sum_to_one_and_are_scipys(library: int) -> None:
    x = np.array([k for k in itertools.product(range(library + 1), repeat=4) if sum(k) == library], "float32")
    law = MultinomialLibrary(jnp.asarray(LOGITS), jnp.asarray(float(library)))
    found = np.asarray(law.log_prob(jnp.asarray(x)), "float64")
    assert np.exp(found).sum() == pytest.approx(1, abs=1e-6)
    if library:
        np.testing.assert_allclose(found, stats.multinomial(library, shares(LOGITS)).logpmf(x), atol=1e-5)
    assert law.log_prob(jnp.asarray(x[:1]).at[0, 0].add(1))[0] == -np.inf


@pytest.mark.parametrize("total", [1_000, 1_000_000])
def test_multinomial_is_exact_for_large_libraries(total: int) -> None:
    r = np.random.default_rng(0)
    logits = np.log(r.dirichlet(np.full(300, 0.5))).astype("float32")
    x = r.multinomial(total, shares(logits))
    exact = stats.multinomial(total, shares(logits)).logpmf(x)
    found = float(multinomial_log_prob(jnp.asarray(x, "float32"), jnp.asarray(float(total)), jnp.asarray(logits)))
    assert found == pytest.approx(exact, rel=3e-6)


def test_gradient_of_the_multinomial_is_counts_less_means() -> None:
    x = jnp.asarray([3.0, 0.0, 1.0, 1.0])
    found = jax.grad(lambda logits: MultinomialLibrary(logits, jnp.asarray(5.0)).log_prob(x))(jnp.asarray(LOGITS))
    np.testing.assert_allclose(found, np.asarray(x) - 5 * shares(LOGITS), atol=1e-5)


def test_negative_binomial_masses_sum_to_one_and_are_scipys() -> None:
    r, library = np.array([0.5, 2.0, 10.0, 1.0]), 12.0
    law = NegativeBinomialLibrary(jnp.asarray(LOGITS), jnp.asarray(library), jnp.asarray(r, "float32"))
    k = np.arange(1500)
    m = library * shares(LOGITS)
    exact = stats.nbinom(r, r / (r + m)).logpmf(k[:, None])
    # One column after another: the others at 0, whose mass is known.
    none = exact[0].sum() - exact[0]
    for d in range(4):
        x = np.zeros((len(k), 4), "float32")
        x[:, d] = k
        found = np.asarray(law.log_prob(jnp.asarray(x)), "float64") - none[d]
        assert np.exp(found).sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(found[:200], exact[:200, d], atol=2e-4)


def test_both_laws_depend_on_the_library_of_their_row() -> None:
    library = jnp.asarray([5.0, 10.0])
    laws = (
        MultinomialLibrary(jnp.asarray(LOGITS), library),
        NegativeBinomialLibrary(jnp.asarray(LOGITS), library, jnp.full(4, 3.0)),
    )
    for law in laws:
        assert law.batch_shape == (2,) and law.event_shape == (4,)
        np.testing.assert_allclose(law.mean, np.outer(library, shares(LOGITS)), rtol=1e-5)
        draws = np.asarray(law.sample(jax.random.key(0), (4000,)))
        assert (draws >= 0).all() and (draws == np.floor(draws)).all()
        error = np.sqrt(np.asarray(law.variance) / len(draws))
        assert (np.abs(draws.mean(0) - law.mean) < 5 * error).all()
        np.testing.assert_allclose(draws.var(0), law.variance, rtol=0.25)
    assert (np.asarray(laws[0].sample(jax.random.key(1), (50,))).sum(-1) == np.asarray(library)).all()


def test_the_parameters_start_at_the_shares_and_moments_of_the_data() -> None:
    r = np.random.default_rng(0)
    library = r.integers(50, 400, 4000).astype("float64")
    m = library[:, None] * np.array([0.6, 0.4])
    x = r.poisson(m * r.gamma(np.array([2.0, 20.0]), 1 / np.array([2.0, 20.0]), m.shape))
    np.testing.assert_allclose(concentrations(x.astype("float64"), m), [2.0, 20.0], rtol=0.15)
    start = Counts().start({"x": x, "library": library})
    np.testing.assert_allclose(np.exp(start["log_share"]), [0.6, 0.4], rtol=0.02)
    assert set(Counts(law="multinomial").start({"x": x, "library": library})) == {"log_share"}


def test_the_encoder_sees_scaled_counts_and_the_depth() -> None:
    x = {"x": jnp.asarray([[3.0, 1.0]]), "library": jnp.asarray([4.0])}
    np.testing.assert_allclose(Counts(library=8.0).encode(x), [[np.log(7), np.log(3), np.log(0.5)]], rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "law", "words"),
    [
        (np.ones((2, 2)), "negative_binomial", "dict of 'x' and 'library'"),
        ({"x": np.ones((2, 2)), "library": np.ones(3)}, "negative_binomial", "shapes"),
        ({"x": np.array([[1, -1]]), "library": np.ones(1)}, "negative_binomial", "'b', row 0.*got -1"),
        ({"x": np.array([[1, 0.5]]), "library": np.ones(1)}, "negative_binomial", "'b', row 0.*0.5"),
        ({"x": np.array([[1, 2]]), "library": np.zeros(1)}, "negative_binomial", "positive and finite"),
        ({"x": np.array([[1, 2]]), "library": np.full(1, 9.0)}, "multinomial", "adds up to 3 with"),
    ],
)
def test_data_that_are_no_counts_are_refused(x: object, law: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Counts(law=law, names=("a", "b")).check(x)  # type: ignore[arg-type]


def test_settings_that_cannot_be_meant_are_refused() -> None:
    for wrong in ({"library": 0.0}, {"library": float("inf")}, {"names": ("a", "a")}):
        with pytest.raises(ValueError):
            Counts(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one a name"):
        Counts(names=("a", "b")).check_shape((3,))
