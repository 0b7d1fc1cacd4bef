"""Why the ELBO lies below log p(x): what the guide's family cannot do, and what the encoder does not find.

    log p(x) - ELBO(q_x)  =  [log p(x) - ELBO(q*_x)]  +  [ELBO(q*_x) - ELBO(q_x)]
    total inference gap       approximation gap          amortisation gap

for each datum x: q_x is the guide's posterior, q*_x the best of its own family, found for this datum with the decoder
frozen (Cremer, Li & Duvenaud 2018, "Inference suboptimality in variational autoencoders", eq. 3-5).  A large
approximation gap asks for a richer family (full covariance, a flow), a large amortisation gap for a wider encoder,
longer training, or :func:`inference.refine`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from inference.checking.log_weights import Weigher, summarise
from inference.checking.optimise import COVARIANCES, Settings, optimise
from inference.checking.per_datum import check_count, check_key, checksums, pairs_at_once, prepare_key, prepare_one
from inference.checking.psis import KHAT_BAD
from inference.checking.refinement import AMORTISED, REFINED, Refined, mended, plan
from inference.checking.semi_amortised import Local
from inference.checking.transport import reference as started
from inference.fitting.objectives import trace_posterior
from inference.fitting.sources import stored
from ppl_models.program import rows, take

if TYPE_CHECKING:
    import pandas as pd

GAPS = ("total", "approximation", "amortisation")
_DRAW, _FAMILY = 201, 202


def inference_gaps(
    fit: Any,
    x: Any,
    *,
    key: jax.Array,
    reference: pd.DataFrame | None = None,
    family: str = "auto",
    steps: int = 200,
    particles: int = 512,
    chunk: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Table of the inference gap of each stored datum of ``x`` (n, *shape) and its two parts, in nats.

    ===================  ======  ==================================================================================
    column               unit    meaning
    ===================  ======  ==================================================================================
    ``datum, x_crc``             as in :func:`inference.evidence`
    ``log_px, se``       nats    reference log p(x) and its standard error; ``khat``, ``estimator`` say how it came
    ``elbo``             nats    of the guide's posterior of this datum
    ``elbo_family``      nats    of the best posterior of the guide's own family, as far as ``steps`` found it
    ``total``            nats    ``log_px - elbo``
    ``approximation``    nats    ``log_px - elbo_family``
    ``amortisation``     nats    ``elbo_family - elbo``; the two add up to ``total``
    ``..._se``           nats    Monte Carlo standard error of each; log p(x) and both ELBOs have draws of their own
    ``trusted``                  whether the reference can be believed; where not, ``total`` and ``approximation`` are
                                 likely too small
    ===================  ======  ==================================================================================

    ``reference``  a table of :func:`inference.evidence` for these data from the same ``key``, for ``method="ais"`` say,
                   or of :func:`inference.nuts_evidence`; by default importance sampling from posteriors refined
                   with full covariance (of low rank beyond 64 numbers).
    ``family``     covariance of q* in the guide's own noise coordinates: ``"auto"`` is what the guide has, ``"diag"``
                   for a Normal of independent numbers, ``"full"`` or ``"low_rank"`` for a multivariate one.  Each
                   level of a hierarchy, and each transformed Normal, keeps its map and its context: q* moves and
                   scales the noise, so where contexts or a flow could be better too, the amortisation gap is a lower
                   bound and the approximation gap an upper one.  So it is for Beta, Gamma and Dirichlet, whose q* is
                   sought among logistic normals and log-normals.
    ``steps``      of Adam for each datum; more can only move gap from approximation to amortisation.
    ``particles``  draws for each ELBO and for the default reference, at least 25; as many pilot draws say whether q*
                   is better than q, which stands in for it where not: the best of a family is not worse than a member.
    ``chunk``      (datum, draw) pairs at once, as in :func:`inference.evidence`.

    ``attrs`` hold ``family``, ``steps``, ``particles``, ``observation`` and ``kept``, the sites that cannot be refined
    and count as approximation.  One ``RuntimeWarning`` says how many rows have no reference to believe.  Raises
    ``ValueError`` before any work for data the program cannot score, arguments out of range, a program without a
    posterior to optimise, and a reference of other data.

    >>> table = inference_gaps(fit, x_test, key=jax.random.key(0))
    >>> gap_summary({"digits": table})
    """
    import pandas as pd

    check_key(key)
    check_count("steps", steps, 1)
    check_count("particles", particles, 25)
    if family not in COVARIANCES:
        raise ValueError(f"family must be one of {', '.join(COVARIANCES)}, got {family!r}")
    fit = fit.fit if isinstance(fit, Refined) else fit
    pairs, x = pairs_at_once(fit.program, chunk), stored(fit.program, x)
    parts, n, crc = plan(fit, x), rows(x), checksums(x)
    if parts is None or not parts.size:
        raise ValueError(
            "this program has no latent whose posterior can be optimised for a datum (none at all, discrete ones or "
            "mixtures), so its gap has no parts; evidence(fit, x, key=key) has log_px - elbo"
        )
    if reference is not None and ("x_crc" not in reference or list(reference["x_crc"]) != list(crc)):
        raise ValueError("reference is a table of other data than x; pass evidence(fit, x, key=key) of these, in order")
    family = own_family(fit, x) if family == "auto" else family
    index = np.arange(n)
    noise = jax.vmap(lambda i: prepare_key(key, i))(jnp.asarray(index, jnp.uint32))
    weigh = Weigher(fit, pairs, progress=progress, what="inference gaps")

    def elbo(local: Local, purpose: int, pilot: bool = False) -> tuple[np.ndarray, np.ndarray]:
        own = jax.random.fold_in(key, purpose + 10 * pilot)
        log_weight = weigh(x, particles, own, local=local, index=index).astype(np.float64)
        return log_weight.mean(1), log_weight.std(1, ddof=1) / np.sqrt(particles)

    settings = Settings(covariance=family, steps=steps, tolerance=0.0, widen=1.0, draws=16)
    best = optimise(
        fit, x, noise, index, parts, settings, key=jax.random.fold_in(key, _FAMILY), pairs=pairs, progress=progress
    ).q
    shares = lambda *of: jnp.tile(jnp.asarray(of), (n, 1))  # noqa: E731
    guide, optimised = Local(noise, best, shares(0.0, 1.0, 0.0)), Local(noise, best, shares(1.0, 0.0, 0.0))
    better = elbo(optimised, _FAMILY, pilot=True)[0] > elbo(guide, _DRAW, pilot=True)[0]
    chosen = Local(noise, best, jnp.where(better[:, None], optimised.shares, guide.shares))
    (amortised, amortised_se), (of_family, family_se) = elbo(guide, _DRAW), elbo(chosen, _FAMILY)
    if reference is None:
        found = _refined_reference(weigh, x, index, parts, key=key, particles=particles, pairs=pairs, progress=progress)
    else:
        found = {name: reference[name].to_numpy() for name in ("log_px", "se", "khat", "estimator")}
    log_px, se = found["log_px"].astype(float), found["se"].astype(float)
    table = pd.DataFrame(
        {
            "datum": index, "x_crc": crc, **{name: found[name] for name in ("log_px", "se", "khat", "estimator")},
            "elbo": amortised, "elbo_family": of_family,
            "total": log_px - amortised, "total_se": np.hypot(se, amortised_se),
            "approximation": log_px - of_family, "approximation_se": np.hypot(se, family_se),
            "amortisation": of_family - amortised, "amortisation_se": np.hypot(family_se, amortised_se),
            "trusted": believed(found),
        }
    )  # fmt: skip
    table.attrs = {
        "family": family, "steps": steps, "particles": particles, "kept": parts.kept,
        "observation": fit.program.observation.line,
    }  # fmt: skip
    if lost := int((~table["trusted"]).sum()):
        warnings.warn(
            f"the reference log p(x) of {lost} of {n} data cannot be believed (k-hat above {KHAT_BAD}, or not finite); "
            "their total and approximation gaps are likely too small - pass reference=evidence(fit, x, key=key, "
            "particles=...) with more particles, or annealed",
            RuntimeWarning,
            stacklevel=2,
        )
    return table


def believed(found: Mapping[str, Any]) -> np.ndarray:
    """Which rows of an evidence table hold: finite, and k-hat within its bound where importance weights have one."""
    khat = np.asarray(found["khat"], float)
    weighted = np.isin(np.asarray(found["estimator"]), (AMORTISED, REFINED))
    finite = np.isfinite(np.asarray(found["log_px"], float)) & np.isfinite(np.asarray(found["se"], float))
    return finite & np.where(np.isnan(khat), ~weighted, khat <= KHAT_BAD)


def _refined_reference(
    weigh: Weigher, x: Any, index: np.ndarray, parts: Any, *, key: jax.Array, particles: int, pairs: int, progress: bool
) -> dict[str, np.ndarray]:
    found = mended(
        weigh, x, index, parts, Settings(steps=200), particles=particles, key=key, pairs=pairs, progress=progress
    )
    values = summarise(weigh(x, particles, key, local=found.local, index=index))
    return {**values, "estimator": np.where(found.better, REFINED, AMORTISED)}


def own_family(fit: Any, x: Any) -> str:
    """Covariance of the guide's distributions over the noise of stored data ``x``: ``diag``, ``full``, ``low_rank``."""
    program, kinds = fit.program, set[type]()
    one = jax.tree.map(jnp.asarray, take(x, 0))

    def traced() -> int:
        prepared = prepare_one(program, jax.random.key(0), one, jnp.uint32(0))
        sites = trace_posterior(program, fit.params, jax.random.key(0), prepared, mutable=fit.mutable)
        for site in sites.values():
            if site["type"] == "sample" and "prior" in site["infer"]:
                base = started(site["fn"])
                while hasattr(base, "base_dist"):
                    base = base.base_dist
                kinds.add(type(base))
        return 0

    jax.eval_shape(traced)
    if kinds & {dist.MultivariateNormal}:
        return "full"
    return "low_rank" if kinds & {dist.LowRankMultivariateNormal} else "diag"


def gap_summary(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a table of :func:`inference_gaps`: means over the data whose reference can be believed, in nats.

    ``total, approximation, amortisation`` with their Monte Carlo errors ``..._se``; ``share``, of the total that is
    amortisation; ``data`` and ``untrusted``, how many were left out.
    """
    import pandas as pd

    found = []
    for name, whole in tables.items():
        table = whole[whole["trusted"]]
        n = max(1, len(table))
        row: dict[str, Any] = {"name": name, "family": whole.attrs.get("family", "")}
        for gap in GAPS:
            row[gap] = float(table[gap].mean())
            row[f"{gap}_se"] = float(np.sqrt((table[f"{gap}_se"] ** 2).sum()) / n)
        row["share"] = row["amortisation"] / row["total"] if row["total"] > 0 else np.nan
        found.append({**row, "data": len(table), "untrusted": len(whole) - len(table)})
    return pd.DataFrame(found).set_index("name")
