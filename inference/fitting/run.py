"""Fit a program by stochastic variational inference: one call, resumable, reported as it goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from inference.fitting.fitted import Fit
from inference.fitting.folder import RunFolder
from inference.fitting.placement import MeshLike
from inference.fitting.prepare import prepare
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
    mesh: MeshLike = None,
) -> Fit:
    """Maximise the ELBO of ``program`` on ``data``, or a tighter bound, and return the fitted program.

    ``data``           stored data (n, *shape), kept as stored on the device, a dict (tuple, dataclass) of arrays where
                       the program's datum is one; or what the program can read, such as a DataFrame; or a Hugging Face
                       data set with such columns; or a sampler ``(key, n) -> batch``; or a grain dataset of single
                       records.
    ``learning_rate``  Adam's rate, a number (default 1e-3) or an optax schedule; ``optimizer`` replaces Adam.
    ``clip``           largest global gradient norm, in nats per datum.
    ``weights``        numbers or schedules of the step by name: a site (its log-likelihood or KL), a knob of the
                       program, or ``"kl"`` for all latents; for example ``{"kl": optax.linear_schedule(0, 1, 500)}``.
                       ``"free_bits"``: nats a datum of each latent site's KL that cost nothing, max(KL_l, free) in its
                       place (Kingma et al. 2016, arXiv 1606.04934, eq. 15), so that no level is priced out early on.
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
    ``card``           a few facts about the data (name, split, seed), kept in run.json.
    ``mesh``           devices to share the work: ``"data=8"`` cuts each batch into eight, ``"data=4,model=2"`` also
                       large parameters (with their moments) into two; or a dict, or a JAX mesh with these axes.  The
                       program and its random numbers are those of one device, and losses equal its losses but for
                       rounding.  A run may be resumed on another mesh.  In several processes (``jax.distributed``)
                       each makes the same call with the same data; the first writes ``out``.  See docs/devices.md.

    Updates with a non-finite loss or gradient are skipped, counted in the history and in ``info["skipped"]``, and
    warned about; 50 in a row raise ``FloatingPointError`` with the last good state on disk.  Ctrl-C ends the current
    step, writes a checkpoint and raises ``KeyboardInterrupt``.  Bad arguments raise ``ValueError`` before any work.
    Same key, same machine, same arguments: the same parameters, bit for bit.
    """
    given = {name: value for name, value in locals().items() if name not in ("program", "data")}
    loop, start = prepare(program, data, **given)
    return loop.run(start, resume)


def resume(folder: str | Path, data: Any, *, validation: Any = None, progress: bool = True, **changes: Any) -> Fit:
    """Continue the run of a folder with the arguments it was started with; ``changes`` may raise ``steps`` or name a
    ``mesh``, which need not be that of the start.

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
