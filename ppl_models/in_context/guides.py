"""Posteriors of a set encoder: of the conjugate family, or a Gaussian or a flow on the line mapped to theta's range.

    conjugate   the family that holds the exact posterior: Beta, Dirichlet, Normal
    normal      theta = h(m + s eps),             eps ~ N(0, I) of ``task.dimension`` numbers
    full        theta = h(m + s T eps)            T unit lower triangular; of two numbers or more
    flow        theta = h(m + s T f(eps; c))      f couplings that read the context c, at first the identity

h the identity, the logistic function or stick breaking; m, s, T, c from the encoder (:mod:`ppl_models.networks.flow`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from ppl_models.distributions.conditional_flow import ConditionalFlow, unit_lower

POSTERIORS = ("conjugate", "normal", "full", "flow")
CONTEXT = 16
"""Numbers of the context of a flow."""
LOG_SCALE_BOUND = 6.0
NODES = 32, 256
"""Points that a predictive is averaged over: of Gauss and Hermite for one number, of Halton for several."""


def _entries(task: Any, posterior: str) -> int:
    return task.dimension * (task.dimension - 1) // 2 if posterior in ("full", "flow") else 0


def width(task: Any, posterior: str) -> int:
    """Numbers that the encoder gives."""
    if posterior == "conjugate":
        return task.posterior_width
    return 2 * task.dimension + _entries(task, posterior) + (CONTEXT if posterior == "flow" else 0)


def at_identity(task: Any, net: Any) -> Any:
    """The encoder ``net`` with T = I for all data: the columns of its last layer that make T are set to zero."""
    first, count = 2 * task.dimension, _entries(task, net.posterior)
    if count:
        kernel = net.body.rho_out.kernel
        kernel[...] = kernel[...].at[:, first : first + count].set(0.0)
    return net


def guide(task: Any, net: Any, raw: Float[Array, "*batch out"]) -> dist.Distribution:
    """q(theta | z_1..z_n) from what the encoder ``net`` made of the symbols."""
    if net.posterior == "conjugate":
        return task.posterior(raw)
    d = task.dimension
    loc, log_scale = raw[..., :d], LOG_SCALE_BOUND * jnp.tanh(raw[..., d : 2 * d] / LOG_SCALE_BOUND)
    entries = _entries(task, net.posterior)
    lower = unit_lower(raw[..., 2 * d : 2 * d + entries], d) if entries else None
    flow = net.flow if net.posterior == "flow" else None
    return ConditionalFlow(flow, raw[..., 2 * d + entries :], loc, jnp.exp(log_scale), lower, task.steps())


@lru_cache(maxsize=8)
def _nodes(dim: int) -> tuple[np.ndarray, np.ndarray]:
    if dim == 1:
        at, weight = np.polynomial.hermite_e.hermegauss(NODES[0])
        return at[:, None].astype("float32"), (weight / weight.sum()).astype("float32")
    from scipy.stats import norm, qmc

    at = norm.ppf(qmc.Halton(dim, scramble=False).random(NODES[1] + 1)[1:])  # the first is 0, outside
    return at.astype("float32"), np.full(NODES[1], 1 / NODES[1], "float32")


def average(q: dist.Distribution) -> tuple[Float[Array, " nodes"], Float[Array, "nodes ..."]]:
    """Weights and values of theta that stand for q: ``E_q g(theta) = sum_m w_m g(theta_m)`` nearly."""
    at, weight = _nodes(q.base_dist.event_shape[0])
    each = at.reshape(len(at), *(1,) * len(q.batch_shape), at.shape[1])
    theta = q.at(jnp.broadcast_to(jnp.asarray(each), (len(at), *q.batch_shape, at.shape[1])))
    return jnp.asarray(weight), theta
