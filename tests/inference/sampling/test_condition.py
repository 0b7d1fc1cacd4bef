import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal, norm

import inference
from inference.checking.sampling_checks import flagged
from inference.sampling import calibration_ranks, condition
from inference.sampling.observed import Observed, gaussian_parts
from inference.sampling.particles import systematic
from inference.sampling.twists import LEFT, WHOLE, Spectrum, Twister
from ppl_models.distributions import RK4, Denoiser, DiffusionPrior, Trigonometric, Velocity
from ppl_models.distributions.analytic import MixtureDenoiser, linear_posterior
from tests.ppl_models.distributions.mixtures import mixture

TRIG = Trigonometric()
A, Y, NOISE = jnp.asarray([[1.0, 0.5]]), jnp.asarray([0.5]), 0.3


def still(params, x, t):
    return jnp.zeros_like(x)


def standard(d):
    """N(0, I): the large kernel is then the exact one, and nothing but Monte Carlo error is left."""
    return DiffusionPrior(Velocity(still), TRIG, (d,), solver=RK4(4))


def mixed():
    return DiffusionPrior(Denoiser(MixtureDenoiser(TRIG)), TRIG, (2,), params=mixture(2), solver=RK4(16))


def sensor(x):
    return dist.Normal(A @ x, NOISE).to_event(1)


def noisy(x):
    return dist.Normal(x, numpyro.sample("noise", dist.LogNormal(-1.0, 0.7))).to_event(1)


def key(i):
    return jax.random.key(i)


def tree_of(method, **options):
    return condition(mixed(), sensor, Y, key=key(1), method=method, draws=1000, steps=100, spread=2.0, **options)


def test_systematic_resampling_is_unbiased():
    log_w = jnp.log(jnp.asarray([0.05, 0.2, 0.0, 0.45, 0.3])) + 3.0
    at = jax.vmap(lambda k: systematic(k, log_w, 8))(jax.random.split(key(0), 4000))
    counts = np.stack([(np.asarray(at) == i).sum(1) for i in range(5)], 1)
    expected = 8 * np.asarray(jax.nn.softmax(log_w), float)
    assert (np.abs(counts - expected) < 1 + 1e-5).all()
    np.testing.assert_allclose(counts.mean(0), expected, atol=0.03)


def test_the_observed_law_and_its_nuisances():
    y = jnp.ones(2)

    def whole(x, y):
        numpyro.sample("y", noisy(x), obs=y)

    x, u = jnp.asarray([0.3, -0.2]), jnp.asarray([-0.5])
    for likelihood in (noisy, whole):
        seen = Observed(likelihood, y, x)
        assert seen.size == 1 and set(seen.nuisances) == {"noise"}
        np.testing.assert_allclose(seen.log_prob(x, u), norm(x, np.exp(-0.5)).logpdf(1.0).sum(), rtol=1e-5)
        np.testing.assert_allclose(seen.log_prior(x, u), norm(-1.0, 0.7).logpdf(-0.5), rtol=1e-5)
        np.testing.assert_allclose(seen.each(x, u), norm(x, np.exp(-0.5)).logpdf(1.0), rtol=1e-5)
    loc, cov = gaussian_parts(dist.Normal(jnp.ones(1), 2.0).expand([2, 3]).to_event(2))
    assert loc.shape == (6,) and np.allclose(cov, 4 * np.eye(6))
    assert gaussian_parts(dist.Poisson(jnp.ones(2))) is None


def test_what_is_left_of_a_covariance():
    """R = (Cov^-1 + alpha^2/sigma^2 I)^-1 in a basis of its own."""
    x = jax.random.normal(key(0), (5000, 3)) @ jnp.asarray([[1.0, 0.8, 0.0], [0.0, 0.6, 0.0], [0.0, 0.0, 2.0]])
    cov, t = np.cov(np.asarray(x).T), 0.9
    twist = Twister("gaussian", Observed(lambda x: dist.Normal(x, 1.0).to_event(1), x[0], x[0]), lambda x: x, TRIG,
                    cov=Spectrum.of(x))  # fmt: skip
    found = twist.rule(jnp.asarray(t), jnp.eye(3), jnp.zeros((3, 3)))
    np.testing.assert_allclose(found, np.linalg.inv(np.linalg.inv(cov) + np.eye(3) / np.tan(t) ** 2), atol=2e-3)


@pytest.mark.parametrize("kind", ["tweedie", "gaussian"])
def test_twists_are_exact_for_a_normal_prior(kind):
    B = jnp.asarray([[1.0, 0.5, 0.0], [0.0, 2.0, -1.0]])
    y, x, t = jnp.asarray([0.4, -0.7]), jnp.asarray([0.2, -1.0, 0.5]), jnp.asarray(0.9)
    seen = Observed(lambda x: dist.Normal(B @ x, 0.3).to_event(1), y, x)
    twist = Twister(kind, seen, lambda x: x, TRIG)
    a, s = jnp.cos(t), jnp.sin(t)
    cov = s**2 * B @ B.T + 0.09 * jnp.eye(2)

    def exact(x):
        return dist.MultivariateNormal(a * B @ x, cov).log_prob(y)

    found = twist(lambda x: a * x, x, t, jnp.zeros(0))
    np.testing.assert_allclose(found.log, exact(x), rtol=1e-5)
    np.testing.assert_allclose(found.grad, jax.grad(exact)(x), rtol=1e-4)


@pytest.mark.parametrize("kind", ["tweedie", "gaussian"])
def test_a_twist_passes_to_the_denoiser_without_a_jump(kind):
    """A denoiser that is wrong by 2 everywhere: below LEFT it has no say, from WHOLE on it has all of it."""
    y, x = jnp.asarray([0.4, -0.7]), jnp.asarray([0.2, -1.0])
    twist = Twister(kind, Observed(lambda x: dist.Normal(x, 0.3).to_event(1), y, x), lambda x: x, TRIG)

    def at(alpha, off):
        t = jnp.arccos(jnp.asarray(alpha))
        return twist(lambda x: jnp.cos(t) * x + off, x, t, jnp.zeros(0))

    gap = [float(at(alpha, 0.0).log - at(alpha, 2.0).log) for alpha in (LEFT - 1e-3, LEFT + 1e-3, 0.3, WHOLE, 0.8)]
    assert gap[0] == 0 and 0 < gap[1] < 0.02 and gap[1] < gap[2] < gap[3]
    np.testing.assert_allclose(at(0.3, 2.0).guess, 0.3 * x + 0.5 * 2.0, rtol=1e-4)
    np.testing.assert_allclose(at(WHOLE, 2.0).guess, WHOLE * x + 2.0, rtol=1e-4)
    np.testing.assert_allclose(at(0.8, 2.0).guess, 0.8 * x + 2.0, rtol=1e-4)


@pytest.mark.parametrize("method", [pytest.param("tds", marks=pytest.mark.slow), "mcgdiff"])
def test_evidence_and_posterior_of_a_normal_prior(method):
    """Three sensors of two numbers, of unequal noise: one direction of y is noise alone."""
    B, scales = np.asarray([[1.0, 0.5], [0.0, 2.0], [1.0, 1.0]]), np.asarray([0.3, 0.5, 0.4])
    y = np.asarray([0.5, -0.6, 0.4], "float32")

    def sensors(x):
        return dist.Normal(jnp.asarray(B, "float32") @ x + 0.1, jnp.asarray(scales, "float32")).to_event(1)

    tree = condition(standard(2), sensors, y, key=key(2), method=method, draws=1500, steps=60)
    exact = multivariate_normal(0.1 * np.ones(3), B @ B.T + np.diag(scales**2)).logpdf(y)
    assert abs(tree.attrs["log_evidence"] - exact) < max(3.5 * tree.attrs["log_evidence_se"], 0.01) < 0.15
    stats = tree["sample_stats"]
    np.testing.assert_allclose(stats["log_evidence_increment"].sum("step"), stats["log_evidence"], rtol=1e-5)
    precision = np.eye(2) + B.T @ np.diag(scales**-2) @ B
    draws = tree["posterior"]["x"].values.reshape(-1, 2)
    mean = np.linalg.solve(precision, B.T @ ((y - 0.1) / scales**2))
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(np.cov(draws.T), np.linalg.inv(precision), atol=0.015)


@pytest.fixture(scope="module")
def trees():
    return {method: tree_of(method) for method in ("tds", "dps")}


def test_tds_finds_the_posterior_of_a_mixture(trees):
    exact = linear_posterior(mixture(2), A, Y, NOISE)
    tree = trees["tds"]
    assert abs(tree.attrs["log_evidence"] - float(exact.log_evidence)) < 0.02
    draws = tree["posterior"]["x"].values.reshape(-1, 2)
    np.testing.assert_allclose(draws.mean(0), exact.moments().mean, atol=0.03)
    np.testing.assert_allclose(draws.std(0), np.sqrt(np.diag(exact.moments().cov)), atol=0.03)
    assert tree["log_likelihood"]["y"].shape == tree["posterior_predictive"]["y"].shape == (4, 1000, 1)
    assert tree["denoising_path"]["x"].shape[2:] == (8, 2)


def test_the_verdict_tells_dps_from_tds(trees):
    found = {method: inference.sampler_verdict(tree) for method, tree in trees.items()}
    assert flagged(found["dps"]) and not flagged(found["tds"])
    # Its runs agree, on a posterior that is too narrow.
    assert found["dps"].set_index("check").loc["R-hat over runs (largest)", "verdict"] == "ok"
    sd = trees["dps"]["posterior"]["x"].values.reshape(-1, 2).std(0)
    assert sd[0] < 0.9 * trees["tds"]["posterior"]["x"].values.reshape(-1, 2).std(0)[0]


def test_the_verdict_reads_ranks_and_chains(trees):
    rng = np.random.default_rng(0)
    good = {"x": (np.arange(200)[rng.permutation(200)] + 0.5) / 200}
    bad = {"x": rng.beta(0.4, 0.4, size=(200, 2))}
    assert not flagged(inference.sampler_verdict(trees["tds"], ranks=good))
    assert flagged(inference.sampler_verdict(trees["tds"], ranks=bad))
    apart = trees["tds"].copy()
    moved = apart["posterior"]["x"] + np.arange(4)[:, None, None]
    apart["posterior"] = apart["posterior"].to_dataset().assign(x=moved)
    table = inference.sampler_verdict(apart).set_index("check")
    assert table.loc["R-hat over runs (largest)", "verdict"] == "fail"
    with pytest.raises(ValueError, match="no group 'posterior'"):
        inference.sampler_verdict(trees["tds"]["sample_stats"])


@pytest.mark.slow
def test_an_unknown_noise_level_is_inferred_with_x():
    """x ~ N(0, I), y = x + noise e: p(noise | y) is that of N(0, (1 + noise^2) I), on a grid."""
    y = jnp.asarray([1.5, -2.0, 1.0, 1.8])
    tree = condition(standard(4), noisy, y, key=key(3), draws=1500, steps=40)
    grid = np.linspace(-4.0, 2.5, 2001)
    log_p = norm(-1.0, 0.7).logpdf(grid)
    log_p += norm(0, np.sqrt(1 + np.exp(2 * grid))[:, None]).logpdf(np.asarray(y)).sum(1)
    p = np.exp(log_p - log_p.max())
    exact = np.log(p.sum() * (grid[1] - grid[0])) + log_p.max()
    p /= p.sum()
    found = np.log(tree["posterior"]["noise"].values).ravel()
    assert abs(found.mean() - p @ grid) < 0.06
    assert abs(found.std() - np.sqrt(p @ (grid - p @ grid) ** 2)) < 0.06
    assert abs(tree.attrs["log_evidence"] - exact) < max(3.5 * tree.attrs["log_evidence_se"], 0.03) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("method", ["nuts", "noise_hmc"])
def test_chains_find_the_posterior_of_a_normal_prior(method):
    y = jnp.asarray([1.0])
    tree = condition(
        standard(1), lambda x: dist.Normal(x, 1.0).to_event(1), y, key=key(4), method=method, draws=1000, warmup=200
    )
    draws = tree["posterior"]["x"].values
    assert abs(draws.mean() - 0.5) < 0.06 and abs(draws.var() - 0.5) < 0.06
    table = inference.sampler_verdict(tree).set_index("check")
    assert table.loc["divergent transitions", "verdict"] == "ok"


@pytest.mark.slow
def test_simulated_ranks_are_uniform_for_tds_and_not_for_dps():
    for method, bad in (("tds", False), ("dps", True)):
        ranks = calibration_ranks(mixed(), sensor, key=key(5), method=method, simulations=300)
        assert flagged(inference.sampler_verdict(tree_of("tds"), ranks=ranks)) == bad


class Recorded:
    """In the place of the bar: what it was told."""

    said: list[int] = []

    def __init__(self, total, what, *, unit, show, delay):
        self.total, self.show, self.done = total, show, 0

    def __enter__(self):
        Recorded.said = []
        return self

    def __exit__(self, *error):
        pass

    def update(self, done):
        self.done = done
        if self.show:
            Recorded.said.append(done)


@pytest.mark.parametrize(("method", "last"), [("tds", 8), ("mcgdiff", 10), ("noise_hmc", 19)])
def test_loops_say_how_far_they_are_and_draw_the_same(method, last, monkeypatch):
    monkeypatch.setattr("inference.sampling.shown.Progress", Recorded)
    given = {"key": key(6), "method": method, "runs": 2, "draws": 10, "steps": 10, "warmup": 10, "spread": 1.0}
    loud = condition(standard(2), sensor, Y, **given)
    assert Recorded.said[-1] == last and (np.diff(Recorded.said) >= 0).all() and len(Recorded.said) > last
    quiet = condition(standard(2), sensor, Y, **given, progress=False)
    assert Recorded.said == []
    np.testing.assert_allclose(loud["posterior"]["x"], quiet["posterior"]["x"], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_conditioned_is_refused():
    law, cube = standard(2), lambda x: dist.Normal(x**3, 1.0).to_event(1)
    two, counts = jnp.zeros(2), lambda x: dist.Poisson(jnp.exp(x)).to_event(1)
    for likelihood, y, method, said in (
        (cube, two, "tdss", "did you mean 'tds'"),
        (cube, two, "mcgdiff", "affine"),
        (counts, two, "tmpd", "normal likelihood"),
        (cube, jnp.zeros(3), "tds", r"shape \(2,\), y has shape \(3,\)"),
        (noisy, two, "dps", "no law for nuisances"),
        (lambda x: x, two, "tds", "must return the NumPyro distribution"),
        (lambda x: dist.Normal(x, 1e-5).to_event(1), two, "mcgdiff", "ties noise"),
    ):
        with pytest.raises(ValueError, match=said):
            condition(law, likelihood, y, key=key(0), method=method)
    with pytest.raises(ValueError, match="DiffusionPrior"):
        condition(dist.Normal(0, 1), cube, two, key=key(0))
    with pytest.raises(ValueError, match="options of NUTS"):
        condition(law, cube, two, key=key(0), max_tree_depth=3)
    with pytest.raises(ValueError, match="chains for each y"):
        calibration_ranks(law, cube, key=key(0), method="nuts")
