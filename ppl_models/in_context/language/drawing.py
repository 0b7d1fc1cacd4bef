"""What a language model in process is asked, compiled: read a prompt, continue it many times, score many ends of it.

All functions take the static graph of a :class:`~ppl_models.in_context.language.gemma.Gemma` and its weights.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ppl_models.in_context.language.gemma import UNSEEN, Cache, Gemma, Prompt


class Slots(NamedTuple):
    """Drawn words, (path, slot); their probabilities among the words before each draw and after the last; what the
    model makes of each path's end, (path, d).
    """

    word: Int[Array, "path slot"]
    p: Float[Array, "path slot_1 word"]
    end: Float[Array, "path d"]


class Numbers(NamedTuple):
    """Drawn tokens, (path, token), as places in the grammar's list, -1 where none was drawn; how many numbers each
    path has finished; the state that each path ended in, and what the model makes of that end.
    """

    token: Int[Array, "path token"]
    finished: Int[Array, " path"]
    state: Int[Array, " path"]
    end: Float[Array, "path d"]


def _net(graph: Any, weights: Any) -> Gemma:
    return nnx.merge(graph, weights)


@partial(jax.jit, static_argnums=0)
def read_prompt(
    graph: Any, weights: Any, tokens: Int[Array, " token"], length: Int[Array, ""]
) -> tuple[Float[Array, " d"], Prompt]:
    """Read the first ``length`` tokens of a padded prompt, once for all its paths."""
    net = _net(graph, weights)
    h, caches = net.read(tokens[None], net.room(1, tokens.shape[0]), jnp.zeros((), jnp.int32), net.nothing())
    return h[0, length - 1], Prompt(tuple(Cache(c.k[0], c.v[0]) for c in caches), length)


@partial(jax.jit, static_argnums=0)
def draw_slots(
    graph: Any,
    weights: Any,
    prompt: Prompt,
    h: Float[Array, " d"],
    u: Float[Array, "slot path"],
    after: Int[Array, " slot"],
    words: Int[Array, " word"],
) -> Slots:
    """Continue a prompt: a word among ``words`` by inversion at u, then the token ``after`` it, slot by slot."""
    net = _net(graph, weights)
    S, J = u.shape

    def step(carry: Any, slot: tuple[Array, Array]) -> tuple[Any, tuple[Array, Array]]:
        h, caches, at = carry
        p = jax.nn.softmax(net.logits(h, words))
        k = jnp.minimum(jnp.sum(slot[0][:, None] >= jnp.cumsum(p, -1), -1), words.shape[0] - 1).astype(jnp.int32)
        read = jnp.stack([words[k], jnp.broadcast_to(slot[1], k.shape)], 1)
        h, caches = net.read(read, caches, at, prompt)
        return (h[:, -1], caches, at + 2), (k, p)

    start = (jnp.broadcast_to(h, (J, h.shape[0])), net.room(J, 2 * S), jnp.zeros((), jnp.int32))
    (end, *_), (word, p) = jax.lax.scan(step, start, (u, after))
    last = jax.nn.softmax(net.logits(end, words))
    return Slots(word.T, jnp.concatenate([p, last[None]]).swapaxes(0, 1), end)


@partial(jax.jit, static_argnums=0)
def draw_numbers(
    graph: Any,
    weights: Any,
    prompt: Prompt,
    h: Float[Array, " d"],
    u: Float[Array, "token path"],
    tokens: Int[Array, " kind"],
    after: Int[Array, "state kind"],
    states: Int[Array, " two"],
    numbers: Int[Array, ""],
) -> Numbers:
    """Continue a prompt by a grammar, from the first of ``states``, until every path has so many numbers; one is
    finished where the second of ``states`` is reached.
    """
    net = _net(graph, weights)
    T, J = u.shape

    def step(carry: Any) -> Any:
        h, caches, at, state, finished, drawn = carry
        may = after[state] >= 0
        p = jax.nn.softmax(jnp.where(may, net.logits(h, tokens), UNSEEN))
        # A uniform that rounds up to the whole mass takes the last token that may follow.
        below = jnp.minimum(jnp.sum(u[at][:, None] >= jnp.cumsum(p, -1), -1), tokens.shape[0] - 1)
        k = jnp.where(jnp.take_along_axis(may, below[:, None], 1)[:, 0], below, p.argmax(-1)).astype(jnp.int32)
        state = after[state, k]
        h, caches = net.read(tokens[k][:, None], caches, at, prompt)
        return h[:, -1], caches, at + 1, state, finished + (state == states[1]), drawn.at[:, at].set(k)

    def unfinished(carry: Any) -> Array:
        _, _, at, _, finished, _ = carry
        return (at < T) & (finished.min() < numbers)

    none = jnp.zeros(J, jnp.int32)
    start = (
        jnp.broadcast_to(h, (J, h.shape[0])), net.room(J, T), jnp.zeros((), jnp.int32), none + states[0], none,
        jnp.full((J, T), -1, jnp.int32),
    )  # fmt: skip
    h_end, _, _, state, finished, drawn = jax.lax.while_loop(unfinished, step, start)
    return Numbers(drawn, finished, state, h_end)


@partial(jax.jit, static_argnums=0)
def score_ends(
    graph: Any, weights: Any, prompt: Prompt, tokens: Int[Array, "text token"], last: Int[Array, " text"]
) -> Float[Array, "text d"]:
    """What the model makes of the token ``last`` of each text, padded at its end, that follows a prompt."""
    net = _net(graph, weights)
    h, _ = net.read(tokens, net.room(*tokens.shape), jnp.zeros((), jnp.int32), prompt)
    return jnp.take_along_axis(h, last[:, None, None], 1)[:, 0]


@partial(jax.jit, static_argnums=0)
def word_probabilities(
    graph: Any, weights: Any, h: Float[Array, "text d"], words: Int[Array, " word"]
) -> Float[Array, "text word"]:
    """Probabilities of the words among the whole vocabulary; their sum is the mass of the outcomes."""
    net = _net(graph, weights)
    return jnp.exp(net.logits(h, words) - net.log_total(h)[:, None])


@partial(jax.jit, static_argnums=0)
def some_logits(graph: Any, weights: Any, h: Float[Array, " d"], ids: Int[Array, " id"]) -> Float[Array, " id"]:
    """Logits of some tokens."""
    return _net(graph, weights).logits(h, ids)
