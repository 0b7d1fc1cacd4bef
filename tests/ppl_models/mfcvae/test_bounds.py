"""The three bounds: the paper's five terms, their order, enumeration of the clusters, recovery of a known mixture."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions.kl import kl_divergence
from numpyro.infer import Trace_ELBO, TraceMeanField_ELBO
from scipy import stats
from scipy.special import log_softmax, logsumexp, softmax

from inference import fit
from inference.fitting.objectives import fused_elbo, init_params, trace_posterior
from ppl_models.distributions import MeanFieldMixture, MixtureOfGaussians, SampledMixture
from ppl_models.distributions.mixture import component_divergences
from ppl_models.mfcvae import MFCVAE, MLP, PRESETS, Facet, Normal, explicit
from ppl_models.mfcvae.mixture import from_moments, initial, mixture

KEY = jax.random.key(0)
COVARIANCES = ("diag", "full", "spherical", "low_rank")


def random_mixture(key, covariance, K=3, d=2, kind=MixtureOfGaussians, **more):
    start = initial(key, dim=d, clusters=K, covariance=covariance, scale=0.7, spread=1.5, rank=1)
    keys = jax.random.split(jax.random.fold_in(key, 7), len(start))
    moved = {n: v + 0.3 * jax.random.normal(k, v.shape) for k, (n, v) in zip(keys, start.items(), strict=True)}
    return mixture(moved, kind, **more)


def covariances_of(m):
    if m.scales is None:
        return m.scale_tril @ m.scale_tril.mT
    return m.scales[:, :, None] ** 2 * jnp.eye(m.scales.shape[1])


# ------------------------------------------------------------------------------------- the five-term loss
@pytest.mark.parametrize("covariances", [("diag",), ("full",), ("diag", "full"), ("full", "diag", "full")])
def test_the_five_term_loss_of_the_paper_is_the_marginal_form_in_mid_fade(covariances):
    """loss = -(t1 - sum_j g_j (t4 - t2)_j - sum_j g_j (t5 - t3)_j), in NumPy, from one draw of z; 25 states a case."""
    J = len(covariances)
    facets = tuple(Facet(f"f{j}", 1 + j, 2 + j, covariance) for j, covariance in enumerate(covariances))
    program = MFCVAE(facets, (3,), levels=17, network=MLP((4,))).build(KEY)
    x = program.observation.prepare(jnp.arange(6, dtype="uint8").reshape(2, 3), KEY, False)
    start, _, _ = init_params(program, KEY, x)

    @jax.jit
    def ours(key, gammas):
        noise, weights = jax.random.split(key)
        leaves, tree = jax.tree.flatten(start)
        params = jax.tree.unflatten(
            tree, [v + 0.3 * jax.random.normal(jax.random.fold_in(weights, i), v.shape) for i, v in enumerate(leaves)]
        )
        scale = {f"z_f{j}": gammas[j] for j in range(J)} | {f"fade_f{j}": gammas[j] for j in range(J)}
        loss, _ = fused_elbo(program, params, noise, x, weights=scale)
        sites = trace_posterior(program, params, noise, x, weights=scale)
        z = [sites[f"z_f{j}"]["value"] for j in range(J)]
        q = [sites[f"z_f{j}"]["fn"].base_dist for j in range(J)]
        priors = [mixture(params[f"mixture_f{j}"]) for j in range(J)]
        prior = [(p.logits, p.means, p.components.covariance_matrix if p.scales is None else p.scales) for p in priors]
        return loss, sites["x"]["fn"].log_prob(x), z, [(n.loc, n.scale) for n in q], prior

    for state in range(25):
        gammas = np.random.default_rng(state).uniform(size=J)
        loss, t1, zs, qs, priors = jax.tree.map(lambda a: np.asarray(a, float), ours(jax.random.key(state), gammas))
        total = t1.copy()
        for j, (m, s) in enumerate(qs):
            gamma, z, (logits, means, spread), covariance = gammas[j], zs[j], priors[j], covariances[j]
            log_n = np.stack([
                stats.norm(mean, v).logpdf(z).sum(-1) if covariance == "diag"
                else np.reshape(stats.multivariate_normal(mean, v).logpdf(z), len(z))
                for mean, v in zip(means, spread, strict=True)
            ], -1)  # fmt: skip
            log_pi = log_softmax(logits)
            log_qc = log_softmax(log_pi + log_n, axis=-1)
            qc = np.exp(log_qc)
            t2, t3, t5 = (qc * log_n).sum(-1), (qc * log_pi).sum(-1), (qc * log_qc).sum(-1)
            t4 = stats.norm(m, s).logpdf(z).sum(-1)
            total -= gamma * (t4 - t2) + gamma * (t5 - t3)
        np.testing.assert_allclose(loss, -total.mean(), rtol=1e-4)


# ------------------------------------------------------------------------------------------------- order
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_divergence_of_a_component_is_the_closed_form(covariance):
    prior = random_mixture(KEY, covariance, K=2, d=3, kind=MeanFieldMixture)
    q = dist.Normal(jnp.array([[0.3, -0.5, 1.0]]), jnp.array([[0.4, 1.1, 0.2]])).to_event(1)
    full = dist.MultivariateNormal(q.base_dist.loc, jnp.diag(q.base_dist.scale[0] ** 2))
    S = covariances_of(prior)
    by_hand = [kl_divergence(full, dist.MultivariateNormal(m, v))[0] for m, v in zip(prior.means, S, strict=True)]
    np.testing.assert_allclose(component_divergences(q, prior)[0], jnp.stack(by_hand), rtol=2e-5)
    bound = -logsumexp(np.asarray(jax.nn.log_softmax(prior.logits)) - np.asarray(by_hand))
    np.testing.assert_allclose(kl_divergence(q, prior), [bound], rtol=2e-5)
    expected = softmax(np.asarray(jax.nn.log_softmax(prior.logits)) - np.asarray(by_hand))
    np.testing.assert_allclose(prior.mean_field_responsibilities(q)[0], expected, atol=1e-5)


def test_the_bounds_are_ordered_and_the_sampled_one_falls_to_the_mean_field_bound():
    """Prior term of the ELBO: marginal = sampled(1) >= sampled(L) >= sampled(2 L) >= meanfield, for any mixture."""
    q = dist.Normal(jnp.array([0.2, -0.4]), jnp.array([0.8, 0.5])).to_event(1)

    @jax.jit
    def terms(key):
        prior_key, noise_key = jax.random.split(key)
        draws, found = 20_000, []
        for L in (1, 2, 8):
            noise = jax.random.normal(jax.random.fold_in(noise_key, L), (L, draws, 2))
            prior = random_mixture(prior_key, "full", kind=SampledMixture, noise=noise)
            found.append(-kl_divergence(q, prior).mean())
        z = q.sample(noise_key, (draws,))
        marginal = (prior.log_prob(z) - q.log_prob(z)).mean()
        return marginal, jnp.stack(found), -kl_divergence(q, random_mixture(prior_key, "full", kind=MeanFieldMixture))

    for state in range(5):
        marginal, (one, two, eight), mean_field = terms(jax.random.key(state))
        assert abs(one - marginal) < 0.04  # both are means of 20,000 draws
        assert one > two > eight > mean_field


def test_many_draws_reach_the_mean_field_bound():
    q = dist.Normal(jnp.array([0.2, -0.4]), jnp.array([0.8, 0.5])).to_event(1)
    noise = jax.random.normal(KEY, (4000, 50, 2))
    sampled = kl_divergence(q, random_mixture(KEY, "diag", kind=SampledMixture, noise=noise))
    np.testing.assert_allclose(
        sampled.mean(), kl_divergence(q, random_mixture(KEY, "diag", kind=MeanFieldMixture)), atol=0.01
    )


def test_the_best_responsibility_is_found_by_enumeration():
    """q(c | x) over two facets jointly, by enumeration of all pairs, is the product of softmax E_q log p(c | z)."""
    keys = jax.random.split(KEY, 4)
    priors = [random_mixture(keys[0], "diag"), random_mixture(keys[1], "full", K=4)]
    zs = [0.3 + jax.random.normal(k, (64, 2)) for k in keys[2:]]
    log_joint = [np.asarray(p.component_log_probs(z), float) for p, z in zip(priors, zs, strict=True)]
    pairs = (log_joint[0][:, :, None] + log_joint[1][:, None, :]).reshape(64, -1)
    log_posterior = (pairs - logsumexp(pairs, axis=1, keepdims=True)).mean(0)
    q = softmax(log_posterior).reshape(3, 4)
    log_p = [v - logsumexp(v, axis=1, keepdims=True) for v in log_joint]
    facet = [softmax(v.mean(0)) for v in log_p]
    np.testing.assert_allclose(q, np.outer(*facet), atol=1e-6)
    # It is the best: the gap E_q(c) [log q(c) - mean log p(c | z)] is -log sum exp(mean log p), never less.
    least = -logsumexp(log_posterior)
    for other in np.random.default_rng(0).dirichlet(np.ones(12), size=50):
        assert (other * (np.log(other) - log_posterior)).sum() >= least


def test_the_programs_bounds_are_those_of_their_priors_and_stock_numpyro_agrees():
    x = jnp.linspace(0, 1, 128).reshape(2, 8, 8)
    found = {}
    for bound in ("marginal", "meanfield"):
        program = dataclasses.replace(PRESETS["tiny"], bound=bound).build(KEY)
        params, _, _ = init_params(program, KEY, x)
        params = jax.tree.map(lambda leaf: leaf + 0.05, params)
        stock = {
            objective: jax.jit(lambda o=objective, p=program, v=params: o().loss(KEY, v, p.model, p.guide, x))()
            for objective in (Trace_ELBO, TraceMeanField_ELBO)
        }
        found[bound] = stock
        keys = jax.random.split(KEY, 512)
        loss = jax.jit(jax.vmap(lambda k, p=program, v=params: fused_elbo(p, v, k, x)[0]))(keys)
        found[bound, "mean"] = float(loss.mean())
    # The same keys, densities alone: the marginal bound whatever the program's own.
    np.testing.assert_allclose(found["marginal"][Trace_ELBO], found["meanfield"][Trace_ELBO], rtol=1e-6)
    assert found["meanfield", "mean"] > found["marginal", "mean"]


def test_enumerated_clusters_give_the_marginal_bound():
    pytest.importorskip("funsor")
    from numpyro.infer import TraceEnum_ELBO

    program = PRESETS["tiny"].build(KEY)
    x = jnp.linspace(0, 1, 192).reshape(3, 8, 8)
    params, _, _ = init_params(program, KEY, x)
    params = jax.tree.map(lambda leaf: leaf + 0.05, params)
    z = {n: s["value"] for n, s in trace_posterior(program, params, KEY, x).items() if n.startswith("z_")}

    def loss(elbo, model):
        from numpyro.handlers import substitute

        guide = substitute(program.guide, data=z)
        return jax.jit(lambda: elbo.loss(KEY, params, substitute(model, data=z), guide, x))()

    enumerated = loss(TraceEnum_ELBO(max_plate_nesting=1), explicit(program))
    np.testing.assert_allclose(enumerated, loss(Trace_ELBO(), program.model), rtol=1e-5)


# ---------------------------------------------------------------------------------------------- recovery
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_moments_set_a_mixture_of_any_form(covariance):
    """A mixture of the form is found again from its own moments."""
    rng = np.random.default_rng(0)
    d, K, variance = 3, 2, np.array([0.3, 0.8])
    S = {
        "spherical": variance[:, None, None] * np.eye(d),
        "diag": np.stack([np.diag([0.2, 0.5, 1.0]), np.diag([1.0, 0.1, 0.4])]),
        "low_rank": 0.2 * np.eye(d) + np.stack([np.outer(w, w) for w in rng.normal(size=(K, d))]),
        "full": np.stack([a @ a.T + 0.1 * np.eye(d) for a in rng.normal(size=(K, d, d))]),
    }[covariance]
    like = initial(KEY, dim=d, clusters=K, covariance=covariance, scale=1.0, spread=0.0)
    means = rng.normal(size=(K, d))
    found = mixture(from_moments(like, np.array([0.3, 0.7]), means, S))
    np.testing.assert_allclose(found.probs, [0.3, 0.7], rtol=1e-5)
    np.testing.assert_allclose(found.means, means, rtol=1e-5)
    np.testing.assert_allclose(covariances_of(found), S, atol=1e-3)


def test_a_known_mixture_is_recovered_through_an_identity_decoder():
    """x = z + small noise: means, variances and weights within 5 % of the truth, up to the order of the clusters."""
    from flax import nnx

    from ppl_models.mfcvae.program import amortised, generative
    from ppl_models.mfcvae.refit import events
    from ppl_models.program import Program, Training

    class Identity(nnx.Module):
        def __call__(self, zs, fades):
            return fades[0] * zs[0]

    class Posterior(nnx.Module):
        def __init__(self):
            self.log_scale = nnx.Param(jnp.full(2, -2.0))

        def __call__(self, x):
            return ((x, jnp.broadcast_to(self.log_scale[...], x.shape)),)

    weights, sd = np.array([0.2, 0.3, 0.5]), np.array([0.5, 0.7, 1.0])
    means = np.array([[3.0, 4.0], [4.0, -3.0], [-3.0, 3.0]])
    rng = np.random.default_rng(0)
    c = rng.permutation(np.repeat(np.arange(3), (weights * 4000).astype(int)))
    z = rng.normal(size=(4000, 2))
    z = (z - np.stack([z[c == k].mean(0) for k in range(3)])[c]) / np.stack([z[c == k].std(0) for k in range(3)])[c]
    x = (means[c] + sd[c, None] * z).astype("float32")  # the sample has these moments exactly
    spec = MFCVAE((Facet("a", 2, 3, refit=(20,)),), (2,), likelihood=Normal(0.05, link="identity"), network=MLP((1,)))
    start = initial(KEY, dim=2, clusters=3, covariance="diag", scale=1.0, spread=0.0)
    posterior = amortised(spec, Posterior())
    program = Program(
        spec, generative(spec, Identity(), {"a": start}), posterior, ("z_a",), (2,),
        training=Training(events=events(spec, posterior, {})),
    )  # fmt: skip
    fitted = fit(program, x, steps=400, batch_size=1000, learning_rate=0.01, key=KEY, progress=False)
    found = mixture(fitted.params["mixture_a"])
    order = [int(np.abs(np.asarray(found.means) - m).sum(1).argmin()) for m in means]
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_allclose(found.means[np.array(order)], means, rtol=0.05)
    np.testing.assert_allclose(found.probs[np.array(order)], weights, rtol=0.05)
    np.testing.assert_allclose(found.scales[np.array(order)], np.broadcast_to(sd[:, None], (3, 2)), rtol=0.05)
