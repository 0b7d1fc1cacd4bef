"""In-context predictors: exact, learned and deliberately wrong rules for the next symbol of a sequence."""

from ppl_models.in_context.exact import (
    GammaPoisson as GammaPoisson,
    Mixture as Mixture,
    NormalInverseGamma as NormalInverseGamma,
)
from ppl_models.in_context.heads import Bars as Bars
from ppl_models.in_context.particles import Particles as Particles, particles as particles
from ppl_models.in_context.predictors import (
    BetaBernoulli as BetaBernoulli,
    DirichletCategorical as DirichletCategorical,
    NormalNormal as NormalNormal,
    conjugate as conjugate,
)
from ppl_models.in_context.program import program
from ppl_models.in_context.regression import LinearRegression as LinearRegression, Regression as Regression
from ppl_models.in_context.rules import RULES as RULES, parse_rule as parse_rule
from ppl_models.in_context.spec import (
    PRESETS as PRESETS,
    Coin as Coin,
    Dice as Dice,
    Gaussian as Gaussian,
    InContext as InContext,
    PriorFitted as PriorFitted,
    SetEncoder as SetEncoder,
)
from ppl_models.program import register

register(
    "in_context",
    InContext,
    build=program,
    presets=PRESETS,
    paper="Falck, Wang, Holmes, Is In-Context Learning in Large Language Models Bayesian?, ICML 2024, arXiv 2406.00793",
)
