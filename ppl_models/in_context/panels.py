"""Figures of the family for the report: the predictor beside the exact Bayes rule of its task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl_models.program import Panel, Predictor

if TYPE_CHECKING:
    from ppl_models.in_context.spec import InContext

SHOWN = 4
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00")


def along(rule: Predictor, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of a rule's predictive before each symbol of each sequence, (n, T)."""
    start = rule.init(jnp.zeros(0, x.dtype))

    def step(state: Any, z: Any) -> tuple[Any, tuple[Any, Any]]:
        fn = rule.predict(state)
        labels = getattr(fn, "is_discrete", False) and getattr(fn.probs, "ndim", 0) > 0
        mean = fn.probs[..., -1] if labels else fn.mean
        sd = jnp.sqrt(mean * (1 - mean)) if labels else jnp.sqrt(fn.variance)
        return rule.update(state, z), (mean, sd)

    mean, sd = jax.jit(jax.vmap(lambda row: jax.lax.scan(step, start, row)[1]))(jnp.asarray(x))
    return np.asarray(mean), np.asarray(sd)


def panels(spec: InContext, fit: Any, x: Any) -> list[Panel]:
    """What the report shows of one fitted predictor on the first held-out sequences."""
    z = np.asarray(x)[:SHOWN].astype("float32" if spec.task.symbols is None else "int32")
    K = spec.task.symbols
    what = "mean" if K is None else f"probability of symbol {K - 1}"

    def learning() -> Any:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        ours, _ = along(fit.program.exact.predictor(fit.params), z)
        exact, _ = along(spec.exact, z)
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        for i, colour in zip(range(len(z)), _COLOURS, strict=False):
            axis.plot(exact[i], color=colour, linewidth=4, alpha=0.3, label="exact Bayes" if i == 0 else None)
            axis.plot(ours[i], color=colour, linewidth=1.4, label="this predictor" if i == 0 else None)
        axis.set_xlabel("symbols seen")
        axis.set_ylabel(f"predictive {what}")
        if K is not None:
            axis.set_ylim(0, 1)
        axis.legend(frameon=False)
        return figure

    return [
        Panel(
            name="learning_in_context",
            caption=f"Predictive {what} of the next symbol while {len(z)} held-out sequences are read, one colour a "
            "sequence: this predictor (thin) over the exact Bayes rule of its task (wide). Apart: not yet Bayesian.",
            draw=learning,
        )
    ]
