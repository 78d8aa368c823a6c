"""One of several processes of a run: ``python -m tests.parallel.several RANK COUNT PORT FOLDER [MOMENT]``.

Rows enter per process. With a moment, the last process is gone in the middle of that chunk of labels.
"""

import os
import sys

import jax
import numpy as np

import mcscore as mcs
from mcscore.generators import labelling

X = np.random.default_rng(0).normal(size=(480, 2))
X[:, 1] += X[:, 0] ** 2
KERNEL = mcs.Local(0.4, clusters=4, partitions=1)
OPTIONS = dict(
    kernel=KERNEL, pairs=1003, epochs=3, refine=0, encoder=False, batch_size=129,
    network=mcs.MLP(16, 2), labelling=dict(chunk_size=250, error_sample=0),
)  # fmt: skip


def results(rows, mesh=None, checkpoint=None):
    """Return what a run finds, on one device or over those of a mesh."""
    law = mcs.mixture(rows, kernel=KERNEL)
    over = law if mesh is None else mcs.jet.shard(law, mesh)
    made = mcs.fit_stages(jax.random.key(0), rows, mesh=mesh, checkpoint=checkpoint, **OPTIONS)
    return made, dict(
        log_prob=law.log_prob(rows),
        divided=over.log_prob(X[:50]),
        x=made.pairs.x,
        losses=made.history.train_loss,
        held_out=made.history.validation_loss,
        some=mcs.chunked.subsample(jax.random.key(2), rows, 30),
        samples=made.generator.sample(jax.random.key(1), 97, mesh=mesh),
    )


def main(rank, count, port, folder, moment=None):
    """Take part in a run; the first process writes what all have found."""
    jax.distributed.initialize(f"localhost:{port}", count, rank, heartbeat_timeout_seconds=10)
    mesh = jax.make_mesh((count,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    if moment is not None and rank == count - 1:
        gone = iter(range(moment + 1))
        whole = labelling.on_host
        labelling.on_host = lambda a: os._exit(1) if next(gone) == moment else whole(a)
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    rows = jax.make_array_from_process_local_data(
        place, np.split(X, count)[rank].astype(jax.dtypes.canonicalize_dtype(float))
    )
    made, found = results(rows, mesh, f"{folder}/parts")
    made.generator.save(f"{folder}/model.safetensors")
    arrays = {name: labelling.on_host(value) for name, value in found.items()}
    if rank == 0:
        np.savez(f"{folder}/found.npz", **arrays)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", os.environ.get("MCSCORE_X64", "1") == "1")
    jax.config.update("jax_num_cpu_devices", 1)
    main(*map(int, sys.argv[1:4]), sys.argv[4], *map(int, sys.argv[5:]))
