"""The DataTree: the right numbers in the right groups, read by stock xarray and ArviZ."""

import importlib
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr

from inference.checking.log_evidence import evidence
from inference.checking.posterior_tree import posterior, save_posterior
from inference.fitting import Fit
from ppl_models.program import Program
from tests.closed_forms import linear_gaussian_program, mixture_program

KEY = jax.random.key(0)
DATA, DRAWS = 12, 60


@pytest.fixture(scope="module")
def drawn():
    form = linear_gaussian_program()
    x = form.sample(jax.random.key(7), DATA)
    factors = {"digit": np.arange(DATA), "where": np.zeros((DATA, 2)), "name": np.array(list("abcdefghijkl"))}
    return form, x, posterior(form.fit, x, draws=DRAWS, key=KEY, factors=factors, chunk=100, progress=False)


def test_groups_and_dimensions(drawn):
    _, x, tree = drawn
    samples = {"chain": 1, "draw": DRAWS, "datum": DATA}
    assert dict(tree["posterior"]["z"].sizes) == {**samples, "unit_z": 3}
    assert dict(tree["posterior"]["norm"].sizes) == samples
    for name in ("log_joint", "log_q", "log_weight", "rate_z"):
        assert dict(tree["sample_stats"][name].sizes) == samples
    assert dict(tree["log_likelihood"]["x"].sizes) == samples
    few = {"chain": 1, "draw": 10, "datum": DATA}
    for group in ("posterior_predictive", "prior_predictive"):
        assert dict(tree[group]["x"].sizes) == {**few, "x_dim_0": 5}
    assert dict(tree["prior"]["z"].sizes) == {**few, "unit_z": 3}
    np.testing.assert_array_equal(tree["observed_data"]["x"], x)
    np.testing.assert_array_equal(tree["constant_data"]["digit"], np.arange(DATA))
    assert tree["constant_data"]["where"].dims == ("datum", "where_dim_0")
    assert tree.attrs["observation"] == "x in R^5" and "N(z; 0, I)" in tree.attrs["density"]


def test_densities_are_those_of_the_draws(drawn):
    form, x, tree = drawn
    z = tree["posterior"]["z"].to_numpy()[0]
    prior = dist.Normal(0, 1).log_prob(z).sum(-1)
    with numpyro.handlers.substitute(data=form.params):
        q = form.program.posterior(jnp.asarray(x))("z", None).log_prob(z)
    stats = tree["sample_stats"]
    np.testing.assert_allclose(stats["log_q"][0], q, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stats["log_joint"][0], prior + tree["log_likelihood"]["x"][0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stats["log_weight"], stats["log_joint"] - stats["log_q"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stats["rate_z"][0], q - prior, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(tree["posterior"]["norm"][0], (z**2).sum(-1), rtol=1e-4)


def test_its_weights_are_those_of_the_evidence(drawn):
    form, x, tree = drawn
    table = evidence(form.fit, x, particles=DRAWS, key=KEY, progress=False)
    np.testing.assert_allclose(tree["sample_stats"]["log_weight"].mean(["chain", "draw"]), table["elbo"], atol=1e-5)


def test_draws_do_not_depend_on_the_chunk_or_on_later_rows(drawn):
    form, x, tree = drawn
    part = posterior(form.fit, x[:3], draws=DRAWS, predictive_draws=4, key=KEY, chunk=17, progress=False)
    for group, name in (("posterior", "z"), ("posterior_predictive", "x"), ("prior", "z"), ("reconstruction", "x")):
        whole = tree[group][name].isel(datum=slice(3))
        whole = whole.isel(draw=slice(4)) if group.startswith("p") and group != "posterior" else whole
        np.testing.assert_allclose(part[group][name], whole, rtol=1e-4, atol=1e-5)


def test_replicated_data_come_from_the_posterior_and_prior_data_from_the_prior():
    form = linear_gaussian_program(spoil=0.0)
    x = np.repeat(form.sample(jax.random.key(7), 1), 40, axis=0)
    tree = posterior(form.fit, x, draws=100, predictive_draws=100, key=KEY, progress=False)
    W = np.asarray(form.params["W"])
    mean = tree["reconstruction"]["x"].mean("datum")
    replicated = tree["posterior_predictive"]["x"].stack(s=("chain", "draw", "datum"))
    np.testing.assert_allclose(replicated.mean("s"), mean, atol=0.05)
    within = W @ np.diag(1 / (1 + (W**2).sum(0) / 0.36)) @ W.T + 0.36 * np.eye(5)  # posterior and noise
    np.testing.assert_allclose(np.cov(replicated), within, atol=0.06)
    fresh = tree["prior_predictive"]["x"].stack(s=("chain", "draw", "datum"))
    np.testing.assert_allclose(np.cov(fresh), W @ W.T + 0.36 * np.eye(5), atol=0.2)
    np.testing.assert_allclose(np.cov(tree["prior"]["z"].stack(s=("chain", "draw", "datum"))), np.eye(3), atol=0.1)
    # Posterior draws and prior draws have noise of their own.
    noise = tree["posterior_predictive"]["x"][0] - (tree["posterior"]["z"][0].to_numpy() @ W.T)
    prior_noise = tree["prior_predictive"]["x"][0] - (tree["prior"]["z"][0].to_numpy() @ W.T)
    assert abs(np.corrcoef(noise.to_numpy().ravel(), prior_noise.to_numpy().ravel())[0, 1]) < 0.6


def test_responsibilities_have_a_cluster_dimension():
    form = mixture_program()
    tree = posterior(form.fit, form.sample(KEY, 4), draws=5, predictive_draws=0, key=KEY, progress=False)
    assert tree["posterior"]["resp_c"].dims == ("chain", "draw", "datum", "cluster_c")
    np.testing.assert_allclose(tree["posterior"]["resp_c"].sum("cluster_c"), 1, rtol=1e-5)
    assert not {"prior", "prior_predictive", "posterior_predictive", "constant_data"} & set(tree.children)


def test_a_file_gives_the_same_tree_to_stock_xarray(drawn, tmp_path):
    tree = drawn[2]
    path = save_posterior(tree, tmp_path)
    with xr.open_datatree(path) as back:
        xr.testing.assert_identical(back.load(), tree)
    assert [p.name for p in tmp_path.iterdir()] == ["posterior.nc"]
    with pytest.raises(ValueError, match="not a folder"):
        save_posterior(tree, tmp_path / "absent")


def test_stock_arviz_reads_it(drawn):
    import arviz as az

    tree = drawn[2]
    summary = az.summary(tree, var_names=["z"], coords={"datum": [0, 1]}, kind="stats")
    assert len(summary) == 6
    _, khat = (-tree["sample_stats"]["log_weight"]).azstats.psislw(dim=["chain", "draw"])
    assert khat.dims == ("datum",) and (khat < 0.7).all()


def test_a_program_without_latents_has_a_tree_without_a_posterior():
    def model(x=None, *, size=None):
        with numpyro.plate("data", size if x is None else x.shape[0]):
            numpyro.sample("x", dist.Bernoulli(0.25).expand([2, 3]).to_event(2), obs=x)
            numpyro.factor("bonus", jnp.ones(size if x is None else x.shape[0]))

    program = Program(None, model, None, (), (2, 3), observed=("x", "bonus"))
    tree = posterior(Fit(program, {}, {}, None, {}), np.ones((4, 2, 3), "uint8"), draws=3, predictive_draws=2, key=KEY,
                     progress=False)  # fmt: skip
    assert not {"posterior", "prior"} & set(tree.children)
    np.testing.assert_allclose(tree["sample_stats"]["log_joint"], 6 * np.log(0.25) + 1, rtol=1e-5)
    np.testing.assert_allclose(tree["reconstruction"]["x"], 0.25, rtol=1e-6)
    assert tree["posterior_predictive"]["x"].dims == ("chain", "draw", "datum", "x_dim_0", "x_dim_1")
    assert "bonus" not in tree["posterior_predictive"] and "bonus" in tree["log_likelihood"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((3, 4), "float32")}, r"expects \(n, 5\)"),
        ({"draws": 0}, "at least 1"),
        ({"predictive_draws": -1}, "at least 0"),
        ({"draws": 5, "predictive_draws": 6}, "exceeds draws 5"),
        ({"chunk": 0}, "at least 1"),
        ({"factors": {"digit": [1, 2]}}, "factor 'digit' has shape .2,., expected 3 rows"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(change, message):
    def untouched(*args, **kwargs):
        raise AssertionError("work began")

    form = linear_gaussian_program()
    fit = replace(form.fit, program=replace(form.program, model=untouched))
    with pytest.raises(ValueError, match=message):
        posterior(fit, **{"x": np.zeros((3, 5), "float32"), "key": KEY, **change})


def test_a_tree_too_large_to_hold_is_refused(monkeypatch):
    form = linear_gaussian_program()
    monkeypatch.setattr(importlib.import_module("inference.checking.tree_store"), "LARGEST", 1000)
    with pytest.raises(ValueError, match="for 4 data.*store=.*fewer draws"):
        posterior(form.fit, form.sample(KEY, 4), draws=30, key=KEY, progress=False)
