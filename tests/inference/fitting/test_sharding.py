"""Fits over a mesh: the loss path, evidence and posterior of one device; checkpoints that go on over another mesh.

The number of devices is fixed when JAX starts, so these run in processes of their own (:mod:`sharded`).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from inference.fitting import fit
from inference.fitting.placement import OneDevice, OnMesh, as_placement, check_batch, parse_mesh
from inference.fitting.processes import join
from tests.toy import PPCA, toy_data

ROOT = Path(__file__).resolve().parents[3]
KEY = jax.random.key(3)
CANCELS = {"diffusion": 2e-3}
"""Nats by which losses of families may differ besides 1e-5 of their size: theirs are differences of large terms, whose
rounding is that of the terms."""


def started(what: str, out: Path, *joining: object, devices: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.inference.fitting.sharded", what, str(out), *map(str, joining)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def found_by(what: str, out: Path, *, processes: int = 1, devices: int = 1) -> dict[str, Any]:
    """What one process found, or the first of several."""
    if processes == 1:
        running = [started(what, out, devices=devices)]
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        running = [started(what, out, address, processes, i) for i in range(processes)]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * processes, "\n".join(said)
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The toy on eight devices, on a mesh of four by two, and on one."""
    return found_by("toy", tmp_path_factory.mktemp("alone") / "found.json", devices=8)


def test_parse_mesh_and_what_is_wrong_with_it() -> None:
    assert parse_mesh("data=4, model=2") == {"data": 4, "model": 2}
    for text, says in (("rows=2", "axes data and model"), ("data", "data=8"), ("data=0", "data=8"),
                       ("data=2,data=2", "once"), ("dat=2", "did you mean 'data'")):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            parse_mesh(text)
    with pytest.raises(ValueError, match="needs 512 devices"):
        as_placement("data=512")
    for axes in ({"rows": 1}, {}):
        with pytest.raises(ValueError, match="axes data and model"):
            as_placement(axes)
    assert isinstance(as_placement(None), OneDevice)
    assert as_placement("data=1").axes == {"data": 1, "model": 1}


def test_a_batch_that_cannot_be_shared_is_refused_at_once() -> None:
    class Eight(OneDevice):
        rows_at_once = 8

    check_batch(Eight(), 32)
    with pytest.raises(ValueError, match="use batch_size=24 or 32"):
        check_batch(Eight(), 30)
    with pytest.raises(ValueError, match="use batch_size=8"):
        check_batch(Eight(), 3)


def test_the_longest_dimension_that_fits_is_cut_and_small_parameters_are_not() -> None:
    class Four(OnMesh):
        class mesh:  # noqa: N801 - stands for a field
            shape = {"data": 1, "model": 4}

    place = Four.__new__(Four)
    object.__setattr__(place, "least", 64)
    assert place.spec((8, 16)) == P(None, "model")
    assert place.spec((3, 3, 32, 8)) == P(None, None, "model", None)
    assert place.spec((8, 15)) == P("model", None)
    assert place.spec((9, 15)) == P() and place.spec((4, 8)) == P() and place.spec(()) == P()


def test_a_mesh_of_one_device_gives_the_bits_of_none() -> None:
    program, x = PPCA().build(jax.random.key(0)), toy_data(64)
    options = {"steps": 10, "batch_size": 16, "key": KEY, "progress": False}
    plain, meshed = fit(program, x, **options), fit(program, x, mesh="data=1", **options)
    for name, value in plain.params.items():
        np.testing.assert_array_equal(meshed.params[name], value)
    assert "mesh" not in plain.info and meshed.info["mesh"] == {"data": 1, "model": 1, "processes": 1}
    assert plain.mesh is None and meshed.on(None).mesh is None


def test_processes_that_cannot_find_one_another_are_told_what_is_missing() -> None:
    with pytest.raises(ValueError, match="HOST:PORT, got 'here'"):
        join("here")
    with pytest.raises(ValueError, match="process 2 is not one of 2"):
        join("127.0.0.1:1", 2, 2)


@pytest.mark.parametrize("mesh", ["data", "both"])
def test_loss_path_evidence_and_posterior_are_those_of_one_device(alone: dict[str, Any], mesh: str) -> None:
    one, many = alone["one"], alone[mesh]
    assert len(one["loss"]) == 50
    np.testing.assert_allclose(many["loss"], one["loss"], rtol=1e-5)
    np.testing.assert_allclose(many["validation_elbo"], one["validation_elbo"], rtol=1e-5)
    # Fitted parameters differ by rounding, and so do what they give.
    for name, shape in (("log_px", 50), ("z", 5 * 6 * 2), ("prior", 5 * 6 * 4)):
        assert len(one[name]) == shape
        np.testing.assert_allclose(many[name], one[name], rtol=1e-4, atol=1e-4)
    assert one["mesh"] is None and many["mesh"]["processes"] == 1


def test_a_checkpoint_goes_on_over_another_mesh(alone: dict[str, Any]) -> None:
    assert len(alone["next_same"]["loss"]) == 51
    np.testing.assert_allclose(alone["next_other"]["loss"][-1], alone["next_same"]["loss"][-1], rtol=1e-6)


@pytest.mark.slow
def test_two_processes_fit_what_one_does(alone: dict[str, Any], tmp_path: Path) -> None:
    two, one = found_by("toy", tmp_path / "found.json", processes=2), alone["one"]
    for mesh in ("data", "model"):
        assert two[mesh]["mesh"]["processes"] == 2
        np.testing.assert_allclose(two[mesh]["loss"], one["loss"], rtol=1e-5)
        np.testing.assert_allclose(two[mesh]["log_px"], one["log_px"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(two["next_other"]["loss"][-1], two["next_same"]["loss"][-1], rtol=1e-6)
    run = json.loads((tmp_path / "runs" / "data" / "run.json").read_text())
    assert run["info"]["steps"] == 50 and "mesh" not in run["arguments"]
    assert not list((tmp_path / "runs").rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(1, 8), (2, 1)])
def test_every_family_has_the_loss_path_of_one_device(tmp_path: Path, processes: int, devices: int) -> None:
    found = found_by("families", tmp_path / "found.json", processes=processes, devices=devices)
    if processes > 1:
        reference = {family: runs["one"] for family, runs in found_by("one", tmp_path / "one.json").items()}
    else:
        reference = {family: runs["one"] for family, runs in found.items()}
    for family, runs in found.items():
        expected = np.asarray(reference[family]["loss"], float)
        for name, path in runs.items():
            np.testing.assert_allclose(
                path["loss"], expected, rtol=1e-5, atol=CANCELS.get(family, 0.0), err_msg=f"{family}, {name}"
            )
