"""What a model loses on new data, and whose loss it is: that of the generative model, or that of the encoder.

With log p(x) of a datum and its ELBO under the amortised posterior, averages over training and held-out data differ by

    ELBO_train - ELBO_new  =  (log p_train - log p_new)  +  ((log p - ELBO)_new - (log p - ELBO)_train)
    held-out gap              generative model               encoder

exactly.  A decoder that overfits gives new data less probability; an encoder that overfits answers new data worse than
those it was trained on, with nothing wrong in the model (Cremer, Li & Duvenaud 2018, section 5.4; Wu, Burda,
Salakhutdinov & Grosse 2017, section 5.3; Shu, Bui, Zhao, Kochenderfer & Ermon 2018).  log p(x) is the
importance-weighted estimate from a posterior refined for each datum, where that is better than the amortised one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Key

from inference.checking import remedies
from inference.checking.criticism import EFFECT
from inference.checking.log_weights import Weigher, summarise
from inference.checking.optimise import Settings
from inference.checking.per_datum import check_count, check_key, pairs_at_once
from inference.checking.refinement import Refined, mended, plan
from inference.checking.training_lines import verdict_of
from inference.fitting.sources import stored
from ppl_models.program import Check, rows, take

MOST = 100
"""Training data, and held-out data, that are compared."""


@dataclass(frozen=True)
class Generalisation:
    """ELBO and log p(x) of some training and some held-out data, nats each.

    ``log_px_train`` and ``log_px`` are ``None`` where the posterior cannot be refined, or where ELBOs do not differ
    enough for a question.
    """

    elbo_train: Float[np.ndarray, " train"]
    elbo: Float[np.ndarray, " held_out"]
    log_px_train: Float[np.ndarray, " train"] | None = None
    log_px: Float[np.ndarray, " held_out"] | None = None

    @property
    def gap(self) -> tuple[float, float]:
        """Mean ELBO of training data less that of held-out data, and its standard error."""
        return _difference(self.elbo_train, self.elbo)

    @property
    def generative(self) -> tuple[float, float]:
        """The same of log p(x)."""
        assert self.log_px_train is not None and self.log_px is not None
        return _difference(self.log_px_train, self.log_px)

    @property
    def encoder(self) -> tuple[float, float]:
        """Mean of log p(x) - ELBO of held-out data less that of training data, and its standard error."""
        assert self.log_px_train is not None and self.log_px is not None
        return _difference(self.log_px - self.elbo, self.log_px_train - self.elbo_train)

    @property
    def bound(self) -> tuple[float, float]:
        """Differences of ELBO from which a gap warns, fails."""
        sd, se = float(np.std(self.elbo, ddof=1)), self.gap[1]
        return max(EFFECT[0] * sd, 2 * se), max(EFFECT[1] * sd, 2 * se)


def generalisation(
    fit: Any,
    x: Any,
    train: Any,
    *,
    key: Key[jax.Array, ""],
    particles: int = 512,
    most: int = MOST,
    always: bool = False,
    progress: bool = True,
) -> Generalisation | None:
    """Compare a fit on stored training data ``train`` with held-out data ``x``; ``None`` without an encoder.

    ``particles``  draws a datum, at least 25.
    ``most``       data of each kind, chosen by the key.
    ``always``     also where the ELBOs do not differ by more than a gap is allowed: refining takes seconds to minutes.

    Raises ``ValueError`` before any work for data that the program cannot score and arguments out of range.
    """
    check_key(key)
    check_count("particles", particles, 25)
    check_count("most", most, 2)
    if isinstance(fit, Refined):
        fit = fit.fit
    program = fit.program
    x, train = stored(program, x, "x"), stored(program, train, "train")
    if not program.latents or program.exact.log_prob is not None or min(rows(x), rows(train)) < 2:
        return None
    choose_key, key = jax.random.split(key)
    chosen = [
        take(data, np.sort(np.asarray(jax.random.permutation(k, rows(data)))[:most]))
        for k, data in zip(jax.random.split(choose_key), (train, x), strict=True)
    ]
    cut, both = rows(chosen[0]), jax.tree.map(lambda *parts: np.concatenate(parts), *chosen)
    pairs, index = pairs_at_once(program, None), np.arange(rows(both))
    weigh = Weigher(fit, pairs, progress=progress, what="training and held-out data")
    before = summarise(weigh(both, particles, key))
    found = Generalisation(before["elbo"][:cut], before["elbo"][cut:])
    parts = plan(fit, both)
    if parts is None or not parts.size or not (always or found.gap[0] > found.bound[0]):
        return found
    done = mended(
        weigh, both, index, parts, Settings(), before=before, particles=particles, key=key, pairs=pairs,
        progress=progress,
    )  # fmt: skip
    log_px = np.where(done.better, done.pilot["log_px"], before["log_px"])
    return Generalisation(found.elbo_train, found.elbo, log_px[:cut], log_px[cut:])


def held_out_checks(found: Generalisation) -> list[Check]:
    """The held-out gap, and where it is known whose it is, a line for the generative model and one for the encoder."""
    (gap, se), (warn, fail) = found.gap, found.bound
    counts = f"{len(found.elbo_train)} training and {len(found.elbo)} of these data"
    wanted = f"<= {warn:.3g} nats ({EFFECT[0]:g} sd over data, 2 s.e.)"
    verdict = verdict_of(gap, warn, fail)
    whole = f"Mean ELBO of training data minus that of these data: {gap:.3g} ± {se:.2g} nats a datum ({counts}). "
    if verdict == "ok":
        said = "The model describes new data about as well as those it was fitted to."
        return [Check(remedies.WHOLE, gap, wanted, "ok", whole + said, "")]
    if found.log_px is None:
        both = [remedies.MORE_DATA, remedies.SMALLER, remedies.EARLY]
        said = "The model describes the data it was fitted to clearly better than new ones: it overfits."
        return [Check(remedies.WHOLE, gap, wanted, verdict, whole + said, remedies.joined(both))]
    parts = {remedies.GENERATIVE: found.generative, remedies.ENCODER: found.encoder}
    verdicts = {name: verdict_of(value, warn, fail) for name, (value, _) in parts.items()}
    if set(verdicts.values()) == {"ok"}:  # neither alone, both together: it is that of the larger
        largest = max(parts, key=lambda name: parts[name][0])
        verdicts[largest] = "warn"
    own = {
        remedies.GENERATIVE: [remedies.MORE_DATA, remedies.SMALLER, remedies.EARLY],
        remedies.ENCODER: [remedies.REFINE, remedies.SLEEP, remedies.REGULARISE],
    }
    says = {
        remedies.GENERATIVE: (
            "Mean log p(x) of training data minus that of these data, both from refined posteriors: {} nats a datum. ",
            "The generative model itself describes new data worse: it overfits.",
            "The generative model describes new data about as well as those it was fitted to.",
        ),
        remedies.ENCODER: (
            "log p(x) - ELBO of these data minus that of training data: {} nats a datum. ",
            "The encoder answers new data worse than those it was trained on, whatever the model is: it overfits, and "
            "the ELBO of new data understates the model.",
            "The encoder answers new data about as well as those it was trained on.",
        ),
    }
    lines = []
    for name, (value, error) in parts.items():
        about, bad, good = says[name]
        ok = verdicts[name] == "ok"
        text = about.format(f"{value:.3g} ± {error:.2g}") + (good if ok else bad)
        lines.append(Check(name, value, wanted, verdicts[name], text, "" if ok else remedies.joined(own[name])))
    blamed = " and the ".join(name.partition(": ")[2] for name, v in verdicts.items() if v != "ok")
    told = remedies.joined(clause for name, v in verdicts.items() if v != "ok" for clause in own[name])
    return [Check(remedies.WHOLE, gap, wanted, verdict, f"{whole}It is that of the {blamed}: see below.", told), *lines]


def _difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Difference of means and its standard error, of independent data."""
    with np.errstate(invalid="ignore"):
        return float(a.mean() - b.mean()), math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
