"""The report: one page that loads nothing, says everything, and outlives a broken figure."""

import base64
import dataclasses
from html.parser import HTMLParser
from pathlib import Path

import jax
import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from inference.checking.diagnostics import assemble
from inference.fitting import Fit
from inference.reporting import compare_report, drawn as _drawn, report
from ppl_models.program import Check, Panel
from tests.inference.checking.test_criticism import fitted
from tests.toy import register_toy, toy_data

KEY = jax.random.key(0)
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Collects what a browser would load, checks that tags close in order, keeps the visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads, self.images, self.stack, self.text, self.ids, self.links = [], [], [], [], set(), []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.stack

    def handle_starttag(self, tag: str, attrs: list) -> None:
        given = dict(attrs)
        self.loads += [v for k, v in attrs if k in ("src", "srcset", "data", "poster", "action")]
        self.loads += [given["href"]] if tag == "link" else []
        self.links += [given["href"]] if tag == "a" else []
        self.ids |= {given["id"]} if "id" in given else set()
        assert tag not in ("script", "iframe", "object", "embed")
        assert not any(name.startswith("on") for name in given)
        if tag == "img":
            self.images.append(given)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.stack or self.stack[-1] != "style":
            self.text.append(data)

    @property
    def said(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return toy_data(60)


def fake_tree(x: np.ndarray) -> xr.DataTree:
    """A tree of the documented groups with four draws."""
    rng, dims = np.random.default_rng(0), ("chain", "draw", "datum")
    replicated = x + 0.5 * rng.normal(size=(1, 4, *x.shape))
    groups = {
        "posterior": {"z": ((*dims, "unit_z"), rng.normal(size=(1, 4, len(x), 2)) + x[:, :2])},
        "posterior_predictive": {"x": ((*dims, "x_dim_0"), replicated)},
        "prior_predictive": {"x": ((*dims, "x_dim_0"), replicated)},
        "reconstruction": {"x": (("datum", "x_dim_0"), x)},
        "observed_data": {"x": (("datum", "x_dim_0"), x)},
    }
    return xr.DataTree.from_dict({f"/{name}": xr.Dataset(group) for name, group in groups.items()})


def fake_table(n: int) -> pd.DataFrame:
    """An evidence table of the documented columns."""
    log_px = np.random.default_rng(1).normal(-5, 1, n)
    table = pd.DataFrame({"datum": np.arange(n), "log_px": log_px, "se": 0.01, "elbo": log_px - 0.1, "ess": 90.0})
    table["khat"] = 0.2
    table.attrs = {
        "particles": 100,
        "dims": 4,
        "bits_offset": None,
        "estimator": "importance",
        "observation": "x in R^d",
    }
    return table


def broken() -> object:
    raise RuntimeError("no <such> thing")


@pytest.fixture(scope="module")
def fit(x: np.ndarray) -> Fit:
    register_toy()
    plain = fitted(np.array([[2.0, 0.0], [1.0, 1.0], [0.0, -1.5], [0.5, 0.5]]))
    panels = [
        Panel("empty axes", "Own figure. Good: empty.", matplotlib.figure.Figure),
        Panel("broken", "Never seen.", broken),
    ]
    own = Check("a & b", 1.0, "<= 0", "fail", "a < b", "c > d")
    views = dataclasses.replace(
        plain.program.views, panels=lambda fit, x, factors, tree: panels, checks=lambda tree: [own]
    )
    program = dataclasses.replace(plain.program, views=views)
    history = pd.DataFrame({"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0], "elbo": [-3.0, -2.0, -1.0], "kl/z": 1.0})
    return dataclasses.replace(plain, program=program, history=history, card={"name": "<b>toy</b> & co"})


@pytest.fixture(scope="module")
def page(fit: Fit, x: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    (out / "posterior.nc").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_drawn, "DPI", 25)
        tree, table = fake_tree(x), fake_table(len(x))
        verdict = assemble(fit, table, tree, {"z": np.ones(len(x))})
        return report(fit, x, key=KEY, factors={"sign": x[:, 0] > 0}, tree=tree, table=table, verdict=verdict, out=out)


def test_the_page_loads_nothing_and_its_pictures_are_inside(page: Path) -> None:
    read = Page(page)
    assert read.images
    for image in read.images:
        kind, data = image["src"].split(",", 1)
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
        assert len(image["alt"]) > 20
    assert all(source.startswith("data:") for source in read.loads)
    assert all(link.startswith("#") and link[1:] in read.ids for link in read.links)
    assert "url(" not in page.read_text() and "@import" not in page.read_text()
    assert {path.suffix for path in (page.parent / "figures").iterdir()} == {".png"}


def test_the_page_says_what_was_declared_and_what_was_found(page: Path, fit: Fit) -> None:
    said = Page(page).said
    assert "test_ppca fitted to <b>toy</b> & co" in said
    assert fit.program.views.density[0] in said
    assert fit.program.observation.line in said
    for what in ("Verdict", "Training", "Diagnosis", "Pareto k-hat > 0.7", "rate of z", "open_datatree"):
        assert what in said
    assert "history.csv" not in said  # only what lies beside the page is listed
    # Worst first: the failed line stands before the table of all checks.
    assert said.index("a & b") < said.index("non-finite values")
    assert "A < b." in said and "C > d." in said


def test_a_broken_figure_leaves_its_error_and_a_line_at_the_top(page: Path) -> None:
    said = Page(page).said
    assert "1 part(s) of this page could not be drawn: broken" in said
    assert "RuntimeError: no <such> thing" in said
    assert "Own figure" in said


def test_a_report_needs_a_folder_and_matching_factors(fit: Fit, x: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="out="):
        report(fit, x, key=KEY)
    with pytest.raises(ValueError, match="one value a datum"):
        report(fit, x, key=KEY, factors={"f": np.arange(3)}, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_comparison_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_drawn, "DPI", 25)
    frame = pd.DataFrame(
        {"rank": [0, 1], "elpd_diff": [0.0, -30.0], "dse": [0.0, 5.0], "weight": [0.9, 0.1], "n": 60},
        index=["one <i>", "two"],
    )
    frame.attrs = {"observation": "x in R^d"}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "report.html").write_text("there")
    path = compare_report(frame, {"one <i>": tmp_path / "a", "two": tmp_path / "b"}, tmp_path / "c")
    read = Page(path)
    assert path == tmp_path / "c" / "comparison.html"
    assert read.links == ["../a/report.html"]
    assert "‘one <i>’ describes these data better than ‘two’, by 30 nats, 6.0 standard errors." in read.said
    assert len(read.images) == 1
    assert "With care" not in read.said
    assert "up to 40 %" in Page(compare_report(frame.assign(khat_bad=[0.0, 0.4]), {}, tmp_path / "bad.html")).said
    near = frame.assign(dse=[0.0, 25.0])
    assert "not told apart" in Page(compare_report(near, {}, tmp_path / "near.html")).said
