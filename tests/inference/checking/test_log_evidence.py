"""Evidence: closed forms, the meaning of its columns, invariance to chunking, files, and refused input."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from scipy.special import logsumexp

from inference.checking.calibration import calibrate
from inference.checking.log_evidence import COLUMNS, evidence, read_evidence, save_evidence, summarise
from inference.checking.per_datum import params_checksum
from inference.checking.posterior_tree import posterior
from inference.fitting import Fit
from ppl_models.program import Exact, Observation, Program
from tests.closed_forms import linear_gaussian_program, mixture_program, random_coefficients

KEY = jax.random.key(0)


def score(fit, x, **arguments):
    return evidence(fit, x, key=KEY, progress=False, **{"particles": 256, **arguments})


@pytest.fixture(scope="module", params=[linear_gaussian_program, mixture_program])
def scored(request):
    form = request.param()
    x = form.sample(jax.random.key(7), 200)
    return form, x, score(form.fit, x)


def test_log_px_is_the_closed_form_within_its_error(scored):
    form, x, table = scored
    error = table["log_px"].to_numpy() - form.log_px(x)
    assert np.abs(error).mean() < 0.02
    assert (np.abs(error) < 4.5 * table["se"]).all()
    assert 0.89 < (np.abs(error) < 1.96 * table["se"]).mean() < 0.99  # binomial, n = 200
    assert (table["elbo"] < table["log_px"]).all()


def test_a_conditional_program_is_scored_given_its_inputs():
    form = random_coefficients()
    x = form.sample(jax.random.key(7), 200)
    table = score(form.fit, x)
    error = table["log_px"].to_numpy() - form.log_px(x)
    assert np.abs(error).mean() < 0.02 and (np.abs(error) < 4.5 * table["se"]).all()
    assert table.attrs["observation"] == "y in R^6 given t" and table.attrs["dims"] == 6
    other = {"t": x["t"][::-1], "y": x["y"]}  # other inputs make another datum
    assert not set(table["x_crc"]) & set(score(form.fit, other, particles=2)["x_crc"])
    tree = posterior(form.fit, x, draws=4, key=KEY, progress=False)
    assert tree["posterior_predictive"]["y"].shape == (1, 4, 200, 6) and tree["prior"]["w"].shape == (1, 4, 200, 2)
    assert set(tree["observed_data"].data_vars) == {"t", "y"}
    with pytest.raises(ValueError, match="needs inputs"):
        calibrate(form.fit, key=KEY)


def test_table_describes_itself(scored):
    form, x, table = scored
    assert tuple(table.columns) == COLUMNS
    expected = {"particles": 256, "dims": 5, "bits_offset": None, "estimator": "importance", "refine": "flagged"}
    expected["params_crc"] = params_checksum(form.fit)
    assert table.attrs == {"observation": "x in R^5", **expected}
    assert (table["datum"] == np.arange(200)).all() and table["x_crc"].is_unique
    assert table["ess"].between(1, 256).all() and (table["khat"] < 0.7).all()


@pytest.mark.parametrize("program", [linear_gaussian_program, mixture_program])
def test_exact_posterior_gives_exact_evidence_without_error(program):
    form = program(spoil=0.0)
    x = form.sample(jax.random.key(7), 20)
    table = score(form.fit, x, particles=64)
    np.testing.assert_allclose(table["log_px"], form.log_px(x), atol=5e-6)
    assert (table["se"] < 1e-6).all() and (table["ess"] > 63.999).all() and (table["khat"] == -np.inf).all()


def test_columns_are_the_documented_statistics():
    log_weight = np.random.default_rng(0).normal(-5, 0.7, size=(3, 40))
    values, w = summarise(log_weight), np.exp(log_weight)
    np.testing.assert_allclose(values["log_px"], logsumexp(log_weight, axis=1) - np.log(40))
    np.testing.assert_allclose(values["elbo"], log_weight.mean(1))
    np.testing.assert_allclose(values["ess"], w.sum(1) ** 2 / (w**2).sum(1))
    np.testing.assert_allclose(values["se"], w.std(1, ddof=1) / np.sqrt(40) / w.mean(1))


def test_numbers_depend_on_key_and_row_not_on_the_chunk_or_later_rows():
    form = linear_gaussian_program()
    noisy = lambda x, key, training: x + 0.1 * jax.random.normal(key, x.shape)  # noqa: E731
    fit = replace(form.fit, program=replace(form.program, observation=Observation(prepare=noisy)))
    x = form.sample(jax.random.key(7), 11)
    whole = score(fit, x, particles=30)
    for chunk in (7, 64):
        pd.testing.assert_frame_equal(score(fit, x, particles=30, chunk=chunk), whole, rtol=1e-5, atol=1e-3)
    pd.testing.assert_frame_equal(score(fit, x[:4], particles=30), whole[:4], rtol=1e-5, atol=1e-3)
    pd.testing.assert_frame_equal(score(fit, x, particles=30), whole, check_exact=True)
    other = evidence(fit, x, particles=30, key=jax.random.key(1), progress=False)
    assert (other["log_px"] != whole["log_px"]).all()


def test_a_pass_in_many_blocks_traces_the_model_once():
    form, traces = linear_gaussian_program(), []

    def model(*args, **kwargs):
        traces.append(1)
        return form.program.model(*args, **kwargs)

    fit = replace(form.fit, program=replace(form.program, model=model))
    score(fit, form.sample(jax.random.key(7), 5), particles=10, chunk=4)
    assert len(traces) == 1


def test_trained_parameters_and_state_are_the_ones_scored():
    def model(x=None, *, size=None):
        offset = numpyro.primitives.mutable("state", {"offset": jnp.zeros(())})["offset"]
        scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
        with numpyro.plate("data", size if x is None else x.shape[0]):
            numpyro.sample("x", dist.Normal(offset, scale).expand([2]).to_event(1), obs=x)

    program = Program(None, model, None, (), (2,))
    fit = Fit(program, {"scale": jnp.asarray(2.0)}, {"state": {"offset": jnp.asarray(3.0)}}, None, {})
    x = np.random.default_rng(0).normal(size=(6, 2)).astype("float32")
    table = score(fit, x)
    np.testing.assert_allclose(table["log_px"], dist.Normal(3.0, 2.0).log_prob(x).sum(-1), rtol=1e-5)
    assert table.attrs["estimator"] == "exact" and (table["se"] == 0).all()
    assert table[["elbo", "ess", "khat"]].isna().all(axis=None)


def test_a_programs_own_log_prob_is_used():
    form = linear_gaussian_program()
    exact = lambda params, key, x: params["W"][0, 0] + x.sum(-1)  # noqa: E731
    fit = replace(form.fit, program=replace(form.program, exact=Exact(exact)))
    x = form.sample(jax.random.key(7), 9)
    table = score(fit, x, chunk=4)
    np.testing.assert_allclose(table["log_px"], exact(form.params, None, x), rtol=1e-5)
    assert table.attrs["estimator"] == "exact"


def test_impossible_data_stay_in_the_table_and_are_reported():
    def model(x=None, *, size=None):
        with numpyro.plate("data", size if x is None else x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0, 1), infer={"ctx": None})
            numpyro.factor("x", jnp.where(x[:, 0] < 1, 0.0, -jnp.inf) + 0 * z)

    program = Program(None, model, lambda x: lambda site, ctx: dist.Normal(0, 1), ("z",), (1,))
    with pytest.warns(RuntimeWarning, match="1 of 3 data .first: row 1, -inf"):
        table = score(Fit(program, {}, {}, None, {}), np.array([[0.5], [2.0], [0.1]], "float32"))
    np.testing.assert_array_equal(table["log_px"], [0, -np.inf, 0])
    assert np.isnan(table["khat"][1])


def test_files_bring_back_the_same_table_to_the_bit(scored, tmp_path):
    table = scored[2].copy()
    table.attrs = scored[2].attrs
    table.loc[0, "khat"], table.loc[1, "khat"] = -np.inf, np.nan
    path = save_evidence(table, tmp_path)
    back = read_evidence(tmp_path)
    pd.testing.assert_frame_equal(back, table, check_exact=True)
    assert back.attrs == table.attrs
    assert list(pd.read_csv(path).columns) == list(COLUMNS)
    assert {p.name for p in tmp_path.iterdir()} == {"evidence.csv", "evidence.json"}


def test_tables_from_before_posteriors_were_refined_can_be_read(scored, tmp_path):
    path = save_evidence(scored[2], tmp_path)
    pd.read_csv(path).drop(columns="estimator").to_csv(path, index=False)
    described = json.loads((tmp_path / "evidence.json").read_text())
    new = ("crc", "params_crc")  # no earlier version wrote them
    (tmp_path / "evidence.json").write_text(json.dumps({k: v for k, v in described.items() if k not in new}))
    assert (read_evidence(tmp_path)["estimator"] == "amortised").all()


def test_damaged_or_missing_files_are_named(scored, tmp_path):
    with pytest.raises(ValueError, match="no evidence.csv"):
        read_evidence(tmp_path)
    save_evidence(scored[2], tmp_path)
    (tmp_path / "evidence.json").write_text('{"observation": ')
    with pytest.raises(ValueError, match="cannot be read"):
        read_evidence(tmp_path)
    (tmp_path / "evidence.json").write_text('{"observation": "x"}')
    with pytest.raises(ValueError, match="lost its description"):
        read_evidence(tmp_path)
    (tmp_path / "evidence.csv").write_text("datum,log_px\n0,1.0\n")
    with pytest.raises(ValueError, match="x_crc.* missing"):
        read_evidence(tmp_path)
    with pytest.raises(ValueError, match="not a folder"):
        save_evidence(scored[2], tmp_path / "absent")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((3, 4), "float32")}, r"expects \(n, 5\)"),
        ({"x": np.zeros(5, "float32")}, "one datum a row"),
        ({"x": np.zeros((0, 5), "float32")}, "empty"),
        ({"x": np.full((2, 5), np.nan, "float32")}, "NaN"),
        ({"particles": 1}, "at least 2"),
        ({"particles": 2.5}, "integer"),
        ({"chunk": 0}, "at least 1"),
        ({"key": jax.random.PRNGKey(0)}, r"jax.random.key\(0\)"),
        ({"key": 0}, r"jax.random.key\(0\)"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(change, message):
    def untouched(*args, **kwargs):
        raise AssertionError("work began")

    form = linear_gaussian_program()
    fit = replace(form.fit, program=replace(form.program, model=untouched))
    arguments = {"x": np.zeros((3, 5), "float32"), "key": KEY, **change}
    # Where the tests check annotations, a wrong type is refused earlier still, in other words.
    typed = "key" in change or change.get("particles") == 2.5
    with pytest.raises((ValueError, TypeError), match=None if typed else message):
        evidence(fit, arguments.pop("x"), **arguments)


def test_bits_per_dim_adds_the_volume_of_a_level_and_is_nan_where_the_score_is_no_code() -> None:
    import pandas as pd

    from inference.checking.log_evidence import bits_per_dim

    table = pd.DataFrame({"log_px": [-4 * np.log(2)] * 3})
    table.attrs = {"dims": 4, "bits_offset": 4.0}
    assert bits_per_dim(table) == pytest.approx(5.0)
    table.attrs["bits_offset"] = None
    assert np.isnan(bits_per_dim(table))
