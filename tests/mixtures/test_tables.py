"""What tables may be: every door takes what it can and says in one sentence what it cannot."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import mcscore as mcs

KEY = jax.random.key(0)
X = np.random.default_rng(21).standard_normal((300, 3)) @ np.diag([1.0, 2.0, 5.0])
NAMES = ["age", "dose", "reading"]
KERNEL, FRAME = mcs.Local(0.4, clusters=2), mcs.Affine(whiten=True)
LAW = mcs.mixture(pd.DataFrame(X, columns=NAMES), kernel=KERNEL, frame=FRAME)
SINGLE = LAW.dtype == jnp.float32


def generator():
    net = mcs.MLP(width=8, depth=2)
    params = net.init(KEY, 3, LAW.dtype)
    return mcs.Generator(params, LAW.frame, net, about={"columns": NAMES})


@pytest.mark.parametrize(
    "x, words",
    [
        (np.ma.array(X, mask=X > 4), "masked entry in column"),
        (X.astype("datetime64[s]"), "got dates"),
        (
            pd.DataFrame(X, columns=NAMES).assign(day=pd.Timestamp("2020-1-1")),
            "dates in column 'day'",
        ),
        (
            pd.DataFrame({"a": pd.Categorical(["u", "v"] * 9), "b": range(18)}),
            "fit one law per category",
        ),
        (pd.DataFrame({"a": ["u", "v"] * 9, "b": range(18)}), "expected a table of numbers"),
        (pd.DataFrame({"a": pd.array([1, None, 3] * 5, "Int64"), "b": range(15)}), "x: expected"),
        ([["a", "b"]], "expected a table of numbers"),
    ],
)
def test_what_is_no_number_is_named(x, words):
    with pytest.raises(ValueError, match=f"x: .*{words}|{words}"):
        mcs.mixture(x, kernel=KERNEL, frame=FRAME)


def test_an_empty_mask_and_other_kinds_of_arrays_are_tables():
    expected = np.asarray(mcs.mixture(X, kernel=KERNEL, frame=FRAME).log_prob(X[:9]))
    for x in (
        np.ma.array(X, mask=False),
        X.astype(">f8"),
        X.astype(np.longdouble),
        X.tolist(),
        pd.DataFrame(X).convert_dtypes(),
        np.asfortranarray(X)[:, ::1],
    ):
        law = mcs.mixture(x, kernel=KERNEL, frame=FRAME)
        np.testing.assert_allclose(law.log_prob(X[:9]), expected, rtol=1e-5, atol=1e-5)


def test_columns_go_by_their_names():
    frame = pd.DataFrame(X[:9], columns=NAMES)
    expected = np.asarray(LAW.log_prob(X[:9]))
    for law in (LAW, LAW.marginal(["age", "dose", "reading"])):
        np.testing.assert_allclose(law.log_prob(frame[NAMES[::-1]]), expected, rtol=1e-4)
    given = LAW.condition(["dose"], [1.0])
    assert given.columns == ("age", "reading")
    np.testing.assert_allclose(
        given.log_prob(frame[["reading", "age"]]),
        LAW.condition([1], [1.0]).log_prob(X[:9][:, [0, 2]]),
    )
    assert LAW.marginal(["reading"]).columns == ("reading",)
    np.testing.assert_allclose(generator()._points(frame[NAMES[::-1]], "x"), X[:9], rtol=1e-6)
    for wrong in (
        frame.rename(columns={"dose": "does"}),
        frame[["age", "dose", "dose"]],
        frame.assign(more=1),
    ):
        with pytest.raises(
            ValueError,
            match="expected the columns 'age', 'dose', 'reading', got",
        ):
            LAW.log_prob(wrong)
        with pytest.raises(ValueError, match="expected the columns 'age', 'dose', 'reading', got"):
            generator().density(wrong)
    with pytest.raises(
        ValueError, match="columns: expected one of 'age', 'dose', 'reading', got 'does'"
    ):
        LAW.marginal(["does"])
    for mask in ([True, False, True], np.array([True, False, True]), "age"):
        with pytest.raises(ValueError, match="columns: expected a list of indices or names"):
            LAW.marginal(mask)


def test_one_point_is_a_table_of_one():
    np.testing.assert_allclose(LAW.log_prob(pd.Series(X[0], NAMES)), LAW.log_prob(X[:1]))
    assert LAW.log_prob(X[0]).shape == (1,)
    np.testing.assert_allclose(LAW.log_prob(X[0]), LAW.log_prob(X[:1]))
    with pytest.raises(ValueError, match=r"x: expected shape \(b, 3\)"):
        LAW.log_prob(X[0, :2])


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8, np.float16, np.bool_])
@pytest.mark.parametrize(
    "kind", [mcs.Affine(), mcs.Affine(whiten=True), mcs.Gaussianize(), mcs.Identity()]
)
def test_frames_promote_integers_and_half_floats(kind, dtype):
    x = np.random.default_rng(3).integers(0, 200, (300, 2)) / (1 if dtype != np.float16 else 7)
    frame, given = kind.fit(x.astype(float)), (x % 2 if dtype == np.bool_ else x).astype(dtype)
    exact = given.astype(float)
    for function in (frame.forward, frame.inverse, frame.log_det, frame.restore):
        if kind == mcs.Gaussianize() and function == frame.inverse:
            continue  # far beyond
        np.testing.assert_allclose(function(given), function(exact), rtol=1e-12)
        if dtype != np.bool_:
            found = np.asarray(function(jnp.asarray(given)), float)
            np.testing.assert_allclose(found, function(exact), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("frame", [mcs.Affine(whiten=True), mcs.Gaussianize()])
@pytest.mark.parametrize("offset", [0.0, 1e6, -1e9])
def test_an_offset_changes_nothing(frame, offset):
    near, far = (mcs.mixture(a, kernel=KERNEL, frame=frame, key=KEY) for a in (X, X + offset))
    expected = np.asarray(near.log_prob(X[:50]))
    np.testing.assert_allclose(
        far.log_prob(X[:50] + offset), expected, atol=2e-3 + 1e-9 * abs(offset)
    )
    draws = far.sample(KEY, 2000)
    assert len(np.unique(draws[:, 0])) > 1900
    np.testing.assert_allclose(
        np.asarray(draws, np.float64) - offset, near.sample(KEY, 2000), atol=0.02, rtol=0.02
    )
    if offset and SINGLE:
        assert draws.dtype == np.float64
    given = [law.condition([0], [X[0, 0] + o]) for law, o in ((near, 0), (far, offset))]
    np.testing.assert_allclose(
        given[1].log_prob(X[:9, 1:] + offset), given[0].log_prob(X[:9, 1:]), atol=5e-3
    )
