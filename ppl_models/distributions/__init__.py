"""NumPyro distributions that several families share, and the pixel likelihoods that make their tables comparable."""

from ppl_models.distributions.diffusion_prior import DiffusionPrior as DiffusionPrior, Moments as Moments
from ppl_models.distributions.mixture import MixtureOfGaussians as MixtureOfGaussians
from ppl_models.distributions.ode import (
    RK4 as RK4,
    Adaptive as Adaptive,
    Exact as Exact,
    Hutchinson as Hutchinson,
)
from ppl_models.distributions.pixels import (
    Bernoulli as Bernoulli,
    GreyBernoulli as GreyBernoulli,
    Normal as Normal,
)
from ppl_models.distributions.predictions import (
    Denoiser as Denoiser,
    Noise as Noise,
    Score as Score,
    Velocity as Velocity,
)
from ppl_models.distributions.schedules import (
    EDM as EDM,
    Trigonometric as Trigonometric,
    VariancePreserving as VariancePreserving,
)
