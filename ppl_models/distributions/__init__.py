"""NumPyro distributions that several families share, and what they are made of."""

from ppl_models.distributions.diffusion_prior import DiffusionPrior as DiffusionPrior
from ppl_models.distributions.diffusion_prior import Moments as Moments
from ppl_models.distributions.ode import RK4 as RK4
from ppl_models.distributions.ode import Adaptive as Adaptive
from ppl_models.distributions.ode import Exact as Exact
from ppl_models.distributions.ode import Hutchinson as Hutchinson
from ppl_models.distributions.predictions import Denoiser as Denoiser
from ppl_models.distributions.predictions import Noise as Noise
from ppl_models.distributions.predictions import Score as Score
from ppl_models.distributions.predictions import Velocity as Velocity
from ppl_models.distributions.schedules import EDM as EDM
from ppl_models.distributions.schedules import Trigonometric as Trigonometric
from ppl_models.distributions.schedules import VariancePreserving as VariancePreserving
