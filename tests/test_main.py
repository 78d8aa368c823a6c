"""The command line."""

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
from mcscore.datasets.reading import write
from tests.test_pipeline import GOOD


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
    found, made = pd.read_csv(densities), mcs.load(model)
    assert list(found.columns) == ["log_prob"]
    np.testing.assert_allclose(found.log_prob, made.law.log_prob(GOOD), rtol=1e-5)
    assert main(["density", str(model), str(csv), "--network", "--out", str(densities)]) == 0
    found, wanted = pd.read_csv(densities), made.density(GOOD)
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
    write(tmp_path / "x.csv", rows, ["Δ", "b", "c"])
    assert (tmp_path / "x.csv").read_text("utf-8") == "Δ,b,c\n0.22,85,1.2345678e-09\n"
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


@pytest.mark.once
def test_ends_periods_and_headers(tmp_path, capsys):
    r = np.random.default_rng(3)
    rows = np.stack([r.random(300), r.uniform(0, 360, 300)], 1)
    data, model, draws = (tmp_path / name for name in ("x.csv", "m.safetensors", "s.npy"))
    np.savetxt(data, rows, delimiter=",", header="share,angle", comments="")
    few = ["--pairs", "300", "--epochs", "2", "--refine", "0"]
    ends = ["--bounds", "share=0:1", "--periodic", "1=360", "--resume", str(tmp_path / "parts")]
    assert main(["fit", str(data), "--out", str(model), *ends, *few]) == 0
    first = mcs.load(model).params
    assert main(["fit", str(data), "--out", str(model), *ends, *few]) == 0  # of finished parts
    for found, expected in zip(*map(jax.tree.leaves, (mcs.load(model).params, first)), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert main(["fit", str(data), "--out", str(model), *ends, *few, "--seed", "1"]) == 2
    assert f"checkpoint: {tmp_path / 'parts'} belongs to a run" in capsys.readouterr().err
    assert main(["sample", str(model), "--out", str(draws), "-n", "500"]) == 0
    found = np.load(draws)
    assert (found >= 0).all() and (found <= [1, 360]).all()
    capsys.readouterr()
    for wrong, message in (
        (["--bounds", "share"], "--bounds: expected COLUMN=LOW:HIGH, got 'share'"),
        (["--bounds", "size=0:1"], "'size'"),
        (["--periodic", "angle=day"], "--periodic: expected COLUMN=PERIOD"),
        (["--header", "--bounds", "0=0.5:"], "'share' holds"),
        (["--no-header"], "row"),
    ):
        assert main(["fit", str(data), "--out", str(model), *wrong, *few]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.once
def test_a_model_is_kept_where_its_place_fails(tmp_path, capsys, monkeypatch):
    """A full disk at the end of a fit: the model goes elsewhere, and the message says where."""
    np.save(tmp_path / "x.npy", GOOD)
    save, tried = mcs.Generator.save, []

    def failing(self, path):
        tried.append(path)
        if len(tried) == 1:
            raise OSError(28, "No space left on device")
        save(self, path)

    monkeypatch.setattr(mcs.Generator, "save", failing)
    out = tmp_path / "m.safetensors"
    few = ["--pairs", "300", "--epochs", "2", "--refine", "0"]
    assert main(["fit", str(tmp_path / "x.npy"), "--out", str(out), *few]) == 2
    error = capsys.readouterr().err
    assert "No space left" in error and str(tried[1]) in error
    assert mcs.load(tried[1]).dimension == GOOD.shape[1] and not out.exists()


def test_interrupted(capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mcscore.__main__.load", stop)
    assert main(["export", "model", "--out", "x.stablehlo"]) == 130
    assert capsys.readouterr().err.strip() == "mcscore: interrupted"


def test_names_with_commas_come_back(tmp_path):
    names = ["age, years", 'say "x"', "plain"]
    write(tmp_path / "x.csv", GOOD[:5, :3], names)
    rows, found = mcs.datasets.read(tmp_path / "x.csv")
    assert found == names
    np.testing.assert_allclose(rows, GOOD[:5, :3], rtol=1e-6)
    assert list(pd.read_csv(tmp_path / "x.csv").columns) == names


@pytest.mark.once
def test_conditions_from_the_shell(tmp_path, capsys):
    """Names, numbers and files; options by number mean the columns of the file, wherever these go."""
    r = np.random.default_rng(5)
    c = r.uniform(0, 1, 300)
    rows = np.stack([c, 2 * c + 0.1 * r.standard_normal(300), r.exponential(1, 300)], 1)
    data, model = tmp_path / "x.csv", tmp_path / "m.safetensors"
    np.savetxt(data, rows, delimiter=",", header="temp,a,wait", comments="")
    few = ["--pairs", "300", "--epochs", "2", "--refine", "0"]
    asked = ["--condition", "0", "--bounds", "2=0:"]
    assert main(["fit", str(data), "--out", str(model), *asked, *few]) == 0
    law = mcs.load(model).law
    assert law.columns == ("a", "wait") and law.condition_columns == ("temp",)
    assert np.isneginf(law.log_prob([[1.0, -1.0]], condition=[0.5]))  # the bound is of "wait"

    def run(command, *rest):
        out = tmp_path / f"{command}.npy"
        assert main([command, str(model), *rest, "--out", str(out)]) == 0
        return np.load(out)

    drawn = run("sample", "--given", "temp=0.5", "-n", "400")
    assert drawn.shape == (400, 2) and (drawn[:, 1] >= 0).all()
    np.savetxt(tmp_path / "c.csv", [0.2, 0.8], header="temp", comments="")
    assert run("sample", "--given-file", str(tmp_path / "c.csv"), "-n", "3").shape == (6, 2)
    nats = run("density", str(data))
    exact = law.log_prob(rows[:, 1:], condition=rows[:, :1])
    np.testing.assert_allclose(nats[:, 0], exact, atol=1e-4)
    assert run("density", str(data), "--network").shape == (300, 2)
    assert run("condition", "--given", "a=1.0", "-n", "5").shape == (5, 2)
    holes = tmp_path / "holes.csv"
    holes.write_text("temp,a,wait\n0.5,,1.0\n0.25,NA,\n")
    filled = run("impute", str(holes), "--draws", "2")
    assert filled.shape == (4, 3) and np.isfinite(filled).all()
    np.testing.assert_array_equal(filled[[0, 2], 2], [0.5, 0.5])  # in the model's order
    capsys.readouterr()
    for wrong, message in (
        (["sample", "-n", "3"], "condition: needed here, 1 value"),
        (["sample", "--given", "pressure=1"], "'pressure'"),
        (["sample", "--given", "temp"], "--given: expected COLUMN=VALUE"),
        (["condition"], "--given: expected a column's value"),
    ):
        assert main([wrong[0], str(model), *wrong[1:], "--out", str(tmp_path / "o.npy")]) == 2
        assert message in capsys.readouterr().err
    mcs.load(model).save(model, law=False)
    assert main(["density", str(model), str(data), "--out", str(tmp_path / "o.npy")]) == 2
    assert "was saved without its law" in capsys.readouterr().err
