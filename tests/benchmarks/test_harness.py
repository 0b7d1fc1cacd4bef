"""Records say what was measured, the table says what the records say, and a missed target is never hidden."""

import ast
import json
import math
import time
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import benchmarks
from benchmarks import __main__ as command, _headlines, _table, harness
from benchmarks.harness import Claim, Record, UsageError, execute, interleaved_cpu_time


def record(**changes):
    given = dict(
        benchmark="b", name="n", claim="it is so", value=1.0412, unit="x", target="<= 1.05", holds=True, if_missed="",
        reference="", seeds=(0, 1), command="python -m benchmarks run b", versions={"jax": "0.1", "numpyro": "0.2"},
        device="a processor, 2 cores", seconds=12.0, date="2026-01-02", commit="abc", quick=False, detail={},
    )  # fmt: skip
    return Record(**{**given, **changes})


@pytest.mark.parametrize(
    ("value", "target", "holds"),
    [
        (1.05, "<= 1.05", True),
        (1.0501, "<= 1.05", False),
        (0.9, ">= 0.9", True),
        (2.0, "< 2", False),
        (1e-9, "> 0", True),
        (20, "== 20", True),
        (19, "== 20", False),
        (0.93, "0.93 to 0.97", True),
        (0.98, "0.93 to 0.97", False),
        (-0.3, "-0.5 to -1e-3", True),
        (math.nan, "<= 1.05", False),
        (math.inf, ">= 0", False),
        (3.0, "", True),
        (math.nan, "", False),
    ],
)
def test_a_target_is_judged_by_the_value(value, target, holds):
    assert Claim("n", "c", value, "x", target).holds is holds


@pytest.mark.parametrize("target", ["1.05", "about 3", "<=1.05", "<= ", "0.9 - 1"])
def test_an_unclear_target_is_refused(target):
    with pytest.raises(ValueError, match="must read like"):
        Claim("n", "c", 1.0, "x", target)


@pytest.mark.parametrize("name", ["", "a/b", "A", "a b", "../x"])
def test_a_name_is_a_file_name(name):
    with pytest.raises(ValueError, match="file name"):
        Claim(name, "c", 1.0, "x")


def test_execute_writes_what_it_yields(tmp_path):
    detail = {"rounds": np.arange(3), "device": jnp.float32(0.5), "none": None, "nan": math.nan}

    def run(quick):
        assert quick is False
        yield Claim("one", "first", jnp.float32(1.5), "s", "<= 2", seeds=(np.int64(3),), detail=detail)
        assert harness.read(tmp_path / "b" / "one.json").value == 1.5, "a claim is kept before the next is made"
        yield Claim("two", "second", math.nan, "nats", ">= 0", if_missed="it broke")

    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "gone.json").write_text("{}")
    one, two = execute("b", run, quick=False, folder=tmp_path)
    assert (one.benchmark, one.holds, one.seeds, one.command) == ("b", True, (3,), "python -m benchmarks run b")
    assert set(one.versions) == {"python", *harness.VERSIONED}
    assert one.seconds >= 0 and "cores" in one.device
    assert not two.holds
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["one.json", "two.json"]
    held = json.loads((tmp_path / "b" / "one.json").read_text())
    assert held["detail"] == {"rounds": [0, 1, 2], "device": 0.5, "none": None, "nan": None}
    first, second = harness.records(tmp_path)
    assert first == replace(one, detail=held["detail"])
    assert math.isnan(second.value) and second.if_missed == "it broke"


def test_a_failed_run_removes_nothing(tmp_path):
    def run(quick):
        yield Claim("one", "first", 1.0, "s")
        raise RuntimeError("broke")

    record(name="old").write(tmp_path)
    with pytest.raises(RuntimeError, match="broke"):
        list(execute("b", run, quick=False, folder=tmp_path))
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["old.json", "one.json"]


@pytest.mark.parametrize(("claims", "message"), [((), "made no claim"), (("a", "a"), "twice")])
def test_a_run_without_clear_claims_is_refused(tmp_path, claims, message):
    with pytest.raises(ValueError, match=message):
        list(execute("b", lambda quick: [Claim(c, c, 0.0, "") for c in claims], quick=False, folder=tmp_path))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"benchmark": "b", "seeds": []}'])
def test_a_foreign_record_is_named(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="x.json is not a benchmark record"):
        harness.read(path)


def test_quick_results_go_elsewhere():
    assert not harness.QUICK.is_relative_to(harness.RESULTS)
    assert "/benchmarks/work/" in (harness.HERE.parent / ".gitignore").read_text().splitlines()


# -------------------------------------------------------------------------------------------------- table
def test_table_shows_what_holds_and_what_does_not():
    text = _table.render([
        record(),
        record(name="m", value=1.2, holds=False, if_missed="one core | shared", reference="paper: 1.0"),
        record(benchmark="c", target="", value=3, unit="", seconds=7200),
    ])  # fmt: skip
    good, bad, plain = text.splitlines()[2:5]
    assert good == "| it is so | 1.041 x | <= 1.05 | yes | `run b`, 12 s |"
    assert bad == "| it is so (paper: 1.0) | 1.2 x | <= 1.05 | **missed**: one core \\| shared | `run b`, 12 s |"
    assert plain == "| it is so | 3 | - | - | `run b`, 120 min |"
    assert text.count("Measured on a processor, 2 cores; jax 0.1, numpyro 0.2.") == 1
    assert "quick" not in text and "quick runs" in _table.render([record(quick=True)])
    assert "No records" in _table.render([])


def test_readme_block(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# A\n<!-- results -->\nold\n<!-- /results -->\nrest\n")
    text = _table.render([record()])
    assert not _table.is_current(text, readme)
    assert _table.update(text, readme) and not _table.update(text, readme)
    assert _table.is_current(text, readme)
    assert readme.read_text() == f"# A\n<!-- results -->\n{text}<!-- /results -->\nrest\n"


@pytest.mark.parametrize("text", ["", "<!-- results -->", "<!-- /results --><!-- results -->"])
def test_a_readme_without_the_block_is_refused(text):
    with pytest.raises(UsageError, match="must hold one line"):
        _table.with_table(text, "t")


# ------------------------------------------------------------------------------------------------ command
@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An installation of the harness of its own, with one benchmark ``demo``."""
    (tmp_path / "demo.py").write_text(
        '"""Is one less than two?"""\n'
        "from benchmarks.harness import Claim\n"
        'def run(quick):\n    yield Claim("one", "one is less than two", 1, "", "< 2" if not quick else "< 1")\n'
    )
    (tmp_path / "_private.py").write_text("1/0")
    monkeypatch.setattr(harness, "HERE", tmp_path)
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(harness, "QUICK", tmp_path / "work")
    monkeypatch.setattr(benchmarks, "__path__", [str(tmp_path)])
    import inference.fitting.runtime

    monkeypatch.setattr(inference.fitting.runtime, "tune_runtime", lambda **settings: {})
    return tmp_path


def test_list_run_table(folder, capsys):
    assert command.main(["list"]) == 0
    assert capsys.readouterr().out == "demo  Is one less than two?\n"
    assert command.main(["run", "demo"]) == 0
    assert "one is less than two: 1  (target < 2: holds)" in capsys.readouterr().out
    assert command.main(["table"]) == 0
    assert "| one is less than two | 1 | < 2 | yes |" in capsys.readouterr().out
    assert not (folder / "work").exists()
    assert command.main(["run", "--all", "--quick"]) == 0
    assert "MISSED" in capsys.readouterr().out
    assert harness.read(folder / "results" / "demo" / "one.json").holds
    assert not harness.read(folder / "work" / "demo" / "one.json").holds
    assert command.main(["table", "--quick"]) == 0
    assert "**missed**" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "or --all"),
        (["run", "demoo"], "did you mean 'demo'"),
        (["run", "demo", "nope"], "unknown benchmark 'nope'"),
        (["run", "_private"], "unknown benchmark"),
        (["table", "--quick", "--readme"], "never go into the README"),
    ],
)
def test_a_wrong_command_does_nothing(folder, capsys, arguments, message):
    assert command.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "results").exists()


def test_table_check_fails_when_stale(folder, monkeypatch, capsys):
    page, readme = folder / "benchmarks" / "README.md", folder / "README.md"
    page.parent.mkdir()
    page.write_text("<!-- results -->\n<!-- /results -->\n")
    readme.write_text("<!-- headlines -->\n<!-- /headlines -->\n")
    monkeypatch.setattr(_table, "PAGE", page)
    monkeypatch.setattr(_table, "README", readme)
    record().write(folder / "results")
    assert command.main(["table", "--check"]) == 1
    assert "table --readme" in capsys.readouterr().err
    assert command.main(["table", "--readme"]) == 0
    assert command.main(["table", "--check"]) == 0


def test_headlines_are_filled_in_from_the_records():
    one = record(benchmark="b", name="one", value=0.5, unit="nats", detail={"rows": [{"ari": 0.25}]})
    shown = _headlines.render(
        [one],
        [
            _headlines.Headline("b/one", "it", "k-means {b/one:detail.rows.0.ari}, twice {b/one:value}"),
            _headlines.Headline("b/absent", "nothing", "-"),
        ],
    )
    assert shown.splitlines()[2:] == [f"| it | 0.5 nats | k-means 0.25, twice 0.5 | {one.target} |"]


def test_every_headline_has_its_record():
    found = {f"{one.benchmark}/{one.name}" for one in harness.records()}
    assert [line.record for line in _headlines.HEADLINES if line.record not in found] == []
    assert _headlines.render(harness.records()).count("\n") == len(_headlines.HEADLINES) + 2


def test_every_benchmark_asks_one_question():
    for name, question in harness.benchmarks().items():
        assert question.endswith((".", "?")), f"benchmarks/{name}.py needs a one-sentence docstring, got {question!r}"
        functions = [
            f for f in ast.parse((harness.HERE / f"{name}.py").read_text()).body if isinstance(f, ast.FunctionDef)
        ]
        arguments = [[a.arg for a in f.args.args] for f in functions if f.name == "run"]
        assert arguments == [["quick"]], f"benchmarks/{name}.py needs one function run(quick)"


def test_every_kept_record_is_a_real_run():
    known = harness.benchmarks()  # reads every script: once
    for held in harness.records():
        assert held.benchmark in known and not held.quick
        given = Claim(held.name, held.claim, held.value, held.unit, held.target)
        assert given.holds == held.holds, f"{held.benchmark}/{held.name} says something else than its value"


# -------------------------------------------------------------------------------------------------- clock
def test_interleaved_cpu_time_takes_turns():
    calls = []

    def burn():
        calls.append("burn")
        end = time.process_time() + 0.004
        while time.process_time() < end:
            pass

    def rest():
        calls.append("rest")
        time.sleep(0.004)

    spent = interleaved_cpu_time({"burn": burn, "rest": rest}, rounds=2, steps=3)
    assert calls == ["burn", "rest", *["burn"] * 3, *["rest"] * 6, *["burn"] * 3]
    assert len(spent["burn"].rounds) == 2
    assert 0.004 <= spent["burn"].least <= spent["burn"].median
    assert spent["rest"].median < 0.002, "sleeping is not CPU time"
    with pytest.raises(ValueError, match="at least 1"):
        interleaved_cpu_time({"burn": burn}, rounds=0)
