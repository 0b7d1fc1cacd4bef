"""Fuzzed texts: specs, names, run records, contexts, rules, options of columns, command lines."""

from __future__ import annotations

import contextlib
import io
import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks._fuzz_mutate import deep, mutate, mutate_json, odd, pick


class Wrong(AssertionError):
    """An input was accepted and taken for something else."""


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Wrong(what)


def alike(a: Any, b: Any) -> bool:
    """Whether two JSON values are the same; 1 and 1.0 are."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(alike(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b or (a != a and b != b)
    return type(a) is type(b) and a == b


def finite(value: Any) -> bool:
    """Whether a JSON value holds no NaN and no infinity."""
    if isinstance(value, Mapping):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


# ----------------------------------------------------------------------------------------------------- specs
def _bases() -> list[dict[str, Any]]:
    from ppl_models.program import families, spec_to_json

    return [json.loads(spec_to_json(preset)) for family in families().values() for preset in family.presets.values()]


class Specs:
    """``spec_from_json`` and the JSON and TOML files of ``read_spec``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bases = folder, _bases()

    def __call__(self, rng: np.random.Generator) -> bool:
        from inference.cli.common import read_spec
        from ppl_models.program import spec_from_json

        base, how = pick(self.bases, rng), rng.random()
        if how < 0.5:
            text = json.dumps(mutate_json(base, rng))
        elif how < 0.95:
            text = mutate(json.dumps(base).encode(), rng).decode("utf-8", "surrogateescape")
        elif how < 0.96:
            text = deep(rng)
        else:
            return self.toml(base, rng)
        if rng.random() < 0.2:
            path = self.folder / "spec.json"
            path.write_bytes(text.encode("utf-8", "surrogateescape"))
            spec = read_spec(str(path))
        else:
            spec = spec_from_json(text)
        self.check(spec, json.loads(text))
        return True

    def check(self, spec: Any, given: Any) -> None:
        from ppl_models.program import spec_from_json, spec_to_json

        kept = json.loads(spec_to_json(spec))
        require(kept["family"] == given["family"], f"family {given['family']!r} became {kept['family']!r}")
        require(finite(kept["spec"]), "a spec holds a number that is not finite")
        require(spec_from_json(spec_to_json(spec)) == spec, "a spec does not survive its own text")
        for name, value in given.get("spec", {}).items():
            short = isinstance(value, str) and isinstance(kept["spec"][name], Mapping)  # a name for an object
            require(
                short or within(value, kept["spec"][name]), f"{name}: {value!r:.60} became {kept['spec'][name]!r:.60}"
            )

    def toml(self, base: Mapping[str, Any], rng: np.random.Generator) -> bool:
        from inference.cli.common import read_spec

        plain = {k: v for k, v in base["spec"].items() if isinstance(v, (int, str)) and not isinstance(v, bool)}
        lines = [f'family = "{base["family"]}"', "[spec]", *(f"{k} = {json.dumps(v)}" for k, v in plain.items())]
        path = self.folder / "spec.toml"
        path.write_bytes(
            mutate("\n".join([*lines, "day = 1979-05-27"][: len(lines) + (rng.random() < 0.1)]).encode(), rng)
        )
        spec = read_spec(str(path))
        self.check(spec, tomllib.loads(path.read_text(encoding="utf-8")))
        return True


def within(given: Any, kept: Any) -> bool:
    """Whether everything that was given is kept; an object may have gained its defaults."""
    if isinstance(given, Mapping) and isinstance(kept, Mapping):
        return all(k in kept and within(v, kept[k]) for k, v in given.items())
    if isinstance(given, list) and isinstance(kept, list):
        return len(given) == len(kept) and all(within(a, b) for a, b in zip(given, kept, strict=True))
    return alike(given, kept)


class Names:
    """``resolve``: FAMILY and FAMILY:PRESET."""

    def __init__(self, folder: Path) -> None:
        from ppl_models.program import families

        self.known = {f"{n}:{p}": spec for n, f in families().items() for p, spec in f.presets.items()}

    def __call__(self, rng: np.random.Generator) -> bool:
        from ppl_models.program import resolve

        text = mutate(pick(list(self.known), rng).encode(), rng).decode("utf-8", "replace")
        spec = resolve(text)
        name, _, preset = text.partition(":")
        require(spec is self.known.get(f"{name}:{preset or 'tiny'}"), f"{text!r} was taken for another spec")
        return True


# --------------------------------------------------------------------------------------------------- run records
class Records:
    """run.json of a run, by both of its readers."""

    def __init__(self, folder: Path) -> None:
        from inference.fitting.record import FORMAT

        self.folder = folder
        self.base = {
            "format": FORMAT,
            "arguments": {"steps": 10, "batch_size": 8, "key": [0, 7], "weights": {}, "validation": False},
            "card": {"name": "digits", "held_out": "test", "n": None, "plugins": []}, "versions": {"jax": "0.11"},
            "info": {"steps": 10, "stopped": "steps"},
        }  # fmt: skip

    def __call__(self, rng: np.random.Generator) -> bool:
        from inference.cli.common import read_run
        from inference.cli.runs import run_card
        from inference.fitting.folder import RunFolder
        from inference.fitting.record import key_numbers

        text = json.dumps(mutate_json(self.base, rng)) if rng.random() < 0.5 else json.dumps(self.base)
        path = self.folder / "run.json"
        path.write_bytes(mutate(text.encode(), rng) if rng.random() < 0.5 else text.encode())
        record = RunFolder(self.folder).read_run()
        require(alike(record, read_run(self.folder)), "two readers of run.json differ")
        require(alike(record, json.loads(path.read_text(encoding="utf-8"))), "run.json was read as something else")
        key = key_numbers(record, path)
        require(len(key) == 2 and all(type(k) is int and 0 <= k < 2**32 for k in key), f"a random key {key}")
        run_card(self.folder, ())
        return True


class Histories:
    """history.csv of a run that goes on."""

    FIELDS = ("step", "seconds", "loss", "skipped")

    def __init__(self, folder: Path) -> None:
        self.path = folder / "history.csv"
        self.rows = [{"step": i, "seconds": 0.5 * i, "loss": 1.0 / i, "skipped": 0} for i in range(1, 9)]

    def __call__(self, rng: np.random.Generator) -> bool:
        from inference.fitting.folder import History

        lines = [",".join(self.FIELDS), *(",".join(repr(row[f]) for f in self.FIELDS) for row in self.rows)]
        self.path.write_bytes(mutate(("\n".join(lines) + "\n").encode(), rng))
        given = self.path.read_bytes()
        history = History(self.path, self.FIELDS)
        history.restore(6)
        for row in history.rows:
            require(set(row) == set(self.FIELDS), "a row with other columns")
            require(0 <= row["step"] <= 6 and isinstance(row["step"], int), f"a row of step {row['step']}")
            texts = {cell.strip() for cell in given.decode("utf-8", "replace").replace("\n", ",").split(",")}
            values = {float(t) for t in texts if _number(t)} | {0.0}
            require(all(v != v or float(v) in values for v in row.values()), f"{row} is not what the file says")
        again = History(self.path, self.FIELDS)
        again.restore(6)
        require(alike(again.rows, history.rows), "a history changes when it is read again")
        return True


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# --------------------------------------------------------------------------------------------------- small texts
class Contexts:
    """``parse_context``: digits, or numbers between commas."""

    def __init__(self, folder: Path) -> None:
        pass

    def __call__(self, rng: np.random.Generator) -> bool:
        from inference.coherence.command import parse_context

        text = mutate(pick((b"0110", b"0.3,-1.2,4", b"1,0,1", b"2"), rng), rng).decode("utf-8", "replace")
        found = parse_context(text)
        parts = [p for p in text.split(",") if p.strip()] if "," in text else list(text.strip())
        require(len(found) == len(parts) and bool(np.isfinite(found).all()), f"{text!r} became {found}")
        require(all(p.isascii() and "_" not in p for p in parts), f"{text!r} became {found}")
        require(np.allclose(found, [float(p) for p in parts], rtol=1e-5), f"{text!r} became {found}")
        return True


class Rules:
    """``parse_rule``: NAME or NAME:NUMBER[,NUMBER]."""

    def __init__(self, folder: Path) -> None:
        pass

    def __call__(self, rng: np.random.Generator) -> bool:
        from ppl_models.in_context import RULES, parse_rule

        words = (b"tempered:1.2", b"window:5", b"bayes:2,3", b"ewma:0.1", b"sticky:0.2", b"plugin", b"discounted:0.9")
        text = mutate(pick(words, rng), rng).decode("utf-8", "replace")
        found = parse_rule(text)
        name, _, rest = text.partition(":")
        given = [float(part) for part in rest.split(",") if part.strip()]
        require(name in RULES and all(map(math.isfinite, given)), f"{text!r} became {found!r:.80}")
        return True


class Overrides:
    """``--columns NAME=KIND,...`` and ``--clusters K,...``."""

    def __init__(self, folder: Path) -> None:
        from ppl_models.program import resolve

        self.spec = resolve("mfcvae:digits")

    def __call__(self, rng: np.random.Generator) -> bool:
        from inference.cli.runs import with_clusters
        from inference.cli.table_file import overrides

        if rng.random() < 0.5:
            text = mutate(b"grade=categorical,id=drop,height=real", rng).decode("utf-8", "replace")
            found = overrides(text)
            back = overrides(",".join(f"{name}={kind}" for name, kind in found.items()))
            require(found == back, f"{text!r} became {found}")
            return True
        text = mutate(b"3,4", rng).decode("utf-8", "replace")
        changed = with_clusters(self.spec, text)
        counts = [int(part) for part in text.split(",")]
        counts = counts * len(changed.facets) if len(counts) == 1 else counts
        require([facet.clusters for facet in changed.facets] == counts, f"--clusters {text!r} was taken for others")
        require(text.isascii() and "_" not in text, f"--clusters {text!r} became {counts}")
        return True


# ----------------------------------------------------------------------------------------------------- command lines
class Reached(Exception):
    """The work of a command would begin here."""


@contextlib.contextmanager
def no_work() -> Iterator[None]:
    """Nothing is built, loaded or drawn: a command that comes so far has accepted its words."""

    def reached(*args: Any, **kwargs: Any) -> Any:
        raise Reached

    places = (
        "inference.cli.runs.build", "inference.cli.runs.load_fit", "inference.cli.quickstart.run",
        "inference.cli.families.Families.run", "inference.cli.coherence.start", "inference.cli.experiment.start",
        "inference.cli.data.data_get", "inference.cli.data.data_list",
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        for place in places:
            stack.enter_context(mock.patch(place, reached))
        yield


class Words:
    """``main(argv)`` of every verb: exit code and what is on stderr."""

    LINES = (
        "fit mfcvae:digits --data digits --out OUT --steps 300 --batch-size 64 --learning-rate 1e-3 --seed 3",
        "fit mfcvae:table --data TABLE --out OUT --labels kind --columns size=real --test-n 5",
        "fit in_context:coin --data own --out OUT --validation 20 --patience 3 --average 0.99 --clip 1.5",
        "resume RUN --particles 64 --draws 10 --refine none", "diagnose RUN --test-n 20 --json",
        "report RUN --test-n 3",
        "compare RUN RUN --test-n 10", "sample RUN --n 5 --seed 1", "coherence tempered:1.2 --paths 40 --depth 3",
        "coherence ewma:0.1 --context 0110 --method both", "families --json", "data list --json", "data get digits",
        "traverse RUN --facet digit", "swap RUN --facet digit --n 4", "assign RUN", "impute RUN", "clusters RUN",
        "quickstart --quick --seed 3", "--version", "--help", "fit --help",
    )  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "words").mkdir()
        (folder / "words" / "table.csv").write_text(
            "size,kind\n" + "".join(f"{i / 7},{'ab'[i % 2]}\n" for i in range(40))
        )
        record = Records(folder).base
        (folder / "words" / "run").mkdir()
        (folder / "words" / "run" / "run.json").write_text(json.dumps(record))
        self.places = {
            "OUT": str(folder / "words" / "new"), "TABLE": str(folder / "words" / "table.csv"),
            "RUN": str(folder / "words" / "run"),
        }  # fmt: skip

    def __call__(self, rng: np.random.Generator) -> bool:
        from inference.cli.app import main

        words = [self.places.get(word, word) for word in pick(self.LINES, rng).split()]
        for _ in range(int(rng.integers(0, 3))):
            at = int(rng.integers(0, len(words)))
            how = rng.random()
            if how < 0.4:
                words[at] = mutate(words[at].encode(), rng).decode("utf-8", "replace").replace("\0", "0")
            elif how < 0.6:
                words[at] = str(odd(rng)).replace("\0", "0")[:60]
            elif how < 0.8:
                del words[at]
            else:
                words.insert(at, words[int(rng.integers(0, len(words)))])
            if not words:
                break
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), no_work():
                code = main(words)
        finally:
            for path in (self.folder / "words").glob("new*"):
                raise Wrong(f"{words} left {path}, and no work was done")
        said = err.getvalue()
        if code == 1 and "Reached" in said:
            return True
        require(code in (0, 1, 2), f"{words} ended with {code}")
        require("Traceback" not in said and "(--debug shows where)" not in said, f"{words}: {said[-300:]}")
        require(code == 0 or bool(said.strip() or out.getvalue().strip()), f"{words} failed without a word")
        if code:
            raise ValueError(said[-200:])
        return True
