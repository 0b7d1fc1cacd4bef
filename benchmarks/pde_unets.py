"""Do learned encoders matter for operators of PDEs, and do surrogates know how wrong they are?

Three U-Nets of the paper's Table 1 (Williams et al., arXiv 2305.19638) at small width, each under one recipe that was
chosen beforehand: Residual U-Net, Multi-ResNet (no parameter in the encoder), Multi-ResNet with the saved parameters in
the decoder.  Beside them the bars: persistence (of Navier-Stokes), the mean field, regression between principal
components, and a Fourier neural operator of the same number of parameters.  ``y ~ Normal(U(x), sigma)``, sigma a number
a pixel.

Darcy: the generated 32x32 fields as means over 2x2 pixels, 16x16; 800 to train, 200 to calibrate, 200 to test.
Navier-Stokes (``pde_flows``): 32x32, viscosity 1e-3, forcing drawn for each trajectory; one step of unit time is
learned, from 160 trajectories of ten; 100 to calibrate, 100 to test; roll-outs start at t = 0, convolutions are
periodic.  Intervals are split conformal, each step calibrated on its own.  Masks: noisy pictures of an ellipse or a
polygon.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from scipy import stats
from scipy.ndimage import gaussian_filter

from benchmarks.harness import Claim
from inference import fit
from ppl_models import datasets
from ppl_models.surrogate import (
    FNO,
    PRESETS,
    PCARegression,
    Persistence,
    Prediction,
    Surrogate,
    UNet,
    conformal,
    coverage,
    dice,
    mse,
    predict,
    relative_l2,
    reliability,
    soft_dice,
)  # fmt: skip

SEEDS, LEVEL, ROLLED = (0, 1, 2), 0.9, 5
Fields = dict[str, np.ndarray]
Predict = Callable[[np.ndarray], Prediction]


class Task(NamedTuple):
    """Data to fit, to calibrate and to test; where they are steps of trajectories, ``frames`` of each."""

    spec: Surrogate
    train: Fields
    calibration: Fields
    test: Fields
    networks: Mapping[str, Any]
    steps: int
    frames: int = 0


def recipe(steps: int) -> optax.GradientTransformation:
    """Adam at 2e-3, warmed up and annealed to nothing."""
    return optax.adam(optax.warmup_cosine_decay_schedule(0.0, 2e-3, max(1, steps // 20), steps, 1e-5))


def train(task: Task, network: Any, seed: int) -> Any:
    """One fit; the weights are averaged over the last steps."""
    spec = dataclasses.replace(task.spec, network=network)
    key = jax.random.key(seed)
    return fit(
        spec.build(key), task.train, steps=task.steps, batch_size=16, key=key, optimizer=recipe(task.steps),
        average=0.98, progress=False,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- data
def networks(levels: int, periodic: bool, quick: bool) -> dict[str, Any]:
    """The three U-Nets, and a Fourier operator of about the parameters of the first."""
    if quick:
        return {"residual": UNet(2, 2)}
    width, modes = (16, 6) if levels == 4 else (12, 4)
    edge: Any = "periodic" if periodic else "zero"
    return {
        "residual": UNet(8, levels, boundary=edge),
        "without": UNet(8, levels, "pool", boundary=edge),
        "with": UNet(8, levels, "pool", n_extra=3, boundary=edge),
        "fno": FNO(width, modes, padding=0 if periodic else 3),
    }


def darcy(quick: bool) -> Task:
    """Darcy flow on 16x16 pixels."""
    n, test, steps = (60, 20, 10) if quick else (1000, 200, 600)

    def pooled(split: str, n: int) -> Fields:
        found, _ = datasets.load("darcy", split, n=n)
        return {k: v.reshape(n, 16, 2, 16, 2, 1).mean((2, 4), dtype=np.float32) for k, v in found.items()}

    data = pooled("train", n)
    cut = n - n // 5
    parts = [{k: v[rows] for k, v in data.items()} for rows in (slice(cut), slice(cut, None))]
    spec = Surrogate({"x": (16, 16, 1), "y": (16, 16, 1)}, FNO())
    return Task(spec, parts[0], parts[1], pooled("test", test), networks(3, False, quick), steps)


def navier_stokes(quick: bool) -> Task:
    """Navier-Stokes on 32x32: one step of unit time."""
    train, held, test, steps = (10, 10, 10, 5) if quick else (160, 100, 100, 500)

    def rows(split: str, start: int, count: int) -> Fields:
        found, _ = datasets.load("navier_stokes", split, n=10 * (start + count))
        return {k: v[10 * start :] for k, v in found.items()}

    parts = rows("train", 0, train), rows("train", train, held), rows("test", 0, test)
    return Task(PRESETS["navier_stokes"], *parts, networks(4, True, quick), steps, 10)


# ------------------------------------------------------------------------------------------------ measurement
def bars(task: Task) -> dict[str, Predict]:
    """The classical models of a task, fitted to its training data."""
    x, y = task.train["x"], task.train["y"]
    mean, sd = y.mean(0), y.std(0)
    held = task.calibration
    found: dict[str, Predict] = {
        "mean field": lambda x: Prediction(np.broadcast_to(mean, (len(x), *mean.shape)), sd),
        "PCA regression": PCARegression.fit(x, y, held["x"], held["y"]).predict,
    }
    return {"persistence": Persistence.fit(x, y).predict, **found} if task.frames else found


def path(predicted: Predict, x: np.ndarray, channels: int, steps: int) -> Prediction:
    """Predictions fed back: mean and one-step sd (n, steps, H, W, C)."""
    means, sds = [], []
    for _ in range(steps):
        found = predicted(x)
        means.append(found.mean)
        sds.append(np.broadcast_to(found.sd, found.mean.shape))
        x = np.concatenate([found.mean, x[..., channels:]], -1).astype(np.float32)
    return Prediction(np.stack(means, 1), np.stack(sds, 1))


def measured(task: Task, predicted: Predict) -> dict[str, Any]:
    """Errors on the test data, and coverage of nominal and of calibrated intervals, step by step if there are any."""
    test, held = task.test, task.calibration
    one = predicted(test["x"])
    found: dict[str, Any] = {
        "mse": float(mse(test["y"], one.mean).mean()),
        "relative_l2": float(relative_l2(test["y"], one.mean).mean()),
    }
    if not task.frames:
        before = predicted(held["x"])
        sd, sd_test = (np.broadcast_to(p.sd, p.mean.shape) for p in (before, one))
        band = conformal(held["y"], before.mean, sd, level=LEVEL)
        found["coverage_nominal"] = [float(coverage(test["y"], one.mean, sd_test, LEVEL).mean())]
        found["coverage"] = [float(coverage(test["y"], one.mean, sd_test, band).mean())]
        return found

    def flows(data: Fields) -> tuple[np.ndarray, np.ndarray]:
        y = data["y"].reshape(-1, task.frames, *data["y"].shape[1:])
        return data["x"][:: task.frames], y[:, :ROLLED]

    (x, y), (x_held, y_held) = flows(test), flows(held)
    C = y.shape[-1]
    rolled, before = path(predicted, x, C, ROLLED), path(predicted, x_held, C, ROLLED)
    found["rollout_mse"] = float(((rolled.mean - y) ** 2).mean((0, 2, 3, 4)).sum())
    found["relative_l2_by_step"] = [float(relative_l2(y[:, t], rolled.mean[:, t]).mean()) for t in range(ROLLED)]
    found["coverage_nominal"], found["coverage"], found["factor"] = [], [], []
    for t in range(ROLLED):
        band = conformal(y_held[:, t], before.mean[:, t], before.sd[:, t], level=LEVEL)
        at = y[:, t], rolled.mean[:, t], rolled.sd[:, t]
        found["factor"].append(float(band.factor))
        found["coverage"].append(float(coverage(*at, band).mean()))
        found["coverage_nominal"].append(float(coverage(*at, LEVEL).mean()))
    return found


def ratio(found: Mapping[str, list[dict[str, Any]]], a: str, b: str, what: str) -> tuple[float, tuple[float, float]]:
    """Ratio of the errors of a and b, geometric mean over seeds, and its 95 % interval by Student's t of the logs."""
    logs = np.log([one[what] for one in found[a]]) - np.log([two[what] for two in found[b]])
    if len(logs) < 2:
        return float(np.exp(logs.mean())), (math.nan, math.nan)
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    return float(np.exp(logs.mean())), (float(np.exp(logs.mean() - half)), float(np.exp(logs.mean() + half)))


def claims(name: str, words: str, task: Task, quick: bool) -> Iterator[Claim]:
    """Fit, measure, and compare."""
    seeds = SEEDS[:1] if quick else SEEDS
    classical = {bar: measured(task, predicted) for bar, predicted in bars(task).items()}
    found: dict[str, list[dict[str, Any]]] = {}
    sizes = {}
    for kind, network in task.networks.items():
        for seed in seeds:
            fitted = train(task, network, seed)
            sizes[kind] = fitted.program.parameter_count
            one = measured(task, lambda x, fitted=fitted: predict(fitted, x))  # type: ignore[misc]
            found.setdefault(kind, []).append(one | {"seconds": float(fitted.info["seconds"])})
    what = "rollout_mse" if task.frames else "relative_l2"
    spoken = f"{ROLLED}-step roll-out MSE" if task.frames else "relative L2"
    mean = {kind: float(np.mean([one[what] for one in rows])) for kind, rows in found.items()}
    nets = {kind: value for kind, value in mean.items() if kind != "fno"}
    best = min(nets, key=nets.__getitem__)
    bar = {b: row[what] for b, row in classical.items()}
    if "fno" in mean:
        bar["Fourier operator"] = mean["fno"]
    least = min(bar, key=bar.__getitem__)
    detail = {"parameters": sizes, "steps": task.steps, "networks": found, "bars": classical}
    listed = ", ".join(f"{b} {value:.3g}" for b, value in bar.items())
    yield Claim(
        f"{name}_bars", f"{words}: {spoken} of the best U-Net ({best}) over that of the best bar ({least})",
        nets[best] / bar[least], "ratio", target="< 1", seeds=seeds, detail=detail,
        reference=", ".join(f"{kind} {value:.3g}" for kind, value in nets.items()) + "; " + listed,
        if_missed=f"{least} is ahead at this width and budget",
    )  # fmt: skip
    if len(nets) == 3:
        named = {"with": "Multi-ResNet with moved parameters", "residual": "Residual U-Net", "without": "Multi-ResNet"}
        for short, a, b in (("saved", "with", "residual"), ("encoder", "residual", "without")):
            value, (low, high) = ratio(found, a, b, "relative_l2")
            yield Claim(
                f"{name}_{short}", f"{words}: one-step relative L2, {named[a]} over {named[b]}",
                value, "ratio", target="< 1", seeds=seeds, detail={"interval_95": [low, high]},
                reference=f"95 % interval {low:.2f} to {high:.2f} over {len(seeds)} seeds; Table 1 orders them so",
                if_missed="the order of Table 1 is not found here: "
                + ("the interval excludes 1" if low > 1 else "the interval holds 1"),
            )  # fmt: skip
    steps = np.mean([one["coverage"] for one in found[best]], axis=0)
    nominal = np.mean([one["coverage_nominal"] for one in found[best]], axis=0)
    plain = ", ".join(f"{value:.3f}" for value in nominal)
    for end, value in (("least", steps.min()), ("most", steps.max())):
        yield Claim(
            f"{name}_coverage_{end}", f"{words}: {end} coverage of calibrated 90 % intervals over steps ({best})",
            value, "share", target="0.88 to 0.92", seeds=seeds,
            detail={"by_step": steps.tolist(), "nominal_by_step": nominal.tolist()},
            reference=f"the one-step law uncalibrated, by step: {plain}",
            if_missed="calibration and test sets are small: trajectories differ, and so does the share that they cover",
        )  # fmt: skip
        if not task.frames:
            break


# ------------------------------------------------------------------------------------------------------ masks
def masks(quick: bool) -> Iterator[Claim]:
    """A Bernoulli surrogate of noisy pictures, beside a threshold on smoothed ones."""
    n, test, steps = (120, 40, 10) if quick else (2000, 500, 300)
    data, _ = datasets.load("shape_masks", n=n)
    held, _ = datasets.load("shape_masks", "test", n=test)
    spec = dataclasses.replace(PRESETS["masks"], network=UNet(2, 2)) if quick else PRESETS["masks"]
    task = Task(spec, data, held, held, {}, steps)
    p = predict(train(task, spec.network, 0), held["x"]).mean
    ready = reliability(held["y"], p)

    def smoothed(x: np.ndarray) -> np.ndarray:
        away = x[..., 0] - np.median(x[..., 0], axis=(1, 2), keepdims=True)
        return np.abs(gaussian_filter(away, (0, 1.5, 1.5)))[..., None]

    few = {k: v[:500] for k, v in data.items()}
    grid = np.linspace(0.05, 0.6, 23)
    level = grid[np.argmax([dice(few["y"], smoothed(few["x"]) > t).mean() for t in grid])]
    bar = float(dice(held["y"], smoothed(held["x"]) > level).mean())
    value = float(dice(held["y"], p).mean())
    yield Claim(
        "masks_dice", "noisy shapes 32x32: Dice, Residual U-Net over the best threshold on smoothed pictures",
        value / bar, "ratio", target="> 1", seeds=(0,), reference=f"{value:.3f} against {bar:.3f}",
        detail={"soft_dice": float(soft_dice(held["y"], p).mean()), "dice": value, "bar": bar, "reliability": ready},
    )  # fmt: skip
    yield Claim(
        "masks_ece", "noisy shapes: expected calibration error of the predicted probabilities", float(ready["ece"]),
        "share of pixels", target="<= 0.02", seeds=(0,), if_missed="overfits or underfits at this budget",
    )  # fmt: skip


def run(quick: bool) -> Iterator[Claim]:
    """Masks and Darcy flow; quick: one seed, a few steps of small networks."""
    yield from masks(quick)
    yield from claims("darcy", "Darcy 16x16", darcy(quick), quick)
