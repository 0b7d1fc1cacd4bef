"""How programs are fitted, checked and compared; names no family."""

from inference.fit import Fit as Fit
from inference.fit import fit as fit
from inference.fit import load as load
from inference.fit import resume as resume
from inference.runtime import tune_runtime as tune_runtime

__distribution__ = "ppl-models"  # ppl_models/_clash.py tells this package from a stranger of the same name by this line
