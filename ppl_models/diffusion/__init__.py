"""Diffusion models trained on their denoising bound, scored and sampled by their probability-flow ODE."""

from ppl_models.diffusion.program import (
    bits_per_dim as bits_per_dim,
    bound as bound,
    prior as prior,
    standard_prior as standard_prior,
)
from ppl_models.diffusion.spec import (
    MLP as MLP,
    PRESETS as PRESETS,
    RK4 as RK4,
    Adaptive as Adaptive,
    Diffusion as Diffusion,
    UNet as UNet,
)
from ppl_models.program import register

register(
    "diffusion",
    Diffusion,
    presets=PRESETS,
    paper="Song et al., Score-Based Generative Modeling through SDEs, ICLR 2021, arXiv 2011.13456",
)
