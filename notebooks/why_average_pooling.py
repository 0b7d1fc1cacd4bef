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
# # Why average pooling is the right encoder
#
# A U-Net has two halves. The decoder adds detail, level by level; the encoder goes the other way, and is usually
# learned too. Williams et al. (NeurIPS 2023, arXiv 2305.19638) ask what an encoder is for, and answer: often, for
# nothing. Average pooling is the orthogonal projection onto images that are constant on 2 x 2 pixels. If what is
# dropped there tells the decoder nothing, a learned encoder cannot do better.
#
# This notebook shows the three facts behind that, each with its number, and then trains both encoders on a task that
# suits pooling and on one that was built against it.

# %%
# %matplotlib inline
import os
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # progress bars are off in this notebook

import jax
import matplotlib.pyplot as plt
import numpy as np

import inference
from ppl_models import datasets
from ppl_models.surrogate import PCARegression, Surrogate, UNet, predict, relative_l2

SMALL = os.environ.get("PPL_MODELS_SMALL") == "1"  # a quick look: few data, few steps
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#5b6675"
plt.rcParams.update({"figure.dpi": 110, "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlesize": 10})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

# %% [markdown]
# ## 1. Pooling is a projection, and what it drops is the Haar detail
#
# Split each block (a b; c d) of an image into its mean and three differences. With the right factors this is an
# orthogonal change of basis: the energy of the image is the energy of the means plus that of the details.


# %%
def haar(x):
    """Orthonormal Haar step of images (n, H, W): means (times 2), and the three bands of detail."""
    a, b, c, d = x[:, ::2, ::2], x[:, ::2, 1::2], x[:, 1::2, ::2], x[:, 1::2, 1::2]
    return (a + b + c + d) / 2, np.stack([(a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2])


def pool(x):
    return (x[:, ::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, ::2] + x[:, 1::2, 1::2]) / 4


rng = np.random.default_rng(0)
image = rng.normal(size=(1, 8, 8))
low, detail = haar(image)
repeated = np.kron(pool(image)[0], np.ones((2, 2)))
print(f"low band = 2 x pooled image, to {np.abs(low - 2 * pool(image)).max():.1e}")
print(f"energy: {(image**2).sum():.6f} = {(low**2).sum():.6f} + {(detail**2).sum():.6f}")
print(f"<image - projection, projection> = {((image[0] - repeated) * repeated).sum():.1e}: an orthogonal projection")

# %% [markdown]
# ## 2. Under noise, detail drowns first
#
# Natural fields have little energy in fine detail; white noise has the same in every band, because the change of
# basis is orthogonal. So the signal-to-noise ratio falls from level to level, by a factor that hardly depends on
# the noise, and above some noise level the finest band tells nothing at all. A diffusion model that pools at that
# noise level loses nothing.

# %%
digits = datasets.load("digits")[0] / 8.0 - 1
flow = datasets.trajectories("train", n=20)["w"][:, 1::3].reshape(-1, 32, 32)
noise = rng.normal(size=(500, 32, 32))


def energies(x, subtract=True):
    """Mean square of a detail coefficient, fine to coarse."""
    x, found = x - x.mean(0) * subtract, []
    while x.shape[1] > 1:
        x, detail = haar(x)
        found.append((detail**2).mean())
    return np.array(found)


figure, axis = plt.subplots(figsize=(5.2, 3.2))
for name, x, color in (("digits, 8 x 8", digits, BLUE), ("vorticity, 32 x 32", flow, ORANGE), ("noise", noise, GREY)):
    found = energies(x)
    axis.semilogy(range(1, len(found) + 1), found, "o-", color=color, label=name)
    print(
        f"{name}: {np.array2string(found, precision=3)}; ratios {np.array2string(found[1:] / found[:-1], precision=1)}"
    )
axis.set(xlabel="level, fine to coarse", ylabel="energy of a detail coefficient", title="Noise has no scale; fields do")
_ = axis.legend()

# %% [markdown]
# The vorticity of a viscous flow is the extreme case: its finest band holds a small share of the energy, and the
# ratio of neighbouring bands is far above that of digits.
#
# ## 3. If the answer does not need the detail, pooling loses nothing
#
# Let v be Gaussian and w = K v. Then the best guess of w from the pooled field, and what it loses against
# the whole field, are closed form. Here K is a heat flow of time t: the longer it runs, the less of the detail
# matters.

# %%
n = 16
k = np.fft.fftfreq(n, 1 / n)
waves = np.exp(2j * np.pi * np.outer(np.arange(n), k) / n) / np.sqrt(n)
prior = (waves * (1 + k**2) ** -1.0) @ waves.conj().T  # covariance of v in one dimension: spectrum 1 / (1 + k^2)
prior = prior.real
average = np.kron(np.eye(n // 2), np.ones((1, 2)) / 2)
times, extra = np.logspace(-4, -1, 16), []
for t in times:
    K = ((waves * np.exp(-4 * np.pi**2 * k**2 * t)) @ waves.conj().T).real
    whole = K @ prior @ K.T
    gain = K @ prior @ average.T @ np.linalg.solve(average @ prior @ average.T, average @ prior @ K.T)
    extra.append(np.trace(whole - gain) / np.trace(whole))
figure, axis = plt.subplots(figsize=(5.2, 3))
axis.loglog(times, extra, "o-", color=BLUE)
axis.set(xlabel="time of the heat flow", ylabel="unexplained share of w", title="What pooling loses, exactly")

# %% [markdown]
# The loss falls to nothing: it is the energy of the detail *after* the operator. That is the condition. It is about
# the operator, not about the network.
#
# ## 4. Two tasks, two encoders
#
# A Residual U-Net (learned encoder) and a Multi-ResNet (pooling, no parameter in the encoder) on two tasks: Darcy's
# pressure, which is smooth, and a task built against pooling: the *fine-scale energy* of a noisy picture averaged over
# 8 x 8 pixels, of which the pooled picture knows nothing (linear regression fails). But a Multi-ResNet does not pool
# the picture: it pools what its first block, the lift, has made of it.

# %%
count, steps, width, levels = (48, 10, 2, 2) if SMALL else (800, 500, 8, 3)
found, _ = datasets.load("darcy", n=count)
smooth = {name: a.reshape(count, 16, 2, 16, 2, 1).mean((2, 4)).astype("f4") for name, a in found.items()}
picture = rng.normal(size=(count, 16, 16)) * np.exp(
    rng.normal(size=(count, 2, 1, 2, 1)) * np.ones((1, 1, 8, 1, 8))
).reshape(count, 16, 16)
energy = np.log((haar(picture)[1] ** 2).mean(0).reshape(count, 2, 4, 2, 4).mean((2, 4)))
rough = {"x": picture[..., None].astype("f4"), "y": np.kron(energy, np.ones((1, 8, 8)))[..., None].astype("f4")}
cut = 3 * count // 4
tasks = {"smooth answer (Darcy)": smooth, "answer in the detail": rough}
for task, data in list(tasks.items())[: 1 if SMALL else 2]:
    train, test = ({name: a[rows] for name, a in data.items()} for rows in (slice(cut), slice(cut, None)))
    scores = {}
    for name, encoder in {"learned encoder": "learned", "pooling": "pool"}.items():
        spec = Surrogate({"x": (16, 16, 1), "y": (16, 16, 1)}, UNet(width=width, levels=levels, encoder=encoder))
        program = spec.build(jax.random.key(0))
        fit = inference.fit(
            program, train, steps=steps, batch_size=16, learning_rate=2e-3, key=jax.random.key(1), progress=False
        )
        scores[f"{name} ({program.parameter_count:,})"] = relative_l2(test["y"], predict(fit, test["x"]).mean).mean()
    first, last = ({name: a[rows] for name, a in train.items()} for rows in (slice(-cut // 6), slice(-cut // 6, None)))
    linear = PCARegression.fit(first["x"], first["y"], last["x"], last["y"])
    scores["linear regression"] = relative_l2(test["y"], linear.predict(test["x"]).mean).mean()
    print(task + ": relative L2 " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))

# %% [markdown]
# Each encoder was trained once, at one size: read the sizes of the errors, not their last digits.
# `benchmarks/pde_unets.py` has three seeds, intervals and the parameters moved to the decoder.
#
# **What to take away.** Average pooling is a projection; it loses the detail and nothing else. Where the answer at a
# coarse scale does not need finer detail (diffusion under noise, smoothing operators), a learned encoder has nothing
# to add. Where the detail itself is the message, one learned block before the first pooling can write it into channels,
# and pooling then keeps it: here the learned encoder, with twice the parameters, has no clear lead on either task.
