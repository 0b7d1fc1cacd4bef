"""The table of ``diagnose``: known faults are named, a healthy fit is left in peace."""

from types import SimpleNamespace

import jax
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from inference.checking import diagnostics
from ppl_models.program import Check, Observation
from tests.inference.checking.test_criticism import fitted
from tests.toy import toy_data

N, S = 80, 40
rng = np.random.default_rng(0)


def history(rows: int = 100, **columns: object) -> pd.DataFrame:
    frame = pd.DataFrame({"step": np.arange(1, rows + 1) * 10, "loss": 5.0 + 0.01 * rng.normal(size=rows)})
    frame["elbo"] = -frame["loss"]
    return frame.assign(**columns)


def evidence_table(khat: object = 0.3, **columns: object) -> pd.DataFrame:
    log_px = -4.9 + rng.normal(size=N)
    table = pd.DataFrame(
        {"datum": np.arange(N), "log_px": log_px, "se": 0.05, "elbo": log_px - 0.1, "ess": 200.0, "khat": khat}
    ).assign(**columns)
    table.attrs = {"particles": 512, "dims": 4, "bits_offset": 0.0, "estimator": "importance", "observation": "x"}
    return table


def tree(**sites: np.ndarray) -> xr.DataTree:
    real = rng.normal(size=(N, 4))
    groups = {
        "posterior": {n: (("chain", "draw", "datum", f"unit_{n}"), v[None]) for n, v in sites.items()},
        "posterior_predictive": {"x": (("chain", "draw", "datum", "d"), rng.normal(size=(1, 60, N, 4)))},
        "observed_data": {"x": (("datum", "d"), real)},
    }
    return xr.DataTree.from_dict({f"/{name}": xr.Dataset(group) for name, group in groups.items()})


def assemble(rates: dict[str, float], draws: dict[str, np.ndarray], **given: object) -> pd.DataFrame:
    program = SimpleNamespace(
        views=SimpleNamespace(checks=given.get("checks", lambda tree: [])), observation=Observation()
    )
    fit = SimpleNamespace(
        program=program, params=given.get("params", {"w": np.ones(3)}), history=given.get("history", history()),
        info={"steps": 1000, "skipped": 0, **given.get("info", {})},
    )  # fmt: skip
    by_site = {name: np.full(N, value) for name, value in rates.items()}
    frame = diagnostics.assemble(fit, given.get("table", evidence_table()), given.get("tree", tree(**draws)), by_site)
    assert list(frame.columns) == ["check", "value", "threshold", "verdict", "meaning", "remedy"]
    assert not frame["check"].duplicated().any()
    assert (frame.loc[frame["verdict"] != "ok", "remedy"].str.len() > 0).all()
    return frame.set_index("check")


def alive() -> np.ndarray:
    return 0.3 * rng.normal(size=(S, N, 2)) + rng.normal(size=(N, 2))


def test_a_healthy_fit_has_no_complaint() -> None:
    found = assemble({"z_a": 2.0, "z_b": 3.0}, {"z_a": alive(), "z_b": alive()})
    assert set(found["verdict"]) == {"ok"}
    assert found.loc["active units of z_a", "value"] == 2
    assert found.loc["share of data with Pareto k-hat > 0.7", "value"] == 0


def test_a_collapsed_site_is_named_and_only_that_one() -> None:
    found = assemble({"z_a": 2.0, "z_b": 0.001}, {"z_a": alive(), "z_b": rng.normal(size=(S, N, 2))})
    assert set(found.index[found["verdict"] != "ok"]) == {"rate of z_b", "active units of z_b"}
    assert set(found.loc[found["verdict"] != "ok", "verdict"]) == {"fail"}
    # Silent on average, yet its mean moves with the data: doubtful, not collapsed.
    assert assemble({"z": 0.001}, {"z": alive()}).loc["rate of z", "verdict"] == "warn"


@pytest.mark.parametrize(("bad", "verdict"), [(0, "ok"), (4, "ok"), (5, "warn"), (20, "warn"), (21, "fail")])
def test_share_of_khat_is_exact(bad: int, verdict: str) -> None:
    khat = np.r_[np.full(bad, 0.71), np.full(N - bad, 0.7)]
    row = assemble({"z": 2.0}, {"z": alive()}, table=evidence_table(khat)).loc["share of data with Pareto k-hat > 0.7"]
    assert row["value"] == bad / N
    assert row["verdict"] == verdict
    unknown = evidence_table(np.r_[np.full(40, np.nan), np.full(40, 0.1)])
    assert assemble({"z": 2.0}, {"z": alive()}, table=unknown).filter(like="k-hat", axis=0)["value"].item() == 0.5


@pytest.mark.parametrize(
    ("check", "verdict", "given"),
    [
        ("non-finite values", "fail", {"params": {"w": np.array([1.0, np.nan])}}),
        ("updates skipped", "warn", {"info": {"skipped": 5}}),
        ("updates skipped", "fail", {"info": {"skipped": 50}}),
        ("still improving", "warn", {"history": history(loss=np.linspace(9, 5, 100))}),
        ("still improving", "warn", {"history": history(loss=np.linspace(5, 9, 100))}),
        ("still improving", "warn", {"history": history(validation_elbo=np.linspace(-9, -5, 100))}),
        ("held-out gap", "fail", {"history": history(elbo=-1.0)}),
        ("effective sample size (median)", "warn", {"table": evidence_table(ess=5.0)}),
        ("effective sample size (median)", "fail", {"table": evidence_table(ess=1.2)}),
        ("evidence - ELBO gap", "warn", {"table": evidence_table(log_px=-4.5, elbo=-5.0 + 0.01 * rng.normal(size=N))}),
        ("evidence - ELBO gap", "fail", {"table": evidence_table(elbo=0.0 + 0.01 * rng.normal(size=N))}),
        ("Monte Carlo error of mean log p(x)", "warn", {"table": evidence_table(se=0.5)}),
    ],
)
def test_each_fault_has_its_line(check: str, verdict: str, given: dict) -> None:
    assert assemble({"z": 2.0}, {"z": alive()}, **given).loc[check, "verdict"] == verdict


def test_a_worse_end_is_fine_where_validation_kept_a_better_step() -> None:
    falling = {"history": history(validation_elbo=np.linspace(-5, -9, 100)), "info": {"best_step": 10}}
    row = assemble({"z": 2.0}, {"z": alive()}, **falling).loc["still improving"]
    assert row["verdict"] == "ok"
    assert "step 10" in row["meaning"]


def test_a_misfitted_statistic_is_named() -> None:
    wrong = tree(z=alive())
    wrong["posterior_predictive"]["x"] = 3.0 * wrong["posterior_predictive"]["x"]
    found = assemble({"z": 2.0}, {}, tree=wrong)
    assert found.loc["predictive check: spread", "verdict"] == "fail"
    assert found.loc["predictive check: mean", "verdict"] == "ok"


def test_a_program_without_latents_gets_the_lines_that_apply() -> None:
    table = evidence_table(np.nan, elbo=np.nan, ess=np.nan, se=0.0)
    table.attrs["estimator"] = "exact"
    found = assemble({}, {}, table=table)
    assert set(found["verdict"]) == {"ok"}
    assert not found.index.str.contains("k-hat|rate|ELBO gap|Monte Carlo").any()
    assert "held-out gap" in found.index


def test_the_program_adds_its_own_lines() -> None:
    own = Check("clusters used", 1.0, ">= 2", "fail", "one cluster", "another key")
    found = assemble({"z": 2.0}, {"z": alive()}, checks=lambda tree: [own])
    assert found.index[-1] == "clusters used"
    assert found.loc["clusters used", "remedy"] == "another key"


def test_diagnose_asks_for_matching_data() -> None:
    fit, x = fitted(np.eye(4, 2)), toy_data(N)
    with pytest.raises(ValueError, match="80 rows, x has 10"):
        diagnostics.diagnose(fit, x[:10], key=jax.random.key(0), table=evidence_table(), tree=tree(z=alive()))
    with pytest.raises(ValueError, match="expects"):
        diagnostics.diagnose(fit, x[:, :3], key=jax.random.key(0), table=evidence_table(), tree=tree(z=alive()))
    found = diagnostics.diagnose(fit, x, key=jax.random.key(0), table=evidence_table(), tree=tree(z=alive()))
    assert found.set_index("check").loc["rate of z", "value"] > 1
