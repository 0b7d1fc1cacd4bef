"""What users hold on to stays: public names, the words of the command line, run folders written by version 0.1.0.

``tests/kept/`` was written by that version.  Additions are welcome; a line there changes only with a major version.
"""

import importlib
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from inference import load, read_evidence
from inference.cli.app import main

KEPT = Path(__file__).parent / "kept"
HELP = sorted((KEPT / "help").glob("*.txt"))
RUN = KEPT / "run_0_1_0"


@pytest.fixture(autouse=True)
def untuned(monkeypatch):
    """Leave the allocator and the compile cache of the test session as they are."""
    monkeypatch.setattr("inference.fitting.runtime.tune_runtime", lambda **settings: {})


@pytest.mark.parametrize("module", json.loads((KEPT / "names.json").read_text()))
def test_public_names_are_still_there(module):
    names = json.loads((KEPT / "names.json").read_text())[module]
    assert [name for name in names if not hasattr(importlib.import_module(module), name)] == []


def plain(text):
    """Words of a help text without boxes and line breaks."""
    return re.sub(r"(?:[\s─│╭╮╰╯├┤]|-{4,})+", " ", text)


@pytest.mark.parametrize("file", HELP, ids=lambda file: file.stem)
def test_help_says_what_it_said(file, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    assert main([*file.stem.split("_")[1:], "--help"]) == 0
    now = plain(capsys.readouterr().out)
    # The usage line is a summary, shortened where there are many options; every option has a paragraph below.
    before = plain(file.read_text().split("\n\n", 1)[1])
    # From option to option, or to the next box: another option may have come between.
    missing = [part for part in re.split(r"(?= --[a-z]| common options )", before) if part.strip() not in now]
    assert missing == []


def test_there_is_a_help_text_for_every_verb():
    from inference.cli.app import COMMANDS

    verbs = {"_".join(file.stem.split("_")[1:]) for file in HELP}
    assert set(COMMANDS) <= verbs, "run `ppl-models VERB --help > tests/kept/help/ppl-models_VERB.txt` for a new verb"


@pytest.fixture
def run(tmp_path):
    return Path(shutil.copytree(RUN, tmp_path / "run"))


def arrays(file):
    with np.load(file) as saved:
        return {name: saved[name] for name in saved.files if saved[name].dtype.kind == "f"}


def test_a_run_of_the_version_before_opens(run):
    fit = load(run)
    assert fit.info["steps"] == 20 and len(fit.history) == 20 and fit.program.latents == ("z_style", "z_digit")
    saved = arrays(run / "checkpoint" / "step_00000020.npz")
    leaves = jax.tree_util.tree_flatten_with_path(fit.params)[0]
    assert len(leaves) == sum(name.startswith("['state']['params']") for name in saved)
    for path, leaf in leaves:
        np.testing.assert_array_equal(leaf, saved[f"['state']['params']{jax.tree_util.keystr(path)}"])
    assert read_evidence(run).attrs["particles"] == 8


def test_a_run_of_the_version_before_resumes_and_reports(run, capsys):
    expected = arrays(run / "checkpoint" / "step_00000020.npz")
    (run / "checkpoint" / "step_00000020.npz").unlink()  # as if it had been killed after step 18
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "info": {}}))
    assert main(["resume", str(run), "--no-evaluate", "--quiet"]) == 0
    found = arrays(run / "checkpoint" / "step_00000020.npz")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # One machine gives the same bits; another may round otherwise.
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    assert main(["report", str(run)]) == 0, capsys.readouterr().err
    page = (run / "report.html").read_text()
    assert "could not be drawn" not in page and "log p(x)" in page
