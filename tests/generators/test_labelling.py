import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

import mcscore as mcs
from mcscore import storage
from tests.flows.test_fields import table

SCHEDULE = mcs.Linear()


def law():
    return mcs.mixture(table(300, 2), kernel=mcs.Isotropic(0.2))


def make(n=250, **options):
    return mcs.generate_pairs(jax.random.key(3), law(), SCHEDULE, n, chunk_size=100, **options)


def test_pairs_are_transported_noise(tol):
    pairs = make()
    assert pairs.z.shape == pairs.x.shape == (250, 2)
    np.testing.assert_allclose(
        mcs.transport(pairs.z, law(), SCHEDULE), pairs.x, atol=tol(1e-12, 1e-5)
    )


def test_first_pairs_do_not_depend_on_their_number():
    np.testing.assert_array_equal(make(150).x, make(250).x[:150])


def test_report_measures_the_error():
    coarse, fine = make(steps=3).report, make(steps=30).report
    assert coarse.evaluations == 10 and fine.evaluations == 91
    assert make().report.evaluations <= 30
    assert coarse.error_rms > 10 * fine.error_rms > 0
    assert coarse.nonfinite == 0 and coarse.pairs == 250
    assert np.isnan(make(error_sample=0).report.error_rms)


def test_the_report_of_kept_labels_is_that_of_made_ones(tmp_path):
    first = make(checkpoint=tmp_path)
    assert make(checkpoint=tmp_path).report == first.report and first.report.evaluations == 28


def test_one_program_for_all_chunks(compiled):
    make(steps=6, error_sample=0)
    make(350, steps=6, error_sample=0)
    assert sum("_solve" in name for name in compiled) == 1


def test_minibatch_is_the_papers_sampler():
    """One mini-batch per chunk, the same for the whole trajectory."""
    options = dict(minibatch=50, clock=mcs.TimeClock(), solver=diffrax.Euler(), steps=100)
    pairs = make(**options)
    again = make(**options)
    np.testing.assert_array_equal(pairs.x, again.x)
    whole = make(clock=mcs.TimeClock(), solver=diffrax.Euler(), steps=100)
    np.testing.assert_array_equal(pairs.z, whole.z)
    assert np.abs(np.asarray(pairs.x - whole.x)).max() > 0.01


@pytest.mark.parametrize("noise", [mcs.generators.Normal(), mcs.generators.Sobol()])
def test_noise_is_standard_normal(noise):
    z = np.concatenate([noise.chunk(jax.random.key(1), k, 512, 3, float) for k in range(4)])
    assert np.isfinite(z).all()
    for column in z.T:
        assert kstest(column, "norm").pvalue > 1e-3
    if noise == mcs.generators.Sobol():  # far more even than independent draws
        assert np.abs(z.mean(0)).max() < 0.1 / np.sqrt(len(z))


def test_interrupted_runs_resume(tmp_path, monkeypatch):
    whole = make(checkpoint=tmp_path / "whole")
    folder, calls = tmp_path / "cut", []
    from mcscore.generators import labelling as module

    compiled = module.compiled_flow

    def breaking(*args, **options):
        solve = compiled(*args, **options)

        def once(z, law, c):
            calls.append(None)
            if len(calls) == 3:  # two chunks are done
                raise KeyboardInterrupt
            return solve(z, law, c)

        return once

    monkeypatch.setattr(module, "compiled_flow", breaking)
    with pytest.raises(KeyboardInterrupt):
        make(checkpoint=folder)
    assert len(list(folder.glob("chunk-*"))) == 2
    first = folder / "chunk-000000.safetensors"
    first.write_bytes(first.read_bytes()[:100])  # damaged: made again
    with pytest.warns(RuntimeWarning, match=r"checkpoint: .*chunk-000000.* is made again"):
        resumed = make(checkpoint=folder)
    assert len(calls) == 3 + 2  # the damaged and the missing chunk
    np.testing.assert_array_equal(resumed.x, whole.x)


def test_checkpoint_of_another_run_is_refused(tmp_path):
    make(checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint: .*another key, data or settings"):
        make(steps=5, checkpoint=tmp_path)


def test_other_numbers_in_a_controller_are_another_run(tmp_path):
    """By value: NumPy prints 0.1 and 1e-5 of an array alike where a ``repr`` is cut or rounded."""
    loose, tight = (
        diffrax.PIDController(np.array(rtol), np.array(1e-3)) for rtol in (0.1, 0.1 + 1e-12)
    )
    make(stepsize_controller=loose, checkpoint=tmp_path)
    make(stepsize_controller=loose, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="another key, data or settings"):
        make(stepsize_controller=tight, checkpoint=tmp_path)


@pytest.mark.parametrize("damage", ["flipped", "other part", "cut short"])
def test_a_damaged_part_is_named_and_made_again(damage, tmp_path):
    whole = make(checkpoint=tmp_path)
    first, second = sorted(tmp_path.glob("chunk-*"))[:2]
    if damage == "flipped":
        data = bytearray(first.read_bytes())
        data[-5] ^= 1
        first.write_bytes(data)
    elif damage == "other part":
        first.write_bytes(second.read_bytes())
    else:
        tensors, header = storage.read_tensors(first)
        storage.write_tensors(first, {k: v[:3] for k, v in tensors.items()}, header)
    with pytest.warns(RuntimeWarning, match=f"{first.name}.* is made again"):
        again = make(checkpoint=tmp_path)
    np.testing.assert_array_equal(again.x, whole.x)


def test_nonfinite_pairs_are_reported(monkeypatch):
    from mcscore.generators import labelling as module

    compiled = module.compiled_flow

    def spoiled(*args, **options):
        solve = compiled(*args, **options)

        def spoil(z, law, c):
            flow = solve(z, law, c)
            return flow._replace(points=flow.points.at[0].set(jnp.nan))

        return spoil

    monkeypatch.setattr(module, "compiled_flow", spoiled)
    with pytest.warns(RuntimeWarning, match="3 of 250 traj"):
        pairs = make()
    assert len(pairs.x) == 247 and pairs.report.nonfinite == 3
    assert np.isfinite(np.asarray(pairs.x)).all()


def test_bad_arguments_are_named():
    for options, message in (({"n": 0}, "n: expected"), ({"minibatch": 0}, "minibatch: expected")):
        with pytest.raises(ValueError, match=message):
            make(**options)


@pytest.mark.slow
def test_tolerance_chooses_the_steps(key):
    law = mcs.mixture(table(200, 2), kernel=mcs.Isotropic(0.3))
    rough, fine = (
        mcs.generate_pairs(key, law, mcs.Cosine(), 100, tolerance=t).report for t in (0.05, 1e-4)
    )
    assert rough.evaluations < fine.evaluations
    deviation = float(law.variance) ** 0.5
    assert fine.error_rms <= 1e-4 * deviation and rough.error_rms <= 0.05 * deviation
    assert fine.switched == 0
    for bad in (
        dict(tolerance=0.0),
        dict(tolerance=0.1, steps=3),
        dict(tolerance=0.1, error_sample=0),
    ):
        with pytest.raises(ValueError, match="tolerance: expected"):
            mcs.generate_pairs(key, law, mcs.Cosine(), 10, **bad)
