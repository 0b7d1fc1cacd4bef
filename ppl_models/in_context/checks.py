"""How far a fitted predictor is from exact Bayes, read off the posterior DataTree.

``tree`` is the DataTree of ``inference.posterior``; the tasks are conjugate, so the exact answer is at hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ppl_models.program import Check

if TYPE_CHECKING:
    from ppl_models.in_context.spec import InContext

REMEDY = "train longer or wider; see whether the learning rate has come down"


def sequences(tree: Any, spec: InContext) -> np.ndarray:
    """The observed sequences of a tree, as the exact rule reads them."""
    x = np.asarray(tree["observed_data"]["x"].values)
    return x.astype("float32" if spec.task.symbols is None else "int32")


def exact_log_prob(spec: InContext, x: Any) -> Float[np.ndarray, "n T"]:
    """``log p(z_t | z_{1:t-1})`` of the exact rule, nats, for each symbol of each sequence."""
    rule = spec.exact
    start = rule.init(jnp.zeros(0, x.dtype))

    def step(state: Any, z: Any) -> tuple[Any, Any]:
        return rule.update(state, z), rule.predict(state).log_prob(z)

    return np.asarray(jax.jit(jax.vmap(lambda row: jax.lax.scan(step, start, row)[1]))(jnp.asarray(x)))


def guide(tree: Any, spec: InContext) -> list[Check]:
    """Mean and spread of q(theta | z) against the exact posterior, in exact posterior standard deviations."""
    draws = np.asarray(tree["posterior"]["theta"].values, float)
    draws = draws.reshape(-1, *draws.shape[2:])
    rule = spec.exact
    exact = [rule.posterior(rule.init(jnp.asarray(row))) for row in sequences(tree, spec)]
    mean = np.stack([np.asarray(q.mean) for q in exact])
    sd = np.sqrt(np.stack([np.asarray(q.variance) for q in exact]))
    off = float(np.median(np.abs(draws.mean(0) - mean) / sd))
    noise = 1.0 / np.sqrt(len(draws))
    ratio = float(np.median(draws.std(0, ddof=1) / sd)) if len(draws) > 1 else float("nan")
    return [
        Check(
            check="amortised posterior: location",
            value=round(off, 3),
            threshold=f"<= {0.1 + noise:.2f} posterior standard deviations",
            verdict="ok" if off <= 0.1 + noise else "warn" if off <= 0.5 + noise else "fail",
            meaning="median over sequences of |E_q theta - exact posterior mean|; finite draws alone give some",
            remedy=REMEDY,
        ),
        Check(
            check="amortised posterior: width",
            value=round(ratio, 3),
            threshold="0.9 to 1.1",
            verdict="ok" if abs(ratio - 1) <= 0.1 + noise else "warn" if abs(ratio - 1) <= 0.3 + noise else "fail",
            meaning="median over sequences of the standard deviation under q over that of the exact posterior",
            remedy="below 1 the guide is too sure; " + REMEDY,
        ),
    ]


def transformer(tree: Any, spec: InContext) -> list[Check]:
    """What the network loses to the exact rule on the observed sequences, nats a symbol."""
    net = np.asarray(tree["log_likelihood"]["x"].values, float)
    net = net.reshape(-1, net.shape[-1]).mean(0)
    x = sequences(tree, spec)
    lost = (exact_log_prob(spec, x).sum(1) - net) / x.shape[1]
    loss, se = float(lost.mean()), float(lost.std() / np.sqrt(len(lost)))
    # Realised sequences scatter about the loss: what they cannot tell is no failure, and no pass either.
    passed = loss <= 1e-3 + 2 * se and se <= 1e-2
    return [
        Check(
            check="prior-fitted network: loss to exact Bayes",
            value=round(loss, 5),
            threshold="<= 0.001 nats a symbol",
            verdict="ok" if passed else "fail" if loss - 2 * se > 1e-2 else "warn",
            meaning="mean log-probability of a symbol under the exact predictive minus that under the network; "
            f"standard error {se:.2g}",
            remedy=REMEDY,
        )
    ]
