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
# # How do I declare a deep generative model?
#
# By writing one row of a table, called a *spec*. A spec builds a *program*: a generative model p(x, z) and a neural
# posterior q(z | x), both ordinary NumPyro callables. Everything NumPyro can do with a model, it can do with this
# one.
#
# This notebook declares a variational autoencoder with two *facets* (two groups of latent variables, each a mixture
# of Gaussians, so that each clusters the data in its own way), looks at its graph, draws from its prior, trains it
# with stock NumPyro, holds one facet fixed while the other varies, changes one field, and writes the model to JSON.
#
# The data are scikit-learn's handwritten digits: 8 x 8 pixels, 17 grey levels, 1,500 for training and 297 for
# testing.

# %%
# %matplotlib inline
import dataclasses
import os
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # progress bars are off in this notebook

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
from numpyro import handlers
from numpyro.infer import SVI, Predictive, TraceMeanField_ELBO

from inference.reporting.graph import model_graph
from ppl_models.datasets import load
from ppl_models.mfcvae import MFCVAE, MLP, Bernoulli, Facet, Normal
from ppl_models.program import spec_from_json, spec_to_json

SMALL = os.environ.get("PPL_MODELS_SMALL") == "1"  # a quick look: fewer steps, poorer pictures
STEPS = 150 if SMALL else 4000
plt.rcParams.update({"figure.dpi": 110, "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlesize": 10})

x_train, _ = load("digits")
x_test, _ = load("digits", "test")
x_train.shape, x_train.dtype, int(x_train.max())

# %% [markdown]
# ## The spec: everything about one model, in one place
#
# Names, sizes and choices; no arrays and no code. It is frozen and it is checked when it is made, so a mistake is an
# error here and not after an hour of training.

# %%
spec = MFCVAE(
    facets=(Facet("style", dim=2, clusters=3), Facet("digit", dim=10, clusters=25, covariance="full")),
    shape=(8, 8),
    levels=17,
    likelihood=Bernoulli(threshold=7.5 / 16, noise=1.0),  # pixels are black or white
    network=MLP((128, 128)),
)
try:
    dataclasses.replace(spec, likelihood=Bernoulli(threshold=7.5))
except ValueError as error:
    print("ValueError:", error)

# %% [markdown]
# ## The program: the spec with weights
#
# `build` draws starting weights from a key. `density` says in symbols what was built.

# %%
program = spec.build(jax.random.key(0))
print("\n".join(program.views.density))
print(f"\nlatent sites  {program.latents}\nscored        {program.observation.line}")
print(f"parameters    {program.parameter_count:,}")

# %% [markdown]
# The graph is read off the running program, not off the spec: circles are random variables (shaded: observed), dots
# are trained parameters, the box is repeated for every image. Two facets with no arrow between them, meeting only in
# the image, is what was asked for.

# %%
images = program.observation.prepare(
    jnp.asarray(x_train), jax.random.key(0), False
)  # stored grey levels -> what the model scores
model_graph(program.model, images[:4])

# %% [markdown]
# ## Draws from the prior, before and after training with stock NumPyro
#
# `program.model` and `program.guide` go into `numpyro.infer.SVI` as they are. (`inference.fit` does the same with
# progress, checkpoints and history; the other notebooks use it.)

# %%
svi = SVI(program.model, program.guide, numpyro.optim.Adam(2e-3), TraceMeanField_ELBO())
start = jax.jit(svi.init)(jax.random.key(1), images[:128])


@jax.jit
def train(state):
    def step(i, state):
        rows_key, noise_key = jax.random.split(jax.random.fold_in(jax.random.key(2), i))
        rows = jax.random.randint(rows_key, (128,), 0, len(x_train))
        return svi.update(state, program.observation.prepare(jnp.asarray(x_train)[rows], noise_key, True))[0]

    return jax.lax.fori_loop(0, STEPS, step, state)


trained = train(start)
test_images = program.observation.prepare(jnp.asarray(x_test), jax.random.key(0), False)
for name, state in (("before", start), ("after", trained)):
    elbo = -svi.evaluate(state, test_images) / len(test_images)
    print(f"{name} training: ELBO of the test images {elbo:.1f} nats an image")


# %%
def show(rows, titles, title, columns):
    """Rows of small images (n, 8, 8), one strip a row."""
    height = 0.3 + 8.0 * len(rows) / columns
    figure, axes = plt.subplots(len(rows), 1, figsize=(8.0, height), layout="constrained")
    for axis, images, label in zip(np.atleast_1d(axes), rows, titles, strict=True):
        padded = np.pad(np.asarray(images[:columns], float), ((0, 0), (0, 0), (1, 0)), constant_values=1.0)
        axis.imshow(np.concatenate(list(padded), axis=1)[:, 1:], cmap="gray", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(label, rotation=0, ha="right", va="center")
        axis.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    plt.show()


drawn = {}
for name, state in (("untrained", start), ("trained", trained)):
    drawn[name] = Predictive(program.model, params=svi.get_params(state), num_samples=1)(jax.random.key(3), size=16)
show(
    [test_images, drawn["untrained"]["x"][0], drawn["trained"]["x"][0]],
    ["test images", "untrained prior", "trained prior"],
    "Test images, and draws from p(x) before and after training",
    16,
)

# %% [markdown]
# *Good* is a last row that could be mistaken for the first: the model was never shown those draws, it made them up.
# (With the small setting the training stops early and the last row stays rough.)
#
# ## Hold one facet, vary the other: stock `condition`
#
# A facet is a site, so NumPyro's handlers act on it. Below, `z_digit` is fixed at its posterior mean for one test
# image and `z_style` is drawn from its prior; the pictures are pixel probabilities E[x | z].

# %%
fitted = handlers.substitute(program.model, data=svi.get_params(trained))
encoded = handlers.substitute(program.posterior, data=svi.get_params(trained))(test_images)


def vary_style(i, n=16):
    z_digit = jnp.broadcast_to(encoded("z_digit", None).mean[i], (n, 10))
    held = handlers.condition(fitted, {"z_digit": z_digit})
    return handlers.trace(handlers.seed(held, jax.random.key(4))).get_trace(size=n)["x"]["fn"].mean


show(
    [jnp.concatenate([test_images[i : i + 1], vary_style(i)]) for i in range(4)],
    [f"test image {i}" for i in range(4)],
    "First column: the image. Others: its digit facet, with style drawn anew",
    17,
)

# %% [markdown]
# *Good* is a row that keeps its digit and changes its stroke. A row of identical pictures would mean that the style
# facet has fallen silent, a row of many digits that the facets share the work differently from what their names
# promise: the names are yours, the split is learnt.
#
# ## Change one field
#
# Another model is another row. Everything that follows from the field (networks, sites, graph, density) follows.

# %%
variants = {
    "two facets (above)": spec,
    "one facet": dataclasses.replace(spec, facets=spec.facets[1:]),
    "grey pixels": dataclasses.replace(spec, likelihood=Normal(sigma=0.2)),
    "wider": dataclasses.replace(spec, network=MLP((512, 512))),
}
for name, variant in variants.items():
    built = variant.build(jax.random.key(0))
    print(
        f"{name:20s} {built.parameter_count:9,} parameters   {', '.join(built.latents):18s} {built.views.density[-2]}"
    )

# %% [markdown]
# ## Keep it as JSON
#
# The text is the whole model, weights aside. A misspelt field is an error that names the field meant.

# %%
text = spec_to_json(spec)
print(text[:330], "...")
assert spec_from_json(text) == spec
try:
    spec_from_json(text.replace('"warmup"', '"warm_up"'))
except ValueError as error:
    print("ValueError:", error)

# %% [markdown]
# Next: *check a posterior* (can the fitted q(z | x) be trusted?), *compare models* (which variant predicts better?).
