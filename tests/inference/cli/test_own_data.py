"""The command line on draws of the program itself, and the coherence of sequence models and rules."""

import json
import shutil

import pandas as pd
import pytest

from inference.cli.app import main
from tests.inference.cli.test_cli import PLUGIN, ROOT, TINY, call, spawn, untuned  # noqa: F401 - a fixture used by name


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Two models of real sequences, fitted to own draws, one with latents, one without; a Beta compiles slowly"""
    from ppl_models.in_context import Gaussian, InContext, PriorFitted, SetEncoder
    from ppl_models.program import spec_to_json

    folder = tmp_path_factory.mktemp("own")
    words = [
        "--data",
        "own",
        "--steps",
        "5",
        "--batch-size",
        "16",
        "--particles",
        "12",
        "--draws",
        "4",
        "--test-n",
        "12",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inference.fitting.runtime.tune_runtime", lambda **settings: {})
        for name, network in (("guide", SetEncoder(width=8)), ("net", PriorFitted(8, 1, 2, 8))):
            spec = folder / f"{name}.json"
            spec.write_text(spec_to_json(InContext(Gaussian(), network, shape=(8,))))
            assert main(["fit", str(spec), *words, "--out", str(folder / name), "--quiet"]) == 0
    return folder


def test_a_program_is_fitted_to_its_own_draws_and_finds_them_again(own, capsys):
    for name in ("guide", "net"):
        run = own / name
        card = json.loads((run / "run.json").read_text())["card"]
        assert (card["name"], card["seed"], card["test_n"], card["shape"], card["levels"]) == ("own", 0, 12, [8], None)
        assert len(pd.read_csv(run / "evidence.csv")) == 12
        assert "fitted to its own draws" in (run / "report.html").read_text()
        assert "held-out gap" not in set(pd.read_csv(run / "diagnosis.csv")["check"])  # no datum is seen twice
    kept = (own / "guide" / "evidence.csv").stat().st_mtime_ns
    code, _, err = call(capsys, "diagnose", own / "guide")
    assert code == 0 and "evidence" not in err  # its held-out data are those of evidence.csv
    code, out, err = call(capsys, "compare", own / "guide", own / "net", "--out", own / "comparison")
    assert code == 0 and "evidence of" not in err and "12 data" in out, err
    assert (own / "guide" / "evidence.csv").stat().st_mtime_ns == kept


def test_own_sets_grow_and_differ():
    from inference.cli import runs
    from ppl_models.program import resolve

    sampler = resolve("in_context:tiny").sampler
    card = {"name": "own", "seed": 0, "validation": 300, "test_n": 300}
    data = runs.load_data(card, sampler)
    assert data.train is sampler and data.test.shape == data.validation.shape == (300, 8)
    assert (runs.load_test(card, sampler, test_n=7)[0] == data.test[:7]).all()
    assert (data.test != data.validation).any() and (data.test[:44] != data.test[256:]).any()
    with pytest.raises(ValueError, match="no sampler any more"):
        runs.load_test(card, None)


def test_compare_refuses_draws_of_other_programs(own, capsys, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(own / "guide", other)
    spec = json.loads((other / "spec.json").read_text())
    spec["spec"]["task"]["loc"] = 20.0
    (other / "spec.json").write_text(json.dumps(spec))
    code, _, err = call(capsys, "compare", own / "guide", other, "--out", tmp_path / "comparison")
    assert code == 2 and "draw different data" in err and not (tmp_path / "comparison").exists()


def test_an_interrupted_run_on_own_data_resumes(own, capsys, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(own / "guide", run)
    record = json.loads((run / "run.json").read_text())
    record["info"], record["arguments"]["steps"] = {"stopped": "interrupted", "steps": 5}, 8
    (run / "run.json").write_text(json.dumps(record))
    code, out, err = call(capsys, "resume", run, "--no-evaluate", "--quiet")
    assert code == 0 and "8 steps" in out, err


# ------------------------------------------------------------------------------------------------ coherence
CHECK = ["--contexts", "2", "--n", "3", "--steps", "6", "--paths", "8", "--depth", "2"]


def test_coherence_of_rules_and_runs(own, capsys, tmp_path):
    code, out, _ = call(capsys, "coherence", "beta:1,1", *CHECK)
    assert code == 0 and "Coherent: a martingale and exchangeable to depth 2" in out
    code, out, err = call(capsys, "coherence", own / "net", *CHECK)
    assert code == 2 and out == "" and "--depth is of the exact tree" in err
    code, out, err = call(capsys, "coherence", own / "net", *CHECK[:-2], "--out", tmp_path / "out")
    assert code == 0 and "real symbols have no exact tree" in out
    assert "sequences of 9 symbols are checked, 8 were trained on" in err
    assert len(pd.read_csv(tmp_path / "out" / "contexts.csv")) == 2


def test_the_help_of_coherence_lists_every_rule():
    from inference.cli.coherence import Coherence
    from ppl_models.in_context import RULES

    listed = " ".join((Coherence.__doc__ or "").split())
    assert [name for _, how in RULES.values() if (name := how.split()[0]) not in listed] == []
