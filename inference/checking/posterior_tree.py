"""The posterior of every datum as an ArviZ DataTree: draws, densities, replicated data, prior, data.

The draws of a datum are independent draws from its amortised or refined posterior q(z | x), not a Markov chain: R-hat
and chain diagnostics say nothing here, the importance weights in ``sample_stats`` do.  Weighted by exp(log_weight) they
represent the true posterior.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from inference.checking.per_datum import check_count, check_key, locals_of, pairs_at_once, params_checksum
from inference.checking.posterior_passes import generate_pass, posterior_pass
from inference.checking.tree_store import DATUM, MemoryTree, Variables, ZarrTree
from inference.fitting.checkpoint import is_key, write_error
from inference.fitting.sources import stored
from ppl_models.program import named_leaves, rows

if TYPE_CHECKING:
    import xarray as xr

_SAMPLES = ("chain", "draw", DATUM)


def posterior(
    fit: Any,
    x: Any,
    *,
    draws: int = 100,
    key: jax.Array,
    factors: Mapping[str, Any] | None = None,
    predictive_draws: int | None = None,
    chunk: int | None = None,
    store: str | Path | None = None,
    progress: bool = True,
) -> xr.DataTree:
    """DataTree of z ~ q(z | x) for each stored datum of ``x`` (n, *shape), and of what the model says about it.

    ========================  ================================================  ======================================
    group                     variables                                         dimensions
    ========================  ================================================  ======================================
    ``posterior``             latent and deterministic sites                    chain=1, draw, datum, unit_<site>
    ``sample_stats``          ``log_joint`` log p(x, z), ``log_q`` log q(z|x),  chain, draw, datum
                              ``log_weight`` their difference;
                              ``rate_<site>`` log q - log p of one latent
                              site, whose mean over draws is its KL; nats
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
    score, factors of another length, arguments out of range, and a tree above 4 GiB in memory after the first chunk.

    ``store``  a folder ``NAME.zarr`` to write the tree into chunk by chunk, for one that is larger than memory (extra
    ``io``).  What is returned reads it lazily, with the same numbers.  :func:`open_posterior` reads it while it grows;
    the same call goes on with one that was stopped, and opens one that is complete.  Raises ``ValueError`` for a store
    of other data, parameters, draws or keys.

    >>> tree = posterior(fit, x_test, draws=100, key=jax.random.key(0), factors={"digit": labels})
    >>> save_posterior(tree, "runs/digits")  # or tree.to_netcdf(...)
    >>> arviz.summary(tree, var_names=["z"])
    """
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
    first = n if most is None else min(n, max(1, most // max(1, predictive_draws)))
    attrs = {
        "observation": fit.program.observation.line,
        "density": "\n".join(fit.program.views.density),
        "params_crc": params_checksum(fit),
        "posterior": "amortised" if locals_of(fit, x) is None else "refined",
        "draws": "independent draws from q(z | x); weight them by exp(log_weight)",
        "inference_library": "numpyro",
        "inference_library_version": version("numpyro"),
        "jax_version": version("jax"),
    }
    target: MemoryTree | ZarrTree = MemoryTree(attrs)
    if store is not None:
        about = {"draws": draws, "predictive_draws": predictive_draws, "pairs": pairs, **_identity(fit, x, key)}
        target = ZarrTree(store, {**about, "factors": sorted(constants)}, attrs)
    given = fit.program.observation.given
    for datum, found in posterior_pass(fit, x, draws, key, pairs, progress, target.done("posterior")):
        target.latents[:] = found["latents"]
        sites = {**found["latents"], **found["deterministic"]}
        seen = {name or "x": leaf for name, leaf in named_leaves(found["x"]).items()}
        densities = {name: found[name] for name in ("log_joint", "log_q", "log_weight")} | found["rates"]
        groups = {
            "posterior": _samples(sites, _unit),
            "sample_stats": _samples(densities, _unit),
            "log_likelihood": _samples(found["log_lik"], _unit),
            "reconstruction": _variables(found["mean"], _dim),
            "observed_data": _variables(seen, _dim),
        }
        target.put("posterior", datum, n, groups)
    if constants and not target.done("constants"):
        target.put("constants", slice(0, n), n, {"constant_data": _variables(constants, _dim)})
    if predictive_draws:
        latents = target.latents

        def held(datum: np.ndarray) -> dict[str, np.ndarray]:
            drawn = {name: target.get("posterior", name, datum)[0, :predictive_draws] for name in latents}
            return {name: np.swapaxes(value, 0, 1) for name, value in drawn.items()}

        def inputs(datum: np.ndarray) -> dict[str, np.ndarray]:
            return {name: target.get("observed_data", name, datum) for name in given}

        work = (first, predictive_draws, key, pairs, progress)
        for datum, found in generate_pass(fit, held, inputs, *work, "replicated data", target.done("replicated")):
            groups = {"posterior_predictive": _samples(found["observed"], _dim)}
            if not latents:
                groups |= _prior(found)
            target.put("replicated", datum, first, groups)
        if latents:
            for datum, found in generate_pass(
                fit, lambda datum: {}, inputs, *work, "prior draws", target.done("prior")
            ):
                target.put("prior", datum, first, _prior(found))
    target.finish()
    return target.tree()


def _prior(found: Mapping[str, Any]) -> dict[str, Any]:
    sites = {**found["latents"], **found["deterministic"]}
    return {"prior_predictive": _samples(found["observed"], _dim), "prior": _samples(sites, _unit)}


def _identity(fit: Any, x: Any, key: jax.Array) -> dict[str, Any]:
    """What decides the numbers of a tree, as JSON: data, parameters (check sums of their bytes), key."""
    return {
        "data": rows(x),
        "data_crc": _crc(x),
        "params_crc": params_checksum(fit),
        "refined_crc": _crc(locals_of(fit, x)),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "observation": fit.program.observation.line,
    }


def _crc(tree: Any) -> int:
    """CRC-32 of the bytes of all arrays of a tree, some rows at a time, for they may be memory maps."""
    found = 0
    for leaf in jax.tree.leaves(tree):
        array = np.atleast_1d(np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf))
        for start in range(0, len(array), 4096):
            found = zlib.crc32(np.ascontiguousarray(array[start : start + 4096]).data, found)
    return found


def save_posterior(tree: xr.DataTree, folder: str | Path) -> Path:
    """Write ``posterior.nc`` (netCDF 4) into an existing folder in one step; ``xarray.open_datatree`` reads it.

    Every block of numbers has a checksum (HDF5's fletcher32): one that has changed on the disk is an error when it is
    read.  Raises ``OSError`` that names the file where it cannot be written, and leaves an earlier one as it was.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; create it first")
    target, partial = folder / "posterior.nc", folder / f".posterior.{os.getpid()}.partial.nc"
    summed = {
        group.path: {name: {"fletcher32": True} for name, v in group.variables.items() if _summable(v)}
        for group in tree.subtree
    }
    try:
        tree.to_netcdf(partial, engine="h5netcdf", encoding=summed)
        os.replace(partial, target)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def _summable(variable: Any) -> bool:
    """Whether HDF5 can keep a check sum of a variable's chunks: not of a scalar, nor of texts of any length."""
    return variable.ndim > 0 and variable.size > 1 and variable.dtype.kind not in "OSU"


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


def _samples(values: Mapping[str, np.ndarray], name_of: Any) -> Variables:
    """Values (data, draws, ...) of a block as variables (chain=1, draw, datum, ...)."""
    return _variables({name: np.swapaxes(value, 0, 1)[None] for name, value in values.items()}, name_of, _SAMPLES)


def _variables(
    values: Mapping[str, np.ndarray], name_of: Any, lead: tuple[str, ...] = (DATUM,)
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    found = {}
    for name, value in values.items():
        axes = value.ndim - len(lead)
        found[name] = (*lead, *(name_of(name, axis, axes) for axis in range(axes))), value
    return found
