"""HDF5 files of unknown origin: its library may loop for ever, or crash, on one that is torn.

It is written in C and cannot be interrupted, so that another process takes the first look.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

CPU_SECONDS, WALL_SECONDS = 5, 300
"""A look takes some milliseconds; more than this is a loop."""
_LOOK = """
import sys
import h5py
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[2]), int(sys.argv[2])))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except ImportError:
    pass
def look(name, item):
    dict(item.attrs)
    if isinstance(item, h5py.Dataset) and item.size:
        item[(0,) * item.ndim], item[tuple(n - 1 for n in item.shape)]
with h5py.File(sys.argv[1], "r") as file:
    dict(file.attrs)
    file.visititems(look)
"""


def check_hdf5(path: Path) -> None:
    """Raise ``ValueError`` for an HDF5 file whose attributes and first and last numbers cannot be looked at in time.

    Costs the start of a process.  An ordinary error is left to whoever reads the file; where no process can be started
    nothing is checked.
    """
    with contextlib.suppress(OSError):
        command = [sys.executable, "-c", _LOOK, str(path), str(CPU_SECONDS)]
        try:
            code = subprocess.run(command, capture_output=True, timeout=WALL_SECONDS).returncode
        except subprocess.TimeoutExpired:
            code = -1
        if code < 0:
            raise ValueError(f"{path.name!r} is torn: HDF5's library does not come back from it; write it again")
