"""An amortised posterior as an effect handler, and the ordinary NumPyro guide derived from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpyro.distributions import Distribution, MaskedDistribution
from numpyro.handlers import block
from numpyro.primitives import Messenger, apply_stack

Posterior = Callable[[str, Any], Distribution]
_WHICH = "which_posterior"


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
        if msg["type"] == _WHICH and msg["value"] is None:
            msg["value"] = self.q
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


def current_posterior() -> Posterior | None:
    """The posterior q that the innermost :class:`amortise` around a running model draws from; ``None`` without one.

    For a model whose levels run in a loop, which has to know before the first of their sites what they are drawn from.
    A handler between the model and ``amortise`` may still give a site another law or a value.
    """
    # Without a name: handlers that record or replace sites let it pass, as they do NumPyro's own helper messages.
    message = {"type": _WHICH, "fn": lambda: None, "args": (), "kwargs": {}, "value": None, "infer": {}}
    return apply_stack(message)["value"]


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
