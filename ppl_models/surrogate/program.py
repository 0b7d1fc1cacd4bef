"""Surrogates of operators as conditional NumPyro programs.

Notation: x the input fields (given), y the output field (the site ``y``), U the network in its frame.

    y | x ~ Normal(U(x), sigma)                 real fields, every pixel and channel by itself
    y | x ~ Bernoulli(sigmoid(U(x)))            masks

There is no latent site.  The first event of a fit sets the frame from the training data: a new model is the pixel-wise
law of y about its base, whatever the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from flax import nnx
from jaxtyping import Array, Key

from ppl_models.networks.pure import at_once
from ppl_models.program import Event, Observation, Program, Training, Views, bind
from ppl_models.surrogate import checks, panels
from ppl_models.surrogate.networks import SD_RATE, Scaled
from ppl_models.surrogate.own import heat

if TYPE_CHECKING:
    from ppl_models.surrogate.spec import Surrogate

LEAST_SHARE = 1e-3
"""Least sigma of a pixel at the start, as a share of the output's scale: pixels that never vary stay possible."""


def program(spec: Surrogate, key: Key[Array, ""]) -> Program:
    """Build the network of ``spec`` from ``key`` and put the program together."""
    net = network(spec, key)
    start = (Event(0, "fitting the frame to the data", partial(framed, spec)),) if spec.standardise else ()
    return Program(
        spec,
        model=generative(net),
        posterior=None,
        latents=(),
        shape=dict(spec.shape),
        observed=("y",),
        observation=Observation(
            observation(spec),
            check=partial(check_data, spec),
            given=("x",),
            bits_offset=0.0 if spec.likelihood.kind == "bernoulli" else None,
            sampler=partial(heat, spec),
        ),
        training=Training(events=start),
        views=Views(
            density(spec),
            {"network": net},
            checks=partial(checks.checks, spec),
            panels=lambda fit, x, factors, tree: panels.panels(spec, fit, x),
        ),
    )


def network(spec: Surrogate, key: Key[Array, ""]) -> nnx.Module:
    """The network of ``spec`` with starting weights from ``key``."""
    return at_once(lambda rngs: Scaled(spec, rngs), key)


def law(live: Any, x: Array) -> dist.Distribution:
    """p(y | x) of a network, one event a datum."""
    loc, log_sd = live(x)
    if log_sd is None:
        return dist.Bernoulli(logits=loc).to_event(3)
    return dist.Normal(loc, jnp.broadcast_to(jnp.exp(log_sd), loc.shape)).to_event(3)


def generative(net: nnx.Module) -> Any:
    """``p(y | x)``: ``model({"x": x, "y": y})`` scores y, ``model({"x": x})`` draws it."""

    def model(data: Mapping[str, Array] | None = None, *, size: int | None = None) -> Array:
        if data is None:
            raise ValueError(f"a surrogate draws y for given inputs: model({{'x': x}}), got size={size} without x")
        x = data["x"]
        live = bind("network", net)
        with numpyro.plate("data", len(x)):
            return numpyro.sample("y", law(live, x), obs=data.get("y"))

    return model


# -------------------------------------------------------------------------------------------- the first event
def framed(
    spec: Surrogate, params: Mapping[str, Any], data: Mapping[str, Array], key: Key[Array, ""]
) -> dict[str, Any]:
    """Parameters whose frame has the moments of the data; the rest stays."""
    del key
    frame = frame_of(spec, np.asarray(data["x"], np.float64), np.asarray(data["y"], np.float64))
    return {"network$params": {**params["network$params"], "frame": frame}}


def frame_of(spec: Surrogate, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Centre and width of the inputs; base field, scale and sigma of the output, see :class:`Frame`."""
    axes = (0, 1, 2)
    width = _positive(x.std(axes))
    found = {"centre": x.mean(axes) / width, "log_width": np.log(width)}
    if spec.likelihood.kind == "bernoulli":
        if spec.base == "mean":
            # One datum more that is a mask by half: no pixel starts as impossible.
            share = (y.sum(0) + 0.5) / (len(y) + 1)
            found["mean"] = np.log(share) - np.log1p(-share)
        return {name: jnp.asarray(value, jnp.float32) for name, value in found.items()}
    mean = y.mean(0) if spec.base == "mean" else np.zeros(y.shape[1:])
    base = x[..., : y.shape[-1]] if spec.base == "persistence" else mean
    scale = _positive(np.sqrt(((y - base) ** 2).mean(axes)))
    found["log_scale"] = np.log(scale)
    if spec.base == "mean":
        found["mean"] = mean / scale
    if spec.likelihood.scale != "fixed":
        over = axes if spec.likelihood.scale == "channel" else 0
        sd = np.sqrt(((y - base) ** 2).mean(over)) / scale
        found["log_sd"] = np.log(np.maximum(sd, LEAST_SHARE)) / SD_RATE
    return {name: jnp.asarray(value, jnp.float32) for name, value in found.items()}


def _positive(width: np.ndarray) -> np.ndarray:
    """Widths, 1 where a channel is constant."""
    return np.where(width > 0, width, 1.0)


# ------------------------------------------------------------------------------------------------------ words
def check_data(spec: Surrogate, data: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for stored masks that are not 0 and 1."""
    if spec.likelihood.kind == "bernoulli":
        y = np.asarray(data["y"])
        wrong = (y != 0) & (y != 1)
        if wrong.any():
            raise ValueError(
                f"masks 'y' hold 0 and 1, got {y[wrong].flat[0]} (in {int(wrong.any((1, 2, 3)).sum())} of {len(y)} "
                "data); threshold them, or choose likelihood Normal()"
            )


def observation(spec: Surrogate) -> str:
    """What is scored, in one line."""
    x, y = ("x".join(map(str, spec.shape[name])) for name in "xy")
    kind = "a mask: mass" if spec.likelihood.kind == "bernoulli" else "density"
    return f"y {y} given x {x}; {kind}, nats"


def density(spec: Surrogate) -> tuple[str, ...]:
    """The model in symbols, one line each."""
    if spec.likelihood.kind == "bernoulli":
        first = "p(y | x) = ∏ Bernoulli(y; sigmoid(U(x)))"
    else:
        sigma = {"pixel": "σ a number a pixel and channel", "channel": "σ a number a channel", "input": "σ = σ(x)"}
        first = f"p(y | x) = ∏ N(y; U(x), σ²), {sigma.get(spec.likelihood.scale, f'σ = {spec.likelihood.sd:g}')}"
    base = {"mean": "m + ", "persistence": "x + ", "zero": ""}[spec.base]
    inner = "s · net((x − a)/b)" if spec.standardise else "net(x)"
    return first, f"U(x) = {base}{inner}", f"net: {spec.network.words}"
