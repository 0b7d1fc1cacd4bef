"""Where the arrays of a fit lie: on one device, or over a mesh of several, perhaps of several processes.

A mesh has two axes.  Over ``data`` the rows of a batch are cut, the store of all rows stays whole on each device; over
``model`` the large parameters are, with their optimiser moments and running averages.  The update is the program of
one device: XLA's partitioner (GSPMD) adds the communication that the shardings call for, so the mathematics is the
same, and with partitionable random bits, JAX's default, the noise is as well.  Sums over rows are taken in another
order: losses agree to float rounding, not bit by bit.

In several processes (``jax.distributed``) each runs the same script with the same arguments and holds the same data;
arrays are put together from the parts that a process needs, and whole results are gathered by all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from inference.fitting.checkpoint import is_key
from inference.fitting.processes import meet
from ppl_models.program import did_you_mean

DATA, MODEL = "data", "model"
LEAST = 2**14
"""Numbers in a parameter from which it is worth cutting: smaller ones stay whole on each device."""


class OneDevice:
    """Everything where JAX puts it: each method leaves what it is given as it is."""

    writes = True
    processes = 1
    axes: Mapping[str, int] = {}
    rows_at_once = 1

    def store(self, tree: Any) -> Any:
        return tree

    def feed(self, items: Any, size: int) -> Any:
        return items

    def rows(self, tree: Any) -> Any:
        return tree

    def put(self, tree: Any) -> Any:
        return tree

    def host(self, tree: Any) -> Any:
        return tree

    def whole(self, tree: Any) -> Any:
        return tree

    def batch(self, tree: Any) -> Any:
        return tree

    def state(self, tree: Any) -> Any:
        return tree

    def everywhere(self, tree: Any) -> Any:
        return tree

    def agree(self, asked: bool) -> bool:
        return asked

    def wait(self) -> None: ...

    def connect(self) -> None: ...


@dataclass(frozen=True)
class OnMesh:
    """Arrays over the axes ``data`` and ``model`` of a mesh of devices.

    ``least``  numbers in a parameter from which it is cut over ``model``.

    ``store``, ``feed``, ``rows``, ``put`` take arrays of this process (the same in every process) to the mesh, ``host``
    and ``whole`` take arrays of the mesh back; ``batch``, ``state`` and ``everywhere`` say within a compiled function
    how its arrays lie.
    """

    mesh: Mesh
    least: int = LEAST

    @property
    def axes(self) -> dict[str, int]:
        """Devices along each axis."""
        return {DATA: self.mesh.shape[DATA], MODEL: self.mesh.shape[MODEL]}

    @property
    def processes(self) -> int:
        """Processes whose devices make up the mesh."""
        return len({device.process_index for device in self.mesh.devices.flat})

    @property
    def writes(self) -> bool:
        """Whether this process writes the run folder and shows progress."""
        return self.processes == 1 or jax.process_index() == 0

    @property
    def rows_at_once(self) -> int:
        """The number of rows of a batch is a multiple of this."""
        return self.mesh.shape[DATA]

    # ------------------------------------------------------------------------------------ to the mesh, and back
    def _array(self, leaf: Any, spec: P) -> Any:
        sharding = NamedSharding(self.mesh, spec)
        if self.processes == 1:
            return jax.device_put(leaf, sharding)
        if is_key(leaf):
            data = jax.random.key_data(leaf)
            key = self._array(np.asarray(data), P(*spec, *[None] * (data.ndim - leaf.ndim)))
            return jax.random.wrap_key_data(key, impl=jax.random.key_impl(leaf))
        held = np.asarray(leaf)
        return jax.make_array_from_callback(held.shape, sharding, lambda index: held[index])

    def store(self, tree: Any) -> Any:
        """All of the data, whole on each device."""
        return jax.tree.map(lambda leaf: self._array(leaf, P()), tree)

    def feed(self, items: Any, size: int) -> Any:
        """What a source feeds (count, ...): what has ``size`` rows for each update, cut over the rows."""
        cut = lambda leaf: P(None, DATA) if np.ndim(leaf) > 1 and leaf.shape[1] == size else P()  # noqa: E731
        return jax.tree.map(lambda leaf: self._array(leaf, cut(leaf)), items)

    def rows(self, tree: Any) -> Any:
        """Arrays (n, ...), n a multiple of :attr:`rows_at_once`, cut over their rows."""
        return jax.tree.map(lambda leaf: self._array(leaf, P(DATA)), tree)

    def put(self, tree: Any) -> Any:
        """A training state, or a part of one: large parameters cut, the rest whole on each device."""
        return jax.tree.map(lambda leaf: self._array(leaf, self.spec(leaf.shape)), tree)

    def host(self, tree: Any) -> Any:
        """Arrays of the mesh as NumPy arrays, keys as keys of this process; in several processes all must ask."""
        return jax.tree.map(self._host, tree)

    def _host(self, leaf: Any) -> Any:
        if is_key(leaf):
            return jax.random.wrap_key_data(self._host(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        if self.processes > 1:  # one array at a time: a whole one is on each device for a moment
            leaf = jax.jit(lambda one: one, out_shardings=NamedSharding(self.mesh, P()))(leaf)
        return np.asarray(leaf)

    def whole(self, tree: Any) -> Any:
        """:meth:`host`, as arrays that JAX puts where they are needed next."""
        return jax.tree.map(lambda leaf: leaf if is_key(leaf) else jnp.asarray(leaf), self.host(tree))

    # --------------------------------------------------------------------------------- within compiled functions
    def _constrain(self, leaf: Any, spec: P) -> Any:
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(self.mesh, spec))

    def batch(self, tree: Any) -> Any:
        return jax.tree.map(lambda leaf: self._constrain(leaf, P(DATA)), tree)

    def state(self, tree: Any) -> Any:
        return jax.tree.map(lambda leaf: self._constrain(leaf, self.spec(leaf.shape)), tree)

    def everywhere(self, tree: Any) -> Any:
        return jax.tree.map(lambda leaf: self._constrain(leaf, P()), tree)

    def spec(self, shape: tuple[int, ...]) -> P:
        """How a parameter of this shape is cut: its longest dimension that ``model`` divides, if it is large."""
        size = self.mesh.shape[MODEL]
        able = [axis for axis, length in enumerate(shape) if length % size == 0]
        if size == 1 or math.prod(shape) < self.least or not able:
            return P()
        longest = max(able, key=lambda axis: shape[axis])
        return P(*[MODEL if axis == longest else None for axis in range(len(shape))])

    # ------------------------------------------------------------------------------------------ several processes
    def agree(self, asked: bool) -> bool:
        """Whether any of the processes was asked to stop."""
        if self.processes == 1:
            return asked
        from jax.experimental.multihost_utils import process_allgather

        return bool(process_allgather(np.asarray(asked)).any())

    def wait(self) -> None:
        """Return once every process is here."""
        if self.processes > 1:
            meet()

    def connect(self) -> None:
        """Let the devices of several processes meet along each axis.

        They connect at their first common sum, and gloo then waits for half a minute only: less than one process may
        compile longer than another.
        """
        if self.processes == 1:
            return
        for axes in (DATA, MODEL, (DATA, MODEL)):
            ones = self._array(np.ones(self.mesh.size, np.float32), P(axes))
            total = jax.jit(jnp.sum, out_shardings=NamedSharding(self.mesh, P())).lower(ones).compile()
            meet()
            jax.block_until_ready(total(ones))


Placement = OneDevice | OnMesh
MeshLike = Mesh | Mapping[str, int] | str | OnMesh | OneDevice | None


def parse_mesh(text: str) -> dict[str, int]:
    """The axes that ``"data=4,model=2"`` names.  Raises ``ValueError`` saying what was expected."""
    axes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = (word.strip() for word in part.partition("="))
        if name not in (DATA, MODEL):
            raise ValueError(
                f"a mesh has the axes data and model, got {part!r}{did_you_mean(name, (DATA, MODEL))}; "
                "write data=8, or data=4,model=2"
            )
        if name in axes or not size.isdecimal() or int(size) < 1:
            raise ValueError(f"a mesh names each axis once with its number of devices, got {text!r}; write data=8")
        axes[name] = int(size)
    return axes


def as_placement(mesh: MeshLike) -> Placement:
    """The placement that a mesh stands for: ``"data=4,model=2"``, ``{"data": 4, "model": 2}``, or a JAX mesh with axes
    of these names; one device for ``None``.

    Raises ``ValueError`` for other axes, more devices than there are, and a mesh that leaves out devices of several
    processes.
    """
    if mesh is None:
        return OneDevice()
    if isinstance(mesh, OneDevice | OnMesh):
        return mesh
    if isinstance(mesh, Mesh):
        axes, devices = dict(mesh.shape), list(mesh.devices.flat)
    else:
        axes, devices = parse_mesh(mesh) if isinstance(mesh, str) else dict(mesh), jax.devices()
    if not axes or not set(axes) <= {DATA, MODEL}:
        raise ValueError(f"a mesh has the axes data and model, got {', '.join(map(repr, axes)) or 'none'}")
    if not all(isinstance(size, int | np.integer) and size >= 1 for size in axes.values()):
        raise ValueError(f"the axes of a mesh have a number of devices of at least 1, got {axes}")
    shape = (int(axes.get(DATA, 1)), int(axes.get(MODEL, 1)))
    wanted = math.prod(shape)
    if wanted > len(devices):
        raise ValueError(
            f"mesh data={shape[0]},model={shape[1]} needs {wanted} devices, this run sees {len(devices)}; ask for "
            "fewer, or on a CPU set XLA_FLAGS=--xla_force_host_platform_device_count=N before the start"
        )
    if jax.process_count() > 1 and wanted < len(devices):
        raise ValueError(
            f"mesh data={shape[0]},model={shape[1]} leaves out {len(devices) - wanted} of the {len(devices)} devices "
            f"of {jax.process_count()} processes; each has to take part: ask for all of them"
        )
    if isinstance(mesh, Mesh):
        return OnMesh(
            Mesh(mesh.devices.reshape(shape) if list(axes) != [MODEL, DATA] else mesh.devices.T, (DATA, MODEL))
        )
    auto = (AxisType.Auto, AxisType.Auto)
    return OnMesh(jax.make_mesh(shape, (DATA, MODEL), axis_types=auto, devices=devices[:wanted]))


def check_batch(place: Placement, batch_size: int) -> None:
    """Raise ``ValueError`` unless the devices of the data axis can share a batch evenly."""
    if batch_size % place.rows_at_once:
        lower = batch_size // place.rows_at_once * place.rows_at_once
        near = f"{lower} or {lower + place.rows_at_once}" if lower else f"{place.rows_at_once}"
        raise ValueError(
            f"batch_size {batch_size} cannot be shared evenly by the {place.rows_at_once} devices of the data axis; "
            f"use batch_size={near}"
        )
