"""The multi-resolution view: tied groups, the Haar encoder, clocks, and explicit steps that can be halved."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from inference.fitting.objectives import fused_elbo, init_params, per_datum_elbo, trace_posterior
from ppl_models.function_spaces.images import project_image
from ppl_models.hvae import HVAE, finer_steps
from ppl_models.hvae.blocks import groups, parse_decoder, parse_encoder, refine
from ppl_models.hvae.networks import Decoder, Encoder
from ppl_models.program import spec_from_json

KEY = jax.random.key(0)
SPEC = HVAE(enc="4x2,4d4,1x1", dec="1x1,4m1,4x3", shape=(4, 4), levels=17, width=8, zdim=2, mid_ratio=0.5)
EULER = dataclasses.replace(SPEC, step="euler", share="resolution", dec="1x1,4m1,4x1")
X = (jax.random.uniform(jax.random.key(1), (3, 4, 4)) < 0.4).astype("float32")


def quick(function):
    """``jax.jit`` that compiles fast rather than well: each of these programs runs once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def count(module):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def moved(program, by=0.1):
    params = init_params(program, KEY, X)[0]
    wave = lambda leaf: by * jnp.cos(jnp.arange(leaf.size, dtype="float32")).reshape(leaf.shape)  # noqa: E731
    return jax.tree.map(lambda leaf: leaf + wave(leaf), params)


def elbo(spec, params=None):
    """ELBO of each datum, one draw, parameters moved off their start."""
    program = spec.build(KEY)

    @quick
    def run(params):
        return per_datum_elbo(program, moved(program) if params is None else params, jax.random.key(2), X)

    return np.asarray(run(params))


# ------------------------------------------------------------------------------------------------ tied groups
def test_a_token_ties_its_cells_in_groups():
    cells = parse_decoder("1x1,4m1,4x5r2")
    assert [cell.tied for cell in cells] == [0, 0, 3, 3, 5, 5, 7]
    assert groups(cells, False) == (0, 1, 2, 2, 3, 3, 4)
    assert groups(parse_encoder("8x3r3,8d8,1"), False) == (0, 0, 0, 1, 2)
    assert groups(cells, True) == (0, 1, 2, 2, 2, 2, 2)


@pytest.mark.parametrize("text", ["1x1,4m1,4x2r3", "1x1,4m1r2", "1x1,4m1,4r2", "1x1,4m1,4x2r0"])
def test_a_wrong_repeat_is_refused_with_what_to_write(text):
    with pytest.raises(ValueError, match=r"at least 1|write '4x|'8x4r2'"):
        parse_decoder(text)


def test_a_group_of_all_cells_is_the_tied_resolution():
    all_tied = dataclasses.replace(SPEC, dec="1x1,4m1,4x3r3", enc="4x2r2,4d4,1x1")
    np.testing.assert_array_equal(elbo(all_tied), elbo(dataclasses.replace(SPEC, share="resolution")))


# --------------------------------------------------------------------------------------------------- encoders
def test_the_haar_encoder_has_no_parameters_and_projects():
    encoder = Encoder(dataclasses.replace(SPEC, encoder="haar"), rng=np.random.default_rng(0))
    assert count(encoder) == count(encoder.posteriors)
    found = encoder(X)
    np.testing.assert_allclose(found[4][..., 0], 2 * X - 1)
    np.testing.assert_allclose(found[1], project_image(2 * X[..., None] - 1, 2), atol=1e-6)


# ------------------------------------------------------------------------------------------------------ clocks
def test_clocks():
    decoders = {
        clock: Decoder(dataclasses.replace(SPEC, clock=clock), rng=np.random.default_rng(0))
        for clock in ("none", "step", "normalise")
    }
    Z = jax.random.normal(KEY, (2, 4, 4, 8))
    assert count(decoders["step"]) == count(decoders["none"]) + 2 * 8  # a vector for each resolution
    stepped = decoders["step"]
    stepped.clock["at_4"][...] = jnp.ones(8)
    for level, time in enumerate(SPEC.times):
        if level:
            np.testing.assert_allclose(stepped.seen(level, Z) - Z, time, atol=1e-6)
    assert SPEC.times == (0.0, 0.0, 0.25, 0.5, 0.75) and SPEC.steps == (1.0, 0.25, 0.25, 0.25, 0.25)
    blind = decoders["normalise"]
    for a, b in zip(blind.prior(1, blind.seen(1, Z)), blind.prior(1, blind.seen(1, 7 * Z)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_array_equal(decoders["none"].seen(1, Z), Z)
    gradient = jax.grad(lambda z: blind.seen(1, z).sum())(jnp.zeros((1, 4, 4, 8)))
    assert jnp.isfinite(gradient).all()


def test_a_step_clock_starts_as_none():
    start = lambda spec: init_params(spec.build(KEY), KEY, X)[0]  # noqa: E731
    clocked = dataclasses.replace(SPEC, clock="step")
    np.testing.assert_allclose(elbo(clocked, start(clocked)), elbo(SPEC, start(SPEC)), rtol=1e-6)


# -------------------------------------------------------------------------------------------- residual posterior
def test_a_residual_posterior_that_says_nothing_costs_nothing():
    """qm = pm + dm, qv = pv + dv: with blocks that say 0 every rate is 0 whatever the prior; with others the KL is
    dm^2 / (2 exp(2 pv)) + (exp(2 dv) - 1) / 2 - dv."""
    spec = dataclasses.replace(SPEC, enc="1x1", dec="1x2", posterior_residual=True)
    program = spec.build(KEY)
    params = moved(program)
    silent = jax.tree.map(jnp.zeros_like, params["encoder$params"]["posteriors"])

    @quick
    def laws(params):
        sites = trace_posterior(program, params, KEY, X)
        return [(*moments(sites[n]["fn"]), *moments(sites[n]["infer"]["prior"])) for n in program.latents]

    moments = lambda d: (d.mean, jnp.log(jnp.sqrt(d.variance)))  # noqa: E731
    for qm, qv, pm, pv in laws({**params, "encoder$params": {**params["encoder$params"], "posteriors": silent}}):
        assert float(jnp.abs(pm).max()) > 1e-2
        np.testing.assert_allclose(qm, pm, atol=1e-6)
        np.testing.assert_allclose(qv, pv, atol=1e-6)
    found = quick(lambda p: fused_elbo(program, p, KEY, X)[1].kl)(params)
    for name, (qm, qv, pm, pv) in zip(program.latents, laws(params), strict=True):
        dm, dv = qm - pm, qv - pv
        want = dm**2 / (2 * jnp.exp(2 * pv)) + (jnp.exp(2 * dv) - 1) / 2 - dv
        assert float(found[name]) == pytest.approx(float(want.sum((1, 2, 3)).mean()), rel=1e-4)
    with pytest.raises(ValueError, match="step 'euler' moves its mean already"):
        dataclasses.replace(EULER, posterior_residual=True)


# ---------------------------------------------------------------------------------------------- explicit steps
def test_the_rate_of_a_step_is_half_its_length_times_the_squared_control():
    program = EULER.build(KEY)
    sites = trace_posterior(program, moved(program), KEY, X)
    for level, name in enumerate(program.latents):
        q, p = sites[name]["fn"], sites[name]["infer"]["prior"]
        np.testing.assert_allclose(q.variance, p.variance, rtol=1e-6)
        u = (q.mean - p.mean) / jnp.sqrt(p.variance) / np.sqrt(EULER.steps[level])
        want = EULER.steps[level] * (u**2).sum((1, 2, 3)) / 2
        np.testing.assert_allclose(sites[f"rate_{name}"]["value"], want, rtol=1e-4)
        assert float(want.min()) > 0


def test_halving_the_steps_keeps_the_parameters_and_changes_less_each_time():
    assert refine("1x1,4m1,4x1") == "1x2,4m1,4x3" and refine("1x1,4m1,4x1", 2) == "1x4,4m1,4x7"
    spec = HVAE(enc="1x1", dec="1x1", shape=(2, 2), width=8, zdim=2, mid_ratio=0.5, step="euler", share="resolution")
    x = X[:, :2, :2]
    program = spec.build(KEY)
    params = init_params(program, KEY, x)[0]
    params = jax.tree.map(
        lambda leaf: leaf + 0.5 * jnp.cos(jnp.arange(leaf.size, dtype="f4")).reshape(leaf.shape), params
    )
    rates = []
    for times in (2, 3, 4):
        finer = finer_steps(spec, times).build(KEY)
        assert finer.parameter_count == program.parameter_count

        def rate(key, finer=finer):
            sites = trace_posterior(finer, params, key, x)
            return sum(sites[f"rate_{name}"]["value"].mean() for name in finer.latents)

        rates.append(float(jax.jit(lambda keys, rate=rate: jax.vmap(rate)(keys).mean())(jax.random.split(KEY, 4000))))
    changes = np.abs(np.diff(rates))
    assert changes[1] < 0.7 * changes[0], (rates, changes)  # a half each time, in the limit


@pytest.mark.parametrize(("field", "value"), [("step", "eular"), ("clock", "norm"), ("encoder", "haas")])
def test_wrong_choices_in_a_file(field, value):
    with pytest.raises(ValueError, match=field):
        spec_from_json({"family": "hvae", "preset": "tiny", "spec": {field: value}})


def test_an_explicit_step_has_the_scale_of_the_prior():
    with pytest.raises(ValueError, match="scale of the prior"):
        dataclasses.replace(SPEC, step="euler", posterior="full")


def test_only_explicit_tied_steps_can_be_halved():
    with pytest.raises(ValueError, match="another model"):
        finer_steps(SPEC)
    with pytest.raises(ValueError, match="0 plain cells.*4x1"):
        finer_steps(dataclasses.replace(EULER, dec="1x1,4m1"))
