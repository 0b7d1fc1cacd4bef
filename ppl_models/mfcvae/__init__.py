"""Multi-facet clustering VAE: several partitions of one data set at once, each with its own latent and mixture."""

from ppl_models.mfcvae.spec import (
    MFCVAE as MFCVAE,
    MLP as MLP,
    PRESETS as PRESETS,
    Bernoulli as Bernoulli,
    Concat as Concat,
    Facet as Facet,
    GatedAdd as GatedAdd,
    GreyBernoulli as GreyBernoulli,
    MLPLadder as MLPLadder,
    NormAdd as NormAdd,
    Normal as Normal,
)
from ppl_models.program import register

register(
    "mfcvae",
    MFCVAE,
    presets=PRESETS,
    paper="Falck et al., Multi-Facet Clustering Variational Autoencoders, NeurIPS 2021, arXiv 2106.05241",
)
