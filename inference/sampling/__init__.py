"""Samplers for diffusion models, as pure functions of a denoiser, a schedule and a time grid."""

from inference.sampling.ancestral import ancestral as ancestral, ancestral_kernel as ancestral_kernel
from inference.sampling.deterministic import ddim_step as ddim_step, heun as heun
from inference.sampling.protocols import Denoise as Denoise, Schedule as Schedule, time_grid as time_grid
