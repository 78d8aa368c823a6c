import io

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import mcscore as mcs
from mcscore import datasets, metrics, plotting


@pytest.mark.parametrize("name", datasets.TWO_DIMENSIONAL)
def test_two_dimensional_sets(name, key):
    points = datasets.TWO_DIMENSIONAL[name](key, 4000)
    assert points.shape == (4000, 2) and bool(jnp.isfinite(points).all())
    np.testing.assert_array_equal(points, datasets.TWO_DIMENSIONAL[name](key, 4000))
    assert (np.abs(np.asarray(points).mean(0)) < 0.3).all() and (
        np.asarray(points).std(0) > 0.3
    ).all()


def test_checkerboard_is_uniform_on_eight_fields(key):
    points = np.floor(np.asarray(datasets.checkerboard(key, 8000))).astype(int)
    cells, counts = np.unique(points, axis=0, return_counts=True)
    assert len(cells) == 8 and (cells.sum(1) % 2 == 0).all()
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)


@pytest.mark.parametrize(("name", "shape"), [("breast_cancer", (569, 30)), ("wine", (178, 13)),
                                             ("digits", (1797, 64)), ("iris", (150, 4))])  # fmt: skip
def test_tables(name, shape):
    assert datasets.TABLES[name]().shape == shape


def test_split_is_disjoint_and_whole():
    parts = datasets.split(jax.random.key(0), np.arange(101)[:, None], 0.5, 0.3, 0.2)
    assert sorted(np.concatenate(parts)[:, 0]) == list(range(101))


def test_gaussian_mixture_density_and_score(key):
    mixture = datasets.random_gaussian_mixture(key, 3)
    x = mixture.sample(key, 50_000)
    # E[score] = 0 and E[x . score] = -d under the law itself (Stein)
    score = mixture.score(x[:20_000])
    assert float(jnp.abs(score.mean(0)).max()) < 0.1
    np.testing.assert_allclose(jnp.sum(x[:20_000] * score, 1).mean(), -3, atol=0.2)


@pytest.mark.once
def test_distances_of_equal_and_shifted_laws(key):
    x, y = (jax.random.normal(k, (1500, 3)) for k in jax.random.split(key))
    value, threshold = metrics.mmd(key, x, y)
    assert value < threshold * 1.5
    far = y + 1
    assert metrics.mmd(key, x, far).value > 10 * threshold
    assert abs(metrics.energy_distance(x, y)) < 0.02 < metrics.energy_distance(x, far)
    np.testing.assert_allclose(metrics.sliced_wasserstein(key, x, x + 1), 1, atol=0.06)
    assert metrics.sliced_wasserstein(key, x, y[:700]) < 0.15
    assert metrics.column_kl(x, y).max() < 0.1 < metrics.column_kl(x, far).min()


def test_energy_distance_against_the_double_loop(key):
    x, y = (np.asarray(jax.random.normal(k, (40, 2))) for k in jax.random.split(key))
    pairwise = lambda a, b: np.sqrt(((a[:, None] - b[None]) ** 2).sum(2))  # noqa: E731
    within = sum(pairwise(a, a).sum() / (40 * 39) for a in (x, y))
    np.testing.assert_allclose(
        metrics.energy_distance(x, y), 2 * pairwise(x, y).mean() - within, rtol=1e-4
    )


def test_mmd_against_the_double_loop(key):
    x, y = (np.asarray(jax.random.normal(k, (40, 2))) for k in jax.random.split(key))
    both = np.concatenate([x, y])
    square = ((both[:, None] - both[None]) ** 2).sum(2)
    gram = np.exp(-square / np.median(square))
    xx, yy, xy = gram[:40, :40], gram[40:, 40:], gram[:40, 40:]
    expected = sum((g.sum() - np.trace(g)) / (40 * 39) for g in (xx, yy)) - 2 * xy.mean()
    np.testing.assert_allclose(metrics.mmd(key, x, y).value, expected, rtol=1e-3, atol=1e-6)


def test_mmd_keeps_its_level(key):
    rejected = 0
    for k in jax.random.split(key, 60):
        x, y = (jax.random.normal(part, (60, 2)) for part in jax.random.split(k))
        value, threshold = metrics.mmd(k, x, y)
        rejected += value > threshold
    assert rejected <= 9  # binomial(60, 0.05): 9 or fewer with probability 0.998


def test_memorization_tells_copies_from_fresh_draws():
    rng = np.random.default_rng(0)
    train, heldout, fresh = (rng.standard_normal((800, 3)) for _ in range(3))
    assert metrics.memorization(train + 1e-3, train, heldout).share == 1
    assert abs(metrics.memorization(fresh, train, heldout).share - 0.5) < 0.06


def test_memorization_without_copying_exceeds_its_threshold_in_one_of_twenty_cases():
    rng = np.random.default_rng(0)
    found = [
        metrics.memorization(*(rng.standard_normal((n, 2)) for n in (300, 60, 60)))
        for _ in range(200)
    ]
    exceeded = sum(one.share > one.threshold for one in found)
    assert 2 <= exceeded <= 20  # binomial(200, 0.05) with probability 0.998


def test_classifier_accuracy():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 800, 2))
    assert abs(metrics.classifier_accuracy(jax.random.key(0), x, y) - 0.5) < 0.06
    assert metrics.classifier_accuracy(jax.random.key(0), x, y + 3) > 0.9


def test_metrics_name_bad_shapes(key):
    for call in (metrics.energy_distance, metrics.column_kl):
        with pytest.raises(ValueError, match="x, y: expected tables"):
            call(np.zeros((3, 2)), np.zeros((3, 4)))


def test_every_picture_draws(key, tmp_path):
    x = datasets.moons(key, 200)
    law = mcs.mixture(x, kernel=mcs.Isotropic(0.2))
    history = mcs.generators.History(np.ones(3), np.array([3.0, 1.0, 2.0]), 1, False)
    figures = [
        plotting.plot_samples({"data": x, "labels": x}, title="moons"),
        plotting.plot_score(
            lambda y: mcs.score(jnp.asarray(y, law.dtype), 0.1, law, mcs.Linear()), x
        ),
        plotting.plot_densities(
            {"bumps": np.exp(-np.hypot(*np.mgrid[-3:3:40j, -3:3:40j]))}, extent=(0, 1, 0, 1)
        ),
        plotting.plot_trajectories(mcs.trajectory(x[:9], law, mcs.Cosine(), points=5)),
        plotting.plot_pairs({"data": datasets.wine(), "generated": datasets.wine()}),
        plotting.plot_history({"moons": history}),
    ]
    for figure in figures:
        assert isinstance(figure, Figure)
        figure.savefig(tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 5000


def test_legends_lie_beside_titles_and_axes():
    numbers = {"as published": np.ones(13), "mcscore": 2 * np.ones(13)}
    figure = plotting.plot_columns(numbers, title="KL(held out || generated) per column")
    figure.draw_without_rendering()
    (legend,), (axis,) = figure.legends, figure.axes
    assert not legend.get_window_extent().overlaps(axis.get_tightbbox())


SETS = ("samples", "densities", "paths", "pairs", "marginals", "columns", "history")
ARRAYS = [np.zeros(3), np.zeros((0, 2)), np.zeros((4, 3)), [[np.nan, 1.0]], [["a", "b"]], None]


@pytest.mark.parametrize(
    ("picture", "bad", "named"),
    [(name, bad, "by name") for name in SETS for bad in ({}, np.zeros((3, 2)), None)]
    + [("samples", {"own": bad}, "own: expected") for bad in ARRAYS]
    + [("trajectories", bad, "paths: expected") for bad in [*ARRAYS, np.zeros((4, 2))]]
    + [("densities", {"own": bad}, "own: expected") for bad in ARRAYS[:2]],
)
@pytest.mark.once
def test_pictures_name_what_they_cannot_draw(picture, bad, named):
    extent = {"extent": (0, 1, 0, 1)} if picture == "densities" else {}
    with pytest.raises(ValueError, match=named):
        getattr(plotting, f"plot_{picture}")(bad, **extent)


@pytest.mark.parametrize("bad", ARRAYS)
def test_score_fields_name_their_data(bad):
    with pytest.raises(ValueError, match="data: expected"):
        plotting.plot_score(lambda y: y, bad)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv_of_a_spreadsheet_keeps_its_first_row(mark, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(mark + "1,2\r\n3,4\r\n", encoding="utf-8")
    table, names = datasets.read(path)
    assert names is None and table.tolist() == [[1, 2], [3, 4]]
    path.write_text(mark + "é,b\n3,4\n", encoding="utf-8")
    table, names = datasets.read(path)
    assert names == ["é", "b"] and table.tolist() == [[3, 4]]
    path.write_text(mark + "1,\n3,4\n", encoding="utf-8")
    with pytest.raises(ValueError, match="could not convert"):  # a gap in row one: no header
        datasets.read(path)


@pytest.mark.filterwarnings("error")
def test_one_row_and_a_constant_column_can_be_drawn(tmp_path):
    plotting.plot_pairs({"row": np.ones((1, 2)), "constant": np.ones((9, 2)) * [1, 2]}).savefig(
        tmp_path / "p.png"
    )


def test_pictures_show_all_of_a_sorted_table():
    several = {f"set ${k}": np.random.default_rng(k).normal(size=(60, 2)) for k in range(5)}
    figure = plotting.plot_pairs(several, names=["$ a", "b"])
    figure.savefig(io.BytesIO())
    assert len(figure.axes[0].get_legend_handles_labels()[1]) == 5  # none is dropped
    figure = plotting.plot_pairs({"sorted": np.arange(12_000.0).reshape(-1, 2)})
    shown = np.asarray(figure.axes[2].collections[0].get_offsets())
    assert shown.shape == (1500, 2) and shown.min() == 0 and shown.max() == 11_999


def test_pictures_lay_columns_on_those_of_their_name():
    named = pd.DataFrame({"p": np.zeros(50), "q": np.arange(50.0)})
    figure = plotting.plot_pairs({"one": named, "other": named[["q", "p"]]})
    shown = np.asarray(figure.axes[2].collections[0].get_offsets())
    assert (shown[:, 0] == 0).all() and shown[:, 1].max() == 49
    with pytest.raises(ValueError, match="sets: expected 2 columns in 'other', got 3"):
        plotting.plot_pairs({"one": np.eye(2), "other": np.eye(3)})
    with pytest.raises(ValueError, match="names: expected 3, got 1"):
        plotting.plot_pairs({"one": np.eye(3)}, names=["x"])
    with pytest.raises(ValueError, match="sets: expected tables by name"):
        plotting.plot_marginals({})


@pytest.mark.filterwarnings("error")
def test_a_density_of_nothing_or_next_to_nothing_has_a_scale():
    peak = np.zeros((40, 40))
    peak[3, 3] = 7.0
    for grid, top in ((np.zeros((40, 40)), 1.0), (peak, 7.0), (np.where(peak, np.nan, 2.0), 2.0)):
        figure = plotting.plot_densities({"$": grid}, extent=(0, 1, 0, 1))
        figure.savefig(io.BytesIO())
        assert figure.axes[0].images[0].norm.vmax == top


DAMAGED = {
    "truncated.npz": lambda whole: whole[:200],
    "flipped.npz": lambda whole: whole[:150] + bytes(100) + whole[250:],
    "empty.npz": lambda whole: b"",
    "empty.npy": lambda whole: b"",
    "binary.csv": lambda whole: whole,
    "words.csv": lambda whole: b"a,b\n1,x\n",
    "ragged.csv": lambda whole: b"1,2\n3\n",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_tables_are_named(name, tmp_path):
    np.savez_compressed(tmp_path / "whole.npz", train=np.random.default_rng(0).random((50, 3)))
    path = tmp_path / name
    path.write_bytes(DAMAGED[name]((tmp_path / "whole.npz").read_bytes()))
    with pytest.raises(ValueError, match=f"{name}: not a readable table"):
        mcs.datasets.read(path)


@pytest.mark.once
def test_mmd_of_weighted_rows_rejects_no_more_than_its_level():
    """Of equal laws, by weights that repeat rows: about one in twenty."""
    r, rejected = np.random.default_rng(0), 0
    for k in range(60):
        x, y = r.standard_normal((2, 200, 2))
        weights = dict(x_weights=r.uniform(0.2, 1, 200), y_weights=r.uniform(0.2, 1, 200))
        found = metrics.mmd(jax.random.key(k), x, y, permutations=50, **weights)
        rejected += found.value > found.threshold
    assert rejected <= 9  # by chance in one of 500 runs
    ones = np.ones(200)
    assert metrics.mmd(jax.random.key(1), x, y, x_weights=ones) == metrics.mmd(
        jax.random.key(1), x, y
    )
    for wrong in (dict(rows=1), dict(permutations=0), dict(level=1.0)):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            metrics.mmd(jax.random.key(1), x, y, **wrong)


def test_no_weight_at_all_is_no_sample():
    for nothing in (jnp.full(3, jnp.nan), jnp.full(3, -jnp.inf)):
        assert float(metrics.effective_sample_size(nothing)) == 0


@pytest.mark.once
def test_data_sets_work_under_jit(key):
    for name, make in datasets.TWO_DIMENSIONAL.items():
        found = jax.jit(make, static_argnums=1)(key, 20)
        np.testing.assert_allclose(found, make(key, 20), atol=1e-5, err_msg=name)
