"""Bidirectional Monte Carlo: log p(x) between a stochastic lower and a stochastic upper bound, on simulated data.

A program's own draw (z, x) comes with one exact draw z of its posterior p(z | x).  Annealed importance sampling from
the start bounds log p(x) from below; the same chains run backwards from z bound it from above (Grosse, Ghahramani &
Adams 2015, section 3):

    E log (1/S) sum_s w_s <= log p(x) <= E [-log (1/S) sum_s 1/w'_s]

Each bound misses by more than b nats with a probability of at most e^-b, whatever the transitions do.  Where the bounds
meet, log p(x) is known and every estimator can be judged by it; that holds for data like the model's own alone.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from inference.checking.annealed_evidence import annealable, starts, warn_stuck
from inference.checking.annealing import Annealer, Annealing
from inference.checking.log_evidence import REFINE, evidence
from inference.checking.log_weights import Weigher, summarise
from inference.checking.per_datum import check_count, check_key, pairs_at_once
from inference.checking.semi_amortised import Local
from inference.fitting.fitted import Fit
from inference.fitting.generative import as_data, generate, inputs_of
from inference.fitting.sources import stored
from ppl_models.program import Program, rows, take

if TYPE_CHECKING:
    import pandas as pd

LEVEL = 0.01
"""Chance that the errors of Monte Carlo alone put any of the draws outside its bounds."""


@dataclass(frozen=True)
class Sandwich:
    """Bounds of log p(x) on a program's own draws.

    ``table``    one row a draw, nats: ``lower`` and ``upper`` with their standard errors ``lower_se`` and ``upper_se``,
                 ``gap`` between them, ``reference`` and ``reference_se``, and whether it lies ``within`` the bounds, up
                 to ``attrs["errors"]`` standard errors: the quantile of Student's t at which all n draws together,
                 on both sides, are outside by chance once in a hundred times (Bonferroni).  ``attrs["reference"]``
                 says what the reference is: ``"exact"``, or the importance-weighted estimate.
    ``x``        the draws, as prepared data.
    ``latents``  what they were drawn from, by site.

    ``upper_se`` is that of the chains given the one draw that all of them start from.
    """

    table: pd.DataFrame
    x: Any
    latents: dict[str, np.ndarray]


def sandwich(
    fit: Any,
    n: int = 20,
    *,
    key: jax.Array,
    exact: Callable[[Any], Any] | None = None,
    like: Any = None,
    particles: int = 64,
    temperatures: int = 64,
    transitions: int = 1,
    leapfrog: int = 4,
    start: str = "posterior",
    refine: str = "flagged",
    chunk: int | None = None,
    progress: bool = True,
) -> Sandwich:
    """Draw ``n`` data from the fitted program and bound log p(x) of each from both sides.

    ``exact``     ``(x) -> (n,)`` nats: log p(x) in closed form of the draws, where it is known.  Otherwise the bounds
                  are compared with 512 importance weights of the posterior that the path starts from.
    ``like``      stored data whose inputs a conditional program draws for, ``n`` of them; by default its sampler's.
    ``particles`` chains in each direction.
    ``temperatures``, ``transitions``, ``leapfrog``, ``start``, ``refine``, ``chunk``   see :func:`inference.evidence`.

    The draws are prepared data and are scored as they are, without being binarised or dequantised again.  Raises
    ``ValueError`` at once for a program without latents, for a latent that cannot be annealed, and for a conditional
    program whose inputs are not given.

    >>> found = sandwich(fit, 20, key=jax.random.key(0))
    >>> found.table[["lower", "reference", "upper", "within"]]
    """
    check_count("n", n, 1)
    check_count("particles", particles, 2)
    check_key(key)
    if refine not in REFINE:
        raise ValueError(f"refine must be one of {', '.join(REFINE)}, got {refine!r}")
    settings = Annealing(temperatures=temperatures, transitions=transitions, leapfrog=leapfrog, start=start)
    draw_key, key = jax.random.split(key)
    drawn = Fit(_as_drawn(fit.program), dict(fit.params), dict(getattr(fit, "mutable", {})), None, {})
    if not drawn.program.latents:
        raise ValueError("this program has no latents: its log p(x) is exact, and there is nothing to bound")
    x, latents = _draw(drawn, fit.program, n, draw_key, like)
    pairs = pairs_at_once(drawn.program, chunk)
    parts = annealable(drawn, x, settings)

    data = starts(drawn, x, parts, refine, key=key, pairs=pairs, progress=progress)
    annealer = Annealer(drawn, settings, pairs, progress=progress)
    ladder = annealer.pilot(data, key)
    down, accepted = annealer.forward(data, ladder, key, particles)
    warn_stuck(accepted)
    up = annealer.backward(data, ladder, latents, key, particles)
    lower, upper = (summarise(sign * w.astype(np.float32)) for sign, w in ((1, down), (-1, up)))
    reference = _reference(drawn, x, data, exact, key, pairs, progress)
    errors = float(stats.t.isf(LEVEL / (2 * n), particles - 1))
    return Sandwich(_table(drawn.program, lower, upper, errors, *reference), x, latents)


def _table(
    program: Program, lower: Mapping[str, np.ndarray], upper: Mapping[str, np.ndarray], errors: float, what: str,
    reference: np.ndarray, reference_se: np.ndarray,
) -> pd.DataFrame:  # fmt: skip
    import pandas as pd

    low, high = lower["log_px"], -upper["log_px"]
    rounding = 1e-5 * np.maximum(1.0, np.abs(reference))
    below = errors * np.hypot(lower["se"], reference_se) + rounding
    above = errors * np.hypot(upper["se"], reference_se) + rounding
    table = pd.DataFrame(
        {
            "datum": np.arange(len(low)),
            "lower": low,
            "lower_se": lower["se"],
            "upper": high,
            "upper_se": upper["se"],
            "gap": high - low,
            "reference": reference,
            "reference_se": reference_se,
            "within": (low - below <= reference) & (reference <= high + above),
        }
    )
    table.attrs = {"observation": program.observation.line, "reference": what, "errors": errors}
    bad = int((~np.isfinite(table["gap"])).sum())
    if bad:
        warnings.warn(
            f"a bound of {bad} of {len(table)} draws is not finite: the model gives them no probability, or a latent "
            "lies where the guide's map has no inverse; these rows count as not within",
            RuntimeWarning,
            stacklevel=3,
        )
    return table


def _reference(
    fit: Fit, x: Any, data: Any, exact: Any, key: jax.Array, pairs: int, progress: bool
) -> tuple[str, np.ndarray, np.ndarray]:
    """What the bounds are compared with: its name, values and standard errors."""
    if exact is not None:
        found = np.asarray(exact(x), np.float64)
        if found.shape != (rows(x),):
            raise ValueError(f"exact(x) has shape {found.shape}, expected ({rows(x)},): one value for each draw")
        return "exact", found, np.zeros(rows(x))
    if fit.program.exact.log_prob is not None:
        table = evidence(fit, x, key=key, progress=progress)
        return "exact", table["log_px"].to_numpy(), table["se"].to_numpy()
    local = Local(data.noise, data.q, jnp.tile(jnp.asarray([1.0, 0.0, 0.0]), (rows(x), 1)))
    values = summarise(Weigher(fit, pairs, progress=progress)(x, 512, key, local=local))
    return "importance", values["log_px"], values["se"]


def _as_drawn(program: Program) -> Program:
    """The program for data that are prepared already, as its own draws are."""
    own = dataclasses.replace(
        program.observation, prepare=lambda x, key, training: x, check=lambda x: None, read=lambda x: x
    )
    return dataclasses.replace(program, observation=own)


def _draw(fit: Fit, program: Program, n: int, key: jax.Array, like: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """Draws of the program in the dtypes of its prepared data, and their latents by site."""
    given = program.observation.given
    input_key, prepare_key, draw_key = jax.random.split(key, 3)
    inputs: dict[str, Any] = {}
    if given:
        sampler = program.observation.sampler
        if like is not None:
            source = take(stored(program, like), slice(n))
        elif sampler is not None:
            source = sampler(input_key, n)
        else:
            raise ValueError(
                f"this program is conditional on {', '.join(given)}; pass like=stored data whose inputs it draws for"
            )
        if rows(source) < n:
            raise ValueError(f"like holds {rows(source)} data, expected at least n={n}")
        ready = program.observation.prepare(jax.tree.map(jnp.asarray, source), prepare_key, False)
        inputs = inputs_of(program, ready)
    sites = generate(program, fit.params, draw_key, n, given=inputs, mutable=fit.mutable)
    x = jax.tree.map(np.asarray, as_data(program, sites, inputs))
    return x, {name: np.asarray(sites[name]["value"]) for name in program.latents}
