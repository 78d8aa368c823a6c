from html import escape

import jax
import numpy as np
import pandas as pd
import pytest

import mcscore as mcs
from mcscore import storage
from mcscore._validation import Table
from tests.conftest import X64

QUICK = dict(
    kernel=mcs.Isotropic(0.3),
    frame=mcs.Affine(),
    pairs=300,
    network=mcs.MLP(width=16, depth=1),
    epochs=2,
    refine=0,
    labelling=dict(error_sample=0),
)
GOOD = np.random.default_rng(0).standard_normal((50, 3))


@pytest.mark.once
@pytest.mark.parametrize("view", [np.asarray, pd.DataFrame, np.float32, lambda x: x.tolist()])
def test_anything_numpy_can_view(view, key):
    made = mcs.fit_stages(key, view(GOOD * [1, 10, 100] + 5), **QUICK)
    samples = made.generator.sample(key, 500)
    assert samples.shape == (500, 3) and np.isfinite(np.asarray(samples)).all()
    assert set(made.seconds) == {"mixture", "labels", "training", "density"}
    assert made.agreement.error < 1 and made.agreement.certified > 0.9
    assert made.generator.about["rows"] == 50


@pytest.mark.once
def test_a_prompt_shows_shapes_and_reports_not_numbers(key):
    made = mcs.fit_stages(key, GOOD, **(QUICK | {"frame": mcs.Gaussianize()}))
    law, pairs = made.mixture, made.pairs
    for shown in (made, made.generator, law, law.frame, law.frame.affine, pairs, made.history):
        text = repr(shown)
        assert text.startswith(type(shown).__name__ + "(") and text.count("\n") < 100
        assert "rray(" not in text and "[" in text
    assert f"[{len(pairs.z)},3]" in repr(pairs)
    assert repr(law.report) == str(law.report) and "50 x 3" in repr(law.report)
    with pytest.warns(DeprecationWarning, match="use the attribute report"):
        assert law.summary() is law.report


def test_labels_take_few_steps_unless_asked_otherwise(key, monkeypatch):
    asked = []

    def generate(*_, **options):
        asked.append(options["steps"] if "steps" in options else options["tolerance"])
        raise RuntimeError("as far as the labels")

    monkeypatch.setattr("mcscore.pipeline.generate_pairs", generate)
    for labelling in ({}, dict(chunk_size=7), dict(steps=9), dict(tolerance=1e-3)):
        with pytest.raises(RuntimeError, match="as far as"):
            mcs.fit(key, GOOD, **(QUICK | {"labelling": labelling}))
    assert asked == [5, 5, 9, 1e-3]


@pytest.mark.once
def test_fit_refines_where_a_density_is_wanted(key):
    quick = QUICK | {"refine": 100}
    made = mcs.fit_stages(key, GOOD, **quick)
    assert "refining" in made.seconds and made.refinement.before.certified > 0.9
    assert 0 < made.agreement.effective_sample_size <= 1
    no_density = mcs.fit_stages(key, GOOD, **(quick | {"refine": None, "encoder": False}))
    assert no_density.refinement is None


def test_refine_is_checked_before_any_work(key, monkeypatch):
    monkeypatch.setattr("mcscore.pipeline.generate_pairs", lambda *_, **__: pytest.fail("too late"))
    with pytest.raises(ValueError, match="refine: expected an integer of at least 0, got -5"):
        mcs.fit(key, GOOD, **(QUICK | {"refine": -5}))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (dict(epochs=0), "epochs: expected an integer of at least 1"),
        (dict(validation=1.5), "validation: expected a share"),
        (dict(pairs=0), "pairs: expected"),
        (dict(labelling=dict(chunksize=5)), "labelling: expected options .*; got 'chunksize'"),
        (dict(labelling=dict(chunk_size=0)), "chunk_size: expected"),
        (dict(labelling=dict(steps=3, tolerance=0.1)), "tolerance: expected"),
        (dict(pairs=1), "pairs: expected an integer of at least 2"),
        (dict(validation=0.999), "validation: expected a share that leaves"),
        (dict(kernel=mcs.Dirac(), schedule=mcs.Linear(), refine=9), r"refine: Dirac\(\) has no"),
        (dict(kernel=mcs.Dirac()), r"schedule: Dirac\(\) needs one with sigma\(0\) > 0"),
    ],
)
def test_options_are_checked_before_any_work(options, named, key, monkeypatch):
    monkeypatch.setattr("mcscore.pipeline.mixture", lambda *a, **k: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=named):
        mcs.fit(key, GOOD, **(QUICK | options))
    with pytest.raises(TypeError, match="unexpected keyword argument 'epoch'"):
        mcs.fit(key, GOOD, epoch=1)


@pytest.mark.skipif(X64, reason="annotations are checked first")
@pytest.mark.parametrize(
    "options",
    [
        dict(kernel="auto"),
        dict(kernel=mcs.Local),
        dict(frame="affine"),
        dict(frame=mcs.Affine),
        dict(schedule=mcs.Cosine),
        dict(network=None),
        dict(optimizer="adam"),
        dict(validation="a"),
        dict(ema=None),
        dict(labelling=5),
        dict(noise="sobol"),
        dict(solver="euler"),
        dict(clock=mcs.TimeClock),
    ],
    ids=str,
)
def test_values_of_another_type_are_named(options, key):
    (name,) = options
    options = (
        options
        if name in QUICK or name not in ("noise", "solver", "clock")
        else dict(labelling=options)
    )
    with pytest.raises(ValueError, match=f"{name}: expected"):
        mcs.fit(key, GOOD, **(QUICK | options))


@pytest.mark.skipif(X64, reason="annotations are checked first")
def test_seeds_and_batches_of_keys_are_named(key):
    law = mcs.mixture(GOOD, kernel=mcs.Isotropic(0.3))
    for call in (
        lambda key: mcs.fit(key, GOOD),
        lambda key: mcs.mixture(GOOD, key=key),
        lambda key: law.sample(key, 3),
        lambda key: law.subsample(key, 3),
        lambda key: mcs.minibatch_score(key, GOOD, 0.5, law, mcs.Linear()),
        lambda key: mcs.generate_pairs(key, law, mcs.Cosine(), 5),
        lambda key: mcs.metrics.mmd(key, GOOD, GOOD),
        lambda key: mcs.datasets.split(key, GOOD, 0.5, 0.5),
    ):
        with pytest.raises(ValueError, match=r"key: expected a random key, got 3; write jax"):
            call(3)
        with pytest.raises(ValueError, match="key: expected one random key"):
            call(jax.random.split(key))


@pytest.mark.once
def test_no_key_is_used_twice(key, monkeypatch):
    """Every key that is drawn from or divided in ``fit``, on the host, is another one."""
    used = []

    def watch(name, function):
        def watched(key, *rest, **named):
            if not isinstance(key, jax.core.Tracer):
                index = rest[0] if name == "fold_in" else None  # divided in either way, not both
                used.append((np.asarray(jax.random.key_data(key)).tobytes(), name, index))
            return function(key, *rest, **named)

        return watched

    for name in ("split", "fold_in", "normal", "bits", "permutation", "uniform", "randint"):
        monkeypatch.setattr(jax.random, name, watch(name, getattr(jax.random, name)))
    mcs.fit(key, GOOD, **(QUICK | dict(refine=100, kernel=mcs.Local(0.8, 2))))
    assert len(used) == len(set(used)) > 10
    ways = {}
    for data, name, _ in used:
        ways.setdefault(data, set()).add(name)
    assert all(len(names) == 1 for names in ways.values())


def test_memory_map(tmp_path, key):
    np.save(tmp_path / "x.npy", GOOD)
    mcs.fit(key, np.load(tmp_path / "x.npy", mmap_mode="r"), **QUICK)


def with_column(j, values):
    x = GOOD.copy()
    x[:, j] = values
    return x


BAD = {
    "nan": (with_column(1, np.nan), "nan in column 1"),
    "inf": (with_column(2, np.inf), "inf in column 2"),
    "constant": (with_column(1, 7.0), "column 1 is constant"),
    "constant, named": (
        pd.DataFrame(with_column(1, 7.0), columns=["a", "b", "c"]),
        "column 'b' is constant",
    ),
    "duplicate": (with_column(2, GOOD[:, 0]), "column 2 repeats column 0"),
    "mirrored": (with_column(2, 3 - 2 * GOOD[:, 0]), "column 2 repeats column 0"),
    "few rows": (GOOD[:3], "more rows than columns, got 3 rows and 3 columns"),
    "rank": (GOOD[:, 0], "non-empty table"),
    "cube": (GOOD[None], "non-empty table"),
    "empty": (GOOD[:0], "non-empty table"),
    "integers": (np.array([[2**60, 1], [2**61, 2], [5, 7]]), "integers of column 0 exceed 2"),
    "text": (np.array([["a", "b"]] * 3), "table of numbers"),
    "objects": (np.array([[None, 1]] * 3), "table of numbers|finite"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_before_any_work(case, key, monkeypatch):
    monkeypatch.setattr("mcscore.pipeline.mixture", lambda *a, **k: pytest.fail("work was done"))
    x, message = BAD[case]
    with pytest.raises(ValueError, match="x: .*(" + message + ")"):
        mcs.fit(key, x, **QUICK)


@pytest.mark.skipif(X64, reason="float64 resolves it")
def test_offset_beyond_float32(key):
    with pytest.raises(ValueError, match="less than float32 resolves"):
        mcs.fit(key, (GOOD + 1e9).astype(np.float64), **QUICK)


def test_dependent_columns_are_warned_about():
    x = np.column_stack([GOOD, GOOD.sum(1)])
    with pytest.warns(UserWarning, match="rank 3 of 4"):
        Table.of(x).require_spread()


@pytest.mark.slow
def test_generated_samples_follow_the_law(key):
    x = np.asarray(mcs.datasets.moons(key, 3000)) * [3, 40] + [100, 7]
    law = dict(kernel=mcs.Local(0.3, 30, partitions=1), frame=mcs.Gaussianize())
    small = dict(network=mcs.MLP(width=48, depth=3), pairs=10_000, epochs=40, encoder=False)
    made = mcs.fit_stages(key, x.astype(np.float32), **law, **small)
    labels = made.mixture.frame.inverse(made.pairs.x)
    samples = made.generator.sample(key, 3000)
    np.testing.assert_allclose(np.asarray(samples).std(0), np.asarray(labels).std(0), rtol=0.03)
    scale = x.std(0)
    standard = [np.asarray(rows) / scale for rows in (samples, labels[:3000])]
    distance = mcs.metrics.sliced_wasserstein(key, *standard)
    assert distance < 0.06


@pytest.mark.once
def test_a_fit_that_is_interrupted_goes_on_to_the_bit(tmp_path, key, monkeypatch):
    """Wherever it stopped: each part that was to be written is once the one at which it is interrupted."""
    x = np.random.default_rng(0).normal(size=(300, 2))
    options = dict(kernel=mcs.Isotropic(0.5), pairs=300, epochs=4, refine=200)
    options |= dict(network=mcs.MLP(8, 1), labelling=dict(chunk_size=100, error_sample=0))
    whole = mcs.fit_stages(key, x, **options)
    write, written = storage.Checkpoint.write, []
    monkeypatch.setattr(
        storage.Checkpoint, "write", lambda *part: (written.append(part[1]), write(*part))
    )
    mcs.fit(key, x, checkpoint=tmp_path / "all", **options)
    assert {"chunk-000002", "training", "encoder", "refining"} <= set(written)
    for moment in range(len(written)):
        left = iter(range(moment + 1))

        def interrupted(*part, left=left, moment=moment):
            if next(left, None) == moment:
                raise KeyboardInterrupt
            write(*part)

        folder = tmp_path / str(moment)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(storage.Checkpoint, "write", interrupted)
            mcs.fit(key, x, checkpoint=folder, **options)
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("chunk*")}
        again = mcs.fit_stages(key, x, checkpoint=folder, **options)
        after = {path: path.stat().st_mtime_ns for path in before}
        assert before == after
        for found, expected in zip(
            jax.tree.leaves((again.generator.params, again.pairs.x, again.agreement)),
            jax.tree.leaves((whole.generator.params, whole.pairs.x, whole.agreement)),
            strict=True,
        ):
            np.testing.assert_array_equal(found, expected)
    for change, named in (
        (dict(pairs=400), "pairs: 300 there, 400 here"),
        (dict(weights=np.arange(1, 301)), "weights"),
        (dict(bounds={0: (None, 9)}), "bounds: None there"),
        (dict(labelling=dict(steps=4)), "labelling"),
        (dict(epochs=5), "epochs: 4 there, 5 here"),
    ):
        with pytest.raises(ValueError, match=rf"checkpoint: .*\({named}"):
            mcs.fit(key, x, checkpoint=tmp_path / "all", **options | change)
    with pytest.raises(ValueError, match=r"checkpoint: .*\(x\)"):
        mcs.fit(key, x + 1e-9, checkpoint=tmp_path / "all", **options)


def test_a_call_that_fails_does_not_claim_its_folder(tmp_path, key):
    named = pd.DataFrame(GOOD, columns=["a", "b", "c"])
    for wrong in (dict(bounds={"d": (0, None)}), dict(periodic={"d": 1.0}), dict(groups=[1, 2])):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            mcs.fit(key, named, checkpoint=tmp_path / "run", **QUICK, **wrong)
    mcs.fit(key, named, checkpoint=tmp_path / "run", bounds={"a": (-9, None)}, **QUICK)


@pytest.mark.once
def test_a_generator_of_columns_that_float32_cannot_resolve(key):
    """Draws are no multiples of a sixteenth, and densities are those of the same law without the offset."""
    r = np.random.default_rng(1)
    x = r.standard_normal((400, 2))
    offset = np.array([1e6, 0])
    made = [mcs.fit(key, x + far * offset, **(QUICK | dict(encoder=True))) for far in (0, 1)]
    plain, far = (gen.sample(key, 500) for gen in made)
    assert made[1].is_coarse and far.dtype == np.float64
    np.testing.assert_allclose(far - offset, plain, atol=1e-2)
    values = [made[0].log_prob(plain), made[1].log_prob(np.asarray(plain, np.float64) + offset)]
    np.testing.assert_allclose(*values, atol=0.02)
    y, log_q = made[1].sample_and_log_prob(key, 50)
    np.testing.assert_allclose(made[1].log_prob(y), log_q, atol=0.02)
    assert made[1].encode(y).shape == (50, 2)


@pytest.mark.once
def test_what_print_and_notebooks_show():
    x = np.random.default_rng(0).normal(size=(80, 3))
    law = mcs.mixture(x, condition=x[:, :1] + 1, kernel=mcs.Local(0.5, clusters=2))
    tiny = dict(pairs=200, epochs=1, refine=0, network=mcs.MLP(width=8, depth=1))
    gen = mcs.fit(jax.random.key(0), x, kernel=mcs.Local(0.5, clusters=2), **tiny)
    assert "80 x 3" in str(gen.law) and "given" in str(law) and "200 pairs" in str(gen)
    for one in (law, law.joint, gen, gen.law.report):
        html, text = one._repr_html_(), str(one)
        for label, words in one.told().items():
            assert label in text and words in text
            assert f">{escape(label)}</td>" in html and f">{escape(words)}</td>" in html
    nothing = jax.jit(lambda law: law)(gen.law)  # has no report
    assert str(nothing) == repr(nothing) and nothing._repr_html_() is None
