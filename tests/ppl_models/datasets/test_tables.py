"""Tables as they come: what each column is taken for, stored numbers and the way back, what is refused by name."""

import decimal
import sys

import numpy as np
import pandas as pd
import pytest
import sklearn.datasets

from ppl_models.datasets import Table, catalogue, decode_frame, encode_frame, read_table, table
from ppl_models.datasets.kinds import resolution
from ppl_models.program import Column

N = 200
DATES = pd.date_range("2020-01-01", periods=N)


@pytest.fixture(scope="module")
def ugly():
    """A frame with a column of every sort."""
    r = np.random.default_rng(0)
    frame = {
        "patient_id": r.permutation(N) * 7 + 1000,
        "row": np.arange(N),
        "größe": r.normal(170, 10, N).round(1),
        "收入": np.exp(r.normal(10, 1, N)).round(2),
        "visits": r.poisson(3 * r.gamma(1, 1, N)),
        "children": r.integers(0, 5, N),
        "year": r.integers(1950, 2020, N),
        "smoker": r.choice(["yes", "no"], N),
        "flag": r.random(N) > 0.5,
        "maybe": r.choice(np.array([True, False, None], object), N),
        "grade": r.choice(["b", "a", "c", None], N),
        "size": pd.Categorical(r.choice(["s", "m", "l"], N), categories=["s", "m", "l", "xl"]),
        "dose": r.choice([0.1, 0.25, 0.5], N),
        "as_text": [str(i / 7) if i % 9 else "n/a" for i in range(N)],
        "codes": r.choice(["1", "2", "x"], N),
        "nullable": pd.array(r.integers(0, 300, N), dtype="Int64"),
        "const": 1.0,
        "empty": np.nan,
        "empty_text": None,
        "date": DATES,
        "date_text": DATES.strftime("%Y-%m-%d"),
        "date_local": DATES.strftime("%d.%m.%Y"),
        "clock": DATES.strftime("%H:%M"),
        "span": pd.to_timedelta(r.integers(0, 9, N), unit="D"),
        "note": [f"text {i}" for i in range(N)],
    }
    frame = pd.DataFrame(frame, index=pd.Index([f"p{i}" for i in range(N)], name="who"))
    frame.loc["p3":"p20", "收入"] = np.nan
    frame.loc["p5", "nullable"] = pd.NA
    frame.loc[frame.index[0], "clock"] = "12:30"
    return frame


@pytest.fixture(scope="module")
def found(ugly):
    return table(ugly)


def test_kinds(found):
    kinds = {
        "größe": "real", "收入": "positive", "visits": "count", "children": "categorical", "year": "real",
        "smoker": "binary", "flag": "binary", "maybe": "binary", "grade": "categorical", "size": "categorical",
        "dose": "categorical", "as_text": "real", "codes": "categorical", "nullable": "real",
    }  # fmt: skip
    assert {column.name: column.kind for column in found.columns} == kinds
    reasons = {
        "patient_id": "an id: its name", "row": "an id: consecutive", "const": "constant",
        "empty": "every entry is missing", "empty_text": "every entry is missing", "date": "'real'} takes dates",
        "date_text": "'real'} takes dates", "date_local": "dates or times as text", "clock": "dates or times",
        "span": "pandas.Timedelta", "note": "free text or an id: 200 different",
    }  # fmt: skip
    assert {name: why for name, why in reasons.items() if why not in found.left_out[name]} == {}
    assert set(found.left_out) == set(reasons)


def test_every_column_of_the_file_is_described(found, ugly):
    shown = found.describe()
    assert list(shown) == ["column", "kind", "missing", "distinct", "range", "why"]
    assert list(shown["column"]) == list(ugly.columns)
    row = shown.set_index("column").loc
    assert row["收入"]["missing"] == pytest.approx(18 / N) and row["as_text"]["missing"] == pytest.approx(23 / N)
    assert row["children"]["distinct"] == 5 and row["flag"]["range"] == "False, True"
    assert "% of the entries are numbers" in row["codes"]["why"]
    assert "log p by itself: count" in row["visits"]["why"]


def test_classes_keep_their_order_and_type(found):
    values = {column.name: column.values for column in found.columns if column.values}
    assert values["flag"] == (False, True) and type(values["maybe"][0]) is bool
    assert values["children"] == (0, 1, 2, 3, 4) and type(values["children"][0]) is int
    assert values["dose"] == (0.1, 0.25, 0.5) and values["grade"] == ("a", "b", "c")
    assert values["size"] == ("s", "m", "l", "xl") and values["codes"] == ("1", "2", "x")


def test_stored_numbers(found, ugly):
    x, there = found.x["x"], found.x["there"]
    at = {column.name: i for i, column in enumerate(found.columns)}
    assert x.dtype == "float32" and there.dtype == bool and x.shape == (N, len(found.columns)) == there.shape
    assert (x[~there] == 0).all()
    np.testing.assert_array_equal(there[:, at["收入"]], ugly["收入"].notna())
    for name, cells in {"größe": ugly["größe"], "收入": np.log(ugly["收入"])}.items():
        known, stored = cells[cells.notna()], x[there[:, at[name]], at[name]]
        np.testing.assert_allclose(stored, (known - known.mean()) / known.std(ddof=0), atol=1e-6)
    np.testing.assert_array_equal(x[:, at["visits"]], ugly["visits"])
    np.testing.assert_array_equal(x[:, at["smoker"]], ugly["smoker"] == "yes")


def test_back_to_the_units_of_the_file(found, ugly):
    back = found.decode(found.x, index=found.index)
    assert list(back.index) == list(ugly.index)
    for column in found.columns:
        name, want = column.name, ugly[column.name]
        if name == "as_text":
            want = pd.to_numeric(want, errors="coerce")
        if column.kind in ("real", "positive"):
            np.testing.assert_allclose(back[name], want.to_numpy("float64", na_value=np.nan), rtol=1e-5, atol=1e-5)
        else:
            lost = want.isna().to_numpy()
            assert list(back[name].isna()) == list(lost)
            assert list(back[name][~lost]) == list(want[~lost])
    # Recorded to a tenth, written to a tenth.
    np.testing.assert_array_equal(back["größe"], ugly["größe"])
    again = found.encode(back)
    np.testing.assert_array_equal(again["there"], found.x["there"])
    np.testing.assert_allclose(again["x"], found.x["x"], atol=2e-6)


def test_one_row_and_the_columns_alone_are_enough_to_encode(found, ugly):
    one = found.encode(ugly.iloc[[7]])
    np.testing.assert_array_equal(one["x"][0], found.x["x"][7])
    only = encode_frame(found.columns, ugly[[column.name for column in found.columns[::-1]]])
    np.testing.assert_array_equal(only["x"], found.x["x"])
    assert decode_frame(found.columns, only["x"]).notna().all().all()
    with pytest.raises(ValueError, match=r"columns \['visits'\] are not in the frame"):
        encode_frame(found.columns, ugly.drop(columns="visits"))
    with pytest.raises(ValueError, match=r"columns \['Größe'\] are not in the table"):
        found.encode(ugly.assign(Größe=1))


def test_labels_and_index_are_kept_out(ugly):
    with_labels = table(ugly.reset_index(), labels=["grade", "children"], index="who")
    assert list(with_labels.index) == list(ugly.index) and len(with_labels) == N
    assert not {"grade", "children", "who"} & {column.name for column in with_labels.columns}
    codes, words = with_labels.factors["grade"], with_labels.label_values["grade"]
    assert words == ("a", "b", "c") and codes.dtype == "int32"
    assert [words[c] if c >= 0 else None for c in codes] == [g if isinstance(g, str) else None for g in ugly["grade"]]
    assert with_labels.label_values["children"] == ("0", "1", "2", "3", "4")
    with_labels.encode(ugly.drop(columns=["grade"]))


def test_kinds_are_overridden(ugly):
    asked = {"year": "categorical", "patient_id": "real", "visits": "drop", "date": "real", "date_text": "real"}
    got = table(ugly, kinds={**asked, "children": "count", "const": "real"})
    kinds = {column.name: column.kind for column in got.columns}
    assert {name: kinds.get(name, "drop") for name in asked} == asked and kinds["children"] == "count"
    assert got.left_out["visits"] == "asked for"
    back = got.decode(got.x)
    np.testing.assert_array_equal(back["date"], DATES)
    np.testing.assert_array_equal(back["date_text"], DATES)
    days = next(column for column in got.columns if column.name == "date")
    assert days.date and days.resolution == 1
    np.testing.assert_allclose(days.loc, (DATES - pd.Timestamp(0)).days.to_numpy().mean())


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("wine", {"positive": 4, "real": 9}),
        ("breast_cancer", {"positive": 19, "real": 11}),
        ("diabetes", {"real": 9, "binary": 1}),
    ],
)
def test_known_tables(name, kinds):
    frame = getattr(sklearn.datasets, f"load_{name}")(as_frame=True).frame
    got = table(frame, labels="target")
    assert pd.Series([column.kind for column in got.columns]).value_counts().to_dict() == kinds
    assert not got.left_out and got.x["there"].all()


def test_steps_of_a_file():
    r = np.random.default_rng(0)
    cases = {0.01: r.normal(size=500).round(2), 5.0: 5.0 * r.integers(3, 40, 500) + 2, 0.0: r.normal(size=500)}
    cases[0.0371] = 0.0371 * r.integers(-50, 50, 500) + 0.123456789
    cases[0.5] = np.append(r.integers(0, 90, 500) / 2, 1.234567)  # but for one slip
    for step, v in cases.items():
        np.testing.assert_allclose(resolution(v, np.unique(v)), step, rtol=1e-6, atol=1e-12)


def frame(values, name="a", **more):
    return pd.DataFrame({name: values, "b": np.linspace(0, 1, len(values)) ** 2, **more})


MIXED = ["1.5", "2.5", "3.5", "oops", "4.5", "5.5", "6.5", "7.5"]
REFUSED = {
    "text among numbers": (frame(MIXED), {}, "column 'a', row 3: must be a number, got 'oops'; try kinds="),
    "mixed decimals": (frame(["1.5", "2,5", "3.5", "4,5"]), {}, "'a' holds numbers with commas, such as '2,5' among"),
    "decimal commas": (frame(["1,5", "2,5", "3,5", "4,5"]), {}, "decimal=','"),
    "thousands": (frame(["1,500", "2,500", "3,500.2"]), {}, "thousands=','"),
    "infinite": (frame([1.0, np.inf, 2.5, 3.5]), {}, "column 'a', row 1: must be finite, got inf"),
    "infinite text": (frame(["1.5", "inf", "2.5", "3"]), {}, "row 1: must be finite"),
    "lists": (frame([[1], [2], [3]]), {}, "'a' holds entries that are no single numbers"),
    "complex": (frame([1j, 2j, 3j]), {}, "'a' holds complex numbers; make two columns"),
    "not positive": (frame([1.0, 0.0, 2.5]), {"a": "positive"}, "'a', row 1: must be above 0, got .*0.0"),
    "no count": (frame([1.0, 2.5, 3.0]), {"a": "count"}, r"'a', row 1: must be whole, 0\.\.16777215, got .*2.5"),
    "negative count": (frame([1, -2, 3]), {"a": "count"}, "row 1: must be whole"),
    "text as real": (frame(["x", "y", "x"]), {"a": "real"}, "'a', row 0: must be a number, got 'x'"),
    "local dates": (frame(["13.01.2020", "14.01.2020"]), {"a": "real"}, "row 0: must be a date such as 2024-05-31"),
    "three values": (frame([1, 2, 3]), {"a": "binary"}, "a binary column has two different values, got 3"),
    "unknown kind": (frame([1, 2, 3]), {"a": "ordinal"}, "must be one of real, positive"),
    "unknown column": (frame([1, 2, 3]), {"A": "real"}, "kinds names column 'A'"),
    "one row": (frame([1.0]), {}, "at least 2 rows .* got 1"),
    "nothing left": (pd.DataFrame({"a": [1, 1], "b": [None, None]}), {}, "no column is left to model: .*constant"),
    "twice": (pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]), {}, r"different names, got \['a'\]"),
    "no frame": (np.ones((3, 2)), {}, r"DataFrame, got ndarray; say table\(pandas.DataFrame"),
    "a path": ("x.csv", {}, r"table\(read_table"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_named_with_the_remedy(case):
    values, kinds, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        table(values, kinds=kinds)


def test_columns_that_are_refused_may_be_dropped_or_taken_as_classes():
    got = table(frame(MIXED), kinds={"a": "drop"})
    assert got.left_out == {"a": "asked for"}
    got = table(frame(["1,5", "2,5", "1,5"]), kinds={"a": "categorical"})
    assert got.columns[0].values == ("1,5", "2,5")
    assert table(frame([[1], [2]]), kinds={"a": "drop"}).left_out == {"a": "asked for"}


def test_cells_that_a_column_does_not_know():
    grade = Column("grade", "categorical", values=("a", "b", "c"))
    with pytest.raises(ValueError, match="'grade', row 9: must be one of 'a', 'b', 'c', got 'd' .and 1 more"):
        grade.encode(pd.Series(["a", "d", None, "e"], index=[8, 9, 10, 11]))
    number = Column("n", "categorical", values=(1, 2, 3))
    code, there = number.encode(pd.Series([3.0, np.nan, 1.0]))  # a missing entry makes whole numbers floats
    np.testing.assert_array_equal(code, [2, 0, 0])
    np.testing.assert_array_equal(there, [True, False, True])
    np.testing.assert_array_equal(number.encode(pd.Series(["1", " 2 ", "NA"]))[0], [0, 1, 0])
    np.testing.assert_array_equal(Column("t", "binary", values=("1", "x")).encode(pd.Series([1.0, 1.0]))[0], [0, 0])
    np.testing.assert_array_equal(Column("t", "binary", values=(False, True)).encode(pd.Series(["True"]))[0], [1])


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        ([2**60 + 3 * i for i in range(30)], "left out", ()),
        ([1, "x"] * 15, "binary", ("1", "x")),
        ([" 1 ", "2", "3 "] * 10, "categorical", (1, 2, 3)),
        (["12%", "13%", None] * 10, "binary", ("12%", "13%")),
        ([date.date() for date in DATES[:30]], "left out", ()),
        ([decimal.Decimal(i) / 7 for i in range(30)], "real", ()),
        (pd.Categorical([3, 1, None] * 10, categories=[3, 2, 1]), "categorical", (3, 2, 1)),
        (pd.array(["x", None, "y"] * 10, dtype="string"), "binary", ("x", "y")),
        (pd.period_range("2020", periods=30, freq="M"), "left out", ()),
        (np.linspace(0, 1e-30, 30), "real", ()),
    ],
    ids=range(10),
)
def test_odd_cells(cells, kind, values):
    got = table(frame(cells))
    assert got.describe()["kind"][0] == kind
    assert [column.values for column in got.columns if column.name == "a"] == [values] * (kind != "left out")


def write(folder, text, name="a.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def test_files(tmp_path):
    rows = "".join(f"{i / 7:.3f},{'ja' if i % 3 else 'nein'},{i % 2}\n" for i in range(30))
    read = read_table(write(tmp_path, "größe,ja/nein,z\n" + rows))
    assert list(read) == ["größe", "ja/nein", "z"] and len(read) == 30
    tabs = read_table(write(tmp_path, "a\tb\n1,5\tx\n2,5\ty\n", "a.tsv"), decimal=",")
    assert list(tabs["a"]) == [1.5, 2.5]
    semicolons = read_table(
        write(tmp_path, "a;b\n1.000,5;x\n2.000,25;?\n"), decimal=",", thousands=".", na_values=["?"]
    )
    assert list(semicolons["a"]) == [1000.5, 2000.25] and semicolons["b"].isna().tolist() == [False, True]
    latin = write(tmp_path, "größe,b\n1,2\n3,4\n", encoding="latin-1")
    with pytest.raises(ValueError, match="no utf-8-sig text .* try encoding='latin-1'"):
        read_table(latin)
    assert list(read_table(latin, encoding="latin-1")) == ["größe", "b"]


@pytest.mark.parametrize(
    ("text", "name", "error", "message"),
    [
        ("a,b,a\n1,2,3\n", "a.csv", ValueError, "names columns more than once: 'a'"),
        ("1.5,2,3\n1,2,3\n", "a.csv", ValueError, "starts with numbers"),
        ("a,b\n1,2,3\n4,5,6\n", "a.csv", ValueError, "more fields than its first line names"),
        ("a,b\n1,2\n4,5,6\n", "a.csv", ValueError, "more fields than its first line names"),
        ("", "a.csv", ValueError, "'a.csv' is empty"),
        ("a,b\n1,2\n", "a.xlsx", ValueError, r"no table that can be read; expected .csv, .tsv or .parquet"),
        (None, "none.csv", FileNotFoundError, "no file .*none.csv"),
    ],
)
def test_files_that_would_lose_something_are_refused(tmp_path, text, name, error, message):
    path = tmp_path / name if text is None else write(tmp_path, text, name)
    with pytest.raises(error, match=message):
        read_table(path)


def test_parquet_needs_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"needs pyarrow to be read: pip install 'ppl-models\[table\]'"):
        read_table(write(tmp_path, "", "a.parquet"))


def test_parquet(tmp_path, ugly):
    pytest.importorskip("pyarrow")
    kept = ugly.drop(columns=["span", "maybe"])
    kept.to_parquet(tmp_path / "a.parquet")
    got, want = table(read_table(tmp_path / "a.parquet")), table(kept)
    assert got.columns == want.columns
    np.testing.assert_array_equal(got.x["x"], want.x["x"])


def test_many_rows():
    """50,000 rows of 20 columns: a twentieth of what is to be read within seconds."""
    r, n = np.random.default_rng(0), 50_000
    frame = {f"real{i}": r.normal(size=n) for i in range(8)} | {
        f"count{i}": r.negative_binomial(2, 0.05, n) for i in range(6)
    }
    frame |= {f"class{i}": r.choice(["a", "b", "c"], n) for i in range(5)} | {"text": [f"t{i}" for i in range(n)]}
    got = table(pd.DataFrame(frame))
    kinds = pd.Series([column.kind for column in got.columns]).value_counts().to_dict()
    assert kinds == {"real": 8, "count": 6, "categorical": 5} and list(got.left_out) == ["text"]


def test_the_catalogue_is_still_a_call_without_a_frame():
    assert table() == catalogue.table() and isinstance(table(frame([1.0, 2.5, 3.0])), Table)
