"""Nested function spaces: Haar pyramids on cell trees and images, hat functions, and what noise does to their levels.

Pure JAX; arrays carry leading batch axes.  ``README.md`` has the table of symbols.
"""

from ppl_models.function_spaces.cells import INTERVAL, SQUARE, TRIANGLE, CellTree, from_square, to_square
from ppl_models.function_spaces.haar import Pyramid, analyse, embed, haar_matrix, project, synthesise
from ppl_models.function_spaces.hats import coons, hat_analysis, hat_synthesis, hats, line
from ppl_models.function_spaces.images import analyse_image, details, project_image, synthesise_image
from ppl_models.function_spaces.spectrum import (
    conditional_loss,
    crossing,
    level_energies,
    level_snr,
    pooled_noise,
    slope,
)  # fmt: skip

__all__ = [
    "INTERVAL", "SQUARE", "TRIANGLE", "CellTree", "Pyramid", "analyse", "analyse_image", "conditional_loss", "coons",
    "crossing", "details", "embed", "from_square", "haar_matrix", "hat_analysis", "hat_synthesis", "hats",
    "level_energies", "level_snr", "line", "pooled_noise", "project", "project_image", "slope", "synthesise",
    "synthesise_image", "to_square",
]  # fmt: skip
