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
# # Why does a good first guess matter?
#
# A residual network learns a correction: R(v) = R_pre(v) + correction. The first guess R_pre is usually v itself, and
# few ask whether that is a good one. A U-Net is a residual network with a better one: the answer of the U-Net one
# resolution below. (Williams et al., "A Unified Framework for U-Net Design and Analysis", NeurIPS 2023, call it the
# *preconditioner*.)
#
# 1. A problem on a line, where the wrong first guess has a price that can be computed exactly.
# 2. The same decomposition of a U-Net.
# 3. Why the coarse answer is a good first guess for a denoiser: what noise does to each resolution.

# %%
# %matplotlib inline
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from ppl_models.datasets import load
from ppl_models.function_spaces import crossing, level_energies, level_snr, project_image
from ppl_models.networks.unet import ScoreUNet, precondition, resnet_form

SMALL = os.environ.get("PPL_MODELS_SMALL") == "1"  # a quick look
STEPS, DEPTH, BATCH = (60, 10, 128) if SMALL else (1500, 25, 256)
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#5b6675"
plt.rcParams.update({"figure.dpi": 110, "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlesize": 10})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

# %% [markdown]
# ## 1. A line that has to be folded
#
# The network is a residual block applied many times, x <- x + h f(x), with f a small ReLU network whose weights are
# kept so small that h times its Lipschitz constant is at most 0.95. Every step is then invertible, and on a line an
# invertible map is *monotone*. So, starting from x = R_pre(v), v uniform on [-1, 1]:
#
# | target | R_pre = v | R_pre = \|v\| |
# |---|---|---|
# | v^2 | cannot fold the line: best is the best increasing function, loss 9/160 = 0.0563 | can be exact |
# | v^3 | can be exact | cannot know the sign: best is 0, loss 1/7 = 0.1429 |
#
# (The best increasing function for v^2 is 1/4 up to v = 1/2 and v^2 from there on.) Four networks, all trained alike.

# %%
STEP = 1.0 / DEPTH
TARGETS = {"v^2": jnp.square, "v^3": lambda v: v**3}
GUESSES = {"v": lambda v: v, "|v|": jnp.abs}
CASES = [(target, guess) for target in TARGETS for guess in GUESSES]
FLOORS = {("v^2", "v"): 9 / 160, ("v^2", "|v|"): 0.0, ("v^3", "v"): 0.0, ("v^3", "|v|"): 1 / 7}


def start(key):
    keys, sizes = jax.random.split(key, 3), (1, 20, 20, 1)
    shapes = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [(jax.random.normal(k, (a, b)) * (2 / a) ** 0.5 * 0.5, jnp.zeros(b)) for k, a, b in shapes]


def limited(weights):
    """The weights, scaled so that h times the product of their norms is at most 0.95."""
    product = jnp.prod(jnp.stack([jnp.linalg.norm(w, ord=2) for w, _ in weights]))
    factor = jnp.minimum(1.0, 0.95 / STEP / product) ** (1 / 3)
    return [(factor * w, b) for w, b in weights]


def network(weights, x):
    def step(x, _):
        h = x[:, None]
        for w, b in weights[:-1]:
            h = jax.nn.relu(h @ w + b)
        w, b = weights[-1]
        return x + STEP * (h @ w + b)[:, 0], None

    return jax.lax.scan(step, x, None, length=DEPTH)[0]


optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))


@jax.jit
def train(weights, key):
    def one(carry, key):
        weights, state = carry
        v = jax.random.uniform(key, (BATCH,), minval=-1.0, maxval=1.0)
        starts = jnp.stack([GUESSES[guess](v) for _, guess in CASES])
        wanted = jnp.stack([TARGETS[target](v) for target, _ in CASES])

        def loss(weights):
            return jnp.mean((jax.vmap(network)(weights, starts) - wanted) ** 2, axis=1).sum()

        update, state = optimiser.update(jax.grad(loss)(weights), state)
        return (jax.vmap(limited)(optax.apply_updates(weights, update)), state), None

    return jax.lax.scan(one, (weights, optimiser.init(weights)), jax.random.split(key, STEPS))[0][0]


weights = train(jax.vmap(start)(jax.random.split(jax.random.key(0), 4)), jax.random.key(1))
v = jnp.linspace(-1, 1, 1001)
found = jax.jit(jax.vmap(network))(weights, jnp.stack([GUESSES[guess](v) for _, guess in CASES]))

figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.2), layout="constrained")
for (target, guess), out in zip(CASES, np.asarray(found), strict=True):
    axis = axes[list(TARGETS).index(target)]
    error = float(np.mean((out - np.asarray(TARGETS[target](v))) ** 2))
    print(f"{target} from R_pre = {guess:3s}  loss {error:.4f}   the least possible {FLOORS[target, guess]:.4f}")
    axis.plot(v, out, color=BLUE if guess == "v" else ORANGE, label=f"from R_pre = {guess}: loss {error:.4f}")
for axis, (name, target) in zip(axes, TARGETS.items(), strict=True):
    axis.plot(v, target(v), color="black", ls=":", label=f"target {name}")
    axis.set(title=f"Learning {name}", xlabel="input v (no unit)", ylabel="output (no unit)")
    axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# *Good* is: the right first guess gets close to its target, the wrong one stops at the loss that no training can go
# below. More steps or a wider block do not help; the first guess does. (The paper copies the input to two
# coordinates, where folding is not impossible, only hard.)
#
# ## 2. The first guess of a U-Net
#
# A decoder that adds to the coarse answer, D(w | v) = repeat(w) + correction(w | v), makes the U-Net of one
# resolution the first guess of the next. `resnet_form` takes such a network apart; the two sides are the same
# function.

# %%
net = ScoreUNet(base=8, multipliers=(1, 1), down="none", blocks=1).build(nnx.Rngs(0))
graph, params = nnx.split(net)
leaves, tree = jax.tree.flatten(params)
rng = np.random.default_rng(0)
leaves = [leaf + jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype) for leaf in leaves]  # off the zero start
net = nnx.merge(graph, jax.tree.unflatten(tree, leaves))
unet = precondition(net.unet)
x, level = jnp.asarray(rng.normal(size=(4, 8, 8, 1)), "float32"), jnp.zeros(4)


@jax.jit
def both(v):
    form = resnet_form(unet)
    return unet(v, level), form(v, level), form.first_guess(v, level)


whole, resnet, guess = both(net.lifts[-1](x))
print(f"largest difference of the two sides {float(jnp.abs(whole - resnet).max()):.1e}")
print(f"the first guess is constant on 2 x 2 pixels: {bool(jnp.all(guess[:, ::2, ::2] == guess[:, 1::2, 1::2]))}")
print("parameters of each part:", net.parameter_counts())

# %% [markdown]
# This Multi-ResNet has no parameter in its encoder: the way down is average pooling, nothing else.
#
# ## 3. What noise leaves of each resolution
#
# Split images into Haar levels. The transform is orthonormal, so noise has the same variance in every coefficient
# of every level, but the image has not: its coarse coefficients are large and its fine ones small. So noise drowns
# the fine levels first. A denoiser at noise level l = log(sigma / alpha) loses nothing by looking only at the levels
# that stand above the noise, and these are what average pooling keeps.

# %%
digits, _ = load("digits", n=500 if SMALL else 1500)
images = jnp.asarray(2 * digits / 16 - 1, "float32")[..., None]
images = images - images.mean(0, keepdims=True)
energies = np.asarray(level_energies(images, 3))
levels = np.linspace(-3, 2, 101)
figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.2), layout="constrained")
for j, color in enumerate((BLUE, ORANGE, GREY)):
    snr = [float(level_snr(energies, 1.0, np.exp(level))[j]) for level in levels]
    axes[0].semilogy(levels, snr, color=color, label=f"level {j} ({2 ** (j + 1)} x {2 ** (j + 1)} pixels)")
axes[0].axhline(1.0, color="black", ls="--", lw=1)
axes[0].set(title="Signal over noise of each level, digits", xlabel="noise level log(sigma / alpha) (no unit)")
axes[0].set_ylabel("SNR (no unit)")
axes[0].legend(fontsize=8)
noise = jnp.asarray(rng.normal(size=(200, 32, 32, 1)), "float32")
pooled = [float(project_image(noise, k).std()) for k in range(5)]
axes[1].semilogy(range(5), pooled, "o", color=BLUE, label="measured")
axes[1].semilogy(range(5), [2.0**-k for k in range(5)], color="black", lw=1, label="2^-k")
axes[1].set(title="Noise left after pooling", xlabel="number of poolings k", ylabel="standard deviation (no unit)")
axes[1].legend(fontsize=8)
plt.show()
print("energy a coefficient, coarse to fine:", energies.round(3))
print("noise level that drowns each level:  ", np.asarray(crossing(energies)).round(2))

# %% [markdown]
# *Good* is: on the left the curves cross the dashed line one after another, the finest level first; on the right
# every pooling halves the noise. Digits of 8 x 8 pixels fall off slowly (a factor of two a level); photographs, with
# a factor of four and more, profit more. `python -m benchmarks run snr_per_level` has the slopes with intervals.
