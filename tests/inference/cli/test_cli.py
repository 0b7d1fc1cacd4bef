"""The command line: exit codes, suggestions, and one run from fit to comparison."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from inference import read_evidence, save_evidence
from inference.cli.app import main

ROOT = Path(__file__).resolve().parents[3]
TINY = ["--data", "digits", "--n", "150", "--batch-size", "50", "--test-n", "12", "--particles", "30", "--draws", "6"]

PLUGIN = '''
"""A family of the user's own: probabilistic PCA of the digits."""
import jax
import numpyro
import numpyro.distributions as dist
from dataclasses import dataclass
from ppl_models.program import Observation, Program, register


@dataclass(frozen=True)
class Mine:
    shape: tuple[int, ...] = (8, 8)
    levels: int = 17

    def build(self, key):
        start = 0.1 * jax.random.normal(key, (2, 64))

        def model(x=None, *, size=None):
            weights = numpyro.param("W", start)
            with numpyro.plate("data", (size or 1) if x is None else x.shape[0]):
                z = numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1), infer={"ctx": None})
                numpyro.sample("x", dist.Normal((z @ weights).reshape(-1, 8, 8), 1.0).to_event(2), obs=x)

        def posterior(x):
            scale = numpyro.param("scale", 0.5, constraint=dist.constraints.positive)
            mean = x.reshape(-1, 64) @ numpyro.param("V", start).T / 64
            return lambda site, ctx: dist.Normal(mean, scale).to_event(1)

        return Program(spec=self, model=model, posterior=posterior, latents=("z",), shape=self.shape,
                       observation=Observation(f"x / {self.levels - 1}",
                                               prepare=lambda x, key, training: x.astype("float32") / 16))


register("mine", Mine, presets={"tiny": Mine()}, paper="none")
'''


@pytest.fixture(autouse=True)
def untuned(monkeypatch):
    """Leave the allocator and the compile cache of the test session as they are."""
    monkeypatch.setattr("inference.fitting.runtime.tune_runtime", lambda **settings: {})


def call(capsys, *words):
    """Run one command; return (exit code, stdout, stderr)."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# ----------------------------------------------------------------------------------------------- words
USAGE = {
    "command": (["fitt"], "unknown command 'fitt' (did you mean 'fit'?)"),
    "nested command": (["data", "lst"], "(did you mean 'list'?)"),
    "option": (["fit", "mfcvae", "--dta", "digits"], "unknown option '--dta' (did you mean '--data'?)"),
    "option with value": (["fit", "mfcvae", "--learning-rte=3"], "(did you mean '--learning-rate'?)"),
    "option before the command": (["--seed", "1", "fit"], "unknown option '--seed'"),
    "missing option": (["fit", "mfcvae", "--data", "digits"], "--out"),
    "missing command": (["data"], "list"),
    "no number": (["fit", "mfcvae", "--data", "digits", "--out", "x", "--steps", "many"], "--steps"),
    "family": (["fit", "mfcvea", "--data", "digits", "--out", "x"], "(did you mean 'mfcvae'?)"),
    "preset": (["fit", "mfcvae:digts", "--data", "digits", "--out", "x"], "(did you mean 'digits'?)"),
    "data": (["fit", "mfcvae", "--data", "digit", "--out", "x"], "(did you mean 'digits'?)"),
    "data to get": (["data", "get", "digit"], "(did you mean 'digits'?)"),
    "spec file": (["fit", "absent.toml", "--data", "digits", "--out", "x"], "no spec file 'absent.toml'"),
    "steps": (["fit", "mfcvae", "--data", "digits", "--out", "x", "--steps", "0"], "--steps must be at least 1, got 0"),
    "rate": (
        ["fit", "mfcvae", "--data", "digits", "--out", "x", "--learning-rate", "-1"],
        "--learning-rate must be pos",
    ),
    "patience": (["fit", "mfcvae", "--data", "digits", "--out", "x", "--patience", "2"], "add --validation N"),
    "validation": (["fit", "mfcvae", "--data", "digits", "--out", "x", "--validation", "1500"], "give at most 1499"),
    "n": (["fit", "mfcvae", "--data", "digits", "--out", "x", "--n", "1501"], "n must be at most 1,500"),
    "batch": (["fit", "mfcvae", "--data", "digits", "--out", "x", "--batch-size", "9999"], "give at most 1500"),
    "particles": (
        ["fit", "mfcvae", "--data", "digits", "--out", "x", "--particles", "1"],
        "--particles must be at least 2",
    ),
    "own data of a program without": (["fit", "mfcvae", "--data", "own", "--out", "x"], "fit it to a data set: digits"),
    "subset of own data": (["fit", "in_context", "--data", "own", "--n", "9", "--out", "x"], "--n 9 takes a subset"),
    "rule": (["coherence", "temperd:1.2"], "no run folder and no rule 'temperd:1.2' (did you mean 'tempered'?)"),
    "rule without a number": (["coherence", "tempered"], "write tempered:T"),
    "option of coherence": (["coherence", "bayes", "--dpth", "3"], "(did you mean '--depth'?)"),
    "context": (["coherence", "bayes", "--context", "012"], "speaks of the symbols 0..1"),
    "path length": (["coherence", "bayes", "--steps", "3"], "paths of at least 6 steps, got 3"),
    "tree": (["coherence", "bayes", "--depth", "40"], "depth must be between 1 and 17"),
    "no run": (["diagnose", "absent"], "no run folder 'absent'"),
    "one run": (["compare", "a"], "two or more different run folders"),
    "the same run twice": (["compare", "a", "./a"], "two or more different run folders"),
    "plug-in": (
        ["fit", "mine", "--plugin", "absent.py", "--data", "digits", "--out", "x"],
        "no plug-in file 'absent.py'",
    ),
}


@pytest.mark.parametrize("case", USAGE)
def test_a_wrong_command_line_exits_2_says_how_to_mend_it_and_does_nothing(case, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, says = USAGE[case]
    code, out, err = call(capsys, *words)
    assert code == 2 and out == "" and "Traceback" not in err
    assert says in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", [[], ["--help"], ["fit", "--help"], ["data", "--help"], ["data", "get", "-h"], ["quickstart", "--help"]]
)
def test_help_exits_0_on_stdout(words, capsys):
    code, out, err = call(capsys, *words)
    assert code == 0 and "usage: ppl-models" in out and err == ""


def test_help_shows_units_defaults_and_examples(capsys):
    _, out, _ = call(capsys, "fit", "--help")
    text = " ".join(out.replace("│", " ").split())
    assert "Updates of the parameters [steps]. (default: 2000)" in text
    assert "ppl-models fit mfcvae:digits --data digits --out runs/digits" in text
    assert "(default: never stop early)" in text


def test_version(capsys):
    code, out, _ = call(capsys, "--version")
    assert code == 0 and out.startswith("ppl-models ")


def test_an_unwritable_folder_and_a_torn_run_exit_1(capsys, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = call(capsys, "fit", "mfcvae", "--data", "digits", "--out", tmp_path / "file" / "run")
    assert code == 1 and "cannot write to --out" in err and err.count("\n") == 1
    (tmp_path / "run.json").write_text('{"format": ')
    code, _, err = call(capsys, "diagnose", tmp_path)
    assert code == 1 and "torn" in err and err.count("\n") == 1


def test_debug_shows_the_traceback_in_either_place(capsys):
    for words in (["--debug", "fit", "nope", "--data", "digits", "--out", "x"], ["diagnose", "absent", "--debug"]):
        code, _, err = call(capsys, *words)
        assert code == 2 and "Traceback" in err


def test_an_unexpected_error_exits_1_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr("inference.cli.data.data_list", lambda as_json: 1 / 0)
    code, _, err = call(capsys, "data", "list")
    assert code == 1 and err == "ppl-models: error: ZeroDivisionError: division by zero (--debug shows where)\n"


def test_a_foreign_folder_is_left_alone(capsys, tmp_path):
    note = tmp_path / "note.txt"
    note.write_text("mine")
    for more in ([], ["--overwrite"]):
        code, _, err = call(capsys, "fit", "mfcvae", "--data", "digits", "--out", tmp_path, *more)
        assert code == 2 and "left alone" in err and note.read_text() == "mine"
    (tmp_path / "one-facet").mkdir()
    (tmp_path / "one-facet" / "note.txt").touch()
    code, _, err = call(capsys, "quickstart", "--out", tmp_path)
    assert code == 2 and "was not made by an earlier quickstart" in err


# --------------------------------------------------------------------------------------------- listings
def test_data_list_is_readable_by_people_and_machines(capsys):
    code, out, _ = call(capsys, "data", "list")
    assert code == 0 and any(line.split()[:3] == ["digits", "yes", "8x8"] for line in out.splitlines())
    _, out, _ = call(capsys, "data", "list", "--json")
    assert json.loads(out)["digits"]["sizes"] == {"train": 1500, "test": 297}
    code, out, _ = call(capsys, "data", "get", "digits")
    assert code == 0 and "licence" in out


def test_families_is_readable_by_people_and_machines(capsys, tmp_path):
    plugin = tmp_path / "listed.py"
    plugin.write_text(PLUGIN.replace('register("mine"', 'register("listed"'))
    code, out, _ = call(capsys, "families", "--json", "--plugin", plugin)
    facts = json.loads(out)
    assert code == 0 and facts["listed"]["presets"]["tiny"]["parameters"] == 2 * 2 * 64 + 1
    assert facts["mfcvae"]["presets"]["digits"]["latents"] == ["z_style", "z_digit"]


# ------------------------------------------------------------------------------------------ a whole run
@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two fitted runs of a plug-in family: one evaluated, one not."""
    folder = tmp_path_factory.mktemp("runs")
    plugin = folder / "mine.py"
    plugin.write_text(PLUGIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inference.fitting.runtime.tune_runtime", lambda **settings: {})
        words = ["fit", "mine:tiny", "--plugin", str(plugin), *TINY, "--steps", "30", "--quiet"]
        assert main([*words, "--out", str(folder / "full")]) == 0
        assert main([*words, "--out", str(folder / "bare"), "--no-evaluate", "--seed", "1"]) == 0
    return folder


def test_fit_writes_a_run_that_the_ecosystem_reads(runs):
    full = runs / "full"
    assert {"spec.json", "run.json", "report.html"} <= {path.name for path in full.iterdir()}
    assert len(pd.read_csv(full / "evidence.csv")) == 12
    assert set(pd.read_csv(full / "diagnosis.csv")["verdict"]) <= {"ok", "warn", "fail"}
    with xr.open_datatree(full / "posterior.nc") as tree:
        assert tree["posterior"]["z"].shape == (1, 6, 12, 2)
    card = json.loads((full / "run.json").read_text())["card"]
    assert card["name"] == "digits" and card["n"] == 150 and Path(card["plugins"][0]["path"]).name == "mine.py"
    assert not list((runs / "bare").glob("evidence*"))


def test_later_commands_read_the_run(runs, capsys):
    code, out, _ = call(capsys, "diagnose", runs / "full", "--json")
    assert code == 0 and {"check", "value", "threshold", "verdict", "meaning", "remedy"} == set(json.loads(out)[0])
    code, out, _ = call(capsys, "sample", runs / "full", "--n", "5")
    assert code == 0
    with np.load(runs / "full" / "samples.npz") as drawn:
        assert drawn["x"].shape == (5, 8, 8) and np.ptp(drawn["x"]) > 0


def test_calibration_is_a_line_a_table_and_a_section_where_it_is_asked_for(runs, capsys, tmp_path):
    run = Path(shutil.copytree(runs / "full", tmp_path / "full"))
    code, _, err = call(capsys, "resume", run, "--calibration", "40")
    assert code == 0 and "calibrating the posterior on 40 data" in err
    table = pd.read_csv(run / "calibration.csv", index_col="quantity")
    assert {"z[0]", "log_lik", "log_q", "log_weight", "tarp"} <= set(table.index)
    checks = pd.read_csv(run / "diagnosis.csv").set_index("check")
    assert checks.loc["calibration (joint p-value)", "value"] == pytest.approx(table["p_holm"].min())
    page = (run / "report.html").read_text()
    assert 'id="calibration"' in page and "could not be drawn" not in page and "calibration.csv" in page
    assert call(capsys, "resume", run, "--calibration", "5")[0] == 2


def test_compare_computes_only_what_is_missing(runs, capsys):
    words = ["compare", runs / "full", runs / "bare", "--out", runs / "comparison"]
    kept = (runs / "full" / "evidence.csv").stat().st_mtime_ns
    code, out, err = call(capsys, *words, "--json")
    assert code == 0 and {row["name"] for row in json.loads(out)} == {"full", "bare"}
    assert f"{runs / 'bare'}: evidence" in err and f"{runs / 'full'}: evidence" not in err
    assert (runs / "full" / "evidence.csv").stat().st_mtime_ns == kept
    code, out, err = call(capsys, *words)
    assert code == 0 and "evidence of" not in err and "paired standard errors" in out
    page = (runs / "comparison" / "comparison.html").read_text()
    assert 'href="../full/report.html"' in page


def test_compare_refuses_other_data_and_other_observations_before_any_work(runs, capsys, tmp_path):
    for entry, says in (({"name": "facets_a"}, "models? of data 'digits'"), ({}, "cannot be compared")):
        other = tmp_path / (entry.get("name") or "other")
        shutil.copytree(runs / "bare", other)
        record = json.loads((other / "run.json").read_text())
        record["card"].update(entry)
        (other / "run.json").write_text(json.dumps(record))
        if not entry:
            (other / "spec.json").write_text((other / "spec.json").read_text().replace('"levels": 17', '"levels": 16'))
        code, _, err = call(capsys, "compare", runs / "full", other, "--out", tmp_path / "comparison")
        assert code == 2 and re.search(says, err) and not (tmp_path / "comparison").exists()


def test_compare_puts_what_scores_the_same_together(runs, capsys, tmp_path):
    table = read_evidence(runs / "full")
    for name, observation in (("same", table.attrs["observation"]), ("b1", "binary"), ("b2", "binary"), ("c", "other")):
        table.attrs["observation"] = observation
        (tmp_path / name).mkdir()
        save_evidence(table, tmp_path / name)
    words = ["compare", runs / "full", *(tmp_path / name for name in ("same", "b1", "b2", "c"))]
    code, out, err = call(capsys, *words, "--out", tmp_path / "out")
    assert code == 0 and "/c alone scores 'other'" in err and out.count("stacking weight") == 2
    found = pd.read_csv(tmp_path / "out" / "comparison.csv")
    by_score = found.groupby("observation")["name"].agg(sorted).to_dict()
    assert by_score == {"binary": ["b1", "b2"], "x / 16": ["full", "same"]}
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert page.count("<h2>Result: ") == 2 and (tmp_path / "out" / "comparison_2.png").exists()
    code, _, err = call(capsys, "compare", tmp_path / "c", "--baselines", "--out", tmp_path / "none")
    assert code == 2 and "only a table of evidence" in err
    code, _, err = call(capsys, *words, "--test-n", "13", "--out", tmp_path / "none")
    assert code == 2 and "more than the 12 data" in err and not (tmp_path / "none").exists()


def test_coherence_of_a_run_without_a_predictor_is_refused(runs, capsys):
    code, out, err = call(capsys, "coherence", runs / "bare")
    assert code == 2 and out == "" and "whose program has no predictor" in err


def test_an_existing_run_is_not_overwritten_unasked(runs, capsys):
    before = (runs / "bare" / "run.json").read_bytes()
    words = ["fit", "mfcvae", *TINY, "--out", runs / "bare"]
    code, _, err = call(capsys, *words)
    assert code == 2 and "ppl-models resume" in err and "--overwrite" in err
    code, _, err = call(capsys, *words, "--overwrite", "--batch-size", "5000")  # refused for another reason
    assert code == 2 and (runs / "bare" / "run.json").read_bytes() == before


def test_a_plugin_that_is_gone_is_asked_for(runs, capsys, tmp_path):
    record = runs / "bare" / "run.json"
    text = record.read_text()
    try:
        record.write_text(text.replace("mine.py", "moved.py"))
        code, _, err = call(capsys, "sample", runs / "bare")
        assert code == 2 and "which is gone" in err and "--plugin NEW/PLACE/moved.py" in err
    finally:
        record.write_text(text)


# ------------------------------------------------------------------------------------------ interruption
def spawn(*words):
    """Start the command line in a process of its own, with the compile cache of the tests."""
    return subprocess.Popen(
        [sys.executable, "-c", "from inference.cli.app import main; import sys; sys.exit(main())", *map(str, words)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


def test_ctrl_c_leaves_a_run_that_resumes(runs, capsys, tmp_path):
    out = tmp_path / "stopped"
    process = spawn("fit", "mine:tiny", "--plugin", runs / "mine.py", *TINY, "--steps", "100000000", "--out", out)
    history = out / "run.json"
    deadline = time.monotonic() + 240
    while not history.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    assert f"continue: ppl-models resume {out}" in err and "Traceback" not in err
    record = json.loads(history.read_text())
    record["arguments"]["steps"] = int(record["info"].get("steps", 0)) + 10
    history.write_text(json.dumps(record))
    code, text, err = call(capsys, "resume", out, "--no-evaluate", "--quiet")
    assert code == 0 and f"{record['arguments']['steps']:,} steps" in text, err


def test_a_closed_pipe_is_quiet():
    with spawn("data", "list") as process:
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 0 and err == ""


def test_help_does_not_wait_for_jax():
    code = "import sys; from inference.cli.app import main; main(['fit', '--help']); sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
