"""Semi-amortised posteriors: the guide's q(z | x) as a start, then optimised for each datum with the decoder frozen.

Most of what an amortised posterior loses is lost by the encoder, which answers for all data at once, not by the family
of its distributions (Cremer, Li & Duvenaud 2018).  A hundred steps for each datum win most of it back, and with a full
covariance over all latents more (Kim et al. 2018; Hjelm et al. 2016).

A refined posterior can also be worse, and look better: it seeks one mode, and its own draws never see another.  So both
proposals are tried on pilot draws before anything is reported, and a datum keeps the guide's unless the refined one is
better by k-hat and agrees with a proposal that also draws from the guide and the prior (:func:`mended`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inference.checking.log_weights import Weigher, summarise
from inference.checking.optimise import Settings, optimise
from inference.checking.per_datum import (
    PILOT,
    check_count,
    check_key,
    checksums,
    compiled,
    draw_one,
    pairs_at_once,
    prepare_key,
    prepare_one,
    sweep,
)
from inference.checking.psis import KHAT_BAD
from inference.checking.semi_amortised import Layout, Local, layout
from inference.fitting.sources import stored
from ppl_models.program import Program, rows, take

if TYPE_CHECKING:
    import pandas as pd

AMORTISED, REFINED = "amortised", "refined"
WATCH = (0.25, 0.25, 0.5)
"""Shares of refined posterior, guide and prior in the proposal that looks for what the refined posterior misses.

It finds another mode where some of twice ``particles`` draws fall into it: surely with few latent numbers, hardly with
many, where nothing that draws can.
"""
MISSED = 0.1
"""Nats by which that proposal may find more than the refined posterior, beyond three standard errors (ours)."""


@dataclass(frozen=True)
class Refined:
    """A fit whose posterior was optimised for certain data: goes wherever a fit goes, with these data.

    ``table``     one row a datum: ``khat`` and ``elbo`` (nats) of the refined posterior and, ``..._amortised``, of the
                  guide, on pilot draws; ``missed``: nats that a wider proposal found beyond it; ``steps`` taken;
                  ``estimator``: which of the two is used, ``"refined"`` or ``"amortised"``.
    ``settings``  how it was refined.
    ``kept``      latent sites whose distribution could not be refined and stays the guide's.

    Data are recognised by their checksum, so a part of them will do, in any order.
    """

    fit: Any
    table: pd.DataFrame
    settings: Settings
    kept: tuple[str, ...]
    locals: Local
    kernel: Any = field(default=None, repr=False, compare=False)

    @property
    def program(self) -> Program:
        return self.fit.program

    @property
    def params(self) -> dict[str, Any]:
        return self.fit.params

    @property
    def mutable(self) -> dict[str, Any]:
        return self.fit.mutable

    @property
    def history(self) -> Any:
        return self.fit.history

    @property
    def info(self) -> dict[str, Any]:
        return self.fit.info

    @property
    def folder(self) -> Path | None:
        return self.fit.folder

    @property
    def card(self) -> Mapping[str, Any]:
        return self.fit.card

    @property
    def mesh(self) -> Any:
        return getattr(self.fit, "mesh", None)

    @property
    def model(self) -> Callable[..., Any]:
        return self.fit.model

    @property
    def guide(self) -> Callable[..., Any]:
        """The guide as it was trained: an ordinary NumPyro guide knows nothing of single data."""
        return self.fit.guide

    def prepare(self, x: Any, key: jax.Array) -> Any:
        """What :meth:`Fit.prepare` returns."""
        return self.fit.prepare(x, key)

    def local(self, x: Any) -> Local:
        """The posteriors of stored data ``x``; ``ValueError`` for a datum that was not refined."""
        return take(self.locals, self._rows(checksums(x)))

    def latents(self, x: Any, *, draws: int, key: jax.Array) -> dict[str, np.ndarray]:
        """Draws of every latent site from the posteriors of stored data ``x``: (n, draws, *event) by name.

        They depend on the key and the row of the datum in ``x`` only.
        """
        check_key(key)
        check_count("draws", draws, 1)
        x = stored(self.program, x)
        local = self.local(x)

        def one(params: Any, mutable: Any, key: Any, x: Any, datum: Any, local: Local, index: Any) -> Any:
            x = prepare_one(self.program, key, x, datum, local)

            def draw(i: Any) -> dict[str, Any]:
                found = draw_one(self.program, params, mutable, key, x, datum, i, local).latents
                return {name: value[0] for name, value in found.items()}

            return jax.vmap(draw)(index)

        kernel = compiled(jax.vmap(one, in_axes=(None, None, None, 0, 0, 0, None)))
        parts: dict[str, np.ndarray] = {}
        blocks = sweep(
            lambda datum, index: kernel(
                self.params, self.mutable, key, take(x, datum), datum, take(local, datum), index
            ),
            rows(x), draws, pairs_at_once(self.program, None), what="latents", progress=False,
        )  # fmt: skip
        for data, columns, values in blocks:
            for name, value in values.items():
                whole = parts.setdefault(name, np.empty((rows(x), draws, *value.shape[2:]), value.dtype))
                whole[data, columns] = value
        return parts

    def estimators(self, x: Any) -> np.ndarray:
        """Which posterior each datum of stored ``x`` has: ``"refined"`` or ``"amortised"``."""
        return self.table["estimator"].to_numpy()[self._rows(checksums(x))]

    def _rows(self, found: np.ndarray) -> np.ndarray:
        known = {crc: row for row, crc in enumerate(self.table["x_crc"])}
        rows = [known.get(crc, -1) for crc in found]
        if -1 in rows:
            raise ValueError(
                f"datum {rows.index(-1)} of x is not among the {len(known)} data whose posteriors were refined; "
                "pass those data, or refine(fit, x, key=key) these"
            )
        return np.asarray(rows)


class Mended(NamedTuple):
    """Refined posteriors of some data, whether each is better, and the columns of the guide's and of theirs."""

    local: Local
    better: np.ndarray
    before: Mapping[str, np.ndarray]
    pilot: dict[str, np.ndarray]
    missed: np.ndarray
    steps: np.ndarray


def refine(
    fit: Any,
    x: Any,
    *,
    key: jax.Array,
    objective: str = Settings.objective,
    covariance: str = Settings.covariance,
    rank: int = Settings.rank,
    steps: int = Settings.steps,
    tolerance: float = Settings.tolerance,
    draws: int = Settings.draws,
    learning_rate: float = Settings.learning_rate,
    widen: float | str = Settings.widen,
    defensive: float = Settings.defensive,
    particles: int = 512,
    chunk: int | None = None,
    progress: bool = True,
) -> Refined:
    """Optimise the posterior of each stored datum of ``x`` (n, *shape), starting at the guide's.

    ``objective``   ``"elbo"``, or ``"dreg"``: the importance-weighted bound of ``draws`` draws with doubly
                    reparameterised gradients, which widens where the ELBO narrows; neither is best everywhere.
    ``covariance``  over all latents of a datum: ``"diag"``, ``"full"``, ``"low_rank"`` (of ``rank``); ``"auto"`` is
                    full up to 64 numbers, of low rank beyond.
    ``steps``       of Adam for each datum at most, ``draws`` of z in each, at ``learning_rate``, whose units are the
                    guide's own standard deviations.
    ``tolerance``   nats: once ten steps raise the bound of a datum by no more than this, or than half the standard
                    error of the rise, its rate falls along a cosine for ninety more and it is done.  0: every datum
                    takes all steps, its rate falling from the first to the last; so too with fewer than 4 draws.
    ``widen``       multiplies the standard deviations found: heavier tails for importance weights, for D (w - 1)^2
                    nats of the ELBO of D latent numbers; ``"auto"`` takes what costs 0.03 nats.
    ``defensive``   the prior's share of the proposal: weights stay bounded by p(x | z) over this share.
    ``particles``   pilot draws that decide for each datum, at least 25; whatever is estimated later is drawn afresh.
    ``chunk``       (datum, draw) pairs at once, as in :func:`inference.evidence`; numbers do not depend on it.

    The result goes wherever a fit goes: ``evidence(refined, x, key=...)``, ``posterior``, ``diagnose``, ``report``, and
    the ``assign`` of a family with clusters.
    Raises ``ValueError`` before any work for data the program cannot score, arguments out of range, and a program
    none of whose latents can be refined; sites that cannot are named in one ``UserWarning`` and left as they are.

    >>> refined = refine(fit, x_test, key=jax.random.key(0))
    >>> evidence(refined, x_test, key=jax.random.key(1))
    """
    settings = Settings(
        objective=objective, covariance=covariance, rank=rank, steps=steps, tolerance=tolerance, draws=draws,
        learning_rate=learning_rate, widen=widen, defensive=defensive,
    )  # fmt: skip
    check_key(key)
    check_count("particles", particles, 25)
    pairs = pairs_at_once(fit.program, chunk)
    if isinstance(fit, Refined):
        fit = fit.fit
    x = stored(fit.program, x)
    parts = plan(fit, x)
    if parts is None or not parts.size:
        why = "has no latents" if not fit.program.latents else "has no latent whose posterior has a map from noise"
        raise ValueError(
            f"this program {why}, so there is nothing to refine; evidence(fit, x, key=key) scores it as it is"
        )
    if parts.kept:
        warnings.warn(
            f"posterior of {', '.join(parts.kept)} is no (transformed) Normal or law with quantiles: left as the "
            "guide's, the other sites are refined",
            UserWarning,
            stacklevel=2,
        )
    weigh, index = Weigher(fit, pairs, progress=progress, what="pilot draws"), np.arange(rows(x))
    done = mended(weigh, x, index, parts, settings, particles=particles, key=key, pairs=pairs, progress=progress)
    return Refined(fit, _table(x, done), settings, parts.kept, done.local, weigh.kernel)


def plan(fit: Any, x: Any) -> Layout | None:
    """What of a program's posterior can be refined; ``None`` where it has no posterior to be refined."""
    program = fit.program
    if not program.latents or program.posterior is None:
        return None
    one = jax.tree.map(jnp.asarray, take(x, 0))
    prepared = jax.eval_shape(lambda: prepare_one(program, jax.random.key(0), one, jnp.uint32(0)))
    return layout(program, fit.params, fit.mutable, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), prepared))


def mended(
    weigh: Weigher,
    x: Any,
    index: np.ndarray,
    parts: Layout,
    settings: Settings,
    *,
    before: Mapping[str, np.ndarray] | None = None,
    particles: int,
    key: jax.Array,
    pairs: int,
    progress: bool,
) -> Mended:
    """Refine stored data ``x``, rows ``index`` of a whole, and decide for each whether that made it better.

    ``before`` are the columns of :func:`summarise` under the guide, where they are known.  Better is: within the bound
    on k-hat where the guide was not, or a smaller k-hat where neither is, or a larger effective sample size where both
    are; and never where a proposal that also draws from guide and prior finds more of p(x), or weights as heavy
    (:data:`WATCH`).
    """
    n, fit = rows(x), weigh.fit
    if settings.defensive and not parts.samples_prior:
        raise ValueError("defensive needs a prior that can be sampled; set defensive=0")
    noise = jax.vmap(lambda i: prepare_key(key, i))(jnp.asarray(index, jnp.uint32))
    q, steps = optimise(fit, x, noise, index, parts, settings, key=key, pairs=pairs, progress=progress)

    def local(*shares: float) -> Local:
        return Local(noise, q, jnp.tile(jnp.asarray(shares), (n, 1)))

    def tried(local: Local, *purposes: int) -> dict[str, np.ndarray]:
        drawn = [weigh(x, particles, key, local=local, purpose=purpose, index=index) for purpose in purposes]
        return summarise(np.concatenate(drawn, axis=1))

    guide, refined = local(0.0, 1.0, 0.0), local(1 - settings.defensive, 0.0, settings.defensive)
    before = before or tried(guide, PILOT)
    pilot = tried(refined, PILOT + 1)
    watch = tried(local(*(WATCH if parts.samples_prior else (0.5, 0.5, 0.0))), PILOT + 2, PILOT + 3)
    error = np.hypot(pilot["se"], watch["se"])
    missed = watch["log_px"] - pilot["log_px"]
    # Not (a <= b): what is not a number was not found to be good.
    whole = (missed <= np.maximum(3 * error, MISSED)) & (watch["khat"] <= KHAT_BAD)
    good, was_good = pilot["khat"] <= KHAT_BAD, before["khat"] <= KHAT_BAD
    smaller = ~(pilot["khat"] >= before["khat"]) & ~np.isnan(pilot["khat"])
    better = np.where(was_good, good & (pilot["ess"] > before["ess"]), good | smaller) & whole
    shares = jnp.where(jnp.asarray(better)[:, None], refined.shares, guide.shares)
    return Mended(Local(noise, q, shares), better, before, pilot, missed, steps)


def _table(x: Any, done: Mended) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "datum": np.arange(rows(x)),
            "x_crc": checksums(x),
            "khat_amortised": done.before["khat"],
            "khat": done.pilot["khat"],
            "elbo_amortised": done.before["elbo"],
            "elbo": done.pilot["elbo"],
            "missed": done.missed,
            "steps": done.steps,
            "estimator": np.where(done.better, REFINED, AMORTISED),
        }
    )
