"""Reference posteriors: read as they are, missing ones say so, and the benchmark's models are those of the draws."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.distributions import biject_to
from numpyro.infer.util import potential_energy

from benchmarks._posteriordb_models import CASES, columns
from ppl_models.datasets import DataMissingError
from ppl_models.datasets.reference_posteriors import POSTERIORS, reference_posterior

REAL = os.environ.get("PPL_MODELS_DATA", "")
HERE = [Path(root) for root in REAL.split(os.pathsep) if root]
THERE = any((root / "posteriordb_small" / "posteriordb_small.npz").is_file() for root in HERE) or any(
    (root / "posteriordb_small.npz").is_file() for root in HERE
)
absent = pytest.mark.skipif(not THERE, reason="posteriordb_small.npz is not in PPL_MODELS_DATA")


@pytest.fixture
def real(monkeypatch):
    monkeypatch.setenv("PPL_MODELS_DATA", REAL)


def test_an_unknown_name_and_an_absent_file(tmp_path):
    with pytest.raises(ValueError, match="unknown reference posterior 'radon'; known: eight_schools_noncentered"):
        reference_posterior("radon")
    with pytest.raises(DataMissingError, match="posteriordb_small"):
        reference_posterior("arK", root=tmp_path)
    np.savez(tmp_path / "posteriordb_small.npz", arK__draws=np.zeros((2, 1, 3)))
    with pytest.raises(ValueError, match="sha256"):
        reference_posterior("arK", root=tmp_path)


@pytest.mark.data
@absent
def test_draws_are_chain_draw_parameter(real):
    found = reference_posterior("kidscore_momiq")
    assert found.names == ("beta[1]", "beta[2]", "sigma") and found.draws.shape == (10, 1000, 3)
    # Least squares, whose means the flat prior gives back.
    y, u = found.data["kid_score"].astype(float), found.data["mom_iq"]
    slope = np.cov(u, y)[0, 1] / u.var(ddof=1)
    beta = found.draws.reshape(-1, 3).mean(0)
    assert beta[1] == pytest.approx(slope, abs=0.005) and beta[0] == pytest.approx(y.mean() - slope * u.mean(), abs=0.5)


@pytest.mark.data
@absent
def test_all_eight_have_data_and_models(real):
    assert {case.of for case in CASES.values()} == set(POSTERIORS)
    for case in CASES.values():
        found = reference_posterior(case.of)
        draws = found.draws.reshape(-1, len(found.names))[:50].astype(float)
        back = columns(case, {name: np.asarray(value) for name, value in case.sites(draws).items()})
        np.testing.assert_allclose(back, draws, rtol=1e-6, atol=1e-9)


@pytest.mark.data
@absent
@pytest.mark.parametrize("name", ["arK", "garch11", "hmm_example", "low_dim_gauss_mix"])
def test_the_model_is_the_one_that_was_drawn_from(real, name):
    """Stein's identity under the reference draws: E d_i log p(u) = 0, E (u_i - m_i) d_j log p(u) = -(i = j)."""
    case, found = CASES[name], reference_posterior(CASES[name].of)
    draws = found.draws.reshape(-1, len(found.names)).astype(float)[::4]
    values = {site: jnp.asarray(v, jnp.float32) for site, v in case.sites(draws).items()}
    arguments = case.arguments(found.data)
    held = numpyro.handlers.substitute(case.model, data={site: v[0] for site, v in values.items()})
    sites = numpyro.handlers.trace(numpyro.handlers.seed(held, 0)).get_trace(**arguments)
    u = {site: jax.vmap(biject_to(sites[site]["fn"].support).inv)(v) for site, v in values.items()}
    slope = jax.jit(jax.vmap(jax.grad(lambda u: -potential_energy(case.model, (), arguments, u))))(u)
    at, slope = (np.concatenate([np.asarray(t[s], float).reshape(len(draws), -1) for s in u], 1) for t in (u, slope))
    at, slope = (at - at.mean(0)) / at.std(0), slope * at.std(0)
    second = at[:, :, None] * slope[:, None] + np.eye(at.shape[1])
    for part in (slope, second):
        assert np.abs(part.mean(0) / (part.std(0) / np.sqrt(len(part)))).max() < 4.5
