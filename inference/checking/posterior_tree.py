"""The posterior of every datum as an ArviZ DataTree: draws, densities, replicated data, prior, data.

The draws of a datum are independent draws from its amortised or refined posterior q(z | x), not a Markov chain: R-hat
and chain diagnostics say nothing here, the importance weights in ``sample_stats`` do.  Weighted by exp(log_weight) they
represent the true posterior.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Unit
from numpyro.handlers import seed, substitute, trace

from inference.checking.per_datum import (
    GENERATE,
    check_count,
    check_key,
    compiled,
    draw_one,
    locals_of,
    pair_key,
    pairs_at_once,
    placed,
    prepare_one,
    sweep,
)
from inference.fitting.sources import stored
from ppl_models.program import named_leaves, rows, take

if TYPE_CHECKING:
    import xarray as xr

LARGEST = 4 * 2**30
"""Bytes that a tree may take; it is held in memory and usually written to a file."""
_SAMPLES = ("chain", "draw", "datum")


def posterior(
    fit: Any,
    x: Any,
    *,
    draws: int = 100,
    key: jax.Array,
    factors: Mapping[str, Any] | None = None,
    predictive_draws: int | None = None,
    chunk: int | None = None,
    progress: bool = True,
) -> xr.DataTree:
    """DataTree of z ~ q(z | x) for each stored datum of ``x`` (n, *shape), and of what the model says about it.

    ========================  ================================================  ======================================
    group                     variables                                         dimensions
    ========================  ================================================  ======================================
    ``posterior``             latent and deterministic sites                    chain=1, draw, datum, unit_<site>
    ``sample_stats``          ``log_joint`` log p(x, z), ``log_q`` log q(z|x),  chain, draw, datum
                              ``log_weight`` their difference; nats
    ``log_likelihood``        log p(x | z) of each observed site; nats          chain, draw, datum
    ``posterior_predictive``  ``x`` sampled from p(x | z), noise included, for  chain, draw, datum, x_dim_0, ...
                              the first ``predictive_draws`` draws of z (default 10)
    ``reconstruction``        ``x``: mean of E[x | z] over all draws, where     datum, x_dim_0, ...
                              p(x | z) has a mean
    ``prior``                 latent and deterministic sites under the prior,   chain, draw, datum, unit_<site>
                              ``predictive_draws`` draws of n fresh data
    ``prior_predictive``      ``x`` sampled from those                          chain, draw, datum, x_dim_0, ...
    ``observed_data``         ``x`` as the model scores it (the arrays of a     datum, x_dim_0, ...
                              datum by name, inputs and masks too)
    ``constant_data``         ``factors``: known labels, one value a datum      datum
    ========================  ================================================  ======================================

    A site ``resp_<facet>`` has dimension ``cluster_<facet>``; a site with several dimensions has unit_<site>_0, ....
    Groups without content are left out, the predictive and prior ones with ``predictive_draws=0``.  Where a draw takes
    a solver (``Views.replicates``) and ``predictive_draws`` is left to its default, those groups hold the first data
    only, as many as keep within that number.  Attributes hold
    the program's ``observation`` and ``density`` lines, ``posterior`` (``"amortised"``, ``"refined"``) and the library
    versions.

    ``fit`` may be what :func:`inference.refine` returned for these data: the draws are then from the posteriors that
    were optimised for them, mixtures included.

    ``chunk`` is the number of (datum, draw) pairs evaluated at once, as in :func:`inference.evidence`; draws depend
    on the key and the row of the datum only.  Raises ``ValueError`` before any work for data the program cannot
    score, factors of another length, arguments out of range, and a tree above 4 GiB after the first chunk.

    >>> tree = posterior(fit, x_test, draws=100, key=jax.random.key(0), factors={"digit": labels})
    >>> save_posterior(tree, "runs/digits")  # or tree.to_netcdf(...)
    >>> arviz.summary(tree, var_names=["z"])
    """
    import xarray as xr

    check_count("draws", draws, 1)
    most = fit.program.views.replicates if predictive_draws is None else None
    predictive_draws = min(10, draws) if predictive_draws is None else predictive_draws
    check_count("predictive_draws", predictive_draws, 0)
    if predictive_draws > draws:
        raise ValueError(f"predictive_draws {predictive_draws} exceeds draws {draws}; each uses one posterior draw")
    check_key(key)
    pairs, x = pairs_at_once(fit.program, chunk), stored(fit.program, x)
    n = rows(x)
    constants = _factors(factors or {}, n)
    prepared, drawn = _posterior_pass(fit, x, draws, key, pairs, progress)
    sites = {**drawn["latents"], **drawn["deterministic"]}
    seen = {name or "x": leaf for name, leaf in named_leaves(prepared).items()}
    groups = {
        "posterior": _dataset(sites, _unit),
        "sample_stats": _dataset({name: drawn[name] for name in ("log_joint", "log_q", "log_weight")}, _unit),
        "log_likelihood": _dataset(drawn["log_lik"], _unit),
        "reconstruction": _dataset(drawn["mean"], _dim, ("datum",)),
        "observed_data": _dataset(seen, _dim, ("datum",)),
        "constant_data": _dataset(constants, _dim, ("datum",)),
    }
    if predictive_draws:
        first = n if most is None else min(n, max(1, most // predictive_draws))
        latents = {name: value[0, :predictive_draws, :first] for name, value in drawn["latents"].items()}
        seen_first = take(prepared, slice(first))
        replicated = _generate_pass(fit, latents, seen_first, predictive_draws, key, pairs, progress)
        fresh = _generate_pass(fit, {}, seen_first, predictive_draws, key, pairs, progress) if latents else replicated
        groups["posterior_predictive"] = _dataset(replicated["observed"], _dim)
        groups["prior_predictive"] = _dataset(fresh["observed"], _dim)
        groups["prior"] = _dataset({**fresh["latents"], **fresh["deterministic"]}, _unit)
    tree = xr.DataTree.from_dict({f"/{name}": group for name, group in groups.items() if group.data_vars})
    tree.attrs = {
        "observation": fit.program.observation.line,
        "density": "\n".join(fit.program.views.density),
        "posterior": "amortised" if locals_of(fit, x) is None else "refined",
        "draws": "independent draws from q(z | x); weight them by exp(log_weight)",
        "inference_library": "numpyro",
        "inference_library_version": version("numpyro"),
        "jax_version": version("jax"),
    }
    return tree


def save_posterior(tree: xr.DataTree, folder: str | Path) -> Path:
    """Write ``posterior.nc`` (netCDF 4) into an existing folder in one step; ``xarray.open_datatree`` reads it."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; create it first")
    target, partial = folder / "posterior.nc", folder / f".posterior.{os.getpid()}.partial.nc"
    try:
        tree.to_netcdf(partial, engine="h5netcdf")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _factors(factors: Mapping[str, Any], n: int) -> dict[str, np.ndarray]:
    arrays = {str(name): np.asarray(value) for name, value in factors.items()}
    for name, value in arrays.items():
        if value.ndim == 0 or len(value) != n:
            raise ValueError(
                f"factor {name!r} has shape {value.shape}, expected {n} rows: one value for each datum of x"
            )
    return arrays


def _unit(site: str, axis: int, axes: int) -> str:
    """Name of an event dimension of a latent or deterministic site."""
    stem = f"cluster_{site.removeprefix('resp_')}" if site.startswith("resp_") else f"unit_{site}"
    return stem if axes == 1 else f"{stem}_{axis}"


def _dim(site: str, axis: int, axes: int) -> str:
    """Name of an event dimension of data, as ArviZ names it."""
    return f"{site}_dim_{axis}"


def _dataset(values: Mapping[str, np.ndarray], name_of: Any, lead: tuple[str, ...] = _SAMPLES) -> xr.Dataset:
    import xarray as xr

    variables = {}
    for name, value in values.items():
        axes = value.ndim - len(lead)
        variables[name] = ((*lead, *(name_of(name, axis, axes) for axis in range(axes))), value)
    result = xr.Dataset(variables)
    return result.assign_coords({dim: np.arange(size) for dim, size in result.sizes.items()})


class _Store:
    """Arrays (chain=1, draw, datum, ...) filled block by block; refuses a total above ``LARGEST`` at the first."""

    def __init__(self, draws: int, data: int) -> None:
        self.draws, self.data = draws, data
        self.arrays: Any = None

    def put(self, rows: slice, columns: slice, block: Any) -> None:
        if self.arrays is None:
            size = sum(leaf[0, 0].nbytes for leaf in jax.tree.leaves(block)) * self.draws * self.data
            if size > LARGEST:
                raise ValueError(
                    f"the posterior tree would take {size / 2**30:.1f} GiB for {self.data} data and {self.draws} "
                    f"draws, the limit is {LARGEST / 2**30:.0f} GiB; take fewer draws, or pass a part of the data"
                )
            self.arrays = jax.tree.map(lambda a: np.empty((1, self.draws, self.data, *a.shape[2:]), a.dtype), block)

        def fill(array: np.ndarray, values: np.ndarray) -> None:
            array[0, columns, rows] = np.swapaxes(values, 0, 1)

        jax.tree.map(fill, self.arrays, block)


def _posterior_pass(
    fit: Any, x: Any, draws: int, key: jax.Array, pairs: int, progress: bool
) -> tuple[Any, dict[str, Any]]:
    """Prepared data, and densities and sites of all draws; the mean of x is averaged over draws on the way."""
    program = fit.program

    local = locals_of(fit, x)

    def one(params: Any, mutable: Any, key: jax.Array, x: Any, datum: jax.Array, local: Any, index: jax.Array) -> Any:
        x = prepare_one(program, key, x, datum, local)

        def draw(i: jax.Array) -> Any:
            found = draw_one(program, params, mutable, key, x, datum, i, local)
            zero = jnp.zeros(1)
            prior, lik, q = (sum(d.values(), zero) for d in (found.log_prior, found.log_lik, found.log_q))
            kept = {
                "latents": found.latents,
                "deterministic": found.deterministic,
                "log_lik": found.log_lik,
                "log_joint": prior + lik,
                "log_q": q,
                "log_weight": prior + lik - q,
            }
            return jax.tree.map(_single, kept), jax.tree.map(_single, found.mean)

        kept, mean = jax.vmap(draw)(index)
        asked = index < draws  # the last block may hold surplus draws
        total = jax.tree.map(lambda m: jnp.tensordot(asked.astype(m.dtype), m, axes=1), mean)
        # One entry per block on the draw axis, where sweep() looks for it.
        return kept, jax.tree.map(lambda m: m[None], {"x": take(x, 0), "mean": total})

    kernel = compiled(jax.vmap(one, in_axes=(None, None, None, 0, 0, 0, None)))
    n = rows(x)
    store, prepared, means = _Store(draws, n), None, dict[str, np.ndarray]()
    place, params, mutable = placed(fit)
    key = place.store(key)

    def pass_over(datum: np.ndarray, index: np.ndarray) -> Any:
        return kernel(params, mutable, key, *place.rows((take(x, datum), datum, take(local, datum))), index)

    blocks = sweep(pass_over, n, draws, pairs, what="posterior", progress=progress, place=place)
    for found, columns, (kept, data) in blocks:
        store.put(found, columns, kept)
        if prepared is None:
            prepared = jax.tree.map(lambda leaf: np.zeros((n, *leaf.shape[2:]), leaf.dtype), data["x"])
            means = {name: np.zeros((n, *m.shape[2:]), m.dtype) for name, m in data["mean"].items()}
        for whole, block in zip(jax.tree.leaves(prepared), jax.tree.leaves(data["x"]), strict=True):
            whole[found] = block[:, 0]
        for name, mean in data["mean"].items():
            means[name][found] += mean[:, 0] / draws
    return prepared, {**store.arrays, "mean": means}


def _single(value: jax.Array) -> jax.Array:
    """Take a site's value out of its batch of one; a value outside the plate is kept whole."""
    return value[0] if value.ndim and value.shape[0] == 1 else value


def _generate_pass(
    fit: Any, latents: Mapping[str, np.ndarray], x: Any, draws: int, key: jax.Array, pairs: int, progress: bool
) -> dict[str, Any]:
    """Run the generative program for every (datum, draw) pair, with ``latents`` (draw, datum, ...) held where given.

    A conditional program is run given the inputs of the prepared data ``x``.
    """
    program, n = fit.program, rows(x)
    inputs = {name: x[name] for name in program.observation.given}

    def one(params: Any, mutable: Any, key: jax.Array, given: Any, held: Any, datum: jax.Array, draw: jax.Array) -> Any:
        data = {**params, **{k: dict(v) for k, v in (mutable or {}).items()}, **{k: v[None] for k, v in held.items()}}
        # Different noise for prior and posterior draws, which would otherwise share the noise of x.
        noise = jax.random.fold_in(pair_key(key, GENERATE, datum, draw), len(held))
        with trace() as sites, seed(rng_seed=noise), substitute(data=data):
            program.model(take(given, None)) if given else program.model(size=1)
        found: dict[str, dict[str, jax.Array]] = {"latents": {}, "deterministic": {}, "observed": {}}
        for name, site in sites.items():
            if site["type"] == "deterministic":
                found["deterministic"][name] = _single(site["value"])
            elif site["type"] == "sample" and not isinstance(site["fn"], Unit):
                found["observed" if name in program.observed else "latents"][name] = _single(site["value"])
        return {"observed": found["observed"]} if held else found

    over_draws = jax.vmap(one, in_axes=(None, None, None, None, 0, None, 0))
    pair = jax.vmap(over_draws, in_axes=(None, None, None, 0, 0, 0, None))
    kernel = compiled(pair)
    place, params, mutable = placed(fit)
    key = place.store(key)

    def block(datum: np.ndarray, index: np.ndarray) -> Any:
        at = np.ix_(np.minimum(index, draws - 1), datum)
        held = {name: np.swapaxes(value[at], 0, 1) for name, value in latents.items()}
        return kernel(params, mutable, key, *place.rows((take(inputs, datum), held, datum)), index)

    store = _Store(draws, n)
    what = "replicated data" if latents else "prior draws"
    for index, columns, found in sweep(block, n, draws, pairs, what=what, progress=progress, place=place):
        store.put(index, columns, found)
    return store.arrays
