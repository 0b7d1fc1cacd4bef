"""The program: counts, the density at the start, tying, rates, dropout, data of other shapes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpyro.handlers import seed, trace

from inference import evidence, fit, posterior
from inference.fitting.objectives import fused_elbo, init_params, joint_draw, per_datum_elbo, trace_posterior
from ppl_models import datasets
from ppl_models.hvae import HVAE, PRESETS, Categorical, LogisticMixture, Normal
from ppl_models.hvae.program import dimensions
from ppl_models.program import knobs, spec_from_json, spec_to_json

KEY = jax.random.key(0)
CONV = HVAE(enc="4x2,4d4,1x1", dec="1x1,4m1,4x2", shape=(4, 4), levels=17, width=8, zdim=2, mid_ratio=0.5)


def quick(function):
    """``jax.jit`` that compiles fast rather than well: each of these programs runs once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def count(spec):
    """Parameters in the modules, from shapes alone: no weight is drawn."""

    def states(key):
        return [nnx.state(module, nnx.Param) for module in spec.build(key).views.modules.values()]

    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(states, KEY)))


def by_formula(spec):
    """Parameters of VDVAE's cells added up by hand."""
    w, m, z, C = spec.width, spec.mid, spec.zdim, spec.channels

    def block(c_in, c_out, res):
        return c_in * m + m + 2 * ((9 if res > 2 else 1) * m * m + m) + m * c_out + c_out

    def distinct(cells, of):
        return {of[i]: cells[i].res for i in range(len(cells))}.values()

    encoder = sum(block(w, w, r) for r in distinct(spec.encoder_cells, spec.encoder_groups))
    decoder = sum(
        block(2 * w, 2 * z, r) + block(w, 2 * z + w, r) + z * w + w + block(w, w, r)
        for r in distinct(spec.decoder_cells, spec.decoder_groups)
    )
    start = sum(w * r * r for r in {cell.res for cell in spec.decoder_cells} if r <= 64)
    O = math.prod(spec.decoded_shape) // spec.grid**2
    return encoder + decoder + start + ((9 if spec.grid > 2 else 1) * C * w + w) + 2 * w + w * O + O


def tied(spec):
    return dataclasses.replace(spec, share="resolution")


@pytest.mark.parametrize(
    ("spec", "expected", "latents"),
    [
        (PRESETS["digits8"], 186_529, 1_928),
        (tied(PRESETS["digits8"]), 130_273, 1_928),
        (PRESETS["small28"], 342_209, 49_408),
        (PRESETS["small28_tied"], 254_657, 49_408),
        (PRESETS["deep28"], 754_273, 146_640),
        (PRESETS["deep28_tied"], 254_657, 146_640),
        (PRESETS["digits"], 174_448, 24),
        (PRESETS["digits_grey"], 261_360, 24),
        (PRESETS["mnist"], 3_566_288, 64),
        (PRESETS["small32"], 369_956, 64_528),
        (tied(PRESETS["small32"]), 282_404, 64_528),
        (PRESETS["cifar10"], 39_145_700, 412_432),
        (tied(PRESETS["cifar10"]), 8_744_356, 412_432),
    ],
    ids=[
        "digits8",
        "digits8 tied",
        "small28",
        "small28 tied",
        "deep28",
        "deep28 tied",
        "digits",
        "digits_grey",
        "mnist",
        "small32",
        "small32 tied",
        "cifar10",
        "cifar10 tied",
    ],
)
def test_parameters_and_latent_dimensions(spec, expected, latents):
    """The published architecture's numbers, counted in the modules and by formula."""
    assert count(spec) == by_formula(spec) == expected
    assert dimensions(spec) == latents


def test_a_build_under_a_trace_draws_other_weights_of_the_same_law():
    """What is traced has no bits for NumPy; a program built in ``jit`` is a program all the same."""
    weights = lambda key: CONV.build(key).views.modules["encoder"].blocks[0].c2.kernel[...]  # noqa: E731
    traced, drawn = quick(weights)(KEY), weights(KEY)
    bound = 1 / math.sqrt(9 * CONV.mid)
    assert traced.shape == drawn.shape and 0.8 * bound < float(jnp.abs(traced).max()) <= bound
    assert float(jnp.abs(drawn).max()) <= bound


def test_the_program_counts_what_the_modules_hold():
    assert PRESETS["digits8"].build(KEY).parameter_count == 186_529
    assert tied(CONV).build(KEY).parameter_count == by_formula(tied(CONV))


@pytest.fixture(scope="module")
def conv():
    """A small pyramid with moved parameters, data, and its compiled objective."""
    program = CONV.build(KEY)
    x = (jax.random.uniform(jax.random.key(1), (6, 4, 4)) < 0.4).astype("float32")
    params = quick(lambda: init_params(program, KEY, x)[0])()
    params = jax.tree.map(
        lambda leaf: leaf + 0.05 * jnp.cos(jnp.arange(leaf.size, dtype="float32")).reshape(leaf.shape), params
    )
    return program, params, x


@pytest.fixture(scope="module")
def sites(conv):
    program, params, x = conv

    def run(key):
        found = trace_posterior(program, params, key, x)
        gaussian = lambda d: (d.mean, jnp.log(jnp.sqrt(d.variance)))  # noqa: E731
        return {
            "gaussian": {
                n: (*gaussian(found[n]["fn"]), *gaussian(found[n]["infer"]["prior"])) for n in program.latents
            },
            "rate": {n: found[f"rate_{n}"]["value"] for n in program.latents},
            "norm": found["state_norm"]["value"],
            "terms": fused_elbo(program, params, key, x)[1],
            "elbo": per_datum_elbo(program, params, key, x),
            "draw": joint_draw(program, params, key, x),
        }

    return quick(run)(KEY)


def test_kl_is_that_of_the_original(sites):
    """-1/2 + pv - qv + (exp(2 qv) + (qm - pm)^2) / (2 exp(2 pv)), summed over the units of a level."""
    for name, (qm, qv, pm, pv) in sites["gaussian"].items():
        kl = -0.5 + pv - qv + (jnp.exp(2 * qv) + (qm - pm) ** 2) / (2 * jnp.exp(2 * pv))
        np.testing.assert_allclose(sites["rate"][name], kl.sum((1, 2, 3)), rtol=1e-3, atol=1e-5)
        assert float(sites["rate"][name].min()) > 0


def test_rates_are_the_terms_of_the_objective_and_sum_to_the_total(sites):
    for name, rate in sites["rate"].items():
        np.testing.assert_allclose(rate.mean(), sites["terms"].kl[name], rtol=1e-5)
    total = sum(sites["rate"].values())
    np.testing.assert_allclose(sum(sites["draw"].log_lik.values()) - total, sites["elbo"], rtol=1e-5)


def test_the_norm_is_recorded_once_a_level(sites):
    assert sites["norm"].shape == (6, 4) and float(sites["norm"].min()) > 0


def test_near_the_start_a_datum_costs_log_two_a_pixel():
    program = PRESETS["digits8"].build(KEY)
    x, _ = datasets.load("digits", "train", n=32)
    x = program.observation.prepare(jnp.asarray(x), KEY, False)
    loss, terms = quick(lambda key: fused_elbo(program, {}, key, x))(KEY)
    assert 43.0 < float(loss) < 47.0  # 64 ln 2 = 44.4
    assert sum(map(float, terms.kl.values())) < 1.0


def test_tied_cells_are_untied_cells_with_equal_weights(conv):
    """Copying the tied weights into every cell of a resolution leaves the ELBO as it was."""
    program, x = tied(CONV).build(jax.random.key(5)), conv[2]
    whole = CONV.build(KEY)
    modules = {}
    for name, parts in (("encoder", ("blocks", "posteriors")), ("decoder", ("cells",))):
        small, big = program.views.modules[name], nnx.clone(whole.views.modules[name])
        small_state, big_state = (
            nnx.to_pure_dict(nnx.state(small, nnx.Param)),
            nnx.to_pure_dict(nnx.state(big, nnx.Param)),
        )
        for part, value in small_state.items():
            if part not in parts:
                big_state[part] = value
                continue
            of = program.spec.encoder_groups if part == "blocks" else program.spec.decoder_groups
            big_state[part] = {i: value[group] for i, group in enumerate(of)}
        modules[f"{name}$params"] = big_state
    assert program.spec.decoder_groups == (0, 1, 2, 2)
    loss = quick(lambda key: (fused_elbo(program, {}, key, x)[0], fused_elbo(whole, modules, key, x)[0]))(KEY)
    np.testing.assert_allclose(*loss, rtol=1e-6)


def test_dropout_acts_in_training_only():
    spec = dataclasses.replace(PRESETS["tiny"], dropout=0.5)
    program, plain = spec.build(KEY), PRESETS["tiny"].build(KEY)
    x = (jax.random.uniform(jax.random.key(1), (4, 8, 8)) < 0.4).astype("float32")

    @quick
    def losses(key):
        off, on = (fused_elbo(program, {}, key, x, weights=w)[0] for w in (None, {"dropout": 0.5}))
        return off, on, fused_elbo(plain, {}, key, x)[0]

    off, on, reference = losses(KEY)
    assert off == reference and on != off
    assert program.training.knobs == {"dropout": 0.0} and program.training.weights["dropout"](7) == 0.5


def test_overflowing_spreads_leave_the_objective_finite():
    """The original's log standard deviations are unbounded, and its KL overflows."""
    program = PRESETS["tiny"].build(KEY)
    x = jnp.zeros((2, 8, 8))
    params = quick(lambda: init_params(program, KEY, x)[0])()
    bias = params["encoder$params"]["posteriors"][0]["c4"]["bias"]
    params["encoder$params"]["posteriors"][0]["c4"]["bias"] = jnp.full_like(bias, 60.0)
    value, grads = quick(jax.value_and_grad(lambda p: fused_elbo(program, p, KEY, x)[0]))(params)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_temperature_narrows_the_prior():
    program = PRESETS["tiny"].build(KEY)

    def spread(temperature):
        with knobs({"temperature": temperature}):
            return trace(seed(program.model, KEY)).get_trace(size=2)["z_00"]["fn"].variance

    found = quick(lambda: (spread(1.0), spread(0.5)))()
    np.testing.assert_allclose(found[0] * 0.25, found[1], rtol=1e-6)


@pytest.mark.parametrize("shape", [(8, 8, 3), (5,)])
def test_any_shape_and_number_of_channels(shape):
    """The original is fixed to three channels."""
    spec = dataclasses.replace(PRESETS["tiny"], shape=shape, likelihood=Normal(dequantise=True, learned=True))
    x = np.random.default_rng(0).integers(0, 17, (6, *shape)).astype("uint8")
    program = spec.build(KEY)
    draw = quick(lambda x: joint_draw(program, {}, KEY, program.observation.prepare(x, KEY, False)))(x)
    assert draw.mean["x"].shape == x.shape and np.isfinite(draw.log_weight).all()
    assert program.observation.bits_offset == np.log2(17)


@pytest.mark.parametrize(
    ("enc", "shape", "likelihood"),
    [
        ("4x1,4d4,1x1", (4, 4, 3), LogisticMixture(components=2)),
        ("1x1", (4, 4), LogisticMixture(components=2)),
        ("4x1,4d4,1x1", (4, 4, 3), Categorical()),
        ("1x1", (5,), Categorical()),
        ("1x1", (5,), Normal(learned=True, per_pixel=True)),
    ],
)
def test_likelihoods_with_other_outputs_score_and_draw_levels(enc, shape, likelihood):
    dec = "1x1" if enc == "1x1" else "1x1,4m1"
    spec = HVAE(enc=enc, dec=dec, shape=shape, levels=17, width=8, zdim=2, mid_ratio=0.5, likelihood=likelihood)
    program, x = spec.build(KEY), np.random.default_rng(0).integers(0, 17, (6, *shape)).astype("uint8")
    assert spec_from_json(spec_to_json(spec)) == spec and count(spec) == by_formula(spec)

    @quick
    def run(x):
        x = program.observation.prepare(x, KEY, False)
        return joint_draw(program, {}, KEY, x), trace(seed(program.model, KEY)).get_trace(size=3)["x"]["value"]

    draw, drawn = run(x)
    assert draw.mean["x"].shape == x.shape and np.isfinite(draw.log_weight).all() and drawn.shape == (3, *shape)
    if likelihood.bits_offset(17) == 0:
        np.testing.assert_allclose(drawn * 16, np.round(drawn * 16), atol=1e-5)


def test_the_model_without_data_or_size_says_what_it_needs():
    program = PRESETS["tiny"].build(KEY)
    with pytest.raises(ValueError, match="data x or a size"):
        program.model()
    with pytest.raises(ValueError, match="needs data x"):
        program.posterior()


@pytest.mark.slow
def test_collapsed_levels_are_named_and_a_healthy_hierarchy_passes():
    x, _ = datasets.load("digits", "train")
    test, _ = datasets.load("digits", "test")
    lines = {}
    for name, arguments in (("digits8", {"steps": 600}), ("digits", {"steps": 3000, "average": 0.995})):
        program = PRESETS[name].build(KEY)
        fitted = fit(program, x[:1350], batch_size=64, key=jax.random.key(1), progress=False, **arguments)
        tree = posterior(fitted, test[:150], draws=40, key=KEY, predictive_draws=0, progress=False)
        (lines[name],) = program.views.checks(tree)
        if name == "digits":
            table = evidence(fitted, test, particles=64, key=KEY, progress=False)
            assert table["log_px"].mean() > -18
    assert lines["digits8"].verdict == "warn" and lines["digits8"].value >= 1
    assert "z_00 (1x1)" in lines["digits8"].meaning and "z_06 (8x8)" in lines["digits8"].meaning
    assert "z_03" not in lines["digits8"].meaning
    assert lines["digits"].verdict == "ok" and lines["digits"].remedy == ""
