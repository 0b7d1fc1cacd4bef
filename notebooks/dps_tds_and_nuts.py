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
# # DPS, TDS and NUTS against the truth
#
# A diffusion model is a prior; a measurement y turns it into a posterior. Many published samplers draw from something
# near that posterior. This notebook asks how near, on a problem whose posterior is known: the prior is a mixture of
# Gaussians along an arch with its exact denoiser, and an instrument reads one height with an error.
#
# | method | what it is | exact? |
# |---|---|---|
# | `dps` | guidance by the likelihood of the denoised datum | no |
# | `tds` | the same idea as a proposal, with weights and resampling (twisted SMC) | as particles grow |
# | `nuts` | Markov chains on the density of the diffusion's ODE | as draws grow |

# %%
# %matplotlib inline
import os
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import inference
from inference.reporting.sampling_figures import coverage, denoising_path, draws_beside
from inference.sampling import calibration_ranks, condition
from ppl_models.distributions import RK4, Denoiser, DiffusionPrior, Trigonometric

SMALL = os.environ.get("PPL_MODELS_SMALL") == "1"  # a quick look: few draws and simulations
DRAWS, SIMULATIONS, WARMUP = (500, 100, 100) if SMALL else (1000, 300, 300)
METHODS = ("dps", "tds") if SMALL else ("dps", "tds", "nuts")
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
COLORS = {"dps": ORANGE, "tds": BLUE, "nuts": GREEN}
plt.rcParams.update({"figure.dpi": 110, "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlesize": 10})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

# %% [markdown]
# ## The problem

# %%
angle = jnp.linspace(0.0, jnp.pi, 9)
centres, spread = 2.0 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1), 0.3
schedule = Trigonometric()


def denoise(params, x, t):
    a, s = schedule.alpha(t), schedule.sigma(t)
    variance = (a * spread) ** 2 + s**2
    weight = jax.nn.softmax(-0.5 * ((x - a * centres) ** 2).sum(1) / variance)
    return weight @ (centres + a * spread**2 / variance * (x - a * centres))


law = DiffusionPrior(Denoiser(denoise), schedule, (2,), solver=RK4(24))
NOISE, Y = 0.1, jnp.asarray([1.4])


def instrument(x):
    return dist.Normal(x[1:], NOISE).to_event(1)


# %% [markdown]
# One call a method. The result is a DataTree whose chains are independent runs.

# %%
trees = {
    method: condition(law, instrument, Y, method=method, key=jax.random.key(i), draws=DRAWS, steps=100, warmup=WARMUP)
    for i, method in enumerate(METHODS)
}  # fmt: skip

# %% [markdown]
# ## Draws beside the truth
#
# The exact posterior is the mixture times the likelihood, on a grid.

# %%
side = np.linspace(-3.4, 3.4, 273)
mesh = np.stack(np.meshgrid(side, side), -1)
exact_prior = dist.MixtureSameFamily(dist.Categorical(logits=jnp.zeros(9)), dist.Normal(centres, spread).to_event(1))
log_joint = np.asarray(exact_prior.log_prob(mesh)) + np.asarray(dist.Normal(mesh[..., 1], NOISE).log_prob(Y[0]))
cell = (side[1] - side[0]) ** 2
log_evidence = float(np.log(np.exp(log_joint).sum() * cell))
posterior = np.exp(log_joint - log_evidence)

figure, axes = plt.subplots(
    1, len(trees), figsize=(3.4 * len(trees), 2.9), sharex=True, sharey=True, layout="constrained"
)
for axis, (method, tree) in zip(np.atleast_1d(axes), trees.items(), strict=True):
    x = tree["posterior"]["x"].values.reshape(-1, 2)
    axis.scatter(*x[:: max(1, len(x) // 1500)].T, s=4, alpha=0.4, color=COLORS[method], lw=0)
    axis.contour(side, side, posterior, levels=5, colors="black", linewidths=0.7)
    axis.set(title=method, xlabel="x[0]", xlim=(-3, 3), ylim=(0, 3))
axes[0].set_ylabel("height x[1]")
plt.show()

# %% [markdown]
# Where no truth is known, the same tree shows whether the runs look alike:

# %%
draws_beside(trees["tds"])

# %%
w = posterior * cell
mean = (w[..., None] * mesh).sum((0, 1))
sd = np.sqrt((w[..., None] * (mesh - mean) ** 2).sum((0, 1)))
print(f"exact   mean {mean.round(3)}  sd {sd.round(3)}  log p(y) {log_evidence:.3f}")
for method, tree in trees.items():
    x = tree["posterior"]["x"].values.reshape(-1, 2)
    said = f"log p(y) {tree.attrs['log_evidence']:.3f}" if "log_evidence" in tree.attrs else ""
    print(f"{method:6s}  mean {x.mean(0).round(3)}  sd {x.std(0).round(3)}  {said}")

# %% [markdown]
# ## How a draw comes about
#
# What the denoiser makes of eight particles on their way down: at first the mean of the prior, then a mode, then a
# point. (TDS; copies of a particle run together after a resampling.)

# %%
denoising_path(trees["tds"], truth=np.asarray([np.nan, float(Y[0])]))  # dashed: the measured height

# %% [markdown]
# ## The verdict, without the truth
#
# In earnest nobody knows the posterior. Two things can be asked all the same: do the importance weights of the draws
# have heavy tails (k-hat), and do true values rank uniformly among the draws of simulated problems?

# %%
ranks = {
    method: calibration_ranks(law, instrument, method=method, key=jax.random.key(9), simulations=SIMULATIONS)
    for method in ("dps", "tds")
}
for method in ("dps", "tds"):
    print(method)
    table = inference.diagnose(trees[method], ranks=ranks[method])
    print(table[["check", "value", "threshold", "verdict"]].to_string(index=False), "\n")

# %% [markdown]
# Runs of DPS agree with each other (R-hat near 1): they agree on the wrong law. Coverage shows what that costs.

# %%
coverage({method: found["x"][:, 1] for method, found in ranks.items()})

# %% [markdown]
# *Good* is inside the grey band about the diagonal; below it, intervals are too short.
#
# ## One more unknown
#
# The likelihood is NumPyro code: what it samples on the way is inferred with x. Twenty readings, error unknown:


# %%
def readings(x):
    noise = numpyro.sample("noise", dist.LogNormal(jnp.log(0.3), 0.7))
    return dist.Normal(x[1], noise).expand([20]).to_event(1)


seen = jnp.asarray(1.4 + 0.3 * np.random.default_rng(0).normal(size=20), "float32")
tree = condition(law, readings, seen, key=jax.random.key(4), draws=DRAWS, steps=100)
noise = tree["posterior"]["noise"].values.ravel()
print(
    f"noise: median {np.median(noise):.2f}, 90 % interval {np.quantile(noise, [0.05, 0.95]).round(2)}  (0.30 is right)"
)

# %% [markdown]
# Next: the prior of a trained network is `ppl_models.diffusion.prior(fit.program, fit.params)`, and nothing else
# changes; `python -m benchmarks run diffusion_inpaint` does it with the lower halves of digits.
