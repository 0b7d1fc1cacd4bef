"""Fit a program by stochastic variational inference: one call, resumable, reported as it goes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from inference.fitting.checkpoint import CheckpointError, checkpoints
from inference.fitting.fitted import Fit
from inference.fitting.folder import RunFolder
from inference.fitting.placement import MeshLike
from inference.fitting.prepare import prepared
from inference.fitting.record import key_numbers
from ppl_models.program import Program


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
    objective: str = "elbo",
    particles: int | None = None,
    sleep: Any = 0.0,
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
    callbacks: Sequence[Any] = (),
    mesh: MeshLike = None,
) -> Fit:
    """Maximise the ELBO of ``program`` on ``data``, or a tighter bound, and return the fitted program.

    ``data``           stored data (n, *shape), kept as stored on the device, a dict (tuple, dataclass) of arrays where
                       the program's datum is one; or what the program can read, such as a DataFrame; or a Hugging Face
                       data set with such columns; or a sampler ``(key, n) -> batch``; or a grain dataset of single
                       records.  Data that stay on disk: memory maps (``numpy.load(FILE, mmap_mode="r")``), or the path
                       of a .npy file, a .parquet file, or a folder of either (:mod:`inference.fitting.stored_rows`).
    ``learning_rate``  Adam's rate, a number (default 1e-3) or an optax schedule; ``optimizer`` replaces Adam.
    ``clip``           largest global gradient norm, in nats per datum.
    ``weights``        numbers or schedules of the step by name: a site (its log-likelihood or KL), a knob of the
                       program, or ``"kl"`` for all latents; for example ``{"kl": optax.linear_schedule(0, 1, 500)}``.
                       ``"free_bits"``: nats a datum of each latent site's KL that cost nothing, max(KL_l, free) in its
                       place (Kingma et al. 2016, arXiv 1606.04934, eq. 15), so that no level is priced out early on;
                       ``"free_bits/SITE"`` those of one.  ``"balance"``: share, a schedule that ends at 0, by which the
                       KLs are priced in proportion to themselves, a site that says little pays little (``fused_elbo``).
    ``objective``      what is maximised: ``"elbo"``; ``"iwae"``, the importance-weighted bound E log (1/K) sum_k w_k,
                       w = p(x, z) / q(z | x), of K = ``particles`` draws a datum, 8 unless said (Burda, Grosse &
                       Salakhutdinov 2016, eq. 8); ``"dreg"``, the same bound by doubly reparameterised gradients, whose
                       noise does not drown the guide's as K grows (Tucker, Lawson, Gu & Maddison 2019, eq. 8).  Both
                       weigh densities: no closed form of a KL, and a family's own bound has no effect.  While a weight
                       is not 1, w is tempered (:mod:`inference.fitting.bounds`); ``"dreg"`` has none for one latent.
    ``sleep``          weight, a number or a schedule, of -E_p log q(z | x) over draws (z, x) of the program itself, as
                       many a step as the batch has data: the guide also learns from data that never run out (Hinton,
                       Dayan, Frey & Neal 1995; Le, Baydin & Wood 2017).  Moves parameters that only the posterior has.
    ``average``        decay of a running average of the parameters (0.999, say), used for evaluation.
    ``validation``     held-out stored data: the ELBO on it, with fixed noise, every ``validate_every`` steps (and once
                       before the first, where the program starts from the data); the best parameters are kept, and
                       training stops after ``patience`` validations without a better one.  With ``"iwae"`` and
                       ``"dreg"`` better is by the bound that is trained, ``validation_bound`` in the history; all of
                       its other columns keep their meaning, ``elbo`` and ``validation_elbo`` that of the ELBO.
    ``out``            run folder: spec.json, run.json, history.csv as it goes, checkpoint/ every ``checkpoint_every``
                       steps.  With ``resume=True`` and the same arguments the run there continues exactly; a killed
                       run ends with the parameters that it would have had.
    ``callbacks``      functions ``(step, figures)`` that are told every row of the history and may end the fit by
                       returning ``True``, or :class:`inference.fitting.callbacks.Watcher`: the trackers of
                       :mod:`inference.fitting.trackers`, a live plot.  One that fails is warned about, once.
    ``card``           a few facts about the data (name, split, seed), kept in run.json.
    ``mesh``           devices to share the work: ``"data=8"`` cuts each batch into eight, ``"data=4,model=2"`` also
                       large parameters (with their moments) into two; or a dict, or a JAX mesh with these axes.  The
                       program and its random numbers are those of one device, and losses equal its losses but for
                       rounding.  A run may be resumed on another mesh.  In several processes (``jax.distributed``)
                       each makes the same call with the same data; the first writes ``out``.  See docs/devices.md.

    Updates with a non-finite loss or gradient are skipped, counted in the history and in ``info["skipped"]``, and
    warned about; 50 in a row raise ``FloatingPointError`` with the last good state on disk.  Ctrl-C ends the current
    step, writes a checkpoint and raises ``FitInterrupted``, a ``KeyboardInterrupt`` whose ``fit`` is what was fitted
    until then; so does SIGTERM, which then goes on to end the process.  A folder that another process writes is refused
    at once.  Bad arguments raise ``ValueError`` before any work.
    Same key, same machine, same arguments: the same parameters, bit for bit.
    """
    given = {name: value for name, value in locals().items() if name not in ("program", "data")}
    with prepared(program, data, **given) as (loop, start, begun):
        return loop.run(start, begun)


def resume(folder: str | Path, data: Any, *, validation: Any = None, progress: bool = True, **changes: Any) -> Fit:
    """Continue the run of a folder with the arguments it was started with; ``changes`` may raise ``steps`` or name a
    ``mesh``, which need not be that of the start.

    Schedules and optimisers are functions, which run.json records by name only, and ``callbacks`` are not recorded:
    pass them again.  Raises ``ValueError`` for a folder without a run, or whose run.json is torn or of a later version,
    and for a run that was killed before its first checkpoint, whose initial weights only the program that it was
    started with has.
    """
    run = RunFolder(folder)
    record = run.read_run()
    if not checkpoints(run.checkpoint):
        raise CheckpointError(
            f"no checkpoint in {run.checkpoint}: the run was stopped before its first one, and nothing is lost; start "
            "it again with the same program and arguments: fit(program, data, ..., out=folder, resume=True)"
        )
    known = inspect.signature(fit).parameters
    if strange := sorted(set(record["arguments"]) - set(known)):
        raise ValueError(f"{run.path / 'run.json'} has arguments that fit does not take: {', '.join(strange)}")
    arguments = {k: v for k, v in record["arguments"].items() if k not in ("key", "validation")}
    key = jax.random.wrap_key_data(jnp.asarray(key_numbers(record, run.path / "run.json"), jnp.uint32))
    for name, value in arguments.items():
        nested = value.values() if isinstance(value, dict) and "callable" not in value else [value]
        if name not in changes and any(isinstance(v, dict) and "callable" in v for v in nested):
            raise ValueError(f"the run in {folder} used a function for {name}; pass {name}= to resume again")
    if record["arguments"].get("validation") and validation is None:
        raise ValueError(f"the run in {folder} used validation data; pass validation= the same data again")
    program = run.read_spec().build(key)
    return fit(
        program, data, validation=validation, key=key, out=folder, card=record["card"], resume=True, progress=progress,
        **{**arguments, **changes},
    )  # fmt: skip
