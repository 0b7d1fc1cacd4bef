"""Fit a program by stochastic variational inference: one call, resumable, reported as it goes."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.handlers import substitute

from inference import checkpoint
from inference.data import as_source, stored
from inference.folder import History, RunFolder, versions
from inference.objectives import init_params, per_datum_elbo
from inference.progress import Progress
from inference.training import State, Trainer, make_optimizer, scheduled
from ppl_models.program import Event, Program

MAX_STREAK = 50
"""Updates skipped in a row after which a fit stops: the numbers will not come back by themselves."""


@dataclass(frozen=True)
class Fit:
    """A fitted program: the parameters that evaluation uses, and the record of how they came about.

    ``params`` are the values of the program's ``param`` sites: the best by validation if there was one, else the
    running average if there was one, else the last.  ``info`` holds steps, seconds, skipped updates, why it stopped.
    """

    program: Program
    params: dict[str, Any]
    mutable: dict[str, Any]
    history: Any
    info: dict[str, Any]
    folder: Path | None = None
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> Callable[..., Any]:
        """The generative program with the fitted parameters: for ``Predictive``, ``condition``, ``Trace``."""
        return substitute(self.program.model, data=self.params)

    @property
    def guide(self) -> Callable[..., Any]:
        """The derived NumPyro guide with the fitted parameters."""
        return substitute(self.program.guide, data=self.params)

    def prepare(self, x: Any, key: Array) -> Array:
        """Validate stored data and return what the model scores in evaluation."""
        return self.program.prepare(jnp.asarray(stored(self.program, x)), key, False)


class _Interrupt:
    """Turn the first Ctrl-C into a flag, so that a step ends and a checkpoint is written; the second is Python's."""

    def __enter__(self) -> _Interrupt:
        self.asked = False
        self.active = threading.current_thread() is threading.main_thread()
        if self.active:
            self.before = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self.before)

    def __exit__(self, *error: object) -> None:
        if self.active:
            signal.signal(signal.SIGINT, self.before)


def _check_arguments(
    steps: int, key: Any, average: float | None, patience: int | None, validation: Any, **every: Any
) -> None:
    if not checkpoint.is_key(key) or key.shape != ():
        raise ValueError(f"key must be one new-style random key, got {key!r:.60}; use key=jax.random.key(0)")
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}")
    for name, value in every.items():
        if value is not None and (not isinstance(value, int | np.integer) or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, or None, got {value!r}")
    if average is not None and not 0 < average < 1:
        raise ValueError(f"average is the decay of the parameter average, between 0 and 1, got {average!r}; try 0.999")
    if patience is not None and validation is None:
        raise ValueError("patience needs validation data: pass validation=x_validation, or drop patience")
    if patience is not None and patience < 1:
        raise ValueError(f"patience counts validations without a better one, at least 1, got {patience!r}")


def _check_dispatch(wanted: int | str) -> None:
    if wanted != "auto" and not (isinstance(wanted, int) and wanted >= 1):
        raise ValueError(f"steps_per_dispatch must be 'auto' or a whole number of at least 1, got {wanted!r}")


def _dispatch(wanted: int | str, steps: int, every: list[int], convolves: Callable[[], bool]) -> int:
    """Steps per dispatch: a divisor of every interval, so that each falls on the end of a dispatch."""
    common = int(np.gcd.reduce([steps, *every]))
    if wanted == "auto":
        if jax.default_backend() == "cpu" and convolves():
            return 1  # XLA:CPU runs convolutions inside loops tens of times slower
        limit = min(10, max(1, steps // 100))  # a row of the history at least every hundredth
    else:
        limit = int(wanted)
        if jax.default_backend() == "cpu" and limit > 1 and convolves():
            raise ValueError(
                f"steps_per_dispatch={wanted} would put convolutions inside a scan, which is tens of times slower on "
                "a CPU; use steps_per_dispatch=1 (or 'auto')"
            )
    return max(d for d in range(1, limit + 1) if common % d == 0)


def fit(
    program: Program,
    data: Any,
    *,
    steps: int,
    key: Array,
    batch_size: int = 128,
    learning_rate: Any = None,
    optimizer: Any = None,
    clip: float | None = None,
    weights: Mapping[str, Any] | None = None,
    average: float | None = None,
    validation: Any = None,
    validate_every: int | None = None,
    patience: int | None = None,
    out: str | Path | None = None,
    card: Mapping[str, Any] | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    progress: bool = True,
    steps_per_dispatch: int | str = "auto",
) -> Fit:
    """Maximise the ELBO of ``program`` on ``data`` and return the fitted program.

    ``data``           stored data (n, *shape), kept as stored on the device; or a sampler ``(key, n) -> batch``; or a
                       grain dataset of single records.
    ``learning_rate``  Adam's rate, a number (default 1e-3) or an optax schedule; ``optimizer`` replaces Adam.
    ``clip``           largest global gradient norm, in nats per datum.
    ``weights``        numbers or schedules of the step by name: a site (its log-likelihood or KL), a knob of the
                       program, or ``"kl"`` for all latents; for example ``{"kl": optax.linear_schedule(0, 1, 500)}``.
    ``average``        decay of a running average of the parameters (0.999, say), used for evaluation.
    ``validation``     held-out stored data: the ELBO on it, with fixed noise, every ``validate_every`` steps; the best
                       parameters are kept, and training stops after ``patience`` validations without a better one.
    ``out``            run folder: spec.json, run.json, history.csv as it goes, checkpoint/ every ``checkpoint_every``
                       steps.  With ``resume=True`` and the same arguments the run there continues exactly; a killed
                       run ends with the parameters that it would have had.
    ``card``           a few facts about the data (name, split, seed), kept in run.json.

    Updates with a non-finite loss or gradient are skipped, counted in the history and in ``info["skipped"]``, and
    warned about; 50 in a row raise ``FloatingPointError`` with the last good state on disk.  Ctrl-C ends the current
    step, writes a checkpoint and raises ``KeyboardInterrupt``.  Bad arguments raise ``ValueError`` before any work.
    Same key, same machine, same arguments: the same parameters, bit for bit.
    """
    validate_every = validate_every or max(1, steps // 20) if isinstance(steps, int) and steps > 0 else validate_every
    _check_arguments(
        steps, key, average, patience, validation, validate_every=validate_every, checkpoint_every=checkpoint_every
    )
    _check_dispatch(steps_per_dispatch)
    rules = scheduled(program, weights)
    chosen = make_optimizer(learning_rate, optimizer, clip)
    data_key, train_key, validation_key = jax.random.split(key, 3)
    source = as_source(data, program, batch_size, data_key)
    held_out = None if validation is None else stored(program, validation, "validation data")
    folder = None if out is None else RunFolder(out)
    arguments = {
        "steps": steps, "batch_size": batch_size, "learning_rate": _plain(learning_rate),
        "optimizer": _plain(optimizer), "clip": clip, "weights": {n: _plain(w) for n, w in (weights or {}).items()},
        "average": average,
        "validate_every": validate_every, "patience": patience, "checkpoint_every": checkpoint_every,
        "steps_per_dispatch": steps_per_dispatch, "key": np.asarray(jax.random.key_data(key)).tolist(),
        "validation": held_out is not None,
    }  # fmt: skip
    if folder is not None:
        if resume:
            _same_run(folder, program, arguments)
        else:
            folder.create()
            folder.write_spec(program.spec)
            folder.write_run({"arguments": arguments, "card": dict(card or {}), "versions": versions(), "info": {}})
    elif resume:
        raise ValueError("resume=True needs out=, the folder of the run to continue")
    trainer = Trainer(program, source, chosen, rules, average)
    loop = _Loop(trainer, folder, held_out, validation_key, arguments, dict(card or {}), progress)
    return loop.run(train_key, resume)


def _plain(value: Any) -> Any:
    """The JSON form of an argument; schedules and optimisers are recorded by name only."""
    return (
        {"callable": getattr(value, "__qualname__", type(value).__name__)}
        if callable(value) or isinstance(value, tuple)
        else value
    )


def _same_run(folder: RunFolder, program: Program, arguments: Mapping[str, Any]) -> None:
    before = folder.read_run()["arguments"]
    if program.spec != folder.read_spec():
        raise ValueError(f"{folder.path} holds a run of another spec; resume with the spec in its spec.json")
    for name, value in arguments.items():
        if name != "steps" and before.get(name) != value:
            raise ValueError(
                f"cannot resume {folder.path} exactly: {name} was {before.get(name)!r}, now {value!r}; "
                "pass the original value, or start a new run in another folder"
            )


class _Loop:
    """The host side of a fit: dispatches updates, reads figures, validates, writes files."""

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder | None,
        held_out: np.ndarray | None,
        validation_key: Array,
        arguments: dict[str, Any],
        card: dict[str, Any],
        progress: bool,
    ) -> None:
        self.trainer, self.folder, self.arguments, self.card, self.show = trainer, folder, arguments, card, progress
        self.program, self.steps = trainer.program, int(arguments["steps"])
        self.held_out, self.validation_key = held_out, validation_key
        self.average = arguments["average"] is not None
        if held_out is not None:
            self.evaluate = _validator(trainer, held_out, validation_key)
        self.best: dict[str, Any] | None = None
        self.seconds = 0.0
        self.bad_validations = 0

    # ---------------------------------------------------------------------------------------- the run
    def run(self, key: Array, resume: bool) -> Fit:
        state = self._restore(key) if resume else self.trainer.init(key)
        arguments, at = self.arguments, int(state.step)
        every = {
            "log": max(1, self.steps // 100),
            "checkpoint": arguments["checkpoint_every"] or max(1, self.steps // 10),
        }
        if self.held_out is not None:
            every["validate"] = arguments["validate_every"]
        events = _events(self.program, self.steps)
        convolves = partial(self.trainer.convolves, state)
        size = _dispatch(arguments["steps_per_dispatch"], self.steps, sorted(events), convolves)
        every = {name: -(-count // size) * size for name, count in every.items()}
        terms = sorted((n for n in state.totals if "/" in n), reverse=True)  # log_lik before kl
        fields = ["step", "seconds", "loss", "elbo", *terms, "grad_norm", "skipped", "validation_elbo"]
        self.history = History(None if self.folder is None else self.folder.path / "history.csv", fields)
        if resume:
            self.history.restore(at)
        elif self.held_out is not None:
            self.best = {"value": -np.inf, "step": 0, **self._in_use(state)}
        if self.folder is not None and not resume:
            self._save(state, 0)  # a run killed before its first interval goes on from its own initial weights
        began = time.monotonic() - self.seconds
        with _Interrupt() as interrupt, Progress(self.steps, "fit", unit="steps", show=self.show, start=at) as shown:
            patience = arguments["patience"] or np.inf
            while at < self.steps and self.bad_validations < patience:
                for event in events.get(at, ()):
                    shown.update(at, {"now": event.name})
                    state = self.trainer.happen(event, state)
                state = self.trainer.update(state, self.trainer.source.feed(at, size))
                at += size
                due = {name for name, count in every.items() if at % count == 0 or at == self.steps}
                self.seconds = time.monotonic() - began
                if due & {"log", "validate"}:
                    state, figures = self._log(state, at, validate="validate" in due)
                    shown.update(at, figures)
                else:
                    shown.update(at)
                last = interrupt.asked or self.bad_validations >= patience
                if self.folder is not None and ("checkpoint" in due or last):
                    self._save(state, at)
                if interrupt.asked:
                    self._finish(state, at, "interrupted")
                    raise KeyboardInterrupt(f"stopped at step {at} of {self.steps}")
        stopped = "steps" if at >= self.steps else "patience"
        if int(state.skipped) >= at:
            raise FloatingPointError(f"all {at} updates had a non-finite loss or gradient; {_REMEDY}")
        return self._finish(state, at, stopped)

    def _in_use(self, state: State) -> dict[str, Any]:
        """Copies of what evaluation would use now (the next update reuses the state's own buffers)."""
        params = state.average if self.average else state.params
        return jax.tree.map(jnp.copy, {"params": params, "mutable": state.mutable})

    def _log(self, state: State, at: int, *, validate: bool) -> tuple[State, dict[str, Any]]:
        totals = {name: float(v) for name, v in jax.device_get(state.totals).items()}
        taken, skipped = totals.pop("steps"), int(state.skipped)
        row: dict[str, Any] = {n: v / taken if taken else float("nan") for n, v in totals.items()}
        row["elbo"] = sum(v for n, v in row.items() if n.startswith("log_lik/")) - sum(
            v for n, v in row.items() if n.startswith("kl/")
        )
        row |= {"step": at, "seconds": round(self.seconds, 3), "skipped": skipped}
        if validate:
            row["validation_elbo"] = value = self.evaluate(self._in_use(state))
            assert self.best is not None
            if value > self.best["value"]:
                self.best, self.bad_validations = {"value": value, "step": at, **self._in_use(state)}, 0
            else:
                self.bad_validations += 1
        self.history.append(row)
        if int(state.streak) >= min(MAX_STREAK, self.steps):
            if self.folder is not None:
                self._save(state, at)
            raise FloatingPointError(f"{int(state.streak)} updates in a row at step {at} were not finite; {_REMEDY}")
        shown = {
            "loss": row["loss"],
            **{n: v for n, v in row.items() if n.startswith(("log_lik/", "kl/", "validation"))},
        }
        if skipped:
            shown["skipped"] = skipped
        return state._replace(totals=jax.tree.map(jnp.zeros_like, state.totals)), shown

    # ------------------------------------------------------------------------------------- files and end
    def _tree(self, state: State) -> dict[str, Any]:
        best = {name: self.best[name] for name in ("params", "mutable")} if self.best else {}
        return {"state": state._asdict(), "best": best}

    def _save(self, state: State, at: int) -> None:
        assert self.folder is not None
        use = "best" if self.best and self.best["step"] else "average" if self.average else "params"
        meta = {
            "use": use, "seconds": self.seconds, "source": self.trainer.source.state(), "bad": self.bad_validations,
            "best": {"value": float(self.best["value"]), "step": self.best["step"]} if self.best else None,
        }  # fmt: skip
        checkpoint.save(self.folder.checkpoint, at, self._tree(state), meta)

    def _restore(self, key: Array) -> State:
        assert self.folder is not None
        template = self.trainer.template(key)
        if self.held_out is not None:
            self.best = {"params": template.params, "mutable": template.mutable}
        tree, header, problems = checkpoint.read_newest(self.folder.checkpoint, self._tree(template))
        for problem in problems:
            warnings.warn(f"passed over a checkpoint: {problem}", UserWarning, stacklevel=4)
        if header["best"] is not None:
            self.best = {**tree["best"], **header["best"]}
        self.seconds, self.bad_validations = header["seconds"], header["bad"]
        self.trainer.source.restore(header["source"])
        return State(**tree["state"])

    def _finish(self, state: State, at: int, stopped: str) -> Fit:
        skipped, best = int(state.skipped), self.best if self.best and self.best["step"] else None
        info = {
            "steps": at, "stopped": stopped, "seconds": round(self.seconds, 3), "skipped": skipped,
            "best_step": best["step"] if best else None, "best_validation": best["value"] if best else None,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        }  # fmt: skip
        if self.folder is not None:
            run = {"arguments": self.arguments, "card": self.card, "versions": versions(), "info": info}
            self.folder.write_run(run)
        if skipped and stopped != "interrupted":
            warnings.warn(
                f"{skipped} of {at} updates had a non-finite loss or gradient and were skipped; {_REMEDY}",
                UserWarning, stacklevel=4,
            )  # fmt: skip
        for name, default in self.program.knobs.items():
            # A family's own schedules are meant for training only (a share of dropout, say): no news to the caller.
            if name in self.arguments["weights"] and (last := float(self.trainer.weights[name](at))) != default:
                warnings.warn(
                    f"knob {name!r} ended at {last:g}, evaluation uses {default:g}; let the schedule end there",
                    UserWarning, stacklevel=4,
                )  # fmt: skip
        ends = {name: (float(rule(at)), float(rule(_LATE))) for name, rule in self.trainer.weights.items()}
        open_ = [
            f"{name!r} is {now:.3g} after {at} updates, {end:.3g} at its end"
            for name, (now, end) in ends.items()
            if name in self.program.weights and abs(now - end) > 1e-6
        ]
        if open_ and stopped == "steps":
            warnings.warn(
                f"schedules have not ended ({'; '.join(open_)}), and evaluation assumes their ends; raise steps, or "
                "shorten them in the spec",
                UserWarning, stacklevel=4,
            )  # fmt: skip
        use = best if best is not None else self._in_use(state)
        params = self.trainer.constrain(use["params"])
        path = self.folder.path if self.folder else None
        return Fit(self.program, params, use["mutable"], self.history.frame(), info, path, self.card)


def _events(program: Program, steps: int) -> dict[int, list[Event]]:
    """The program's events by step; warns about those that this fit will not reach."""
    found: dict[int, list[Event]] = {}
    for event in program.events:
        if event.step >= steps:
            warnings.warn(
                f"{event.name} is due after {event.step} updates, this fit makes {steps}: it will not happen; "
                "raise steps, or bring it forward in the spec",
                UserWarning, stacklevel=5,
            )  # fmt: skip
        found.setdefault(event.step, []).append(event)
    return found


_LATE = 2**30
"""An update after the end of every schedule."""

_REMEDY = "lower learning_rate, set clip=, or look for extreme values in the data"


def _validator(
    trainer: Trainer, held_out: np.ndarray, key: Array, chunk: int = 512
) -> Callable[[dict[str, Any]], float]:
    """Mean ELBO on held-out data in nats per datum; the same noise each time, so that differences are the model's."""
    program, n = trainer.program, len(held_out)
    chunk = min(chunk, n)
    starts = range(0, n, chunk)
    # The last chunk is filled up with the first rows, whose values are dropped: one shape, one compilation.
    rows = [np.arange(start, start + chunk) % n for start in starts]
    store = jnp.asarray(held_out)

    @jax.jit
    def values(use: dict[str, Any], store: Array, index: Array, key: Array) -> Array:
        prepare_key, noise_key = jax.random.split(key)
        x = program.prepare(store[index], prepare_key, False)
        return per_datum_elbo(program, trainer.constrain(use["params"]), noise_key, x, mutable=use["mutable"])

    def evaluate(use: dict[str, Any]) -> float:
        parts = [values(use, store, index, jax.random.fold_in(key, i)) for i, index in enumerate(rows)]
        return float(np.concatenate([np.asarray(p) for p in parts])[:n].mean())

    return evaluate


def load(folder: str | Path) -> Fit:
    """Read a run folder back: the program built from spec.json with the parameters that evaluation uses.

    Reads the newest whole checkpoint (a torn one is passed over with a warning).  Raises ``ValueError`` naming the
    file that is missing, torn or foreign.
    """
    run = RunFolder(folder)
    record, spec = run.read_run(), run.read_spec()
    program = spec.build(jax.random.key(0))
    like = jnp.zeros((1, *program.shape), jnp.uint8)
    found: dict[str, Any] = {}

    def shapes() -> tuple[Any, Any]:
        params, found["transforms"], mutable = init_params(
            program, jax.random.key(0), program.prepare(like, jax.random.key(0), False)
        )
        return params, mutable

    params, mutable = jax.eval_shape(shapes)
    state, header, problems = checkpoint.read_newest(run.checkpoint, (params, mutable), pick=_evaluated)
    for problem in problems:
        warnings.warn(f"passed over a checkpoint: {problem}", UserWarning, stacklevel=2)
    params, mutable = state
    transforms = found["transforms"]
    params = {n: v if isinstance(v, dict) else transforms[n](v) for n, v in params.items()}
    history = History(run.path / "history.csv", [])
    info = record["info"] or {"steps": header["step"], "stopped": "interrupted", "seconds": header["seconds"]}
    return Fit(program, params, mutable, history.read(), info, run.path, record["card"])


def _evaluated(header: Mapping[str, Any]) -> tuple[str, str]:
    """Tree paths in a training checkpoint of the (parameters, mutable state) that evaluation uses."""
    return {
        "best": ("['best']['params']", "['best']['mutable']"),
        "average": ("['state']['average']", "['state']['mutable']"),
        "params": ("['state']['params']", "['state']['mutable']"),
    }[header["use"]]


def resume(folder: str | Path, data: Any, *, validation: Any = None, progress: bool = True, **changes: Any) -> Fit:
    """Continue the run of a folder with the arguments it was started with; ``changes`` may raise ``steps``.

    Schedules and optimisers are functions, which run.json records by name only: pass them again.
    """
    run = RunFolder(folder)
    record = run.read_run()
    arguments = {k: v for k, v in record["arguments"].items() if k not in ("key", "validation")}
    key = jax.random.wrap_key_data(jnp.asarray(record["arguments"]["key"], jnp.uint32))
    for name, value in arguments.items():
        nested = value.values() if isinstance(value, dict) and "callable" not in value else [value]
        if name not in changes and any(isinstance(v, dict) and "callable" in v for v in nested):
            raise ValueError(f"the run in {folder} used a function for {name}; pass {name}= to resume again")
    if record["arguments"]["validation"] and validation is None:
        raise ValueError(f"the run in {folder} used validation data; pass validation= the same data again")
    program = run.read_spec().build(key)
    return fit(
        program, data, validation=validation, key=key, out=folder, card=record["card"], resume=True, progress=progress,
        **{**arguments, **changes},
    )  # fmt: skip
