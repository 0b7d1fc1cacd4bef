"""NumPyro distributions that several families share, and the pixel likelihoods that make their tables comparable."""

from ppl_models.distributions.mixture import MixtureOfGaussians
from ppl_models.distributions.pixels import Bernoulli, GreyBernoulli, Normal

__all__ = ["Bernoulli", "GreyBernoulli", "MixtureOfGaussians", "Normal"]
