"""The program against closed forms and the explicit-c model; stock NumPyro on model and guide."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import nnx
from numpyro import handlers
from numpyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from numpyro.infer.util import log_density
from scipy import stats
from scipy.special import logsumexp

from ppl_models.distributions import LogisticMixture, Normal
from ppl_models.mfcvae import MFCVAE, MLP, PRESETS, Bernoulli, Facet, GreyBernoulli, MLPLadder
from ppl_models.mfcvae.mixture import initial, mixture, positive, unconstrained
from ppl_models.mfcvae.program import generative
from ppl_models.program import as_guide, knobs, spec_from_json, spec_to_json

KEY = jax.random.key(0)
B = 5


@pytest.fixture(scope="module")
def tiny():
    return PRESETS["tiny"].build(KEY)


@pytest.fixture(scope="module")
def x(tiny):
    grey = jnp.asarray(np.random.default_rng(0).integers(0, 17, (B, 8, 8)), "uint8")
    tiny.observation.check(grey)
    return tiny.observation.prepare(grey, KEY, False)


def params_of(program, x):
    """Starting parameters by site name.  One jit is much quicker than hundreds of eager operations."""

    def run(x):
        sites = {}
        for call in (program.model, program.guide):
            sites |= handlers.trace(handlers.seed(call, KEY)).get_trace(x)
        return {name: site["value"] for name, site in sites.items() if site["type"] == "param"}

    return jax.jit(run)(x)


def perturbed(start, key):
    """A mixture that is not at its symmetric start, so that a wrong formula shows."""
    return {name: v + 0.3 * jax.random.normal(jax.random.fold_in(key, i), v.shape)
            for i, (name, v) in enumerate(sorted(start.items()))}  # fmt: skip


class Identity(nnx.Module):
    def __call__(self, zs, fades):
        return sum(fade * z for z, fade in zip(zs, fades, strict=True))


def spec_of(starts, likelihood, **more):
    """The spec of facets with these mixtures, for data of the latents' own shape."""
    facets = tuple(
        Facet(name, start["means"].shape[1], len(start["means"]), "full" if "lower" in start else "diag")
        for name, start in starts.items()
    )
    return MFCVAE(facets, (facets[0].dim,), likelihood=likelihood, network=MLP((1,)), **more)


# ---------------------------------------------------------------------------------------- closed forms
def test_one_facet_with_identity_decoder_is_a_mixture_of_gaussians():
    """x = z + noise: log p(x) = log sum_c pi_c N(x; mu_c, S_c + sigma^2), checked by Bayes' rule at several z."""
    d, sigma = 2, 0.4
    start = perturbed(initial(KEY, dim=d, clusters=3, covariance="diag", scale=0.7, spread=2.0), KEY)
    model = generative(spec_of({"a": start}, Normal(sigma=sigma, link="identity")), Identity(), {"a": start})
    prior = mixture(start)
    x = jnp.array([[0.3, -1.0]])
    total = jnp.sqrt(prior.scales**2 + sigma**2)
    parts = np.asarray(jax.nn.log_softmax(prior.logits)) + stats.norm(prior.means, total).logpdf(x).sum(-1)
    evidence = logsumexp(parts)
    gain = prior.scales**2 / total**2
    posterior_means = prior.means + gain * (x - prior.means)
    posterior_scales = prior.scales * sigma / total
    log_joint = jax.jit(lambda z: log_density(model, (x,), {}, {"z_a": z})[0])
    for z in (jnp.zeros((1, d)), jnp.array([[0.5, -0.7]]), jnp.array([[2.0, 3.0]])):
        joint = log_joint(z)
        components = parts - evidence + stats.norm(posterior_means, posterior_scales).logpdf(z).sum(-1)
        np.testing.assert_allclose(joint - logsumexp(components), evidence, rtol=1e-4)


def explicit(priors, likelihood, decode):
    """The model of the paper with its discrete c_j written out."""

    def model(x, c):
        zs = []
        with numpyro.plate("data", x.shape[0]):
            for name, prior in priors.items():
                label = numpyro.sample(f"c_{name}", dist.Categorical(logits=prior.logits), obs=c[name])
                if prior.scales is not None:
                    fn = dist.Normal(prior.means[label], prior.scales[label]).to_event(1)
                else:
                    fn = dist.MultivariateNormal(prior.means[label], scale_tril=prior.scale_tril[label])
                zs.append(numpyro.sample(f"z_{name}", fn))
            numpyro.sample("x", likelihood.distribution(decode(zs, [1.0] * len(zs)), {}, 17), obs=x)

    return model


def test_summing_out_the_explicit_labels_gives_the_model():
    d, keys = 2, jax.random.split(KEY, 3)
    starts = {
        "a": perturbed(initial(keys[0], dim=d, clusters=2, covariance="diag", scale=0.7, spread=1.0), keys[0]),
        "b": perturbed(initial(keys[1], dim=d, clusters=3, covariance="full", scale=0.7, spread=1.0), keys[1]),
    }
    priors = {name: mixture(start) for name, start in starts.items()}
    likelihood = Normal(sigma=0.5, link="identity")
    model = generative(spec_of(starts, likelihood), Identity(), starts)
    x, *zs = jax.random.normal(keys[2], (3, 1, d))
    z = {"z_a": zs[0], "z_b": zs[1]}
    spelt = explicit(priors, likelihood, Identity())
    one = jax.jit(lambda a, b: log_density(spelt, (x, {"a": a[None], "b": b[None]}), {}, z)[0])
    joint = {c: float(one(*map(jnp.asarray, c))) for c in itertools.product(range(2), range(3))}
    total = logsumexp(list(joint.values()))
    marginal, resp = jax.jit(lambda: (lambda d, s: (d, s["resp_b"]["value"]))(*log_density(model, (x,), {}, z)))()
    np.testing.assert_allclose(marginal, total, rtol=1e-5)
    by_hand = [np.exp(logsumexp([v for (_, b), v in joint.items() if b == k]) - total) for k in range(3)]
    np.testing.assert_allclose(resp[0], by_hand, atol=1e-5)


def test_marginal_elbo_is_tight_for_the_exact_posterior():
    """K = 1, identity decoder: with q = p(z | x) every draw gives log p(x) itself."""
    sigma, s = 0.4, 0.7
    start = {"logits": jnp.zeros(1), "means": jnp.ones((1, 2)), "variance": jnp.full((1, 2), unconstrained(s**2))}
    model = generative(spec_of({"a": start}, Normal(sigma=sigma, link="identity")), Identity(), {"a": start})
    x, v = jnp.array([[0.3, -1.0], [2.0, 0.0]]), s**2 + sigma**2
    exact = dist.Normal(1 + s**2 / v * (x - 1), s * sigma / v**0.5).to_event(1)
    guide = as_guide(model, lambda x: lambda site, ctx: exact)
    evidence = stats.norm(1, v**0.5).logpdf(np.asarray(x)).sum()
    loss = jax.jit(lambda key: Trace_ELBO().loss(key, {}, model, guide, x))
    for key in jax.random.split(KEY, 3):
        np.testing.assert_allclose(-loss(key), evidence, rtol=1e-5)


@pytest.mark.parametrize(("variance", "u"), [(0.01, -0.2252), (0.1, 0.0541)])
def test_variance_map_is_the_published_one(variance, u):
    assert unconstrained(variance) == pytest.approx(u, abs=1e-4)


@pytest.mark.parametrize("value", [1e-3, 0.01, 0.5, 1.0, 30.0])
def test_variance_map_inverts(value):
    assert float(positive(jnp.asarray(unconstrained(value)))) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_mixtures_start_at_the_declared_scale(covariance):
    prior = mixture(initial(KEY, dim=3, clusters=4, covariance=covariance, scale=0.3, spread=1.0))
    np.testing.assert_allclose(prior.components.variance, 0.09, rtol=1e-4)
    np.testing.assert_allclose(prior.probs, 0.25, rtol=1e-6)


# ---------------------------------------------------------------------------------------- stock NumPyro
def test_stock_svi_trains_model_and_guide(tiny, x):
    svi = SVI(tiny.model, tiny.guide, optax.adam(1e-3), TraceMeanField_ELBO())
    state = jax.jit(svi.init)(KEY, x)
    before = svi.get_params(state)
    state, loss = jax.jit(svi.update)(state, x)
    after = svi.get_params(state)
    assert np.isfinite(loss)
    assert set(after) == {"encoder$params", "decoder$params", "mixture_style", "mixture_digit"}
    for name in before:
        changed = jax.tree.map(lambda a, b: bool((a != b).any()), before[name], after[name])
        assert all(jax.tree.leaves(changed)), f"{name} has a parameter without gradient"


def test_latents_are_ordered_and_responsibilities_sum_to_one(tiny, x):
    order = []

    def run(x):
        sites = handlers.trace(handlers.seed(tiny.model, KEY)).get_trace(x)
        order.extend(n for n, s in sites.items() if s["type"] == "sample" and not s["is_observed"])
        return {name: sites[name]["value"] for name in ("z_style", "resp_style", "z_digit", "resp_digit", "x")}

    values = jax.jit(run)(x)
    assert tuple(order) == tiny.latents == ("z_style", "z_digit")
    assert {name: value.shape for name, value in values.items()} == {
        "z_style": (B, 2), "resp_style": (B, 3), "z_digit": (B, 3), "resp_digit": (B, 4), "x": (B, 8, 8),
    }  # fmt: skip
    np.testing.assert_allclose(values["resp_digit"].sum(-1), 1, rtol=1e-5)


def test_predictive_draws_data_and_posterior_predictive(tiny, x):
    params = params_of(tiny, x)
    prior = Predictive(tiny.model, params=params, num_samples=2)(KEY, size=3)
    assert prior["x"].shape == (2, 3, 8, 8)
    assert prior["z_digit"].shape == (2, 3, 3)
    posterior = Predictive(tiny.guide, params=params, num_samples=4)(KEY, x)
    assert set(posterior) == {"z_style", "z_digit"}
    again = Predictive(tiny.model, posterior_samples=posterior, params=params)(KEY, size=B)
    assert again["resp_style"].shape == (4, B, 3)


def test_condition_fixes_a_facet(tiny):
    z = jnp.zeros((2, 3))
    model = handlers.seed(handlers.condition(tiny.model, {"z_digit": z}), KEY)
    observed = {}

    def run():
        sites = handlers.trace(model).get_trace(size=2)
        observed.update({name: site.get("is_observed") for name, site in sites.items()})
        return sites["z_digit"]["value"]

    np.testing.assert_array_equal(jax.jit(run)(), z)
    assert observed["z_digit"] and not observed["z_style"]


def test_fading_a_facet_out_and_in_compiles_once(tiny):
    traced = []

    def mean(z_style, fade):
        traced.append(1)
        with knobs({"fade_style": fade}):
            model = handlers.condition(
                handlers.seed(tiny.model, KEY), {"z_style": z_style, "z_digit": jnp.ones((1, 3))}
            )
            return handlers.trace(model).get_trace(size=1)["x"]["fn"].mean

    mean = jax.jit(mean)
    one, other = jnp.ones((1, 2)), -3 * jnp.ones((1, 2))
    np.testing.assert_array_equal(mean(one, 0.0), mean(other, 0.0))
    assert float(jnp.abs(mean(one, 1.0) - mean(other, 1.0)).max()) > 1e-4
    assert len(traced) == 1
    assert set(tiny.training.knobs) == {"fade_style", "fade_digit"}


def test_missing_data_and_size_are_explained(tiny):
    with pytest.raises(ValueError, match=r"model\(size=n\)"):
        handlers.seed(tiny.model, KEY)()
    with pytest.raises(ValueError, match="needs data x"):
        handlers.seed(tiny.guide, KEY)(size=3)


LIKELIHOODS = [Bernoulli(threshold=7.5 / 16, noise=1.0), GreyBernoulli(), Normal(learned=True, dequantise=True)]


@pytest.mark.parametrize(
    ("J", "likelihood", "network"),
    [
        (1, LIKELIHOODS[0], MLPLadder((6,))),
        (2, LIKELIHOODS[1], MLP((6,), separate=True)),
        (3, LIKELIHOODS[2], MLP((6,))),
        (1, LogisticMixture(components=2), MLPLadder((6,))),
        (2, Normal(learned=True, per_pixel=True), MLP((6,))),
    ],
)
def test_any_number_of_facets_and_likelihood_has_a_finite_elbo(J, likelihood, network):
    facets = tuple(Facet(f"f{j}", 1 + j, 2) for j in range(J))
    spec = MFCVAE(facets=facets, shape=(2, 3), levels=17, likelihood=likelihood, network=network, learn_weights=False)
    program = spec_from_json(spec_to_json(spec)).build(KEY)
    x = program.observation.prepare(jnp.arange(12, dtype="uint8").reshape(2, 2, 3), KEY, True)
    params = params_of(program, x)
    loss = jax.jit(lambda p: TraceMeanField_ELBO().loss(KEY, p, program.model, program.guide, x))
    assert np.isfinite(loss(params))
    assert ("likelihood" in params) == bool(likelihood.parameters((2, 3)))
    assert "logits" not in params["mixture_f0"]
    assert program.observation.line == likelihood.observation((2, 3), 17)
    assert len(program.views.density) == J + 3
    assert all(f"[f{j}]" in program.views.density[1 + j] for j in range(J))


def test_warmup_raises_the_weight_of_the_kl():
    spec = MFCVAE(facets=(Facet("a", 1, 2),), shape=(2,), network=MLP((3,)), warmup=4)
    weight = spec.build(KEY).training.weights["kl"]
    np.testing.assert_allclose([float(weight(step)) for step in (0, 1, 3, 9)], [0.25, 0.5, 1, 1])
    assert not PRESETS["tiny"].build(KEY).training.weights


def test_bad_data_are_refused_before_any_work(tiny):
    with pytest.raises(ValueError, match=r"shape \(N, 8, 8\), got \(3, 28, 28\)"):
        tiny.observation.check(np.zeros((3, 28, 28), "uint8"))
