"""The README's Python runs as it stands, only shorter."""

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from inference.cli.app import main

ROOT = Path(__file__).resolve().parent.parent


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    code = "\n".join(blocks)
    assert len(blocks) == 2 and "steps=4000" in code and '"test")' in code
    for long, short in (
        ("steps=4000", "steps=20"),
        ("refit=(500, 1000)", "refit=(10,)"),
        ("refit=(500, 1000)", "refit=(10,)"),
        ("warmup=500", "warmup=10"),
        ('load("digits", "test")', 'load("digits", "test", n=20)'),
        ("inference.evidence(fit, x_test, key=key)", "inference.evidence(fit, x_test, key=key, particles=32)"),
        ("factors=labels)           #", "factors=labels, draws=10)  #"),
    ):
        assert long in code, f"the README no longer has {long!r}"
        code = code.replace(long, short, 1)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert (tmp_path / "runs" / "digits" / "report.html").exists()
    assert names["drawn"].shape == (1, 16, 8, 8) and len(names["table"]) == 20


def test_the_commands_on_a_table_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = (ROOT / "README.md").read_text().split("## Tables")[1]
    first, *commands = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)[0].splitlines()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("inference.fitting.runtime.tune_runtime", lambda **settings: {})
    exec(re.fullmatch(r'python -c "(.*)"', first)[1], {})
    assert len(commands) == 4
    for command in commands:
        program, verb, *words = shlex.split(command, comments=True)
        short = ["--steps", "40", "--particles", "32", "--draws", "8", "--quiet"] if verb == "fit" else []
        assert program == "ppl-models" and main([verb, *words, *short]) == 0, capsys.readouterr().err
    run = tmp_path / "runs" / "wine"
    assert len(pd.read_csv(run / "assignments.csv")) == 178 and (run / "report.html").exists()
    filled = pd.read_csv(run / "imputed_table.csv")
    assert len(pd.read_csv(run / "imputed.csv")) == 26 and not filled.isna().any(axis=None)
