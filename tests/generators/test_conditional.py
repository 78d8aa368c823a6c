"""Conditional generators: their law's mean and deviation over conditions, densities, files."""

import jax
import numpy as np
import pytest

import mcscore as mcs

KEY = jax.random.key(4)
COVARIANCE = np.array([[1.0, 0.5, 0.7], [0.5, 2.0, -0.6], [0.7, -0.6, 1.5]])
ROWS = np.random.default_rng(2).multivariate_normal([1, -1, 3], COVARIANCE, 4000)
SMALL = dict(network=mcs.MLP(width=32, depth=3), pairs=8000, epochs=40, refine=0)


@pytest.fixture(scope="module")
def made():
    kernel = mcs.Local(1.0, clusters=1, partitions=1)
    frame = mcs.Affine()
    return mcs.fit(KEY, ROWS[:, :2], condition=ROWS[:, 2:], kernel=kernel, frame=frame, **SMALL)


def test_mean_and_deviation_over_conditions(made):
    """Within two percent over the central 95 % of conditions, as a linear Gaussian has them."""
    mean, covariance = ROWS.mean(0), np.cov(ROWS.T, bias=True)
    slope = covariance[:2, 2] / covariance[2, 2]
    left = covariance[:2, :2] - np.outer(slope, covariance[2, :2])
    deviation = np.sqrt(np.diag(left))
    for c in np.quantile(ROWS[:, 2], [0.025, 0.3, 0.7, 0.975]):
        drawn = np.asarray(made.sample(KEY, 40_000, condition=[c]), np.float64)
        expected = mean[:2] + slope * (c - mean[2])
        assert (np.abs(drawn.mean(0) - expected) < 0.02 * deviation + 0.01).all()
        np.testing.assert_allclose(drawn.std(0), deviation, rtol=0.025)


@pytest.mark.once
def test_mean_and_deviation_of_a_mixture_over_conditions():
    """Within two percent over the central 95 % of conditions, as the mixture's closed form has them."""
    r = np.random.default_rng(0)
    means = np.array([[0, 0, 0.0], [2, -1, 2], [-2, 1, 3]])
    roots = np.array([np.eye(3) + np.tril(r.uniform(-0.6, 0.6, (3, 3)), -1) for _ in range(3)])
    label = r.choice(3, 6000, p=[0.5, 0.3, 0.2])
    x = means[label] + np.einsum("nij,nj->ni", roots[label], r.standard_normal((6000, 3)))
    kernel = mcs.Local(1.0, clusters=3, partitions=1)
    law = mcs.mixture(x[:, :2], condition=x[:, 2:], kernel=kernel, frame=mcs.Affine())
    pairs = mcs.generate_pairs(KEY, law, mcs.Cosine(), 20_000)
    made, _ = mcs.train(KEY, pairs, network=mcs.MLP(width=48, depth=4), epochs=60, encoder=False)

    blocks, frame = law.joint.blocks, law.joint.frame
    at, log_weight = (np.asarray(a, np.float64) for a in law.joint.points())
    back = np.asarray(frame.inverse_matrix, np.float64)
    turned = np.asarray(blocks.bases, np.float64)
    inside = np.einsum("kij,kj,klj->kil", turned, np.asarray(blocks.variances), turned)
    of_row = np.repeat(back @ inside @ back.T, blocks.rows.shape[1], 0)
    for c in np.quantile(x[:, 2], [0.025, 0.3, 0.7, 0.975]):
        center = np.asarray(frame.inverse(at), np.float64)
        gap, spread = c - center[:, 2], of_row[:, 2, 2]
        w = np.exp(log_weight - gap**2 / (2 * spread)) / np.sqrt(spread)
        w = np.where(np.isfinite(log_weight), w, 0) / np.sum(w[np.isfinite(log_weight)])
        slope = of_row[:, :2, 2] / spread[:, None]
        mean = center[:, :2] + slope * gap[:, None]
        left = np.einsum("kii->ki", of_row)[:, :2] - slope**2 * spread[:, None]
        expected = w @ mean
        deviation = np.sqrt(w @ (left + mean**2) - expected**2)
        drawn = np.asarray(made.sample(KEY, 100_000, condition=[c]), np.float64)
        assert (np.abs(drawn.mean(0) - expected) < 0.02 * deviation).all()
        np.testing.assert_allclose(drawn.std(0), deviation, rtol=0.02)


def test_one_condition_is_many_equal_ones_and_rows_keep_theirs(made):
    one = made.sample(KEY, 5, condition=[3.0])
    np.testing.assert_array_equal(one, made.sample(KEY, 5, condition=[[3.0]] * 5))
    mixed = made.sample(KEY, 5, condition=[[3.0]] * 4 + [[5.0]])
    np.testing.assert_array_equal(one[:4], mixed[:4])
    assert np.abs(np.asarray(one[4] - mixed[4])).max() > 0.1
    many = made.sample(KEY, 8195, condition=np.full((8195, 1), 3.0))
    np.testing.assert_array_equal(many[:5], one)


def test_density_and_encoder(made, tol):
    x, c = ROWS[:50, :2], ROWS[:50, 2:]
    found = made.density(x, c)
    certified = np.asarray(found.certified)
    assert certified.mean() > 0.9
    exact = np.asarray(made.law.log_prob(x, condition=c))
    assert np.abs(np.asarray(found.log_prob) - exact)[certified].mean() < 0.1
    back = made(found.z, c)
    np.testing.assert_allclose(np.asarray(back)[certified], x[certified], atol=tol(1e-4, 1e-3))
    assert np.abs(np.asarray(made.encode(x, c)) - np.asarray(found.z))[certified].mean() < 0.2
    samples, log_q = made.sample_and_log_prob(KEY, 300, c[0])
    exact = np.asarray(made.law.log_prob(samples, condition=c[0]))
    good = np.isfinite(np.asarray(log_q))
    assert good.mean() > 0.98 and np.abs(np.asarray(log_q) - exact)[good].mean() < 0.1


def test_labels_under_a_proposal(made):
    pairs = mcs.generate_pairs(KEY, made.law, mcs.Cosine(), 500, conditions=[[2.0], [4.0]])
    z, c, x = pairs
    assert z.shape == x.shape == (500, 2) and c.shape == (500, 1)
    values = np.unique(np.asarray(made.law.prior.frame.inverse(c)).round(4))
    np.testing.assert_allclose(values, [2.0, 4.0], atol=1e-3)
    with pytest.raises(ValueError, match="minibatch: expected None with a conditional law"):
        mcs.generate_pairs(KEY, made.law, mcs.Cosine(), 10, minibatch=5)


def test_labels_resume_with_their_conditions(made, tmp_path):
    options = dict(n=700, chunk_size=300, error_sample=0)
    whole = mcs.generate_pairs(KEY, made.law, mcs.Cosine(), checkpoint=tmp_path / "a", **options)
    (tmp_path / "a" / "chunk-000001.safetensors").unlink()
    again = mcs.generate_pairs(KEY, made.law, mcs.Cosine(), checkpoint=tmp_path / "a", **options)
    for one, other in zip(whole, again, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.once
def test_refining_brings_the_density_closer(made):
    pairs = mcs.generate_pairs(KEY, made.law, mcs.Cosine(), 4000)
    plain, _ = mcs.train(KEY, pairs, network=mcs.MLP(width=24, depth=2), epochs=8, encoder=True)
    refined, report = mcs.refine(KEY, plain, made.law, pairs, steps=200)
    assert not report.kept or report.after.error < report.before.error
    assert refined.sample(KEY, 3, condition=[3.0]).shape == (3, 2)


def test_generators_and_laws_travel_in_one_file(made, tmp_path):
    made.save(tmp_path / "model.safetensors")
    found = mcs.load(tmp_path / "model.safetensors")
    c = ROWS[:20, 2:]
    np.testing.assert_array_equal(
        made.sample(KEY, 20, condition=c), found.sample(KEY, 20, condition=c)
    )
    np.testing.assert_allclose(
        made.law.log_prob(ROWS[:20, :2], condition=c), found.law.log_prob(ROWS[:20, :2], condition=c),
        atol=1e-4,
    )  # fmt: skip
    assert str(found.law.report) == str(made.law.report)
    made.save(tmp_path / "small.safetensors", law=False)
    small = mcs.load(tmp_path / "small.safetensors")
    assert small.law is None and (tmp_path / "small.safetensors").stat().st_size < 45_000
    made.law.save(tmp_path / "law.safetensors")
    law = mcs.load(tmp_path / "law.safetensors")
    np.testing.assert_array_equal(
        law.sample(KEY, 9, condition=c[0]), made.law.sample(KEY, 9, condition=c[0])
    )


LAWS = {
    "bounded": dict(frame=mcs.Affine(), bounds={0: (-20, None), 2: (None, 40)}),
    "periodic": dict(frame=mcs.Gaussianize(), periodic={1: 30.0}),
    "isotropic": dict(kernel=mcs.Isotropic(0.3)),
    "names": dict(frame=mcs.Gaussianize()),
}


@pytest.mark.once
@pytest.mark.parametrize("name", LAWS)
def test_laws_of_all_kinds_come_back(name, tmp_path):
    rows = ROWS[:400].copy()
    rows[:, 0] = rows[:, 0].round()
    x = rows
    if name == "names":
        x = pytest.importorskip("pandas").DataFrame(rows, columns=["a", "b", "c"])
    law = mcs.mixture(x, **({"kernel": mcs.Local(0.5, 3, 1)} | LAWS[name]))
    law.save(tmp_path / "law.safetensors")
    found = mcs.load(tmp_path / "law.safetensors")
    np.testing.assert_array_equal(found.sample(KEY, 30), law.sample(KEY, 30))
    np.testing.assert_allclose(
        found.log_prob(rows[:30]), law.log_prob(rows[:30]), rtol=1e-5, atol=1e-4
    )
    assert found.columns == law.columns and str(found.report) == str(law.report)


def test_law_files_as_attacked(tmp_path):
    path = tmp_path / "law.safetensors"
    law = mcs.mixture(ROWS[:40], kernel=mcs.Local(0.5, 2, 1), frame=mcs.Affine())
    law.save(path)
    whole, r = path.read_bytes(), np.random.default_rng(8)
    for at in r.integers(0, len(whole), 60):
        changed = bytearray(whole)
        changed[at] ^= 1 << r.integers(8)
        path.write_bytes(changed)
        try:
            assert np.array_equal(mcs.load(path).sample(KEY, 5), law.sample(KEY, 5))
        except ValueError as error:
            assert str(error).startswith("path: ")


@pytest.mark.once
def test_conditions_that_do_not_fit(made):
    for condition, message in (
        (None, "needed here, 1 value"),
        ([1.0, 2.0], "one for each of 5 rows, got 2"),
        ([[1.0, 2.0]], "expected shape"),
        ([[1.0]] * 3, "one for each of 5"),
        ([np.inf], "expected finite"),
    ):
        with pytest.raises(ValueError, match=f"condition: .*{message}"):
            made.sample(KEY, 5, condition=condition)
    plain = mcs.fit(
        KEY, ROWS[:300, :2], **SMALL | dict(pairs=300, epochs=2), kernel=mcs.Whitened(0.3)
    )
    with pytest.raises(ValueError, match="condition: expected none"):
        plain.sample(KEY, 5, condition=[1.0])


def test_the_exported_sampler_takes_conditions(made, tmp_path):
    pytest.importorskip("flatbuffers")
    from jax import export

    made.export(tmp_path / "sampler.stablehlo")
    program = export.deserialize(bytearray((tmp_path / "sampler.stablehlo").read_bytes()))
    c = np.full((8192, 1), 3.0)
    found = program.call(jax.random.key_data(KEY), np.int32(0), c.astype(made.dtype))
    expected = made.sample(KEY, 8192, condition=c)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_one_condition_stands_for_all_points(made):
    z = np.random.default_rng(1).standard_normal((10, 2))
    for function in (made, made.encode, made.log_prob):
        one, each = function(z, condition=[3.0]), function(z, condition=np.full((10, 1), 3.0))
        np.testing.assert_allclose(one, each, rtol=1e-5, atol=1e-5)
