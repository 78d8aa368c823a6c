"""The paper's experiment as published and ours, small: resumed, complete, honest about reductions."""

import json
import re
import shutil
import subprocess

import jax
import numpy as np
import pytest

import mcscore as mcs
from mcscore.__main__ import main
from mcscore.experiments import comparison, evaluation, published, report, reproduce
from mcscore.experiments.published import Settings

KEY = jax.random.key(0)
SMALL = Settings(width=8, pairs=60, chunk_size=25, steps=20, euler=10, minibatch=30)
OURS = dict(pairs=200, epochs=1, refine=0, kernel=mcs.Local(0.7, 2), network=mcs.MLP(8, 1))


@pytest.fixture(scope="module")
def done(problem, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce, "SAMPLES", 2000)
        return out, reproduce.run(KEY, problem, out / "power", settings=SMALL, **OURS)


@pytest.mark.slow
def test_both_columns_have_every_metric(done, problem):
    out, results = done
    for column in comparison.COLUMNS:
        metrics = results[column]["metrics"]
        for metric in comparison.METRICS:
            if (column, metric.key) != ("published", "log_likelihood"):  # it has no density
                assert np.isfinite(metrics[metric.key]), (column, metric)
        assert {"labels", "training", "sampling", "total"} <= set(results[column]["seconds"])
        assert len(metrics["columns"]["kl"]) == 3
    assert "log_likelihood" not in results["published"]["metrics"]
    label_key, _ = jax.random.split(jax.random.split(KEY, 4)[0])
    _, pairs = published.label(label_key, problem.train, SMALL)
    labels = np.asarray(pairs.labels())
    by_hand = evaluation.judge(KEY, labels, problem.train, problem.test, mmd_rows=0)
    for name in ("memorization", "memorization_threshold"):
        assert results["published"]["metrics"][f"label_{name}"] == pytest.approx(by_hand[name])
    assert results["floor"]["metrics"]["column_kl"] >= 0
    seconds = results["published"]["seconds"]
    assert seconds["total in full size"] == pytest.approx(
        seconds["labels"] * (200_000 / 60) * (500 / 10)
        + seconds["training"] * (200_000 / 60) * (20_000 / 20)
        + seconds["sampling"]
    )
    assert "pairs 60 instead of 200,000" in results["published"]["reduced"]
    assert json.loads((out / "power" / "results.json").read_text()) == results
    for name in ("marginals", "pairs", "kl"):
        assert (out / "power" / f"{name}.png").stat().st_size > 5000


@pytest.mark.slow
def test_what_is_finished_is_not_computed_again(done, problem, monkeypatch):
    out, results = done

    def never(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(reproduce, "_published", never)
    monkeypatch.setattr(reproduce, "_mcscore", never)
    assert reproduce.run(KEY, problem, out / "power", settings=SMALL, **OURS) == results
    (floor,) = (out / "power").glob("floor-*.json")
    floor.write_text(floor.read_text()[:20])
    with pytest.warns(RuntimeWarning, match=r"floor-.* is damaged .*; it is made again"):
        assert reproduce.run(KEY, problem, out / "power", settings=SMALL, **OURS) == results
    other = reproduce.Problem("power", problem.train + 1, problem.test)
    with pytest.raises(AssertionError, match="again"):  # other data: nothing is taken over
        reproduce.run(KEY, other, out / "power", settings=SMALL, **OURS)


@pytest.mark.slow
def test_the_law_s_likelihood_is_that_of_noisy_rows(done, problem):
    # The published law: training rows plus noise 0.1, in standardized columns.
    _, results = done
    shift, scale = problem.train.mean(0), problem.train.std(0)
    x, y = ((a.astype(float) - shift) / scale for a in (problem.train, problem.test))
    square = ((y[:, None] - x[None]) ** 2).sum(2)
    log_p = (
        np.logaddexp.reduce(-square / (2 * 0.01), 1)
        - np.log(len(x))
        - 1.5 * np.log(2 * np.pi * 0.01)
    )
    expected = (log_p - np.log(scale).sum()).mean()
    assert results["published"]["metrics"]["law_log_likelihood"] == pytest.approx(
        expected, rel=1e-3
    )


@pytest.mark.slow
def test_report_is_one_file_and_says_what_the_results_say(done):
    out, results = done
    path = report.write_report(out, {"power": results}, "small & rough")
    text = path.read_text()
    assert text.count("data:image/png;base64,") == 3 and "small &amp; rough" in text
    assert not re.search(r'(src|href)="(?!data:)', text) and not re.search("https?:", text)
    for column in comparison.COLUMNS:
        assert f">{comparison.cell(results[column]['metrics']['column_kl'])}<" in text
    best = min(comparison.COLUMNS, key=lambda c: results[c]["metrics"]["column_kl"])
    assert f"<td class=best>{comparison.cell(results[best]['metrics']['column_kl'])}<" in text
    assert "pairs 60 instead of 200,000" in text


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium on the path")
def test_report_in_a_browser(done, tmp_path):
    out, results = done
    path = report.write_report(out, {"power": results}, "in a browser")
    # Offline, in a profile of its own; the page is narrow, as on a telephone.
    browser = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--no-first-run", "--disable-component-update", "--disable-sync", "--disable-quic",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=400,3000",
    ]  # fmt: skip
    picture = tmp_path / "page.png"
    shot = [*browser, f"--screenshot={picture}", path.as_uri()]
    subprocess.run(shot, check=True, capture_output=True, timeout=120)
    from PIL import Image

    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape == (3000, 400) and pixels.std() > 20
    assert (pixels[1200:].min(1) < 128).mean() > 0.3  # the figures are drawn, not only the table


@pytest.mark.slow
def test_command_line(problem, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "SAMPLES", 2000)
    np.savez(tmp_path / "small.npz", train=problem.train, test=problem.test)
    out = tmp_path / "out"
    assert main(["reproduce", str(tmp_path / "small.npz"), "--quick", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "small" in printed and "as published" in printed and "pairs 400 instead" in printed
    assert (out / "report.html").read_text().count("<h2>") == 1


def test_two_dimensional_sets_are_problems():
    found = reproduce.problems("2d", None, quick=True)
    assert [p.name for p in found] == ["checkerboard", "two_spirals", "eight_gaussians"]
    assert all(p.train.shape == p.test.shape == (500, 2) for p in found)


BAD = {
    "nothing": (["nowhere.npz"], "DATA: expected 2d"),
    "no folder": (["power"], "--data"),
    "steps": (["2d", "--published-steps", "0"], "--published-steps"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case, tmp_path, capsys):
    arguments, message = BAD[case]
    assert main(["reproduce", *arguments, "--out", str(tmp_path / "o")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_files_of_every_kind(tmp_path):
    x = np.random.default_rng(0).standard_normal((50, 3))
    np.savez(tmp_path / "a_partial.npz", train=x[:40], test=x[40:])
    np.save(tmp_path / "b.npy", x)
    np.savetxt(tmp_path / "c.csv", x, delimiter=",", header="one,two,three", comments="")
    np.savez(tmp_path / "d.npz", rows=x)
    for name, expected in (("a_partial.npz", "a"), ("b.npy", "b"), ("c.csv", "c")):
        (found,) = reproduce.problems(str(tmp_path / name), None)
        assert (found.name, len(found.train), len(found.test)) == (expected, 40, 10)
    np.savez(tmp_path / "e.npz", train=x[:40], test=x[40:, :2])
    np.savez(tmp_path / "f.npz", train=x[:40], test=x[40:] * np.nan)
    for name, message in (
        ("e", "train, test: expected tables with"),
        ("f", "test: expected finite"),
    ):
        with pytest.raises(ValueError, match=message):
            reproduce.problems(str(tmp_path / f"{name}.npz"), None)
    with pytest.raises(ValueError, match="got 'train'"):
        reproduce.problems(str(tmp_path / "d.npz"), None)
