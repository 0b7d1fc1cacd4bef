"""Samplers for diffusion models, as pure functions of a denoiser, a schedule and a time grid."""

from inference.sampling.ancestral import ancestral, ancestral_kernel
from inference.sampling.deterministic import ddim_step, heun
from inference.sampling.protocols import Denoise, Schedule, time_grid

__all__ = ["Denoise", "Schedule", "ancestral", "ancestral_kernel", "ddim_step", "heun", "time_grid"]
