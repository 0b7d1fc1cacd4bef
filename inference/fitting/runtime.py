"""Process settings that make JAX fast on a CPU; one call, never a side effect of an import."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def cache_folder() -> Path:
    """The user's cache folder of this package, see :func:`ppl_models.program.cache_dir`."""
    from ppl_models.program import cache_dir  # imports JAX, which has to find the allocator tuned

    return cache_dir()


def tune_runtime(*, allocator: bool = True, cache_dir: str | Path | None = None) -> dict[str, bool | str]:
    """Keep freed memory in the process and compiled programs on disk; call once, before the first JAX operation.

    ``allocator``  glibc otherwise returns XLA's temporary buffers to the system after every step and each step
    pays a page fault per 4 KB.  The price: freed memory
    stays with the process.  Linux with glibc only; elsewhere nothing is changed.
    ``cache_dir``  folder of JAX's persistent compilation cache (default: $JAX_COMPILATION_CACHE_DIR, else the
    per-user cache folder).

    Returns what was applied.  The command line and the benchmarks call this; a library import never does.
    """
    applied: dict[str, bool | str] = {"allocator": False}
    if allocator and sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        # One arena is what makes the other two effective: JAX allocates from worker threads.
        settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
        applied["allocator"] = all(mallopt(name, value) == 1 for name, value in settings)
    import jax

    chosen = cache_dir or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    folder = Path(chosen) if chosen else cache_folder() / "jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        applied["cache_dir"] = f"off ({error})"
        return applied
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    applied["cache_dir"] = str(folder)
    return applied
