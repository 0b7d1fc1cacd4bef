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


def test_a_line_says_how_many_data_a_second(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Progress(100, "fit", unit="steps", each=(128, "data")) as shown:
        now = 20.0
        shown.update(10)
        now = 40.0
        shown.update(60, {"loss": 3.25})
    assert capsys.readouterr().err.splitlines() == [
        "fit: 10/100 steps",
        "fit: 60/100 steps, 2.5 steps/s, 16 s left, 320 data/s | loss 3.25",
    ]
