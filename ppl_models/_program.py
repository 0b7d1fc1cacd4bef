"""What a family hands over: a program of five things, and in four further parts what inference may want to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from flax import nnx
from jaxtyping import Array, Float, Key

from ppl_models._amortise import Posterior, as_guide
from ppl_models._column import Column
from ppl_models._datum import Shape, leaves, part, zeros
from ppl_models._predictor import Predictor

Schedule = Callable[[Any], Any]


def _cast(x: Any, key: Key[Array, ""], training: bool) -> Any:
    del key, training
    return jax.tree.map(lambda leaf: leaf.astype("float32"), x)


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
    apply: Callable[[Mapping[str, Any], Any, Key[Array, ""]], Mapping[str, Any]]
    size: int = 5000

    def __post_init__(self) -> None:
        if self.step < 0 or self.size < 1:
            raise ValueError(f"an event needs step >= 0 and size >= 1, got step {self.step}, size {self.size}")


# ------------------------------------------------------------------------------------------- parts of a program
@dataclass(frozen=True)
class Observation:
    """What of the stored data is scored, and in which unit.

    ``line``         says what is scored, and given what; only evidence tables with equal lines are comparable.
    ``prepare``      ``(x, key, training) -> x``: stored data to what the model scores (cast, scale, binarise,
                     dequantise), inside the jitted step; pure in the key.
    ``check``        raises ``ValueError`` for stored data that the program cannot score; runs before any work.
    ``read``         other forms of the data, such as a DataFrame, to stored arrays; whatever it does not know it
                     returns as it is.
    ``given``        names of the leaves of a datum that are inputs: the program is p(the rest | these).  To draw, its
                     model is called with them alone.
    ``columns``      where a datum is a row of a table: what each of its numbers is, as stored.
    ``features``     ``(x) -> (n, F)``: prepared data as plain numbers for classical methods (k-means, say), nothing
                     missing; by default what is scored, flattened.
    ``drawn``        ``(values) -> x``: prepared data from the values of observed sites and inputs by name; by default
                     the value itself, or a dict of them.
    ``bits_offset``  where the score is a code length of the stored data, bits/dim = -log2 p(x) / D + bits_offset: 0 for
                     a probability mass, log2(levels) for a density of (x + u)/levels; ``None`` where it is none.
    ``sampler``      ``(key, n) -> n data``: the program's own draws as stored data, where it is trained on them;
                     they may depend on the spec, never on weights.
    ``width``        numbers that a pass over data holds for each datum, where those are many more than the datum's own:
                     evaluation takes so many fewer data at once.
    """

    line: str = "x as given"
    prepare: Callable[[Any, Key[Array, ""], bool], Any] = _cast
    check: Callable[[Any], None] = lambda x: None
    read: Callable[[Any], Any] = lambda x: x
    given: tuple[str, ...] = ()
    features: Callable[[Any], Array] | None = None
    drawn: Callable[[Mapping[str, Array]], Any] | None = None
    columns: tuple[Column, ...] = ()
    bits_offset: float | None = None
    sampler: Callable[[Key[Array, ""], int], Any] | None = None
    width: int | None = None


@dataclass(frozen=True)
class Training:
    """How a family wants to be trained by ``inference.fit``; stock ``SVI`` and every evaluation leave it out.

    ``knobs``    scheduled weights that the model reads (:func:`knob`), with their defaults.
    ``weights``  the family's own schedules (step -> value) for its sites and knobs.
    ``events``   changes of parameters between two updates of a fit, such as a mixture fitted after a warm-up.
    """

    knobs: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, Schedule] = field(default_factory=dict)
    events: tuple[Event, ...] = ()


@dataclass(frozen=True)
class Exact:
    """What a program knows in closed form, or by a solver of its own.

    ``log_prob``   ``(params, key, x) -> (batch,)``: log p(x) in nats; evidence then needs no posterior.  Where it is an
                   estimate, the pair ``(log p(x), standard error)``, (batch,) each; where the work varies, the triple
                   with a dict of what it took, such as steps, (batch,) each.  :meth:`estimate` reads all forms.
    ``solver``     what computes it, in a few words, where that is no formula: evidence keeps them with its table.
    ``predictor``  ``(params) -> Predictor``: the predictive rule that fitted parameters define, where the data are
                   sequences; where that rule can hold only so many symbols, ``capacity=`` asks for another number.
    """

    log_prob: Callable[..., Any] | None = None
    predictor: Callable[..., Predictor] | None = None
    solver: str = ""

    def estimate(self, params: Any, key: Any, x: Any) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
        """``log p(x)`` and its standard error in nats, (batch,) each: zeros where ``log_prob`` states none."""
        if self.log_prob is None:
            raise ValueError("this program has no log_prob of its own; use inference.evidence, which needs none")
        return self.estimate_and_work(params, key, x)[:2]

    def estimate_and_work(self, params: Any, key: Any, x: Any) -> tuple[Array, Array, dict[str, Array]]:
        """:meth:`estimate`, and what each datum took by name: empty where ``log_prob`` does not say."""
        assert self.log_prob is not None
        found = self.log_prob(params, key, x)
        if not isinstance(found, tuple):
            return found, jnp.zeros_like(found), {}
        return found[0], found[1], dict(found[2]) if len(found) > 2 else {}


@dataclass(frozen=True)
class Views:
    """What a reader of the diagnosis and the report sees of this family in particular.

    ``density``  the factorisation in the paper's symbols, one line each.
    ``modules``  the NNX modules by bound name.
    ``checks``   ``(tree) -> [Check]``: the family's own lines of ``inference.diagnose``.
    ``panels``   ``(fit, x, factors, tree) -> [Panel]``: the family's own figures.
    ``replicates``  data that an evaluation draws from the model by itself at most, where a draw takes a solver.
    """

    density: tuple[str, ...] = ()
    modules: Mapping[str, nnx.Module] = field(default_factory=dict)
    checks: Callable[[Any], list[Check]] = lambda tree: []
    panels: Callable[..., list[Panel]] = lambda fit, x, factors, tree: []
    replicates: int | None = None


@dataclass(frozen=True)
class Program:
    """A generative program p(x, z) and its amortised posterior q(z | x).

    ``spec``       the frozen dataclass that was built; JSON round trip through ``spec_to_json``.
    ``model``      p(x, z): ``model(x=None, *, size=None)``, one plate over the batch.  A conditional program is called
                   with a dict without its scored leaf where it is to draw that.
    ``posterior``  ``posterior(x) -> q(site, ctx)``; ``None`` for a program without latents.
    ``latents``    names of the latent sites, in the order of the model.
    ``shape``      shape of one datum; a dict (tuple, dataclass) of shapes where a datum is several arrays: the leaf
                   named as an observed site is what that site scores, the others are masks, labels or inputs.
    ``observed``   names of the observed sites (``numpyro.factor`` sites included).

    The rest has defaults: ``observation`` (what is scored), ``training`` (schedules and events), ``exact`` (closed
    forms), ``views`` (what the report adds).
    """

    spec: Any
    model: Callable[..., Any]
    posterior: Callable[..., Posterior] | None
    latents: tuple[str, ...]
    shape: Shape
    observed: tuple[str, ...] = ("x",)
    observation: Observation = Observation()
    training: Training = Training()
    exact: Exact = Exact()
    views: Views = Views()

    @property
    def guide(self) -> Callable[..., None]:
        """The ordinary NumPyro guide, derived from ``model`` and ``posterior``."""
        if self.posterior is None:
            return lambda *args, **kwargs: None
        return as_guide(self.model, self.posterior)

    @property
    def scored_shape(self) -> tuple[int, ...]:
        """Shape of what the first observed site scores of one datum."""
        found = leaves(self.shape)
        return found.get(self.observed[0], next(iter(found.values())))

    def scored(self, x: Any) -> Any:
        """What the first observed site scores of a batch: the array, or its leaf of the pytree."""
        found = part(x, self.observed[0])
        return jax.tree.leaves(x)[0] if found is None or not hasattr(found, "shape") else found

    def from_draw(self, values: Mapping[str, Array]) -> Any:
        """Prepared data from the values that a run of the model gave its observed sites and was given as inputs.

        Raises ``ValueError`` where they do not make a whole datum and the program does not say what does.
        """
        if self.observation.drawn is not None:
            return self.observation.drawn(values)
        if not isinstance(self.shape, Mapping):
            return values[self.observed[0]]
        lacking = sorted(set(self.shape) - set(values))
        if lacking:
            raise ValueError(
                f"draws of this program lack {lacking[0]!r} of a datum; set Observation.drawn, which makes one of them"
            )
        return {name: values[name] for name in self.shape}

    @property
    def parameter_count(self) -> int:
        """Number of trainable scalars (parameters outside ``modules`` included)."""
        key = jax.random.key(0)

        def parameters() -> dict[str, Any]:
            x = self.observation.prepare(jax.tree.map(jax.numpy.asarray, zeros(self.shape)), key, False)
            program = self.model if self.posterior is None else self.guide  # the guide runs the model
            with numpyro.handlers.trace() as sites, numpyro.handlers.seed(rng_seed=key):
                program(x)
            return {name: site["value"] for name, site in sites.items() if site["type"] == "param"}

        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(parameters)))
