"""Strict by default: float64, no silent promotion, every shape annotation checked at run time.

``MCSCORE_X64=0`` runs the same suite in float32, as users do, annotations unchecked; ``MCSCORE_KERNEL=xla``
as if the native kernel had not been built.

Most of a test's time is compilation, so XLA's fusion emitters are left out, the compiled code is not
optimized, and its vectors are short. That of docs/index.md (``test_structure.py``) is compiled as by
users. Workers and the processes that tests start share what they have compiled.
"""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="mcscore-programs-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest
from jaxtyping import install_import_hook

X64 = os.environ.get("MCSCORE_X64", "1") == "1"
# With more, scikit-learn's threads would wait for the other worker's core.
os.environ["OMP_NUM_THREADS"] = "1"
if "XLA_FLAGS" not in os.environ:  # the workers and the processes that tests start inherit it
    flags = "--xla_cpu_use_fusion_emitters=false"
    flags += " --xla_backend_optimization_level=0 --xla_cpu_max_isa=AVX2"
    known = [sys.executable, "-c", "import jax; jax.devices()"]  # XLA ends processes with others
    done = subprocess.run(known, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True)
    if done.returncode == 0:
        os.environ["XLA_FLAGS"] = flags
jax.config.update("jax_enable_x64", X64)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict" if X64 else "standard")
jax.config.update("jax_num_cpu_devices", 2)

if X64:
    install_import_hook(
        "mcscore", "beartype.beartype"
    )  # stays: modules are imported when first used


if os.environ.get("MCSCORE_KERNEL") == "xla":
    from mcscore.jet import native

    native.targets = tuple


def pytest_collection_modifyitems(config, items):
    """Leave out what runs once, as users run it; begin with the slow ones, so that no worker waits."""
    if X64:
        left = [item for item in items if item.get_closest_marker("once")]
        items[:] = [item for item in items if item not in set(left)]
        config.hook.pytest_deselected(items=left)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forget compiled programs: thousands of them in one process use up the kernel's memory maps."""
    yield
    jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def tol():
    """Return the tolerance that fits the precision of this run."""
    return lambda double, single: double if X64 else single


PROGRAMS: list[str] = []


def _listen(event, _, fun_name="", **__):
    if "backend_compile" in event:
        PROGRAMS.append(fun_name)


jax.monitoring.register_event_duration_secs_listener(_listen)


@pytest.fixture
def compiled():
    """Return the names of the programs compiled so far in the test."""
    PROGRAMS.clear()
    return PROGRAMS
