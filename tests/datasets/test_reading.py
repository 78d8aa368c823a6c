"""CSV files as people have them."""

import gzip

import numpy as np
import pandas as pd
import pytest

from mcscore.datasets import read

X = np.round(np.random.default_rng(0).normal(size=(50, 3)), 3)
FRAME = pd.DataFrame(X, columns=["a", "b, c", "d"])


@pytest.mark.parametrize("suffix", ["csv", "txt", "csv.gz"])
@pytest.mark.parametrize(
    "options",
    [
        dict(index=False),
        dict(),
        dict(index=False, sep=";"),
        dict(index=False, sep=";", decimal=","),
        dict(index=False, sep="\t"),
        dict(sep="\t", decimal=","),
        dict(index=False, sep="|"),
        dict(index=False, quoting=1),
    ],
)
def test_dialects_are_found(tmp_path, options, suffix):
    path = tmp_path / f"x.{suffix}"
    FRAME.to_csv(path, **options)
    table, names = read(path)
    np.testing.assert_allclose(table, X)
    assert names == list(FRAME)


def test_blanks_comments_and_no_header(tmp_path):
    path = tmp_path / "x.txt"
    np.savetxt(path, X, header="made by hand\nfor a test")
    table, names = read(path)
    np.testing.assert_allclose(table, X)
    assert names is None
    path.write_text("2019,2020\n1,2\n3,4\n")
    assert len(read(path)[0]) == 3
    table, names = read(path, header=True)
    assert names == ["2019", "2020"] and len(table) == 2
    path.write_text("1.5\n2.5\n")
    assert read(path)[0].shape == (2, 1)
    path.write_text("a\n2\n3\n")
    assert read(path)[1] == ["a"] and read(path)[0].shape == (2, 1)


@pytest.mark.parametrize(
    "text, words",
    [
        ("a,b\n1,2\n3,x\n", "column 'b', row 1"),
        ("a,b\n1,2\n3,\n", "column 'b', row 1"),
        ("a,b,c\n1,2\n3,4\n", "3 names for 2 columns"),
        ("1,2\n3\n", "columns"),
    ],
)
def test_what_is_wrong_is_found_in_its_place(tmp_path, text, words):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"x.csv: not a readable table .*{words}"):
        read(path)


def test_a_damaged_archive_is_told(tmp_path):
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n1,2\n" * 99)[:-9])
    with pytest.raises(ValueError, match="not a readable table"):
        read(path)
