"""What every user relies on, over every registered family and preset, a family of one's own among them; no skip."""

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
import xarray as xr
from numpyro.handlers import condition, seed, substitute, trace
from numpyro.infer import SVI, Predictive, TraceMeanField_ELBO
from numpyro.optim import Adam

from inference import Fit, evidence, fit, inference_gaps, load, posterior, refine
from inference.cli.common import load_plugins
from inference.fitting.objectives import fused_elbo, init_params, joint_draw, trace_posterior
from ppl_models.program import Program, families, rows, spec_from_json, spec_to_json, take

KEY = jax.random.key(0)
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
load_plugins([EXAMPLES / "poisson_factor.py", EXAMPLES / "noisy_regression.py"])
FAMILIES = list(families())
PRESETS = [f"{family}:{preset}" for family, entry in families().items() for preset in entry.presets]


def stored_data(program: Program, n: int = 12) -> Any:
    """Data that a program can have drawn: its own prior's, on the scale in which the data are stored."""
    levels = getattr(program.spec, "levels", None)
    if levels is not None and isinstance(program.shape, tuple):
        return np.random.default_rng(0).integers(0, levels, (n, *program.shape)).astype("uint8")
    sites = trace(seed(program.model, KEY)).get_trace(**call(program, n))
    given = call(program, n).get("data", {})
    return jax.tree.map(np.asarray, program.from_draw({**given, **{k: sites[k]["value"] for k in program.observed}}))


def call(program: Program, n: int) -> dict[str, Any]:
    """How a model is called to draw n data: with their number, a conditional one with their inputs."""
    if not program.observation.given:
        return {"size": n}
    inputs = program.observation.sampler(KEY, n)
    return {"data": {name: inputs[name] for name in program.observation.given}}


def batch(program: Program, data: Any) -> Any:
    return program.observation.prepare(jax.tree.map(jnp.asarray, data), KEY, False)


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request: pytest.FixtureRequest) -> Program:
    return families()[request.param].presets["tiny"].build(KEY)


LARGE = ("hvae:cifar10",)
"""Presets whose 43 levels take a while to trace."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LARGE else ()) for n in PRESETS])
def test_every_preset_builds_and_round_trips_through_json(name: str) -> None:
    family, preset = name.split(":")
    spec = families()[family].presets[preset]
    assert spec_from_json(spec_to_json(spec)) == spec
    program = spec.build(KEY)
    assert program.spec == spec and program.shape is not None and program.parameter_count > 0
    assert program.views.density and program.observation.line and set(program.views.modules)


def test_model_draws_and_scores_and_the_posterior_covers_the_latents(tiny: Program) -> None:
    sites = trace(seed(tiny.model, KEY)).get_trace(**call(tiny, 3))
    latents = [n for n, s in sites.items() if s["type"] == "sample" and n not in tiny.observed]
    assert latents == list(tiny.latents)
    assert sites[tiny.observed[0]]["value"].shape == (3, *tiny.scored_shape)
    x = batch(tiny, stored_data(tiny))
    reached = [n for n, s in trace_posterior(tiny, {}, KEY, x).items() if "prior" in s.get("infer", {})]
    assert reached == list(tiny.latents)
    draw = joint_draw(tiny, {}, KEY, x)
    assert all(np.isfinite(v).all() for v in jax.tree.leaves(draw))


def test_fused_objective_is_trace_mean_field_elbo_of_the_derived_guide(tiny: Program) -> None:
    x = batch(tiny, stored_data(tiny))
    params, transforms, _ = init_params(tiny, KEY, x)
    params = jax.tree.map(lambda leaf: leaf + 0.05, params)
    params = {name: value if isinstance(value, dict) else transforms[name](value) for name, value in params.items()}
    for key in jax.random.split(jax.random.key(7), 3):
        z = {n: s["value"] for n, s in trace_posterior(tiny, params, key, x).items() if "prior" in s.get("infer", {})}
        ours, _ = fused_elbo(tiny, params, key, x)
        # Seeded within: a likelihood with noise of its own sees the noise that the fused objective gave it.
        model, guide = seed(substitute(tiny.model, data=z), key), substitute(tiny.guide, data=z)
        stock = TraceMeanField_ELBO().loss(key, params, model, guide, x) / rows(x)
        np.testing.assert_allclose(ours, stock, rtol=1e-5)


def test_stock_svi_and_predictive_run(tiny: Program, request: pytest.FixtureRequest) -> None:
    x = batch(tiny, stored_data(tiny))
    svi = SVI(tiny.model, tiny.guide, Adam(1e-3), TraceMeanField_ELBO())
    state = jax.jit(svi.init)(KEY, x)
    state, loss = jax.jit(svi.update)(state, x)
    assert np.isfinite(loss)
    params = svi.get_params(state)
    drawn = Predictive(tiny.model, params=params, num_samples=2)(KEY, **call(tiny, 3))
    assert drawn[tiny.observed[0]].shape == (2, 3, *tiny.scored_shape)
    latent = Predictive(tiny.guide, params=params, num_samples=2)(KEY, x)
    assert set(tiny.latents) <= set(latent)
    held = {name: latent[name][0] for name in tiny.latents}
    sites = trace(seed(condition(substitute(tiny.model, data=params), held), KEY)).get_trace(**call(tiny, rows(x)))
    assert all((sites[name]["value"] == value).all() and sites[name]["is_observed"] for name, value in held.items())
    if version("numpyro").startswith("0.21."):  # see inference/model_graph.py
        jax.config.update("jax_use_simplified_jaxpr_constants", True)
        request.addfinalizer(lambda: jax.config.update("jax_use_simplified_jaxpr_constants", False))
    source = numpyro.render_model(tiny.model, model_args=(x,)).source
    assert all(name in source for name in (*tiny.latents, *tiny.observed))


def test_the_posterior_of_a_datum_can_be_refined(tiny: Program) -> None:
    data = jax.tree.map(lambda leaf: leaf[:3], stored_data(tiny))
    params, transforms, mutable = init_params(tiny, KEY, batch(tiny, data))
    params = {name: value if isinstance(value, dict) else transforms[name](value) for name, value in params.items()}
    start = Fit(tiny, params, mutable, None, {})
    if not tiny.latents:
        with pytest.raises(ValueError, match="has no latents"):
            refine(start, data, key=KEY)
        return
    refined = refine(start, data, steps=3, draws=2, particles=32, key=KEY, progress=False)
    assert refined.kept == () and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(refined.locals.q))
    table = evidence(refined, data, particles=32, key=KEY, progress=False)
    assert np.isfinite(table["log_px"]).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # few draws: some rows may be untrusted
        gaps = inference_gaps(start, data, reference=table, steps=2, particles=32, key=KEY, progress=False)
    np.testing.assert_allclose(gaps["approximation"] + gaps["amortisation"], gaps["total"], atol=1e-9)
    assert np.isfinite(gaps["amortisation"]).all() and gaps.attrs["family"] == "diag"


def test_every_objective_takes_a_step_or_says_why_not(tiny: Program) -> None:
    data, arguments = stored_data(tiny), {"steps": 1, "batch_size": 4, "key": KEY, "progress": False}
    if not tiny.latents:
        for wrong in ({"objective": "iwae"}, {"objective": "dreg"}, {"sleep": 0.5}):
            with pytest.raises(ValueError, match="has no"):
                fit(tiny, data, **arguments, **wrong)
        return
    fitted = fit(tiny, data, objective="dreg", particles=2, sleep=0.5, **arguments)
    assert np.isfinite(fitted.history[["loss", "bound", "elbo", "sleep", "grad_norm"]]).all(axis=None)


def test_three_steps_save_load_datatree_and_evidence(tiny: Program, tmp_path: Path) -> None:
    data = stored_data(tiny)
    fitted = fit(tiny, data, steps=3, batch_size=4, key=KEY, out=tmp_path / "run", progress=False)
    assert len(fitted.history) == 3 and np.isfinite(fitted.history["loss"]).all()
    again = load(tmp_path / "run")
    assert again.program.spec == tiny.spec
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), fitted.params, again.params))
    few = take(data, slice(5))
    table = evidence(again, few, particles=8, key=KEY, progress=False)
    assert len(table) == 5 and np.isfinite(table["log_px"]).all()
    tree = posterior(again, few, draws=4, key=KEY)
    tree.to_netcdf(tmp_path / "posterior.nc", engine="h5netcdf")
    read = xr.open_datatree(tmp_path / "posterior.nc", engine="h5netcdf")
    assert read["observed_data"].sizes["datum"] == 5
    if tiny.latents:
        assert len(az.summary(read, var_names=[tiny.latents[0]], kind="stats"))
