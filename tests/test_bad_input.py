"""Bad input of every kind: one clear error that says what came, what was expected, how to mend it - before any work.

Each case is a call and the words that its message must hold.  No case may train a step, evaluate a draw, or take more
than some seconds.
"""

import errno
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pandas as pd
import pytest

from inference.checking.comparison import compare, stacking_weights
from inference.checking.log_evidence import ATTRIBUTES, evidence, read_evidence
from inference.checking.posterior_tree import posterior
from inference.fitting import Fit, checkpoint, fit, load, resume
from inference.fitting.trainer import Trainer
from ppl_models import datasets
from ppl_models.program import Program, register, resolve, spec_from_json
from tests.toy import PPCA, register_toy, toy_data

KEY = jax.random.key(0)
SECONDS = 5.0
EVIDENCE = sys.modules["inference.checking.log_evidence"]
POSTERIOR = sys.modules["inference.checking.posterior_passes"]


@dataclass(frozen=True)
class World:
    """What a case may use: programs, good data, a scratch folder, and a way to break the disk."""

    toy: Program
    grey: Program
    x: np.ndarray
    folder: Path
    patch: pytest.MonkeyPatch

    def fit(self, data: Any = None, program: Program | None = None, **options: Any) -> Fit:
        """A fit that is right but for what the case changes."""
        good = {"steps": 4, "batch_size": 8, "key": KEY, "progress": False}
        return fit(program or self.toy, self.x if data is None else data, **{**good, **options})

    @property
    def fitted(self) -> Fit:
        return Fit(self.toy, {}, {}, pd.DataFrame(), {})

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def npz(self, name: str, **arrays: Any) -> str:
        np.savez(self.folder / f"{name}.npz", **arrays)
        return name

    def full_disk(self) -> "World":
        def fail(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        self.patch.setattr("os.fsync", fail)
        return self


@pytest.fixture(scope="module")
def programs() -> tuple[Program, Program]:
    register_toy()
    return PPCA().build(KEY), resolve("mfcvae:tiny").build(KEY)


@pytest.fixture
def world(programs: tuple[Program, Program], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    def work(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("work began before the input was checked")

    # By their modules: the package's own names `evidence` and `posterior` are functions.
    for place, name in ((Trainer, "init"), (Trainer, "update"), (EVIDENCE, "sweep"), (POSTERIOR, "sweep")):
        monkeypatch.setattr(place, name, work)
    return World(*programs, toy_data(32), tmp_path, monkeypatch)


def table(n: int = 3, observation: str = "pixels", shift: int = 0) -> pd.DataFrame:
    """An evidence table that is right but for what the case changes."""
    columns = {"datum": range(n), "x_crc": range(shift, n + shift)}
    numbers = dict.fromkeys(("log_px", "se", "elbo", "ess", "khat"), np.linspace(0.1, 0.2, n))
    frame = pd.DataFrame({**columns, **numbers})
    frame.attrs = {**dict.fromkeys(ATTRIBUTES), "observation": observation, "particles": 64, "estimator": "importance"}
    return frame


def spoilt(x: np.ndarray, value: float) -> np.ndarray:
    return np.where(np.arange(x.size).reshape(x.shape) == 5, value, x)


def spec(**body: Any) -> str:
    return json.dumps({"family": "test_ppca", "spec": body})


def grey(value: Any, dtype: str = "uint8") -> np.ndarray:
    return np.full((8, 8, 8), value, dtype)


def foreign_run(w: World) -> Path:
    w.file("run/spec.json", spec())
    return w.file("run/run.json", '{"format": "another program"}').parent


def torn_spec(w: World) -> Path:
    w.file("run/run.json", json.dumps({"format": "ppl-models run 1", "arguments": {}, "card": {}, "info": {}}))
    return w.file("run/spec.json", spec()[:-4]).parent


def pickled(w: World) -> str:
    return w.npz("mine", x_train=np.array([[{}], [{}]], object))


@dataclass
class Thawed:
    """A spec that is not frozen."""

    shape: tuple[int, ...] = (1,)


CASES: dict[str, tuple[Callable[[World], Any], str]] = {
    # ---- data
    "another shape": (lambda w: w.fit(w.x[:, :3]), r"shape \(32, 3\).*expects \(n, 4\).*reshape it"),
    "one datum without its axis": (lambda w: w.fit(w.x[0]), r"shape \(4,\).*expects \(n, 4\)"),
    "no axis at all": (lambda w: w.fit(np.float32(1)), r"shape \(\).*expects"),
    "no data": (lambda w: w.fit(w.x[:0]), "empty.*at least one"),
    "text": (lambda w: w.fit(np.full((9, 4), "a")), "array of numbers, got dtype <U1.*convert"),
    "objects": (lambda w: w.fit(np.full((9, 4), None)), "array of numbers, got dtype object"),
    "complex numbers": (lambda w: w.fit(w.x.astype(complex)), "must be real, got dtype complex"),
    "NaN": (lambda w: w.fit(spoilt(w.x, np.nan)), "NaN or infinite values in 1 of 32.*row 1.*drop or impute"),
    "infinity": (lambda w: w.fit(spoilt(w.x, np.inf)), "NaN or infinite values in 1 of 32"),
    "grey levels out of range": (lambda w: w.fit(grey(200), w.grey), r"0\.\.16.*200.*(rescale|levels)"),
    "negative grey levels": (lambda w: w.fit(grey(-1, "int8"), w.grey), r"0\.\.16.*-1"),
    "grey levels scaled before": (lambda w: w.fit(grey(0.5, "float32"), w.grey), "scaled.*multiply by 16"),
    "held-out data of another shape": (lambda w: w.fit(validation=w.x[:, :2]), "validation data has shape.*expects"),
    "a batch larger than the data": (lambda w: w.fit(batch_size=33), "batch_size 33.*32 rows; use batch_size=32"),
    "a batch larger than one datum": (lambda w: w.fit(w.x[:1]), "batch_size 8.*1 rows; use batch_size=1"),
    "a sampler of another shape": (lambda w: w.fit(lambda key, n: jax.numpy.zeros((n, 3))), r"\(8, 3\).*\(8, 4\)"),
    # ---- arguments of a fit
    "an empty batch": (lambda w: w.fit(batch_size=0), "batch_size must be at least 1, got 0"),
    "no steps": (lambda w: w.fit(steps=0), "steps must be a whole number of at least 1, got 0"),
    "negative steps": (lambda w: w.fit(steps=-3), "steps must be.*got -3"),
    "a negative rate": (lambda w: w.fit(learning_rate=-1e-3), "learning_rate must be a positive number.*got -0.001"),
    "an infinite rate": (lambda w: w.fit(learning_rate=np.inf), "learning_rate must be a positive number"),
    "rate and optimiser": (lambda w: w.fit(learning_rate=1e-3, optimizer=optax.sgd(0.1)), "either.*not both"),
    "no optimiser": (lambda w: w.fit(optimizer="adam"), "optax GradientTransformation, got str"),
    "a negative clip": (lambda w: w.fit(clip=-1.0), "clip must be a positive.*got -1.0; None turns it off"),
    "an average that never moves": (lambda w: w.fit(average=1.0), "between 0 and 1, got 1.0; try 0.999"),
    "patience without validation": (lambda w: w.fit(patience=3), "needs validation data: pass validation="),
    "no patience": (lambda w: w.fit(patience=0, validation=w.x), "patience.*at least 1, got 0"),
    "validation never": (lambda w: w.fit(validate_every=-1, validation=w.x), "validate_every must be.*got -1"),
    "checkpoints never": (lambda w: w.fit(checkpoint_every=0), "checkpoint_every must be.*or None, got 0"),
    "an unknown weight": (lambda w: w.fit(weights={"fad": 0.5}), r"unknown weight 'fad' \(did you mean 'fade'\?\)"),
    "a negative weight": (lambda w: w.fit(weights={"kl": -1}), "weight 'kl' must be a number >= 0.*got -1"),
    "an old-style key": (lambda w: w.fit(key=jax.random.PRNGKey(0)), r"new-style.*use key=jax\.random\.key"),
    "many keys": (lambda w: w.fit(key=jax.random.split(KEY)), "key must be one new-style random key"),
    # ---- folders and disks
    "a folder in use": (lambda w: w.fit(out=w.file("a/b.txt", "mine").parent), "not an empty folder; choose another"),
    "a folder below a file": (lambda w: w.fit(out=w.file("a", "") / "run"), "cannot write the run folder.*choose"),
    "a full disk": (lambda w: w.full_disk().fit(out=w.folder / "run"), "cannot write.*No space left.*choose another"),
    "resume of nothing": (lambda w: w.fit(resume=True), "needs out="),
    "no run": (lambda w: load(w.folder / "absent"), "not a run folder: it has no run.json"),
    "resume where nothing ran": (lambda w: resume(w.folder, w.x), "not a run folder"),
    "another program's run": (lambda w: load(foreign_run(w)), "not written by this package"),
    "a torn run.json": (lambda w: load(w.file("run.json", '{"format').parent), "run.json is torn or not JSON"),
    "a run with a torn spec": (lambda w: load(torn_spec(w)), "stops being JSON"),
    "a torn checkpoint": (lambda w: checkpoint.read(w.file("step_00000001.npz", b"PK\3\4"), {}), "is torn or not a"),
    "another npz as checkpoint": (
        lambda w: checkpoint.read(w.folder / (w.npz("step_00000001", a=np.zeros(1)) + ".npz"), {}),
        "not a checkpoint of this package",
    ),
    # ---- specs
    "an unknown family": (lambda w: resolve("mfcvea"), r"unknown family 'mfcvea' \(did you mean 'mfcvae'\?\); known"),
    "an unknown preset": (lambda w: resolve("mfcvae:digts"), r"unknown preset 'digts'.*\(did you mean 'digits'\?\)"),
    "a torn spec": (lambda w: spec_from_json(spec()[:-3]), "stops being JSON"),
    "a foreign JSON file": (lambda w: spec_from_json('{"name": 1}'), 'object with "family" and "spec", for example'),
    "a field outside its spec": (lambda w: spec_from_json('{"family": "test_ppca", "latent": 3}'), "inside"),
    "an unknown field": (lambda w: spec_from_json(spec(latnt=3)), r"unknown field 'latnt' \(did you mean 'latent'\?\)"),
    "a field of another type": (lambda w: spec_from_json(spec(latent="two")), "latent: .*integer.*got 'two'"),
    "a shape without size": (lambda w: replace(w.grey.spec, shape=(8, 0)), r"shape must be positive.*got \(8, 0\)"),
    "a model without latents' names": (lambda w: replace(w.grey.spec, facets=()), "facets is empty.*at least one"),
    "a spec that can change": (lambda w: register("thawed", Thawed, presets={}, paper=""), "frozen dataclass"),
    "a family without tiny": (lambda w: register("new", PPCA, presets={}, paper=""), "no preset 'tiny'"),
    # ---- data sets
    "unknown data": (lambda w: datasets.load("digit"), r"unknown data set 'digit' \(did you mean 'digits'\?\); known"),
    "an unknown split": (lambda w: datasets.load("digits", "tets"), r"no split 'tets' \(did you mean 'test'\?\)"),
    "more data than there are": (lambda w: datasets.load("digits", n=1501), "n must be at most 1,500.*leave n out"),
    "no data asked for": (lambda w: datasets.load("digits", n=0), "n must be a whole number of at least 1, got 0"),
    "a negative seed": (lambda w: datasets.load("digits", seed=-1), "seed must be.*at least 0, got -1"),
    "a torn npz": (lambda w: datasets.load(w.file("mine.npz", b"PK\3\4 torn").stem, root=w.folder), "mine.npz"),
    "a pickled npz": (lambda w: datasets.load(pickled(w), root=w.folder), "pickled Python objects.*plain array"),
    "an npz without data": (lambda w: datasets.load(w.npz("mine", b=np.zeros(3)), root=w.folder), "must hold x_train"),
    "an npz of NaN": (
        lambda w: datasets.load(w.npz("mine", x_train=np.full((3, 2), np.nan, "float32")), root=w.folder),
        "must be finite, got NaN.*remove those rows",
    ),
    # ---- evaluation
    "evidence of another shape": (lambda w: evidence(w.fitted, w.x[:, :1], key=KEY), r"shape \(32, 1\).*expects"),
    "evidence of no data": (lambda w: evidence(w.fitted, w.x[:0], key=KEY), "empty"),
    "one particle": (lambda w: evidence(w.fitted, w.x, particles=1, key=KEY), "at least 2, got 1"),
    "evidence with an old key": (
        lambda w: evidence(w.fitted, w.x, key=jax.random.PRNGKey(0)),
        "pass key=jax.random.key",
    ),
    "an empty chunk": (lambda w: evidence(w.fitted, w.x, key=KEY, chunk=0), "chunk must be.*at least 1, got 0"),
    "no draws": (lambda w: posterior(w.fitted, w.x, draws=0, key=KEY), "draws must be.*at least 1, got 0"),
    "more replications than draws": (
        lambda w: posterior(w.fitted, w.x, draws=2, predictive_draws=3, key=KEY),
        "predictive_draws 3 exceeds draws 2",
    ),
    "factors of other data": (
        lambda w: posterior(w.fitted, w.x, key=KEY, factors={"digit": np.zeros(3)}),
        "factor 'digit' has shape.*expected 32",
    ),
    "a lost table": (lambda w: read_evidence(w.folder), "no evidence.csv; write both"),
    "one table": (lambda w: compare({"a": table()}), "at least two tables.*got 1"),
    "tables of different data": (
        lambda w: compare({"a": table(), "b": table(shift=1)}),
        "score different data: 3 of 3",
    ),
    "tables of different length": (lambda w: compare({"a": table(), "b": table(4)}), "different rows: 3 and 4 data"),
    "tables of different things": (
        lambda w: compare({"a": table(), "b": table(observation="edges")}),
        "different things",
    ),
    "a table without attributes": (lambda w: compare({"a": table(), "b": pd.DataFrame(table().to_dict())}), "lost its"),
    "no table": (lambda w: compare({"a": table(), "b": pd.DataFrame({"datum": [1]})}), "not an evidence table"),
    "weights of NaN": (lambda w: stacking_weights(np.full((3, 2), np.nan)), "NaN or infinite"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_clear_error_before_any_work(case: str, world: World) -> None:
    call, says = CASES[case]
    began = time.process_time()
    with pytest.raises((ValueError, OSError), match=f"(?s){says}"):
        call(world)
    assert time.process_time() - began < SECONDS


def test_a_refused_fit_leaves_no_run_behind(world: World) -> None:
    with pytest.raises(ValueError):
        world.fit(steps=0, out=world.folder / "run")
    with pytest.raises(OSError):
        world.full_disk().fit(out=world.folder / "full")
    assert not (world.folder / "run").exists() and not list((world.folder / "full").glob("*.json"))
