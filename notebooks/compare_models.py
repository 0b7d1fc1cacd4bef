# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which model predicts better, and how sure is that?
#
# Two models of the same data are compared by the probability they give to data they have not seen: log p(x), in nats,
# one number for each held-out datum. The difference is taken datum by datum, and its standard error says whether it
# could be luck. This notebook compares five models of binarised handwritten digits: three variational autoencoders,
# and two baselines without latent variables, written here as a family of one's own in one cell.
#
# It also shows the usual mistake: comparing ELBOs.

# %%
# %matplotlib inline
import os
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # progress bars are off in this notebook

import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pandas as pd

import inference
from inference.reporting import figures
from ppl_models.datasets import load
from ppl_models.mfcvae import MFCVAE, MLP, Bernoulli, Facet
from ppl_models.program import Observation, Program, Views, register

SMALL = os.environ.get("PPL_MODELS_SMALL") == "1"  # a quick look: fits too short to conclude anything
STEPS, IMAGES, PARTICLES = (250, 80, 64) if SMALL else (8000, 297, 512)
BLUE, ORANGE, RED, GREY = "#0072B2", "#E69F00", "#D55E00", "#5b6675"
plt.rcParams.update({"figure.dpi": 110, "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlesize": 10})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

x_train, _ = load("digits")
x_test = load("digits", "test")[0][:IMAGES]
pixels = Bernoulli(threshold=7.5 / 16, noise=1.0)  # black or white; in training the threshold is blurred by noise

# %% [markdown]
# ## A family of one's own
#
# A mixture of K images of independent pixels, p(x) = sum_k w_k prod_i Bernoulli(x_i; m_ki). There is no latent site
# (the component is summed out), so its log p(x) is exact. K = 1 is the baseline of baselines: every pixel on its own.
#
# A family is a frozen dataclass with `build`, which returns a `Program`. `register` gives it a name for run folders,
# JSON and the command line. Using the shared `Bernoulli` for the pixels makes it score the same thing as the
# autoencoders.

# %%


@dataclasses.dataclass(frozen=True)
class PixelMixture:
    """K templates of independent black-or-white pixels."""

    components: int = 1
    shape: tuple[int, ...] = (8, 8)
    levels: int = 17

    def build(self, key):
        start = 0.5 * jax.random.normal(key, (self.components, *self.shape))

        def model(x=None, *, size=None):
            logits = numpyro.param("logits", start)
            weights = numpyro.param("weights", jnp.zeros(self.components))
            templates = dist.Bernoulli(logits=logits).to_event(2)
            with numpyro.plate("data", size if x is None else len(x)):
                numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(logits=weights), templates), obs=x)

        return Program(
            spec=self,
            model=model,
            posterior=None,
            latents=(),
            shape=self.shape,
            observation=Observation(
                pixels.observation(self.shape, self.levels),
                prepare=lambda x, key, training: pixels.prepare(x, key, training, self.levels),
                check=lambda x: pixels.check(x, self.shape, self.levels),
                bits_offset=pixels.bits_offset(self.levels),
            ),
            views=Views(("p(x) = sum_k w_k prod_i Bernoulli(x_i; m_ki)",)),
        )


register("pixel_mixture", PixelMixture, presets={"tiny": PixelMixture(2)}, paper="Everitt & Hand 1981, chapter 3")

# %% [markdown]
# ## Fit all five alike
#
# Same data, same number of steps, one call each.

# %%
vae = MFCVAE(
    facets=(Facet("digit", dim=10, clusters=25, covariance="full"),),
    shape=(8, 8),
    levels=17,
    likelihood=pixels,
    network=MLP((128, 128)),
    warmup=STEPS // 4,
)
specs = {
    "independent pixels": PixelMixture(1),
    "mixture of 60": PixelMixture(60),
    "VAE, 2 latents": dataclasses.replace(vae, facets=(Facet("digit", dim=2, clusters=25, covariance="full"),)),
    "VAE, 10 latents": vae,
    "VAE, facets of 2 and 8": dataclasses.replace(
        vae, facets=(Facet("style", dim=2, clusters=3), Facet("digit", dim=8, clusters=25, covariance="full"))
    ),
}
fits = {}
for name, spec in specs.items():
    rate = optax.cosine_decay_schedule(3e-2 if isinstance(spec, PixelMixture) else 2e-3, STEPS)
    fits[name] = inference.fit(
        spec.build(jax.random.key(0)),
        x_train,
        steps=STEPS,
        learning_rate=rate,
        average=0.995,
        key=jax.random.key(1),
        progress=False,
    )
    print(f"{name:20s} {fits[name].program.parameter_count:7,} parameters, {fits[name].info['seconds']:4.0f} s")

# %% [markdown]
# ## The evidence: one number a datum
#
# For the autoencoders log p(x) is estimated by importance sampling from the posterior, with a Monte Carlo error `se`
# and a k-hat for each image; for the baselines it is exact.

# %%
tables = {
    name: inference.evidence(fit, x_test, particles=PARTICLES, key=jax.random.key(2), progress=False)
    for name, fit in fits.items()
}
tables["VAE, 10 latents"].head(4).round(2)

# %% [markdown]
# ## The comparison

# %%
ranking = inference.compare(tables)
ranking[["elpd_mean", "elpd_diff", "dse", "mc_se", "khat_bad", "weight", "bits_per_dim"]].round(3)

# %%
figures.comparison(ranking)

# %% [markdown]
# How to read it: `elpd_diff` is the log-probability of all held-out images together, minus that of the best model.
# Believe a difference that is several `dse`, its standard error over images (the bars in the figure), if `mc_se`, the
# error of the importance sampling, is small beside it. *Good* evidence for a winner is a bar that stays clear of the
# dashed line.
#
# ## Why the errors are paired
#
# Some digits are hard for every model. Looking at each model's own spread, one would see overlapping clouds; the
# difference on the *same* image has most of that spread removed.

# %%
best, second = ranking.index[:2]
a, b = tables[best].log_px.to_numpy(), tables[second].log_px.to_numpy()
paired = (a - b).std(ddof=1) / np.sqrt(len(a))
unpaired = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / len(a))

figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.4), layout="constrained")
axes[0].scatter(b, a, s=10, color=BLUE, alpha=0.6, lw=0)
axes[0].axline((b.mean(), b.mean()), slope=1, color="black", ls="--", lw=1)
axes[0].set(title="log p(x) of each held-out image", xlabel=f"{second} (nats)", ylabel=f"{best} (nats)")
for height, (label, error, color) in enumerate((("as if independent", unpaired, ORANGE), ("paired", paired, BLUE))):
    axes[1].errorbar((a - b).mean(), height, xerr=2 * error, fmt="o", color=color, capsize=4)
    axes[1].text((a - b).mean(), height + 0.12, f"{label}: {(a - b).mean():.2f} ± {error:.2f} nats", ha="center")
axes[1].axvline(0, color="black", ls="--", lw=1)
axes[1].set(title="Mean difference, with two standard errors", ylim=(-0.5, 1.6), yticks=[])
axes[1].set(xlabel=f"{best} minus {second} (nats an image)")
plt.show()

# %% [markdown]
# *Left*: points hug the dashed line because both models find the same images hard; what counts is how many lie above
# it. *Right*: the same difference with the two standard errors; only the paired one is right. At full size the two
# best are autoencoders of ten latents each, and 297 images cannot tell them apart: that, too, is an answer.
#
# ## Stacking: do they know different things?
#
# `weight` in the table is the share of each model in the mixture of all five that predicts best. A model may rank
# second and still deserve weight, where it is right and the winner is not; then the mixture predicts better than the
# winner alone.

# %%
weights = ranking["weight"]
log_p = np.stack([tables[name].log_px for name in weights.index], axis=1)
with np.errstate(divide="ignore"):
    stacked = np.logaddexp.reduce(log_p + np.log(weights.to_numpy()), axis=1)
gain = stacked - tables[best].log_px.to_numpy()
print(weights.round(2).to_string())
print(f"\nstacked minus {best}: {gain.mean():.2f} ± {gain.std(ddof=1) / np.sqrt(len(gain)):.2f} nats an image")
print("(a little optimistic: the weights were chosen on these images)")

# %% [markdown]
# ## Why not compare ELBOs?
#
# The ELBO is log p(x) minus the error of the approximate posterior, KL(q(z|x) || p(z|x)). Comparing ELBOs mixes two
# questions: how good is the model, and how good is its guide? Two demonstrations.
#
# *One model, two guides.* The same trained autoencoder, with its posterior standard deviations times 1.5. The model
# has not changed, so its evidence must not; its ELBO does.
#
# *Two models, one with an exact answer.* The mixture has no guide to be punished for, the autoencoder has.

# %%


def rescaled(fit, factor):
    """The fit with the same model, and every standard deviation of q(z | x) times ``factor``."""

    def posterior(x):
        q = fit.program.posterior(x)

        def scaled(site, context):
            normal = q(site, context).base_dist
            return dist.Normal(normal.loc, factor * normal.scale).to_event(1)

        return scaled

    return dataclasses.replace(fit, program=dataclasses.replace(fit.program, posterior=posterior))


shown = dict(tables)
shown["VAE, 10 latents, other guide"] = inference.evidence(
    rescaled(fits["VAE, 10 latents"], 1.5), x_test, particles=PARTICLES, key=jax.random.key(2), progress=False
)
both = pd.DataFrame(
    {
        "ELBO": {name: t.elbo.fillna(t.log_px).mean() for name, t in shown.items()},
        "log p(x)": {name: t.log_px.mean() for name, t in shown.items()},
    }
)
both["rank by ELBO"] = both["ELBO"].rank(ascending=False).astype(int)
both["rank by log p(x)"] = both["log p(x)"].rank(ascending=False).astype(int)
both.round(2)

# %%
figure, axis = plt.subplots(figsize=(8.0, 2.8), layout="constrained")
kept = both.drop("independent pixels").sort_values("log p(x)")
heights = np.arange(len(kept))
axis.hlines(heights, kept["ELBO"], kept["log p(x)"], color=GREY, lw=2)
axis.plot(kept["ELBO"], heights, "o", color=ORANGE, ms=8, label="ELBO")
axis.plot(kept["log p(x)"], heights, "D", color=BLUE, ms=8, label="log p(x)")
axis.set_yticks(heights, kept.index)
axis.set(title="What the ELBO hides: the length of the grey line", xlabel="mean over held-out images (nats)")
axis.legend(loc="lower right")
plt.show()

# %% [markdown]
# Diamonds are what the models deserve, dots what their ELBOs say; for the mixture, whose answer is exact, they
# coincide. The two bars of the same model end at the same diamond and at dots two nats apart. By its ELBO that
# autoencoder would lose to the mixture; in truth it beats it by nearly two nats an image. *Good* practice is to
# compare diamonds, image by image, with their paired error.
#
# The same comparison on the command line, for runs saved with `out=`: `ppl-models compare RUN RUN ...`.
