"""The catalogue: one signature, subsets, missing sets, unknown names, and a cheap import."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ppl_models.datasets import DataMissingError, Info, info, load, names, table

BUILTIN = (
    "digits", "fashion_mnist", "mnist", "cifar10_png4k", "facets_a", "facets_b", "facets_c",
    "navier_stokes", "darcy", "shape_masks", "neuralop_darcy", "neuralop_burgers", "triangle_digits",
)  # fmt: skip


def test_names_and_table() -> None:
    assert names() == BUILTIN
    rows = {row["name"]: row for row in table()}
    assert tuple(rows) == BUILTIN
    assert rows["digits"]["shape"] == (8, 8) and rows["digits"]["levels"] == 17
    assert rows["facets_b"]["factors"] == ("shape", "colour", "floor")
    assert rows["digits"]["available"] and rows["facets_a"]["where"] == "generated"
    assert not rows["mnist"]["available"] and rows["mnist"]["where"] is None
    assert all(row["licence"] and row["description"] for row in rows.values())


def test_every_built_in_set_says_how_to_get_it() -> None:
    for name in BUILTIN:
        entry = info(name)
        assert entry.how_to_get and entry.provenance
        assert entry.held_out == ("heldout" if name == "cifar10_png4k" else "test")


# ----------------------------------------------------------------------------------------------------- digits
def test_digits_are_scikit_learns_in_the_stated_order() -> None:
    from sklearn.datasets import load_digits

    images, target = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(1797)
    (x, factors), (x_test, factors_test) = load("digits"), load("digits", "test")
    assert x.dtype == np.uint8 and x.shape == (1500, 8, 8) and x_test.shape == (297, 8, 8) and x.max() == 16
    np.testing.assert_array_equal(np.concatenate([x, x_test]).reshape(1797, 64), images[order])
    np.testing.assert_array_equal(np.concatenate([factors["digit"], factors_test["digit"]]), target[order])


def test_digits_golden() -> None:
    sums = [hashlib.sha256(load("digits", split)[0].tobytes()).hexdigest()[:16] for split in ("train", "test")]
    assert sums == ["03ba0cd2e7c55fe1", "5a5cef63efc660ef"]


def test_subsets_are_seeded_nested_and_keep_images_with_their_labels() -> None:
    x, factors = load("digits")
    few, few_factors = load("digits", n=50, seed=3)
    rows = np.random.default_rng(3).permutation(1500)[:50]
    np.testing.assert_array_equal(few, x[rows])
    np.testing.assert_array_equal(few_factors["digit"], factors["digit"][rows])
    np.testing.assert_array_equal(few[:10], load("digits", n=10, seed=3)[0])
    assert not np.array_equal(few, load("digits", n=50, seed=4)[0])
    assert sorted(map(bytes, load("digits", n=1500)[0])) == sorted(map(bytes, x))


def test_arrays_belong_to_the_caller() -> None:
    x, factors = load("digits", n=5)
    assert x.flags.c_contiguous and x.flags.writeable and x.base is None
    x[:] = 0
    factors["digit"][:] = -1
    again, factors_again = load("digits", n=5)
    assert again.max() > 0 and factors_again["digit"].min() >= 0


# ----------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (("digts",), {}, "unknown data set 'digts' .did you mean 'digits'.*PPL_MODELS_DATA .now: not set"),
        (("",), {}, "unknown data set ''"),
        (("../digits",), {}, "unknown data set '../digits'"),
        (("/etc/passwd",), {}, "unknown data set"),
        (("digits", "tset"), {}, "has no split 'tset' .did you mean 'test'.*'train' .1,500., 'test' .297."),
        (("digits",), {"n": 0}, "n must be a whole number of at least 1, got 0"),
        (("digits",), {"n": -3}, "n must be a whole number of at least 1, got -3"),
        (("digits",), {"n": 1501}, "n must be at most 1,500, the size of split 'train' of 'digits', got 1,501"),
        (("digits", "test"), {"n": 1500}, "n must be at most 297"),
        (("digits",), {"seed": -1}, "seed must be a whole number of at least 0"),
        (("mnist", "tset"), {}, "has no split 'tset'"),  # before the search for the file
        (("mnist",), {"n": 60_001}, "n must be at most 60,000"),
        (("fashion_mnist", "valid"), {}, "has no split 'valid'"),
        (("cifar10_png4k", "test"), {}, "came without a test split: evaluate on 'heldout'"),
        (("digits",), {"root": "/no/such/folder"}, None),
        (("mnist",), {"root": "/no/such/folder"}, "root must be a directory"),
    ],
)
def test_bad_requests(args: tuple[str, ...], kwargs: dict[str, object], message: str | None) -> None:
    if message is None:
        assert len(load(*args, **kwargs)[0]) == 1500  # type: ignore[arg-type] # a root means nothing to a packaged set
        return
    with pytest.raises(ValueError, match=message):
        load(*args, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n": 1.5}, "n must be a whole number of at least 1, got 1.5"),
        ({"n": "9"}, "n must be a whole number of at least 1, got '9'"),
        ({"seed": "a"}, "seed must be a whole number of at least 0, got 'a'"),
    ],
)
def test_requests_of_a_wrong_type(kwargs, message, refused):
    with refused(message):
        load("digits", **kwargs)


@pytest.mark.parametrize("name", ["mnist", "cifar10_png4k"])
def test_a_missing_set_names_every_way_to_get_it(name: str, files: Path) -> None:
    with pytest.raises(DataMissingError) as caught:
        load(name)
    text = str(caught.value)
    assert isinstance(caught.value, FileNotFoundError) and caught.value.name == name
    assert f"{name}.npz or {name}/{name}.npz in {files}" in text and "set PPL_MODELS_DATA" in text
    assert all(way in text for way in info(name).how_to_get)
    if name == "mnist":
        assert "ppl-models data get mnist" in text and 'pip install "ppl-models[hub]"' in text


def test_missing_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not info("digits").available()
    with pytest.raises(DataMissingError, match="pip install scikit-learn"):
        load("digits")


def test_info_checks_itself() -> None:
    with pytest.raises(ValueError, match="sizes must hold 'train'"):
        Info("a", (2, 2), 256, {"test": 3}, {}, "", "", "", ())
    with pytest.raises(ValueError, match="levels must be 2..256"):
        Info("a", (2, 2), 1, {"train": 3}, {}, "", "", "", ())
    with pytest.raises(TypeError):
        info("digits").sizes["train"] = 3  # type: ignore[index]


def test_the_error_survives_a_process_boundary() -> None:
    error = DataMissingError("gone", "mnist", ("a",))
    assert str(pickle.loads(pickle.dumps(error))) == "gone"


def test_import_is_cheap() -> None:
    code = (
        "import sys, ppl_models.datasets as d; d.names(); d.info('digits').available(); "
        "print([m for m in ('jax', 'sklearn', 'scipy', 'pandas', 'numpyro', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
