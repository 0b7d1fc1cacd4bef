"""Does a diffusion as the prior of a VAE's latent predict unseen digits better than N(0, I), and than a mixture?

Scikit-learn's digits, binary (grey > 7.5 of 16), 1,350 to fit, 150 to choose the step of each training, 297 to test.
The VAE has one level: an MLP 64-128-128 to 12 latents and back, dropout .2; the diffusion is trained afterwards on
draws of its posterior, decoder and posterior as they are; or together with the VAE, by one ELBO.  All are
scored by ``inference.evidence``, importance sampling from the posterior, log p(z) by the ODE with the exact trace;
paired differences, averaged over seeds, errors over data.  The mixture of Bernoullis is fitted by EM, its size and
smoothing chosen on the 150.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.harness import Claim
from benchmarks.hvae_digits import BATCH, best_mixture, one_level, paired
from inference import evidence, fit
from ppl_models import datasets
from ppl_models.diffusion import MLP, RK4, Diffusion, fit_joint_latent_prior, fit_latent_prior
from ppl_models.hvae.training import vdvae_training

LATENT, STEPS, PRIOR_STEPS, PARTICLES = 12, 5000, 2000, 64


def one_seed(x: dict[str, np.ndarray], seed: int, quick: bool) -> dict[str, Any]:
    """Evidence of the test data with the plain prior and with the diffusions, nats each; CPU seconds."""
    steps, prior_steps = (100, 60) if quick else (STEPS, PRIOR_STEPS)
    key, began = jax.random.key(seed), time.process_time()
    rules = vdvae_training(steps, learning_rate=3e-3, b2=0.999, average=0.995, warmup=min(100, steps // 2))
    vae = fit(
        one_level(key, hidden=128, latent=LATENT), x["train"], steps=steps, key=jax.random.key(100 + seed),
        batch_size=BATCH, validation=x["validation"], validate_every=max(1, steps // 40), progress=False, **rules,
    )  # fmt: skip
    middle = time.process_time()
    spec = Diffusion((LATENT,), network=MLP(width=64, depth=1), solver=RK4(12, 1.75))
    better, diffusion = fit_latent_prior(
        fit, vae, x["train"], spec=spec, steps=prior_steps, validation=x["validation"], batch_size=256, average=0.995,
        learning_rate=2e-3, validate_every=max(1, prior_steps // 20), key=jax.random.key(200 + seed), progress=False,
    )  # fmt: skip
    after = time.process_time()
    # The diffusion starts as N(0, I), with levels wide enough for an uncapped bound; the VAE's rules are those above.
    joint = fit_joint_latent_prior(
        fit, one_level(key, hidden=128, latent=LATENT), x["train"], steps=steps, key=jax.random.key(100 + seed),
        spec=dataclasses.replace(spec, level_mean=-0.3, level_spread=1.6), batch_size=BATCH,
        validation=x["validation"], validate_every=max(1, steps // 40), progress=False, **rules,
    )  # fmt: skip
    trained = time.process_time()
    seconds = {"vae": middle - began, "diffusion": after - middle, "joint": trained - after}
    found: dict[str, Any] = {"cpu_seconds": seconds}
    for name, fitted in (("plain", vae), ("diffusion", better), ("joint", joint)):
        table = evidence(
            fitted, x["test"], particles=8 if quick else PARTICLES, key=jax.random.key(9), refine="none", progress=False
        )
        found[name] = table["log_px"].to_numpy()
        found[f"{name}_elbo"] = float(table["elbo"].mean())
        found[f"{name}_khat_above_0.7"] = float((table["khat"] > 0.7).mean())
    found["cpu_seconds"]["evidence"] = time.process_time() - trained
    found["best_steps"] = [f.info["best_step"] for f in (vae, diffusion, joint)]
    return found


def run(quick: bool) -> Iterator[Claim]:
    """Make the claims; quick: one seed, few steps and data."""
    train, _ = datasets.load("digits", "train")
    test, _ = datasets.load("digits", "test")
    x = {"train": train[:1350], "validation": train[1350:], "test": test[:16] if quick else test}
    seeds = (0,) if quick else (0, 1, 2)
    runs = [one_seed(x, seed, quick) for seed in seeds]
    plain, diffusion, joint = (np.mean([r[name] for r in runs], axis=0) for name in ("plain", "diffusion", "joint"))
    binary = (x["test"].reshape(-1, 64) > 7.5).astype(float)
    mixture, chosen = best_mixture(x["train"], x["validation"], (20,) if quick else (60, 120), 0, 5 if quick else 40)
    bar = mixture.log_prob(binary)
    gain, se = paired(diffusion, plain)
    detail = {
        "seeds": [{k: float(np.mean(v)) if isinstance(v, np.ndarray) else v for k, v in r.items()} for r in runs],
        "per_seed": [paired(r["diffusion"], r["plain"]) for r in runs], "difference": gain, "se": se,
        "plain": float(plain.mean()),
        "diffusion": float(diffusion.mean()), "joint": float(joint.mean()), "mixture": float(bar.mean()), **chosen,
    }  # fmt: skip
    yield Claim(
        name="gain",
        claim="VAE of binary digits: log p(x) with a diffusion as p(z) less that with N(0, I), less 2 s.e.",
        value=gain - 2 * se,
        unit="nats",
        target="> 0",
        seeds=seeds,
        if_missed="the difference is 0.002 nats: validation stops the diffusion early, for posterior draws of unseen "
        "digits are close to N(0, I) already, and those of 1,350 digits are soon learnt by heart",
        reference=f"mixture of Bernoullis by EM {bar.mean():.2f} nats, plain prior {plain.mean():.2f}",
        detail=detail,
    )
    ahead, se = paired(diffusion, bar)
    yield Claim(
        name="over_mixture",
        claim="the same with the diffusion as p(z), less the best mixture of Bernoullis by validation, less 2 s.e.",
        value=ahead - 2 * se,
        unit="nats",
        target="> 0",
        seeds=seeds,
        if_missed="12 latents and a small decoder",
        detail={"difference": ahead, "se": se},
    )
    together, se = paired(joint, plain)
    yield Claim(
        name="joint_gain",
        claim="the same, diffusion and VAE trained together by one ELBO, less the VAE with N(0, I), less 2 s.e.",
        value=together - 2 * se,
        unit="nats",
        target="> 0",
        seeds=seeds,
        if_missed="1,350 digits are few: the bound is estimated at one noise level a datum, which adds noise to the "
        "gradient of the posterior, and a VAE of 12 latents fills N(0, I) well already",
        reference=f"N(0, I) {plain.mean():.2f}, trained afterwards {diffusion.mean():.2f}, together {joint.mean():.2f} "
        "nats",
        detail={
            "difference": together, "se": se, "per_seed": [paired(r["joint"], r["plain"]) for r in runs],
            "over_trained_afterwards": paired(joint, diffusion), "over_mixture": paired(joint, bar),
        },
    )  # fmt: skip
