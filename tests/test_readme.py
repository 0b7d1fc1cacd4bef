"""The README's Python runs as it stands, only shorter."""

import re
from pathlib import Path

import pytest

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
