"""How programs are fitted, checked and compared; names no family.

The names below are imported when they are first used, so that ``import inference`` and ``ppl-models --help`` do not
wait for JAX.
"""

from typing import TYPE_CHECKING

from inference._lazy import lazily

if TYPE_CHECKING:
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
    from inference.checking.nuts_evidence import nuts_evidence as nuts_evidence
    from inference.checking.posterior_tree import posterior as posterior, save_posterior as save_posterior
    from inference.checking.refinement import Refined as Refined, refine as refine
    from inference.checking.sampling_checks import sampler_verdict as sampler_verdict
    from inference.checking.sandwich import Sandwich as Sandwich, sandwich as sandwich
    from inference.checking.tree_store import open_posterior as open_posterior
    from inference.clustering import (
        choose as choose,
        clustering_baselines as clustering_baselines,
        scores as scores,
        stability as stability,
    )
    from inference.fitting.autoguides import from_autoguide as from_autoguide
    from inference.fitting.callbacks import Watcher as Watcher
    from inference.fitting.fitted import Fit as Fit, FitInterrupted as FitInterrupted, load as load
    from inference.fitting.forward import forward_kl as forward_kl, simulator as simulator
    from inference.fitting.run import fit as fit, resume as resume
    from inference.fitting.runtime import tune_runtime as tune_runtime
    from inference.fitting.sweeps import Sweep as Sweep, sweep as sweep
    from inference.fitting.trackers import (
        MLflow as MLflow,
        TensorBoard as TensorBoard,
        WeightsAndBiases as WeightsAndBiases,
    )
    from inference.reporting.comparison_page import compare_report as compare_report
    from inference.reporting.live import LivePlot as LivePlot
    from inference.reporting.run_page import report as report
    from inference.reporting.sampling_page import sampler_report as sampler_report

__distribution__ = "ppl-models"  # ppl_models/_clash.py tells this package from a stranger of the same name by this line

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "Calibration": "checking.calibration",
        "Fit": "fitting.fitted",
        "FitInterrupted": "fitting.fitted",
        "LivePlot": "reporting.live",
        "MLflow": "fitting.trackers",
        "TensorBoard": "fitting.trackers",
        "Watcher": "fitting.callbacks",
        "WeightsAndBiases": "fitting.trackers",
        "Refined": "checking.refinement",
        "Imputation": "checking.imputation",
        "Sandwich": "checking.sandwich",
        "Sweep": "fitting.sweeps",
        "baselines": "checking.classical",
        "bits_per_dim": "checking.log_evidence",
        "calibrate": "checking.calibration",
        "choose": "clustering",
        "clustering_baselines": "clustering",
        "compare": "checking.comparison",
        "compare_report": "reporting.comparison_page",
        "diagnose": "checking.diagnostics",
        "evidence": "checking.log_evidence",
        "exact_table": "checking.log_evidence",
        "fit": "fitting.run",
        "forward_kl": "fitting.forward",
        "from_autoguide": "fitting.autoguides",
        "impute": "checking.imputation",
        "gap_summary": "checking.gap_decomposition",
        "inference_gaps": "checking.gap_decomposition",
        "load": "fitting.fitted",
        "nuts_evidence": "checking.nuts_evidence",
        "open_posterior": "checking.tree_store",
        "posterior": "checking.posterior_tree",
        "read_evidence": "checking.log_evidence",
        "refine": "checking.refinement",
        "report": "reporting.run_page",
        "resume": "fitting.run",
        "sampler_report": "reporting.sampling_page",
        "sampler_verdict": "checking.sampling_checks",
        "sandwich": "checking.sandwich",
        "save_evidence": "checking.log_evidence",
        "save_posterior": "checking.posterior_tree",
        "scores": "clustering",
        "simulator": "fitting.forward",
        "stability": "clustering",
        "stacking_weights": "checking.comparison",
        "sweep": "fitting.sweeps",
        "tune_runtime": "fitting.runtime",
    },
)
