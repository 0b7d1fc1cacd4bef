"""Whether to believe a fitted model: posterior draws, held-out evidence, k-hat, calibration, diagnosis, comparison.

Numbers and tables only: pandas and DataTrees come out.  What changes parameters is in :mod:`inference.fitting`, what
draws a figure or writes a page in :mod:`inference.reporting`.
"""

from inference.checking.calibration import Calibration as Calibration, calibrate as calibrate
from inference.checking.classical import baselines as baselines
from inference.checking.comparison import compare as compare, stacking_weights as stacking_weights
from inference.checking.diagnostics import diagnose as diagnose
from inference.checking.gap_decomposition import gap_summary as gap_summary, inference_gaps as inference_gaps
from inference.checking.imputation import Imputation as Imputation, impute as impute
from inference.checking.log_evidence import (
    bits_per_dim as bits_per_dim,
    evidence as evidence,
    exact_table as exact_table,
    read_evidence as read_evidence,
    save_evidence as save_evidence,
)
from inference.checking.posterior_tree import posterior as posterior, save_posterior as save_posterior
from inference.checking.refinement import Refined as Refined, refine as refine
from inference.checking.sandwich import Sandwich as Sandwich, sandwich as sandwich
from inference.checking.tree_store import open_posterior as open_posterior
