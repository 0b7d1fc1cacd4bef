"""Pages on tables: intervals and differences against closed forms; every figure draws every kind of column."""

import numpy as np
import pandas as pd
import pytest

from inference.reporting import table_figures, table_profiles
from ppl_models.program import Column

COLUMNS = (
    Column("age", "real", loc=50.0, scale=10.0), Column("crp", "positive", loc=1.0, scale=0.5), Column("n", "count"),
    Column("smoker", "binary", values=("no", "yes")), Column("site", "categorical", values=("e", "n", "w")),
    Column("seen", "real", loc=19_000.0, scale=100.0, date=True),
)  # fmt: skip
N = 40
LABEL = np.arange(N) % 2


@pytest.fixture(scope="module")
def rows():
    r = np.random.default_rng(0)
    x = np.stack(
        [r.normal(LABEL), r.normal(size=N), r.poisson(2 + LABEL), LABEL, r.integers(0, 3, N), r.normal(size=N)], 1
    )
    there = r.random(x.shape) < 0.8
    return x.astype("float32"), there


def test_intervals_are_those_of_student_and_wilson(rows):
    from scipy import stats

    x, there = rows
    found = {f.name: f for f in table_profiles.features(COLUMNS, x, there)}
    assert list(found) == ["age", "crp", "n", "smoker = yes", "site = e", "site = n", "site = w", "seen"]
    mine = (LABEL == 1) & there[:, 0]
    v = 50 + 10 * x[mine, 0].astype(float)
    low, high = stats.t.interval(0.95, len(v) - 1, v.mean(), stats.sem(v))
    assert table_profiles.interval(found["age"], LABEL == 1) == f"{v.mean():.4g} ({low:.4g} to {high:.4g})"
    k = int(there[LABEL == 1, 3].sum())
    ends = stats.binomtest(k, k).proportion_ci(method="wilson")
    assert table_profiles.interval(found["smoker = yes"], LABEL == 1) == f"100% ({ends.low:.0%} to {ends.high:.0%})"
    geometric = np.exp(np.mean(1 + 0.5 * x[there[:, 1], 1].astype(float)))
    assert table_profiles.interval(found["crp"], np.ones(N, bool)).startswith(f"{geometric:.4g} (")
    assert table_profiles.interval(found["seen"], LABEL == 0).startswith("202")


def test_differences_are_in_standard_deviations_of_what_is_there(rows):
    x, there = rows
    found = table_profiles.features(COLUMNS, x, there)
    apart = table_profiles.differences(found, LABEL, [0, 1])
    v, known = 50 + 10 * x[:, 0].astype(float), there[:, 0]
    gap = v[known & (LABEL == 1)].mean() - v[known & (LABEL == 0)].mean()
    assert apart[1, 0] == pytest.approx(gap / v[known].std(), rel=1e-6) and apart[0, 0] == pytest.approx(-apart[1, 0])
    page = table_profiles.profile_table("group", found, LABEL, [0, 1])
    assert page.index("smoker = yes") < page.index("age") and "20 rows, 50%" in page


def test_typical_rows_are_the_surest_and_most_complete(rows):
    x, there = rows
    there = there.copy()
    there[[5, 9]] = True
    p = np.full((N, 2), 0.0)
    p[np.arange(N), LABEL] = 0.9
    p[[5, 7, 9], 1] = 0.99
    there[7, 2] = False
    p[:, 0] = 1 - p[:, 1]
    log_px = np.zeros(N)
    log_px[9], log_px[7] = -1.0, 10.0
    names = [f"row{i}" for i in range(N)]
    page = table_profiles.typical_table("group", COLUMNS, x, there, p, log_px, [1], names)
    assert page.index("row5<") < page.index("row9<") < page.index("row7<")
    table = pd.DataFrame({"log_px": -np.arange(N, dtype=float), "khat": np.where(np.arange(N) == 39, 0.9, 0.1)})
    lowest = table_profiles.lowest_table(COLUMNS, x, there, table, names)
    assert lowest.index("row39<") < lowest.index("row38<") and lowest.count("k-hat") == 1


def test_every_kind_of_column_is_drawn(rows):
    x, there = rows
    drawn = np.stack([x] * 3)
    for figure in (
        table_figures.predicted(COLUMNS, x, there, drawn),
        table_figures.beside(COLUMNS, x, there, drawn.reshape(-1, 6)),
    ):
        shown = [axis.get_title(loc="left") for axis in figure.axes if axis.get_title(loc="left")]
        assert shown == [column.name for column in COLUMNS]
        figure.canvas.draw()
    nothing = np.zeros_like(there)
    table_figures.predicted(COLUMNS, x, nothing, drawn).canvas.draw()
    table_figures.beside(COLUMNS, x, nothing, drawn[0]).canvas.draw()
    many = tuple(Column(f"c{d}", "real") for d in range(30))
    wide = np.zeros((4, 30), "float32")
    assert len(table_figures.beside(many, wide, wide == 0, wide).axes) == table_figures.SHOWN
    assert "24 of 30" in table_figures.left_out(many) and not table_figures.left_out(COLUMNS)
