"""How parameters come about: objectives, the trainer and its loop, sources of data, checkpoints and the run folder.

What judges a fitted model is not here (:mod:`inference.checking`), nor what shows it (:mod:`inference.reporting`).  The
names below are imported when they are first used: ``tune_runtime`` has to run before JAX starts.
"""

from typing import TYPE_CHECKING

from inference._lazy import lazily

if TYPE_CHECKING:
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

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "Fit": "fitted",
        "FitInterrupted": "fitted",
        "MLflow": "trackers",
        "TensorBoard": "trackers",
        "Watcher": "callbacks",
        "WeightsAndBiases": "trackers",
        "fit": "run",
        "forward_kl": "forward",
        "load": "fitted",
        "resume": "run",
        "simulator": "forward",
        "Sweep": "sweeps",
        "sweep": "sweeps",
        "tune_runtime": "runtime",
    },
)
