"""The sleep phase moves the guide alone, and its optimum is the exact posterior of the program."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pandas as pd
import pytest

from inference.fitting import checkpoint, fit, load, resume
from inference.fitting.loss import make_loss
from inference.fitting.sleep import guide_only, sleep_loss
from ppl_models.program import Observation, Posterior, Program, register
from tests.closed_forms import random_coefficients
from tests.toy import PPCA, toy_data

KEY = jax.random.key(11)


@dataclasses.dataclass(frozen=True)
class Linear:
    """z ~ N(0, 1), x | z ~ N(w z + u, s^2 I_2); q = N(a x + c, e^(2 t)), u shared by model and posterior."""

    shape: tuple[int, ...] = (2,)
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def build(self, key: jax.Array) -> Program:
        def model(x: jax.Array | None = None, *, size: int | None = None) -> None:
            w, u = numpyro.param("w", jnp.asarray([1.0, -0.5])), numpyro.param("u", jnp.asarray([0.3, 0.0]))
            with numpyro.plate("data", size if x is None else len(x)):
                z = numpyro.sample("z", dist.Normal(0, 1), infer={"ctx": None})
                numpyro.sample("x", dist.Normal(z[:, None] * w + u, 0.6).to_event(1), obs=x)

        def posterior(x: jax.Array) -> Posterior:
            u, a = numpyro.param("u", jnp.asarray([0.3, 0.0])), numpyro.param("a", jnp.zeros(2))
            c, t = numpyro.param("c", jnp.zeros(())), numpyro.param("t", jnp.zeros(()))
            return lambda site, ctx: dist.Normal((x - u) @ a + c, jnp.exp(t))

        return Program(self, model, posterior, ("z",), (2,), observation=Observation("x in R^2"))


def exact_posterior(w: np.ndarray, noise: float = 0.6) -> dict[str, Any]:
    """a, c, t of p(z | x) = N(w (x - u) / (noise^2 + |w|^2), 1 / (1 + |w|^2 / noise^2))."""
    precision = 1 + w @ w / noise**2
    return {"a": w / noise**2 / precision, "c": 0.0, "t": -0.5 * np.log(precision)}


def leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_only_parameters_of_the_posterior_alone_are_moved() -> None:
    program = Linear().build(KEY)
    assert guide_only(program) == ("a", "c", "t")
    params = {"w": jnp.asarray([1.0, -0.5]), "u": jnp.asarray([0.3, 0.0]), "a": jnp.ones(2), "c": 0.2, "t": -0.3}
    params = {name: jnp.asarray(value) for name, value in params.items()}
    x = jnp.zeros((32, 2))
    both, elbo = make_loss(program, "elbo", None, 1.0), make_loss(program, "elbo", None, 0.0)
    with_sleep, without = (jax.grad(lambda p, f=f: f(program, p, KEY, x)[0])(params) for f in (both, elbo))
    for name in ("w", "u"):
        np.testing.assert_array_equal(with_sleep[name], without[name])
    for name in ("a", "c", "t"):
        assert (np.asarray(with_sleep[name]) != np.asarray(without[name])).all()
    with pytest.raises(ValueError, match="the model has every parameter of the posterior, W, b, s"):
        make_loss(PPCA().build(KEY), "elbo", None, 1.0)


def test_its_value_at_the_exact_posterior_is_the_conditional_entropy() -> None:
    program, params = Linear().build(KEY), {"w": jnp.asarray([1.0, -0.5]), "u": jnp.asarray([0.3, 0.0])}
    exact = {name: jnp.asarray(value, "float32") for name, value in exact_posterior(np.asarray(params["w"])).items()}
    value = jax.jit(lambda p, k: sleep_loss(program, p, k, jnp.zeros((20_000, 2))))({**params, **exact}, KEY)
    entropy = 0.5 * np.log(2 * np.pi * np.e) + float(exact["t"])  # H(z | x) of the joint
    assert float(value) == pytest.approx(entropy, abs=4 * np.sqrt(0.5 / 20_000))


def test_its_optimum_is_the_exact_posterior_whatever_the_data() -> None:
    """A heavy sleep phase on data of another law: the guide inverts the program."""
    x, program = 3.0 + np.zeros((64, 2), "float32"), Linear().build(KEY)
    held = {"w": optax.set_to_zero(), "u": optax.set_to_zero()}
    rate = optax.exponential_decay(0.05, 100, 0.6)
    names = {name: name if name in held else "guide" for name in ("w", "u", "a", "c", "t")}
    chosen = optax.partition({**held, "guide": optax.adam(rate)}, names)
    fitted = fit(
        program, x, steps=1000, batch_size=64, optimizer=chosen, sleep=1e4, key=KEY, progress=False,
        steps_per_dispatch=10,
    )  # fmt: skip
    for name, value in exact_posterior(np.asarray([1.0, -0.5])).items():
        np.testing.assert_allclose(fitted.params[name], value, atol=0.02, err_msg=name)
    assert np.isfinite(fitted.history["sleep"]).all()


def test_a_conditional_program_draws_given_the_inputs_of_the_batch() -> None:
    form = random_coefficients()
    x = jax.tree.map(jnp.asarray, form.sample(KEY, 2000))
    held = dataclasses.replace(form.program, posterior=_own(form.program, x))
    value = sleep_loss(held, form.params, KEY, x)
    # H(w | t, y) of the exact posterior, spoilt by nothing here: the mean of the Gaussian entropies at these inputs.
    covariance = np.linalg.inv(np.eye(2) + np.swapaxes(x["t"], 1, 2) @ np.asarray(x["t"]) / 0.7**2)
    entropy = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1].mean()
    assert float(value) == pytest.approx(entropy, abs=4 * np.sqrt(1 / 2000))


def _own(program: Program, x: Any) -> Any:
    """The exact posterior of ``random_coefficients``; checks that the inputs are those of the batch."""

    def posterior(data: dict[str, jax.Array]) -> Posterior:
        np.testing.assert_array_equal(data["t"], x["t"])
        assert (np.asarray(data["y"]) != np.asarray(x["y"])).all()
        return random_coefficients(spoil=0.0).program.posterior(data)

    return posterior


def test_zero_is_the_same_update_and_a_schedule_ends_it(tmp_path: Path) -> None:
    program, x = Linear().build(KEY), toy_data()[:, :2]
    arguments = {"steps": 6, "batch_size": 16, "key": KEY, "progress": False}
    plain = fit(program, x, **arguments)
    never = fit(program, x, sleep=lambda step: 0.0 * step, **arguments)
    for a, b in zip(leaves(plain.params), leaves(never.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert "sleep" not in plain.history and "bound" not in plain.history and np.isfinite(never.history["sleep"]).all()


@pytest.mark.parametrize("objective", ["elbo", "dreg"])
def test_a_run_resumes_to_the_same_bits_and_keeps_the_best_by_its_own_bound(tmp_path: Path, objective: str) -> None:
    register("test_linear", Linear, presets={"tiny": Linear()}, paper="none")
    x = toy_data()[:, :2]
    particles = 3 if objective == "dreg" else None
    arguments = {"batch_size": 16, "key": KEY, "progress": False, "objective": objective, "particles": particles}
    arguments |= {"sleep": 0.5, "validation": x[:40], "validate_every": 5, "checkpoint_every": 10, "steps": 30}
    whole = fit(Linear().build(KEY), x, out=tmp_path / "whole", **arguments)
    fit(Linear().build(KEY), x, out=tmp_path / "cut", **arguments)
    checkpoint.checkpoints(tmp_path / "cut" / "checkpoint")[-1].unlink()
    again = resume(tmp_path / "cut", x, validation=x[:40], progress=False)
    for a, b, c in zip(*(leaves(f.params) for f in (whole, again, load(tmp_path / "cut"))), strict=True):
        assert (a == b).all() and (a == c).all()
    histories = [pd.read_csv(tmp_path / name / "history.csv").drop(columns="seconds") for name in ("whole", "cut")]
    pd.testing.assert_frame_equal(*histories)
    column = "validation_elbo" if objective == "elbo" else "validation_bound"
    chosen = whole.history.set_index("step")[column].dropna()
    assert (chosen.idxmax(), chosen.max()) == (whole.info["best_step"], whole.info["best_validation"])
    if objective == "dreg":
        assert (chosen >= whole.history.set_index("step")["validation_elbo"].dropna()).all()
        np.testing.assert_allclose(
            whole.history["loss"], 0.5 * whole.history["sleep"] - whole.history["bound"], rtol=1e-5
        )
        assert (whole.history["bound"] > whole.history["elbo"]).all()
    record = json.loads((tmp_path / "cut" / "run.json").read_text())["arguments"]
    assert (record["objective"], record["particles"], record["sleep"]) == (objective, particles, 0.5)
    with pytest.raises(ValueError, match="sleep was 0.5, now 0.1"):
        resume(tmp_path / "cut", x, validation=x[:40], sleep=0.1, progress=False)


def test_a_folder_from_before_these_options_goes_on(tmp_path: Path) -> None:
    register("test_linear", Linear, presets={"tiny": Linear()}, paper="none")
    x = toy_data()[:, :2]
    fit(Linear().build(KEY), x, steps=4, batch_size=16, key=KEY, progress=False, out=tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    record = json.loads(file.read_text())
    for name in ("objective", "particles", "sleep"):
        del record["arguments"][name]
    file.write_text(json.dumps(record))
    assert resume(tmp_path / "run", x, steps=8, progress=False).info["steps"] == 8
    with pytest.raises(ValueError, match="objective was 'elbo', now 'iwae'"):
        resume(tmp_path / "run", x, objective="iwae", progress=False)


def test_what_makes_no_sense_is_refused_at_once() -> None:
    program, x = Linear().build(KEY), toy_data()[:, :2]
    silent = dataclasses.replace(program, model=lambda x=None, *, size=None: _undrawn(x))
    no_latents = dataclasses.replace(program, posterior=None, latents=())
    for wrong in (-1.0, float("nan"), "much", True):
        with pytest.raises(ValueError, match="sleep is a weight"):
            fit(program, x, steps=1, batch_size=4, key=KEY, sleep=wrong, progress=False)
    with pytest.raises(ValueError, match="this one has no latents; use sleep=0"):
        make_loss(no_latents, "elbo", None, 1.0)
    with pytest.raises(ValueError, match="this one cannot .*; use sleep=0"):
        make_loss(silent, "elbo", None, 1.0)


def _undrawn(x: Any) -> None:
    class Silent(dist.Normal):
        def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
            raise NotImplementedError("a density without draws")

    with numpyro.plate("data", 1 if x is None else len(x)):
        z = numpyro.sample("z", dist.Normal(0, 1), infer={"ctx": None})
        numpyro.sample("x", Silent(z[:, None] * jnp.ones(2), 1.0).to_event(1), obs=x)
