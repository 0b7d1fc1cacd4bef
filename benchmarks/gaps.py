"""Do approximation and amortisation gap add up to the total against references that share nothing with them?

The parts come from ``inference.inference_gaps``, whose log p(x) is importance sampling from refined posteriors.  The
total comes from elsewhere: log p(x) by NUTS and bridge sampling on a few data and by annealed importance sampling on
all, minus an ELBO from other draws.  A family's claim is the mean difference over data in its own standard errors; two
of them should miss 2 by chance in twenty.  Every family with latents is there: two MFCVAEs, an HVAE, a set encoder with
a Normal posterior (whose family holds the exact one), and both examples.
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.harness import Claim
from inference import evidence, fit, gap_summary, inference_gaps, nuts_evidence
from inference.cli.quickstart import TWO, specs
from ppl_models import datasets
from ppl_models.program import resolve, take

DATA, FEW, PARTICLES = 24, 3, 512


class Case(NamedTuple):
    """A fit to take apart: words, the spec, updates, and the data where they are not the digits."""

    words: str
    spec: Callable[[], Any]
    steps: int
    own: bool = False


def example(name: str) -> Any:
    """The module of ``examples/NAME.py``, registered."""
    path = Path(__file__).resolve().parent.parent / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


CASES = {
    "in_context": Case("in_context:gaussian_guide", lambda: resolve("in_context:gaussian_guide"), 1500, own=True),
    "noisy_regression": Case(
        "regression with a fork", lambda: example("noisy_regression").PRESETS["fork"], 3000, own=True
    ),
    "poisson_factor": Case("Poisson factors of digits", lambda: example("poisson_factor").PRESETS["digits"], 2000),
    "mfcvae": Case("mfcvae, two facets, black and white digits", lambda: specs(False)[TWO], 2000),
    "hvae": Case("hvae:digits, three levels", lambda: resolve("hvae:digits"), 2000),
    "mfcvae_categorical": Case("mfcvae:digits, categorical", lambda: resolve("mfcvae:digits"), 2000),
}


def measure(case: Case, quick: bool) -> dict[str, Any]:
    """The table of gaps of one fit, and how its sum compares with totals from elsewhere."""
    program, key = case.spec().build(jax.random.key(0)), jax.random.key(5)
    data, few, particles = (4, 2, 128) if quick else (DATA, FEW, PARTICLES)
    if case.own:
        train: Any = program.observation.sampler
        test = jax.tree.map(np.asarray, train(jax.random.key(99), data))
    else:
        train, test = datasets.load("digits", "train")[0], datasets.load("digits", "test")[0][:data]
    steps = 60 if quick else case.steps
    fitted = fit(
        program, train, steps=steps, batch_size=128, learning_rate=2e-3, average=0.99, key=jax.random.key(0),
        progress=False,
    )  # fmt: skip
    begun = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rows that are not trusted are counted below
        elbo = evidence(fitted, test, key=key, particles=particles, refine="none", progress=False)
        table = inference_gaps(
            fitted, test, key=key, reference=elbo if quick else None, particles=particles, steps=20 if quick else 200,
            progress=False,
        )  # fmt: skip
        seconds = time.perf_counter() - begun
        references = {
            "nuts": nuts_evidence(
                fitted, take(test, slice(0, few)), key=key, draws=100 if quick else 600, warmup=100 if quick else 300,
                progress=False,
            ),
        }  # fmt: skip
        if not quick:
            references["ais"] = evidence(fitted, test, key=key, method="ais", progress=False)
    summary = gap_summary({"fit": table}).iloc[0].to_dict()
    found: dict[str, Any] = {"summary": summary, "seconds": seconds, "size": len(table), "steps": steps}
    for name, reference in references.items():
        found[name] = compared(table.iloc[: len(reference)], elbo.iloc[: len(reference)], reference, particles)
    return found


def compared(table: Any, elbo: Any, reference: Any, particles: int) -> dict[str, Any]:
    """Sum of the parts against ``reference - elbo`` over the data that both believe."""
    total = (reference["log_px"] - elbo["elbo"]).to_numpy(float)
    # sd of a log weight from the guide: its ELBO and that of the table are of as many draws.
    elbo_se = np.sqrt(np.maximum(table["total_se"] ** 2 - table["se"] ** 2, 0)).to_numpy(float)
    difference = (table["approximation"] + table["amortisation"]).to_numpy(float) - total
    error = np.sqrt(table["total_se"].to_numpy(float) ** 2 + reference["se"].to_numpy(float) ** 2 + elbo_se**2)
    keep = table["trusted"].to_numpy(bool) & np.isfinite(difference)
    if "ais" in set(reference["estimator"]):
        keep &= reference["khat"].to_numpy(float) <= 0.7
    if not keep.any():
        return {"data": 0, "z": float("nan"), "difference": float("nan")}
    return {
        "data": int(keep.sum()), "left_out": int((~keep).sum()),
        "difference": float(difference[keep].mean()),
        "se": float(np.sqrt((error[keep] ** 2).sum()) / keep.sum()),
        "z": float(difference[keep].mean() / (np.sqrt((error[keep] ** 2).sum()) / keep.sum())),
        "within_2_se": float((np.abs(difference[keep]) <= 2 * error[keep]).mean()),
        "log_px_se": float(reference["se"][keep].mean()),
    }  # fmt: skip


def run(quick: bool) -> Iterator[Claim]:
    """Two claims a family: the sum against NUTS, and against AIS, with the parts beside them."""
    for name, case in CASES.items():
        if quick and name != "noisy_regression":
            continue
        found = measure(case, quick)
        s = found["summary"]
        parts = (
            f"approximation {s['approximation']:.2f} +- {s['approximation_se']:.2f}, amortisation "
            f"{s['amortisation']:.2f} +- {s['amortisation_se']:.2f} nats, {s['untrusted']} of {found['size']} data "
            "without a log p(x) to believe"
        )
        for how, words in (("nuts", "NUTS and bridge sampling"), ("ais", "annealed importance sampling")):
            if how not in found:
                continue
            with_ = found[how]
            yield Claim(
                f"{name}_{how}", f"{case.words}: |approximation + amortisation - total|, the total by {words}",
                abs(with_["z"]), "standard errors", target="<= 2", seeds=(0,), reference=parts, detail=found,
                if_missed=f"{with_['difference']:+.3f} nats on {with_['data']} data",
            )  # fmt: skip
