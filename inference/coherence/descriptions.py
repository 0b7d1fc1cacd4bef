"""Which description fits a model's probabilities: a coin of memory, of stickiness, of temperature?

The probabilities p_t that a model gave to symbol 1 are data, and each description is a NumPyro model of them:

    logit p_t ~ Normal(logit r_t(phi), scale),   r = (a c + sum_s w_s z_s) / ((a + b) c + sum_s w_s),  a, b ~ LogNormal

    description   weight w of a symbol read ``age`` symbols ago       c            further
    beta          1                                                   1
    discounted    keep^age                                            keep^t
    window        1 for age < width (the last in part)                1
    fractional    weight within the context, 1 after it               1
    sticky        1                                                   1            (1 - share) r + share [z_last = 1]
    tempered      1                                                   1            r^power / (r^power + (1 - r)^power)

(beta is each of the others at keep = 1, a wide window, weight = 1, share = 0, power = 1; Gupta et al., ACL 2025, arXiv
2503.04722, for the discounted one.)  They are sampled by NUTS and compared by leave-one-out cross-validation of whole
sequences, since the probabilities of one sequence belong together (PSIS-LOO; Vehtari, Gelman, Gabry, Statistics and
Computing 27, 2017).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from jaxtyping import Array, Float, Int, Key
from numpyro.diagnostics import summary
from numpyro.infer import MCMC, NUTS, init_to_median, log_likelihood

from inference.coherence._symbols import check_context
from inference.coherence.paths import predictive_paths
from ppl_models.program import Predictor, did_you_mean

FLOOR = 0.01
"""Least standard deviation of a log-odds about its description; below it a perfect one would have no likelihood."""


@dataclass(frozen=True)
class Told:
    """What a model said along sequences of two symbols.

    ``z``      (sequence, n + N): contexts of ``start`` = n symbols, and the N symbols after them.
    ``p``      (sequence, N): the model's probability of a 1 before each of those N.
    """

    z: Int[np.ndarray, "sequence n_and_step"]
    p: Float[np.ndarray, "sequence step"]

    def __post_init__(self) -> None:
        z = check_context(self.z, "z", ndim=2)
        if not np.isin(z, (0, 1)).all():
            raise ValueError(f"descriptions are of two symbols, 0 and 1, got values from {z.min()} to {z.max()}")
        if self.p.ndim != 2 or len(self.p) != len(z) or not 1 <= self.p.shape[1] <= z.shape[1]:
            raise ValueError(
                f"p must hold one probability for each of the last symbols of each of {len(z)} sequences of "
                f"{z.shape[1]}, got {self.p.shape}"
            )
        if len(z) < 2 or not ((self.p >= 0) & (self.p <= 1)).all():
            raise ValueError("give two sequences or more, and p between 0 and 1")

    @property
    def start(self) -> int:
        """Length of the contexts."""
        return self.z.shape[1] - self.p.shape[1]


def tell(predictor: Predictor, contexts: Any, *, key: Key[Array, ""], steps: int = 40) -> Told:
    """Let a binary rule continue each of several contexts (sequence, n) once, and keep what it said."""
    contexts = check_context(contexts, "contexts", ndim=2)
    z, p = [], []
    for context, k in zip(contexts, jax.random.split(key, len(contexts)), strict=True):
        path = predictive_paths(predictor, context, steps=steps, paths=1, key=k, others=0)
        if path.p.shape[-1] != 1 or path.names != ("z=1",):
            raise ValueError(f"descriptions are of rules of two symbols, got the features {path.names}")
        z.append(np.concatenate([context, path.z[0]]))
        p.append(path.p[0, :-1, 0])
    return Told(np.stack(z).astype(np.int32), np.stack(p).astype(np.float64))


def _logit(p: Array) -> Array:
    p = jnp.clip(p, 1e-6, 1 - 1e-6)
    return jnp.log(p) - jnp.log1p(-p)


def _counts(z: Array, start: int, weight: Callable[[Array, Array], Array]) -> tuple[Array, Array]:
    """``sum_s w z_s`` and ``sum_s w`` before each of the symbols start, start + 1, ...; w of (age, place s)."""
    length = z.shape[1]
    at, place = jnp.arange(start, length)[:, None], jnp.arange(length)[None]
    age = at - 1 - place
    w = jnp.where(age >= 0, weight(jnp.maximum(age, 0), place), 0.0)
    return z @ w.T, w.sum(1)


def _beta(z: Array, start: int, a: Any, b: Any) -> Array:
    ones, total = _counts(z, start, lambda age, s: jnp.ones(jnp.broadcast_shapes(age.shape, s.shape)))
    return (a + ones) / (a + b + total)


def _discounted(z: Array, start: int, a: Any, b: Any) -> Array:
    keep = numpyro.sample("keep", dist.Beta(5.0, 1.0))
    ones, total = _counts(z, start, lambda age, s: keep**age)
    left = keep ** jnp.arange(start, z.shape[1])
    return (a * left + ones) / ((a + b) * left + total)


def _window(z: Array, start: int, a: Any, b: Any) -> Array:
    width = numpyro.sample("width", dist.LogNormal(jnp.log(20.0), 1.0))
    ones, total = _counts(z, start, lambda age, s: jnp.clip(width - age, 0.0, 1.0))
    return (a + ones) / (a + b + total)


def _fractional(z: Array, start: int, a: Any, b: Any) -> Array:
    weight = numpyro.sample("weight", dist.LogNormal(0.0, 1.0))
    ones, total = _counts(z, start, lambda age, s: jnp.where(s < start, weight, 1.0))
    return (a + ones) / (a + b + total)


def _sticky(z: Array, start: int, a: Any, b: Any) -> Array:
    share = numpyro.sample("share", dist.Beta(1.0, 5.0))
    r = _beta(z, start, a, b)
    if start:
        return (1 - share) * r + share * z[:, start - 1 : -1]
    pulled = (1 - share) * r[:, 1:] + share * z[:, :-1]
    return jnp.concatenate([r[:, :1], pulled], 1)


def _tempered(z: Array, start: int, a: Any, b: Any) -> Array:
    power = numpyro.sample("power", dist.LogNormal(0.0, 0.5))
    return jax.nn.sigmoid(power * _logit(_beta(z, start, a, b)))


DESCRIPTIONS = MappingProxyType(
    {
        "beta": _beta,
        "discounted": _discounted,
        "window": _window,
        "fractional": _fractional,
        "sticky": _sticky,
        "tempered": _tempered,
    }
)
"""Name -> the probabilities r of a description, which samples its own parameter."""


def description(name: str) -> Callable[..., None]:
    """The NumPyro model of one description: ``model(z, p, unit="sequence")``, for stock ``numpyro.infer``.

    Its observed site ``p`` holds log-odds: an event (step,) for each sequence, or one for each symbol.
    """
    if name not in DESCRIPTIONS:
        raise ValueError(
            f"unknown description {name!r}{did_you_mean(name, DESCRIPTIONS)}; known: {', '.join(DESCRIPTIONS)}"
        )

    def model(z: Any, p: Any, unit: str = "sequence") -> None:
        z, told = jnp.asarray(z, jnp.result_type(float)), _logit(jnp.asarray(p))
        a = numpyro.sample("a", dist.LogNormal(0.0, 1.0))
        b = numpyro.sample("b", dist.LogNormal(0.0, 1.0))
        scale = numpyro.sample("scale", dist.HalfNormal(0.5))
        r = DESCRIPTIONS[name](z, z.shape[1] - told.shape[1], a, b)
        law = dist.Normal(_logit(r), FLOOR + scale)
        numpyro.sample("p", law.to_event(1) if unit == "sequence" else law, obs=told)

    return model


@dataclass(frozen=True)
class Descriptions:
    """``trees``: name -> ArviZ DataTree (posterior, log_likelihood, observed_data), as ``arviz.compare`` takes them.

    ``table``  its table, best first, with ``khat`` (the largest Pareto k-hat of a unit left out), ``r_hat`` (the
               largest), ``divergences``, and the mean and standard deviation of each description's own parameter.
    """

    trees: dict[str, Any]
    table: pd.DataFrame


def compare_rules(
    told: Told,
    *,
    key: Key[Array, ""],
    rules: Sequence[str] = tuple(DESCRIPTIONS),
    unit: Literal["sequence", "symbol"] = "sequence",
    draws: int = 500,
    warmup: int = 500,
) -> Descriptions:
    """Fit each description to a model's probabilities and compare them by leave-one-out cross-validation.

    ``told``  of :func:`tell`, or of a model that cannot be traced.  ``unit``  what is left out: whole sequences, or
    single symbols, which is for few sequences and takes the symbols of one as independent.  Two chains of ``draws``.

    Where ``khat`` exceeds .7 the estimate of that description is not to be trusted: give more sequences.  Differences
    below two ``dse`` are none.  An ``r_hat`` above 1.05 says that the chains of a description disagree, which one that
    is far from the truth often shows (a window of any width explains little): its row is then no estimate either.

    >>> told = tell(parse_rule("sticky:0.1"), contexts, key=jax.random.key(0))
    >>> compare_rules(told, key=jax.random.key(1)).table.index[0]
    'sticky'
    """
    import arviz as az

    if unit not in ("sequence", "symbol"):
        raise ValueError(f"unit must be 'sequence' or 'symbol', got {unit!r}")
    if len(rules) < 2:
        raise ValueError(f"a comparison needs two descriptions or more, got {list(rules)}; known: {list(DESCRIPTIONS)}")
    trees, notes = {}, {}
    models = {name: description(name) for name in rules}
    for (name, model), k in zip(models.items(), jax.random.split(key, len(rules)), strict=True):
        mcmc = MCMC(
            NUTS(model, init_strategy=init_to_median), num_warmup=warmup, num_samples=draws, num_chains=2,
            chain_method="vectorized", progress_bar=False,
        )  # fmt: skip
        mcmc.run(k, told.z, told.p, unit, extra_fields=("diverging",))
        found = {site: np.asarray(value) for site, value in mcmc.get_samples(group_by_chain=True).items()}
        flat = {site: value.reshape(-1) for site, value in found.items()}
        said = np.asarray(log_likelihood(model, flat, told.z, told.p, unit)["p"])
        dims = ["sequence"] if unit == "sequence" else ["sequence", "step"]
        trees[name] = az.from_dict(
            {
                "posterior": found,
                "log_likelihood": {"p": said.reshape(2, draws, *said.shape[1:])},
                "observed_data": {"p": told.p if unit == "symbol" else told.p.mean(1)},
            },
            dims={"p": dims},
        )
        r_hat = max(float(row["r_hat"]) for row in summary(found).values())
        own = next((site for site in found if site not in ("a", "b", "scale")), None)
        notes[name] = {
            "r_hat": r_hat,
            "divergences": int(np.asarray(mcmc.get_extra_fields()["diverging"]).sum()),
            "parameter": own or "",
            "mean": float(flat[own].mean()) if own else np.nan,
            "sd": float(flat[own].std(ddof=1)) if own else np.nan,
        }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a high k-hat stands in the table
        table = az.compare(trees)
        for name, tree in trees.items():
            notes[name]["khat"] = float(az.loo(tree, pointwise=True).pareto_k.max())
    return Descriptions(trees, table.join(pd.DataFrame(notes).T))
