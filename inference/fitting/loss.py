"""What a fit minimises: the negative ELBO or a tighter bound, and beside it the sleep phase."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jaxtyping import Array, Float, Key

from inference.fitting.bounds import BOUND, check_reparameterised, check_weights, importance_weighted
from inference.fitting.objectives import BALANCE, FREE_BITS, Terms, Weights, fused_elbo
from inference.fitting.sleep import SLEEP, guide_only, sleep_loss
from ppl_models.program import Program, did_you_mean

OBJECTIVES = ("elbo", "iwae", "dreg")
PARTICLES = 8
"""Draws a datum of an importance-weighted bound, unless said."""
DEFAULTS = {"objective": "elbo", "particles": None, "sleep": 0.0}
"""What a run was made with whose folder does not say."""


@dataclass(frozen=True)
class Loss:
    """The function of the parameters that an update differentiates.

    ``objective``  ``"elbo"``, ``"iwae"`` or ``"dreg"``; ``particles`` draws a datum for the latter two.
    ``sleep``      schedule of the weight of the sleep phase, ``None`` without one.
    ``movable``    parameters that the sleep phase may move.
    """

    objective: str = "elbo"
    particles: int | None = None
    sleep: Callable[[Any], Any] | None = None
    movable: tuple[str, ...] = ()

    @property
    def bound(self) -> str | None:
        """Column of the history with the bound that is trained, where it is not the ELBO."""
        return None if self.particles is None else BOUND

    def __call__(
        self,
        program: Program,
        params: Mapping[str, Any],
        key: Key[Array, ""],
        x: Any,
        *,
        step: Any = 0,
        weights: Weights | None = None,
        mutable: Mapping[str, Any] | None = None,
    ) -> tuple[Float[Array, ""], Terms]:
        """Loss of a batch of prepared data in nats per datum, and its terms."""
        if self.particles is None:
            loss, terms = fused_elbo(program, params, key, x, weights=weights, mutable=mutable)
        else:
            loss, terms = importance_weighted(
                program, params, key, x, particles=self.particles, doubly=self.objective == "dreg",
                weights=weights, mutable=mutable,
            )  # fmt: skip
        if self.sleep is None:
            return loss, terms
        # A key of its own: with or without it, the rest of the update sees the same numbers.
        own = jax.random.fold_in(key, 0x7A7A)
        held = {n: v if n in self.movable else jax.lax.stop_gradient(v) for n, v in params.items()}
        asleep = sleep_loss(program, held, own, x, weights=weights, mutable=mutable)
        return loss + self.sleep(step) * asleep, terms._replace(more={**terms.more, SLEEP: asleep})


def make_loss(program: Program, objective: str, particles: int | None, sleep: Any, weights: Iterable[str] = ()) -> Loss:
    """Check the three arguments of a fit and return what they ask for; ``weights`` names what is weighted.

    Raises ``ValueError`` for an unknown objective, a number of particles that is none or belongs to no objective, a
    weight of the sleep phase that is negative, and a program for which the choice makes no sense.
    """
    if objective not in OBJECTIVES:
        near = did_you_mean(str(objective), OBJECTIVES)
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}{near}")
    if particles is not None and objective == "elbo":
        raise ValueError(
            f'particles are the draws of objective="iwae" or "dreg", got particles={particles!r} with "elbo"; '
            "leave it out, or choose one of them"
        )
    if particles is not None and not (isinstance(particles, int) and particles >= 1):
        raise ValueError(f"particles must be a whole number of at least 1, got {particles!r}; try {PARTICLES}")
    if objective != "elbo" and (program.posterior is None or not program.latents):
        raise ValueError(
            f'objective "{objective}" weighs draws of latents, this program has no latents; use objective="elbo", '
            "which is the log-likelihood there"
        )
    terms = [name for name in weights if name.partition("/")[0] in (FREE_BITS, BALANCE)]
    if objective != "elbo" and terms:
        raise ValueError(
            f'{terms[0]} acts on the KL of each latent, and objective "{objective}" has none; use objective="elbo"'
        )
    if objective == "dreg":
        check_weights(program, weights)
    if objective != "elbo":
        check_reparameterised(program)
    if not callable(sleep) and not (
        isinstance(sleep, int | float) and not isinstance(sleep, bool) and 0 <= sleep < float("inf")
    ):
        raise ValueError(f"sleep is a weight, a number >= 0 or a schedule of the step, got {sleep!r}; 0 turns it off")
    schedule = sleep if callable(sleep) else optax.constant_schedule(float(sleep)) if sleep else None
    movable = guide_only(program) if schedule is not None else ()
    return Loss(objective, None if objective == "elbo" else particles or PARTICLES, schedule, movable)
