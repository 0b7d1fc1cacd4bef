"""Whose loss on new data it is, where the answer is known: linear-Gaussian models with posteriors in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest

from inference.checking import diagnose, refine
from inference.checking.generalisation import generalisation, held_out_checks
from inference.checking.remedies import ENCODER, GENERATIVE, WHOLE, advice, kinds
from inference.fitting import Fit
from ppl_models.program import Program
from tests.closed_forms import mixture_program

KEY = jax.random.key(0)
D, K, LATENT, NOISE = 8, 2, 6, 0.5
TRUE = np.pad(np.random.default_rng(1).normal(size=(D, K)), ((0, 0), (0, LATENT - K))).astype("float32")
"""Loadings of two latents; the four others are not used."""


def program() -> Program:
    """x ~ N(W z, noise^2), its exact posterior moved by ``off`` of its sds for data that are not among ``known``."""

    def parameters():
        start = (jnp.asarray(TRUE), jnp.asarray(NOISE), jnp.zeros((80, D)), jnp.zeros(()))
        return [numpyro.param(n, v) for n, v in zip(("W", "noise", "known", "off"), start, strict=True)]

    def model(x=None, *, size=None):
        W, noise, *_ = parameters()
        with numpyro.plate("data", size if x is None else x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([LATENT]).to_event(1), infer={"ctx": None})
            numpyro.sample("x", dist.Normal(z @ W.T, noise).to_event(1), obs=x)

    def guide(x):
        W, noise, known, off = parameters()
        covariance = jnp.linalg.inv(jnp.eye(LATENT) + W.T @ W / noise**2)
        root = jnp.linalg.cholesky(covariance)
        new = ~(jnp.abs(x[:, None] - known).max(-1) < 1e-5).any(1)
        mean = x @ W @ covariance / noise**2 + off * new[:, None] * root.sum(1)
        return lambda site, ctx: dist.MultivariateNormal(mean, scale_tril=root)

    return Program(None, model, guide, ("z",), (D,))


PROGRAM = program()
"""One for all cases: what is compiled for it serves them all."""
NOBODY = np.zeros((80, D), "float32")
"""No data that an encoder knows."""


def gaussian(W: np.ndarray, noise: float, known: np.ndarray = NOBODY, off: float = 0.0) -> Fit:
    known = np.concatenate([known, np.zeros((80 - len(known), D))])
    values = {"W": W, "noise": noise, "known": known, "off": off}
    params = {name: jnp.asarray(value, "float32") for name, value in values.items()}
    return Fit(PROGRAM, params, {}, pd.DataFrame({"step": [], "loss": []}), {"steps": 0})


def draws(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, LATENT)) @ TRUE.T + NOISE * rng.normal(size=(n, D))).astype("float32")


def log_px(x: np.ndarray, W: np.ndarray, noise: float) -> np.ndarray:
    return np.asarray(dist.MultivariateNormal(jnp.zeros(D), W @ W.T + noise**2 * np.eye(D)).log_prob(x))


def most_likely(x: np.ndarray, latent: int) -> tuple[np.ndarray, float]:
    """Loadings and noise of the largest likelihood without a mean (Tipping & Bishop 1999, eq. 7-8)."""
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    noise = values[: D - latent].mean()
    W = vectors[:, D - latent :] * np.sqrt(values[D - latent :] - noise)
    return W.astype("float32"), float(np.sqrt(noise))


TRAIN, NEW = draws(12, 2), draws(80, 3)
OVERFITTED = most_likely(TRAIN, LATENT)
SHIFT = 0.9


def found_in(fit: Fit, train: np.ndarray = TRAIN):
    found = generalisation(fit, NEW, train, key=KEY, always=True, progress=False)
    lines = {line.check: line for line in held_out_checks(found)}
    return found, lines, {kind for text in advice(lines.values()) for kind in kinds(text)}, advice(lines.values())


def test_an_encoder_that_only_knows_its_training_data_is_told_from_a_model_that_does() -> None:
    train = draws(80, 4)
    found, lines, said, told = found_in(gaussian(TRUE, NOISE, train, SHIFT), train)
    exact = [log_px(x, TRUE, NOISE) for x in (train, NEW)]
    np.testing.assert_allclose(found.log_px_train, exact[0], atol=0.02)  # its posterior is exact
    assert np.abs(found.log_px - exact[1]).mean() < 0.03
    # KL of a Gaussian moved by c sds in each of six directions: 6 c^2 / 2.
    assert found.encoder[0] == pytest.approx(LATENT * SHIFT**2 / 2, abs=0.1)
    assert found.generative[0] == pytest.approx(exact[0].mean() - exact[1].mean(), abs=0.02)
    assert lines[WHOLE].verdict != "ok" and lines[ENCODER].verdict != "ok" and lines[GENERATIVE].verdict == "ok"
    assert "refine" in said and not said & {"smaller decoder", "early", "longer"}
    assert any("sleep phase" in text for text in told) and not any("ore data" in text for text in told)


def test_a_model_that_overfits_is_told_from_its_encoder() -> None:
    found, lines, said, told = found_in(gaussian(*OVERFITTED))
    exact = [log_px(x, *OVERFITTED).mean() for x in (TRAIN, NEW)]
    assert exact[0] - exact[1] > 3
    assert found.generative[0] == pytest.approx(exact[0] - exact[1], abs=0.02)
    assert found.encoder[0] == pytest.approx(0.0, abs=0.02)
    assert lines[GENERATIVE].verdict == "fail" and lines[ENCODER].verdict == "ok"
    assert {"smaller decoder", "early"} <= said and not said & {"refine", "longer", "larger decoder"}
    assert "More data." in told


def test_both_are_named_where_both_overfit() -> None:
    found, lines, said, _ = found_in(gaussian(*OVERFITTED, TRAIN, 2.5))
    assert sum(part[0] for part in (found.generative, found.encoder)) == pytest.approx(found.gap[0], abs=1e-4)
    assert {name for name, line in lines.items() if line.verdict != "ok"} == {WHOLE, GENERATIVE, ENCODER}
    assert "generative model and the encoder" in lines[WHOLE].meaning and {"refine", "smaller decoder"} <= said


def test_nothing_is_refined_or_advised_where_new_data_are_described_as_well() -> None:
    fit, train = gaussian(TRUE, NOISE), draws(150, 5)
    found = generalisation(fit, NEW, train, key=KEY, progress=False)
    assert len(found.elbo_train) == 100 and len(found.elbo) == 80 and found.log_px is None
    (line,) = held_out_checks(found)
    assert (line.check, line.verdict, line.remedy) == (WHOLE, "ok", "")
    assert line.value == pytest.approx(found.elbo_train.mean() - found.elbo.mean())


def test_diagnose_has_the_lines_and_judges_a_refined_fit_by_the_encoder_it_has() -> None:
    train, x = draws(40, 6), NEW[:40]
    fit = gaussian(TRUE, NOISE, train, SHIFT)
    refined = refine(fit, x, key=KEY, particles=512, progress=False)
    frame = diagnose(refined, x, key=KEY, particles=512, draws=10, train=train, baselines={}).set_index("check")
    assert frame.loc[ENCODER, "value"] == pytest.approx(LATENT * SHIFT**2 / 2, abs=0.2)
    assert frame.loc[GENERATIVE, "verdict"] == "ok" and frame.loc[ENCODER, "verdict"] != "ok"
    assert "inference.refine" not in frame.loc[ENCODER, "remedy"]  # what is done is not advised
    assert "sleep phase" in frame.loc[ENCODER, "remedy"]


def test_programs_without_a_posterior_to_refine_keep_what_can_be_said() -> None:
    form = mixture_program()
    x = np.asarray(form.sample(KEY, 20))
    found = generalisation(form.fit, x, x, key=KEY, always=True, progress=False)
    assert found.log_px is None and found.gap[0] == pytest.approx(0.0, abs=0.3)
    fit = gaussian(TRUE, NOISE)
    with pytest.raises(ValueError, match="most must be an integer of at least 2"):
        generalisation(fit, NEW, TRAIN, key=KEY, most=1)
    with pytest.raises(ValueError, match="train"):
        generalisation(fit, NEW, TRAIN[:, :3], key=KEY)
