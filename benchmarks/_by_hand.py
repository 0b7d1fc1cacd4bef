"""One preset of each family, and the same training loss written by hand: the networks, JAX, and nothing of NumPyro.

Each function of ``CASES`` builds a :class:`Case`.  The networks are the family's own Flax modules, which know no
NumPyro; the densities, divergences and draws around them are written out here as one would in a script.
:func:`agreement` measures whether the two losses, and their gradients, are those of the same model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.scipy.special import betaln, digamma, ndtri
from jaxtyping import Array

from inference.fitting.objectives import fused_elbo, init_params
from inference.fitting.sources import as_source
from inference.fitting.trainer import Trainer, make_optimizer, scheduled
from ppl_models import diffusion, hvae, in_context, mfcvae
from ppl_models.networks.dropout import Dropout
from ppl_models.program import Program

BATCH, RATE = 128, 1e-3
Params = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A program, the data it is trained on, and by hand ``loss(params, key, stored, step)``, nats per datum.

    The loss takes stored data: what the program's ``prepare`` does is part of it.  ``params`` has the layout of the
    program's parameters, a dict of nested dicts of arrays.  ``steps`` is how many to time in a row.
    """

    title: str
    program: Program
    data: Any
    loss: Callable[[Params, Array, Array, Array], Array]
    steps: int


def _network(module: nnx.Module) -> Callable[[Any], Any]:
    """``weights -> module``."""
    split: Any = nnx.split
    graph = split(module, nnx.Param)[0]
    return lambda weights: nnx.merge(graph, nnx.State(weights))


def _grey() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 17, (1797, 8, 8)).astype("uint8")


# ------------------------------------------------------------------------------------------------ mfcvae
def _log_mixture(p: Mapping[str, Array], z: Array) -> Array:
    """``log sum_c pi_c N(z; mu_c, S_c)``, diagonal or full ``S_c``."""
    dim = z.shape[-1]
    residual = z[:, None, :] - p["means"]
    if "variance" in p:
        variance = 1e-6 + jax.nn.softplus(10.0 * p["variance"]) / 10.0
        square, log_det = (residual**2 / variance).sum(-1), 0.5 * jnp.log(variance).sum(-1)
    else:
        diagonal = 1e-6 + jax.nn.softplus(10.0 * p["diagonal"]) / 10.0
        rows, columns = np.tril_indices(dim, -1)
        tril = jnp.zeros((len(diagonal), dim, dim)).at[:, rows, columns].set(p["lower"])
        tril = tril.at[:, np.arange(dim), np.arange(dim)].set(diagonal)
        inverse = jax.scipy.linalg.solve_triangular(tril, jnp.broadcast_to(jnp.eye(dim), tril.shape), lower=True)
        square = (jnp.einsum("cij,bcj->bci", inverse, residual) ** 2).sum(-1)
        log_det = jnp.log(diagonal).sum(-1)
    log_pi = jax.nn.log_softmax(p["logits"]) if "logits" in p else -math.log(len(p["means"]))
    return jax.nn.logsumexp(log_pi - 0.5 * square - log_det, -1) - 0.5 * dim * math.log(2 * math.pi)


def facets(
    title: str, spec: mfcvae.MFCVAE, data: np.ndarray, steps: int, log_lik: Callable[[Array, Array], Array]
) -> Case:
    """Any ``mfcvae`` with full KL weight after ``spec.warmup``; ``log_lik(x, decoded)`` is a term for each pixel."""
    program = spec.build(jax.random.key(0))
    encoder, decoder = _network(program.views.modules["encoder"]), _network(program.views.modules["decoder"])
    names = [facet.name for facet in spec.facets]

    def loss(params: Params, key: Array, stored: Array, step: Array) -> Array:
        x = stored.astype(jnp.float32) / (spec.levels - 1.0)
        kl, zs = jnp.zeros(len(x)), []
        heads = encoder(params["encoder$params"])(x)
        for name, (loc, log_scale), k in zip(names, heads, jax.random.split(key, len(names)), strict=True):
            noise = jax.random.normal(k, loc.shape)
            z = loc + jnp.exp(log_scale) * noise
            log_q = (-0.5 * noise**2 - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)
            kl += log_q - _log_mixture(params[f"mixture_{name}"], z)
            zs.append(z)
        decoded = decoder(params["decoder$params"])(zs, [1.0] * len(zs))
        weight = jnp.minimum((step + 1) / spec.warmup, 1.0) if spec.warmup else 1.0
        return jnp.mean(weight * kl - log_lik(x, decoded).reshape(len(x), -1).sum(-1))

    return Case(title, program, data, loss, steps)


def gaussian_pixels(sigma: float) -> Callable[[Array, Array], Array]:
    """``log N(x; sigmoid(decoded), sigma^2)``."""
    constant = math.log(sigma) + 0.5 * math.log(2 * math.pi)
    return lambda x, decoded: -0.5 * ((x - jax.nn.sigmoid(decoded)) / sigma) ** 2 - constant


def multi_facet() -> Case:
    """``mfcvae:digits``: a diagonal and a full mixture, Gaussian pixels, KL weight warming up."""
    return facets("mfcvae:digits", mfcvae.PRESETS["digits"], _grey(), 40, gaussian_pixels(0.2))


# -------------------------------------------------------------------------------------------------- hvae
def hierarchical() -> Case:
    """``hvae:digits``: three dense levels, binary pixels with noise before the threshold, dropout as trained."""
    spec = hvae.PRESETS["digits"]
    program = spec.build(jax.random.key(0))
    encoder, decoder = _network(program.views.modules["encoder"]), _network(program.views.modules["decoder"])

    def loss(params: Params, key: Array, stored: Array, step: Array) -> Array:
        del step
        grain_key, up_key, down_key, *keys = jax.random.split(key, 3 + len(spec.decoder_cells))
        grey = stored.astype(jnp.float32)
        x = (grey + jax.random.normal(grain_key, grey.shape) > 7.5).astype(jnp.float32)
        up, down = encoder(params["encoder$params"]), decoder(params["decoder$params"])
        up_drop, down_drop = Dropout(spec.dropout, up_key), Dropout(spec.dropout, down_key)
        activations = up(x, up_drop)
        kl = jnp.zeros(len(x))
        states: dict[int, Array] = {}
        for level, (cell, k) in enumerate(zip(spec.decoder_cells, keys, strict=True)):
            Z = down.enter(level, states, len(x))
            pm, pv, drift = down.prior(level, Z, down_drop)
            qm, qv = up.posterior(level, Z, activations[cell.res], up_drop)
            z = qm + jnp.exp(qv) * jax.random.normal(k, qm.shape)
            ratio, shift = jnp.exp(2 * (qv - pv)), (qm - pm) * jnp.exp(-pv)
            kl += 0.5 * (ratio + shift**2 - 1 - 2 * (qv - pv)).sum((1, 2, 3))
            states[cell.res] = down.step(level, Z, drift, z, down_drop)
        logits = down.read_out(states[spec.grid])
        return jnp.mean(kl - (x * logits - jax.nn.softplus(logits)).sum((1, 2)))

    return Case("hvae:digits", program, _grey(), loss, 20)


# --------------------------------------------------------------------------------------------- diffusion
def denoising() -> Case:
    """``diffusion:digits``: dequantised grey levels, one noise level a datum, the gradient's weights capped."""
    spec = diffusion.PRESETS["digits"]
    program = spec.build(jax.random.key(0))
    network = _network(program.views.modules["denoiser"])
    mean, spread, cap = spec.level_mean, spec.level_spread, spec.weight_cap

    def loss(params: Params, key: Array, stored: Array, step: Array) -> Array:
        del step
        grain_key, level_key, noise_key = jax.random.split(key, 3)
        x = (stored.astype(jnp.float32) + jax.random.uniform(grain_key, stored.shape)) / 17.0
        x = (x - spec.centre) / spec.scale
        n = len(x)
        u = (jax.random.uniform(level_key) + jnp.arange(n) / n) % 1.0
        standard = ndtri(jnp.clip(u, 1e-6, 1 - 1e-6))
        phi = jnp.arctan(jnp.exp(mean + spread * standard))
        cos, sin = jnp.cos(phi)[:, None, None], jnp.sin(phi)[:, None, None]
        noise = jax.random.normal(noise_key, x.shape)
        noisy, v = cos * x + sin * noise, cos * noise - sin * x
        guess = (cos * noisy - network(params["denoiser$params"])(noisy, phi)) / sin
        gain = ((2 * v - guess) * guess).sum((1, 2))
        cos2 = jnp.cos(phi) ** 2
        weight = spread * math.sqrt(2 * math.pi) * jnp.exp(0.5 * standard**2) * cos2
        fixed = jax.lax.stop_gradient
        gain = fixed(weight * gain) + jnp.minimum(weight, cap) * (gain - fixed(gain))
        log_normal = -0.5 * (x**2).sum((1, 2)) - 64 * (0.5 * math.log(2 * math.pi) + math.log(spec.scale))
        return -jnp.mean(log_normal + gain)

    return Case("diffusion:digits", program, _grey(), loss, 3)


# -------------------------------------------------------------------------------------------- in context
def transformer() -> Case:
    """``in_context:coin``: the log-likelihood of all next symbols under a causal transformer."""
    program = in_context.PRESETS["coin"].build(jax.random.key(0))
    network = _network(program.views.modules["network"])

    def loss(params: Params, key: Array, stored: Array, step: Array) -> Array:
        del key, step
        logits = network(params["network$params"])(stored)[..., 0]
        return jnp.mean((jax.nn.softplus(logits) - stored.astype(jnp.float32) * logits).sum(-1))

    return Case("in_context:coin", program, program.observation.sampler, loss, 3)


def set_encoder() -> Case:
    """``in_context:coin_guide``: a Beta posterior of the coin's bias after a random number of its tosses."""
    program = in_context.PRESETS["coin_guide"].build(jax.random.key(0))
    network = _network(program.views.modules["network"])

    def loss(params: Params, key: Array, stored: Array, step: Array) -> Array:
        del step
        length_key, theta_key = jax.random.split(key)
        n = jax.random.randint(length_key, (len(stored), 1), 0, stored.shape[1] + 1)
        seen = jnp.arange(stored.shape[1]) < n
        a, b = jnp.exp(jnp.clip(jnp.moveaxis(network(params["network$params"])(stored, seen), -1, 0), -12, 12))
        theta = jax.random.dirichlet(theta_key, jnp.stack([a, b], -1))[:, 0]
        theta = jnp.clip(theta, 1e-37, 1 - 2.0**-23)[:, None]
        log_lik = jnp.where(stored > 0, jnp.log(theta), jnp.log1p(-theta))
        # KL(Beta(a, b) || Beta(1, 1))
        kl = (a - 1) * digamma(a) + (b - 1) * digamma(b) - (a + b - 2) * digamma(a + b) - betaln(a, b)
        return jnp.mean(kl - jnp.where(seen, log_lik, 0.0).sum(-1))

    return Case("in_context:coin_guide", program, program.observation.sampler, loss, 15)


CASES: dict[str, Callable[[], Case]] = {
    "mfcvae": multi_facet,
    "hvae": hierarchical,
    "diffusion": denoising,
    "in_context": transformer,
    "in_context_guide": set_encoder,
}


# -------------------------------------------------------------------------------------------- agreement
def agreement(case: Case, *, keys: int = 256, batch: int = 16, chunk: int = 32, step: int = 299) -> dict[str, float]:
    """Compare the two losses at the same parameters, averaged over ``keys`` keys each; raise if they differ.

    The parameters are the starting ones with noise on every one of them, since some parts are silent at the start.
    Compared are the loss and its derivative along one direction, the program's own gradient at a further key: equal
    values with another gradient would be another training.  Raises ``AssertionError`` where a difference exceeds four
    standard errors plus 1e-4 of the larger side (rounding).
    """
    program = case.program
    source = as_source(case.data, program, batch, jax.random.key(3))
    stored = source.batch(source.store, source.feed(0, 1)[0])

    @jax.jit  # one compilation: eagerly each operation, and each shape of noise, is one of its own
    def perturbed(stored: Array) -> Params:
        start, _, _ = init_params(
            program, jax.random.key(4), program.observation.prepare(stored, jax.random.key(4), True)
        )
        leaves, tree = jax.tree.flatten(start)
        noise = jax.random.split(jax.random.key(5), len(leaves))
        moved = [a + 0.01 * jax.random.normal(k, a.shape) for a, k in zip(leaves, noise, strict=True)]
        return jax.tree.unflatten(tree, moved)

    params = perturbed(stored)
    at = jnp.asarray(step, jnp.int32)
    rules = scheduled(program, None)

    def ours(params: Params, key: Array) -> Array:
        prepare_key, noise_key = jax.random.split(key)
        x = program.observation.prepare(stored, prepare_key, True)
        return fused_elbo(program, params, noise_key, x, weights={n: rule(at) for n, rule in rules.items()})[0]

    def by_hand(params: Params, key: Array) -> Array:
        return case.loss(params, key, stored, at)

    direction = jax.jit(jax.grad(ours))(params, jax.random.key(6))
    direction = optax.tree.scale(1 / optax.tree.norm(direction), direction)
    found: dict[str, float] = {}
    sides = []
    for name, loss, seed in (("fit", ours, 7), ("hand", by_hand, 8)):

        def measured(key: Array, loss: Callable[[Params, Array], Array] = loss) -> Array:
            value, grads = jax.value_and_grad(loss)(params, key)
            return jnp.stack([value, optax.tree.vdot(grads, direction)])

        many = jax.jit(jax.vmap(measured))
        drawn = jax.random.split(jax.random.key(seed), (keys // chunk, chunk))
        sides.append(np.concatenate([np.asarray(many(k), np.float64) for k in drawn]))
        found |= {f"loss_{name}": float(sides[-1][:, 0].mean()), f"slope_{name}": float(sides[-1][:, 1].mean())}
    for column, what in enumerate(("loss", "slope")):
        a, b = (side[:, column] for side in sides)
        se = math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / keys)
        found |= {f"{what}_se": se}
        off, scale = abs(a.mean() - b.mean()), max(abs(a.mean()), abs(b.mean()))
        if not off <= 4 * se + 1e-4 * scale:
            raise AssertionError(
                f"{case.title}: {what} of the fit {a.mean():.6g} and by hand {b.mean():.6g} differ by {off:.3g}, "
                f"more than four standard errors of {se:.3g}: the two are not the same model"
            )
    return found


# ------------------------------------------------------------------------------------------------- steps
def steps_of(case: Case, batch: int = BATCH) -> dict[str, Callable[[], Any]]:
    """One step of training by hand and one of the fit, each a function without arguments that keeps its own state."""
    source = as_source(case.data, case.program, batch, jax.random.key(0))
    trainer = Trainer(case.program, source, make_optimizer(RATE, None, None), scheduled(case.program, None), None)
    optimizer = optax.adam(RATE)

    def step(state: Any, store: Any, item: Any) -> Any:
        key, count, params, opt = state
        key, noise = jax.random.split(key)
        grads = jax.grad(case.loss)(params, noise, source.batch(store, item), count)
        updates, opt = optimizer.update(grads, opt, params)
        return key, count + 1, optax.apply_updates(params, updates), opt

    fit_state = trainer.init(jax.random.key(1))
    params = jax.tree.map(jnp.copy, fit_state.params)
    states: dict[str, Any] = {
        "fit": fit_state,
        "hand": (jax.random.key(1), jnp.zeros((), jnp.int32), params, optimizer.init(params)),
    }
    compiled = jax.jit(step, donate_argnums=0)
    taken = {"fit": 0, "hand": 0}

    def feed(name: str) -> Any:
        taken[name] += 1
        return source.feed(taken[name], 1)

    def by_hand() -> Any:
        states["hand"] = compiled(states["hand"], source.store, feed("hand")[0])
        return states["hand"][1]

    def fitted() -> Any:
        states["fit"] = trainer.update(states["fit"], feed("fit"))
        return states["fit"].step

    return {"hand": by_hand, "fit": fitted}
