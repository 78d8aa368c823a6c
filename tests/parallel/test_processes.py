"""Several processes find what one does, only the first writes, and none waits for one that is gone."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

import mcscore as mcs
from tests.parallel import several
from tests.parallel.test_meshes import ROOT


def run(count, folder, *moment):
    """Return the ends of ``count`` processes of one run: exit statuses and what they said."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.parallel.several"]
    told = [*map(str, (port, folder, *moment))]
    env = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    started = [
        subprocess.Popen(
            [*command, str(rank), str(count), *told], cwd=ROOT, env=env, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        for rank in range(count)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=300)[1][-3000:] for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], said


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_find_what_one_does(count, tmp_path):
    """Also where one of two is gone in the middle, and the run goes on from what was kept."""
    if count == 2:
        ends, said = run(2, tmp_path, 2)
        assert 0 not in ends, said
        assert {f"parts/labels/chunk-{k:06d}.safetensors" for k in (0, 1)} <= files(tmp_path)
    ends, said = run(count, tmp_path)
    assert ends == [0] * count, said
    made, expected = several.results(several.X)
    with np.load(tmp_path / "found.npz") as found:
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=2e-4, err_msg=name)
    assert not [name for name in files(tmp_path) if "/." in f"/{name}"], "left aside"
    loaded = mcs.load(tmp_path / "model.safetensors")
    z = np.zeros((1, 2))
    np.testing.assert_allclose(loaded(z), made.generator(z), atol=2e-4)
