"""Nothing that is read starts a program: no pickle, no module or plug-in that only a file names; no key is kept."""

import ast
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from inference.cli.common import UsageError, load_plugins, reload_plugins
from inference.fitting import checkpoint
from ppl_models.program import spec_from_json

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}
CALLS = {"eval", "exec", "read_pickle", "to_pickle", "load_module"}


def sources():
    for package in ("inference", "ppl_models"):
        for file in sorted((ROOT / package).rglob("*.py")):
            yield file, ast.parse(file.read_text())


def test_no_source_unpickles_or_evaluates_text():
    found = []
    for file, tree in sources():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"{file}:{node.lineno} {name}" for name in names if name.partition(".")[0] in FORBIDDEN]
            if isinstance(node, ast.Call):
                # A method .eval(), of a network, evaluates no text.
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                if name in CALLS and (isinstance(node.func, ast.Name) or name not in ("eval", "exec")):
                    found.append(f"{file}:{node.lineno} {name}")
                allowed = [k.value for k in node.keywords if k.arg == "allow_pickle"]
                found += [f"{file}:{node.lineno} allow_pickle" for v in allowed if getattr(v, "value", True)]
                loads = (
                    isinstance(node.func, ast.Attribute)
                    and name == "load"
                    and getattr(node.func.value, "id", "") == "np"
                )
                if loads and not allowed:
                    found.append(f"{file}:{node.lineno} np.load without allow_pickle=False")
    assert found == []


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_that_holds_a_pickle_is_refused(tmp_path):
    path, mark = tmp_path / "step_00000001.npz", tmp_path / "mark"
    np.savez(path, __meta__=np.array([Bomb(mark)], object), a=np.array([Bomb(mark)], object))
    with pytest.raises(checkpoint.CheckpointError, match="torn or not a checkpoint"):
        checkpoint.read(path, {"a": np.zeros(1)})
    assert not mark.exists()


# -------------------------------------------------------------------------------------- modules that a spec names
def module(folder, name, text):
    (folder / f"{name}.py").write_text(f"import pathlib\npathlib.Path({str(folder / name)!r}).touch()\n{text}")


def test_a_spec_imports_a_module_only_where_its_source_registers_the_family(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module(tmp_path, "g_bystander", "x = 1")
    module(tmp_path, "g_other", 'from ppl_models.program import register\nregister("another", None)')
    (tmp_path / "g_package").mkdir()
    module(tmp_path / "g_package", "__init__", "")
    module(tmp_path / "g_package", "inner", "y = 2")
    named = lambda name: json.dumps({"family": "g_family", "module": name, "spec": {}})  # noqa: E731
    for name in ("g_bystander", "g_other", "g_package.inner"):
        with pytest.raises(ValueError, match=f"'g_family' of module '{name}', whose source does not register"):
            spec_from_json(named(name))
    for name in ("g_absent", "g_package.absent", "", ".", "antigravity.x", "sys", "a b"):
        with pytest.raises(ValueError, match="cannot be imported here"):
            spec_from_json(named(name))
    assert not [p for p in tmp_path.rglob("*") if not p.suffix and p.is_file()]
    assert not {"g_bystander", "g_other", "g_package", "antigravity"} & set(sys.modules)


def test_a_spec_still_finds_the_module_of_its_family(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = (
        "from dataclasses import dataclass\nfrom ppl_models.program import register\n\n\n"
        "@dataclass(frozen=True)\nclass Mine:\n    shape: tuple[int, ...] = (2,)\n    size: int = 1\n\n\n"
        'register("g_mine", Mine, presets={"tiny": Mine()}, paper="")\n'
    )
    module(tmp_path, "g_real", text)
    spec = spec_from_json({"family": "g_mine", "module": "g_real", "spec": {"size": 3}})
    assert spec.size == 3 and (tmp_path / "g_real").exists()


# --------------------------------------------------------------------------------------- plug-ins that a run names
def test_a_run_starts_no_plugin_that_the_user_has_not_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PPL_MODELS_CACHE", str(tmp_path / "cache"))
    module(tmp_path, "g_plug", "")
    file, mark = tmp_path / "g_plug.py", tmp_path / "g_plug"
    note = {"path": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    with pytest.raises(UsageError, match=r"wants to start the plug-in.*not named on this machine.*--plugin"):
        reload_plugins([note], [])
    assert not mark.exists()
    assert load_plugins([file]) == [note] and mark.exists()
    del sys.modules["ppl_models_plugin_g_plug"]
    mark.unlink()
    reload_plugins([note], [])  # named before: as it always was
    assert mark.exists()


@pytest.mark.parametrize("noted", [3, {"a": 1}, [None], [{"sha256": "x"}], ["x.py"]])
def test_notes_of_plugins_that_are_none_are_refused(noted):
    with pytest.raises(UsageError, match="mend its card"):
        reload_plugins(noted, [])
