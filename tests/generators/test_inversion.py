"""The generator as a density: certificates, closed forms, both ways, and its files."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from scipy.stats import multivariate_normal

import mcscore as mcs
from mcscore.__main__ import main
from mcscore.generators import generator, refinement
from mcscore.generators.descent import default_optimizer
from mcscore.generators.inversion import jacobian, pull_back, push_forward
from tests.conftest import X64


@pytest.fixture(scope="module")
def trained():
    """A generator of a smooth, curved law, z -> z + sin(z) R, with its encoder."""
    z = jax.random.normal(jax.random.key(0), (4000, 2))
    x = z + 0.4 * jnp.sin(z)[:, ::-1]
    frame = mcs.Affine().fit(np.random.default_rng(0).standard_normal((50, 2)) * 7 + 3)
    network = mcs.MLP(width=32, depth=2)
    gen, history = mcs.train(
        jax.random.key(1), mcs.Pairs(z, x, frame), network=network, epochs=40, encoder=True
    )
    assert history.encoder.validation_loss.min() < 0.01
    return gen


def test_monotone_maps_are_inverted():
    y = jnp.linspace(-30, 30, 20).reshape(10, 2)
    found = pull_back(lambda z: z**3 + z, y, y)
    z = np.array([[np.roots([1, 0, 1, -v]) for v in row] for row in np.asarray(y)])
    z = np.real(z[np.abs(z.imag) < 1e-9]).reshape(10, 2)
    np.testing.assert_allclose(found.z, z, rtol=1e-9 if X64 else 1e-4)
    expected = -np.sum(z**2 + np.log(2 * np.pi), 1) / 2 - np.log(3 * z**2 + 1).sum(1)
    np.testing.assert_allclose(found.log_prob, expected, rtol=1e-8 if X64 else 1e-3)
    assert bool(found.certified.all()) and int(found.steps.max()) <= 30


def test_no_preimage_and_folds_are_flagged():
    nowhere = pull_back(jnp.exp, jnp.array([[-1.0]]), jnp.zeros((1, 1)))
    assert bool(jnp.isnan(nowhere.log_prob[0])) and not bool(nowhere.certified[0])
    folded = pull_back(lambda z: z**2, jnp.array([[4.0]]), -jnp.ones((1, 1)))
    assert float(folded.sign[0]) == -1 and bool(jnp.isnan(folded.log_prob[0]))
    np.testing.assert_allclose(folded.z, [[-2.0]], rtol=1e-5)


def test_another_number_of_points_compiles_no_other_program(trained, key):
    x = trained.sample(key, 1000)
    programs = generator._density._cache_size
    whole, before = trained.log_prob(x), programs()
    for n in (999, 950, 900):
        np.testing.assert_allclose(trained.log_prob(x[:n]), whole[:n], rtol=1e-4)
    assert programs() == before
    one_by_one = jax.vmap(lambda row: trained.log_prob(row[None])[0])
    np.testing.assert_allclose(one_by_one(x[:5]), whole[:5], rtol=1e-4)
    assert "[64,2]" not in str(jax.make_jaxpr(trained.log_prob)(x[:5]))  # traced: nothing is padded


def test_jacobian_is_autodiffs(trained, key):
    z = jax.random.normal(key, (5, 2), trained.dtype)
    net = lambda z: trained.network.apply(trained.params, z)  # noqa: E731
    value, slopes = jacobian(net, z)
    np.testing.assert_allclose(value, net(z), rtol=1e-6)
    expected = jax.vmap(jax.jacfwd(lambda row: net(row[None])[0]))(z)
    np.testing.assert_allclose(slopes, expected, rtol=1e-4, atol=1e-5)


def test_identity_network_has_the_frames_density(key):
    rows = np.random.default_rng(0).standard_normal((500, 3)) @ np.diag([1, 5, 0.1]) + 20
    frame = mcs.Affine(whiten=True).fit(rows)
    net = mcs.MLP(width=4, depth=1)  # residual, and its last layer starts at zero
    gen = mcs.Generator(net.init(key, 3, jnp.zeros(()).dtype), frame, net)
    x = jnp.asarray(rows[:7], gen.dtype)
    expected = multivariate_normal.logpdf(rows[:7], rows.mean(0), np.cov(rows.T, bias=True))
    np.testing.assert_allclose(gen.log_prob(x), expected, atol=2e-3)


def test_sampling_and_inversion_agree(trained, key):
    x, log_prob = trained.sample_and_log_prob(key, 3000)
    assert x.shape == (3000, 2) and log_prob.shape == (3000,)
    found = trained.density(x)
    assert float(found.certified.mean()) > 0.99
    ok = np.asarray(found.certified)
    np.testing.assert_allclose(found.log_prob[ok], log_prob[ok], atol=1e-6 if X64 else 2e-2)
    np.testing.assert_allclose(trained(found.z)[ok], x[ok], atol=1e-6 if X64 else 2e-3)
    np.testing.assert_allclose(trained.encode(x)[ok], found.z[ok], atol=0.8)
    np.testing.assert_allclose(trained.log_prob(x[:5]), found.log_prob[:5], rtol=1e-5)


def test_density_integrates_to_one(trained):
    frame = trained.frame
    center, scale = (
        jnp.asarray(a, trained.dtype) for a in (frame.shift, np.diag(frame.inverse_matrix))
    )
    grid = jnp.linspace(-5, 5, 201, dtype=trained.dtype)
    points = jnp.stack(jnp.meshgrid(grid, grid), -1).reshape(-1, 2) * scale[None] + center[None]
    mass = jnp.nansum(jnp.exp(trained.log_prob(points))) * (grid[1] - grid[0]) ** 2 * scale.prod()
    np.testing.assert_allclose(mass, 1, atol=0.01)


def test_encoder_is_asked_for(trained):
    plain = dataclasses.replace(trained, encoder=None)
    x = trained.sample(jax.random.key(3), 50)
    np.testing.assert_allclose(plain.log_prob(x), trained.log_prob(x), atol=1e-6 if X64 else 2e-2)
    assert trained.log_prob(x[:0]).shape == (0,)
    with pytest.raises(ValueError, match="no encoder"):
        plain.encode(x)
    with pytest.raises(ValueError, match=r"x: expected shape \(b, 2\)"):
        trained.log_prob(x[:, :1])


def test_files_keep_every_bit(trained, tmp_path, key):
    path, program = tmp_path / "gen.safetensors", tmp_path / "sampler.stablehlo"
    trained.save(path)
    loaded = mcs.load(path)
    samples = trained.sample(key, 9000)
    np.testing.assert_array_equal(loaded.sample(key, 9000), samples)
    np.testing.assert_array_equal(loaded.encode(samples), trained.encode(samples))
    assert main(["export", str(path), "--out", str(program)]) == 0
    sampler = export.deserialize(bytearray(program.read_bytes()))
    parts = [sampler.call(jax.random.key_data(key), np.int32(k)) for k in range(2)]
    rounding = dict(rtol=1e-4, atol=1e-5)  # another program, whose sums are in another order
    np.testing.assert_allclose(np.concatenate(parts)[:9000], samples, **rounding)
    assert set(tmp_path.iterdir()) == {path, program}


def test_importance_weights_count():
    np.testing.assert_allclose(
        mcs.metrics.effective_sample_size(jnp.array([0.0, 0.0, -jnp.inf, jnp.nan])), 2
    )
    _, log_p, _ = push_forward(lambda z: 2 * z, jnp.zeros((1, 2)))
    np.testing.assert_allclose(log_p, -np.log(2 * np.pi) - 2 * np.log(2), rtol=1e-5)


@pytest.fixture(scope="module")
def rough():
    """A law of two clusters, its pairs, and a generator that has not learned it well."""
    key = jax.random.key(0)
    x = np.concatenate([np.random.default_rng(0).normal(c, 0.5, (100, 2)) for c in (-1.5, 1.5)])
    law = mcs.mixture(x, kernel=mcs.Isotropic(0.5))
    pairs = mcs.generate_pairs(key, law, mcs.Cosine(), 2000)
    network = mcs.MLP(width=32, depth=2)
    return law, pairs, mcs.train(key, pairs, network=network, epochs=30)[0]


def test_refining_brings_the_density_closer_and_keeps_the_map(rough, key):
    law, pairs, generator = rough
    optimizer = default_optimizer(600, 0.01)
    refined, report = mcs.refine(key, generator, law, pairs, steps=600, optimizer=optimizer)
    assert report.kept and report.after.error < 0.7 * report.before.error
    assert 0.5 < report.before.effective_sample_size < report.after.effective_sample_size <= 1
    mass = lambda gen: np.mean(np.asarray(gen(pairs.z))[:, 0] < 0)  # noqa: E731
    assert mass(refined) == pytest.approx(np.mean(np.asarray(pairs.x)[:, 0] < 0), abs=0.02)


def test_the_excess_goes_on_smoothly_through_a_fold(key):
    """Of the determinant alone: the logarithm of a good one, a line through zero, level far below."""
    wanted = jnp.zeros(())
    excess = lambda det: refinement._excess(wanted, jnp.log(jnp.abs(det)), jnp.sign(det))  # noqa: E731
    at = jnp.array([-9.0, -2.0, -0.1, 0.01, 0.0499, 0.0501, 0.5, 3.0])
    slopes = jax.vmap(jax.grad(excess))(at)
    np.testing.assert_allclose(slopes, [0, -20, -20, -20, -20, -1 / 0.0501, -2, -1 / 3], rtol=1e-4)
    np.testing.assert_allclose(excess(at[4]), excess(at[5]), atol=0.01)
    np.testing.assert_allclose(excess(at[-2:]), -np.log(at[-2:]), rtol=1e-5)


@pytest.mark.once
def test_a_network_that_is_flat_somewhere_can_be_refined(key):
    """Where all rectified neurons are off the Jacobian is exactly singular, and has no gradient."""
    law = mcs.mixture(np.array([[-0.5], [0.5]]), kernel=mcs.Isotropic(0.8))
    pairs = mcs.generate_pairs(key, law, mcs.Cosine(), 1000)
    network = mcs.MLP(width=2, depth=1, activation="relu", residual=False)
    layers = [([[1.0, -1.0]], [0.5, -1.0]), ([[0.9], [-0.9]], [0.3])]  # level from -1 to -0.5
    params = {
        f"Dense_{k}": {"kernel": jnp.array(kernel, law.dtype), "bias": jnp.array(bias, law.dtype)}
        for k, (kernel, bias) in enumerate(layers)
    }
    flat = mcs.Generator(params, pairs.frame, network)
    refined, report = mcs.refine(key, flat, law, pairs, steps=500)
    assert 0.1 < report.before.folded < 0.2 and report.kept
    assert np.isfinite(refined.sample(key, 100)).all()


def test_a_refinement_that_fails_is_not_kept(rough, key):
    law, pairs, generator = rough
    wild = optax.sgd(10.0)
    same, report = mcs.refine(key, generator, law, pairs, steps=100, optimizer=wild)
    assert not report.kept and same is generator


def test_refine_names_what_is_wrong(rough, key):
    law, pairs, generator = rough
    with pytest.raises(ValueError, match="steps"):
        mcs.refine(key, generator, law, pairs, steps=0)
    with pytest.raises(ValueError, match=r"refine.*Dirac"):
        mcs.refine(key, generator, mcs.mixture(np.eye(2)), pairs)
    with pytest.raises(ValueError, match="mixture: expected 2 columns"):
        mcs.refine(key, generator, mcs.mixture(np.eye(3), kernel=mcs.Isotropic(1.0)), pairs)


def test_folds_are_reported_and_have_no_density():
    """A network of random weights folds: where noise has a negative determinant there is no density."""
    network = mcs.MLP(width=16, depth=2, skip=False)
    noisy = lambda a: a + 0.6 * jax.random.normal(jax.random.key(4), a.shape, a.dtype)  # noqa: E731
    params = jax.tree.map(noisy, network.init(jax.random.key(4), d=2))
    gen = mcs.Generator(params, mcs.frames.Identity(), network)
    x, log_q = gen.sample_and_log_prob(jax.random.key(1), 2048)
    z = jax.random.normal(jax.random.fold_in(jax.random.key(1), 0), (2048, 2), gen.dtype)
    _, slopes = jacobian(lambda z: network.apply(params, z), z)
    folds = np.linalg.det(np.asarray(slopes, np.float64)) <= 0
    assert 0.02 < folds.mean() < 0.6
    np.testing.assert_array_equal(np.isnan(log_q), folds)
    law = mcs.mixture(x, kernel=mcs.Isotropic(0.5))
    found = mcs.generators.agreement(jax.random.key(2), gen, law, 2000)
    error = np.sqrt(folds.mean() * (1 - folds.mean()) * (1 / 2000 + 1 / 2048))
    assert abs(found.folded - folds.mean()) < 4 * error
    assert 0 < found.effective_sample_size < 1
