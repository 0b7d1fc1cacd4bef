"""Samplers for diffusion models, as pure functions of a denoiser, a schedule and a time grid."""

from inference.sampling.ancestral import ancestral, ancestral_kernel
from inference.sampling.deterministic import ddim, ddim_step, dpm_solver_2m, heun
from inference.sampling.draw import SAMPLERS, draw
from inference.sampling.euler_maruyama import euler_maruyama, reverse_sde
from inference.sampling.protocols import Denoise, Sampler, Schedule, time_grid

__all__ = [
    "SAMPLERS", "Denoise", "Sampler", "Schedule", "ancestral", "ancestral_kernel", "ddim", "ddim_step",
    "dpm_solver_2m", "draw", "euler_maruyama", "heun", "reverse_sde", "time_grid",
]  # fmt: skip
