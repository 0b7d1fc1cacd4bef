"""Multi-facet clustering VAE: several partitions of one data set at once, each with its own latent and mixture."""

from ppl_models.distributions import Bernoulli, Categorical, Columns, Counts, GreyBernoulli, LogisticMixture, Normal
from ppl_models.mfcvae.explicit import explicit
from ppl_models.mfcvae.networks import MLP, Additive, Concat, ConvLadder, GatedAdd, Layers, MLPLadder, NormAdd
from ppl_models.mfcvae.observed import pack
from ppl_models.mfcvae.program import program
from ppl_models.mfcvae.progressive import Progressive
from ppl_models.mfcvae.spec import MFCVAE, PRESETS, Dirichlet, Facet
from ppl_models.mfcvae.use import assign, assignment_table, decode, encode, sample, swap, top_examples, traverse
from ppl_models.program import register

__all__ = [
    "explicit",
    "Additive",
    "Columns",
    "Counts",
    "ConvLadder",
    "pack",
    "Progressive",
    "Layers",
    "Dirichlet",
    "Categorical",
    "MFCVAE",
    "MLP",
    "PRESETS",
    "Bernoulli",
    "Concat",
    "Facet",
    "GatedAdd",
    "GreyBernoulli",
    "LogisticMixture",
    "MLPLadder",
    "NormAdd",
    "Normal",
    "assign",
    "assignment_table",
    "decode",
    "encode",
    "sample",
    "swap",
    "top_examples",
    "traverse",
]

register(
    "mfcvae",
    MFCVAE,
    build=program,
    presets=PRESETS,
    paper="Falck et al., Multi-Facet Clustering Variational Autoencoders, NeurIPS 2021, arXiv 2106.05241",
)
