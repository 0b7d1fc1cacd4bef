"""How programs are fitted, checked and compared; names no family."""

from inference.compare import compare as compare, stacking_weights as stacking_weights
from inference.diagnostics import diagnose as diagnose
from inference.evidence import (
    bits_per_dim as bits_per_dim,
    evidence as evidence,
    read_evidence as read_evidence,
    save_evidence as save_evidence,
)
from inference.fit import Fit as Fit, fit as fit, load as load, resume as resume
from inference.posterior import posterior as posterior, save_posterior as save_posterior
from inference.report import compare_report as compare_report, report as report
from inference.runtime import tune_runtime as tune_runtime

__distribution__ = "ppl-models"  # ppl_models/_clash.py tells this package from a stranger of the same name by this line
