"""Where the groups of a posterior tree are gathered block by block of data: in memory, or in a zarr store on disk.

Both take blocks of arrays in the layout of the tree, and give back what was put, so that a later pass can read what an
earlier one drew.  A zarr store notes after each block how many data each pass is done with; a block that was torn by a
kill is written again, with the same numbers, for every draw has a key of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

LARGEST = 4 * 2**30
"""Bytes that a tree in memory may take."""
DATUM = "datum"
STATE = "ppl_models_store"
"""Attribute of a zarr store: what it holds, and how many data each pass is done with."""

Variables = Mapping[str, tuple[tuple[str, ...], np.ndarray]]
"""Name -> (dimensions, values), ``datum`` among the dimensions."""
Groups = Mapping[str, Variables]


class MemoryTree:
    """Groups of a tree as NumPy arrays."""

    def __init__(self, attrs: Mapping[str, Any]) -> None:
        self.attrs = dict(attrs)
        self.groups: dict[str, dict[str, tuple[tuple[str, ...], np.ndarray]]] = {}
        self.latents: list[str] = []

    def done(self, step: str) -> int:
        """Number of data that a pass is done with."""
        return 0

    def put(self, step: str, datum: slice, n: int, groups: Groups) -> None:
        """Take the groups of one block of the ``n`` data; raises ``ValueError`` at the first for too large a tree."""
        if not groups.keys() <= self.groups.keys():
            size = sum(v.nbytes // v.shape[d.index(DATUM)] * n for g in groups.values() for d, v in g.values())
            if size > LARGEST:
                raise ValueError(
                    f"the posterior tree would take {size / 2**30:.1f} GiB for {n} data, the limit in memory is "
                    f"{LARGEST / 2**30:.0f} GiB; write it to disk with store='posterior.zarr', take fewer draws, or "
                    "pass a part of the data"
                )
        for group, variables in groups.items():
            mine = self.groups.setdefault(group, {})
            for name, (dims, values) in variables.items():
                if name not in mine:
                    mine[name] = dims, np.empty(_whole(dims, values, n), values.dtype)
                mine[name][1][_at(dims, datum)] = values

    def get(self, group: str, name: str, datum: np.ndarray) -> np.ndarray:
        """Values of a variable for sorted data."""
        dims, values = self.groups[group][name]
        return values[_at(dims, datum)]

    def finish(self) -> None: ...

    def tree(self) -> xr.DataTree:
        """What was gathered; groups without variables are left out."""
        import xarray as xr

        found = {}
        for group, variables in self.groups.items():
            dataset = xr.Dataset(variables)
            found[f"/{group}"] = dataset.assign_coords({dim: np.arange(size) for dim, size in dataset.sizes.items()})
        tree = xr.DataTree.from_dict({name: dataset for name, dataset in found.items() if dataset.data_vars})
        tree.attrs = self.attrs
        return tree


class ZarrTree:
    """Groups of a tree in a zarr store, a chunk a block of data; goes on with a store that holds a part of them.

    ``about``  says what the store is to hold, as JSON.  Raises ``ValueError`` for a store of something else, and
    ``ImportError`` without zarr.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any], attrs: Mapping[str, Any]) -> None:
        self.path = Path(path)
        zarr = _zarr(self.path)
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            state = _state(self.path)
            for name, value in about.items():
                if state["about"].get(name) != value:
                    raise ValueError(
                        f"{self.path} holds another posterior: {name} was {state['about'].get(name)!r}, now {value!r}; "
                        "give another name, or remove it first"
                    )
            self.state = state
            self.root = zarr.open_group(self.path, mode="r+")
        else:
            self.state = {"about": dict(about), "done": {}, "latents": [], "complete": False}
            self.root = zarr.create_group(self.path, attributes={**attrs, STATE: self.state})
        self.latents: list[str] = self.state["latents"]
        self._arrays: dict[str, Any] = {}

    def _note(self) -> None:
        self.root.attrs[STATE] = {**self.state, "latents": list(self.latents)}

    def done(self, step: str) -> int:
        return int(self.state["done"].get(step, 0))

    def put(self, step: str, datum: slice, n: int, groups: Groups) -> None:
        for group, variables in groups.items():
            for name, (dims, values) in variables.items():
                self._array(group, name, dims, values, n)[_at(dims, datum)] = _texts(values)
        self.state["done"][step] = datum.stop
        self._note()

    def _array(self, group: str, name: str, dims: tuple[str, ...], values: np.ndarray, n: int) -> Any:
        """The array of a variable, made with its coordinates where it is not there yet."""
        if (group, name) in self._arrays:
            return self._arrays[group, name]
        parent = self.root.require_group(group)
        shape = _whole(dims, values, n)
        for dim, size in zip(dims, shape, strict=True):
            index = np.arange(size)
            if dim not in parent:
                parent.create_array(
                    dim, shape=index.shape, chunks=index.shape, dtype=index.dtype, dimension_names=[dim]
                )
            parent[dim][:] = index  # also where a kill came between the two
        if name not in parent:
            text = values.dtype.kind == "U"
            fill = {"fill_value": float("nan")} if np.issubdtype(values.dtype, np.floating) else {}
            dtype = str if text else values.dtype
            parent.create_array(name, shape=shape, chunks=values.shape, dtype=dtype, dimension_names=dims, **fill)
        self._arrays[group, name] = parent[name]
        return self._arrays[group, name]

    def get(self, group: str, name: str, datum: np.ndarray) -> np.ndarray:
        """Values of a variable for sorted data, which lie close together."""
        array = self._arrays.get((group, name), self.root[f"{group}/{name}"])
        dims = array.metadata.dimension_names
        span = slice(int(datum[0]), int(datum[-1]) + 1)
        return np.asarray(array[_at(dims, span)])[_at(dims, datum - span.start)]

    def finish(self) -> None:
        self.state["complete"] = True
        self._note()

    def tree(self) -> xr.DataTree:
        """The store, read lazily."""
        return open_posterior(self.path)


def open_posterior(path: str | Path) -> xr.DataTree:
    """The tree of a ``posterior.nc`` file, or of a zarr store, also of one that is being written.

    Values are read when they are used.  A store that is not complete has in each group the data that are done so far;
    open it again to see more.  Raises ``ValueError`` for what is neither, and ``ImportError`` without zarr.

    >>> tree = open_posterior("posterior.zarr")
    >>> arviz.summary(tree.isel(datum=slice(10)), var_names=["z"])
    """
    import xarray as xr

    path = Path(path)
    if not path.exists():
        raise ValueError(f"no posterior at {str(path)!r}; expected a posterior.nc file or a folder of zarr")
    if path.is_file():
        return xr.open_datatree(path, engine="h5netcdf")
    _zarr(path)
    state = _state(path)
    tree = xr.open_datatree(path, engine="zarr", chunks=None, consolidated=False)
    if not state["complete"]:
        steps = {group: step for step, groups in STEPS.items() for group in groups}
        parts = {}
        for name, node in tree.children.items():
            done = int(state["done"].get(steps[name], 0)) if name in steps else node.sizes[DATUM]
            parts[f"/{name}"] = node.to_dataset().isel(datum=slice(done))
        attrs = tree.attrs
        tree = xr.DataTree.from_dict(parts)
        tree.attrs = attrs
    tree.attrs = {name: value for name, value in tree.attrs.items() if name != STATE}
    return tree


STEPS = {
    "posterior": ("posterior", "sample_stats", "log_likelihood", "reconstruction", "observed_data"),
    "replicated": ("posterior_predictive",),
    "prior": ("prior", "prior_predictive"),
}
"""The passes, and the groups that each fills."""


def _whole(dims: tuple[str, ...], values: np.ndarray, n: int) -> tuple[int, ...]:
    return tuple(n if dim == DATUM else size for dim, size in zip(dims, values.shape, strict=True))


def _at(dims: tuple[str, ...], datum: Any) -> tuple[Any, ...]:
    return tuple(datum if dim == DATUM else slice(None) for dim in dims)


def _texts(values: np.ndarray) -> np.ndarray:
    """Texts of any length, which zarr stores; other values as they are."""
    return values.astype(object) if values.dtype.kind == "U" else values


def _zarr(path: Path) -> Any:
    try:
        import zarr
    except ImportError as error:
        raise ImportError(f"{str(path)!r} needs zarr: pip install 'ppl-models[io]'") from error
    return zarr


def _state(path: Path) -> dict[str, Any]:
    import zarr

    try:
        state = dict(zarr.open_group(path, mode="r").attrs)[STATE]
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is no store that posterior(..., store=) wrote ({type(error).__name__}); give another name"
        ) from error
    return state
