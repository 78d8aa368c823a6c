"""Tables larger than memory, here small ones: the law of all rows, part by part."""

import tempfile
import warnings

import jax
import numpy as np
import pandas as pd
import pytest

import mcscore as mcs
from mcscore import chunked
from mcscore._arrays import enable_x64
from mcscore.chunked import laws
from tests.conftest import X64

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(503, 3)) * [1, 2, 3]
KDE = mcs.Isotropic(0.4)


def law_of(source, **options):
    return chunked.mixture(source, tempfile.mkdtemp(), **(dict(rows=150, kernel=KDE) | options))


def test_the_law_is_that_of_all_rows():
    law, whole, q = law_of(X), mcs.mixture(X, kernel=KDE), 2 * X[:40]
    assert sorted(law.sizes) == [125, 126, 126, 126]
    tight = dict(rtol=1e-4, atol=1e-4) if whole.dtype == np.float32 else dict(rtol=1e-10)
    np.testing.assert_allclose(law.log_prob(q), whole.log_prob(q), **tight)
    schedule = mcs.Cosine()
    jet = law.evaluate(q, 0.3, schedule, laplacian=True)
    expected = mcs.flows.evaluate(q, 0.3, whole, schedule)
    for own, other in zip(jet, expected, strict=True):
        np.testing.assert_allclose(own, other, **tight)
    np.testing.assert_allclose(law.score(q, 0.3, schedule), expected.field, **tight)
    draws = np.asarray(law.sample(KEY, 20_000))
    np.testing.assert_allclose(draws.std(0), np.sqrt(X.var(0) + 0.16), rtol=0.03)
    assert np.ptp([d.std() for d in np.split(draws[:, 2], 10)]) < 0.5  # parts are mixed


@pytest.mark.parametrize("cuts", [[], [1, 300], list(range(50, 503, 50))])
def test_chunks_do_not_matter(cuts, tmp_path):
    parts = np.split(X, cuts)
    some = chunked.subsample(KEY, iter(parts), 100)
    np.testing.assert_array_equal(some, chunked.subsample(KEY, X, 100))
    places = [int(np.flatnonzero((row == X).all(1))[0]) for row in some]
    assert len(set(places)) == 100 and places == sorted(places)
    for number, part in enumerate(parts):
        np.save(tmp_path / f"{number:02d}.npy", part)
    laws = [law_of(source) for source in (X, parts, lambda: iter(parts), tmp_path)]
    nats = [np.asarray(law.log_prob(X[:9])) for law in laws]
    for other in nats[1:]:
        np.testing.assert_array_equal(nats[0], other)


def test_every_row_is_drawn_equally_often():
    counts = np.zeros(30)
    for key in jax.random.split(KEY, 400):
        counts[chunked.subsample(key, np.arange(30.0)[:, None], 6)[:, 0].astype(int)] += 1
    assert abs(counts - 80).max() < 5 * np.sqrt(80 * 0.8)
    on_device = chunked.subsample(KEY, jax.numpy.arange(30.0)[:, None], 6)
    np.testing.assert_array_equal(on_device, chunked.subsample(KEY, np.arange(30.0)[:, None], 6))
    assert len(chunked.subsample(KEY, X, 1000)) == len(X)


@pytest.mark.once
def test_an_interrupted_law_goes_on(tmp_path, monkeypatch):
    options = dict(rows=150, kernel=mcs.Auto(frames=(mcs.Affine(),)))
    whole = chunked.mixture(X, tmp_path / "whole", **options)
    made, choose = [], laws.choose_law

    def failing(*args, **kwargs):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(choose(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(laws, "choose_law", failing)
    with pytest.raises(KeyboardInterrupt):
        chunked.mixture(X, tmp_path / "cut", **options)
    with pytest.raises(ValueError, match="no complete law"):
        chunked.load(tmp_path / "cut")
    monkeypatch.setattr(laws, "choose_law", choose)
    (tmp_path / "cut/law-00001.safetensors").write_bytes(b"0" * 50)
    with pytest.warns(RuntimeWarning, match=r"law-00001.* it is made again"):
        law = chunked.mixture(X, tmp_path / "cut", **options)
    np.testing.assert_array_equal(law.log_prob(X), whole.log_prob(X))
    assert {p.name for p in (tmp_path / "cut").iterdir()} == {
        *(f"law-{i:05d}.safetensors" for i in range(4)), "law.json", "run.json"
    }  # fmt: skip
    with pytest.raises(ValueError, match="rows: 150 there, 140 here"):
        chunked.mixture(X, tmp_path / "cut", **options | dict(rows=140))
    with pytest.raises(ValueError, match="source"):
        chunked.mixture(X + 1, tmp_path / "cut", **options)
    (tmp_path / "cut/law-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="law-00002"):
        chunked.load(tmp_path / "cut")


@pytest.mark.once
def test_a_sorted_table_with_names_ties_and_bounds():
    rows = pd.DataFrame(dict(day=np.arange(900) // 90, size=np.abs(np.repeat(X[:450, 0], 2))))
    options = dict(
        kernel=mcs.Local(0.5, clusters=4), frame=mcs.Affine(), bounds={"size": (0, None)}
    )
    law = law_of(lambda: (rows[i : i + 250] for i in range(0, 900, 250)), rows=300, **options)
    drawn = law.sample(KEY, 2000, as_frame=True)
    assert list(drawn) == ["day", "size"] and set(drawn["day"]) <= set(range(10))
    assert drawn["size"].min() >= 0 and abs(drawn["day"].mean() - 4.5) < 0.3
    assert np.isfinite(np.asarray(law.log_prob(rows[:50]))).all()
    with pytest.raises(ValueError, match="coordinates of their own"):
        law.score(np.zeros((1, 2)), 0.5, mcs.Cosine())
    some = chunked.subsample(KEY, rows, 20)
    assert list(some) == ["day", "size"] and some.index.is_monotonic_increasing


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (iter([X]), "iterator"),
        ([X, X[:, :2]], "expected columns 3, got 2 from row 503"),
        ([[1.0, 2.0], [3.0, 4.0]], r"source: .*shape \(2,\)"),
        ([[[1.0], [2.0, 3.0]]], "source"),
        ([X, np.full((2, 3), np.nan)], r"row 0 .*from 503 on"),
        (3.0, "source"),
        (np.ones(5), "source"),
        ([], "source"),
        (np.zeros((0, 2)), "source"),
        ([np.ma.array(X, mask=X > 2)], "source: masked"),
        (np.ones((3, 2, 2)), r"shape \(3, 2, 2\)"),
    ],
)
def test_what_is_no_table(source, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        law_of(source)


NAMED = [pd.DataFrame(X, columns=list(names)) for names in ("abc", "abd")]


@pytest.mark.parametrize(
    "source",
    [
        [[1.0, 2.0]], [[[1.0], [2.0, 3.0]]], [X, X[:, :2]], [], 3.0, [X[:0], X[:0]],
        np.ma.array(X, mask=X > 2), NAMED, [NAMED[0], X],
    ],
)  # fmt: skip
def test_rows_are_not_drawn_from_what_is_no_table(source):
    with pytest.raises(ValueError, match="source"):
        chunked.subsample(KEY, source, 5)


def test_too_many_parts_and_no_files(tmp_path):
    with pytest.raises(ValueError, match="rows: 5 make 201 parts"):
        law_of(np.ones((1001, 2)), rows=5)
    with pytest.raises(FileNotFoundError, match=r"no \.npy files"):
        law_of(tmp_path)
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"expected \.npy files"):
        law_of(tmp_path / "x.csv")
    with pytest.raises(ValueError, match="folder: expected a folder"):
        chunked.mixture(X, tmp_path / "x.csv")


def test_empty_chunks_are_passed_over():
    whole, cut = law_of(X), law_of([X[:0], X[:300], X[:0], X[300:]])
    np.testing.assert_array_equal(whole.log_prob(X[:9]), cut.log_prob(X[:9]))


def test_no_part_is_taken_for_another(tmp_path):
    one, other, how = tmp_path / "one", tmp_path / "other", dict(rows=150, kernel=KDE)
    whole = np.asarray(chunked.mixture(X, one, **how).log_prob(X))
    chunked.mixture(X + 9, other, **how)
    files = [folder / "law-00001.safetensors" for folder in (one, other)]
    for wrong in (files[1], one / "law-00000.safetensors"):
        files[0].write_bytes(wrong.read_bytes())
        with pytest.raises(ValueError, match="belongs to another"):
            chunked.load(one).log_prob(X)
        with pytest.warns(RuntimeWarning, match=r"law-00001.* it is made again"):
            np.testing.assert_array_equal(chunked.mixture(X, one, **how).log_prob(X), whole)
    (one / "run.json").unlink()
    with pytest.warns(RuntimeWarning, match="it is made again"):
        law = chunked.mixture(X + 100, one, **how)
    np.testing.assert_allclose(law.log_prob(X + 100), whole, atol=1e-3)
    with enable_x64(not X64), pytest.raises(ValueError, match="dtype"):
        chunked.mixture(X + 100, one, **how)
    for told in ('{"run": "a", "sizes": []}', '{"sizes": [1]}', "[1]"):
        (one / "law.json").write_text(told)
        with pytest.raises(ValueError, match="no complete law"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            chunked.load(one)


def test_a_first_call_that_fails_leaves_the_folder_free(tmp_path):
    with pytest.raises(ValueError, match="bounds"):
        chunked.mixture(X, tmp_path, rows=150, kernel=KDE, bounds={0: (0, 1)})
    assert chunked.mixture(X, tmp_path, rows=150, kernel=KDE).sizes
    rare = np.c_[X, np.arange(503) == 10]
    with pytest.raises(ValueError, match=r"constant .*\(in part . of 6, of 8. rows; see rows=\)"):
        law_of(rare, rows=90, frame=mcs.Affine())


def test_a_kind_that_only_some_parts_see_is_told():
    random = np.random.default_rng(5)
    x = random.normal(size=(3000, 2))
    x[random.permutation(3000)[:60], 1] = 0
    with pytest.warns(RuntimeWarning, match="column 1 is .*atom.*continuous"):
        law_of(x, rows=500, kernel=mcs.Local(0.5, clusters=3), frame=mcs.Affine())


def test_no_digit_of_the_table_is_lost_on_the_way():
    """Seconds of an epoch are too fine for float32 before a frame has shifted them."""
    x = np.column_stack([1.7e9 + 100 * X[:, 0], X[:, 1]])
    law = law_of(x, kernel=mcs.Local(0.5, clusters=2), frame=mcs.Affine())
    drawn = np.asarray(law.sample(KEY, 4000), np.float64)[:, 0]
    assert abs(drawn.mean() - x[:, 0].mean()) < 10 and abs(drawn.std() / x[:, 0].std() - 1) < 0.1
    assert len(np.unique(drawn)) > 3000


def test_rows_are_dealt_at_random_and_partitions_shared_out():
    x = np.random.default_rng(1).normal(size=(800, 2))
    x[:, 0] += 10 * (np.arange(800) % 4)  # a period of as many rows as there are parts
    law = law_of(x, rows=200, kernel=mcs.Local(0.5, clusters=4, partitions=4))
    means = [float(np.mean(part.sample(KEY, 2000)[:, 0])) for part in law.parts()]
    assert len(means) == 4 and np.ptp(means) < 5
    told = [part.report.kernel for part in law.parts()]
    assert "partitions=4" in told[0] and all("partitions=1" in kernel for kernel in told[1:])


def test_parts_are_read_with_the_callers_settings():
    with enable_x64(True):
        law = law_of(X, kernel=KDE)
        assert {part.dtype for part in law.parts()} == {np.dtype(np.float64)}
