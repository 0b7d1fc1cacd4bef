"""Classical laws of counts given the size of a row: masses, what they find, and where they stand beside a program."""

import jax
import numpy as np
import pytest
from scipy import stats

from inference.checking.classical import baselines
from inference.checking.exposures import count_mixture
from ppl_models.datasets import counts
from ppl_models.mfcvae import MFCVAE, Additive, Counts, Facet

KEY = jax.random.key(0)


def two_topics(n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    r = np.random.default_rng(0)
    share = np.array([[0.6, 0.3, 0.1], [0.1, 0.3, 0.6]])[np.arange(n) % 2]
    size = r.integers(20, 200, n)
    mean = size[:, None] * share
    return r.poisson(mean * r.gamma(20.0, 1 / 20.0, mean.shape)), size


def test_masses_sum_to_one_and_depend_on_the_size() -> None:
    x, size = two_topics(60)
    score = count_mixture(np.concatenate([x, size[:, None]], 1).astype("float64"), components=2, seed=0)
    rows = np.stack([a.ravel() for a in np.meshgrid(*[np.arange(40.0)] * 3, indexing="ij")] + [np.full(40**3, 8.0)], 1)
    assert np.exp(score(rows)).sum() == pytest.approx(1, abs=1e-4)
    assert score(np.array([[5.0, 2.0, 1.0, 8.0]])) > score(np.array([[5.0, 2.0, 1.0, 80.0]]))


def test_one_component_is_a_negative_binomial_a_column() -> None:
    x, size = two_topics()
    rows = np.concatenate([x, size[:, None]], 1).astype("float64")
    score = count_mixture(rows, components=1, seed=0)
    rate = (x.sum(0) + 0.5) / (size.sum() + 0.5)
    rate = (x.sum(0) + size.mean() * rate) / (size.sum() + size.mean())
    m = size[:, None] * rate
    best = max(stats.nbinom(r, r / (r + m[:, 1])).logpmf(x[:, 1]).sum() for r in np.geomspace(0.05, 1000.0, 18))
    found = [max(stats.nbinom(r, r / (r + m[:, d])).logpmf(x[:, d]).sum() for r in np.geomspace(0.05, 1000, 18))
             for d in (0, 2)]  # fmt: skip
    assert score(rows).sum() == pytest.approx(best + sum(found), rel=1e-9)


def test_they_are_the_baselines_of_a_program_of_counts_given_the_library() -> None:
    x, _ = two_topics()
    found = counts(x)
    spec = MFCVAE(
        facets=(Facet("topic", dim=1, clusters=2),), shape=(3,), network=Additive((4,)),
        likelihood=Counts(names=found.names, library=found.library),
    )  # fmt: skip
    half = {name: leaf[:200] for name, leaf in found.x.items()}, {name: leaf[200:] for name, leaf in found.x.items()}
    tables = baselines(spec.build(KEY), *half, key=KEY, quick=True, progress=False)
    assert set(tables) == {"independent", "count-mixture"}
    assert tables["count-mixture"]["log_px"].mean() > tables["independent"]["log_px"].mean() + 0.5
    assert "given the library size" in tables["independent"].attrs["observation"]
