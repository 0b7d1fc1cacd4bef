"""Surrogates of operators between fields, and of masks: U-Nets and Fourier operators with a predictive law."""

from ppl_models.program import register
from ppl_models.surrogate.bars import PCARegression, Persistence
from ppl_models.surrogate.conformal import Conformal, conformal, coverage, interval
from ppl_models.surrogate.networks import FNO, UNet
from ppl_models.surrogate.program import program
from ppl_models.surrogate.scores import dice, mse, relative_l2, reliability, soft_dice
from ppl_models.surrogate.spec import PRESETS, Bernoulli, Normal, Surrogate
from ppl_models.surrogate.use import Prediction, Rollout, predict, rollout

__all__ = [
    "FNO", "PRESETS", "Bernoulli", "Conformal", "Normal", "PCARegression", "Persistence", "Prediction", "Rollout",
    "Surrogate", "UNet", "conformal", "coverage", "dice", "interval", "mse", "predict", "relative_l2", "reliability",
    "rollout", "soft_dice",
]  # fmt: skip

register(
    "surrogate",
    Surrogate,
    build=program,
    presets=PRESETS,
    paper="Williams et al., A Unified Framework for U-Net Design and Analysis, NeurIPS 2023, arXiv 2305.19638",
)
