"""Imputation against the closed form of a linear-Gaussian model whose q is wrong on purpose."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest

from inference import impute
from ppl_models.distributions.row_law import RowLaw
from ppl_models.program import Column, Observation, Program, encode_frame

KEY = jax.random.key(3)
COLUMNS = (Column("a", "real", loc=10.0, scale=2.0), Column("b", "positive", loc=1.0, scale=0.5),
           Column("site", "binary", values=("east", "west")))  # fmt: skip
W = np.array([1.0, -0.8])
S = np.array([0.5, 0.6])
SLOPE = 2.0


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What a fit is to ``impute``."""

    program: Program
    params: Any = dataclasses.field(default_factory=dict)
    mutable: Any = None


def law(z: Any, there: Any) -> RowLaw:
    zero = jnp.zeros((*z.shape, 0))
    return RowLaw(
        COLUMNS, loc=z[..., None] * W, scale=jnp.asarray(S), mean=zero, concentration=zero,
        logits=SLOPE * z[..., None], there=there,
    )  # fmt: skip


def model(x: Any = None, *, size: int | None = None) -> None:
    there = None if x is None else x["there"].astype(bool)
    n = size if x is None else len(x["x"])
    with numpyro.plate("data", n):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(n), 1.0), infer={"ctx": None})
        numpyro.sample("x", law(z, there), obs=None if x is None else x["x"].astype("float32"))


def wide(x: Any = None, *, size: int | None = None) -> Any:
    """q(z | x) = N(.3, 1.5^2) whatever x."""
    return lambda site, ctx: dist.Normal(jnp.full(len(x["x"]), 0.3), 1.5)


PROGRAM = Program(
    spec=None, model=model, posterior=wide, latents=("z",), shape={"x": (3,), "there": (3,)},
    observation=Observation("three columns", columns=COLUMNS,
                            read=lambda x: encode_frame(COLUMNS, x) if isinstance(x, pd.DataFrame) else x),
)  # fmt: skip
FRAME = pd.DataFrame(
    {"a": [13.0, None, 10.0, 9.0], "b": [None, 3.0, 2.0, None], "site": ["west", None, "east", None]},
    index=["w", "x", "y", "z"],
)


@pytest.fixture(scope="module")
def found():
    return impute(Fitted(PROGRAM), FRAME, draws=4000, particles=16_000, key=KEY, progress=False)


def grid_posterior(row: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """p(z | what is there), on a grid."""
    z = np.linspace(-6, 6, 4001)
    log_p = -0.5 * z**2
    for name, d in (("a", 0), ("b", 1)):
        if name in row:
            log_p += -0.5 * ((row[name] - W[d] * z) / S[d]) ** 2
    if "site" in row:
        log_p -= np.log1p(np.exp(-SLOPE * z * (1 if row["site"] else -1)))
    p = np.exp(log_p - log_p.max())
    return z, p / p.sum()


STORED = [{"a": 1.5, "site": 1}, {"b": (np.log(3.0) - 1) / 0.5}, None, {"a": -0.5}]


def test_a_posterior_that_misses_the_mode_does_no_harm():
    """q is N(5, .1^2): far from every row's posterior, where the prior is near enough."""
    far = lambda x: lambda site, ctx: dist.Normal(jnp.full(len(x["x"]), 5.0), 0.1)  # noqa: E731
    missed = dataclasses.replace(PROGRAM, posterior=far)
    found = impute(Fitted(missed), FRAME, draws=4000, particles=16_000, key=KEY, progress=False)
    z, p = grid_posterior(STORED[0])
    mean = p @ z
    assert found.draws[:, 0].mean() == pytest.approx(W[1] * mean, abs=0.05)
    assert found.draws[:, 0].std() == pytest.approx(np.sqrt(W[1] ** 2 * (p @ (z - mean) ** 2) + S[1] ** 2), rel=0.05)
    assert found.ess[0] > 500


@pytest.mark.parametrize("r", [0, 1, 3])
def test_draws_have_the_conditional_law_though_q_is_wrong(found, r):
    z, p = grid_posterior(STORED[r])
    mean = p @ z
    var = p @ (z - mean) ** 2
    for e in np.flatnonzero(found.row == r):
        d, draws = found.column[e], found.draws[:, e]
        if d == 2:
            assert draws.mean() == pytest.approx(p @ (1 / (1 + np.exp(-SLOPE * z))), abs=0.03)
        else:
            assert draws.mean() == pytest.approx(W[d] * mean, abs=0.05)
            assert draws.std() == pytest.approx(np.sqrt(W[d] ** 2 * var + S[d] ** 2), rel=0.05)
    assert 100 < found.ess[r] < 16_000 and np.isnan(found.ess[2])


def test_draws_of_one_row_belong_together(found):
    """Row z lacks b and site, which z ties together: Cov(b, site) = Cov(W_b z, sigma(2 z))."""
    z, p = grid_posterior(STORED[3])
    b, site = (found.draws[:, e] for e in np.flatnonzero(found.row == 3))
    share = 1 / (1 + np.exp(-SLOPE * z))
    expected = p @ (W[1] * z * share) - W[1] * (p @ z) * (p @ share)
    assert np.cov(b, site)[0, 1] == pytest.approx(expected, abs=0.015)


def test_frame_is_in_the_units_of_the_file(found):
    frame = found.frame(interval=0.9)
    where = (frame["index"] + " " + frame["column"]).tolist()
    assert where == ["w b", "x a", "x site", "z b", "z site"]
    row = frame.iloc[0]
    draws = np.exp(1 + 0.5 * found.draws[:, 0])
    assert row.value == pytest.approx(np.median(draws), rel=1e-3)
    assert ((draws > row.lower) & (draws < row.upper)).mean() == pytest.approx(0.9, abs=0.01)
    assert np.isnan(row.probability) and frame.iloc[2].value in ("east", "west")
    assert frame.iloc[2].lower is None and 0.5 <= frame.iloc[2].probability <= 1
    filled = found.filled()
    assert list(filled.index) == ["w", "x", "y", "z"] and not filled.isna().any().any()
    assert filled.loc["y"].tolist() == [10.0, 2.0, "east"] and filled.loc["w", "b"] == pytest.approx(row.value)
    whole = found.complete(7)
    assert whole["there"].all() and whole["x"][0, 1] == found.draws[7, 0] and whole["x"][2, 0] == 0.0


def test_a_row_depends_on_its_number_and_the_key_alone(found):
    two = impute(Fitted(PROGRAM), FRAME.iloc[:2], draws=4000, particles=16_000, key=KEY, chunk=4000, progress=False)
    np.testing.assert_allclose(two.draws, found.draws[:, :3], atol=1e-5)


def test_refusals():
    fit = Fitted(PROGRAM)
    with pytest.raises(ValueError, match="nothing is missing in these 1 rows"):
        impute(fit, FRAME.iloc[2:3], key=KEY)
    with pytest.raises(ValueError, match="only entries of a table"):
        impute(Fitted(dataclasses.replace(PROGRAM, observation=Observation("pictures"))), FRAME, key=KEY)
    with pytest.raises(ValueError, match="limit is 4 GiB"):
        impute(fit, FRAME, draws=10**9, key=KEY)
    with pytest.raises(ValueError, match="draws must be an integer"):
        impute(fit, FRAME, draws=0, key=KEY)
    with pytest.raises(ValueError, match="between 0 and 1"):
        impute(fit, FRAME, draws=4, particles=8, key=KEY, progress=False).frame(90.0)
