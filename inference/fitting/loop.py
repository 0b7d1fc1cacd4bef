"""The host side of a fit: dispatches updates, reads figures, validates, writes files, ends in good order."""

from __future__ import annotations

import json
import signal
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from inference.fitting import checkpoint
from inference.fitting.arguments import dispatch
from inference.fitting.bounds import BOUND, per_datum_bound
from inference.fitting.callbacks import Watchers
from inference.fitting.fitted import Fit, FitInterrupted
from inference.fitting.folder import History, RunFolder, versions
from inference.fitting.objectives import per_datum_elbo
from inference.fitting.placement import OneDevice
from inference.fitting.progress import Progress
from inference.fitting.sleep import SLEEP
from inference.fitting.trainer import State, Trainer
from ppl_models.program import Event, Program, rows, spec_to_json, take

MAX_STREAK = 50
"""Updates skipped in a row after which a fit stops: the numbers will not come back by themselves."""


class Interrupt:
    """Turn the first Ctrl-C or SIGTERM into a flag, so that a step ends and a checkpoint is written.

    The second has the effect that it had before.
    """

    def __enter__(self) -> Interrupt:
        self.asked = 0
        self.before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: set by other than Python

    def pass_on(self) -> None:
        """Let a SIGTERM do what it would have done: end the process, or what the caller's own handler does."""
        if self.asked == signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)

    def __exit__(self, *error: object) -> None:
        self._restore()


class Loop:
    """The host side of a fit: dispatches updates, reads figures, validates, writes files."""

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder | None,
        held_out: Any,
        validation_key: Array,
        arguments: dict[str, Any],
        card: dict[str, Any],
        progress: bool,
        watchers: Watchers,
        evaluate: Evaluate | None = None,
    ) -> None:
        self.watchers, self.stop = watchers, False
        self.trainer, self.folder, self.arguments, self.card = trainer, folder, arguments, card
        self.place, self.program, self.steps = trainer.place, trainer.program, int(arguments["steps"])
        self.show = progress and self.place.writes
        self.held_out, self.validation_key = held_out, validation_key
        self.average = arguments["average"] is not None
        self.better = "validation_elbo" if trainer.loss.bound is None else f"validation_{trainer.loss.bound}"
        if held_out is not None:
            self.evaluate = evaluate or _validator(trainer, held_out)
        self.best: dict[str, Any] | None = None
        self.seconds = 0.0
        self.bad_validations = 0

    # ---------------------------------------------------------------------------------------- the run
    def run(self, key: Array, resume: bool) -> Fit:
        state = self.start(key, resume)
        bar = Progress(
            self.steps, "fit", unit="steps", show=self.show, start=self.at,
            each=(self.trainer.source.batch_size, "data"),
        )  # fmt: skip
        with Interrupt() as interrupt, bar as shown, self.watchers as watchers:
            if watchers.all:
                watchers.begin(_facts(self.program, self.card, self.arguments, self.at))
            while self.going:
                for event in self.events.get(self.at, ()):
                    shown.update(self.at, {"now": event.name})
                    state = self.trainer.happen(event, state)
                self.began_from_data(state)
                state = self.trainer.update(state, self.trainer.source.feed(self.at, self.size))
                try:
                    state = self.after(state, self.at + self.size, bool(interrupt.asked), shown)
                except FitInterrupted:
                    interrupt.pass_on()
                    raise
            self.check_some(state)
        return self.end(state)

    def start(self, key: Array, resume: bool, size: int | None = None) -> State:
        """The state of the first update, or of the last checkpoint; ``size``: steps of a dispatch, where known."""
        state = self._restore(key) if resume else self.trainer.init(key)
        arguments, self.at = self.arguments, int(state.step)
        every = {
            "log": max(1, self.steps // 100),
            "checkpoint": arguments["checkpoint_every"] or max(1, self.steps // 10),
        }
        if self.held_out is not None:
            every["validate"] = arguments["validate_every"]
        self.events = _events(self.program, self.steps)
        convolves = partial(self.trainer.convolves, state)
        self.size = size or dispatch(arguments["steps_per_dispatch"], self.steps, sorted(self.events), convolves)
        self.every = {name: -(-count // self.size) * self.size for name, count in every.items()}
        self.patience = arguments["patience"] or np.inf
        terms = sorted((n for n in state.totals if "/" in n), reverse=True)  # log_lik before kl
        own = [n for n in (BOUND, SLEEP) if n in state.totals]
        fields = ["step", "seconds", "loss", "elbo", *own, *terms, "grad_norm", "skipped", "validation_elbo"]
        fields += [self.better] if self.better not in fields else []
        file = self.folder.path / "history.csv" if self.folder is not None and self.place.writes else None
        self.history = History(file, fields)
        if resume:
            self.history.restore(self.at or -1)  # what is before the first update happens again
        elif self.held_out is not None:
            self.best = {"value": -np.inf, "step": 0, **self._in_use(state)}
        if self.folder is not None and not resume:
            self._save(state, 0)  # a run killed before its first interval goes on from its own initial weights
        self.began = time.monotonic() - self.seconds
        return state

    @property
    def going(self) -> bool:
        """Whether another update is to be made."""
        return self.at < self.steps and self.bad_validations < self.patience and not self.stop

    def due(self, at: int) -> set[str]:
        """What is to be done once ``at`` updates are made: log, validate, checkpoint."""
        return {name for name, count in self.every.items() if at % count == 0 or at == self.steps}

    def after(self, state: State, at: int, asked: bool, shown: Progress) -> State:
        """Read figures, validate and write what is due after ``at`` updates; ends the run if it was ``asked`` to stop.

        Raises ``FitInterrupted`` then, and ``FloatingPointError`` after too many updates that were not finite.
        """
        self.at, due = at, self.due(at)
        self.seconds = time.monotonic() - self.began
        if due & {"log", "validate"}:
            state, figures = self._log(state, at, validate="validate" in due)
            shown.update(at, figures)
        else:
            shown.update(at)
        if self.place.processes > 1:  # all stop at the same step: they ask one another when figures are read
            asked = "log" in due and self.place.agree(asked)
            self.stop = "log" in due and self.place.agree(self.stop)
        last = asked or self.stop or self.bad_validations >= self.patience
        if self.folder is not None and ("checkpoint" in due or last):
            self._save(state, at)
        if asked:
            found = self._finish(state, at, "interrupted")
            raise FitInterrupted(f"stopped at step {at} of {self.steps}", found)
        return state

    def check_some(self, state: State) -> None:
        """Raise ``FloatingPointError`` where not one update was finite."""
        if int(state.skipped) >= self.at:
            raise FloatingPointError(f"all {self.at} updates had a non-finite loss or gradient; {_REMEDY}")

    def end(self, state: State) -> Fit:
        """What the run leaves."""
        stopped = "steps" if self.at >= self.steps else "callback" if self.stop else "patience"
        return self._finish(state, self.at, stopped)

    def began_from_data(self, state: State) -> None:
        """A start from the data (an event before the first update) is a candidate for the best parameters, too."""
        if self.at == 0 and 0 in self.events and self.held_out is not None:
            found = self.evaluate(self._in_use(state), self.validation_key)
            self.best = {"value": found[self.better], "step": 0, **self._in_use(state)}
            self._tell({"step": 0, "seconds": round(self.seconds, 3), "skipped": 0, **found})

    def _tell(self, row: dict[str, Any]) -> None:
        """Add a row to the history, and tell the callbacks."""
        self.history.append(row)
        figures = {name: value for name, value in row.items() if name != "step" and value == value}
        self.stop = self.watchers.report(row["step"], figures) or self.stop

    def _found(self) -> dict[str, Any] | None:
        """The best parameters by validation, once there was one."""
        return self.best if self.best and self.best["value"] > -np.inf else None

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
            row |= self.evaluate(self._in_use(state), self.validation_key)
            value = row[self.better]
            assert self.best is not None
            if value > self.best["value"]:
                self.best, self.bad_validations = {"value": value, "step": at, **self._in_use(state)}, 0
            else:
                self.bad_validations += 1
        self._tell(row)
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
        use = "best" if self._found() else "average" if self.average else "params"
        meta = {
            "use": use, "seconds": self.seconds, "source": self.trainer.source.state(), "bad": self.bad_validations,
            "best": {"value": float(self.best["value"]), "step": self.best["step"]} if self.best else None,
        }  # fmt: skip
        tree = self.place.host(self._tree(state))
        if self.place.writes:
            checkpoint.save(self.folder.checkpoint, at, tree, meta)

    def _restore(self, key: Array) -> State:
        assert self.folder is not None
        template = self.trainer.template(key)
        if self.held_out is not None:
            self.best = {"params": template.params, "mutable": template.mutable}
        tree, header, problems = checkpoint.read_newest(self.folder.checkpoint, self._tree(template))
        for problem in problems:
            warnings.warn(f"passed over a checkpoint: {problem}", UserWarning, stacklevel=5)
        if header["best"] is not None:
            self.best = {**self.place.put(tree["best"]), **header["best"]}
        self.seconds, self.bad_validations = header["seconds"], header["bad"]
        self.trainer.source.restore(header["source"])
        return State(**self.place.put(tree["state"]))

    def _finish(self, state: State, at: int, stopped: str) -> Fit:
        skipped, best = int(state.skipped), self._found()
        info = {
            "steps": at, "stopped": stopped, "seconds": round(self.seconds, 3), "skipped": skipped,
            "best_step": best["step"] if best else None, "best_validation": best["value"] if best else None,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        }  # fmt: skip
        if self.place.axes:
            info["mesh"] = {**self.place.axes, "processes": self.place.processes}
        if self.folder is not None and self.place.writes:
            run = {"arguments": self.arguments, "card": self.card, "versions": versions(), "info": info}
            self.folder.write_run(run)
        if skipped and stopped != "interrupted":
            warnings.warn(
                f"{skipped} of {at} updates had a non-finite loss or gradient and were skipped; {_REMEDY}",
                UserWarning, stacklevel=5,
            )  # fmt: skip
        for name, default in self.program.training.knobs.items():
            # A family's own schedules are meant for training only (a share of dropout, say): no news to the caller.
            if name in self.arguments["weights"] and (last := float(self.trainer.weights[name](at))) != default:
                warnings.warn(
                    f"knob {name!r} ended at {last:g}, evaluation uses {default:g}; let the schedule end there",
                    UserWarning, stacklevel=5,
                )  # fmt: skip
        ends = {name: (float(rule(at)), float(rule(_LATE))) for name, rule in self.trainer.weights.items()}
        open_ = [
            f"{name!r} is {now:.3g} after {at} updates, {end:.3g} at its end"
            for name, (now, end) in ends.items()
            if name in self.program.training.weights and abs(now - end) > 1e-6
        ]
        if open_ and stopped == "steps":
            warnings.warn(
                f"schedules have not ended ({'; '.join(open_)}), and evaluation assumes their ends; raise steps, or "
                "shorten them in the spec",
                UserWarning, stacklevel=5,
            )  # fmt: skip
        self.watchers.end(info)
        use = best if best is not None else self._in_use(state)
        use = self.place.whole({name: use[name] for name in ("params", "mutable")})
        path = self.folder.path if self.folder else None
        self.place.wait()  # once a process returns, the folder is whole
        mesh = None if isinstance(self.place, OneDevice) else self.place
        return Fit(
            self.program, self.trainer.constrain(use["params"]), use["mutable"], self.history.frame(), info, path,
            self.card, mesh,
        )  # fmt: skip


def _facts(program: Program, card: dict[str, Any], arguments: dict[str, Any], step: int) -> dict[str, Any]:
    """A fit for its callbacks: the spec as its JSON says it (of a family that is not registered, its text), the card,
    the arguments without the random key, which reads like another kind of key, and the step."""
    try:
        spec = json.loads(spec_to_json(program.spec))
    except ValueError:
        spec = repr(program.spec)
    public = {name: value for name, value in arguments.items() if name != "key"}
    return {"spec": spec, "card": card, **public, "step": step}


def _events(program: Program, steps: int) -> dict[int, list[Event]]:
    """The program's events by step; warns about those that this fit will not reach."""
    found: dict[int, list[Event]] = {}
    for event in program.training.events:
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


Evaluate = Callable[[dict[str, Any], Array], dict[str, float]]


def _validator(trainer: Trainer, held_out: Any, chunk: int = 512) -> Evaluate:
    """Means over held-out data in nats per datum, by column of the history: the ELBO, and the bound that is trained.

    A fit gives it the same key each time, so that differences are the model's.
    """
    program, n, particles, place = trainer.program, rows(held_out), trainer.loss.particles, trainer.place
    chunk = min(max(32, chunk // (particles or 1)), n)
    starts = range(0, n, chunk)
    # The last chunk is filled up with the first rows, whose values are dropped: one shape, one compilation.
    blocks = [np.arange(start, start + chunk) % n for start in starts]
    # The noise is that of a chunk, which is therefore the same on every mesh; one that cannot be cut stays whole.
    blocks = [block if chunk % place.rows_at_once else place.rows(block) for block in blocks]
    store = place.store(jax.tree.map(jnp.asarray, held_out))

    @jax.jit
    def values(use: dict[str, Any], store: Any, index: Array, key: Array) -> dict[str, Array]:
        prepare_key, noise_key = jax.random.split(key)
        x = program.observation.prepare(take(store, index), prepare_key, False)
        params, mutable = trainer.constrain(use["params"]), use["mutable"]
        if particles is None:
            return place.everywhere({"validation_elbo": per_datum_elbo(program, params, noise_key, x, mutable=mutable)})
        bound, elbo = per_datum_bound(program, params, noise_key, x, particles=particles, mutable=mutable)
        return place.everywhere({"validation_elbo": elbo, f"validation_{BOUND}": bound})

    def evaluate(use: dict[str, Any], key: Array) -> dict[str, float]:
        keys = [place.store(jax.random.fold_in(key, i)) for i in range(len(blocks))]
        parts = [values(use, store, index, own) for index, own in zip(blocks, keys, strict=True)]
        return {name: float(np.concatenate([np.asarray(part[name]) for part in parts])[:n].mean()) for name in parts[0]}

    return evaluate
