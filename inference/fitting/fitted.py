"""What a fit leaves: the program with the parameters that evaluation uses, and how a run folder gives it back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro.handlers import substitute

from inference.fitting import checkpoint
from inference.fitting.folder import History, RunFolder
from inference.fitting.objectives import init_params
from inference.fitting.placement import MeshLike, OneDevice, OnMesh, as_placement
from inference.fitting.sources import stored
from ppl_models.program import Program, zeros


@dataclass(frozen=True)
class Fit:
    """A fitted program: the parameters that evaluation uses, and the record of how they came about.

    ``params`` are the values of the program's ``param`` sites: the best by validation if there was one, else the
    running average if there was one, else the last.  ``info`` holds steps, seconds, skipped updates, why it stopped.
    ``mesh`` is where evaluation runs, see :meth:`on`; the parameters themselves are whole and on one device.
    """

    program: Program
    params: dict[str, Any]
    mutable: dict[str, Any]
    history: Any
    info: dict[str, Any]
    folder: Path | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    mesh: OnMesh | None = None

    def on(self, mesh: MeshLike) -> Fit:
        """This fit, whose evidence, posterior and refinement are computed over a mesh: ``fit.on("data=8")``.

        The rows of the data are shared by the devices of the axis ``data``, the parameters stay whole on each.  The
        numbers are those of one device but for rounding.  What :func:`inference.fit` returned is on its own mesh;
        ``on(None)`` brings it back to one device.  Raises ``ValueError`` as :func:`inference.fit` does for a mesh.
        """
        place = as_placement(mesh)
        return replace(self, mesh=None if isinstance(place, OneDevice) else place)

    @property
    def model(self) -> Callable[..., Any]:
        """The generative program with the fitted parameters: for ``Predictive``, ``condition``, ``Trace``."""
        return substitute(self.program.model, data=self.params)

    @property
    def guide(self) -> Callable[..., Any]:
        """The derived NumPyro guide with the fitted parameters."""
        return substitute(self.program.guide, data=self.params)

    def prepare(self, x: Any, key: Array) -> Any:
        """Validate stored data and return what the model scores in evaluation."""
        return self.program.observation.prepare(jax.tree.map(jnp.asarray, stored(self.program, x)), key, False)


class FitInterrupted(KeyboardInterrupt):
    """Ctrl-C, or an interrupted cell of a notebook, during a fit: ``fit`` has what was fitted until then.

    >>> import sys; fitted = sys.last_value.fit  # in the next cell
    """

    def __init__(self, text: str, fit: Fit) -> None:
        super().__init__(text)
        self.fit = fit


def load(folder: str | Path) -> Fit:
    """Read a run folder back: the program built from spec.json with the parameters that evaluation uses.

    Reads the newest whole checkpoint (a torn one is passed over with a warning).  Raises ``ValueError`` naming the
    file that is missing, torn or foreign.
    """
    run = RunFolder(folder)
    record, spec = run.read_run(), run.read_spec()
    program = spec.build(jax.random.key(0))
    like = jax.tree.map(jnp.asarray, zeros(program.shape))
    found: dict[str, Any] = {}

    def shapes() -> tuple[Any, Any]:
        params, found["transforms"], mutable = init_params(
            program, jax.random.key(0), program.observation.prepare(like, jax.random.key(0), False)
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
