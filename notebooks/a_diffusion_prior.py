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
# # A diffusion prior in fifteen lines
#
# A diffusion model is usually a sampler. Here it is a *distribution*: `DiffusionPrior(score, schedule, shape)` has
# `sample` and `log_prob`, so any NumPyro program can use it as a prior and NUTS can find the posterior.
#
# To see that this is right and not only plausible, the score in this notebook is exact: the prior is a mixture of
# Gaussians along an arch, for which denoiser, density and posterior are known in closed form. In earnest, the score
# is a trained network (`ppl_models.diffusion`), and nothing else changes.
#
# The problem: a point lies somewhere on the arch, and an instrument reads its height with an error. Where is it?

# %%
# %matplotlib inline
import os
import time
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # progress bars are off in this notebook

import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import xarray as xr
from numpyro.infer import MCMC, NUTS

from ppl_models.distributions import RK4, Denoiser, DiffusionPrior, Moments, Trigonometric, VariancePreserving

SMALL = os.environ.get("PPL_MODELS_SMALL") == "1"  # a quick look: short chains
WARMUP, DRAWS = (100, 100) if SMALL else (300, 1000)
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#5b6675"
plt.rcParams.update({"figure.dpi": 110, "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlesize": 10})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

# %% [markdown]
# ## The fifteen lines
#
# A diffusion mixes data with noise, x_t = alpha(t) x_0 + sigma(t) eps, and needs one function: the best guess of x_0
# given x_t, the *denoiser*. (It is the score in another form: grad log p_t(x) = (alpha D(x, t) - x) / sigma^2.) For a
# mixture of Gaussians it is a weighted mean, and exact. The program below it is two lines of NumPyro.

# %%
angle = jnp.linspace(0.0, jnp.pi, 9)
centres, spread = 2.0 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1), 0.3


def exact_denoiser(schedule):
    def denoise(params, x, t):
        a, s = schedule.alpha(t), schedule.sigma(t)
        variance = (a * spread) ** 2 + s**2
        weight = jax.nn.softmax(-0.5 * ((x - a * centres) ** 2).sum(1) / variance)
        return weight @ (centres + a * spread**2 / variance * (x - a * centres))

    return Denoiser(denoise)


prior = DiffusionPrior(exact_denoiser(Trigonometric()), Trigonometric(), (2,), solver=RK4(24))


def model(y):
    x = numpyro.sample("x", prior)
    numpyro.sample("y", dist.Normal(x[1], 0.3), obs=y)


# %% [markdown]
# ## Is it a distribution?
#
# A density integrates to one. Here it is on a grid, beside draws from the same object and beside the exact mixture,
# which the prior knows only through its score.

# %%
side = np.linspace(-4.2, 4.2, 85)
mesh = np.stack(np.meshgrid(side, side), -1)  # (85, 85, 2), the first coordinate along the columns
cell = (side[1] - side[0]) ** 2
began = time.perf_counter()
log_p = np.asarray(jax.jit(prior.log_prob)(mesh))
draws = np.asarray(jax.jit(lambda key: prior.sample(key, (2000,)))(jax.random.key(0)))
exact = dist.MixtureSameFamily(dist.Categorical(logits=jnp.zeros(9)), dist.Normal(centres, spread).to_event(1))
log_exact = np.asarray(exact.log_prob(mesh))
mass = np.exp(log_exact) * cell
print(f"mass on the grid        {np.exp(log_p).sum() * cell:.4f}   (1 is right)")
print(f"rms error of log p      {np.sqrt((mass * (log_p - log_exact) ** 2).sum()):.1e} nats, over the mass")
spent = time.perf_counter() - began
print(f"{log_p.size:,} densities and {len(draws):,} draws in {spent:.1f} s, compilation included")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.4), sharex=True, sharey=True, layout="constrained")
image = axes[0].contourf(side, side, np.exp(log_p), levels=12, cmap="Blues")
figure.colorbar(image, ax=axes[0], shrink=0.75, label="density p(x) (per unit area)")
axes[0].set(title="exp(prior.log_prob)")
axes[1].scatter(*draws.T, s=4, alpha=0.4, color=BLUE, lw=0)
axes[1].contour(side, side, np.exp(log_exact), levels=5, colors="black", linewidths=0.7)
axes[1].set(title="prior.sample (dots), exact density (lines)")
for axis in axes:
    axis.set(xlabel="position x[0] (length units)", ylabel="height x[1] (length units)", aspect="equal")
    axis.set(xlim=(-3.2, 3.2), ylim=(-1.2, 3.2))
plt.show()

# %% [markdown]
# *Good* is: the two panels show the same arch, the mass is 1, and the error of log p is far below anything that would
# change a conclusion (0.01 nats, say).
#
# ## The inverse problem: where on the arch is a point of height 1.4 +- 0.3?
#
# Two places fit, left and right. NUTS runs through the differential equation of the diffusion: every gradient is that
# of a log-density obtained by 24 Runge-Kutta steps.

# %%


def sample(model, y, key):
    mcmc = MCMC(NUTS(model), num_warmup=WARMUP, num_samples=DRAWS, num_chains=4, chain_method="vectorized",
                progress_bar=False)  # fmt: skip
    began = time.perf_counter()
    mcmc.run(key, y)
    found = {name: np.asarray(values) for name, values in mcmc.get_samples(group_by_chain=True).items()}
    print(f"4 chains of {DRAWS} draws in {time.perf_counter() - began:.0f} s")
    dims = {name: ("chain", "draw", *(["axis"] if values.ndim > 2 else [])) for name, values in found.items()}
    data = xr.Dataset({name: (dims[name], values) for name, values in found.items()})
    return xr.DataTree.from_dict({"/posterior": data})


Y = 1.4
tree = sample(model, Y, jax.random.key(1))
az.summary(tree, kind="diagnostics")

# %% [markdown]
# The exact posterior is the exact mixture times the likelihood, normalised on the grid.

# %%
log_joint = log_exact + np.asarray(dist.Normal(mesh[..., 1], 0.3).log_prob(Y))
posterior = np.exp(log_joint - log_joint.max())
posterior /= posterior.sum() * cell
x = tree["posterior"]["x"].values.reshape(-1, 2)

figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.4), layout="constrained")
axes[0].scatter(*x[:: max(1, len(x) // 2000)].T, s=4, alpha=0.4, color=BLUE, lw=0, label="NUTS draws")
axes[0].contour(side, side, posterior, levels=5, colors="black", linewidths=0.7)
axes[0].axhline(Y, color=ORANGE, lw=1.2, label="measured height")
axes[0].set(title="Posterior of the point (lines: exact)", xlim=(-3.2, 3.2), ylim=(-1.2, 3.2), aspect="equal")
axes[0].set(xlabel="position x[0] (length units)", ylabel="height x[1] (length units)")
axes[0].legend(loc="lower center", fontsize=8)
axes[1].hist(x[:, 0], bins=50, range=(-3, 3), density=True, color=BLUE, alpha=0.5, label="NUTS")
axes[1].plot(side, posterior.sum(0) * (side[1] - side[0]), color="black", label="exact")
axes[1].set(title="Its position along the ground", xlim=(-3.2, 3.2), xlabel="position x[0] (length units)")
axes[1].set_ylabel("posterior density (per length unit)")
axes[1].legend(loc="upper center", fontsize=8)
plt.show()

# %% [markdown]
# *Good* is a histogram that follows the black line: both humps, with the right weights. In numbers:

# %%
error = az.summary(tree, kind="all", round_to="none")
for i, coordinate in enumerate(("position", "height")):
    mean = (posterior * mesh[..., i]).sum() * cell
    row = error.iloc[i]
    print(f"mean {coordinate:8s}  NUTS {row['mean']:6.3f} +- {row['mcse_mean']:.3f} (Monte Carlo)   exact {mean:6.3f}")

# %% [markdown]
# ## The error of the instrument unknown
#
# Being Bayesian about one more thing is one more line. Twenty readings of the same height; how good is the
# instrument?

# %%


def with_noise(y):
    x = numpyro.sample("x", prior)
    noise = numpyro.sample("noise", dist.LogNormal(jnp.log(0.3), 0.7))
    numpyro.sample("y", dist.Normal(x[1], noise).expand([len(y)]).to_event(1), obs=y)


readings = jnp.asarray(1.4 + 0.5 * np.random.default_rng(0).normal(size=20))
tree = sample(with_noise, readings, jax.random.key(2))

# Exactly: the height's prior is a marginal of the mixture; integrate it out on a grid, one noise level at a time.
levels = np.linspace(0.2, 1.2, 201)
height_prior = np.exp(log_exact).sum(1)
log_like = dist.Normal(side[None, :, None], levels[:, None, None]).log_prob(np.asarray(readings)).sum(-1)
p_noise = np.exp(log_like - log_like.max()) @ height_prior * np.exp(dist.LogNormal(jnp.log(0.3), 0.7).log_prob(levels))
p_noise /= p_noise.sum() * (levels[1] - levels[0])

figure, axis = plt.subplots(figsize=(5.4, 3.2), layout="constrained")
axis.hist(tree["posterior"]["noise"].values.ravel(), bins=50, range=(0.2, 1.2), density=True, color=BLUE, alpha=0.5,
          label="NUTS")  # fmt: skip
axis.plot(levels, p_noise, color="black", label="exact")
axis.plot(levels, np.exp(dist.LogNormal(jnp.log(0.3), 0.7).log_prob(levels)), color=GREY, ls=":", label="prior")
axis.axvline(0.5, color=ORANGE, label="truth")
axis.set(title="How good is the instrument?", xlabel="standard deviation of a reading (length units)")
axis.set_ylabel("density (per length unit)")
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## The one trap: where the diffusion ends
#
# A density needs an exact starting point. The usual variance-preserving schedule leaves a trace of the data at its
# end, so N(0, I) is not quite the law there, and every log p is off. The prior says so; giving it the moments of the
# data mends it. `Trigonometric()`, used above, ends in N(0, I) exactly.

# %%
points, usual = draws[:200], VariancePreserving(start=1e-5)
truth = np.asarray(exact.log_prob(points))
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    laws = {
        "Trigonometric": DiffusionPrior(exact_denoiser(Trigonometric()), Trigonometric(), (2,)),
        "usual schedule, N(0, I) at its end": DiffusionPrior(exact_denoiser(usual), usual, (2,)),
        "usual schedule, moments of the data": DiffusionPrior(
            exact_denoiser(usual), usual, (2,), base=Moments.of(draws)
        ),
    }
print(f"UserWarning: {told[0].message}\n")
for name, law in laws.items():
    print(f"{name:36s} rms error of log p {np.sqrt(np.mean((law.log_prob(points) - truth) ** 2)):.1e} nats")

# %% [markdown]
# In two dimensions the bias is small; it grows with the number of dimensions and with the distance of the data from
# the origin. Next: train a score of your own with `ppl_models.diffusion` (its README goes from data to NUTS in twenty
# lines).
