"""NumPyro distributions that several families share, and the pixel likelihoods that make their tables comparable."""

from ppl_models.distributions.mixture import MixtureOfGaussians as MixtureOfGaussians
from ppl_models.distributions.pixels import (
    Bernoulli as Bernoulli,
    GreyBernoulli as GreyBernoulli,
    Normal as Normal,
)
