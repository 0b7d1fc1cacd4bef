"""Objectives of a fit beside the ELBO: known bounds, gradients that agree with closed forms and with one another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from inference.fitting import fit
from inference.fitting.bounds import importance_weighted, per_datum_bound
from inference.fitting.loss import make_loss
from inference.fitting.objectives import fused_elbo, joint_draw
from ppl_models.program import Observation, Posterior, Program
from tests.closed_forms import linear_gaussian_hierarchy, linear_gaussian_program
from tests.toy import PPCA, toy_data

KEY = jax.random.key(5)
LOC, LOG_SD = 0.9, -0.2


def one_dimension() -> Program:
    """z ~ N(0, 1), x | z ~ N(z, 1), q = N(m x, e^2 s): parameters of p (``shift``) and of q (``m``, ``s``) apart."""

    def model(x: jax.Array | None = None, *, size: int | None = None) -> None:
        shift = numpyro.param("shift", jnp.zeros(()))
        with numpyro.plate("data", size if x is None else len(x)):
            z = numpyro.sample("z", dist.Normal(0, 1), infer={"ctx": None})
            numpyro.sample("x", dist.Normal(z + shift, 1), obs=x)

    def posterior(x: jax.Array) -> Posterior:
        m, s = numpyro.param("m", jnp.asarray(LOC)), numpyro.param("s", jnp.asarray(LOG_SD))
        return lambda site, ctx: dist.Normal(m * x, jnp.exp(s))

    return Program(None, model, posterior, ("z",), (), observation=Observation("x"))


def shared_hierarchy() -> Program:
    """Two levels; the posterior of z_1 reads a state that the model's own parameter makes, as a top-down pass does.

    ``top`` is a parameter of p(z_1 | z_0) and, through the context, of q(z_1 | z_0, x); ``m`` is of both levels of q.
    """

    def model(x: jax.Array | None = None, *, size: int | None = None) -> None:
        top = numpyro.param("top", jnp.asarray(0.8))
        with numpyro.plate("data", size if x is None else len(x)):
            z = numpyro.sample("z_0", dist.Normal(0, 1), infer={"ctx": jnp.zeros(())})
            state = jnp.tanh(top * z)
            z = numpyro.sample("z_1", dist.Normal(state, 0.7), infer={"ctx": state})
            numpyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def posterior(x: jax.Array) -> Posterior:
        m = numpyro.param("m", jnp.asarray(0.4))
        return lambda site, state: dist.Normal(m * x + 0.6 * state, 0.8 if site == "z_0" else 0.5 + 0.1 * m**2)

    return Program(None, model, posterior, ("z_0", "z_1"), (), observation=Observation("x"))


def gradients(
    program: Program, params: dict[str, Any], x: jax.Array, draws: int, **more: Any
) -> Callable[[bool], dict[str, np.ndarray]]:
    """Gradients of the loss by name, (draws, ...); the same keys for either estimator."""

    def of(doubly: bool) -> dict[str, np.ndarray]:
        def one(key: jax.Array) -> Any:
            loss = lambda p: importance_weighted(program, p, key, x, doubly=doubly, **more)[0]  # noqa: E731
            return jax.grad(loss)(params)

        keys = jax.random.split(KEY, draws)
        found = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=1000))(keys)
        return {name: np.asarray(value, np.float64) for name, value in found.items()}

    return of


def quadrature(x: float, K: int = 1) -> dict[str, float]:
    """Gradient of the negative bound of ``one_dimension`` for one datum, K = 1 or 2, by Gauss-Hermite quadrature."""
    nodes, mass = np.polynomial.hermite_e.hermegauss(60)
    mass = mass / mass.sum()

    def bound(shift: jax.Array, m: jax.Array, s: jax.Array) -> jax.Array:
        z = m * x + jnp.exp(s) * nodes
        log_w = dist.Normal(0, 1).log_prob(z) + dist.Normal(z + shift, 1).log_prob(x)
        log_w -= dist.Normal(m * x, jnp.exp(s)).log_prob(z)
        if K == 1:
            return mass @ log_w
        return mass @ (jnp.logaddexp(log_w[:, None], log_w) - jnp.log(2.0)) @ mass

    found = jax.grad(bound, argnums=(0, 1, 2))(jnp.zeros(()), jnp.asarray(LOC), jnp.asarray(LOG_SD))
    return {name: -float(value) for name, value in zip(("shift", "m", "s"), found, strict=True)}


@pytest.mark.parametrize("K", [1, 2])
@pytest.mark.parametrize("doubly", [False, True])
def test_both_estimators_have_the_gradient_of_the_bound_by_quadrature(K: int, doubly: bool) -> None:
    program, x = one_dimension(), jnp.asarray([1.3])
    params = {"shift": jnp.zeros(()), "m": jnp.asarray(LOC), "s": jnp.asarray(LOG_SD)}
    found, exact = gradients(program, params, x, 40_000, particles=K)(doubly), quadrature(1.3, K)
    for name, value in found.items():
        assert abs(value.mean() - exact[name]) < 4 * value.std() / np.sqrt(len(value)) + 2e-6, name


@pytest.mark.parametrize("weights", [{}, {"kl": 0.4}, {"kl": 1.5, "x": 0.5}], ids=["plain", "warm-up", "both"])
def test_estimators_agree_where_model_and_posterior_share_parameters(weights: dict[str, float]) -> None:
    program, x = shared_hierarchy(), jnp.asarray([1.5, -0.4])
    params = {"top": jnp.asarray(0.8), "m": jnp.asarray(0.4)}
    of = gradients(program, params, x, 60_000, particles=4, weights=weights)
    plain, doubly = of(False), of(True)
    for name in params:
        difference = doubly[name] - plain[name]  # the same draws: most of the noise is common
        assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(len(difference)), name
        assert abs(doubly[name].mean()) > 20 * doubly[name].std() / np.sqrt(len(plain[name]))  # not nothing to nothing


def test_signal_to_noise_of_the_posterior_falls_with_k_but_not_doubly_reparameterised() -> None:
    """Rainforth et al. 2018, theorem 1: 1/sqrt(K) for phi, sqrt(K) for theta; Tucker et al. 2019, sec. 5: sqrt(K)."""
    program, x = one_dimension(), jnp.asarray([1.3])
    params = {"shift": jnp.zeros(()), "m": jnp.asarray(LOC), "s": jnp.asarray(LOG_SD)}
    snr: dict[tuple[bool, int], dict[str, float]] = {}
    for K in (1, 16, 256):
        of = gradients(program, params, x, 4000, particles=K)
        for doubly in (False, True):
            snr[doubly, K] = {n: abs(g.mean()) / g.std() for n, g in of(doubly).items()}
    assert snr[False, 256]["m"] < 0.2 * snr[False, 1]["m"]
    assert snr[True, 256]["m"] > 1.5 * snr[True, 16]["m"] > 1.5 * snr[False, 16]["m"]
    for doubly in (False, True):
        assert snr[doubly, 256]["shift"] > 3 * snr[doubly, 16]["shift"]


def test_one_draw_is_the_elbo_without_closed_forms() -> None:
    form = linear_gaussian_hierarchy(levels=3, spoil=0.4)
    x = jnp.asarray(form.sample(KEY, 6))
    for doubly in (False, True):
        loss, terms = importance_weighted(form.program, form.params, KEY, x, particles=1, doubly=doubly)
        draw = joint_draw(form.program, form.params, jax.random.split(KEY, 1)[0], x)
        assert float(-loss) == pytest.approx(float(draw.log_weight.mean()), rel=1e-5)
        for value in (terms.elbo, terms.more["bound"]):
            assert float(value) == pytest.approx(float(-loss), rel=1e-5)
    weights = {"kl": 0.3, "x": 0.7, "z_01": 0.5}
    keys = jax.random.split(KEY, 2000)
    ours, stock = (
        np.asarray(jax.jit(jax.vmap(lambda k, f=f: f(k)[0]))(keys))
        for f in (
            lambda k: importance_weighted(form.program, form.params, k, x, particles=1, weights=weights),
            lambda k: fused_elbo(form.program, form.params, k, x, weights=weights),
        )
    )
    se = np.hypot(ours.std(), stock.std()) / np.sqrt(len(keys))
    assert abs(ours.mean() - stock.mean()) < 4 * se


def test_the_bound_rises_with_k_towards_log_p() -> None:
    form = linear_gaussian_program(spoil=0.6)
    x = form.sample(KEY, 64)
    of = jax.jit(
        lambda key, K: per_datum_bound(form.program, form.params, key, jnp.asarray(x), particles=K), static_argnums=1
    )
    means = {}
    for K in (1, 4, 64, 1024):
        bound, elbo = of(KEY, K)
        means[K] = float(bound.mean())
        if K == 1:
            np.testing.assert_array_equal(bound, elbo)
    assert means[1] < means[4] < means[64] < float(form.log_px(x).mean()) + 0.02
    assert means[1024] == pytest.approx(float(form.log_px(x).mean()), abs=0.02)


def test_the_exact_posterior_gives_log_p_and_no_gradient_noise() -> None:
    """At q(z | x) = p(z | x) every weight is p(x): doubly reparameterised gradients of q vanish draw by draw."""
    program, x = one_dimension(), jnp.asarray([1.3, -2.0])
    exact = {"shift": jnp.zeros(()), "m": jnp.asarray(0.5), "s": jnp.asarray(0.5 * np.log(0.5), "float32")}
    loss = lambda p: importance_weighted(program, p, KEY, x, particles=5, doubly=True)[0]  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(exact)
    assert float(-value) == pytest.approx(float(dist.Normal(0, np.sqrt(2)).log_prob(x).mean()), rel=1e-5)
    assert abs(float(gradient["m"])) < 1e-5 and abs(float(gradient["s"])) < 1e-5


def test_noise_of_the_model_is_that_of_the_draw() -> None:
    """Dropout and the like: all traces of a draw see the same noise, so one draw has one gradient of the model."""

    def model(x: jax.Array | None = None, *, size: int | None = None) -> None:
        shift = numpyro.param("shift", jnp.zeros(()))
        with numpyro.plate("data", 1 if x is None else len(x)):
            z = numpyro.sample("z", dist.Normal(0, 1), infer={"ctx": None})
            noise = jax.random.normal(numpyro.prng_key(), z.shape)
            numpyro.sample("x", dist.Normal(z + shift * noise, 1), obs=x)

    program, x = Program(None, model, one_dimension().posterior, ("z",), ()), jnp.linspace(-1, 1, 7)
    params = {"shift": jnp.asarray(0.8), "m": jnp.asarray(LOC), "s": jnp.asarray(LOG_SD)}
    plain, doubly = (
        jax.grad(lambda p, d=d: importance_weighted(program, p, KEY, x, particles=1, doubly=d)[0])(params)["shift"]
        for d in (False, True)
    )
    assert float(doubly) == pytest.approx(float(plain), rel=1e-5) and abs(float(plain)) > 1e-3


def test_running_statistics_are_averaged_over_the_draws() -> None:
    from numpyro.primitives import mutable

    def model(x: jax.Array | None = None, *, size: int | None = None) -> None:
        state = mutable("seen", {"mean": jnp.zeros(()), "count": jnp.zeros((), jnp.int32)})
        with numpyro.plate("data", 1 if x is None else len(x)):
            z = numpyro.sample("z", dist.Normal(0, 1), infer={"ctx": None})
            numpyro.sample("x", dist.Normal(z, 1), obs=x)
        state["mean"], state["count"] = jax.lax.stop_gradient(z.mean()), state["count"] + 1

    program = Program(None, model, lambda x: lambda site, ctx: dist.Normal(x, 1), ("z",), ())
    start = {"seen": {"mean": jnp.zeros(()), "count": jnp.zeros((), jnp.int32)}}
    x = jnp.full(500, 3.0)
    _, terms = importance_weighted(program, {}, KEY, x, particles=8, doubly=True, mutable=start)
    seen = terms.mutable["seen"]
    assert int(seen["count"]) == 1 and float(seen["mean"]) == pytest.approx(3.0, abs=4 / np.sqrt(4000))


def test_what_makes_no_sense_is_refused_at_once() -> None:
    program, x = PPCA().build(KEY), toy_data(16)
    no_latents = Program(
        None, lambda x=None, *, size=None: numpyro.sample("x", dist.Normal(jnp.zeros(4), 1).to_event(1), obs=x),
        None, (), (4,),
    )  # fmt: skip

    def mixed(x: jax.Array) -> Posterior:
        parts = dist.MultivariateNormal(jnp.zeros((len(x), 2, 2)), jnp.eye(2))
        return lambda site, ctx: dist.MixtureSameFamily(dist.Categorical(probs=jnp.ones(2) / 2), parts)

    jumps = Program(None, program.model, mixed, ("z",), (4,))
    for wrong, message in (
        ({"objective": "iwea"}, r"one of elbo, iwae, dreg, got 'iwea' \(did you mean 'iwae'\?\)"),
        ({"particles": 4}, 'the draws of objective="iwae" or "dreg"'),
        ({"objective": "iwae", "particles": 0}, "whole number of at least 1, got 0"),
        ({"objective": "dreg", "weights": {"z": 0.5}}, "one weight of the KL, not one of 'z' alone"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(program, x, steps=1, batch_size=4, key=KEY, progress=False, **wrong)
    for objective in ("iwae", "dreg"):
        with pytest.raises(ValueError, match="weighs draws of latents, this program has no latents"):
            make_loss(no_latents, objective, None, 0.0)
        with pytest.raises(ValueError, match="posterior of site 'z', a Mixture.* cannot be reparameterised"):
            make_loss(jumps, objective, None, 0.0)
