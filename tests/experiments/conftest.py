import numpy as np
import pytest

from mcscore.experiments import reproduce


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((400, 3)) @ rng.standard_normal((3, 3)) + 5).astype(np.float32)
    return reproduce.Problem("power", x[:300], x[300:])
