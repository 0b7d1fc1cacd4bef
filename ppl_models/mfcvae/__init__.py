"""Multi-facet clustering VAE: several partitions of one data set at once, each with its own latent and mixture."""

from ppl_models.distributions import Bernoulli, GreyBernoulli, Normal
from ppl_models.mfcvae.networks import MLP, Concat, ConvLadder, GatedAdd, MLPLadder, NormAdd
from ppl_models.mfcvae.spec import MFCVAE, PRESETS, Facet
from ppl_models.program import register

__all__ = [
    "MFCVAE",
    "MLP",
    "PRESETS",
    "Bernoulli",
    "Concat",
    "ConvLadder",
    "Facet",
    "GatedAdd",
    "GreyBernoulli",
    "MLPLadder",
    "NormAdd",
    "Normal",
]

register(
    "mfcvae",
    MFCVAE,
    presets=PRESETS,
    paper="Falck et al., Multi-Facet Clustering Variational Autoencoders, NeurIPS 2021, arXiv 2106.05241",
)
