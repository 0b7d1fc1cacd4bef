"""The contract between a family of models and everything that fits and checks it.

A family writes a pure generative program ``model(x=None, *, size=None)`` and an amortised posterior
``posterior(x) -> q(site, ctx)``.  This module derives the rest: :func:`as_guide` makes the standard
NumPyro guide, :class:`amortise` swaps each prior for its posterior inside one trace of the model (so a
hierarchy's top-down pass is written, traced and differentiated once), :func:`bind` makes every method of a
Flax NNX module reachable, and :func:`knob` reads a scheduled weight without a new compilation.

Notation: ``x`` data (batch, *shape); ``z`` latent sites in a plate over the batch; ``ctx`` what the posterior
may read of the generative state at a site; all log densities in nats.
"""

from __future__ import annotations

import contextlib
import contextvars
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpyro
from flax import nnx
from jaxtyping import Array, Float, Key, Shaped
from numpyro.distributions import Distribution, MaskedDistribution
from numpyro.handlers import block
from numpyro.primitives import Messenger, mutable

from ppl_models._predictor import Predictor as Predictor
from ppl_models._registry import (
    BUILTIN as BUILTIN,
    Family as Family,
    Spec as Spec,
    did_you_mean as did_you_mean,
    families as families,
    register as register,
    resolve as resolve,
    spec_from_json as spec_from_json,
    spec_to_json as spec_to_json,
)

Posterior = Callable[[str, Any], Distribution]
Schedule = Callable[[Any], Any]


# ---------------------------------------------------------------------------------------------- modules
_HOLDERS: weakref.WeakKeyDictionary[nnx.Module, dict[str, Any]] = weakref.WeakKeyDictionary()
"""Mutable site of each bound module that has state (asking NumPyro for the site again would replace its value)."""


def _split(module: nnx.Module) -> tuple[Any, Any, Any]:
    """Graph, parameters and the rest of a module (the one call whose stub mypy cannot read)."""
    split: Callable[..., Any] = nnx.split
    return split(module, nnx.Param, nnx.Not(nnx.Param))


def bind(name: str, module: nnx.Module) -> Any:
    """Return a live copy of an NNX module whose weights are NumPyro parameters.

    :func:`numpyro.contrib.module.nnx_module` returns a callable that exposes only ``__call__``; the copy
    returned here has all methods and sub-modules, so a cell can offer ``prior``, ``posterior`` and ``step``.
    The site is ``f"{name}$params"`` (a nested dict, the layout of ``nnx_module``); non-parameter state, if the
    module has any, is the mutable site ``f"{name}$state"`` and is written back by :func:`commit`.

    The same name bound in model and guide is one set of weights.  The initial values are those of ``module``,
    which is never modified: the SVI key does not seed them, ``spec.build(key)`` does.
    """
    graph, params, rest = _split(module)
    values = numpyro.param(f"{name}$params", nnx.to_pure_dict(params))
    if values is not None:
        nnx.replace_by_pure_dict(params, values)
    state = nnx.to_pure_dict(rest)
    if not state:
        return nnx.merge(graph, params, rest, copy=True)
    holder = mutable(f"{name}$state", {"state": state})
    nnx.replace_by_pure_dict(rest, holder["state"])
    live = nnx.merge(graph, params, rest, copy=True)
    _HOLDERS[live] = holder
    return live


def commit(module: nnx.Module) -> None:
    """Write the non-parameter state of a bound module (running statistics) back to its mutable site."""
    if module not in _HOLDERS:
        raise ValueError("commit needs a module that bind returned, with running statistics or other state to write")
    _HOLDERS[module]["state"] = jax.lax.stop_gradient(nnx.to_pure_dict(_split(module)[2]))


# ------------------------------------------------------------------------------------------------ knobs
_KNOBS: contextvars.ContextVar[Mapping[str, Any] | None] = contextvars.ContextVar("knobs", default=None)


def knob(name: str, default: float = 1.0) -> Any:
    """Read a scheduled weight inside a model or posterior; ``default`` wherever nobody schedules it.

    The training loop sets knobs from schedules of the step (see ``inference.fit(weights=...)``) as traced
    scalars, so a fade-in changes value at every step and compiles once.  Stock ``SVI`` sees the default.
    """
    return (_KNOBS.get() or {}).get(name, default)


@contextlib.contextmanager
def knobs(values: Mapping[str, Any]) -> Iterator[None]:
    """Set the values that :func:`knob` returns inside the ``with`` block."""
    token = _KNOBS.set({**(_KNOBS.get() or {}), **values})
    try:
        yield
    finally:
        _KNOBS.reset(token)


# ---------------------------------------------------------------------------------------- posterior as handler
class amortise(Messenger):  # noqa: N801 - handlers are lower case in NumPyro
    """Effect handler: draw each latent that carries a context from ``q(name, ctx)`` instead of its prior.

    A latent is declared ``numpyro.sample("z", prior, infer={"ctx": h})``.  Under this handler the site's
    ``fn`` becomes the posterior, expanded to the plates and masked like the prior, and the prior itself is
    kept in ``site["infer"]["prior"]``: one trace holds both densities.  Condition the model *inside* this
    handler; a site conditioned outside it would be scored under ``q``.
    """

    def __init__(self, fn: Callable[..., Any] | None = None, *, q: Posterior) -> None:
        self.q = q
        super().__init__(fn)

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "sample" or msg["is_observed"] or "ctx" not in msg["infer"]:
            return
        infer = dict(msg["infer"])
        # Popped, not read: a tracer left in the trace would outlive the transformation that made it.
        post = self.q(msg["name"], infer.pop("ctx"))
        prior, mask = msg["fn"], None
        if isinstance(prior, MaskedDistribution):
            mask, prior = prior._mask, prior.base_dist
        if post.event_shape != prior.event_shape:
            raise ValueError(
                f"posterior of site {msg['name']!r} has event shape {post.event_shape}, its prior has "
                f"{prior.event_shape}; both must describe the same variable (check .to_event and the widths)"
            )
        post = post.expand(prior.batch_shape)
        if mask is not None:
            post, prior = post.mask(mask), prior.mask(mask)
        msg["infer"], msg["fn"] = {**infer, "prior": prior}, post


def as_guide(model: Callable[..., Any], posterior: Callable[..., Posterior]) -> Callable[..., None]:
    """Derive the ordinary NumPyro guide q(z | x) from a model and its amortised posterior.

    The guide re-runs the model's latent sites under :class:`amortise` and hides everything else, so it works
    with ``SVI``, ``Trace_ELBO``, ``TraceMeanField_ELBO``, ``Predictive`` and ``RenyiELBO``.
    """

    def guide(*args: Any, **kwargs: Any) -> None:
        q = posterior(*args, **kwargs)
        with block(hide_fn=_not_guide), amortise(q=q):
            model(*args, **kwargs)

    return guide


def _not_guide(site: dict[str, Any]) -> bool:
    return site["type"] == "deterministic" or (site["type"] == "sample" and site["is_observed"])


# ------------------------------------------------------------------------------------------------ program
def _cast(x: Array, key: Key[Array, ""], training: bool) -> Array:
    del key, training
    return x.astype("float32")


@dataclass(frozen=True)
class Check:
    """One line of a diagnosis: a measured value against a threshold, and what to do about it."""

    check: str
    value: float
    threshold: str
    verdict: str
    meaning: str
    remedy: str

    def __post_init__(self) -> None:
        if self.verdict not in ("ok", "warn", "fail"):
            raise ValueError(f"verdict must be 'ok', 'warn' or 'fail', got {self.verdict!r}")


@dataclass(frozen=True)
class Panel:
    """A figure of a family for the report: ``draw()`` returns a matplotlib figure."""

    name: str
    caption: str
    draw: Callable[[], Any]


@dataclass(frozen=True)
class Event:
    """A change of parameters between two updates of a fit, made once, on the host.

    ``step``   number of updates that are behind it.
    ``name``   what happens, for progress and the record of the run.
    ``apply``  ``(sites, x, key) -> changed``: constrained parameters and mutable states by site name, prepared
               training data and a key of its own; returns new values of the parameters that change, of the same
               structure and shapes.
    ``size``   how many data it wants at most.

    A resumed run repeats it exactly.  Stock ``SVI`` knows nothing of events.
    """

    step: int
    name: str
    apply: Callable[[Mapping[str, Any], Array, Key[Array, ""]], Mapping[str, Any]]
    size: int = 5000

    def __post_init__(self) -> None:
        if self.step < 0 or self.size < 1:
            raise ValueError(f"an event needs step >= 0 and size >= 1, got step {self.step}, size {self.size}")


@dataclass(frozen=True)
class Program:
    """A generative program p(x, z), its amortised posterior q(z | x), and what a reader must know of both.

    ``spec``        the frozen dataclass that was built; JSON round trip through ``spec_to_json``.
    ``model``       p(x, z): ``model(x=None, *, size=None)``, one plate over the batch.
    ``posterior``   ``posterior(x) -> q(site, ctx)``; ``None`` for a program without latents.
    ``latents``     names of the latent sites, in the order of the model.
    ``observed``    names of the observed sites (``numpyro.factor`` sites included).
    ``shape``       shape of one datum.
    ``prepare``     ``(x, key, training) -> x``: stored data to what the model scores (cast, scale, binarise,
                    dequantise), inside the jitted step; pure in the key.
    ``check_data``  raises ``ValueError`` for stored data that this program cannot score; runs before any work.
    ``observation`` one line that says what is scored; only tables with equal lines are comparable.
    ``bits_offset`` where the score is a code length of the stored data, bits/dim = -log2 p(x) / D + bits_offset: 0 for
                    a probability mass, log2(levels) for a density of (x + u)/levels; ``None`` where it is none.
    ``density``     the factorisation in the paper's symbols, one line each, for the report.
    ``knobs``       scheduled weights that the model reads, with their defaults.
    ``weights``     the family's own schedules (step -> value) for its sites and knobs.
    ``events``      changes of parameters between two updates of a fit, such as a mixture fitted after a warm-up.
    ``modules``     the NNX modules by bound name, for parameter counts.
    ``log_prob``    exact ``log_prob(params, key, x) -> (batch,)`` in nats, where the program has one.
    ``predictor``   ``(params) -> Predictor``: the predictive rule that fitted parameters define, where the data are
                    sequences; where that rule can hold only so many symbols, ``capacity=`` asks for another number.
    ``sampler``     ``(key, n) -> (n, *shape)``: the program's own draws as stored data, where it is trained on them;
                    they may depend on the spec, never on weights.
    ``checks``      ``(tree) -> [Check]``: the family's own lines of ``inference.diagnose``.
    ``panels``      ``(fit, x, factors, tree) -> [Panel]``: the family's own figures of the report.
    """

    spec: Any
    model: Callable[..., Any]
    posterior: Callable[..., Posterior] | None
    latents: tuple[str, ...]
    shape: tuple[int, ...]
    observed: tuple[str, ...] = ("x",)
    prepare: Callable[[Shaped[Array, "..."], Key[Array, ""], bool], Array] = _cast
    check_data: Callable[[Any], None] = lambda x: None
    observation: str = "x as given"
    bits_offset: float | None = None
    density: tuple[str, ...] = ()
    knobs: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, Schedule] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    modules: Mapping[str, nnx.Module] = field(default_factory=dict)
    log_prob: Callable[..., Float[Array, " batch"]] | None = None
    predictor: Callable[..., Predictor] | None = None
    sampler: Callable[[Key[Array, ""], int], Array] | None = None
    checks: Callable[[Any], list[Check]] = lambda tree: []
    panels: Callable[..., list[Panel]] = lambda fit, x, factors, tree: []

    @property
    def guide(self) -> Callable[..., None]:
        """The ordinary NumPyro guide, derived from ``model`` and ``posterior``."""
        if self.posterior is None:
            return lambda *args, **kwargs: None
        return as_guide(self.model, self.posterior)

    @property
    def parameter_count(self) -> int:
        """Number of trainable scalars (parameters outside ``modules`` included)."""
        key = jax.random.key(0)

        def parameters() -> dict[str, Any]:
            x = self.prepare(jax.numpy.zeros((1, *self.shape), "uint8"), key, False)
            found: dict[str, Any] = {}
            for program in (self.model, self.guide):
                with numpyro.handlers.trace() as sites, numpyro.handlers.seed(rng_seed=key):
                    program(x)
                found |= {name: site["value"] for name, site in sites.items() if site["type"] == "param"}
            return found

        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(parameters)))
