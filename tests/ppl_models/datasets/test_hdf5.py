"""A torn HDF5 file may keep the library in C for ever, or end the process: another process looks first."""

import h5py
import numpy as np
import pytest

from ppl_models.datasets import hdf5


def test_a_whole_file_and_one_that_is_none_pass(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.arange(6).reshape(2, 3)
        file["x"].attrs["unit"] = "nats"
        file.create_group("empty")["none"] = np.zeros((0, 2))
    hdf5.check_hdf5(tmp_path / "a.h5")
    (tmp_path / "b.h5").write_bytes(b"no HDF5")
    hdf5.check_hdf5(tmp_path / "b.h5")  # an ordinary error is its reader's to say


@pytest.mark.parametrize("fault", ["while True: pass", "import os; os.abort()"])
def test_what_does_not_come_back_is_an_error(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(hdf5, "_LOOK", fault)
    monkeypatch.setattr(hdf5, "WALL_SECONDS", 20 if "abort" in fault else 0.5)
    with pytest.raises(ValueError, match="'a.h5' is torn: HDF5's library does not come back"):
        hdf5.check_hdf5(tmp_path / "a.h5")


def test_the_look_ends_itself_after_some_cpu_seconds():
    assert "RLIMIT_CPU" in hdf5._LOOK and hdf5.CPU_SECONDS < hdf5.WALL_SECONDS
