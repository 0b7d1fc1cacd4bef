"""NumPyro distributions that several families share, and the pixel likelihoods that make their tables comparable."""

from ppl_models.distributions.columns import Columns
from ppl_models.distributions.conditional_flow import ConditionalFlow, ShapedGaussian
from ppl_models.distributions.denoising_bound import DenoisingBound
from ppl_models.distributions.diffusion_prior import DiffusionPrior, Moments
from ppl_models.distributions.library_counts import Counts
from ppl_models.distributions.library_laws import MultinomialLibrary, NegativeBinomialLibrary
from ppl_models.distributions.logistic_mixture import DiscretisedLogistics, LogisticMixture
from ppl_models.distributions.mixture import MeanFieldMixture, MixtureOfGaussians, SampledMixture
from ppl_models.distributions.ode import RK4, Adaptive, Exact, Hutchinson
from ppl_models.distributions.other_schedules import SCHEDULES, Cosine, FlowMatching, VarianceExploding
from ppl_models.distributions.parametrisations import PREDICTIONS, Flow, Preconditioned, convert, preconditioning
from ppl_models.distributions.path_bound import path_bound
from ppl_models.distributions.pixels import Bernoulli, Categorical, GreyBernoulli, GreyLevels, Normal
from ppl_models.distributions.predictions import Denoiser, Noise, Score, Velocity
from ppl_models.distributions.row_law import RowLaw
from ppl_models.distributions.schedules import EDM, Trigonometric, VariancePreserving
from ppl_models.distributions.stated import Stated, log_prob_within

__all__ = [
    "SampledMixture",
    "MeanFieldMixture",
    "GreyLevels",
    "Categorical",
    "EDM",
    "RK4",
    "Adaptive",
    "Bernoulli",
    "Columns",
    "ConditionalFlow",
    "Counts",
    "Denoiser",
    "DenoisingBound",
    "DiffusionPrior",
    "DiscretisedLogistics",
    "Exact",
    "GreyBernoulli",
    "Hutchinson",
    "LogisticMixture",
    "MixtureOfGaussians",
    "Moments",
    "MultinomialLibrary",
    "NegativeBinomialLibrary",
    "Noise",
    "Normal",
    "RowLaw",
    "PREDICTIONS",
    "SCHEDULES",
    "Cosine",
    "Flow",
    "FlowMatching",
    "Preconditioned",
    "VarianceExploding",
    "convert",
    "Stated",
    "log_prob_within",
    "path_bound",
    "preconditioning",
    "Score",
    "ShapedGaussian",
    "Trigonometric",
    "VariancePreserving",
    "Velocity",
]
