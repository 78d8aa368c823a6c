"""What ``jit`` sees of the library's classes: each its own program."""

import itertools
import re
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcscore as mcs
from mcscore import jet


def numbered(i):
    @mcs.pytree()
    @dataclass(frozen=True)
    class Number:
        number = i

    return Number()


@pytest.mark.once
def test_classes_without_fields_do_not_share_programs():
    """Those that JAX registers compare equal, and one call in six then runs the program of another."""
    values = [numbered(i) for i in range(200)]
    program = jax.jit(lambda value, x: x + value.number)
    assert [int(program(value, jnp.int32(0))) for value in values] == list(range(200))


def test_no_two_classes_of_the_library_are_taken_for_one_another():
    x = np.random.default_rng(0).standard_normal((50, 2))
    values = [
        *(mcs.Linear(), mcs.Cosine(), mcs.VP(), mcs.VE(), mcs.Rectified()),
        *(jet.Score(), jet.Denoiser(), jet.Velocity(1.0, 1.0), jet.Velocity()),
        *(mcs.Dirac(), mcs.Isotropic(0.5), mcs.Whitened(0.5), mcs.Local(0.5)),
        *(frame.fit(x) for frame in (mcs.Affine(), mcs.Gaussianize())),
        mcs.frames.Identity(),
    ]
    structures = [jax.tree.structure(value) for value in values]
    for one, other in itertools.combinations(structures, 2):
        assert one != other


def test_fields_are_traced_compared_or_forgotten():
    @mcs.pytree(static=["kind"], dropped=["note"])
    @dataclass(frozen=True)
    class Line:
        slope: float
        kind: str = "straight"
        note: str = ""

    line = Line(2.0, "bent", "of today")
    again = jax.tree.map(lambda a: a + 1, line)
    assert again == Line(3.0, "bent", "")
    assert jax.tree.structure(line) == jax.tree.structure(again)
    assert jax.tree.structure(line) != jax.tree.structure(Line(2.0))
    (path, leaf), *rest = jax.tree_util.tree_leaves_with_path(line)
    assert (jax.tree_util.keystr(path), leaf, rest) == (".slope", 2.0, [])


def test_fields_as_dataclasses_have_them():
    @mcs.pytree()
    @dataclass(frozen=True)
    class Curve:
        slope: float
        kind: str = field(default="straight", metadata=dict(static=True))
        made: int = field(default=7, init=False)

    curve = Curve(2.0, "bent")
    assert jax.tree.leaves(curve) == [2.0]
    assert jax.tree.map(lambda a: a + 1, curve) == Curve(3.0, "bent")
    assert jax.tree.structure(curve) != jax.tree.structure(Curve(2.0))
    assert float(jax.grad(lambda c: c.slope**2)(curve).slope) == 4.0


def test_names_of_no_field():
    with pytest.raises(ValueError, match="Number has no field 'kind'"):
        mcs.pytree(static=["kind"])(type(numbered(0)))
    with pytest.raises(TypeError):
        mcs.pytree()(int)
    with pytest.raises(ValueError, match=r"Number\.i has no default"):
        mcs.pytree(dropped=["i"])(make_dataclass("Number", ["i"], frozen=True))
    with pytest.raises(ValueError, match="expected lists of names, got a text"):
        mcs.pytree(static="i")(make_dataclass("Number", ["i"], frozen=True))


def test_brackets_are_optional():
    bare = mcs.pytree(make_dataclass("Bare", ["i"], frozen=True))
    assert jax.tree.leaves(bare(3)) == [3]


def test_the_library_registers_no_class_as_jax_does():
    for path in Path(mcs.__file__).parent.rglob("*.py"):
        assert not re.search(r"@.*register_dataclass|register_dataclass[(,]", path.read_text()), (
            path
        )
