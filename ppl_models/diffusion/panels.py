"""Figures of a fitted diffusion model: what it draws, and what it sees in noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from ppl_models.diffusion.by_class import parts
from ppl_models.program import Panel, bind, take

if TYPE_CHECKING:
    from ppl_models.diffusion.spec import Diffusion

COLUMNS = 10
ANGLES = (0.25, 0.5, 0.7, 0.85)
"""Shares of the way from data to noise (phi over pi/2) in the denoising panel."""


def panels(spec: Diffusion, fit: Any, x: Any, tree: Any = None) -> list[Panel]:
    """Samples and denoising rows for images; samples over data for points in a plane.

    Images that the evaluation has drawn already, in ``tree``, are not drawn again: each takes hundreds of calls.
    """
    if len(spec.shape) in (2, 3) and (len(spec.shape) == 2 or spec.shape[2] in (1, 3)):
        return [
            Panel(
                "samples",
                "Fresh draws from the model (upper rows) and data (last row). Good: the draws could be data, differ "
                "from one another, and none repeats a datum.",
                lambda: _draw_samples(spec, fit, x, drawn_before(tree, spec.shape, 4 * COLUMNS)),
            ),
            Panel(
                "denoising",
                "Data (first row), then in pairs: the datum with noise, and the model's estimate of the datum given it "
                "(its posterior mean), from little noise to much. Good: sharp estimates under little noise, which turn "
                "into averages of plausible data, never into artefacts.",
                lambda: _draw_denoising(spec, fit, x),
            ),
        ]
    if spec.shape == (2,):
        return [
            Panel(
                "samples",
                "Data (grey) and fresh draws of the model (blue). Good: the same cloud.",
                lambda: _draw_plane(fit, x),
            )
        ]
    return []


def draw(fit: Any, size: int) -> np.ndarray:
    """``size`` fresh data of the fitted model, on the scale that is scored."""
    seeded = handlers.seed(fit.model, jax.random.key(0))
    return np.asarray(jax.jit(lambda: seeded(size=size))())


def drawn_before(tree: Any, shape: tuple[int, ...], size: int) -> np.ndarray | None:
    """``size`` draws of the model that a posterior tree holds; ``None`` where it has too few."""
    if tree is None or "prior_predictive" not in tree.children:
        return None
    found = tree["prior_predictive"]["x"].values.reshape(-1, *shape)
    return found[:size] if len(found) >= size else None


def denoised(spec: Diffusion, fit: Any, x: Any, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Prepared data with noise at ``angle``, and ``E[x_0 | noisy]``, both on the scale that is scored."""

    @jax.jit
    def both(x: Any) -> Any:
        x, label = parts(x)
        with handlers.substitute(data=dict(fit.params)):
            net = bind("denoiser", fit.program.views.modules["denoiser"])
        x_0 = (x - spec.centre) / spec.scale
        phi = jnp.full(len(x), angle)
        noisy = jnp.cos(angle) * x_0 + jnp.sin(angle) * jax.random.normal(jax.random.key(1), x.shape)
        return spec.centre + spec.scale * noisy, spec.centre + spec.scale * net(
            noisy, phi, *(() if label is None else (label,))
        )

    noisy, mean = both(x)
    return np.asarray(noisy), np.asarray(mean)


def _prepared(fit: Any, x: Any, n: int) -> Any:
    rows = jax.tree.map(jnp.asarray, take(x, slice(n)))
    return fit.program.observation.prepare(rows, jax.random.key(2), False)


def _mosaic(rows: list[np.ndarray], labels: list[str], title: str, limits: tuple[float, float]) -> Any:
    from matplotlib.figure import Figure

    count = max(len(row) for row in rows)
    figure = Figure(figsize=(1.6 + 0.62 * count, 0.6 + 0.62 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), count, squeeze=False)
    for r, row in enumerate(rows):
        for c in range(count):
            axes[r, c].set_xticks([])
            axes[r, c].set_yticks([])
            axes[r, c].spines[:].set_visible(False)
            if c < len(row):
                image = np.clip((row[c] - limits[0]) / (limits[1] - limits[0]), 0, 1)
                axes[r, c].imshow(image, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axes[r, 0].set_ylabel(labels[r], rotation=0, ha="right", va="center", fontsize=8)
    figure.suptitle(title, fontsize=10, x=0.02, ha="left")
    return figure


def _limits(spec: Diffusion, data: np.ndarray) -> tuple[float, float]:
    return (0.0, 1.0) if spec.levels is not None else (float(data.min()), float(data.max()))


def _draw_samples(spec: Diffusion, fit: Any, x: Any, drawn: np.ndarray | None) -> Any:
    data = np.asarray(parts(_prepared(fit, x, COLUMNS))[0])
    drawn = draw(fit, 4 * COLUMNS) if drawn is None else drawn
    drawn = drawn.reshape(4, COLUMNS, *spec.shape)
    labels = ["model", "", "", "", "data"]
    return _mosaic([*drawn, data], labels, "draws of the model by its ODE, and data", _limits(spec, data))


def _draw_denoising(spec: Diffusion, fit: Any, x: Any) -> Any:
    prepared = _prepared(fit, x, COLUMNS)
    data = np.asarray(parts(prepared)[0])
    rows, labels = [data], ["data"]
    for share in ANGLES:
        angle = share * np.pi / 2
        noisy, mean = denoised(spec, fit, prepared, angle)
        rows += [noisy, mean]
        labels += [f"noise/signal {np.tan(angle):.2g}", "estimate"]
    return _mosaic(rows, labels, "what the model sees in noise", _limits(spec, data))


def _draw_plane(fit: Any, x: Any) -> Any:
    from matplotlib.figure import Figure

    data = np.asarray(parts(x)[0])[:2000]
    drawn = draw(fit, len(data))
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(data[:, 0], data[:, 1], s=6, color="0.6", label="data")
    axes.scatter(drawn[:, 0], drawn[:, 1], s=6, color="tab:blue", alpha=0.5, label="model")
    axes.legend()
    axes.set_aspect("equal")
    return figure
