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
# # How do I find several clusterings of the same data, and how far can I trust them?
#
# The images are procedural: one of six shapes on one of eight floors, with a position, a size and an angle that vary
# freely. Shape and floor are two clusterings of the same images. k-means finds a mixture of both; a multi-facet
# variational autoencoder has one latent and one mixture of Gaussians for each, and is not told the labels.

# %%
# %matplotlib inline
import dataclasses
import os
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # progress bars are off in this notebook

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import pandas as pd

from inference import choose, clustering_baselines, evidence, fit, scores
from inference.clustering import Run, cross_facets
from inference.reporting import figures
from ppl_models.datasets import load
from ppl_models.mfcvae import PRESETS, assign, sample, swap, top_examples

SMALL = os.environ.get("PPL_MODELS_SMALL") == "1"  # a quick look: fewer data and steps, poorer pictures
N, STEPS, SEEDS = (300, 60, 2) if SMALL else (6000, 4000, 2)
plt.rcParams.update({"figure.dpi": 110, "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlesize": 10})

x_train, _ = load("facets_a", "train", n=N)
x_test, factors = load("facets_a", "test", n=200 if SMALL else 1000)
{name: len(np.unique(values)) for name, values in factors.items()}


# %%
def show(images, rows, title):
    """A grid of images in [0, 1], some rows of them."""
    images = np.clip(np.asarray(images, float).reshape(rows, -1, 32, 32, 3), 0, 1)
    plt.figure(figsize=(0.75 * images.shape[1], 0.75 * rows + 0.3))
    plt.imshow(images.transpose(0, 2, 1, 3, 4).reshape(rows * 32, -1, 3), interpolation="nearest")
    plt.title(title)
    plt.axis("off")
    plt.show()


show(x_test[:24] / 255, 2, "what there is to cluster")

# %% [markdown]
# ## Declare what an image is
#
# The preset says that an image is an object over a floor: facet `floor` sets the floor's colour, facet `shape` the
# object's coverage. `refit` is the second ingredient: until then each facet has one Gaussian as its prior; then a
# mixture is fitted by EM to posterior draws, and training goes on. Mixtures that start on random networks stay poor.

# %%
spec = PRESETS["facets"]
if SMALL:
    facets = tuple(dataclasses.replace(facet, refit=(30,)) for facet in spec.facets)
    spec = dataclasses.replace(spec, facets=facets, warmup=20)
print("\n".join(spec.build(jax.random.key(0)).views.density))

# %%
rate = optax.cosine_decay_schedule(2e-3, STEPS, alpha=0.1)
fits = {
    f"seed {seed}": fit(
        spec.build(jax.random.key(seed)), x_train, steps=STEPS, learning_rate=rate, key=jax.random.key(seed),
        progress=False,
    )
    for seed in range(SEEDS)
}  # fmt: skip
fitted = fits["seed 0"]
fitted.history.tail(1)

# %% [markdown]
# ## Assign, and compare with the same number of clusters
#
# An assignment is `p(c | z)` averaged over the posterior of z. Majority accuracy grows with the number of clusters, so
# k-means and a Gaussian mixture with as many stand beside it. (The labels are used here only.)

# %%
found = assign(fitted, x_test, key=jax.random.key(2))
probabilities = {name: a.probabilities for name, a in found.items()}
table = scores(probabilities, factors)
plain = clustering_baselines(x_train, x_test, (16, 25), factors, key=jax.random.key(3), most=2000)
columns = ["method", "facet", "factor", "K", "used", "accuracy", "hungarian", "ari", "nmi"]
pd.concat([table, plain], ignore_index=True)[columns].round(2)

# %%
cross_facets(probabilities)

# %% [markdown]
# A facet should be high for one factor and low for the other, and the facets low for each other: no single clustering
# can be high for both factors. Twenty-five clusters of six shapes split each shape, mostly by position, hence the low
# ARI.

# %%
members = top_examples(probabilities["shape"], 10)
full = [index for index in members.values() if len(index) == 10][:6]
if full:
    show(x_test[np.concatenate(full)] / 255, len(full), "facet shape: the most certain images of six clusters")

# %% [markdown]
# ## Generate from a cluster, and exchange a facet
#
# Good: a row keeps its shape while the floor varies.

# %%
weight = np.bincount(found["shape"].labels, minlength=25)
largest = np.argsort(-weight)[:5].tolist()
show(sample(fitted, "shape", largest, 10, key=jax.random.key(4)).x, 5, "facet shape: five clusters, generated")

# %%
exchanged = swap(fitted, x_test[:10], x_test[10:20], "floor")
show(
    np.concatenate([exchanged.a.x, exchanged.b.x, exchanged.a_swapped.x]), 3,
    "first row, second row, first row on the second's floors",
)  # fmt: skip

# %% [markdown]
# ## Choose a run without labels
#
# `choose` takes the run of highest held-out evidence; runs that the data do not tell apart go by how well they agree
# with the other seeds. The last table is the honest check, with labels: how well that ranks the runs.

# %%
runs = {
    name: Run(
        "facets",
        evidence(one, x_test[:100], particles=32, key=jax.random.key(5), progress=False),
        {facet: a.labels[:100] for facet, a in assign(one, x_test, key=jax.random.key(2)).items()},
    )
    for name, one in fits.items()
}
choice = choose(runs, {name: values[:100] for name, values in factors.items()})
figures.choice(choice.runs)

# %%
choice.runs

# %%
choice.check
