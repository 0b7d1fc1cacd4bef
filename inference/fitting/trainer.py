"""The training state and its update: one jitted initialisation, one jitted and donated update.

What the next step needs is :class:`State`; what a person reads of the steps since the last reading is in
``State.totals``.  An update whose loss or gradient is not finite changes nothing but the counters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from inference.fitting.loss import Loss
from inference.fitting.objectives import BALANCE, FREE_BITS, KL, init_params
from inference.fitting.placement import OneDevice, Placement
from inference.fitting.sources import Source
from ppl_models.program import Event, Program, did_you_mean


class State(NamedTuple):
    """Everything that the next update reads; all leaves are arrays, so a checkpoint is this tree."""

    step: Array
    key: Array
    params: dict[str, Any]
    mutable: dict[str, Any]
    opt: Any
    average: Any
    skipped: Array
    streak: Array
    totals: dict[str, Array]


def scheduled(program: Program, weights: Mapping[str, Any] | None) -> dict[str, Callable[[Any], Any]]:
    """Merge the caller's weights over the program's own and return one function of the step for each.

    A weight is a number or a schedule ``step -> value`` (any optax schedule).  Valid names are the program's
    sites, its knobs, ``"kl"``, ``"free_bits"``, ``"free_bits/SITE"`` of a latent site and ``"balance"``, a share; any
    other raises ``ValueError``.
    """
    floors = (f"{FREE_BITS}/{name}" for name in program.latents)
    known = (KL, FREE_BITS, BALANCE, *program.latents, *program.observed, *program.training.knobs, *floors)
    merged = {**program.training.weights, **(weights or {})}
    for name, weight in merged.items():
        if name not in known:
            raise ValueError(f"unknown weight {name!r}{did_you_mean(name, known)}; this program has {', '.join(known)}")
        if not callable(weight) and not (isinstance(weight, int | float) and weight >= 0):
            raise ValueError(f"weight {name!r} must be a number >= 0 or a schedule step -> number, got {weight!r}")
        if name == BALANCE and not callable(weight) and weight > 1:
            raise ValueError(f"weight 'balance' is a share, 0 to 1 or a schedule of the step, got {weight!r}")
    return {name: w if callable(w) else optax.constant_schedule(w) for name, w in merged.items()}


def make_optimizer(learning_rate: Any, optimizer: Any, clip: float | None) -> optax.GradientTransformationExtraArgs:
    """Adam at ``learning_rate`` (1e-3; a number or an optax schedule) unless ``optimizer`` is given, after clipping.

    ``clip`` bounds the global norm of the gradient of the loss in nats per datum.
    """
    if optimizer is not None and learning_rate is not None:
        raise ValueError("give either optimizer= or learning_rate=, not both: an optax optimizer holds its own rate")
    if optimizer is not None and not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(f"optimizer must be an optax GradientTransformation, got {type(optimizer).__name__}")
    rate = 1e-3 if learning_rate is None else learning_rate
    if not callable(rate) and not (isinstance(rate, int | float) and 0 < rate < float("inf")):
        raise ValueError(f"learning_rate must be a positive number or an optax schedule, got {rate!r}")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be a positive gradient norm in nats per datum, got {clip!r}; None turns it off")
    return clipped(optax.adam(rate) if optimizer is None else optimizer, clip)


def clipped(core: Any, clip: float | None) -> optax.GradientTransformationExtraArgs:
    """An optimizer after clipping, where there is any."""
    return optax.with_extra_args_support(core if clip is None else optax.chain(optax.clip_by_global_norm(clip), core))


def _norm(leaves: list[Array]) -> Array:
    """Euclidean norm of all entries.

    Small arrays are taken as one, for a sum an array costs a tenth of the step of a network of many of them; large ones
    by themselves, for copying them together costs as much.  Inner products, not sums of squares: XLA's sum to a scalar
    adds one entry at a time on a CPU, its inner product many at once.
    """
    small = [leaf.ravel() for leaf in leaves if leaf.size < 32768]
    parts = [leaf.ravel() for leaf in leaves if leaf.size >= 32768] + ([jnp.concatenate(small)] if small else [])
    return jnp.sqrt(sum((jnp.vdot(part, part) for part in parts), jnp.zeros(())))


class Trainer:
    """The compiled parts of a fit: ``init(key) -> State`` and ``update(state, items) -> State``."""

    def __init__(
        self,
        program: Program,
        source: Source,
        optimizer: optax.GradientTransformationExtraArgs,
        weights: Mapping[str, Callable[[Any], Any]],
        average: float | None,
        loss: Loss | None = None,
        place: Placement | None = None,
    ) -> None:
        self.program, self.source, self.optimizer = program, source, optimizer
        self.place = OneDevice() if place is None else place
        source.store = self.place.store(source.store)
        self.loss = Loss() if loss is None else loss
        self.weights, self.average = dict(weights), average
        self.transforms: dict[str, Any] = {}
        self._update = jax.jit(self.steps, donate_argnums=0)
        self._init = jax.jit(self._start)

    # ------------------------------------------------------------------------------------------ start
    def _prepared(self, key: Array, item: Any, store: Any) -> Any:
        return self.program.observation.prepare(self.place.batch(self.source.batch(store, item)), key, True)

    def _start(self, key: Array, store: Any, item: Any) -> State:
        x = self._prepared(key, item, store)
        params, self.transforms, mutable = init_params(self.program, key, x)
        _, terms = jax.eval_shape(lambda: self.loss(self.program, self.constrain(params), key, x, mutable=mutable))
        names = ["loss", "grad_norm", "steps", *terms.more]
        names += [f"log_lik/{name}" for name in terms.log_lik] + [f"kl/{name}" for name in terms.kl]
        start = State(
            step=jnp.zeros((), jnp.int32),
            key=key,
            params=params,
            mutable=mutable,
            opt=self.optimizer.init(params),
            average=jax.tree.map(jnp.copy, params) if self.average else None,
            skipped=jnp.zeros((), jnp.int32),
            streak=jnp.zeros((), jnp.int32),
            totals={name: jnp.zeros(()) for name in names},
        )
        return self.place.state(start)

    def init(self, key: Array) -> State:
        """Initial state; the arrays are new, so donating them leaves the program's own modules intact."""
        made = self._init(self.place.store(key), self.source.store, self.source.example())
        return jax.tree.map(jnp.copy, made)

    def template(self, key: Array) -> State:
        """Shapes and dtypes of the state, without compiling."""
        return jax.eval_shape(self._start, key, self.source.store, self.source.example())

    def constrain(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Map unconstrained parameters to the values that the program's ``param`` sites take."""
        return {n: v if isinstance(v, dict) else self.transforms[n](v) for n, v in params.items()}

    def convolves(self, state: State) -> bool:
        """Whether the objective contains a convolution (XLA on CPU loses its fast path for those inside loops)."""

        def loss(params: Any, store: Any, item: Any) -> Array:
            x = self._prepared(state.key, item, store)
            return self.loss(self.program, self.constrain(params), state.key, x, mutable=state.mutable)[0]

        return "conv_general_dilated" in str(
            jax.make_jaxpr(loss)(state.params, self.source.store, self.source.example())
        )

    # ------------------------------------------------------------------------------------------ update
    def _step(self, state: State, store: Any, item: Any) -> State:
        prepare_key, noise_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        x = self._prepared(prepare_key, item, store)
        weights = {name: schedule(state.step) for name, schedule in self.weights.items()}

        def objective(params: dict[str, Any]) -> tuple[Array, Any]:
            return self.loss(
                self.program, self.constrain(params), noise_key, x, step=state.step, weights=weights,
                mutable=state.mutable,
            )  # fmt: skip

        (loss, terms), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        norm = _norm(jax.tree.leaves(grads))
        ok = jnp.isfinite(loss) & jnp.isfinite(norm)

        def apply() -> tuple[Any, ...]:
            updates, opt = self.optimizer.update(grads, state.opt, state.params, value=loss)
            params = optax.apply_updates(state.params, updates)
            average = state.average
            if self.average:
                # The early average follows closely: its window grows with the steps taken, up to 1/(1 - decay).
                decay = jnp.minimum(self.average, (1.0 + state.step) / (10.0 + state.step))
                average = optax.incremental_update(params, average, 1.0 - decay)
            return params, opt, average, terms.mutable

        before = (state.params, state.opt, state.average, state.mutable)
        if jax.default_backend() == "cpu":
            # A branch costs nothing here; selecting leaf by leaf costs a tenth of a dense step.
            params, opt, average, mutable = jax.lax.cond(ok, apply, lambda: before)
        else:
            chosen = jax.tree.map(lambda new, old: jnp.where(ok, new, old), apply(), before)
            params, opt, average, mutable = chosen
        now = {"loss": loss, "grad_norm": norm, "steps": jnp.ones(()), **terms.more}
        now |= {f"log_lik/{n}": v for n, v in terms.log_lik.items()} | {f"kl/{n}": v for n, v in terms.kl.items()}
        after = State(
            step=state.step + 1,
            key=state.key,
            params=params,
            mutable=mutable,
            opt=opt,
            average=average,
            skipped=state.skipped + ~ok,
            streak=jnp.where(ok, 0, state.streak + 1),
            totals={n: total + jnp.where(ok, now[n], 0.0) for n, total in state.totals.items()},
        )
        return self.place.state(after)

    def steps(self, state: State, store: Any, items: Any) -> State:
        """As many steps as ``items`` has entries; not compiled."""
        count = jax.tree.leaves(items)[0].shape[0]
        if count == 1:
            return self._step(state, store, jax.tree.map(lambda a: a[0], items))
        return jax.lax.scan(lambda s, item: (self._step(s, store, item), None), state, items)[0]

    def happen(self, event: Event, state: State) -> State:
        """Let an event change the parameters of a state; optimiser moments stay, the running average starts anew.

        Raises ``ValueError`` for a site that the program has not, or values of another structure, shape or not finite.
        """
        state = self.place.whole(state)  # in several processes each does the same
        key = jax.random.fold_in(jax.random.fold_in(state.key, 0x6576), state.step)  # apart from the updates' keys
        data_key, own_key = jax.random.split(key)
        params = self.constrain(state.params)
        sites = {**params, **{name: dict(values) for name, values in state.mutable.items()}}
        changed = dict(event.apply(sites, self._some(int(state.step), event.size, data_key), own_key))
        for name, value in changed.items():
            if name not in state.params:
                raise ValueError(f"event {event.name!r} changes {name!r}; this program has {', '.join(state.params)}")
            shapes = [jax.tree.map(jnp.shape, tree) for tree in (value, params[name])]
            if shapes[0] != shapes[1]:
                raise ValueError(f"event {event.name!r} gives {name!r} shapes {shapes[0]}, expected {shapes[1]}")
            if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(value)):
                raise ValueError(f"event {event.name!r} gives {name!r} values that are not finite")
            changed[name] = jax.tree.map(
                lambda new, old: jnp.asarray(new, old.dtype),
                value if isinstance(value, dict) else self.transforms[name].inv(value),
                state.params[name],
            )
        average = {**state.average, **jax.tree.map(jnp.copy, changed)} if self.average else state.average
        return self.place.put(state._replace(params={**state.params, **changed}, average=average))

    def _some(self, step: int, size: int, key: Array) -> Any:
        """About ``size`` prepared data, from the batches that the next updates will see."""
        source = self.source
        count = min(-(-size // source.batch_size), source.per_epoch or size)  # no datum twice
        prepare = jax.jit(lambda k, item, store: self.program.observation.prepare(source.batch(store, item), k, False))
        parts = [
            prepare(
                self.place.store(jax.random.fold_in(key, i)), jax.tree.map(lambda a, i=i: a[i], items), source.store
            )
            for items in [source.feed(step, count)]
            for i in range(count)
        ]
        return jax.tree.map(lambda *leaf: jnp.concatenate(leaf)[:size], *self.place.whole(parts))

    def update(self, state: State, items: Any) -> State:
        """Take as many steps as ``items`` has entries; the old state's buffers are reused and must not be read."""
        return self._update(state, self.source.store, self.place.feed(items, self.source.batch_size))
