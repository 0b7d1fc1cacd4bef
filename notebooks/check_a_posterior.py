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
# # Can I trust this posterior?
#
# A neural posterior q(z | x) is a guess of p(z | x), made by a network. Training makes it better without saying how
# good it is. Three checks do, from the cheapest to the strongest:
#
# 1. **Pareto k-hat**, one number a datum: draw z from q, weight each draw by p(x, z) / q(z | x), and look at the tail
#    of the weights. Below 0.5 the weights can be relied on; above 0.7 they cannot, because q misses mass that
#    matters.
# 2. **`diagnose`**, one table of everything that can go wrong with a fit: value, threshold, verdict, remedy.
# 3. **Simulation-based calibration**: let the model make data with *known* z and see how often q's intervals hold
#    them.
#
# To know what a check can see, it is tried on a posterior that is deliberately bad. Data: scikit-learn's digits, 8 x
# 8.

# %%
# %matplotlib inline
import dataclasses
import os
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # progress bars are off in this notebook

import arviz as az
import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax
import pandas as pd

import inference
from inference.checking.calibration import calibrate
from ppl_models.datasets import load
from ppl_models.mfcvae import MFCVAE, MLP, Bernoulli, Facet

SMALL = os.environ.get("PPL_MODELS_SMALL") == "1"  # a quick look: a fit too short to be good
STEPS, IMAGES, PARTICLES, SIMULATIONS = (200, 60, 100, 100) if SMALL else (6000, 297, 512, 1000)
BLUE, ORANGE, RED, GREY = "#0072B2", "#E69F00", "#D55E00", "#5b6675"
plt.rcParams.update({"figure.dpi": 110, "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlesize": 10})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

x_train, _ = load("digits")
x_test, labels = load("digits", "test")
x_test, labels = x_test[:IMAGES], {name: values[:IMAGES] for name, values in labels.items()}

# %% [markdown]
# ## Fit

# %%
spec = MFCVAE(
    facets=(Facet("style", dim=2, clusters=3), Facet("digit", dim=8, clusters=25, covariance="full")),
    shape=(8, 8),
    levels=17,
    likelihood=Bernoulli(threshold=7.5 / 16, noise=1.0),
    network=MLP((128, 128)),
    warmup=STEPS // 4,
)
rate = optax.cosine_decay_schedule(2e-3, STEPS)  # large steps first, small ones to settle
fit = inference.fit(
    spec.build(jax.random.key(0)), x_train, steps=STEPS, learning_rate=rate, key=jax.random.key(1), progress=False
)
fit.history[["step", "loss"]].iloc[[0, len(fit.history) // 2, -1]]

# %% [markdown]
# ## Two bad posteriors to compare with
#
# The same model and the same weights; only the spread of q is tampered with. The *narrow* one is too sure of itself
# (the usual vice of variational fits), the *wide* one too timid.

# %%


def rescaled(fit, factor):
    """The fit with every standard deviation of q(z | x) multiplied by ``factor``."""

    def posterior(x):
        q = fit.program.posterior(x)

        def rescaled_q(site, context):
            normal = q(site, context).base_dist
            return dist.Normal(normal.loc, factor * normal.scale).to_event(1)

        return rescaled_q

    return dataclasses.replace(fit, program=dataclasses.replace(fit.program, posterior=posterior))


fits = {"as trained": fit, "narrow (sd x 0.5)": rescaled(fit, 0.5), "wide (sd x 1.5)": rescaled(fit, 1.5)}
colors = dict(zip(fits, (BLUE, RED, ORANGE), strict=True))

# %% [markdown]
# ## Check 1: k-hat, one a datum
#
# `evidence` estimates log p(x) of every test image by importance sampling from q, and says how reliable that is.

# %%
tables = {
    name: inference.evidence(f, x_test, particles=PARTICLES, key=jax.random.key(2), refine="none", progress=False)
    for name, f in fits.items()
}
pd.DataFrame(
    {
        "ELBO (nats)": {name: t.elbo.mean() for name, t in tables.items()},
        "log p(x) (nats)": {name: t.log_px.mean() for name, t in tables.items()},
        f"effective draws of {PARTICLES}": {name: t.ess.median() for name, t in tables.items()},
        "share with k-hat > 0.7": {name: (t.khat > 0.7).mean() for name, t in tables.items()},
    }
).round(2)

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.0), sharex=True, sharey=True, layout="constrained")
edges = np.linspace(min(t.khat.min() for t in tables.values()), max(t.khat.max() for t in tables.values()), 31)
for axis, (name, table) in zip(axes, tables.items(), strict=True):
    axis.hist(table.khat, bins=edges, color=colors[name])
    axis.axvline(0.7, color="black", ls="--", lw=1)
    axis.set(title=f"{name}: {(table.khat > 0.7).mean():.0%} beyond 0.7", xlabel="Pareto k-hat (no unit)")
axes[0].set_ylabel("test images")
axes[0].annotate("not to be\ntrusted", (0.72, 0.8), xycoords=("data", "axes fraction"), fontsize=8)
plt.show()

# %% [markdown]
# *Good* is a heap left of the dashed line, as far to the left as it goes. The narrow posterior has lost it: with half
# the standard deviation the tails of q are so thin that the weights have no finite variance. The wide posterior is
# wasteful (a worse ELBO, fewer effective draws) but does no harm: its k-hat is no worse than the trained one's and
# its log p(x) agrees. This is what k-hat tells and the ELBO does not: *which way* q is wrong.
#
# The trained posterior is not spotless. About one test image in five lies beyond 0.7: no normal distribution fits its
# exact posterior well. k-hat belongs to a datum, so it points at the data in trouble:

# %%
table = tables["as trained"]
order = np.argsort(-table.khat.to_numpy())
chosen = {"highest k-hat": order[:12], "lowest k-hat": order[-12:]}
figure, axes = plt.subplots(2, 12, figsize=(9.6, 2.1), layout="constrained")
for row, (name, rows) in zip(axes, chosen.items(), strict=True):
    for axis, i in zip(row, rows, strict=True):
        axis.imshow(x_test[i], cmap="gray")
        axis.set_title(f"{table.khat[i]:.2f}", fontsize=8, loc="center", fontweight="normal")
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(name.replace(" ", "\n"), rotation=0, ha="right", va="center")
figure.suptitle("Test images with the least and the most trustworthy posterior (k-hat above each)", fontsize=10)
plt.show()

# %% [markdown]
# ## The posterior as an ArviZ DataTree
#
# `posterior` returns draws, densities, replicated images and labels as one xarray DataTree, for ArviZ and for you.
# The draws of an image are independent, not a chain, so R-hat has nothing to say here; k-hat has.

# %%
tree = inference.posterior(fit, x_test, draws=200, key=jax.random.key(3), factors=labels, progress=False)
az.summary(tree, var_names=["z_style"], coords={"datum": [0, 1]}, kind="stats")

# %% [markdown]
# Its groups are labelled by datum, so a posterior predictive check is two lines of xarray: how many of the 64 pixels
# are white in an image, and in the images that the model makes of its posterior?

# %%
white = tree["observed_data"]["x"].mean(("x_dim_0", "x_dim_1"))
replicated = tree["posterior_predictive"]["x"].mean(("x_dim_0", "x_dim_1"))
low, middle, high = replicated.quantile([0.05, 0.5, 0.95], dim=("chain", "draw")).values
held = ((low <= white) & (white <= high)).mean().item()

figure, axis = plt.subplots(figsize=(4.6, 3.6), layout="constrained")
nudged = white + np.random.default_rng(0).uniform(-0.006, 0.006, len(white))  # so that points do not hide each other
axis.errorbar(nudged, middle, [middle - low, high - middle], fmt=".", color=BLUE, alpha=0.35, ms=5, lw=0.7)
axis.axline((0.3, 0.3), slope=1, color="black", ls="--", lw=1)
axis.set(title=f"90 % intervals of replicas hold {held:.0%} of the images", xlabel="white pixels of the image (share)")
axis.set_ylabel("white pixels of its replicas (share),\nmedian and 90 % interval")
plt.show()

# %% [markdown]
# *Good* is a cloud along the dashed line with bars that cross it.
#
# ## Check 2: the whole diagnosis
#
# One line a check: measured value, threshold, verdict, and (not shown here) what it means and what to try.

# %%
verdict = inference.diagnose(fit, x_test, key=jax.random.key(4), table=tables["as trained"], tree=tree)
verdict = verdict.set_index("check")
verdict[["value", "threshold", "verdict"]].round(3)

# %% [markdown]
# And what it says of the narrow posterior, where that is worse, with the remedies:

# %%
narrow = fits["narrow (sd x 0.5)"]
narrow_tree = inference.posterior(narrow, x_test, draws=100, key=jax.random.key(3), progress=False)
other = inference.diagnose(
    narrow, x_test, key=jax.random.key(4), table=tables["narrow (sd x 0.5)"], tree=narrow_tree
).set_index("check")
badness = {"ok": 0, "warn": 1, "fail": 2}
worse = other["verdict"].map(badness) > verdict["verdict"].map(badness).reindex(other.index)
worse["held-out gap"] = False  # it looks at the training curve, which is that of the other posterior
for name, row in other[worse].iterrows():
    print(f"{row.verdict.upper():5s} {name}: {row.value:.2f}, wanted {row.threshold}")
    print(f"      {row.meaning}\n      What to try: {row.remedy}\n")

# %% [markdown]
# ## Check 3: simulation-based calibration
#
# Draw z from the prior and x from p(x | z), then ask at which rank z lies among draws from q(z | x). If q is the
# posterior of the model, every rank is equally likely. The figure shows the distribution of ranks minus the uniform
# one, a line for each of the ten coordinates of z.

# %%
found = {
    name: calibrate(f, simulations=SIMULATIONS, draws=100, chunk=100, key=jax.random.key(5)) for name, f in fits.items()
}
figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.0), sharex=True, sharey=True, layout="constrained")
band = 1.358 / np.sqrt(SIMULATIONS)  # Kolmogorov's 95 % bound for one line
grid = np.linspace(0, 1, 201)
for axis, (name, calibration) in zip(axes, found.items(), strict=True):
    for quantity, ranks in calibration.ranks.items():
        if quantity.startswith("z_"):
            axis.plot(grid, np.searchsorted(np.sort(ranks), grid) / len(ranks) - grid, color=colors[name], lw=0.9)
    axis.fill_between([0, 1], -band, band, color=GREY, alpha=0.25, lw=0)
    covered = calibration.table.filter(regex="^z_", axis=0)["coverage_90"].mean()
    axis.set(title=f"{name}:\n90 % intervals hold {covered:.0%}", xlabel="rank of the true z (share)")
axes[0].set_ylabel("share of ranks below,\nminus uniform")
plt.show()

# %% [markdown]
# *Good* is every line inside the grey band. A line that first rises and then falls below zero has too many low ranks
# and too many high ones: q is too narrow, and its 90 % intervals miss the truth too often. The mirror image means too
# wide. The trained posterior leaves the band a little: slightly too sure of itself, which is what maximising an ELBO
# does.
#
# ## So: can it be trusted?
#
# For what it passes. Where k-hat is below 0.7, weight its draws by exp(`tree["sample_stats"]["log_weight"]`) and they
# represent the exact posterior, whatever the ELBO. Where it is not, use a richer q or MCMC for those few data, and do
# not quote their log p(x) without saying so. And quote the 90 % intervals with the coverage that calibration found.
