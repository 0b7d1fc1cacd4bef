"""The likelihood of a row: laws are one over the cells of the file, missing entries summed out, errors name cells."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pandas as pd
import pytest
from pydantic import TypeAdapter, ValidationError
from scipy import integrate, stats

from ppl_models.distributions import Columns
from ppl_models.distributions.correlated_row_law import from_covariance
from ppl_models.distributions.counts import negative_binomial_log_prob, negative_binomial_sample
from ppl_models.program import Column

KEY = jax.random.key(0)
COLUMNS = (
    Column("height", "real", loc=170.0, scale=9.0, resolution=0.5),
    Column("kind", "categorical", values=("a", "b", "ü")),
    Column("income", "positive", loc=9.0, scale=0.7),
    Column("visits", "count", loc=1.3, scale=0.8),
    Column("smoker", "binary", values=(False, True)),
    Column("grade", "categorical", values=(1, 2, 3.5)),
    Column("days", "real", loc=18_000.0, scale=400.0, date=True),
    Column("size", "categorical", values=("s", "m", "l", "xl")),
    Column("words", "count", loc=5.0, scale=0.5),
)
D = len(COLUMNS)
VARIANTS: list[dict] = [{}, {"robust": True, "scales": "decoded"}]


@pytest.fixture(params=VARIANTS, ids=["plain", "robust_decoded"], scope="module")
def likelihood(request):
    return Columns(columns=COLUMNS, **request.param)


@pytest.fixture(scope="module")
def decoded(likelihood):
    return 0.7 * jax.random.normal(jax.random.key(3), (likelihood.outputs,))


@pytest.fixture(scope="module")
def parameters(likelihood):
    """Parameters away from their start."""
    return {name: value - 0.5 for name, value in likelihood.parameters().items()}


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(1)
    x = np.zeros((40, D), "float32")
    for i, column in enumerate(COLUMNS):
        k = len(column.values) or (9 if column.kind == "count" else 0)
        x[:, i] = rng.integers(0, k, 40) if k else rng.normal(size=40)
    there = rng.random((40, D)) < 0.7
    return {"x": np.where(there, x, 0).astype("float32"), "there": there}


def test_laws_of_numbers_integrate_to_one_over_the_cells_of_the_file(likelihood, decoded, parameters):
    law = likelihood.distribution(decoded, parameters)
    t = np.linspace(-6, 6, 4001)
    u, du = 3 * np.sinh(t), 3 * np.cosh(t)  # far into the tails of a Student-t
    for i, column in enumerate(COLUMNS):
        if column.kind not in ("real", "positive"):
            continue
        # Cells v of the file and the width of their steps; a log-Student-t has cells that no float holds.
        kept = np.abs(u) < (60 if column.kind == "positive" else np.inf)
        v, dv = column.loc + column.scale * u[kept], column.scale * du[kept]
        if column.kind == "positive":
            v, dv = np.exp(v), np.exp(v) * dv
        stored = u[kept] if column.date else column.encode(pd.Series(v))[0]
        x = np.zeros((len(v), D), "float32")
        x[:, i] = stored
        p = np.exp(np.asarray(law.column_log_prob(jnp.asarray(x))[:, i], "float64"))
        beyond = 0.0
        if column.kind == "positive" and law.df is not None:
            ends = (np.array([u[kept][0], -u[kept][-1]]) - [law.loc[1], -law.loc[1]]) / law.scale[1]
            beyond = stats.t(float(law.df[1])).cdf(ends).sum()
        np.testing.assert_allclose(integrate.trapezoid(p * dv, t[kept]) + beyond, 1, atol=1e-5, err_msg=column.name)


def test_masses_of_whole_numbers_and_classes_sum_to_one(likelihood, decoded, parameters):
    law = likelihood.distribution(decoded, parameters)
    n = 20_000
    each = np.asarray(law.column_log_prob(jnp.broadcast_to(jnp.arange(n, dtype="float32")[:, None], (n, D))), "float64")
    for i, column in enumerate(COLUMNS):
        k = len(column.values) or n
        if column.kind not in ("real", "positive"):
            np.testing.assert_allclose(np.exp(each[:k, i]).sum(), 1, atol=1e-5, err_msg=column.name)


def test_jacobians_are_those_of_the_transform(likelihood, decoded, parameters):
    """By finite differences of ``encode``, and the same that the law of the row holds."""
    cells = {"height": [150.0, 181.3], "income": [900.0, 24_000.0], "visits": [3.0, 4.0]}
    for column in COLUMNS:
        if column.name not in cells:
            continue
        v = np.asarray(cells[column.name])
        stored = column.encode(pd.Series(v))[0]
        if column.kind != "count":
            h = 3e-3 * v
            slope = (column.encode(pd.Series(v + h))[0] - column.encode(pd.Series(v - h))[0]) / (2 * h)
            np.testing.assert_allclose(column.log_jacobian(stored), np.log(slope), atol=1e-4)
    law = likelihood.distribution(decoded, parameters)
    x = np.tile(np.linspace(-2, 2, 5, dtype="float32")[:, None], (1, D))
    got, at = np.asarray(law.column_log_prob(jnp.asarray(x))), [0, 2, 6]
    df = np.inf if law.df is None else np.asarray(law.df)
    for j, i in enumerate(at):
        noise = stats.norm if law.df is None else stats.t(df[j])
        want = noise.logpdf((x[:, i] - law.loc[j]) / law.scale[j]) - np.log(law.scale[j])
        np.testing.assert_allclose(got[:, i] - want, COLUMNS[i].log_jacobian(x[:, i]), atol=2e-5)


def test_count_law_is_the_negative_binomial_also_where_log_gammas_cancel():
    log_prob = jax.jit(negative_binomial_log_prob)
    cases = [(m, r) for m in (0.1, 3.0, 50.0, 1e5, 1e6, 1e7) for r in (0.3, 8.0, 1e4, 1e6)]
    for m, r in cases:
        sd = np.sqrt(m + m**2 / r)
        k = np.maximum(np.floor([0, 1, 5, m, m - 2 * sd, m + 3 * sd]), 0)
        got = log_prob(jnp.float32(k), jnp.float32(m), jnp.float32(r))
        want = stats.nbinom.logpmf(k, r, r / (r + m))
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-4, err_msg=f"m {m}, r {r}")
    slope = jax.grad(lambda a: negative_binomial_log_prob(jnp.arange(3.0), a[0], a[1]).sum())(jnp.array([5.0, 2.0]))
    want = sum(np.array([k / 5 - (k + 2) / 7]) for k in range(3))
    np.testing.assert_allclose(slope[0], want[0], rtol=1e-5)
    draws = np.asarray(negative_binomial_sample(KEY, jnp.full(20_000, 4.0), jnp.full(20_000, 2.0)))
    np.testing.assert_allclose([draws.mean(), draws.var()], [4, 12], rtol=0.06)


def test_a_missing_entry_leaves_its_factor_out(likelihood, decoded, parameters, rows):
    x, there = jnp.asarray(rows["x"]), jnp.asarray(rows["there"])
    law = likelihood.distribution(jnp.tile(decoded, (40, 1)), parameters, there)
    each = np.asarray(law.column_log_prob(x))
    np.testing.assert_allclose(law.log_prob(x), (each * rows["there"]).sum(-1), rtol=1e-5, atol=1e-5)
    full = likelihood.distribution(jnp.tile(decoded, (40, 1)), parameters)
    np.testing.assert_allclose(full.log_prob(x), each.sum(-1), rtol=1e-5)
    garbage = jnp.where(there, x, 1e4)  # whatever stands there does not matter
    np.testing.assert_allclose(law.log_prob(garbage), law.log_prob(x), rtol=1e-6)


def test_missing_entries_of_a_linear_gaussian_model_are_those_of_its_closed_form():
    """``z ~ N(0, I)``, stored ``x = W z + b + s e``: log p of what is there by quadrature over z."""
    columns = tuple(
        Column(f"c{i}", kind, loc=float(i), scale=0.5 + i) for i, kind in enumerate(["real", "positive", "real"])
    )
    rng = np.random.default_rng(0)
    W, b, s = rng.normal(size=(3, 2)), rng.normal(size=3), np.array([0.4, 0.7, 0.5])
    likelihood = Columns(columns=columns)
    node, weight = np.polynomial.hermite_e.hermegauss(60)
    z = np.stack(np.meshgrid(node, node), -1).reshape(-1, 2)
    log_w = np.log(np.outer(weight, weight).ravel() / (2 * np.pi))
    parameters = {"log_scale": jnp.log(jnp.asarray(s - 1e-3, "float32"))}
    decoded = jnp.asarray(z @ W.T + b, "float32")
    x = rng.normal(size=3).astype("float32")
    for there in ([1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 1]):
        known = np.asarray(there, bool)
        law = likelihood.distribution(decoded, parameters, jnp.asarray(known))
        got = np.logaddexp.reduce(np.asarray(law.log_prob(jnp.asarray(x)), "float64") + log_w)
        cov = (W @ W.T + np.diag(s**2))[np.ix_(known, known)]
        want = stats.multivariate_normal(b[known], cov).logpdf(x[known])
        want += sum(columns[i].log_jacobian(x[i]) for i in np.flatnonzero(known))
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_correlated_columns_are_one_gaussian_and_its_marginals():
    """Any missing entries: log p is that of the block of the covariance that is there, in the units of the file."""
    columns = (COLUMNS[0], COLUMNS[4], COLUMNS[2], COLUMNS[6])
    rng = np.random.default_rng(2)
    root = rng.normal(size=(3, 3))
    cov = root @ root.T + 0.3 * np.eye(3)
    scale, whitening = from_covariance(cov)
    likelihood = Columns(columns=columns, correlated=True)
    parameters = {
        "log_scale": jnp.asarray(np.log(scale - likelihood.floors()), "float32"),
        "whitening": jnp.asarray(whitening, "float32"),
    }
    x, b = rng.normal(size=4).astype("float32"), rng.normal(size=4)
    x[1] = 1.0
    masks = np.array([[1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 0, 1], [0, 1, 0, 0], [1, 1, 0, 0]], bool)
    law = likelihood.distribution(jnp.asarray(b, "float32"), parameters, jnp.asarray(masks))
    got, gaussian = np.asarray(law.log_prob(jnp.asarray(x))), np.array([0, 2, 3])
    for there, log_p in zip(masks, got, strict=True):
        known = there[gaussian]
        want = stats.bernoulli.logpmf(1, 1 / (1 + np.exp(-b[1]))) * there[1]
        if known.any():
            block = cov[np.ix_(known, known)]
            want += stats.multivariate_normal(b[gaussian][known], block).logpdf(x[gaussian][known])
        want += sum(columns[i].log_jacobian(x[i]) for i in np.flatnonzero(there))
        np.testing.assert_allclose(log_p, want, atol=1e-4)
    full = likelihood.distribution(jnp.asarray(b, "float32"), parameters)
    np.testing.assert_allclose(full.log_prob(jnp.asarray(x)), got[0], rtol=1e-5)
    draws = np.asarray(full.sample(KEY, (4000,)))[:, gaussian]
    np.testing.assert_allclose(np.cov(draws.T), cov, atol=0.12 * np.abs(cov).max())


def test_every_number_of_the_decoder_moves_its_own_column_only(likelihood, decoded, parameters, rows):
    slices = likelihood.slices()
    assert sorted(i for s in slices.values() for i in range(s.start, s.stop)) == list(
        range(likelihood.outputs - 3 * (likelihood.scales == "decoded"))
    )
    x = jnp.asarray(np.abs(rows["x"][0]))
    moved = jax.jacobian(lambda f: likelihood.distribution(f, parameters).column_log_prob(x))(decoded)
    for i, column in enumerate(COLUMNS):
        expected = set(range(*slices[column.name].indices(likelihood.outputs)))
        if likelihood.scales == "decoded" and i in (0, 2, 6):
            expected.add(likelihood.outputs - 3 + [0, 2, 6].index(i))
        assert set(np.flatnonzero(np.abs(moved[i]) > 1e-9)) == expected, column.name


def test_the_start_of_the_decoder_is_the_marginal_fit(likelihood, rows):
    law = likelihood.distribution(jnp.asarray(likelihood.start(rows)), likelihood.parameters())
    for i, (name, mean) in enumerate(law.mean_of().items()):
        known, column = rows["x"][rows["there"][:, i], i], COLUMNS[i]
        if column.kind in ("real", "positive", "count"):
            np.testing.assert_allclose(mean, known.mean(), rtol=1e-4, err_msg=name)
        else:
            k = len(column.values)
            share = (np.bincount(known.astype(int), minlength=k) + 0.5) / (len(known) + k / 2)
            np.testing.assert_allclose(mean, share if column.kind == "categorical" else share[1], rtol=1e-5)
    gaussian = np.asarray(law.scale)
    np.testing.assert_allclose(gaussian, 1, rtol=1e-6)


def test_draws_have_the_moments_of_the_law(likelihood, decoded, parameters):
    law = likelihood.distribution(decoded, parameters)
    draws = np.asarray(law.sample(KEY, (4000,)))
    assert draws.shape == (4000, D) and law.event_shape == (D,)
    likelihood.check({"x": draws, "there": np.ones(draws.shape, bool)})
    for i, (name, mean) in enumerate(law.mean_of().items()):
        x, k = draws[:, i], len(COLUMNS[i].values)
        if COLUMNS[i].kind == "categorical":
            share = np.bincount(x.astype(int), minlength=k) / 4000
            np.testing.assert_allclose(share, mean, atol=0.04, err_msg=name)
        else:
            assert abs(x.mean() - mean) < 5 * x.std() / np.sqrt(4000), name


def test_the_law_is_a_pytree_that_is_mapped_and_compiled(rows):
    likelihood = Columns(columns=COLUMNS, robust=True, scales="decoded")
    decoded, parameters = jnp.linspace(-1, 1, likelihood.outputs), likelihood.parameters()
    there, x = jnp.asarray(rows["there"]), jnp.asarray(rows["x"])
    law = likelihood.distribution(jnp.tile(decoded, (40, 1)), parameters, there)
    want = law.log_prob(x)
    np.testing.assert_allclose(jax.vmap(lambda one, v: one.log_prob(v))(law, x), want, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda one: one.log_prob(x))(law), want, rtol=1e-5)
    several = likelihood.distribution(jnp.tile(decoded, (3, 40, 1)), parameters, there)
    assert several.batch_shape == (3, 40) and several.log_prob(x).shape == (3, 40)
    np.testing.assert_allclose(several.log_prob(x)[1], want, rtol=1e-5)


def test_rows_are_sites_of_a_stock_model(rows):
    """Under stock handlers, with the raw keys that they pass on."""
    likelihood, there, x = Columns(columns=COLUMNS), jnp.asarray(rows["there"]), jnp.asarray(rows["x"])
    decoded = jnp.zeros((40, likelihood.outputs))

    def model(x=None, there=None):
        with numpyro.plate("rows", 40):
            numpyro.sample("x", likelihood.distribution(decoded, likelihood.parameters(), there), obs=x)

    trace = numpyro.handlers.trace(numpyro.handlers.seed(model, jax.random.PRNGKey(0)))
    assert trace.get_trace()["x"]["value"].shape == (40, D)
    site = trace.get_trace(x, there)["x"]
    want = likelihood.distribution(decoded, likelihood.parameters(), there).log_prob(x)
    np.testing.assert_allclose(site["fn"].log_prob(site["value"]), want, rtol=1e-5)


def test_an_encoder_sees_standardised_numbers_classes_and_the_mask():
    likelihood = Columns(columns=COLUMNS[:5])
    x = {"x": np.array([[1.5, 2, -0.3, 4, 0], [7, 1, 7, 7, 1]], "float32"), "there": np.ones((2, 5), "uint8")}
    x["there"][1] = 0
    ready = likelihood.prepare({name: jnp.asarray(leaf) for name, leaf in x.items()}, KEY, True)
    np.testing.assert_array_equal(ready["x"][1], 0)
    seen = np.asarray(likelihood.encode(ready))
    assert seen.shape == (2, likelihood.features)
    np.testing.assert_allclose(seen[0], [1.5, -0.3, (np.log(5) - 1.3) / 0.8, -1, 0, 0, 1, *[1] * 5], rtol=1e-6)
    np.testing.assert_array_equal(seen[1], 0)


def test_no_density_exceeds_one_a_step_of_the_file(likelihood, decoded):
    """A scale that collapses stays at the resolution of the column, here 0.5."""
    collapsed = {name: jnp.full_like(value, -60.0) for name, value in likelihood.parameters().items()}
    law = likelihood.distribution(decoded, collapsed)
    x = jnp.zeros(D).at[0].set(law.loc[0])
    assert float(law.column_log_prob(x)[0]) <= np.log(1 / 0.5) + 1e-5


def test_the_line_is_of_the_table_and_not_of_the_model():
    lines = {Columns(columns=COLUMNS, floor=floor, **kw).observation() for kw in VARIANTS for floor in (1e-3, 0.01)}
    (line,) = lines
    assert line.startswith("9 columns of a table: height real, kind categorical of 3, income positive, visits count")
    assert "units of the file" in line and "missing entries summed out" in line
    other = Columns(columns=COLUMNS[:-1])
    assert other.observation() != line
    assert "NB" in other.symbols() and "NB" not in Columns(columns=COLUMNS[:3]).symbols()


def test_json_round_trip(likelihood):
    adapter = TypeAdapter(Columns)
    text = json.dumps(adapter.dump_python(likelihood, mode="json"))
    back = adapter.validate_json(text, strict=True)
    assert back == likelihood and hash(back) == hash(likelihood)
    kinds = [[type(value) for value in column.values] for column in back.columns]
    assert kinds == [[type(value) for value in column.values] for column in COLUMNS]
    with pytest.raises(ValidationError, match="Unexpected keyword argument"):
        adapter.validate_json(text.replace('"loc"', '"lok"', 1), strict=True)


BAD = {
    "no_dict": (lambda x: x["x"], "dict of 'x' and 'there', got ndarray"),
    "no_mask": (lambda x: {"x": x["x"]}, r"got a dict of \['x'\]"),
    "width": (lambda x: {name: leaf[:, 1:] for name, leaf in x.items()}, r"shape \(N, 9\), got \(40, 8\)"),
    "one_row": (lambda x: {name: leaf[0] for name, leaf in x.items()}, r"shape \(N, 9\), got \(9,\)"),
    "empty": (lambda x: {name: leaf[:0] for name, leaf in x.items()}, "empty"),
    "nothing": (lambda x: {**x, "there": np.zeros((40, D), bool)}, "every entry of every row is missing"),
    "nan": (lambda x: cell(x, 0, np.nan), r"'height' \(real\), row 2: expected finite"),
    "class": (lambda x: cell(x, 1, 3), r"'kind' \(categorical\), row 2: expected a code 0..2, got 3"),
    "fraction": (lambda x: cell(x, 3, 1.5), r"'visits' \(count\), row 2: expected a whole number"),
    "mask_dtype": (lambda x: {**x, "there": x["there"].astype(float)}, "'there' bool"),
}


def cell(x, i, value):
    found, there = x["x"].copy(), x["there"].copy()
    found[2, i], there[2, i] = value, True
    return {"x": found, "there": there}


@pytest.mark.parametrize("case", BAD)
def test_data_that_are_no_rows_are_refused(case, rows):
    change, message = BAD[case]
    Columns(columns=COLUMNS).check(rows)
    with pytest.raises(ValueError, match=message):
        Columns(columns=COLUMNS).check(change(rows))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Columns(columns=()), "at least one column"),
        (lambda: Columns(columns=COLUMNS[:1] * 2), r"\['height'\] more than once"),
        (lambda: Columns(columns=COLUMNS, floor=0.0), "floor is a standard deviation"),
        (lambda: Column("a", "real", scale=0.0), "scale > 0"),
        (lambda: Column("a", "binary", values=("x",)), r"has two values, got \('x',\)"),
        (lambda: Column("a", "real", values=(1, 2)), r"has no values, got \(1, 2\)"),
        (lambda: Column("a", "categorical", values=(1, 1.0, 2)), "must differ"),
        (lambda: Column("a", "categorical", values=(1, float("nan"))), "must be finite"),
        (lambda: Column("a", "count", date=True), "dates are scored as real"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_columns_of_one_kind_alone_are_a_table():
    for column in COLUMNS[:5]:
        likelihood = Columns(columns=(dataclasses.replace(column, name="only"),))
        law = likelihood.distribution(jnp.zeros((2, likelihood.outputs)), likelihood.parameters())
        log_p = law.log_prob(law.sample(KEY))
        assert log_p.shape == (2,) and np.isfinite(log_p).all()
