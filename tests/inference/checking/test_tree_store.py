"""A posterior tree on disk: the numbers of the one in memory, readable while it grows, exact when it goes on."""

import arviz
import jax
import numpy as np
import pytest
import xarray as xr

from inference.checking import tree_store
from inference.checking.posterior_tree import posterior, save_posterior
from inference.checking.tree_store import MemoryTree, ZarrTree, open_posterior
from tests.closed_forms import linear_gaussian_program

KEY = jax.random.key(0)
DATA = 30
OPTIONS = {"draws": 40, "key": KEY, "chunk": 280, "progress": False}  # seven data a block, 28 of replicated data

pytest.importorskip("zarr")


@pytest.fixture(scope="module")
def form():
    return linear_gaussian_program()


@pytest.fixture(scope="module")
def x(form):
    return form.sample(jax.random.key(7), DATA)


@pytest.fixture(scope="module")
def factors():
    return {"digit": np.arange(DATA), "where": np.zeros((DATA, 2)), "name": np.array([f"n{i}" for i in range(DATA)])}


@pytest.fixture(scope="module")
def whole(form, x, factors):
    return posterior(form.fit, x, factors=factors, **OPTIONS)


def same(a, b):
    assert set(a.children) == set(b.children)
    for name, node in a.children.items():
        xr.testing.assert_equal(node.to_dataset(), b[name].to_dataset().load())
        for variable, values in node.data_vars.items():
            if values.dtype.kind == "f":
                assert values.dtype == b[name][variable].dtype
    assert a.attrs == b.attrs


def test_it_is_the_tree_in_memory_bit_for_bit_and_read_by_arviz(form, x, factors, whole, tmp_path):
    found = posterior(form.fit, x, factors=factors, store=tmp_path / "p.zarr", **OPTIONS)
    assert "z" in found["posterior"] and not isinstance(found["posterior"]["z"].variable._data, np.ndarray)  # lazy
    same(whole, found)
    part = found.isel(datum=slice(3))
    np.testing.assert_array_equal(
        arviz.summary(part, var_names=["z"], kind="stats")["mean"],
        arviz.summary(whole.isel(datum=slice(3)), var_names=["z"], kind="stats")["mean"],
    )
    save_posterior(whole, tmp_path)
    again = open_posterior(tmp_path / "posterior.nc")
    np.testing.assert_array_equal(again["posterior"]["z"], whole["posterior"]["z"])
    again.close()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 4, 7])
def test_one_that_was_stopped_is_readable_and_goes_on(form, x, factors, whole, tmp_path, monkeypatch, after):
    put, note, calls = ZarrTree.put, ZarrTree._note, []

    def killed_put(self, step, datum, n, groups):
        calls.append((step, datum))
        if len(calls) <= after:
            return put(self, step, datum, n, groups)
        monkeypatch.setattr(ZarrTree, "_note", raises)
        put(self, step, datum, n, groups)  # the block is written, that it is done is not

    def raises(self):
        raise Killed

    monkeypatch.setattr(ZarrTree, "put", killed_put)
    store = tmp_path / "p.zarr"
    with pytest.raises(Killed):
        posterior(form.fit, x, factors=factors, store=store, **OPTIONS)
    monkeypatch.setattr(ZarrTree, "put", put)
    monkeypatch.setattr(ZarrTree, "_note", note)
    growing = open_posterior(store)
    done = min(7 * after, DATA)
    assert growing.get("posterior", xr.DataTree()).sizes.get("datum", 0) == done
    if after:
        np.testing.assert_array_equal(growing["posterior"]["z"], whole["posterior"]["z"][:, :, :done])
    assert growing.attrs == whole.attrs
    kept = []
    monkeypatch.setattr(ZarrTree, "put", lambda self, *what: kept.append(what[:2]) or put(self, *what))
    same(whole, posterior(form.fit, x, factors=factors, store=store, **OPTIONS))
    assert kept[0] == calls[-1] and len(kept) + after == 10  # 5 blocks, constants, twice 2 blocks


def test_a_store_of_something_else_is_refused(form, x, whole, tmp_path, monkeypatch):
    store = tmp_path / "p.zarr"
    few = {**OPTIONS, "predictive_draws": 0}
    posterior(form.fit, x, store=store, **few)
    monkeypatch.setattr("inference.checking.posterior_tree.posterior_pass", lambda *a: iter(()))
    assert posterior(form.fit, x, store=store, **few)["posterior"].sizes["datum"] == DATA  # complete: nothing is drawn
    for change, what in (
        ({"draws": 41}, "draws was 40, now 41"),
        ({"key": jax.random.key(1)}, "key was"),
        ({"chunk": 300}, "pairs was 280, now 300"),
        ({"factors": {"digit": np.arange(DATA)}}, "factors was"),
    ):
        with pytest.raises(ValueError, match=f"holds another posterior: {what}"):
            posterior(form.fit, x, store=store, **{**few, **change})
    with pytest.raises(ValueError, match="another posterior: data_crc"):
        posterior(form.fit, x + 1, store=store, **few)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(ValueError, match="no store that posterior"):
        posterior(form.fit, x, store=tmp_path / "other", **few)
    with pytest.raises(ValueError, match="no store that posterior"):
        open_posterior(tmp_path / "other")
    with pytest.raises(ValueError, match="no posterior at"):
        open_posterior(tmp_path / "none")


def test_memory_does_not_hold_what_a_store_writes(monkeypatch):
    monkeypatch.setattr(tree_store, "LARGEST", 100)
    block = {"posterior": {"z": (("chain", "draw", "datum"), np.zeros((1, 4, 2), "float32"))}}
    with pytest.raises(ValueError, match="store="):
        MemoryTree({}).put("posterior", slice(0, 2), 10, block)
