"""The family's own lines of a diagnosis: is the predictive law of a pixel as wide as its errors?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ppl_models.program import Check
from ppl_models.surrogate.scores import reliability

if TYPE_CHECKING:
    from ppl_models.surrogate.spec import Surrogate

RANGE = (0.04, 0.1)
"""How far the share of pixels within the range of the draws may be from a calibrated law's: warns, fails (ours)."""
ECE = (0.02, 0.05)
"""Expected calibration error of a mask from which the line warns, fails (ours)."""


def checks(spec: Surrogate, tree: Any) -> list[Check]:
    """One line: coverage of real fields by the range of S draws, or the calibration error of a mask."""
    if spec.likelihood.kind == "bernoulli":
        p, y = np.asarray(tree["reconstruction"]["y"]), np.asarray(tree["observed_data"]["y"])
        ece = float(reliability(y, p)["ece"])
        verdict = _verdict(ece, ECE)
        return [
            Check(
                "calibration error of the mask", ece, f"<= {ECE[0]:g} (fails above {ECE[1]:g})", verdict,
                f"Pixels called 1 with probability p are 1 in a share of p of the cases, to {ece:.3f} on average.",
                "" if verdict == "ok" else "Train shorter (validation= keeps the best step), on more data, or smaller.",
            )
        ]  # fmt: skip
    if "posterior_predictive" not in tree.children:
        return []
    draws, y = np.asarray(tree["posterior_predictive"]["y"]), np.asarray(tree["observed_data"]["y"])
    draws = draws.reshape(-1, *y.shape)
    S = len(draws)
    if S < 3:
        return []
    share = float(((draws.min(0) <= y) & (y <= draws.max(0))).mean())
    wanted = (S - 1) / (S + 1)
    verdict = _verdict(abs(share - wanted), RANGE)
    wide = "wider than its errors" if share > wanted else "narrower than its errors"
    return [
        Check(
            "pixels within the range of the draws", share, f"{wanted - RANGE[0]:.2f} to {wanted + RANGE[0]:.2f}",
            verdict,
            f"Of {S} draws of the fitted law and the real value of a pixel, the real value is neither the least nor "
            f"the largest in {share:.1%}; {wanted:.1%} where the law is right"
            + ("." if verdict == "ok" else f": it is {wide}."),
            "" if verdict == "ok" else "A scale that depends on the input (Normal('input')), validation data "
            "against overfitting, or conformal intervals (ppl_models.surrogate.conformal).",
        )
    ]  # fmt: skip


def _verdict(value: float, limits: tuple[float, float]) -> str:
    return "fail" if not value <= limits[1] else "warn" if value > limits[0] else "ok"
