"""Data that stay on disk: the batches of data in memory, bit for bit, exact resume within an epoch, named errors."""

from pathlib import Path

import jax
import numpy as np
import pytest

from inference.cli.common import load_plugins
from inference.fitting import checkpoint, fit, resume, stored_rows
from inference.fitting.disk import DiskSource
from inference.fitting.order import Order
from inference.fitting.sources import ArraySource, as_source
from inference.fitting.stored_rows import ArrayFile, HubRows, open_rows
from ppl_models.program import resolve, rows, take
from tests.toy import PPCA, register_toy, toy_data

KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def program():
    register_toy()
    return PPCA().build(jax.random.key(0))


@pytest.fixture(scope="module")
def x():
    return toy_data()


@pytest.fixture
def file(x, tmp_path):
    np.save(tmp_path / "x.npy", x)
    return tmp_path / "x.npy"


@pytest.mark.parametrize("held", [1000, 10])
def test_an_order_is_a_permutation_by_epoch(held):
    for size in (37, 1, 1000):
        order = Order(size, KEY, held)
        epochs = [order.at(epoch, np.arange(size)) for epoch in range(2)]
        for found in epochs:
            assert sorted(found.tolist()) == list(range(size))
        np.testing.assert_array_equal(order.at(1, np.arange(size)[::-2]), epochs[1][::-2])
    assert (epochs[0] != epochs[1]).mean() > 0.9
    # Neighbours come apart: the rank correlation of position and row has standard deviation 1 / sqrt(n - 1).
    assert abs(np.corrcoef(epochs[0], np.arange(1000))[0, 1]) < 4 / np.sqrt(999)


def test_a_fit_to_a_file_is_that_to_its_array_also_resumed_within_an_epoch(program, x, file, tmp_path):
    options = {"steps": 60, "batch_size": 32, "checkpoint_every": 20, "progress": False, "key": KEY}
    whole = fit(program, x, **options)  # 8 updates an epoch: step 20 lies within the third
    cut = tmp_path / "cut"
    fit(program, file, out=cut, **options)
    for last in checkpoint.checkpoints(cut / "checkpoint")[-1:]:
        last.unlink()  # as if killed after step 40
    found = resume(cut, np.load(file, mmap_mode="r"), progress=False)
    jax.tree.map(np.testing.assert_array_equal, found.params, whole.params)
    np.testing.assert_array_equal(found.history["loss"], whole.history["loss"])
    np.save(file, x[:-1])
    checkpoint.checkpoints(cut / "checkpoint")[-1].unlink()
    with pytest.raises(ValueError, match="has 255 rows, the run was fitted to 256"):
        resume(cut, file, progress=False)


def test_maps_and_their_parts_are_read_from_their_file(x, file, program):
    mapped = np.load(file, mmap_mode="r")
    index = np.asarray([5, 0, 6, 7])
    for part in (mapped, mapped[3:200], mapped[3:200][10:]):
        rows = as_source(part, program, 8, KEY).rows
        assert isinstance(rows.arrays[0], ArrayFile) and len(rows) == len(part)
        np.testing.assert_array_equal(rows.read(index), part[index])
        np.testing.assert_array_equal(rows.read(np.arange(5, 20)), part[5:20])
    every = as_source(mapped[::2], program, 8, KEY).rows  # not in one piece: stays a map
    np.testing.assert_array_equal(every.read(index), mapped[::2][index])
    private = np.load(file, mmap_mode="c")
    private[5] = 7.0
    assert (as_source(private, program, 8, KEY).rows.read(index)[0] == 7.0).all()
    source = as_source(file, program, 8, KEY)
    np.save(file, x[:9])
    with pytest.raises(ValueError, match="has been cut since it was opened"):
        source.rows.read(np.asarray([200]))


def test_shards_and_arrays_by_name_are_read_as_one(program, x, tmp_path):
    for i, part in enumerate(np.split(x, [3, 100, 250])):
        np.save(tmp_path / f"part{i * 5}.npy", part)  # part10 comes after part5
    found = open_rows(tmp_path)
    index = np.asarray([255, 0, 99, 100, 3, 2, 0])
    np.testing.assert_array_equal(found.read(index), x[index])
    load_plugins([Path(__file__).resolve().parents[3] / "examples" / "noisy_regression.py"])
    several = resolve("noisy_regression").build(KEY)
    data = jax.tree.map(np.asarray, several.observation.sampler(KEY, 40))
    folder = tmp_path / "several"
    (folder / "x").mkdir(parents=True)
    np.save(folder / "y.npy", data["y"])
    for i in range(2):
        np.save(folder / "x" / f"{i}.npy", data["x"][20 * i : 20 * (i + 1)])
    arrays, disk = (as_source(d, several, 8, KEY) for d in (data, folder))
    for step in (0, 7):
        batch = take(arrays.store, arrays.feed(step, 1)[0])
        jax.tree.map(np.testing.assert_array_equal, take(disk.feed(step, 1), 0), batch)
    (folder / "y.npy").unlink()
    with pytest.raises(ValueError, match=r"lacks y.npy or y/\*.npy; expected x, y"):
        as_source(folder, several, 8, KEY)


class Blocks:
    """Rows in memory that are read in blocks."""

    name = "the blocks"

    def __init__(self, x, sizes):
        self.parts, self.blocks, self.reads = np.split(x, np.cumsum(sizes)[:-1]), np.asarray(sizes), 0

    def __len__(self):
        return int(self.blocks.sum())

    def head(self):
        return self.parts[0][:1]

    def read(self, index):
        self.reads += len(index)
        return np.concatenate([self.parts[i] for i in index])


def test_blocks_are_shuffled_within_windows_and_read_once_an_epoch(program, x, monkeypatch):
    monkeypatch.setattr("inference.fitting.disk.WINDOW", 4 * 60)  # 60 rows: two blocks
    blocks = Blocks(x, [30, 20, 26] * 3 + [28])
    source = DiskSource(blocks, 64, KEY, program)
    epochs = [np.concatenate([source._batch(step) for step in range(4 * e, 4 * e + 4)]) for e in range(2)]
    assert 20 <= blocks.reads <= 22  # ten an epoch, and those of the window after
    for found in epochs:
        np.testing.assert_array_equal(np.sort(found, 0), np.sort(x, 0))
    assert (epochs[0] != epochs[1]).any(1).mean() > 0.9
    late = DiskSource(Blocks(x, blocks.blocks), 64, KEY, program).feed(5, 2)
    np.testing.assert_array_equal(late[0], epochs[1][64:128])  # straight to the middle of the second epoch
    np.testing.assert_array_equal(late[1], epochs[1][128:192])


def test_row_groups_of_parquet(program, x, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({name: x[:, i] for i, name in enumerate("abcd")})
    for i in range(2):
        part = table.slice(128 * i, 128)
        parquet.write_table(part, tmp_path / f"{i}.parquet", row_group_size=50)
    found = open_rows(tmp_path)
    assert found.blocks.tolist() == [50, 50, 28] * 2
    np.testing.assert_array_equal(found.read(np.asarray([2, 3])), np.concatenate([x[100:128], x[128:178]]))
    source = DiskSource(found, 128, KEY, program)
    epoch = source.feed(0, 2).reshape(256, 4)
    np.testing.assert_array_equal(np.sort(epoch, 0), np.sort(x, 0))
    parquet.write_table(table.rename_columns(list("abce")), tmp_path / "2.parquet")
    with pytest.raises(ValueError, match="differ in their columns"):
        open_rows(tmp_path)


def test_a_large_hugging_face_set_stays_where_it_is(program, x, monkeypatch):
    class Dataset:
        column_names = ["x", "note"]

        def with_format(self, kind, columns):
            assert (kind, columns) == ("numpy", ["x"])
            return self

        def __len__(self):
            return len(x)

        def __getitem__(self, index):
            return {"x": x[index]}

    Dataset.__module__ = "datasets.arrow_dataset"
    monkeypatch.setattr(stored_rows, "IN_MEMORY", 100)
    source = as_source(Dataset(), program, 32, KEY)
    assert isinstance(source.rows, HubRows)
    arrays = ArraySource(x, 32, KEY)
    np.testing.assert_array_equal(source.feed(9, 2), x[arrays.feed(9, 2)])


def test_bad_rows_are_refused_by_name_at_once_or_when_they_are_read(program, x, file, tmp_path):
    def refused(data, match, batch_size=8):
        with pytest.raises(ValueError, match=match):
            as_source(data, program, batch_size, KEY)

    refused(tmp_path / "no.npy", "does not exist; expected a .npy file")
    refused(file, "larger than the data, 256 rows", 1000)
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no .npy and no .parquet file")
    (tmp_path / "a.txt").write_text("1")
    refused(tmp_path / "a.txt", "is neither a .npy file")
    np.save(tmp_path / "wide.npy", np.zeros((9, 7)))
    refused(tmp_path / "wide.npy", r"wide.npy, its first rows: data has shape \(1, 7\), this program expects \(n, 4\)")
    np.save(tmp_path / "objects.npy", np.asarray([None, "a"]), allow_pickle=True)
    refused(tmp_path / "objects.npy", "objects.npy cannot be read")
    (tmp_path / "torn.npy").write_bytes(file.read_bytes()[:-10])
    refused(tmp_path / "torn.npy", "torn.npy cannot be read")
    np.save(tmp_path / "fortran.npy", np.asfortranarray(x))
    refused(tmp_path / "fortran.npy", "fortran.npy is not in C order")
    (tmp_path / "shards").mkdir()
    np.save(tmp_path / "shards" / "0.npy", x)
    np.save(tmp_path / "shards" / "1.npy", x.astype(np.float64))
    refused(tmp_path / "shards", "the shards differ in dtype")
    bad = x.copy()
    bad[17, 2] = np.nan
    np.save(file, bad)
    source = as_source(file, program, 256, KEY)  # its first row is whole
    with pytest.raises(ValueError, match=r"x.npy, a batch of rows \[.*NaN or infinite values in 1 of 256"):
        source.feed(0, 1)
    assert rows(source.rows.read(np.arange(3))) == 3
