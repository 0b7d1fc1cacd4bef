"""What an import may do: nothing that a user did not ask for.  Each module is imported by a fresh interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 2.0

PROBE = """
import json, sys, time, warnings

opened, connected = [], []

def audit(event, args):
    if event == "open" and isinstance(args[0], str):
        opened.append(args[0])
    elif event in ("socket.connect", "socket.getaddrinfo"):
        connected.append(str(args))

import jax, jax.numpy
sys.addaudithook(audit)
start = time.process_time()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    module = __import__(sys.argv[1], fromlist=["_"])
seconds = time.process_time() - start
opened, connected = list(opened), list(connected)

from jax._src import xla_bridge
started = xla_bridge.backends_are_initialized()
print(json.dumps(dict(
    file=module.__file__, seconds=seconds, started=started, arrays=len(jax.live_arrays()), connected=connected,
    warnings=[str(w.message) for w in caught], opened=opened,
    heavy=[name for name in ("matplotlib", "sklearn", "arviz", "xarray") if name in sys.modules],
)))
"""


def run(code, *args, path=(), cwd=None):
    paths = os.pathsep.join([*map(str, path), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=cwd,
        capture_output=True,
        text=True,
    )


def probe(name, cwd):
    done = run(PROBE, name, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["ppl_models", "ppl_models.program", "inference"])
def test_import_does_nothing_else(name, tmp_path):
    seen = probe(name, tmp_path)
    assert Path(seen["file"]).is_relative_to(ROOT / name.partition(".")[0])
    assert not seen["started"], "the import started a device"
    assert seen["arrays"] == 0, "the import made a device array"
    assert seen["warnings"] == []
    assert seen["connected"] == []
    assert seen["heavy"] == [], "import these where they are used"
    # Only code and its metadata is read: a data file would be found here.
    data = (".npz", ".npy", ".gz", ".csv", ".h5", ".nc", ".parquet", ".png", ".arrow", ".mat")
    assert [file for file in seen["opened"] if file.endswith(data)] == []
    # CPU time, the least of three: a busy machine must not fail this.
    seconds = seen["seconds"]
    for _ in range(2):
        if seconds >= SECONDS:
            seconds = min(seconds, probe(name, tmp_path)["seconds"])
    assert seconds < SECONDS, f"importing {name} took {seconds:.2f} s of CPU beyond JAX's own import"


@pytest.fixture
def stranger(tmp_path):
    """A folder with a foreign package named ``inference``."""
    package = tmp_path / "inference"
    package.mkdir()
    (package / "__init__.py").write_text("ran = print('the stranger ran')\n")
    return tmp_path


def test_a_foreign_inference_is_a_clear_error(stranger):
    done = run("import ppl_models.program", path=[stranger], cwd=stranger)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: 'import inference' finds")
    assert str(stranger / "inference" / "__init__.py") in last
    assert "pip uninstall inference" in last and "ppl-models" in last
    assert "the stranger ran" not in done.stdout, "the stranger was imported to find out"


def test_a_foreign_inference_imported_first_is_a_clear_error(stranger):
    done = run("import inference, ppl_models", path=[stranger], cwd=stranger)
    assert "ImportError: 'import inference' finds" in done.stderr


def test_a_module_or_a_bare_folder_of_that_name(tmp_path):
    (tmp_path / "inference").mkdir()  # no __init__: Python takes the real package behind it
    assert run("import ppl_models, inference; inference.fit", path=[tmp_path], cwd=tmp_path).returncode == 0
    (tmp_path / "inference").rmdir()
    (tmp_path / "inference.py").write_text("")
    assert str(tmp_path / "inference.py") in run("import ppl_models", path=[tmp_path], cwd=tmp_path).stderr


def test_ours_is_known_by_its_mark():
    from ppl_models._clash import MARK, check_inference

    assert MARK in (ROOT / "inference" / "__init__.py").read_text()
    check_inference()
