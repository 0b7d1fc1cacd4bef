import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import nnx
from numpyro import handlers

from inference import fit
from ppl_models.diffusion import MLP, RK4, Diffusion, UNet, bound, prior, standard_prior
from ppl_models.diffusion.networks import NARROW, TABLE_RATE, box_mean, boxes, gaussians, truncated
from ppl_models.distributions import Exact, Normal
from ppl_models.program import knobs, resolve, spec_from_json, spec_to_json

KEY = jax.random.key(0)
SMALL = MLP(width=8, depth=1, embedding=4)
GREY = Diffusion((3,), levels=5, network=SMALL, centre=0.5, scale=0.3, solver=RK4(120, 1.75))
REAL = Diffusion((2,), network=SMALL, centre=1.0, scale=2.0, solver=RK4(20, 1.75))


def start(spec):
    program = spec.build(KEY)
    x = jnp.zeros((1, *spec.shape))
    sites = handlers.trace(handlers.seed(program.model, KEY)).get_trace(x)
    return program, {"denoiser$params": sites["denoiser$params"]["value"]}


@pytest.fixture(scope="module")
def table():
    """A silent network over three pixels of known grey level frequencies."""
    program, params = start(GREY)
    logits = 1.5 * np.random.default_rng(0).normal(size=(3, 5)).astype("f4")
    params = jax.tree.map(lambda leaf: leaf, params)
    params["denoiser$params"]["table"] = jnp.asarray(logits / TABLE_RATE)
    k = jnp.asarray(np.random.default_rng(1).integers(0, 5, (32, 3)))
    x = program.observation.prepare(k.astype("uint8"), jax.random.key(2), False)
    log_p = jax.nn.log_softmax(logits)[np.arange(3), k] + math.log(5)
    return program, params, x, log_p.sum(1)


def test_with_a_silent_network_the_density_is_the_table_of_frequencies(table):
    program, params, x, exact = table
    errors = jax.jit(program.exact.log_prob)(params, KEY, x) - exact
    assert float(jnp.sqrt((errors**2).mean())) < 0.05 and abs(float(errors.mean())) < 0.02


def test_the_bound_is_tight_for_an_exact_denoiser(table):
    program, params, x, exact = table
    errors = jax.jit(lambda key: bound(program, params, key, x, draws=2000))(KEY) - exact
    assert abs(float(errors.mean())) < 4 * float(errors.std()) / math.sqrt(len(x)) < 0.2


def test_one_level_a_datum_estimates_the_bound_without_bias_and_without_nan(table):
    program, params, x, exact = table

    @jax.jit
    def estimate(key):
        sites = handlers.trace(handlers.seed(handlers.substitute(program.model, data=params), key)).get_trace(x)
        return sites["x"]["fn"].log_prob(x)

    draws = jax.vmap(estimate)(jax.random.split(KEY, 400))
    assert draws.shape == (400, 32)
    means = draws.mean(1)
    assert abs(float(means.mean() - exact.mean())) < 4 * float(means.std()) / 20


def test_a_silent_network_over_real_data_is_a_normal_exactly():
    program, params = start(REAL)
    x = 3 * jax.random.normal(KEY, (16, 2))
    exact = dist.Normal(1.0, 2.0).log_prob(x).sum(1)
    np.testing.assert_allclose(jax.jit(program.exact.log_prob)(params, KEY, x), exact, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda key: bound(program, params, key, x))(KEY), exact, rtol=1e-5)
    drawn = handlers.seed(handlers.substitute(program.model, data=params), KEY)(size=2000)
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [1.0, 2.0], atol=0.1)


def test_box_mean_against_quadrature():
    logits, lower, width = np.random.default_rng(0).normal(size=5), np.arange(5) * 0.2 - 0.5, 0.2
    angles = np.array([1.5, 1.2, 0.9, 0.5, 0.2, 0.1])
    points = np.array([-0.55, -0.2, 0.13, 0.45])

    def brute(x, phi):
        grid = lower[:, None] + np.linspace(0, width, 2001)
        log = logits[:, None] - 0.5 * ((x - np.cos(phi) * grid) / np.sin(phi)) ** 2
        weight = np.exp(log - log.max())
        return np.trapezoid(weight * grid).sum() / np.trapezoid(weight).sum()

    expected = [[brute(x, phi) for x in points] for phi in angles]
    wide = jnp.asarray(angles)[:, None]
    mean = jax.jit(lambda x: box_mean(x, jnp.asarray(logits), jnp.asarray(lower), width, jnp.cos(wide), jnp.sin(wide)))
    x = jnp.broadcast_to(points, (6, 4))
    np.testing.assert_allclose(mean(x), expected, atol=1e-3)
    # Far outside every box, and at the ends of time: finite values and gradients.
    for phi in (1e-3, math.pi / 2):
        far = lambda x, phi=phi: box_mean(  # noqa: E731
            x, jnp.asarray(logits), jnp.asarray(lower), width, jnp.cos(phi) * jnp.ones(()), jnp.sin(phi) * jnp.ones(())
        )
        value, slope = jax.vmap(jax.value_and_grad(far))(jnp.asarray([-5.0, -0.5, 0.01, 9.0]))
        assert np.isfinite(value).all() and np.isfinite(slope).all()
        assert (value >= -0.5 - 1e-5).all() and (value <= 0.5 + 1e-5).all()


def test_box_mean_and_its_slopes_are_finite_where_the_noise_is_next_to_nothing():
    levels, scale = 17, 0.36
    lower = (jnp.arange(levels) / levels - 0.32) / scale
    x = lower[:, None] + jnp.asarray([0.0, 0.3, 0.5, 1.0]) / (levels * scale)

    def mean(x, phi):
        return box_mean(x, jnp.zeros((*x.shape, levels)), lower, 1 / (levels * scale), jnp.cos(phi), jnp.sin(phi))

    for phi in (1e-4, 3e-5):
        value, slope = jax.jvp(lambda x, phi=phi: mean(x, phi), (x,), (jnp.ones_like(x),))
        np.testing.assert_allclose(value, x, atol=3 * phi)
        assert np.isfinite(slope).all()
        np.testing.assert_allclose(slope[:, 1:3], 1.0, atol=1e-2)  # inside a box the datum is known


@pytest.mark.parametrize("phi", [3e-4, 0.004, 0.02, 0.03, 1.0])
def test_of_many_boxes_those_far_from_x_are_taken_as_points_at_no_loss(phi):
    levels, scale = 64, 0.35
    lower, width = (jnp.arange(levels) / levels - 0.3) / scale, 1 / (levels * scale)
    phi = min(phi * 256 / levels, 1.2)  # as many boxes a deviation as with 256 levels
    logits = 3 * jax.random.normal(KEY, (200, levels))
    x_0 = jax.random.uniform(jax.random.key(1), (200,), minval=float(lower[0]) - 0.3, maxval=float(lower[-1]) + 0.3)
    x = jnp.cos(phi) * x_0 + jnp.sin(phi) * jax.random.normal(jax.random.key(2), (200,))
    cos, sin = jnp.full(200, jnp.cos(phi)), jnp.full(200, jnp.sin(phi))

    def both(x):
        near = box_mean(x, logits, lower, width, cos, sin)
        # In two halves of 32 boxes each, which are few enough to be taken exactly, joined by their masses.
        narrow = cos / sin * width / 2 < NARROW
        parts = []
        for part in (slice(0, 32), slice(32, None)):
            middle = lower[part][None] + width / 2
            rough = gaussians(x, middle, width, width**2 / 12, cos, sin)
            exact = truncated(x, lower[part][None], width, narrow, cos, sin)
            parts.append([jnp.where(narrow[:, None], a, b) for a, b in zip(rough, exact, strict=True)])
        log_mass, mean = (jnp.concatenate(part, -1) for part in zip(*parts, strict=True))
        return near, (jax.nn.softmax(logits + log_mass, -1) * mean).sum(-1)

    (near, exact), (near_slope, slope) = jax.jit(lambda x: jax.jvp(both, (x,), (jnp.ones_like(x),)))(x)
    np.testing.assert_allclose(near, exact, atol=2e-3 * float(sin[0]) + 1e-6)
    np.testing.assert_allclose(near_slope, slope, rtol=2e-3, atol=2e-2)


def test_the_slopes_of_a_pixel_head_are_those_of_the_whole_network():
    spec = Diffusion((4, 4), levels=5, network=UNet(widths=(4, 6), embedding=8), centre=0.3, scale=0.4)
    module = warmed(spec.build(KEY).views.modules["denoiser"])
    x, v = jax.random.normal(jax.random.key(1), (2, 3, 4, 4))
    phi = jnp.asarray([0.02, 0.5, 1.2])

    def plain(x):
        wide = phi[:, None, None]
        edges = boxes(spec.levels, spec.centre, spec.scale, x.dtype)
        return box_mean(x, module.logits(x, phi), *edges, jnp.cos(wide), jnp.sin(wide))

    one, other = (jax.jit(lambda x, f=f: jax.jvp(f, (x,), (v,)))(x) for f in (lambda x: module(x, phi), plain))
    np.testing.assert_allclose(one[0], other[0], atol=1e-5)
    np.testing.assert_allclose(one[1], other[1], rtol=1e-3, atol=1e-4)
    graph, params = nnx.split(module)
    loss = lambda params, x: (nnx.merge(graph, params)(x, phi) ** 2).sum()  # noqa: E731

    def by_hand(params, x):
        merged = nnx.merge(graph, params)
        wide = phi[:, None, None]
        edges = boxes(spec.levels, spec.centre, spec.scale, x.dtype)
        return (box_mean(x, merged.logits(x, phi), *edges, jnp.cos(wide), jnp.sin(wide)) ** 2).sum()

    for a, b in zip(*(jax.tree.leaves(jax.jit(jax.grad(f))(params, x)) for f in (loss, by_hand)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def warmed(module):
    """The module with weights that say something."""
    graph, params = nnx.split(module)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    moved = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return nnx.merge(graph, jax.tree.unflatten(tree, moved))


def test_box_mean_is_finite_where_an_edge_lies_at_the_bound_on_far_boxes():
    levels, scale = 17, 0.36
    lower = (jnp.arange(levels) / levels - 0.32) / scale
    phi = jnp.arctan(jnp.exp(jnp.float32(-8.58894157409668)))
    # 1,000 deviations below an edge, a thousandth of a deviation around it: every rounding of the comparison occurs.
    edge = lower[2] * jnp.cos(phi) - 1000 * jnp.sin(phi)
    x = edge + jnp.sin(phi) * jnp.linspace(-1.0, 1.0, 50_001)

    @jax.jit
    def mean(x):
        return box_mean(x, jnp.zeros((*x.shape, levels)), lower, 1 / (levels * scale), jnp.cos(phi), jnp.sin(phi))

    value, slope = jax.jvp(mean, (x,), (jnp.ones_like(x),))
    np.testing.assert_allclose(value, x / jnp.cos(phi), atol=1e-3)
    assert np.isfinite(slope).all()


def test_the_prior_is_a_distribution_for_any_program(table):
    program, params, x, _ = table
    program = dataclasses.replace(program, spec=dataclasses.replace(GREY, solver=RK4(4)))

    @jax.jit
    def densities(x):
        law = prior(program, params, trace=Exact())

        def model(y):
            z = numpyro.sample("z", law)
            numpyro.sample("y", dist.Normal(z.sum(), 0.1), obs=y)

        x_0 = (x - GREY.centre) / GREY.scale
        inner = standard_prior(program, params).log_prob(x_0) - 3 * math.log(GREY.scale)
        joint, _ = numpyro.infer.util.log_density(model, (0.7,), {}, {"z": x[0]})
        return law.log_prob(x), inner, joint - dist.Normal(x[0].sum(), 0.1).log_prob(0.7)

    whole, inner, one = densities(x[:4])
    np.testing.assert_allclose(whole, inner, rtol=1e-5)
    np.testing.assert_allclose(whole[0], one, rtol=1e-4)


def test_bits_offset_and_the_observation_line():
    spec = resolve("diffusion:digits")
    program = spec.build(KEY)
    # Uniform pixels have density 1 on [0, 1]: log2(17) bits each.
    assert (
        program.observation.bits_offset == pytest.approx(math.log2(17))
        and REAL.build(KEY).observation.bits_offset is None
    )
    assert program.observation.line == Normal(dequantise=True).observation((8, 8), 17)


def test_learning_reaches_the_frequencies_and_their_dependence():
    rng = np.random.default_rng(0)
    k = rng.integers(0, 5, (512, 1))
    data = np.concatenate([k, k, np.full_like(k, 3)], 1).astype("uint8")  # the third pixel is constant
    spec = dataclasses.replace(GREY, network=MLP(width=32, depth=1, embedding=16))
    program = spec.build(KEY)
    fitted = fit(program, data, steps=400, batch_size=128, learning_rate=1e-2, key=KEY, average=0.98, progress=False)
    x = program.observation.prepare(jnp.asarray(data[:128]), jax.random.key(3), False)
    found = jax.jit(lambda key: bound(program, fitted.params, key, x, draws=64))(KEY)
    # Entropy log 5 once, not twice: independent pixels would reach 2 log 5 at best.
    ideal = 3 * math.log(5) - math.log(5)
    assert ideal - 0.5 < float(found.mean()) < ideal + 0.05


def test_dropout_acts_in_training_only():
    """The same weights with and without: equal in evaluation; in training the mask changes the bound."""
    shape, key = (4, 4), jax.random.key(1)
    specs = [Diffusion(shape, network=UNet(widths=(4, 8), embedding=4, dropout=share)) for share in (0.5, 0.0)]
    programs, x = [spec.build(KEY) for spec in specs], jax.random.normal(key, (8, *shape))
    _, params = start(specs[0])
    params = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(key, leaf.shape), params)  # blocks start as skips

    def log_p(program, share):
        with knobs({"dropout": share}), handlers.seed(rng_seed=KEY), handlers.substitute(data=params):
            return handlers.trace(program.model).get_trace(x)["x"]["fn"].log_prob(x)

    @jax.jit
    def all_four(share):
        return (
            log_p(programs[0], 0.0),
            log_p(programs[1], share),
            log_p(programs[0], 0.0 * share),
            log_p(programs[0], share),
        )

    off, plain, traced_off, on = all_four(0.5)
    np.testing.assert_array_equal(off, plain)
    np.testing.assert_allclose(traced_off, off, rtol=1e-5)
    assert np.abs(on - off).min() > 1e-3
    assert programs[0].training.weights["dropout"](7) == 0.5 and not programs[1].training.knobs


def test_panels_draw():
    spec = resolve("diffusion:tiny")
    data = np.random.default_rng(0).integers(0, 17, (12, 8, 8)).astype("uint8")
    fitted = fit(spec.build(KEY), data, steps=1, batch_size=4, key=KEY, progress=False)
    names = []
    for panel in fitted.program.views.panels(fitted, data, None, None):
        figure = panel.draw()
        names.append(panel.name)
        assert figure.axes and "Good:" in panel.caption
    assert names == ["samples", "denoising"]


def test_specs_round_trip_and_partial_files_keep_defaults():
    assert spec_from_json(spec_to_json(resolve("diffusion:digits"))) == resolve("diffusion:digits")
    changed = spec_from_json({"family": "diffusion", "preset": "plane", "spec": {"solver": {"kind": "rk4", "n": 10}}})
    assert changed.solver == RK4(10) and changed.shape == (2,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Diffusion(()), "shape must be positive"),
        (lambda: Diffusion((8, 8), levels=1), "grey levels"),
        (lambda: Diffusion((2,), scale=0.0), "scale must be positive"),
        (lambda: Diffusion((2,), probes=0), "exact trace"),
        (lambda: Diffusion((2,), network=UNet()), "takes images"),
        (lambda: Diffusion((7, 8), network=UNet()), "multiples of 2"),
        (lambda: UNet(widths=()), "must be positive"),
        (lambda: MLP(width=0), "width must be at least 1"),
        (lambda: GREY.build(KEY).observation.check(np.full((4, 3), 5)), "grey levels 0..4"),
        (lambda: GREY.build(KEY).observation.check(np.full((4, 3), 2.5)), "whole grey levels"),
        (
            lambda: REAL.build(KEY).observation.check(1000 * np.random.default_rng(0).normal(size=(9, 2))),
            "standard deviation",
        ),
        (lambda: REAL.build(KEY).model(), "needs data x or a size"),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
