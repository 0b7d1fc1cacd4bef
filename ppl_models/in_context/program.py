"""In-context predictors as NumPyro programs.

Notation: theta the unknown of one sequence; z_1..z_T its symbols, the site ``x`` (batch, T); n <= T the part seen.

    p(theta, z) = p(theta) prod_t p(z_t | theta)                  the task
    q(theta | z_{1:n}) = family(theta; net({z_1..z_n}))           SetEncoder: amortised posterior, theta; guides.py
    p(z) = prod_t net(z_t | z_{1:t-1})                            PriorFitted: a program without latents

Training data are draws of the task.  The set encoder maximises the ELBO averaged over sequences and over a random n
(``prepare`` hides the tail, as NaN, in training only); the transformer's log-likelihood is -E KL(p || net) plus the
task's entropy, at all n at once.  Either way the result is a predictive rule, ``Program.exact.predictor``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, Num, Shaped
from numpyro.distributions import constraints

from ppl_models.in_context import checks, panels
from ppl_models.in_context.guides import guide
from ppl_models.in_context.neural import FittedPrefix, FittedSet, FittedTransformer
from ppl_models.in_context.sequences import batch_size, generative, sampler, seen_part
from ppl_models.in_context.tasks import Coin, Dice, Gaussian, Regression, check_symbols
from ppl_models.program import Exact, Observation, Panel, Posterior, Predictor, Program, Views, bind

if TYPE_CHECKING:
    from ppl_models.in_context.spec import InContext


def program(spec: InContext, key: Key[Array, ""]) -> Program:
    """Build the network of ``spec`` from ``key`` and put the program together."""
    (length,), task = spec.shape, spec.task
    net = spec.network.make(task, length, nnx.Rngs(key))
    scored = Observation(
        observation(task, length),
        check=lambda x: check_symbols(task, x),
        bits_offset=None if task.symbols is None else 0.0,
        sampler=sampler(task, length),
    )

    def pictures(fit: Any, x: Any, factors: Any, tree: Any) -> list[Panel]:
        return panels.panels(spec, fit, x)

    parts = ", ".join(f"z{i}" for i in (1, 2)) + f", …, z{length}"
    fields = {name: value for name, value in vars(task).items() if name != "kind"}
    prior, likelihood = (text.format(**fields) for text in task.text)
    network = spec.network
    if network.kind == "set_encoder" and not isinstance(task, Regression):
        return Program(
            spec,
            model=generative(task, length),
            posterior=amortised(task, net),
            latents=("theta",),
            shape=spec.shape,
            observation=replace(scored, prepare=hide_tail),
            exact=Exact(predictor=lambda params: FittedSet.of(net, task, params)),
            views=Views(
                (f"p(θ, {parts}) = p(θ) ∏ₜ p(zₜ | θ)", f"p(θ) = {prior}", f"p(zₜ | θ) = {likelihood}",
                 q_text(network.posterior, prior)),
                {"network": net},
                checks=lambda tree: checks.guide(tree, spec),
                panels=pictures,
            ),
        )  # fmt: skip
    assert network.kind == "prior_fitted"  # the spec refuses a set encoder for a Regression
    spoken = network.spoken(task)

    def predictor(params: Any, capacity: int | None = None) -> Predictor:
        if network.invariant:
            return FittedPrefix.of(net, spoken, params)
        return FittedTransformer.of(net, spoken, params, length, capacity)

    return Program(
        spec,
        model=autoregressive(spoken, net, length, invariant=network.invariant),
        posterior=None,
        latents=(),
        shape=spec.shape,
        observation=scored,
        exact=Exact(predictor=predictor),
        views=Views(
            (f"p({parts}) = ∏ₜ p(zₜ | z₁…zₜ₋₁)", f"trained on θ ~ {prior}, zₜ | θ ~ {likelihood}"),
            {"network": net},
            checks=lambda tree: checks.transformer(tree, spec),
            panels=pictures,
        ),
    )


def q_text(posterior: str, prior: str) -> str:
    """The encoder's posterior in symbols; ``prior`` is the line of p(theta)."""
    if posterior == "conjugate":
        return f"q(θ | z₁…zₙ) = {prior.split('(')[0]}(θ; network({{z₁…zₙ}}))"
    noise = {"normal": "ε", "full": "T ε", "flow": "T f(ε; c)"}[posterior]
    return f"q(θ | z₁…zₙ): θ = h(m + s {noise}), ε ~ N(0, I), of network({{z₁…zₙ}}); h to the range of θ"


def observation(task: Coin | Dice | Gaussian | Regression, length: int) -> str:
    """The line that says what is scored."""
    if isinstance(task, Regression):
        return f"sequences of {length // task.period} rows of {task.inputs} inputs and an output, in order"
    of = "real numbers" if task.symbols is None else f"symbols out of {task.symbols}"
    return f"sequences of {length} {of}, in order"


def hide_tail(x: Shaped[Array, "..."], key: Key[Array, ""], training: bool) -> Array:
    """Sequences as floats; in training, symbols n+1.. of each are NaN, n uniform on 0..T."""
    x = x.astype("float32")
    if not training:
        return x
    n = jax.random.randint(key, (*x.shape[:-1], 1), 0, x.shape[-1] + 1)
    return jnp.where(jnp.arange(x.shape[-1]) < n, x, jnp.nan)


def amortised(task: Coin | Dice | Gaussian, net: nnx.Module) -> Callable[..., Posterior]:
    """``q(theta | z_{1:n})`` of a set encoder: the symbols that are not NaN, in any order."""

    def posterior(x: ArrayLike | None = None, *, size: int | None = None) -> Posterior:
        del size
        if x is None:
            raise ValueError("the posterior q(theta | z) needs data x; for draws of the prior run the model alone")
        live = bind("network", net)
        q = guide(task, live, live(*seen_part(x)))
        return lambda site, ctx: q

    return posterior


class Autoregressive(dist.Distribution):
    """``p(z_1..z_T) = prod_t net(z_t | z_{1:t-1})`` for ``batch`` sequences: scored in parallel, drawn in one scan."""

    support = constraints.real_vector
    reparametrized_params: list[str] = []
    pytree_data_fields = ()
    pytree_aux_fields = ("rule", "net", "length")

    def __init__(self, net: Any, rule: Predictor, task: Any, batch: int, length: int) -> None:
        self.net, self.rule, self.task, self.length = net, rule, task, length
        super().__init__(batch_shape=(batch,), event_shape=(length,), validate_args=False)

    def sample(self, key: Key[Array, ""], sample_shape: tuple[int, ...] = ()) -> Array:
        """Sequences (*sample_shape, batch, T)."""
        start = self.rule.init(jnp.zeros(0, "float32" if self.task.symbols is None else "int32"))

        def step(state: Any, key: Key[Array, ""]) -> tuple[Any, Array]:
            z = self.rule.predict(state).sample(key)
            return self.rule.update(state, z), z

        def one(key: Key[Array, ""]) -> Array:
            return jax.lax.scan(step, start, jax.random.split(key, self.length))[1]

        shape = (*sample_shape, *self.batch_shape)
        flat = jax.vmap(one)(jax.random.split(key, int(np.prod(shape, dtype=int))))
        return flat.reshape(*shape, self.length)

    def log_prob(self, value: Num[Array, "*batch T"], intermediates: Any = None) -> Float[Array, "*batch"]:
        """Nats of each sequence."""
        del intermediates
        z = value if self.task.symbols is None else value.astype(jnp.int32)
        return self.task.predictive(self.net(value)).log_prob(z).sum(-1)


def autoregressive(task: Any, net: nnx.Module, length: int, *, invariant: bool = False) -> Callable[..., Any]:
    """The prior-fitted network as a program: one observed site and no latent."""

    def model(x: ArrayLike | None = None, *, size: int | None = None) -> Array:
        batch = batch_size(x, size)
        live = bind("network", net)
        rule = FittedPrefix.of(live, task, None) if invariant else FittedTransformer.live(live, task, length)
        with numpyro.plate("data", batch):
            return numpyro.sample("x", Autoregressive(live, rule, task, batch, length), obs=x)

    return model


def params_of(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The network's weights among a fit's parameters."""
    return params["network$params"]
