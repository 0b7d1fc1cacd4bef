"""Remedies that are chosen together: whatever lines a diagnosis has, none advises what another speaks against."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest

from inference.checking import diagnostics, remedies
from inference.checking.generalisation import Generalisation, held_out_checks
from inference.checking.remedies import ENCODER, GENERATIVE, OTHERS, RISING, WHOLE, advice, clauses, kinds, together
from inference.checking.training_lines import training_checks
from ppl_models.program import Check

rng = np.random.default_rng(0)
N = 40


def table(khat: float, gap: float) -> pd.DataFrame:
    log_px = rng.normal(size=N)
    frame = pd.DataFrame({"log_px": log_px, "se": 0.01, "elbo": log_px - gap, "ess": 200.0, "khat": khat})
    frame.attrs = {"particles": 512, "estimator": "importance"}
    return frame


def history(**columns: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"step": np.arange(1, 101), **columns})


def split(generative: float, encoder: float) -> list[Check]:
    log_px = np.linspace(-1, 1, N)
    return held_out_checks(Generalisation(log_px + generative, log_px - encoder, log_px + generative, log_px))


FALLING, RISING_AGAIN = np.linspace(9, 5, 100), np.linspace(5, 9, 100)
TRAINING = {
    "settled": lambda: training_checks(history(loss=5 + 0.01 * rng.normal(size=100)), {"steps": 100}),
    "training loss falls": lambda: training_checks(history(loss=FALLING), {"steps": 100}),
    "training loss rises": lambda: training_checks(history(loss=RISING_AGAIN), {"steps": 100}),
    "validation falls": lambda: training_checks(history(loss=FALLING, validation_elbo=-FALLING), {"steps": 100}),
    "chosen": lambda: training_checks(history(loss=FALLING), {"steps": 100, "best_step": 20}),
}
HELD_OUT = {
    "none": lambda: split(0.0, 0.0),
    "generative": lambda: split(1.5, 0.0),
    "encoder": lambda: split(0.0, 1.5),
    "both": lambda: split(1.5, 1.5),
    "not told apart": lambda: held_out_checks(Generalisation(np.linspace(1, 3, N), np.linspace(-1, 1, N))),
}
EVIDENCE = {
    "fine": lambda: diagnostics.evidence_checks(table(0.3, 0.01), {"z": np.full(N, 4.0)}),
    "heavy": lambda: diagnostics.evidence_checks(table(0.9, 3.0), {"z": np.full(N, 4.0)}),
}
SITES = {
    "alive": lambda: diagnostics.site_checks({"z": np.full(N, 2.0)}, {}),
    "collapsed": lambda: diagnostics.site_checks({"z": np.zeros(N)}, {}),
}
FAMILY = {
    "none": lambda: [],
    "levels": lambda: [Check("levels", 1.0, "0", "warn", "collapsed", "Train longer (coarse last); take them out.")],
    "misfit": lambda: [Check("spread", 0.0, "1", "fail", "off", f"Another likelihood; {remedies.LARGER}.")],
    "both": lambda: [
        Check("levels", 1.0, "0", "warn", "collapsed", "train longer, or stop early; a weaker decoder"),
        Check("spread", 0.0, "1", "fail", "off", "a larger network; a smaller encoder; more training data"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("training", TRAINING)
def test_no_combination_of_lines_contradicts_itself(training: str, refined: bool) -> None:
    for held_out, evidence, sites, family in itertools.product(HELD_OUT, EVIDENCE, SITES, FAMILY):
        lines = [
            line
            for bank, name in ((TRAINING, training), (HELD_OUT, held_out), (EVIDENCE, evidence), (SITES, sites),
                               (FAMILY, family))
            for line in bank[name]()
        ]  # fmt: skip
        found = together(lines, refined=refined, chosen=training == "chosen")
        case = (training, held_out, evidence, sites, family)
        assert [dataclasses.replace(line, remedy="") for line in found] == [
            dataclasses.replace(line, remedy="") for line in lines
        ]
        assert all(line.remedy for line in found if line.verdict != "ok"), case
        said = {kind for text in advice(found) for kind in kinds(text)}
        assert not [pair for pair in remedies.OPPOSED if said >= set(pair)], (case, advice(found))
        assert not (refined and "refine" in said), case
        bad = {line.check for line in found if line.verdict != "ok"}
        if training == "chosen":
            assert not said & {"longer", "early"}, case
        if training == "validation falls":
            assert "longer" in said and "early" not in said, case
        elif bad & {WHOLE, GENERATIVE, ENCODER}:
            assert "longer" not in said, case
        if ENCODER in bad:
            assert "larger encoder" not in said, case
        if bad & {GENERATIVE} or (WHOLE in bad and ENCODER not in bad):
            assert "larger decoder" not in said, case


def test_few_validations_decide_as_much_as_many() -> None:
    """Three values show no trend; the training loss that falls on is not asked instead where one of them was chosen."""
    few = history(
        loss=FALLING, validation_elbo=np.r_[np.full(80, np.nan), -6.0, np.full(9, np.nan), -5.0, np.full(9, np.nan)]
    )
    (_, line) = training_checks(few, {"steps": 100, "best_step": 91})
    assert (line.check, line.verdict) == (RISING, "ok") and "step 91 of 100" in line.meaning
    said = {kind for text in advice(together(HELD_OUT["generative"](), validated=True)) for kind in kinds(text)}
    assert said == {"smaller decoder"}  # stopped early as it is


def test_a_line_whose_remedy_is_ruled_out_points_to_the_others() -> None:
    lines = [*TRAINING["training loss falls"](), *HELD_OUT["generative"]()]
    found = {line.check: line for line in together(lines)}
    assert found[RISING].remedy == OTHERS and found[RISING].verdict == "warn"
    assert OTHERS not in advice(found.values())


def test_clauses_keep_what_belongs_together() -> None:
    remedy = "More data; a decoder (dropout; see weights={'kl': f.g}); look at inference.refine(fit, x). Then stop."
    assert clauses(remedy) == [
        "More data", "a decoder (dropout; see weights={'kl': f.g})", "look at inference.refine(fit, x)", "Then stop",
    ]  # fmt: skip
    assert kinds("more training data") == set() and kinds("Longer training") == {"longer"}


def test_advice_has_the_failed_lines_first_and_nothing_twice() -> None:
    lines = [
        Check("a", 0.0, "", "warn", "", "More particles; another seed."),
        Check("b", 0.0, "", "fail", "", "lower the rate; more particles"),
        Check("c", 0.0, "", "ok", "", "nothing"),
    ]
    assert advice(lines) == ["Lower the rate.", "More particles.", "Another seed."]
