"""Imports point one way (CONTRIBUTING.md): read from the sources, functions' inner imports included."""

import ast
import importlib.util
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMAND_LINE = re.compile(r"inference\.cli(\.|$)")
ROOMS = {
    "inference.cli": ("reporting", "clustering", "coherence", "sampling", "checking", "fitting"),
    "inference.reporting": ("clustering", "checking", "fitting"),
    "inference.clustering": ("checking", "fitting"),
    "inference.checking": ("fitting",),
    "inference.fitting": (),
    "inference.coherence": (),
    "inference.sampling": (),
}
"""Room -> the rooms it stands on."""
OUTSIDE = ("tests", "benchmarks", "examples", "notebooks")


def modules(root):
    """Yield (dotted name, is a package, syntax tree) of every source file of the two packages below ``root``."""
    for package in ("ppl_models", "inference"):
        for file in sorted((root / package).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            yield ".".join(parts[:-1] if is_package else parts), is_package, ast.parse(file.read_text())


def imported(name, is_package, tree):
    """Return the dotted names that a module imports, ``import_module("literal")`` and relative ones included."""
    here = name if is_package else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), here)
            found |= {f"{source}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                found.add(importlib.util.resolve_name(node.args[0].value, here))
    return found


def literals(tree):
    """Return the strings of a module that are not docstrings (a string standing alone as a statement)."""
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone
    ]


def within(name, *packages):
    return any(name == package or name.startswith(package + ".") for package in packages)


def family_folders(root):
    return sorted(file.parent.name for file in (root / "ppl_models").glob("*/program.py"))


def allowed_of_ours(name, families):
    """Return which of our own modules the module ``name`` may import."""
    if COMMAND_LINE.match(name):
        return ("inference", "ppl_models")
    if within(name, *ROOMS):
        room = ".".join(name.split(".")[:2])
        return (
            room,
            "inference._lazy",
            "inference._progress",
            "ppl_models.program",
            *(f"inference.{below}" for below in ROOMS[room]),
        )
    if within(name, "inference"):
        return ("inference", "ppl_models.program")
    room = name.split(".")[1] if "." in name else ""
    if room in families:
        return tuple(f"ppl_models.{r}" for r in (room, "program", "networks", "distributions", "function_spaces"))
    if room in ("networks", "function_spaces"):
        return ("ppl_models.networks", "ppl_models.function_spaces")
    if room == "distributions":
        return ("ppl_models.distributions", "ppl_models.networks", "ppl_models.function_spaces", "ppl_models._column")
    if room == "datasets":
        return tuple(
            f"ppl_models.{part}" for part in ("datasets", "function_spaces", "program", "_column", "_folders", "_rows")
        )
    return (
        "ppl_models.program",
        *(
            f"ppl_models._{part}"
            for part in "amortise bind clash column datum folders predictor program registry rows".split()
        ),
    )


def private_of_another_room(name, target):
    """Whether ``target`` has a part with a leading underscore in a room of ``inference`` that ``name`` is not in."""
    room = ".".join(target.split(".")[:2])
    hidden = any(part.startswith("_") and not part.startswith("__") for part in target.split(".")[2:])
    return room in ROOMS and hidden and not within(name, room)


def graph(root):
    """Return, for every module of the two packages, the modules that it imports: in functions and for types, too."""
    found = {name: (is_package, tree) for name, is_package, tree in modules(root)}

    def module_of(target):
        while target and target not in found:
            target = target.rpartition(".")[0]
        return target

    return {name: {module_of(target) for target in imported(name, *rest)} - {"", name} for name, rest in found.items()}


def circle(edges):
    """Return a line that names a circle of imports, or ``None``."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return " imports ".join(reversed(error.args[1]))
    return None


def violations(root):
    """Return one line for every import, or family's name, that goes against the arrows."""
    families, wrong = family_folders(root), []
    for name, is_package, tree in modules(root):
        allowed = allowed_of_ours(name, families)
        for target in sorted(imported(name, is_package, tree)):
            sees_both = COMMAND_LINE.match(target) and not COMMAND_LINE.match(name)
            if within(target, *OUTSIDE) or sees_both:
                wrong.append(f"{name} imports {target}")
            elif within(target, "ppl_models", "inference") and not within(target, *allowed):
                wrong.append(f"{name} imports {target}")
            elif private_of_another_room(name, target):
                wrong.append(f"{name} imports {target}, which its room keeps to itself")
            elif within(name, "ppl_models.networks", "ppl_models.function_spaces") and within(target, "numpyro"):
                wrong.append(f"{name} imports {target}")
        if within(name, "inference") and not COMMAND_LINE.match(name):
            for text in literals(tree):
                for family in families:
                    if re.search(rf"\b{family}\b", text):
                        wrong.append(f"{name} names the family {family} in {text!r}")
    return wrong


def test_sources_hold_the_arrows():
    assert violations(ROOT) == []


def test_every_room_was_read():
    names = {name for name, _, _ in modules(ROOT)}
    assert {"ppl_models", "ppl_models.program", "inference", "inference.fitting.loop"} <= names
    rooms = {f"inference.{file.parent.name}" for file in (ROOT / "inference").glob("*/__init__.py")}
    assert rooms == set(ROOMS)
    assert sorted(file.name for file in (ROOT / "inference").glob("*.py")) == [
        "__init__.py",
        "_lazy.py",
        "_progress.py",
    ]


def test_no_circle():
    assert circle(graph(ROOT)) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("import inference.fitting.b", "from inference.fitting import a"),
        ("def f():\n    from inference.fitting.b import x", "from typing import TYPE_CHECKING\nfrom . import a"),
        ("if TYPE_CHECKING:\n    from inference.fitting.b import X", "def f():\n    from .a import y"),
    ],
)
def test_a_circle_is_seen(tmp_path, one, other):
    folder = tmp_path / "inference" / "fitting"
    folder.mkdir(parents=True)
    (folder / "a.py").write_text(one)
    assert circle(graph(tmp_path)) is None
    (folder / "b.py").write_text(other)
    assert "inference.fitting.a imports inference.fitting.b" in circle(graph(tmp_path))


def test_files_are_short():
    """A file is one idea: none over 400 lines, the median near 150 or below; prints the longest."""
    lengths = {
        str(file.relative_to(ROOT)): len(file.read_text().splitlines())
        for folder in ("ppl_models", "inference", "benchmarks", "tests", "examples")
        for file in (ROOT / folder).rglob("*.py")
        if "work" not in file.relative_to(ROOT).parts
    }
    for file, length in sorted(lengths.items(), key=lambda item: -item[1])[:10]:
        print(f"{length:4d} {file}")
    assert max(lengths.values()) <= 400, "ask whether the longest is still one idea"
    assert 80 <= median(lengths.values()) <= 180


def test_every_family_is_registered():
    from ppl_models.program import BUILTIN

    assert {name: f"ppl_models.{name}" for name in family_folders(ROOT)} == dict(BUILTIN)


def test_every_family_has_its_files():
    for family in family_folders(ROOT):
        held = {file.name for file in (ROOT / "ppl_models" / family).iterdir()}
        missing = {"__init__.py", "spec.py", "program.py", "networks.py", "README.md"} - held
        assert not missing, f"ppl_models/{family} has no {sorted(missing)}"


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("inference/fitting/run.py", "from ppl_models.program import Program", None),
        ("inference/fitting/run.py", "from ppl_models import program", None),
        ("inference/fitting/run.py", "import ppl_models", "inference.fitting.run imports ppl_models"),
        (
            "inference/fitting/run.py",
            "from ppl_models import datasets",
            "inference.fitting.run imports ppl_models.datasets",
        ),
        (
            "inference/fitting/run.py",
            "def f():\n    import ppl_models.a.spec",
            "inference.fitting.run imports ppl_models.a.spec",
        ),
        (
            "inference/fitting/run.py",
            "import importlib\nimportlib.import_module('ppl_models.a')",
            "imports ppl_models.a",
        ),
        ("inference/fitting/run.py", "x = 'a'", "inference.fitting.run names the family a in 'a'"),
        ("inference/fitting/run.py", "x = f'build {1} of a:tiny'", "names the family a"),
        ("inference/fitting/run.py", '"""Fits a model."""', None),
        ("inference/fitting/run.py", "from . import objectives", None),
        ("inference/fitting/run.py", "from inference import cli", "inference.fitting.run imports inference.cli"),
        ("inference/cli/app.py", "import ppl_models.a\nfrom ppl_models import datasets\nx = 'a'", None),
        ("inference/cli/common.py", "import ppl_models.a", None),
        ("inference/clients.py", "import ppl_models.a", "inference.clients imports ppl_models.a"),
        ("inference/fitting/run.py", "from inference.checking import evidence", "imports inference.checking.evidence"),
        ("inference/checking/gap.py", "from inference.fitting import fit\nimport inference.fitting.loop", None),
        ("inference/checking/gap.py", "from inference.fitting.loop import _late", "keeps to itself"),
        ("inference/checking/gap.py", "def f():\n    from inference.reporting import figures", "imports inference.rep"),
        ("inference/coherence/gap.py", "from inference.fitting import fit", "imports inference.fitting.fit"),
        ("inference/reporting/gap.py", "from inference.clustering import scores", None),
        ("inference/fitting/run.py", "import tests.helpers", "inference.fitting.run imports tests.helpers"),
        ("ppl_models/a/program.py", "from ppl_models.networks.mlp import MLP\nimport numpyro", None),
        ("ppl_models/a/program.py", "from .networks import Net\nfrom ppl_models.a import spec", None),
        ("ppl_models/a/program.py", "from ..b import spec", "ppl_models.a.program imports ppl_models.b.spec"),
        ("ppl_models/a/program.py", "from .. import b", "ppl_models.a.program imports ppl_models.b"),
        ("ppl_models/a/__init__.py", "from .spec import S", None),
        ("ppl_models/a/__init__.py", "from ..b.spec import S", "ppl_models.a imports ppl_models.b.spec.S"),
        ("ppl_models/a/spec.py", "def f():\n    import inference", "ppl_models.a.spec imports inference"),
        ("ppl_models/a/spec.py", "from ppl_models.datasets import load", "imports ppl_models.datasets.load"),
        ("ppl_models/networks/mlp.py", "import jax\nfrom flax import nnx\nimport numpyromantic", None),
        ("ppl_models/networks/mlp.py", "from numpyro import sample", "imports numpyro.sample"),
        ("ppl_models/function_spaces/haar.py", "import numpyro.distributions", "imports numpyro.distributions"),
        ("ppl_models/networks/mlp.py", "from ppl_models.program import bind", "imports ppl_models.program.bind"),
        ("ppl_models/distributions/mixture.py", "import numpyro\nfrom ppl_models.networks.mlp import MLP", None),
        ("ppl_models/distributions/mixture.py", "import ppl_models.b", "imports ppl_models.b"),
        ("ppl_models/distributions/columns.py", "from ppl_models._column import Column", None),
        ("ppl_models/distributions/columns.py", "from ppl_models.program import Column", "imports ppl_models.program"),
        ("ppl_models/datasets/digits.py", "import inference.fit", "imports inference.fit"),
        ("ppl_models/program.py", "import ppl_models.a", "ppl_models.program imports ppl_models.a"),
    ],
)
def test_a_wrong_arrow_is_seen(tmp_path, file, source, expected):
    for family in ("a", "b"):
        (tmp_path / "ppl_models" / family).mkdir(parents=True)
        (tmp_path / "ppl_models" / family / "program.py").touch()
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    found = violations(tmp_path)
    assert found == [] if expected is None else any(expected in line for line in found), found
