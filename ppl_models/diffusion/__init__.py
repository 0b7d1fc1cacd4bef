"""Diffusion models trained on their denoising bound, scored and sampled by their probability-flow ODE."""

from ppl_models.diffusion.distilled import Distilled, distil
from ppl_models.diffusion.guided import GuidedUNet
from ppl_models.diffusion.latent import (
    fit_joint_latent_prior,
    fit_latent_prior,
    with_joint_latent_prior,
    with_latent_prior,
)
from ppl_models.diffusion.networks import MLP, UNet
from ppl_models.diffusion.program import bound, prior, program, standard_prior
from ppl_models.diffusion.spec import PRESETS, Diffusion
from ppl_models.diffusion.staged import coarsen, fit_stages, grow, inside, learning, sample_stages, stages
from ppl_models.distributions.ode import RK4, Adaptive
from ppl_models.program import register

__all__ = [
    "MLP", "PRESETS", "RK4", "Adaptive", "Diffusion", "Distilled", "GuidedUNet", "UNet", "bound", "coarsen",
    "distil", "fit_joint_latent_prior", "fit_latent_prior", "fit_stages", "grow", "inside", "learning", "prior",
    "sample_stages", "stages", "standard_prior",
    "with_joint_latent_prior", "with_latent_prior",
]  # fmt: skip

register(
    "diffusion",
    Diffusion,
    build=program,
    presets=PRESETS,
    paper="Song et al., Score-Based Generative Modeling through SDEs, ICLR 2021, arXiv 2011.13456",
)
