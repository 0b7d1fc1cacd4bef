"""Data that are several arrays: from dicts, samplers, grain records and Hugging Face columns, checked leaf by leaf."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inference import evidence, fit, load
from inference.cli.common import load_plugins
from inference.fitting.sources import as_source, stored
from ppl_models.program import resolve, rows, take

KEY = jax.random.key(0)
load_plugins([Path(__file__).resolve().parents[3] / "examples" / "noisy_regression.py"])


@pytest.fixture(scope="module")
def program():
    return resolve("noisy_regression").build(KEY)


@pytest.fixture(scope="module")
def data(program):
    return jax.tree.map(np.asarray, program.observation.sampler(KEY, 40))


def test_every_source_gives_the_same_batches_of_a_dict(program, data):
    import grain

    arrays = as_source(data, program, 8, KEY)
    batch = arrays.batch(arrays.store, jnp.asarray(arrays.feed(0, 2)[1]))
    assert {name: leaf.shape for name, leaf in batch.items()} == {"x": (8, 1), "y": (8,)}
    match = [int(np.flatnonzero(data["y"] == y)[0]) for y in batch["y"]]  # rows of x and y stay together
    np.testing.assert_array_equal(batch["x"], data["x"][match])
    records = grain.MapDataset.source([take(data, i) for i in range(40)])
    fed = as_source(records, program, 8, KEY).feed(0, 2)
    jax.tree.map(np.testing.assert_array_equal, take(fed, 1), take(data, slice(8, 16)))
    drawn = as_source(program.observation.sampler, program, 8, KEY)
    assert drawn.traced and rows(drawn.batch(drawn.store, jnp.int32(3))) == 8

    def sampler(key, n):
        first = int(np.asarray(jax.random.key_data(key))[-1] % 30)  # cannot be traced
        return take(data, slice(first, first + n))

    on_host = as_source(sampler, program, 8, KEY)
    assert not on_host.traced and on_host.feed(0, 3)["x"].shape == (3, 8, 1)
    with pytest.raises(ValueError, match=r"expected \{'x': \(8, 1\), 'y': \(8,\)\}"):
        as_source(lambda key, n: {"x": jnp.zeros((n, 2)), "y": jnp.zeros(n)}, program, 8, KEY)


def test_columns_of_a_hugging_face_data_set_are_arrays(program, data):
    class Dataset:
        def __init__(self, columns):
            self.columns, self.column_names = columns, list(columns)

        def with_format(self, kind):
            assert kind == "numpy"
            return self

        def __getitem__(self, index):
            assert index == slice(None)
            return self.columns

    Dataset.__module__ = "datasets.arrow_dataset"
    found = stored(program, Dataset({**data, "note": np.zeros(40)}))
    assert list(found) == ["x", "y"]
    with pytest.raises(ValueError, match=r"expected \['y'\]; rename_column"):
        stored(program, Dataset({"x": data["x"], "target": data["y"]}))


def test_a_dict_is_fitted_saved_validated_and_scored_in_one_order(program, data, tmp_path):
    fitted = fit(
        program, data, steps=4, batch_size=8, validation=take(data, slice(16)), key=KEY, out=tmp_path / "r",
        progress=False,
    )  # fmt: skip
    table = evidence(load(tmp_path / "r"), data, particles=8, key=KEY, progress=False, refine="none")
    again = evidence(fitted, take(data, slice(5)), particles=8, key=KEY, progress=False, refine="none", chunk=16)
    np.testing.assert_allclose(table["log_px"][:5], again["log_px"], rtol=1e-4)
    assert (table["x_crc"][:5] == again["x_crc"]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["x"], "got one ndarray"),
        (lambda d: {"x": d["x"]}, r"got leaves \['x'\]"),
        (lambda d: {**d, "z": d["y"]}, r"got leaves \['x', 'y', 'z'\]"),
        (lambda d: {**d, "y": d["y"][:-1]}, "differ in length"),
        (lambda d: {**d, "y": d["y"] * np.nan}, "'y' of data has NaN"),
        (lambda d: {**d, "x": d["x"][:, 0]}, r"'x' of data has shape \(40,\)"),
        (lambda d: {**d, "y": d["y"].astype(str)}, "'y' of data must be an array of numbers"),
    ],
)
def test_a_datum_of_another_form_is_refused_by_leaf(program, data, change, message):
    with pytest.raises(ValueError, match=message):
        stored(program, change(data))
