"""How programs are fitted, checked and compared; names no family."""

from inference.fit import Fit as Fit, fit as fit, load as load, resume as resume
from inference.runtime import tune_runtime as tune_runtime
