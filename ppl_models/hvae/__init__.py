"""Hierarchical VAE: very deep pyramids of latent images, each level a sample site that reads the state above it."""

from ppl_models.distributions import Bernoulli, Categorical, Columns, LogisticMixture, Normal
from ppl_models.hvae.partly_seen import partly_seen
from ppl_models.hvae.program import program
from ppl_models.hvae.spec import HVAE, PRESETS, finer_steps
from ppl_models.program import register

__all__ = [
    "HVAE", "PRESETS", "Bernoulli", "Categorical", "Columns", "LogisticMixture", "Normal", "finer_steps", "partly_seen",
]  # fmt: skip

register(
    "hvae",
    HVAE,
    build=program,
    presets=PRESETS,
    paper="Child, Very Deep VAEs, ICLR 2021, arXiv 2011.10650; Falck et al., A Multi-Resolution Framework for U-Nets "
    "with Applications to Hierarchical VAEs, NeurIPS 2022, arXiv 2301.08187",
)
