"""Hierarchies of tables: what a spec refuses, the start in closed form, missing entries, what a datum looks like."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from numpyro.handlers import seed, substitute, trace
from scipy import stats

from inference import evidence, fit, posterior
from ppl_models.datasets import table
from ppl_models.hvae import HVAE, PRESETS, Columns
from ppl_models.program import spec_from_json, spec_to_json, take

KEY = jax.random.key(0)
D, N = 6, 160


@pytest.fixture(scope="module")
def found():
    """A table of real columns that two factors tie, with units of their own."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 2)) @ rng.normal(size=(2, D)) + 0.5 * rng.normal(size=(N, D))
    return table(
        pd.DataFrame(5 + x * [1, 2, 3, 1, 2, 30], columns=list("abcdef")), kinds=dict.fromkeys("abcdef", "real")
    )


def spec_of(columns, **likelihood):
    row = Columns(columns=columns, **likelihood)
    return HVAE(enc="1x1", dec="1x2", shape=(len(columns),), width=8, zdim=2, mid_ratio=1.0, likelihood=row)


def started(spec, x):
    """A fit that has made its start and hardly moved."""
    return fit(spec.build(KEY), x, steps=1, batch_size=32, learning_rate=1e-9, key=KEY, progress=False)


@pytest.fixture(scope="module")
def correlated(found):
    return started(spec_of(found.columns, correlated=True, scales="decoded"), found.x)


def gaussian_of(fitted, columns):
    """Mean and covariance of the stored numbers, complete rows, by the start's parameters."""
    direct, noise = fitted.params["decoder$params"]["direct"], fitted.params["likelihood"]
    W, b = np.asarray(direct["kernel"], float)[:, :D], np.asarray(direct["bias"], float)[:D]
    scale = fitted.program.spec.likelihood.floors() + np.exp(np.asarray(noise["log_scale"], float))
    A = np.eye(D)
    if "whitening" in noise:
        A[np.tril_indices(D, -1)] = noise["whitening"]
    root = scale[:, None] * np.linalg.inv(A)
    return b, W.T @ W + root @ root.T


def log_jacobian(columns, x):
    return sum(column.log_jacobian(x[:, i]) for i, column in enumerate(columns))


@pytest.mark.parametrize("scales", ["decoded", "column"])
def test_the_start_with_correlated_noise_is_the_gaussian_of_the_training_data(found, correlated, scales):
    fitted = correlated if scales == "decoded" else started(spec_of(found.columns, correlated=True), found.x)
    x = found.x["x"].astype(float)
    mean, covariance = gaussian_of(fitted, found.columns)
    np.testing.assert_allclose(mean, x.mean(0), atol=1e-4)
    np.testing.assert_allclose(covariance, np.cov(x.T, bias=True), atol=0.02)
    want = stats.multivariate_normal(mean, covariance).logpdf(x) + log_jacobian(found.columns, x)
    got = evidence(fitted, take(found.x, slice(60)), particles=256, key=KEY, progress=False)
    np.testing.assert_allclose(got["log_px"], want[:60], atol=0.05)
    # The linear posterior is nearly the exact one: the bound is nearly tight.
    assert (got["log_px"] - got["elbo"]).mean() < 0.02


def test_the_start_with_independent_noise_is_a_factor_analysis(found):
    fitted = started(spec_of(found.columns), found.x)
    x = found.x["x"].astype(float)
    mean, covariance = gaussian_of(fitted, found.columns)
    want = stats.multivariate_normal(mean, covariance).logpdf(x) + log_jacobian(found.columns, x)
    got = evidence(fitted, found.x, particles=512, key=KEY, progress=False)
    np.testing.assert_allclose(got["log_px"], want, atol=0.15)
    np.testing.assert_allclose(got["log_px"].mean(), want.mean(), atol=0.01)
    # Two factors were put in: with four directions it is ahead of independent columns, and near the Gaussian.
    marginal = stats.norm(x.mean(0), x.std(0)).logpdf(x).sum(1) + log_jacobian(found.columns, x)
    whole = stats.multivariate_normal(x.mean(0), np.cov(x.T, bias=True)).logpdf(x) + log_jacobian(found.columns, x)
    assert marginal.mean() + 1 < got["log_px"].mean() < whole.mean() + 0.01
    assert whole.mean() - got["log_px"].mean() < 0.5


def test_leading_directions_are_in_the_last_level_and_every_level_has_a_standard_normal_prior(found, correlated):
    kernel = np.asarray(correlated.params["decoder$params"]["direct"]["kernel"])[:, :D]
    size = (kernel**2).sum(1).reshape(2, 2)[::-1].ravel()
    assert (np.diff(size) <= 1e-5).all() and size[:2].sum() > 0.8 * size.sum()
    tree = posterior(correlated, take(found.x, slice(4)), draws=3, key=KEY)
    sites = trace(seed(correlated.model, KEY)).get_trace(size=3)
    for name in correlated.program.latents:
        np.testing.assert_allclose(sites[name]["fn"].mean, 0, atol=1e-6)
        np.testing.assert_allclose(sites[name]["fn"].variance, 1, atol=1e-6)
        assert tree["posterior"][f"rate_{name}"].shape == (1, 3, 4)


def test_missing_entries_are_summed_out_and_their_values_do_not_matter(found, correlated):
    """Exactly, at given latents: the joint density of what is there, and z, of a linear Gaussian model."""
    x = found.x["x"][:12].astype(float)
    there = np.random.default_rng(1).random(x.shape) < 0.7
    there[:, 0] = True
    there[0] = True
    z = {name: jax.random.normal(jax.random.key(i), (12, 1, 1, 2)) for i, name in enumerate(correlated.program.latents)}
    every = np.concatenate([z[name][:, 0, 0] for name in correlated.program.latents], 1).astype(float)
    mean, covariance = gaussian_of(correlated, found.columns)
    W = np.asarray(correlated.params["decoder$params"]["direct"]["kernel"], float)[:, :D]
    want = [
        stats.multivariate_normal((mean + u @ W)[k], (covariance - W.T @ W)[np.ix_(k, k)]).logpdf(row[k])
        + sum(found.columns[i].log_jacobian(row[i]) for i in np.flatnonzero(k))
        for row, u, k in zip(x, every, there, strict=True)
    ]
    model = substitute(correlated.model, data={**correlated.params, **z})
    got = []
    for fill in (0.0, 7.0):
        hole = {"x": jnp.asarray(np.where(there, x, fill), "float32"), "there": jnp.asarray(there)}
        site = trace(seed(model, KEY)).get_trace(hole)["x"]
        got.append(np.asarray(site["fn"].log_prob(site["value"])))
    np.testing.assert_array_equal(*got)
    np.testing.assert_allclose(got[0], want, atol=2e-2, rtol=2e-4)


def test_a_mixed_table_with_holes_starts_ahead_of_independent_columns():
    rng = np.random.default_rng(2)
    group = rng.integers(0, 2, 200)
    frame = pd.DataFrame(
        {
            "size": np.round(3.0 * group + rng.normal(size=200), 2),
            "dose": np.exp(group + 0.3 * rng.normal(size=200)).round(3),
            "visits": rng.poisson(2 + 10 * group),
            "smoker": np.where(rng.random(200) < 0.1 + 0.8 * group, "yes", "no"),
            "site": np.array(list("abc"))[(group + (rng.random(200) < 0.2)) % 3],
        }
    )
    found = table(frame.mask(rng.random(frame.shape) < 0.1))
    spec = spec_of(found.columns, correlated=True, scales="decoded")
    assert spec_from_json(spec_to_json(spec)) == spec
    fitted = started(spec, found.x)
    few = take(found.x, slice(100))
    got = evidence(fitted, few, particles=64, key=KEY, progress=False)["log_px"]
    likelihood, x = spec.likelihood, jax.tree.map(jnp.asarray, few)
    each = likelihood.distribution(jnp.asarray(likelihood.start(found.x)), likelihood.parameters(), x["there"])
    assert got.mean() > float(each.log_prob(x["x"]).mean()) + 0.5
    assert np.isfinite(fitted.history["loss"]).all()
    # A frame is read by the columns of the spec, and a draw is a whole row.
    read = fitted.program.observation.read(frame)
    assert set(read) == {"x", "there"} and read["there"].all()
    datum = fitted.program.from_draw({"x": x["x"]})
    assert datum["x"] is x["x"] and datum["there"].all()


def test_linear_paths_are_of_tables_alone():
    program = PRESETS["table"].build(KEY)
    assert set(program.shape) == {"x", "there"} and program.observation.columns
    assert [event.step for event in program.training.events] == [0]
    image = PRESETS["tiny"].build(KEY)
    assert not image.training.events
    assert not hasattr(image.views.modules["decoder"], "direct")


def test_a_spec_refuses_a_grid_and_another_number_of_columns():
    spec = PRESETS["table"]
    with pytest.raises(ValueError, match="no grid, got cells at resolution 5.*enc='1x1'"):
        dataclasses.replace(spec, enc="5x1,5d5", dec="1x1,5m1")
    with pytest.raises(ValueError, match=r"a table of 5 columns has shape \(5,\), got \(4,\)"):
        dataclasses.replace(spec, shape=(4,))
