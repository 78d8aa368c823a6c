"""Strict by default: float64, no silent promotion, every shape annotation checked at run time.

``MCSCORE_X64=0`` runs the same suite as users do: in float32, annotations unchecked. Most of a test's time
is compilation: the float64 run leaves XLA's optimisations out, the float32 run has them all.
"""

import os

import jax
import pytest
from jaxtyping import install_import_hook

X64 = os.environ.get("MCSCORE_X64", "1") == "1"
# With more, scikit-learn's threads would wait for the other worker's core.
os.environ["OMP_NUM_THREADS"] = "1"
if X64:  # read when JAX first starts a device, here and in the processes that tests start
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
    )
jax.config.update("jax_enable_x64", X64)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict" if X64 else "standard")
jax.config.update("jax_num_cpu_devices", 2)

if X64:
    with install_import_hook("mcscore", "beartype.beartype"):
        import mcscore  # noqa: F401


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
