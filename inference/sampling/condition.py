"""The posterior of a datum under a diffusion prior, given any NumPyro likelihood, by one call and several methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array

from inference.sampling.chains import chains
from inference.sampling.mcgdiff import AFFINE, Linear, grid_of, linear, mcgdiff
from inference.sampling.observed import Likelihood, Observed, gaussian_parts
from inference.sampling.particles import Run
from inference.sampling.protocols import time_grid
from inference.sampling.shown import shown
from inference.sampling.twisted import twisted
from inference.sampling.twists import KINDS, Kind, Spectrum, Twister, default_kind
from ppl_models.program import did_you_mean

METHODS: Mapping[str, str] = MappingProxyType(
    {
        "nuts": "NUTS on the density of the ODE; any likelihood with a gradient",
        "noise_hmc": "NUTS on the noise that the ODE starts from; the same",
        "tds": "twisted sequential Monte Carlo; any likelihood with a gradient almost everywhere; log-evidence",
        "mcgdiff": "sequential Monte Carlo for linear-Gaussian observations; log-evidence",
        "tmpd": "guidance with the covariance that the denoiser implies; normal likelihoods; approximate",
        "pigdm": "guidance with a covariance by rule; normal likelihoods; approximate",
        "dps": "guidance by the likelihood of the denoised datum; any likelihood; far too sure",
    }
)
"""Methods of :func:`condition`: the first four are exact in the limit, the others are not."""
GUIDES = {"dps": "point", "pigdm": "gaussian", "tmpd": "tweedie"}
CHAINS = ("nuts", "noise_hmc")
PROBES = 32


def condition(
    law: Any,
    likelihood: Likelihood,
    y: Any,
    *,
    key: Any,
    method: str = "tds",
    runs: int = 4,
    draws: int = 1000,
    steps: int = 200,
    warp: float = 1.5,
    warmup: int = 500,
    twist: str | None = None,
    spread: float | None = None,
    progress: bool = True,
    **options: Any,
) -> Any:
    """Draws of p(x, nuisances | y) as a DataTree whose chains are ``runs`` independent runs of ``method``.

    ``law``         a ``DiffusionPrior`` over x, or one moved by transforms (``ppl_models.diffusion.prior``).
    ``likelihood``  ``x -> NumPyro distribution of y``; parameters that it samples on the way (noise level, blur) are
                    nuisances, inferred with x.  A NumPyro model ``(x, y)`` with one observed site serves, too.
    ``method``      :data:`METHODS`.  ``nuts``, ``noise_hmc``, ``tds`` and ``mcgdiff`` are exact in the limit; ``dps``,
                    ``pigdm`` and ``tmpd`` are guidance, whose draws follow another law (``inference.sampler_verdict``).
    ``draws``       of every run: particles of a particle method, draws after ``warmup`` of a chain.
    ``steps``       of the particle methods down the noise levels, with :func:`time_grid`'s ``warp``.  They are exact
                    for the discretised diffusion: where results matter, compare twice the steps.
    ``twist``       of ``tds`` (:mod:`inference.sampling.twists`): ``"tweedie"``, ``"gaussian"``, ``"smoothed"`` or
                    ``"point"``; by default the first that the likelihood allows.
    ``spread``      variance of every coordinate of the prior, in the law's own units, for the twists; by default the
                    covariance of 512 draws of the prior.
    ``progress``    how far it is, on standard error, after two seconds.
    ``options``     of NUTS (``target_accept_prob``, ``max_tree_depth``), for the two chain methods.

    The tree has the groups ``posterior`` (x and every nuisance), ``log_likelihood`` (each entry of y, where these are
    independent), ``posterior_predictive``, ``observed_data``, ``denoising_path`` (D of eight particles of a particle
    method) and ``sample_stats``: ``diverging``, ``n_steps`` of chains; of particle methods ``log_weight`` (chain,
    particle) before the last resampling, ``ess`` (chain, step), ``resampled``, and ``log_evidence_increment``, whose
    sum over steps is ``log_evidence`` (chain), nats.  Its attrs hold ``method``, and ``log_evidence`` with
    ``log_evidence_se`` over all runs, where the method gives one: the exponential of a run's is unbiased for the
    evidence of the discretised diffusion.

    Particles that share an ancestor are neighbours along ``draw``: the effective sample size of the tree counts them
    once.  Raises ``ValueError`` for an unknown method, a y of another shape than the likelihood's, a method that the
    likelihood does not allow, and nuisances where a method has no law for them.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
    >>> from ppl_models.distributions import DiffusionPrior, Trigonometric, Velocity
    >>> law = DiffusionPrior(Velocity(lambda params, x, t: jnp.zeros_like(x)), Trigonometric(), (2,))    # N(0, I)
    >>> tree = condition(law, lambda x: dist.Normal(x, 1.0).to_event(1), jnp.ones(2), key=jax.random.key(0), draws=500,
    ...                  steps=50)                                                                      # doctest: +SKIP
    >>> tree.attrs["log_evidence"]                                                                      # doctest: +SKIP
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}{did_you_mean(method, METHODS)}; known: {', '.join(METHODS)}")
    if method not in CHAINS and options:
        raise ValueError(f"method {method!r} takes no {', '.join(sorted(options))}; these would be options of NUTS")
    for name, value, least in (("runs", runs, 1), ("draws", draws, 4), ("steps", steps, 2), ("warmup", warmup, 1)):
        if not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    y = jnp.asarray(y)
    core, to_data = unwrap(law)
    observed = Observed(likelihood, y, to_data(jnp.zeros(core.event_shape)))
    own, after = jax.random.split(jax.random.fold_in(key, 0))
    stats: dict[str, Any]
    if method in CHAINS:
        x, u, stats = chains(
            law, core, to_data, observed, key=own, noise=method == "noise_hmc", runs=runs, draws=draws, warmup=warmup,
            progress=progress, **options,
        )  # fmt: skip
        return _tree(observed, x, u, method, {name: (("chain", "draw"), v) for name, v in stats.items()}, after)
    plan = Plan.of(law, likelihood, y, method, draws, steps, warp, twist, spread)
    plan.report = progress
    with shown(len(plan.times) - 1, method, "steps", show=progress):
        run = jax.device_get(_runs(law, y, jax.random.split(own, runs), plan.given, plan.times, plan))
    x = np.asarray(jax.vmap(jax.vmap(to_data))(jnp.asarray(run.x)))
    stats = {
        "log_weight": (("chain", "particle"), run.log_weight),
        "ess": (("chain", "step"), run.ess),
        "resampled": (("chain", "step"), run.resampled),
    }
    log_z = run.increments.astype(float).sum(1)
    if method not in GUIDES:
        stats["log_evidence_increment"] = (("chain", "step"), run.increments)
        stats["log_evidence"] = (("chain",), log_z)
    tree = _tree(observed, x, run.u, method, stats, after, run.path)
    if method not in GUIDES:
        weight = np.exp(log_z - log_z.max())
        tree.attrs["log_evidence"] = float(log_z.max() + np.log(weight.mean()))
        se = weight.std(ddof=1) / weight.mean() / np.sqrt(runs) if runs > 1 else np.nan
        tree.attrs["log_evidence_se"] = float(se)
    tree.attrs["steps"] = steps
    return tree


# ------------------------------------------------------------------------------------------------- particles
class Plan:
    """What a particle method is compiled for: hashable, equal where everything but y, params and keys is."""

    def __init__(self, likelihood: Likelihood, method: str, draws: int, twist: Kind, size: int) -> None:
        self.likelihood, self.method, self.draws, self.twist, self.size = likelihood, method, draws, twist, size
        self.given: Linear | Spectrum | None = None
        self.times: Array = jnp.zeros(0)
        self.report = False
        """Whether its loop says how far it is."""

    def _key(self) -> tuple[Any, ...]:
        return self.likelihood, self.method, self.draws, self.twist, self.size, self.report

    def __hash__(self) -> int:
        return hash(self._key())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self._key() == other._key()

    @classmethod
    def of(
        cls, law: Any, likelihood: Likelihood, y: Array, method: str, draws: int, steps: int, warp: float,
        twist: str | None, spread: float | None,
    ) -> Plan:  # fmt: skip
        """The plan of one call, checked before anything is computed."""
        core, to_data = unwrap(law)
        zero = to_data(jnp.zeros(core.event_shape))
        observed = Observed(likelihood, y, zero)
        if twist is not None and (method != "tds" or twist not in KINDS):
            raise ValueError(f"twist is one of {', '.join(KINDS)}, for method 'tds'; got {twist!r} for {method!r}")
        if spread is not None and not spread > 0:
            raise ValueError(f"spread is the variance of a coordinate of the prior, expected > 0, got {spread!r}")
        if observed.size and method != "tds":
            raise ValueError(
                f"{method!r} has no law for nuisances ({', '.join(observed.nuisances)}); use 'tds', 'nuts' or "
                "'noise_hmc', or fix them in the likelihood"
            )
        if method in ("pigdm", "tmpd", "mcgdiff") and gaussian_parts(observed.law(zero, jnp.zeros(0))) is None:
            raise ValueError(f"{method!r} needs a normal likelihood; use 'tds', 'nuts' or 'dps'")
        chosen = cast(Kind, twist or GUIDES.get(method) or default_kind(observed, zero))
        plan = cls(likelihood, method, draws, chosen, observed.size)
        plan.times = time_grid(core.schedule, steps, warp=warp)
        if method == "mcgdiff":
            known = plan.given = _linear(observed, core, to_data)
            plan.times = grid_of(core.schedule, steps, warp, np.asarray(known.tau, float))
        else:
            plan.given = (
                Spectrum.of(_drawn(core, jax.random.key(0))) if spread is None else Spectrum(jnp.full(1, spread))
            )
            Twister(chosen, observed, to_data, core.schedule)  # its checks
        return plan


def _linear(observed: Observed, core: Any, to_data: Callable[[Array], Array]) -> Linear:
    """The affine mean and the noise of a normal likelihood, checked at a point away from zero."""

    def parts(x: Array) -> Any:
        return gaussian_parts(observed.law(to_data(x.reshape(core.event_shape)), jnp.zeros(0)))

    zero = jnp.zeros(int(np.prod(core.event_shape)))
    away = jnp.sin(1.0 + 7.0 * jnp.arange(len(zero))) * 2
    (loc, noise), (loc_2, noise_2) = parts(zero), parts(away)
    jacobian = jax.jacrev(lambda x: parts(x)[0])(zero)
    scale = float(jnp.abs(loc_2 - loc).max()) + 1e-6
    if float(jnp.abs(loc + jacobian @ away - loc_2).max()) > AFFINE * scale or not np.allclose(noise, noise_2, 1e-4):
        raise ValueError("'mcgdiff' needs a mean that is affine in x and noise that does not depend on it; use 'tds'")
    draws = _drawn(core, jax.random.key(0)).reshape(-1, len(zero))
    loc, noise, jacobian, draws = (np.asarray(v, float) for v in (loc, noise, jacobian, draws))
    return linear(loc, noise, jacobian, draws, core.schedule)


@jax.jit
def _drawn(core: Any, key: Array) -> Array:
    """Draws of the prior for its moments, which only steer."""
    return core.sample(key, (512,))


def one_run(law: Any, y: Array, key: Array, given: Any, times: Array, plan: Plan) -> Run:
    """One run of a particle method, a pure function."""
    core, to_data = unwrap(law)
    base_key, probe_key, own = jax.random.split(key, 3)
    x = core.sample_base(base_key, (plan.draws,))

    def denoise(x: Array, t: Array) -> Array:
        return core.prediction.denoise(core.schedule, core.params, x, t)

    if plan.method == "mcgdiff":
        return mcgdiff(denoise, core.schedule, given, y.reshape(-1), x, times, key=own, report=plan.report)
    d = int(np.prod(core.event_shape))
    probes = jax.random.normal(probe_key, (PROBES // 2, d)) if plan.twist == "smoothed" else None
    probes = None if probes is None else jnp.concatenate([probes, -probes])
    observed = Observed(plan.likelihood, y, to_data(jnp.zeros(core.event_shape)))
    twister = Twister(plan.twist, observed, to_data, core.schedule, cov=given, probes=probes)
    return twisted(
        denoise, core.schedule, twister, x, times, key=own, resample=plan.method == "tds", report=plan.report
    )


@partial(jax.jit, static_argnums=(5,))
def _runs(law: Any, y: Array, keys: Array, given: Any, times: Array, plan: Plan) -> Run:
    return jax.vmap(lambda key: one_run(law, y, key, given, times, plan))(keys)


# ------------------------------------------------------------------------------------------------ laws, trees
def unwrap(law: Any) -> tuple[Any, Callable[[Array], Array]]:
    """The diffusion inside ``law``, and the map from its x_0 to the data's units.

    Raises ``ValueError`` for a law that is no diffusion.
    """
    transforms: list[Any] = []
    core = law
    while isinstance(core, dist.TransformedDistribution):
        transforms = [*core.transforms, *transforms]
        core = core.base_dist
    if not all(hasattr(core, name) for name in ("prediction", "schedule", "from_noise", "sample_base")):
        raise ValueError(
            f"law must be a DiffusionPrior, or one under transforms, got {type(core).__name__}; see "
            "ppl_models.distributions"
        )
    if core.batch_shape:
        raise ValueError(f"law must be of one datum, got batch shape {core.batch_shape}")

    def to_data(x: Array) -> Array:
        for transform in transforms:
            x = transform(x)
        return x

    return core, to_data


@partial(jax.jit, static_argnums=(0,))
def _read(likelihood: Likelihood, y: Array, x: Array, u: Array, keys: Array) -> tuple[Array, Array, dict[str, Array]]:
    """log p of each entry of y, replicated y and nuisances of every draw."""
    observed = Observed(likelihood, y, x[0, 0])

    def one(x: Array, u: Array, key: Array) -> tuple[Array, Array, dict[str, Array]]:
        return observed.each(x, u), observed.law(x, u).sample(key), observed.constrain(u)

    return jax.vmap(jax.vmap(one))(x, u, keys)


def _tree(observed: Observed, x: Any, u: Any, method: str, stats: Mapping[str, Any], key: Any, path: Any = None) -> Any:
    """The DataTree of draws x (chain, draw, *shape) in the data's units, u (chain, draw, p)."""
    import xarray as xr

    x, u = jnp.asarray(x), jnp.asarray(u)
    each, predicted, nuisances = _read(observed.likelihood, observed.y, x, u, jax.random.split(key, x.shape[:2]))

    def data(name: str, values: Any) -> tuple[tuple[str, ...], np.ndarray]:
        values = np.asarray(values)
        return ("chain", "draw", *(f"{name}_dim_{i}" for i in range(values.ndim - 2))), values

    y = np.asarray(observed.y)
    groups = {
        "/posterior": {"x": data("x", x), **{name: data(name, v) for name, v in nuisances.items()}},
        "/sample_stats": dict(stats),
        "/log_likelihood": {"y": data("y", each)},
        "/posterior_predictive": {"y": data("y", predicted)},
        "/observed_data": {"y": (tuple(f"y_dim_{i}" for i in range(y.ndim)), y)},
    }
    if path is not None:
        dims = ("chain", "step_down", "particle_shown", *(f"x_dim_{i}" for i in range(np.ndim(path) - 3)))
        groups["/denoising_path"] = {"x": (dims, np.asarray(path))}
    coords = {"chain": np.arange(x.shape[0]), "draw": np.arange(x.shape[1])}
    with_axes = ("/posterior", "/log_likelihood", "/posterior_predictive")
    tree = xr.DataTree.from_dict(
        {name: xr.Dataset(held, coords=coords if name in with_axes else {}) for name, held in groups.items()}
    )
    tree.attrs["method"] = method
    return tree
