"""Baselines: closed forms, masses that sum to one, the noise they share with the evidence, and refusals."""

import itertools
import math
from dataclasses import replace

import jax
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from inference import baselines, compare, evidence, exact_table
from inference.checking.classical import categorical_mixture, evaluated, gaussian, gaussian_mixture, ppca
from inference.fitting import Fit
from ppl_models.mfcvae import PRESETS, Bernoulli, Categorical, LogisticMixture, Normal
from ppl_models.program import Exact, Observation, Program
from tests.toy import PPCA, maximum_log_likelihood, toy_data

KEY = jax.random.key(0)
DIGITS = np.random.default_rng(0).integers(0, 17, (60, 8, 8)).astype("uint8")


def program(line="x", *, shape=(3,), offset=0.0, exact=None, **more) -> Program:
    scored = Observation(line, bits_offset=offset, **more)
    return Program(None, lambda x=None: None, None, (), shape, observation=scored, exact=Exact(exact))


def test_gaussian_and_ppca_are_the_closed_forms():
    x, fresh = toy_data().astype(float), toy_data(300)[256:].astype(float)
    expected = multivariate_normal(x.mean(0), np.cov(x.T, bias=True)).logpdf(fresh)
    np.testing.assert_allclose(gaussian(x, ridge=0.0)(fresh), expected, rtol=1e-9)
    np.testing.assert_allclose(ppca(x, rank=3)(fresh), expected, rtol=1e-9)  # one direction's mean variance is its own
    assert ppca(x, rank=2)(x).mean() == pytest.approx(maximum_log_likelihood(x, 2), abs=1e-9)
    np.testing.assert_allclose(
        gaussian_mixture(x, components=1, ridge=1e-9, seed=0)(fresh), gaussian(x, ridge=1e-9)(fresh), rtol=1e-6
    )


def test_a_categorical_mixture_sums_to_one_and_finds_its_components():
    rng = np.random.default_rng(0)
    centre = np.array([[0, 0, 2, 2], [2, 1, 0, 0]])[rng.integers(0, 2, 400)]
    x = np.where(rng.random((400, 4)) < 0.1, rng.integers(0, 3, (400, 4)), centre)
    score = categorical_mixture(x, symbols=3, components=2, pseudo=0.01, seed=0)
    every = np.array(list(itertools.product(range(3), repeat=4)))
    assert np.exp(score(every)).sum() == pytest.approx(1, abs=1e-5)
    truth = 0.5 * np.exp(_log_mass(every, [0, 0, 2, 2])) + 0.5 * np.exp(_log_mass(every, [2, 1, 0, 0]))
    assert np.abs(np.exp(score(every)) - truth).sum() < 0.2  # total variation below a tenth
    one = categorical_mixture(x, symbols=3, components=1, pseudo=0.0, seed=0)
    share = np.stack([(x == s).mean(0) for s in range(3)], 1)
    np.testing.assert_allclose(one(every), np.log(share[np.arange(4), every]).sum(1), rtol=1e-4)


def _log_mass(x, centre):
    return np.where(x == np.array(centre), math.log(0.9 + 0.1 / 3), math.log(0.1 / 3)).sum(1)


def test_the_noise_is_that_of_the_evidence_under_the_same_key():
    like = Normal(dequantise=True)
    mean = program(
        shape=(8, 8), offset=math.log2(17), prepare=lambda x, key, training: like.prepare(x, key, training, 17),
        exact=lambda params, key, x: x.sum((1, 2)),
    )  # fmt: skip
    table = evidence(Fit(mean, {}, {}, None, {}), DIGITS, key=KEY, progress=False)
    np.testing.assert_allclose(evaluated(mean, DIGITS, KEY).sum(1), table["log_px"], rtol=1e-5)


def test_each_observation_has_its_baselines():
    names = {}
    for what, like in {
        "binary": Bernoulli(threshold=0.5, noise=1.0),
        "grey": Normal(dequantise=True),
        "lattice": Normal(),
    }.items():
        built = replace(PRESETS["tiny"], likelihood=like).build(KEY)
        if what == "lattice":
            with pytest.raises(ValueError, match="binarise or dequantise"):
                baselines(built, DIGITS, DIGITS[:5], key=KEY)
            continue
        tables = baselines(built, DIGITS, DIGITS[:9], key=KEY, validation=DIGITS[40:], progress=False)
        assert {t.attrs["observation"] for t in tables.values()} == {built.observation.line}
        assert {t.attrs["estimator"] for t in tables.values()} == {"exact"}
        names[what] = list(tables)
    assert names["binary"] == ["bernoulli-mixture"]
    assert names["grey"] == ["gaussian", "ppca", "factor-analysis", "gaussian-mixture", "categorical-mixture"]


@pytest.mark.parametrize("like", [Categorical(), LogisticMixture(components=2)])
def test_grey_levels_as_masses_get_the_categorical_mixture_of_the_stored_levels(like):
    """On x / 16 the masses are those of x: the density of the dequantised data, less log 17 a pixel."""
    x = np.random.default_rng(1).integers(0, 17, (160, 8, 8)).astype("uint8")
    split = {"key": KEY, "validation": x[140:], "progress": False}
    masses, densities = (
        baselines(replace(PRESETS["tiny"], likelihood=which).build(KEY), x[:130], x[130:140], **split)
        for which in (like, Normal(dequantise=True))
    )
    assert list(masses) == ["categorical-mixture"]
    difference = densities["categorical-mixture"]["log_px"] - masses["categorical-mixture"]["log_px"]
    np.testing.assert_allclose(difference, 64 * math.log(17), rtol=1e-5)


def test_real_data_get_densities_that_compare_and_come_near_the_truth():
    x = toy_data(2000)
    tables = baselines(PPCA().build(KEY), x[:1500], x[1500:], key=KEY, progress=False)
    assert list(tables) == ["gaussian", "ppca", "factor-analysis", "gaussian-mixture"]
    truth = multivariate_normal(x.mean(0), np.cov(x.T)).logpdf(x[1500:]).mean()
    for name in ("gaussian", "ppca", "factor-analysis"):
        assert tables[name]["log_px"].mean() == pytest.approx(truth, abs=0.02)
    assert list(compare(tables)["rank"]) == [0, 1, 2, 3]


def test_dequantised_categorical_density_is_mass_times_levels():
    """Data that are all one pattern: mass 1, so the density is levels to the power D."""
    like = Normal(dequantise=True)
    built = program(shape=(3,), offset=2.0, prepare=lambda x, key, training: like.prepare(x, key, training, 4))
    x = np.tile(np.array([[0, 3, 1]], "uint8"), (400, 1))
    table = baselines(built, x, x[:5], key=KEY, progress=False)["categorical-mixture"]
    np.testing.assert_allclose(table["log_px"], 3 * math.log(4), atol=0.05)


@pytest.mark.parametrize(
    ("x", "more", "says"),
    [
        (np.arange(60).reshape(20, 3), {}, "0..31, got up to 59"),
        (np.zeros((5, 3), int), {}, "at least 20"),
        (np.zeros((30, 4), int), {}, "expects"),
        (np.zeros((30, 3), int), {"key": jax.random.split(KEY)}, "one random key"),
    ],
)
def test_refusals(x, more, says):
    with pytest.raises(ValueError, match=says):
        baselines(program(), x, np.zeros((2, 3), int), **{"key": KEY, **more})


def test_an_exact_table_needs_one_value_a_datum():
    x = DIGITS[:4]
    table = exact_table(program("scores from elsewhere", shape=(8, 8)), x, np.arange(4))
    assert list(table["log_px"]) == [0, 1, 2, 3] and table.attrs["dims"] == 64
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(4,\)"):
        exact_table(program(shape=(8, 8)), x, np.arange(3))


def test_ranks_that_few_data_do_not_allow_are_passed_over():
    x = np.random.default_rng(0).normal(size=(30, 64)).astype("float32")
    tables = baselines(program(shape=(64,), offset=None), x, x[:5] + 0.1, key=KEY, quick=True, progress=False)
    assert np.isfinite(tables["ppca"]["log_px"]).all() and tables["ppca"].attrs["baseline"]["rank"] < 30
