"""How programs are fitted, checked and compared; names no family.

The names below are imported when they are first used, so that ``import inference`` and ``ppl-models --help`` do not
wait for JAX.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inference.baselines import baselines as baselines
    from inference.calibration import calibrate as calibrate
    from inference.clustering import (
        choose as choose,
        clustering_baselines as clustering_baselines,
        scores as scores,
        stability as stability,
    )
    from inference.compare import compare as compare, stacking_weights as stacking_weights
    from inference.diagnostics import diagnose as diagnose
    from inference.evidence import (
        bits_per_dim as bits_per_dim,
        evidence as evidence,
        exact_table as exact_table,
        read_evidence as read_evidence,
        save_evidence as save_evidence,
    )
    from inference.fit import Fit as Fit, fit as fit, load as load, resume as resume
    from inference.forward_kl import forward_kl as forward_kl, simulator as simulator
    from inference.posterior import posterior as posterior, save_posterior as save_posterior
    from inference.report import compare_report as compare_report, report as report
    from inference.runtime import tune_runtime as tune_runtime

__distribution__ = "ppl-models"  # ppl_models/_clash.py tells this package from a stranger of the same name by this line

_PUBLIC = {
    "baselines": "baselines",
    "calibrate": "calibration",
    "choose": "clustering",
    "clustering_baselines": "clustering",
    "scores": "clustering",
    "stability": "clustering",
    "compare": "compare",
    "stacking_weights": "compare",
    "diagnose": "diagnostics",
    "bits_per_dim": "evidence",
    "evidence": "evidence",
    "exact_table": "evidence",
    "read_evidence": "evidence",
    "save_evidence": "evidence",
    "Fit": "fit",
    "fit": "fit",
    "load": "fit",
    "resume": "fit",
    "forward_kl": "forward_kl",
    "simulator": "forward_kl",
    "posterior": "posterior",
    "save_posterior": "posterior",
    "compare_report": "report",
    "report": "report",
    "tune_runtime": "runtime",
}
"""Public name -> module of this package that defines it."""

__all__ = sorted(_PUBLIC)


class _Package(ModuleType):
    """This package; a name that is both a function and its module (``fit``) always means the function."""

    def __getattr__(self, name: str) -> Any:
        if name not in _PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds a submodule to its package under the function's name.
        if name in _PUBLIC and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_PUBLIC})


sys.modules[__name__].__class__ = _Package
