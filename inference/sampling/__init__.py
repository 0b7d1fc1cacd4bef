"""Samplers for diffusion models, as pure functions of a denoiser, a schedule and a time grid; and conditional ones."""

from inference.sampling.ancestral import ancestral, ancestral_kernel
from inference.sampling.calibrated import calibration_ranks
from inference.sampling.condition import METHODS, condition
from inference.sampling.deterministic import ddim, ddim_step, dpm_solver_2m, heun
from inference.sampling.draw import SAMPLERS, draw
from inference.sampling.euler_maruyama import euler_maruyama, reverse_sde
from inference.sampling.guided import Guided
from inference.sampling.protocols import Denoise, Sampler, Schedule, time_grid

__all__ = [
    "METHODS", "SAMPLERS", "Denoise", "Guided", "Sampler", "Schedule", "ancestral", "ancestral_kernel",
    "calibration_ranks", "condition", "ddim", "ddim_step", "dpm_solver_2m", "draw", "euler_maruyama", "heun",
    "reverse_sde", "time_grid",
]  # fmt: skip
