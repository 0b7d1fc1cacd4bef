"""Progress in a log: lines now and then, with a rate that leaves the first piece (and its compilation) out."""

import time

import pytest

from inference.fitting.progress import Progress


def test_lines_in_a_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Progress(100, "fit", unit="steps") as shown:
        now = 20.0  # twenty seconds of compilation
        shown.update(10, {"loss": 3.25})
        now = 21.0
        shown.update(20)
        now = 36.0
        shown.update(70)
        now = 45.0
        shown.update(100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "fit: 10/100 steps | loss 3.25",
        "fit: 70/100 steps, 3.75 steps/s, 8 s left | loss 3.25",
        "fit: 100/100 steps, 45 s | loss 3.25",
    ]


def test_short_work_and_silence_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for show in (True, False):
        with Progress(3, "short", show=show) as shown:
            shown.update(3)
    assert capsys.readouterr().err == ""
