"""The diffusion family on every schedule, and the standard error of its density."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import nnx
from numpyro import handlers

from inference import evidence, posterior, read_evidence, save_evidence
from inference.checking.criticism import predictive_by_site
from inference.fitting import Fit
from ppl_models.diffusion import MLP, RK4, Diffusion
from ppl_models.diffusion.networks import RealDenoiser, level_of
from ppl_models.distributions import Cosine, FlowMatching, Trigonometric, VarianceExploding
from ppl_models.program import resolve, spec_from_json, spec_to_json

KEY = jax.random.key(0)
SMALL = MLP(width=8, depth=1, embedding=4)
REAL = Diffusion((2,), network=SMALL, centre=1.0, scale=2.0, solver=RK4(12, 1.75))


def start(spec):
    program = spec.build(KEY)
    sites = handlers.trace(handlers.seed(program.model, KEY)).get_trace(jnp.zeros((1, *spec.shape)))
    return program, {"denoiser$params": sites["denoiser$params"]["value"]}


@pytest.mark.parametrize("schedule", ["flow"])
def test_a_silent_network_is_a_normal_on_every_schedule(schedule):
    program, params = start(dataclasses.replace(REAL, schedule=schedule, solver=RK4(40, 1.75)))
    x = 1 + 2 * jax.random.normal(KEY, (16, 2))
    exact = dist.Normal(1.0, 2.0).log_prob(x).sum(1)
    np.testing.assert_allclose(jax.jit(program.exact.log_prob)(params, KEY, x), exact, rtol=2e-3)
    drawn = jax.jit(lambda: handlers.seed(handlers.substitute(program.model, data=params), KEY)(size=2000))()
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [1.0, 2.0], atol=0.1)


class Half:
    """A layout whose network answers half of what it reads."""

    def build(self, shape, outputs, rngs):
        return lambda x, level: 0.5 * x[..., None]


def test_a_network_of_the_velocity_of_the_noise_and_of_the_datum():
    x, phi = jax.random.normal(KEY, (3, 2)), jnp.asarray([0.3, 0.7, 1.2])
    cos, sin = jnp.cos(phi)[:, None], jnp.sin(phi)[:, None]
    expected = {"v": (cos - 0.5 * sin) * x, "x": 0.5 * x, "eps": (1 - 0.5 * sin) / cos * x}
    for prediction, D in expected.items():
        network = RealDenoiser(Half(), (2,), prediction=prediction, rngs=nnx.Rngs(0))
        np.testing.assert_allclose(network(x, phi), D, rtol=1e-5)


def test_the_level_is_finite_at_the_very_end():
    # float32(pi/2) lies above pi/2: its tangent is negative, and grids of some warps end exactly there.
    np.testing.assert_allclose(level_of(jnp.asarray([math.pi / 2, math.pi / 4])), [16.4, 0.0], atol=0.1)


def test_specs_name_their_schedule_and_prediction():
    spec = Diffusion((2,), network=SMALL, schedule="cosine", prediction="x")
    assert spec.schedule == Cosine() and spec_from_json(spec_to_json(spec)) == spec
    by_name = spec_from_json({"family": "diffusion", "preset": "plane", "spec": {"schedule": "flow"}})
    assert by_name.schedule == FlowMatching()
    whole = {"kind": "ve", "low": 0.02, "high": 30.0}
    by_object = spec_from_json({"family": "diffusion", "preset": "plane", "spec": {"schedule": whole}})
    assert by_object.schedule == VarianceExploding(0.02, 30.0)
    assert resolve("diffusion:plane").schedule == Trigonometric() and resolve("diffusion:digits").prediction == "v"


@pytest.mark.slow
def test_within_states_an_error_and_what_it_took_and_few_data_are_drawn():
    spec = Diffusion((4, 4), levels=5, network=SMALL, centre=0.5, scale=0.3, solver=RK4(4, 1.75), within=0.5)
    program, params = start(spec)
    params["denoiser$params"]["net"]["head"]["kernel"] = 0.3 * jax.random.normal(KEY, (8, 80))
    fitted = Fit(program, params, {}, None, {})
    data = np.random.default_rng(0).integers(0, 5, (6, 4, 4)).astype("uint8")
    table = evidence(fitted, data, key=jax.random.key(1), progress=False)
    assert "as many as state 0.5 nats" in table.attrs["solver"] and "28 steps a datum" in table.attrs["solver"]
    assert (table["se"] > 0).all() and (table["se"] <= 0.5).all()
    few = dataclasses.replace(program, views=dataclasses.replace(program.views, replicates=9))
    tree = posterior(dataclasses.replace(fitted, program=few), data, draws=3, key=KEY, progress=False)
    assert tree["posterior_predictive"].sizes == {"chain": 1, "draw": 3, "datum": 3, "x_dim_0": 4, "x_dim_1": 4}
    assert tree["observed_data"].sizes["datum"] == 6
    (checks,) = predictive_by_site(tree).values()
    assert checks[0].observed == pytest.approx(float(np.asarray(tree["observed_data"]["x"])[:3].mean()), rel=1e-5)


def test_a_schedule_that_keeps_data_at_its_end_is_warned_of():
    with pytest.warns(UserWarning, match="leaves a share alpha/sigma = 0.0066"):
        dataclasses.replace(REAL, schedule="vp").build(KEY)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Diffusion((2,), network=SMALL, schedule="cosin"), "did you mean 'cosine'"),
        (lambda: Diffusion((2,), network=SMALL, within=-1.0), "error in nats"),
        (lambda: Diffusion((2,), network=SMALL, within=1.0, schedule="flow"), "along the trigonometric"),
        (lambda: Diffusion((2,), network=SMALL, prediction="esp"), "did you mean 'eps'"),
        (lambda: Diffusion((2,), network=SMALL, prediction="eps"), "does not determine the datum"),
        (lambda: Diffusion((2,), levels=5, network=SMALL, prediction="x"), "denoiser of their own"),
        (
            lambda: spec_from_json({"family": "diffusion", "preset": "plane", "spec": {"schedule": "flwo"}}),
            "did you mean 'flow'",
        ),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_evidence_states_the_error_of_random_probes_and_the_solver(tmp_path):
    spec = Diffusion((12,), levels=5, network=SMALL, centre=0.5, scale=0.3, solver=RK4(10, 1.75), probes=1)
    program, params = start(spec)
    params["denoiser$params"]["net"]["head"]["kernel"] = 0.3 * jax.random.normal(KEY, (8, 60))
    fitted = Fit(program, params, {}, None, {})
    data = np.random.default_rng(0).integers(0, 5, (16, 12)).astype("uint8")
    table = evidence(fitted, data, key=jax.random.key(1), progress=False)
    assert table.attrs["solver"] == "ODE by RK4 with 10 steps, 2 random probes a datum"
    assert (table["se"] > 0).all() and table.attrs["estimator"] == "exact"
    save_evidence(table, tmp_path)
    again = read_evidence(tmp_path)
    assert again.attrs["solver"] == table.attrs["solver"] and (again["se"] == table["se"]).all()
    assert dataclasses.replace(spec, probes=None).build(KEY).exact.solver.endswith("exact trace")
    few = dataclasses.replace(spec, shape=(3,)).build(KEY)
    assert few.exact.solver.endswith("exact trace")
