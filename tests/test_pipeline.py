import json
import os
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pandas as pd
import pytest

import mcscore as mcs
from mcscore import __main__ as cli
from mcscore.__main__ import main
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


@pytest.mark.parametrize("view", [np.asarray, pd.DataFrame, np.float32, lambda x: x.tolist()])
def test_anything_numpy_can_view(view, key):
    made = mcs.fit_stages(key, view(GOOD * [1, 10, 100] + 5), **QUICK)
    samples = made.generator.sample(key, 500)
    assert samples.shape == (500, 3) and np.isfinite(np.asarray(samples)).all()
    assert set(made.seconds) == {"mixture", "labels", "training", "density"}
    assert made.agreement.error < 1 and made.agreement.certified > 0.9
    assert made.generator.about["rows"] == 50


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


@pytest.mark.slow
def test_command_line(tmp_path, capsys, monkeypatch):
    csv, model, out = tmp_path / "x.csv", tmp_path / "m.safetensors", tmp_path / "s.csv"
    pd.DataFrame(GOOD, columns=["a", "Δφ", "é"]).to_csv(csv, index=False)
    small = dict(kernel=mcs.Local(0.8, 2), network=mcs.MLP(width=8, depth=1))
    monkeypatch.setattr(cli, "fit_stages", partial(mcs.fit_stages, **small))
    quick = ["--out", str(model), "--pairs", "200", "--epochs", "1", "--refine"]
    assert main(["fit", str(csv), *quick, "100"]) == 0
    assert main(["sample", str(model), "-n", "7", "--out", str(out)]) == 0
    samples = pd.read_csv(out)
    assert list(samples.columns) == ["a", "Δφ", "é"] and samples.shape == (7, 3)
    assert main(["sample", str(model), "--out", str(tmp_path / "s.npy"), "-n", "3"]) == 0
    assert np.load(tmp_path / "s.npy").shape == (3, 3)

    densities, picture = tmp_path / "d.csv", tmp_path / "p.png"
    assert main(["density", str(model), str(csv), "--out", str(densities)]) == 0
    found, wanted = pd.read_csv(densities), mcs.load(model).density(GOOD)
    assert list(found.columns) == ["log_prob", "certified"] and found.certified.mean() > 0.9
    np.testing.assert_allclose(found.log_prob, wanted.log_prob, rtol=1e-5)
    assert main(["plot", str(csv), str(out), str(csv), "--out", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "x (50 rows), s (7 rows)" in capsys.readouterr().out
    densities.write_text("a,b,d\n1,2,3\n")
    refused = ["density", str(model), str(densities), "--out", str(out)]
    assert main(refused) == 2 and "['a', 'b', 'd']" in capsys.readouterr().err
    assert densities.read_text() == "a,b,d\n1,2,3\n"

    def reading(_, table, **options):  # as far as the work: what was read is what matters
        np.testing.assert_array_equal(table.values, GOOD)
        raise ValueError(f"refine={options['refine']}")

    monkeypatch.setattr(cli, "fit_stages", reading)
    np.savez(tmp_path / "x.npz", train=GOOD, test=GOOD + 1)
    assert main(["fit", str(tmp_path / "x.npz"), *quick, "0"]) == 2
    assert "refine=0" in capsys.readouterr().err


def test_tables_are_written_as_they_would_be_read(tmp_path):
    rows = np.array([[0.22, 85, 1.2345678e-9]], np.float32)
    cli._write(tmp_path / "x.csv", rows, ["Δ", "b", "c"])
    assert (tmp_path / "x.csv").read_text("utf-8") == "Δ,b,c\n0.22,85,1.234568e-09\n"
    table, names = mcs.datasets.read(tmp_path / "x.csv")
    np.testing.assert_allclose(table, rows, rtol=1e-6)
    assert names == ["Δ", "b", "c"]


@pytest.mark.slow
def test_commands_keep_what_they_compiled(tmp_path):
    model, home = tmp_path / "m.safetensors", tmp_path / "cache"
    few = dict(pairs=200, epochs=1, refine=0, encoder=False)
    mcs.fit(jax.random.key(0), GOOD, kernel=mcs.Local(0.8, 2), **few).save(model)
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    for options in (["--no-cache"], []):
        assert not home.exists()
        arguments = [*options, "sample", str(model), "--out", str(tmp_path / "s.npy")]
        command = [sys.executable, "-m", "mcscore", *arguments]
        subprocess.run(command, env=env | {"XDG_CACHE_HOME": str(home)}, check=True)
    assert list((home / "mcscore/programs").iterdir())


def test_command_line_says_what_is_wrong(tmp_path, capsys):
    (tmp_path / "x.csv").write_text("a,b\n1,oops\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / r"ga\p.csv").write_text("a,b\n1,nan\n2,3\n4,5\n")
    (short := tmp_path / "short.csv").write_text("a,b,c\n1,2\n2,3\n4,5\n")
    before, model = tmp_path / "m.safetensors", str(tmp_path / "n.safetensors")
    before.write_text("not a model")
    tables = [str(tmp_path / name) for name in ("wide.npy", "narrow.npy")]
    for path, width in zip(tables, (3, 2), strict=True):
        np.save(path, GOOD[:, :width])
    for arguments, message in (
        (["fit", str(tmp_path / "no.csv"), "--out", "n.safetensors"], "no file"),
        (
            ["fit", str(tmp_path / "x.csv"), "--out", model],
            "not a readable table",
        ),
        (
            ["fit", str(tmp_path / "x.csv"), "--out", str(tmp_path / "no" / "n.safetensors")],
            "x.csv|no folder",
        ),
        (
            ["fit", str(tmp_path / "empty.csv"), "--out", model],
            "empty.csv: expected",
        ),
        (
            ["fit", str(tmp_path / r"ga\p.csv"), "--out", model],
            r"ga\p.csv: expected",
        ),
        (["sample", str(before), "--out", "s.csv"], "damaged"),
        (["sample", str(before), "--out", "s.csv", "-n", "0"], "-n"),
        (["sample", str(before), "--out", "s.txt"], "expected a .csv or .npy file"),
        (["density", str(before), "x.csv", "--out", "no/d.csv"], "no folder"),
        (["fit", str(tmp_path / "x.csv"), "--out", str(tmp_path)], "expected a .safetensors file"),
        (["plot", *tables, "--out", "p.png"], "{'wide': 3, 'narrow': 2}"),
        (["plot", *tables, *tables, "--out", "p.png"], "one to three tables"),
        (["plot", tables[0], "--out", "p.png", "--columns", "0"], "--columns"),
        (["fit", str(short), "--out", str(tmp_path / "m.safetensors")], "3 names for 2 columns"),
        (["fit", str(before), "--out", str(before)], "would be lost"),
        (["export", str(before), "--out", str(before)], "would be lost"),
        (["density", str(before), str(short), "--out", str(short)], "would be lost"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert any(part in error for part in message.split("|")), error
    assert before.read_text() == "not a model"


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    assert main(["demo", "--quick", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert set(report) == {"two_spirals", "wine"}
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".json"}
    assert "generated" in capsys.readouterr().out


def test_module_and_help():
    run = [sys.executable, "-m", "mcscore", "--help"]
    text = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert all(word in text for word in ("demo", "fit", "sample"))
    assert jax.devices()
