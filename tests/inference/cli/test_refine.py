"""``--refine`` and the sentences of the quickstart: what is asked for is what is used, and numbers become words."""

import jax
import numpy as np
import pandas as pd
import pytest

from inference import fit
from inference.checking.refinement import Refined
from inference.cli import learnt, refined, tables
from inference.cli.app import parse
from ppl_models.mfcvae.mixture import unconstrained
from ppl_models.mfcvae.use import assign, encode
from tests.toy import PPCA, register_toy, toy_data

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    register_toy()
    program = PPCA().build(KEY)
    return fit(
        program,
        toy_data(64),
        steps=5,
        batch_size=32,
        key=KEY,
        out=tmp_path_factory.mktemp("runs") / "a",
        progress=False,
    )


def test_evidence_is_made_again_only_where_it_was_not_made_so(run, capsys) -> None:
    x = toy_data(80)[64:]
    assert tables.refine_of(run, None) is None and refined.with_posteriors(run, x, "flagged") is run
    plain = tables.table_of(run, x, particles=64, refine="none")
    assert plain.attrs["refine"] == "none" and tables.refine_of(run, None) == "none"
    assert tables.table_of(run, x, particles=None, refine=None).equals(plain)
    capsys.readouterr()
    found = refined.with_posteriors(run, x, "all", particles=64, progress=False)
    assert isinstance(found, Refined) and len(found.table) == 16
    table = tables.table_of(found, x, particles=64, refine="all")
    assert "evidence of 16" in capsys.readouterr().err and table.attrs["refine"] == "all"
    assert (table["estimator"] == found.table["estimator"]).all() and tables.refine_of(run, None) == "all"
    assert tables.table_of(found, x, particles=64, refine="all").equals(table) and not capsys.readouterr().err
    tree = tables.tree_of(found, x, {})
    assert tree.attrs["posterior"] == "refined" and tables.tree_of(run, x, {}).attrs["posterior"] == "amortised"


class Held:
    """A fit that holds draws of its own for certain data, as a refined one does."""

    def __init__(self, z: np.ndarray) -> None:
        self.z = z
        means = np.array([[-2.0], [2.0]], "float32")
        one = unconstrained(np.ones(2)).astype("float32")
        mixture = {"means": means, "logits": np.zeros(2, "float32"), "variance": one}
        self.params = {"mixture_a": mixture}
        self.program = type("P", (), {"latents": ("z_a",), "posterior": None})()
        self.asked = 0

    def latents(self, x, *, draws, key):
        self.asked = draws
        return {"z_a": np.broadcast_to(self.z[:, :1], (len(self.z), draws, 1)) if draws > 4 else self.z[:, :draws]}


def test_assign_and_encode_take_the_draws_that_a_refined_fit_holds() -> None:
    z = np.array([[-1.0, 0.5, 0.2, 0.0], [2.0, 1.0, -0.3, 1.0]], "float32")[..., None]
    fit = Held(z)
    # Two unit Gaussians at -2 and 2: p(c = 1 | z) = 1 / (1 + exp(-4 z)).
    p = 1 / (1 + np.exp(-4 * z[..., 0]))
    found = assign(fit, np.zeros((2, 1)), draws=4, key=KEY)["a"]
    np.testing.assert_allclose(found.probabilities[:, 1], p.mean(1), rtol=1e-5)
    logs = [np.log(1 - p).mean(1), np.log(p).mean(1)]
    found = assign(fit, np.zeros((2, 1)), draws=4, key=KEY, rule="optimal")["a"]
    np.testing.assert_allclose(found.probabilities[:, 1], 1 / (1 + np.exp(logs[0] - logs[1])), rtol=1e-4)
    found = assign(fit, np.zeros((2, 1)), key=KEY, rule="at_mean")["a"]
    np.testing.assert_allclose(found.probabilities[:, 1], p[:, 0], rtol=1e-5)
    np.testing.assert_allclose(encode(fit, np.zeros((2, 1)))["a"], z[:, 0])
    assert fit.asked == 64


def frame(difference: float, dse: float) -> pd.DataFrame:
    return pd.DataFrame({"elpd_diff": [0.0, difference], "dse": [0.0, dse], "n": 100}, index=["two", "one"])


def test_the_first_sentence_says_who_predicts_better_and_by_how_much() -> None:
    assert learnt.ahead(frame(-50.0, 10.0)) == (
        "two predicts unseen data better than one, by 0.50 ± 0.10 nats a datum (100 unseen data)."
    )
    assert "about equally well: they differ by 0.05 ± 0.10 nats" in learnt.ahead(frame(-5.0, 10.0))
    assert learnt.ahead(frame(-np.inf, np.nan)) == "one gives some unseen data no probability, two gives it to all."


def test_the_second_sentence_says_which_facet_carries_the_factor() -> None:
    rows = [
        {"facet": "digit", "used": 20, "accuracy": 0.83, "nmi": 0.7},
        {"facet": "style", "used": 3, "accuracy": 0.2, "nmi": 0.1},
        {"facet": "ink", "used": 2, "accuracy": 0.1, "nmi": 0.01},
    ]
    text = learnt.carries(rows, "digit", "two", "k-means: 79%")
    assert text.startswith("Without having seen a label, facet digit of two sorts them into 20 clusters: to call each")
    assert "is right for 83% of them (k-means: 79%); facet style (3 clusters) knows little of the digit" in text
    assert "facet ink (2 clusters) knows next to nothing" in text and text.count(".") - text.count("0.") == 1


@pytest.mark.parametrize("verb", ["diagnose", "report"])
def test_verbs_that_read_a_run_take_the_option_too(verb: str) -> None:
    assert parse([verb, "runs/a"]).refine is None
    assert parse([verb, "--refine", "all", "runs/a"]).refine == parse([verb, "runs/a", "--refine=all"]).refine == "all"
    with pytest.raises(SystemExit):
        parse([verb, "runs/a", "--refine", "some"])
    assert parse(["compare", "a", "b", "--refine", "none"]).refine == "none"
    assert parse(["assign", "a", "--refine", "all"]).refine == "all"
