"""Predictive paths: a rule continued by its own draws, many at once.

One path is Z_{n+1} ~ p(.|z_{1:n}), Z_{n+2} ~ p(.|z_{1:n}, Z_{n+1}), ...: one ``lax.scan`` over the steps, one ``vmap``
over the paths, the context read once.  Both the draws and the probabilities they were drawn with are kept: replacing
Z by its conditional mean leaves every expectation unchanged and takes the sampling noise of the symbols away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num

from inference.coherence._call import call, kind_of
from inference.coherence._symbols import Kind, check_context, expected, features, match_context, outcomes, symbols_of
from ppl_models.program import HostPredictor, Predictor

OTHERS = 4
"""Further symbols a step of a real rule: the reference of its tests."""


@dataclass(frozen=True)
class Paths:
    """J continuations of one context by N symbols.

    ``context``  z_{1:n}.
    ``z``        the drawn symbols, (path, step).
    ``p``        (path, step + 1, feature): E[g(Z_{n+k}) | context and path so far] for k = 1..N+1, before each draw
                 and after the last; the probability of symbol 1 for a binary rule.
    ``log_p``    log-probability or log-density of each drawn symbol, nats.
    ``names``    the features g: ``("z=1",)``; ``("z=0", ..., "z=K-1")``; ``("z", "z^2")``.
    ``others``   real symbols only, (path, step, other, feature): E[g(Z_{n+k+1}) | path before draw k, another draw k],
                 what ``p`` would have become after other symbols from the same distribution; the tests' reference.

    A predictor that cannot be traced (:class:`ppl_models.program.HostPredictor`) fills the same arrays itself, with
    NaN for probabilities that it does not tell; every test reads only these.
    """

    context: Num[np.ndarray, " n"]
    z: Num[np.ndarray, "path step"]
    p: Float[np.ndarray, "path step_1 feature"]
    log_p: Float[np.ndarray, "path step"]
    names: tuple[str, ...]
    others: Float[np.ndarray, "path step other feature"] | None = None

    def __post_init__(self) -> None:
        J, N = self.z.shape
        if self.p.shape != (J, N + 1, len(self.names)):
            raise ValueError(
                f"paths of {J} x {N} symbols need p of shape {(J, N + 1, len(self.names))}: one entry before each "
                f"draw, one after the last, got {self.p.shape}"
            )

    @property
    def samples_only(self) -> bool:
        """Whether the draws alone are known: no probabilities (NaN)."""
        return bool(np.isnan(self.p).all())

    @property
    def g(self) -> Float[np.ndarray, "path step feature"]:
        """The features of the drawn symbols."""
        return np.asarray(features(jnp.asarray(self.z), self.names))


class Drawn(NamedTuple):
    """The arrays of :class:`Paths` inside ``jit``."""

    z: Num[Array, "*path step"]
    p: Float[Array, "*path step_1 feature"]
    log_p: Float[Array, "*path step"]
    others: Float[Array, "*path step other feature"] | None = None


def draw_path(predictor: Predictor, state: Any, key: Key[Array, ""], steps: int, others: int = 0) -> Drawn:
    """One path of ``steps`` symbols from a state; pure, for use under ``vmap``.

    A real rule is also asked what it would say next after ``others`` further symbols a step.

    A finite rule is drawn by inverting its distribution function at uniforms made all at once, which is several times
    cheaper than a random key a step.
    """
    K = outcomes(predictor.predict(state))

    def finite(state: Any, u: Float[Array, ""]) -> tuple[Any, tuple[Array, ...]]:
        fn = predictor.predict(state)
        p = expected(fn)
        if K == 2 and p.shape[-1] == 1:
            z = (u < p[0]).astype(jnp.int32)
            chance = jnp.where(u < p[0], p[0], 1 - p[0])
        else:
            z = jnp.minimum(jnp.sum(u >= jnp.cumsum(p)), p.shape[-1] - 1).astype(jnp.int32)
            chance = p[z]
        return predictor.update(state, z), (z, p, jnp.log(chance))

    def real(state: Any, key: Key[Array, ""]) -> tuple[Any, tuple[Array, ...]]:
        fn = predictor.predict(state)
        if not others:
            z = fn.sample(key)
            return predictor.update(state, z), (z, expected(fn), fn.log_prob(z))
        keys = jnp.concatenate([key[None], jax.random.split(jax.random.fold_in(key, 1), others)])
        z = jax.vmap(fn.sample)(keys)
        states = jax.vmap(lambda z: predictor.update(state, z))(z)
        turned = jax.vmap(lambda state: expected(predictor.predict(state)))(states)
        first = jax.tree.map(lambda leaf: leaf[0], states)
        return first, (z[0], expected(fn), fn.log_prob(z[0]), turned[1:])

    scan: Any = jax.lax.scan
    if K is None:
        last, (z, p, log_p, *turned) = scan(real, state, jax.random.split(key, steps))
    else:
        last, (z, p, log_p, *turned) = scan(finite, state, jax.random.uniform(key, (steps,)))
    p = jnp.concatenate([p, expected(predictor.predict(last))[None]])
    return Drawn(z, p, log_p, turned[0] if turned else None)


def draw_paths(
    predictor: Predictor, context: Array, key: Key[Array, ""], *, steps: int, paths: int, others: int = 0
) -> Drawn:
    """``paths`` independent paths after one context, which is read once; pure, for use under ``jit``."""
    state = predictor.init(context)
    keys = jax.random.split(key, paths)
    return jax.vmap(lambda key: draw_path(predictor, state, key, steps, others))(keys)


def kind_names(predictor: Predictor) -> tuple[str, ...]:
    """The features of a traced rule's predictive distribution."""
    return kind_of(predictor, 1, "int32").names


def seed_of(key: Key[Array, ""]) -> int:
    """The seed, of 31 bits, by which a host predictor is asked for what ``key`` stands for."""
    return int(jax.random.bits(key, dtype="uint32")) >> 1


def host_paths(predictor: HostPredictor, context: Any, *, steps: int, paths: int, key: Key[Array, ""]) -> Paths:
    """:func:`predictive_paths` of a host predictor."""
    names = tuple(predictor.names)
    context = match_context(check_context(context), symbols_of(names))
    drawn = predictor.paths(context, steps, paths, seed_of(key))
    if np.shape(drawn.z) != (paths, steps):
        raise ValueError(f"asked for paths of shape {(paths, steps)}, the predictor returned {np.shape(drawn.z)}")
    return Paths(context, np.asarray(drawn.z), np.asarray(drawn.p, float), np.asarray(drawn.log_p, float), names)


def predictive_paths(
    predictor: Predictor | HostPredictor,
    context: Any,
    *,
    steps: int,
    paths: int = 100,
    key: Key[Array, ""],
    others: int = OTHERS,
) -> Paths:
    """Continue a context (n,) by ``steps`` symbols, ``paths`` times, drawing from the rule itself.

    ``others`` further symbols a step of a real rule give its tests their reference; 0 saves their time and memory.

    Paths are independent given the context; the same key gives the same paths.  Compiled once for all rules of one
    type and contexts of one length.

    >>> paths = predictive_paths(BetaBernoulli(), np.array([1, 0, 1]), steps=20, key=jax.random.key(0))
    >>> paths.z.shape, paths.p.shape
    ((100, 20), (100, 21, 1))
    """
    for name, value in (("steps", steps), ("paths", paths)):
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if isinstance(predictor, HostPredictor):
        return host_paths(predictor, context, steps=int(steps), paths=int(paths), key=key)
    context, fn = fitting_context(predictor, context, ahead=steps)
    drawn = call(draw_paths, predictor, context, key, steps=steps, paths=paths, others=others)
    z, p, log_p = (np.asarray(a) for a in drawn[:3])
    return Paths(context, z, p, log_p, fn.names, None if drawn.others is None else np.asarray(drawn.others))


def fitting_context(
    predictor: Predictor, context: Any, ndim: int = 1, *, ahead: int = 0, rows: bool = False
) -> tuple[np.ndarray, Kind]:
    """Check a context, or several of one length, and return it with the kind of the predictive distribution.

    ``ahead`` symbols will follow: a rule of finite ``capacity`` must hold them too.  ``rows``: a rule whose symbols
    are the numbers of rows in turn (its ``period`` is more than one) will do; the tests are of symbols that are alike.
    """
    if not rows and getattr(predictor, "period", 1) > 1:
        raise ValueError(
            "this predictor's symbols are the numbers of rows in turn, expected symbols that are alike: paths and "
            "tests of coherence are of exchangeable symbols; prequential scores it"
        )
    context = check_context(context, "context" if ndim == 1 else "contexts", ndim)
    capacity, n = getattr(predictor, "capacity", None), context.shape[-1]
    if capacity is not None and n + ahead > capacity:
        raise ValueError(
            f"this predictor holds {capacity} symbols, a context of {n} and {ahead} further ones need {n + ahead}; "
            "continue by fewer, or build it with a larger capacity"
        )
    fn = kind_of(predictor, n, str(context.dtype))
    if fn.event_shape or fn.batch_shape:
        raise ValueError(
            f"the predictive distribution must be over one symbol, got batch shape {fn.batch_shape} and event shape "
            f"{fn.event_shape}; a predictor serves one sequence, vmap gives the rest"
        )
    return match_context(context, fn.K), fn


def paths_tree(paths: Paths, *, chains: int = 1) -> Any:
    """The paths as an ArviZ DataTree, one path a draw.

    Groups: ``posterior_predictive/z``; ``sample_stats/p`` and ``log_p``; ``observed_data/z_context``.
    ``chains`` cuts the independent paths into pseudo-chains, so that ArviZ can give R-hat and ESS.
    """
    import arviz as az

    J, N = paths.z.shape
    if J % chains:
        raise ValueError(f"chains must divide the number of paths, {J}, got {chains}")

    def cut(values: np.ndarray) -> np.ndarray:
        return values.reshape(chains, J // chains, *values.shape[1:])

    return az.from_dict(
        {
            "posterior_predictive": {"z": cut(paths.z)},
            "sample_stats": {"p": cut(paths.p), "log_p": cut(paths.log_p)},
            "observed_data": {"z_context": paths.context},
        },
        dims={"z": ["step"], "p": ["step_1", "feature"], "log_p": ["step"], "z_context": ["position"]},
        coords={"step": np.arange(1, N + 1), "step_1": np.arange(1, N + 2), "feature": list(paths.names)},
    )
