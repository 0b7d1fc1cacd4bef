"""The family: counts, the law at the start in closed form, the operator of its own, prediction and roll-outs."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpyro.handlers import seed, substitute, trace
from scipy.stats import bernoulli, norm

from ppl_models.networks.fno import FNO as FNOModule, SpectralConv
from ppl_models.networks.separable import lax_convolution, separable_convolution
from ppl_models.program import spec_from_json, spec_to_json
from ppl_models.surrogate import FNO, PRESETS, Bernoulli, Normal, Surrogate, UNet, predict, rollout
from ppl_models.surrogate.own import flow, heat

KEY = jax.random.key(0)
SMALL = FNO(width=4, modes=2, layers=1)
SHAPE = {"x": (8, 8, 2), "y": (8, 8, 1)}
COUNTS = {
    "navier_stokes": (34_531_971, 15_719_811, 34_537_731),
    "shallow_water": (34_528_515, 15_716_355, 34_534_275),
    "wmh": (2_161_633, 983_713, 2_163_073),
}


def fields(n=40, key=KEY, spec=None):
    data = heat(spec or Surrogate(SHAPE, SMALL), key, n)
    return jax.tree.map(np.asarray, data)


def started(spec, data):
    """A program and its parameters after the first event of a fit."""
    program = spec.build(KEY)
    sites = trace(seed(program.model, KEY)).get_trace(jax.tree.map(jnp.asarray, data))
    params = {"network$params": sites["network$params"]["value"]}
    for event in program.training.events:
        params |= event.apply(params, jax.tree.map(jnp.asarray, data), KEY)
    return SimpleNamespace(program=program, params=params)


def log_px(fit, data):
    sites = trace(seed(substitute(fit.program.model, data=fit.params), KEY)).get_trace(jax.tree.map(jnp.asarray, data))
    return np.asarray(sites["y"]["fn"].log_prob(sites["y"]["value"]), float)


# -------------------------------------------------------------------------------------------------- the presets
@pytest.mark.parametrize("task", COUNTS)
def test_table_1(task):
    kinds = ("residual", "multi_resnet", "multi_resnet_saved")
    specs = [PRESETS[f"table1_{task}_{kind}"] for kind in kinds]
    found = tuple(spec.network.operator(spec.shape["x"][2], spec.outputs).parameter_count for spec in specs)
    assert found == COUNTS[task]
    assert not any(spec.standardise for spec in specs), "the program has no parameter beside the network's"
    if task == "wmh":
        assert specs[1].build(KEY).parameter_count == 983_713


# ------------------------------------------------------------------------------------------------- at the start
@pytest.mark.parametrize("scale", ["pixel", "channel", "input", "fixed"])
def test_a_new_model_is_the_law_of_its_base(scale):
    """mean, and sd per pixel (or channel), of the training data: the density in closed form."""
    data = fields()
    fit = started(Surrogate(SHAPE, SMALL, Normal(scale, sd=0.7)), data)
    y, mean = data["y"], data["y"].mean(0)
    over = 0 if scale in ("pixel", "input") else None
    sd = 0.7 if scale == "fixed" else np.sqrt(((y - mean) ** 2).mean(over))
    np.testing.assert_allclose(log_px(fit, data), norm(mean, sd).logpdf(y).sum((1, 2, 3)), rtol=1e-4)
    found = predict(fit, data["x"])
    np.testing.assert_allclose(found.mean, np.broadcast_to(mean, y.shape), atol=1e-5)
    np.testing.assert_allclose(found.sd, np.broadcast_to(sd, y.shape), rtol=1e-4)


def test_a_new_model_persists():
    data = fields()
    fit = started(Surrogate(SHAPE, UNet(width=4, levels=2, encoder="pool"), base="persistence"), data)
    np.testing.assert_allclose(predict(fit, data["x"]).mean, data["x"][..., :1], rtol=1e-6)
    sd = np.sqrt(((data["y"] - data["x"][..., :1]) ** 2).mean(0))
    exact = norm(data["x"][..., :1], sd).logpdf(data["y"]).sum((1, 2, 3))
    np.testing.assert_allclose(log_px(fit, data), exact, rtol=1e-4)


def test_a_new_mask_has_the_shares_of_its_pixels():
    spec = Surrogate(SHAPE, SMALL, Bernoulli())
    data = fields(spec=spec)
    assert data["y"].dtype == np.uint8
    p = (data["y"].sum(0) + 0.5) / 41
    exact = bernoulli(p).logpmf(data["y"]).sum((1, 2, 3))
    fit = started(spec, data)
    np.testing.assert_allclose(log_px(fit, data), exact, rtol=1e-4)
    np.testing.assert_allclose(predict(fit, data["x"]).mean, np.broadcast_to(p, data["y"].shape), rtol=1e-4)


def test_units_of_the_data_do_not_matter():
    """Inputs and outputs in other units: predictions in those units, from the same weights."""
    data = fields(12)
    spec = Surrogate(SHAPE, FNO(width=4, modes=2, layers=2), Normal("input"))
    other = {"x": data["x"] * [3.0, 50.0] + [1.0, -4.0], "y": data["y"] * 20 + 7}
    pair = []
    for stored in (data, other):
        fit = started(spec, jax.tree.map(lambda a: np.asarray(a, "f4"), stored))
        net = fit.params["network$params"]["net"]
        last = jax.random.normal(jax.random.key(1), net["last"]["kernel"].shape)
        weights = {**fit.params["network$params"], "net": {**net, "last": {**net["last"], "kernel": 0.1 * last}}}
        fit.params = {"network$params": weights}
        pair.append(predict(fit, stored["x"]))
    np.testing.assert_allclose(pair[1].mean, pair[0].mean * 20 + 7, rtol=2e-4, atol=2e-3)
    np.testing.assert_allclose(pair[1].sd, pair[0].sd * 20, rtol=2e-3)


# ------------------------------------------------------------------------------------------- the heat equation
def test_the_heat_flow_of_one_wave_and_the_moments_of_its_fields():
    at = np.arange(16) / 16
    wave = np.cos(2 * np.pi * (2 * at[:, None] + at[None, :]))[None, ..., None]
    np.testing.assert_allclose(flow(jnp.asarray(wave), 0.01), wave * np.exp(-4 * np.pi**2 * 5 * 0.01), atol=1e-6)
    x = np.asarray(heat(Surrogate({"x": (16, 12, 1), "y": (16, 12, 1)}, SMALL), KEY, 4000)["x"])
    assert x.var() == pytest.approx(1.0, abs=0.03)
    data = fields(3000)
    residual = data["y"] - np.asarray(flow(jnp.asarray(data["x"])))[..., :1]
    assert residual.std() == pytest.approx(0.1, rel=0.01)


def test_one_layer_of_an_operator_is_the_heat_flow_if_its_kernel_is():
    """R(k) = exp(-4 pi^2 |k|^2 t): the spectral layer is the solution operator, exactly, for fields of few waves."""
    layer = SpectralConv(1, 1, 4, rngs=nnx.Rngs(0))
    rows = np.r_[0:4, -4:0][:, None]
    decay = np.exp(-4 * np.pi**2 * (rows**2 + np.arange(4)[None, :] ** 2) * 0.01)
    layer.kernel[...] = jnp.asarray(np.stack([decay, 0 * decay])[..., None, None], jnp.float32)
    rng, at = np.random.default_rng(0), np.arange(16) / 16
    field = sum(
        rng.normal() * np.cos(2 * np.pi * (a * at[:, None] + b * at[None, :]) + rng.uniform(0, 6))
        for a in range(-3, 4)
        for b in range(4)
    )[None, ..., None]
    np.testing.assert_allclose(layer(jnp.asarray(field, jnp.float32)), flow(jnp.asarray(field), 0.01), atol=2e-5)


def test_a_fourier_operator_without_positions_moves_with_its_input_and_reads_any_grid():
    net = FNOModule(1, 1, width=3, modes=2, layers=2, rngs=nnx.Rngs(0))
    for part, name in ((net.last, "kernel"), (net.lift, "kernel")):
        draw = jax.random.normal(KEY, getattr(part, name)[...].shape)
        getattr(part, name)[...] = draw if part is net.last else draw.at[1:].set(0.0)  # blind to positions
    at = np.arange(16) / 16
    wave = lambda at: jnp.asarray(np.cos(2 * np.pi * at)[None, :, None, None] * np.ones((1, 1, len(at), 1)), "f4")  # noqa: E731
    moved = net(jnp.roll(wave(at), 5, 1))
    np.testing.assert_allclose(moved, jnp.roll(net(wave(at)), 5, 1), atol=1e-4)
    fine = np.arange(32) / 32
    np.testing.assert_allclose(net(wave(fine))[:, ::2, ::2], net(wave(at)), atol=0.05)


def test_a_periodic_convolution_is_the_product_of_fourier_transforms():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 6, 8, 3)), rng.normal(size=(3, 3, 3, 2))
    big = np.zeros((6, 8, 3, 2))
    for i in range(3):
        for j in range(3):
            big[1 - i, 1 - j] += kernel[i, j]  # a cross-correlation
    waves = np.einsum("bhwi,hwio->bhwo", np.fft.fft2(x, axes=(1, 2)), np.fft.fft2(big, axes=(0, 1)))
    exact = np.fft.ifft2(waves, axes=(1, 2)).real
    for convolve in (separable_convolution, lax_convolution):
        found = convolve(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), periodic=True)
        np.testing.assert_allclose(found, exact, atol=1e-5)


@pytest.mark.parametrize("encoder", ["learned", "pool"])
def test_a_periodic_u_net_moves_with_its_input_by_pixels_of_its_coarsest_grid(encoder):
    net = UNet(width=4, levels=2, encoder=encoder, boundary="periodic").build(2, 1, False, nnx.Rngs(0))
    x = jax.random.normal(KEY, (1, 8, 8, 2))
    for shift in ((2, 0), (4, 6)):
        np.testing.assert_allclose(net(jnp.roll(x, shift, (1, 2))), jnp.roll(net(x), shift, (1, 2)), atol=1e-5)
    still = UNet(width=4, levels=2, encoder=encoder).build(2, 1, False, nnx.Rngs(0))
    assert np.abs(still(jnp.roll(x, 2, 1)) - jnp.roll(still(x), 2, 1)).max() > 0.01, "zeros beyond the edge do not move"


# ----------------------------------------------------------------------------------------------------- roll-out
def test_a_roll_out_of_persistence_stays_and_its_draws_spread_as_a_random_walk():
    data = fields()
    fit = started(Surrogate(SHAPE, SMALL, base="persistence"), data)
    path = rollout(fit, data["x"][:3], 4)
    assert path.mean.shape == (3, 4, 8, 8, 1)
    np.testing.assert_allclose(path.mean, np.repeat(data["x"][:3, None, ..., :1], 4, 1), rtol=1e-6)
    sd = predict(fit, data["x"][:1]).sd[0]
    drawn = rollout(fit, data["x"][:1], 4, draws=600, key=KEY)
    ratio = drawn.sd[0] / sd
    np.testing.assert_allclose(ratio.mean((1, 2, 3)), np.sqrt([1, 2, 3, 4]), rtol=0.03)


# -------------------------------------------------------------------------------------------------- bad requests
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Surrogate({"x": (8, 8), "y": (8, 8)}, SMALL), "stored with one channel"),
        (lambda: Surrogate({"x": (8, 8, 1)}, SMALL), "shape must be"),
        (lambda: Surrogate({"x": (8, 8, 1), "y": (4, 4, 1)}, SMALL), "x and y must lie on one grid"),
        (lambda: Surrogate({"x": (8, 8, 1), "y": (8, 8, 2)}, SMALL, base="persistence"), "choose base 'mean'"),
        (lambda: Surrogate(SHAPE, SMALL, Bernoulli(), base="persistence"), "choose base 'mean'"),
        (lambda: Surrogate(SHAPE, SMALL, standardise=False), "choose 'zero'"),
        (lambda: Surrogate(SHAPE, UNet(levels=5)), "multiples of 16"),
        (lambda: Surrogate(SHAPE, FNO(modes=5)), "5 modes need at least 10 points"),
        (lambda: Normal(sd=0.0), "sd must be positive"),
        (lambda: FNO(width=0), "must be at least 1"),
        (lambda: UNet(width=0), "width must be at least 1"),
    ],
)
def test_bad_specs(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_data_and_bad_calls():
    spec = Surrogate(SHAPE, SMALL, Bernoulli())
    program = spec.build(KEY)
    with pytest.raises(ValueError, match="masks 'y' hold 0 and 1, got 2.0"):
        program.observation.check({"x": np.zeros((2, 8, 8, 2)), "y": np.full((2, 8, 8, 1), 2.0)})
    with pytest.raises(ValueError, match="draws y for given inputs"):
        program.model(size=3)
    fit = SimpleNamespace(program=program, params={})
    with pytest.raises(ValueError, match="feeds y back"):
        rollout(fit, np.zeros((1, 8, 8, 2)), 2)
    with pytest.raises(ValueError, match=r"x must be inputs \(n, 8, 8, 2\)"):
        predict(fit, np.zeros((1, 8, 8, 1)))
    with pytest.raises(ValueError, match="did you mean 'network'"):
        spec_from_json(spec_to_json(spec).replace('"network"', '"netwrk"'))
    assert dataclasses.replace(spec, network=UNet(levels=2)).outputs == 1
