"""Laws and frames in files: safetensors with a header of texts, no pickle, checked before it is built."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from mcscore.frames import (
    AffineFrame,
    BoundedFrame,
    Frame,
    GaussianizedFrame,
    Identity,
    OpenedFrame,
    PeriodicFrame,
)
from mcscore.frames.opened import PLACES
from mcscore.jet import Blocks
from mcscore.mixtures.conditional import ConditionalMixture, conditional_on_last
from mcscore.mixtures.layout import moments
from mcscore.mixtures.report import Report, Trial
from mcscore.mixtures.value import Mixture
from mcscore.storage import fingerprint, read_tensors, write_tensors

FORMAT = "mcscore.law"
FORMAT_VERSION = "1"
FRAMES = {kind.__name__: kind for kind in (Identity, AffineFrame, GaussianizedFrame)}
OUTER = dict(
    bounded=BoundedFrame, opened=OpenedFrame, periodic=PeriodicFrame
)  # from the inside out
Tensors = dict[str, np.ndarray]


def save_law(law: Mixture | ConditionalMixture, path: str | os.PathLike, **about: str) -> None:
    """Write a law to one safetensors file, moved into place when complete; what it is ``about`` beside it."""
    tensors, text = law_parts(law)
    write(path, tensors, dict(law=text, **about), FORMAT, FORMAT_VERSION)


def read_law(path: str | os.PathLike, **about: str) -> Mixture | ConditionalMixture:
    """Return the law that was saved at ``path`` with all of ``about`` beside it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, no law, or about something else.
    """
    tensors, header = read(path, {FORMAT: (FORMAT_VERSION,)})
    if other := [name for name, value in about.items() if header.get(name) != value]:
        raise ValueError(f"path: {path} belongs to another {other[0]}")
    try:
        return law_from(tensors, header["law"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"path: {path} is damaged ({error})") from error


def write(
    path: str | os.PathLike, tensors: Tensors, header: dict[str, str], kind: str, version: str
) -> None:
    """Write a file of a kind, with the versions that made it and a digest of all."""
    versions = {name: _version(name) for name in ("mcscore", "jax", "flax")}
    header = dict(format=kind, format_version=version, **header, versions=json.dumps(versions))
    write_tensors(path, tensors, header | dict(digest=fingerprint(header, tensors)))


def read(
    path: str | os.PathLike, kinds: dict[str, tuple[str, ...]]
) -> tuple[Tensors, dict[str, str]]:
    """Return the tensors and the header of a file of one of the ``kinds``, each with the versions known.

    Raises:
        FileNotFoundError: If there is no such file.
        PermissionError: If it may not be read.
        ValueError: If it is damaged, of another kind, or of a newer version.
    """
    tensors, header = read_tensors(path)
    kind, found = header.get("format"), header.get("format_version")
    if kind not in kinds:
        raise ValueError(f"path: {path} is no law or generator saved by mcscore")
    if found not in kinds[kind]:
        raise ValueError(f"path: {path} has format {found}, this mcscore reads {kinds[kind][-1]}")
    digest = header.pop("digest", None)
    first = kind == "mcscore.generator" and found == "1"  # of mcscore 0.1: had no digest
    if not (first and digest is None) and digest != fingerprint(header, tensors):
        raise ValueError(f"path: {path} is damaged (its numbers are not those that were written)")
    for name, value in tensors.items():
        numbers = np.where(value == -np.inf, 0, value) if name == "law/log_weights" else value
        if not np.issubdtype(value.dtype, np.floating) or not np.isfinite(numbers).all():
            raise ValueError(
                f"path: {path} is damaged (expected finite floating-point numbers in {name})"
            )
    return tensors, header


def law_parts(law: Mixture | ConditionalMixture) -> tuple[Tensors, str]:
    """Return the arrays and the text of a law."""
    joint = law.joint
    fields = ("rows", "log_weights", "centers", "bases", "variances")
    tensors = {f"law/{name}": getattr(joint.blocks, name) for name in fields}
    tensors = {name: np.asarray(a) for name, a in tensors.items() if a is not None}
    text = dict(
        given=law.condition_dimension,
        frame=type(innermost(joint.frame)).__name__,
        columns=joint.columns,
        report=joint.report and json.loads(joint.report.to_json()),
    )
    return tensors | frame_tensors(joint.frame, "law_"), json.dumps(text)


def law_from(tensors: Tensors, text: str) -> Mixture | ConditionalMixture:
    """Return the law of arrays and a text; ``ValueError`` if they do not fit."""
    about = json.loads(text)
    parts = {
        name.removeprefix("law/"): jnp.asarray(a)
        for name, a in tensors.items()
        if name.startswith("law/")
    }
    blocks = Blocks(**{"bases": None, **parts})
    k, r, d = blocks.rows.shape
    shapes = dict(log_weights=(k, r), centers=(k, d), bases=(k, d, d), variances=(k, d))
    for name, shape in shapes.items():
        if name in parts and parts[name].shape != shape:
            raise ValueError(f"expected {name} of shape {shape}, got {parts[name].shape}")
    if blocks.bases is not None:
        turned = np.swapaxes(blocks.bases, 1, 2) @ blocks.bases
        if not np.allclose(turned, np.eye(d), atol=1e-3):
            raise ValueError("expected orthonormal bases")
    if (np.asarray(blocks.variances) < 0).any():
        raise ValueError("expected variances that are not negative")
    frame = frame_from(tensors, about["frame"], "law_")
    check_frame(frame, d)
    columns, given = about["columns"], about["given"]
    check_names(columns, d)
    if not isinstance(given, int) or not 0 <= given < d:
        raise ValueError(f"expected fewer conditions than {d} columns, got {given!r}")
    width, variance = (jnp.asarray(a, blocks.rows.dtype) for a in moments(blocks, jnp))
    law = Mixture(
        blocks, width, variance, frame, report=_report(about["report"]),
        columns=None if columns is None else tuple(columns),
    )  # fmt: skip
    return conditional_on_last(law, given) if given else law


def _report(found: Any) -> Report | None:
    if found is None:
        return None
    told = {
        name: {int(j): _hint(value) for j, value in found[name].items()}
        for name in ("tied", "kinds", "suspected")
    }
    curve, names = [Trial(**trial) for trial in found["curve"]], found["names"]
    told |= dict(curve=curve, names=None if names is None else tuple(names))
    return Report(**found | told)


def _hint(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def check_names(names: Any, d: int) -> None:
    """Raise ``ValueError`` unless ``names`` are texts for ``d`` columns, or None."""
    if names is not None and not (
        isinstance(names, list) and len(names) == d and all(isinstance(c, str) for c in names)
    ):
        raise ValueError(f"expected {d} names of columns, got {names!r}")


# --- Frames --------------------------------------------------------------------------------------


def frame_tensors(frame: Frame, prefix: str = "") -> Tensors:
    """Return the arrays of a frame and of those inside it, by part and name."""
    return {
        f"{prefix}{part}/{name}": np.asarray(value) for part, name, value in _frame_fields(frame)
    }


def frame_from(tensors: Tensors, name: str, prefix: str = "") -> Frame:
    """Return the frame whose innermost one has a ``name``."""
    if name not in FRAMES:
        raise ValueError(f"unknown frame {name!r}")

    def part(of: str) -> dict[str, Any]:
        start = f"{prefix}{of}/"
        return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}

    frame = FRAMES[name](**part("frame"))
    for of, kind in OUTER.items():
        if found := part(of):
            frame = kind(**found, inner=frame)
    return frame


def innermost(frame: Any) -> Any:
    """Return the frame that has no other inside."""
    return innermost(frame.inner) if hasattr(frame, "inner") else frame


def check_frame(frame: Any, d: int) -> None:
    """Raise ``ValueError`` unless the frame's arrays fit each other, and rise where they have to."""
    fields = {name: value for _, name, value in _frame_fields(frame)}
    found = {name: np.shape(value) for name, value in fields.items()}
    tied = (d, *found.get("values", (d, 1))[1:])
    table = (d, *found.get("knots", (d, 0))[1:])
    wanted = dict(shift=(d,), matrix=(d, d), inverse_matrix=(d, d), limits=(2, d))
    wanted |= dict.fromkeys(("knots", "scores", "slopes"), table)
    wanted |= dict(heights=tied, values=tied, cells=(2, *tied), rooms=(2, *tied), lattice=(4, d))
    wanted |= dict.fromkeys(("ends", "nearest"), (2, d)) | dict(shares=(PLACES, d))
    wanted |= dict.fromkeys(("units", "periods", "cuts", "starts"), (d,))
    for name, shape in found.items():
        if shape != wanted[name]:
            raise ValueError(f"expected {name} of shape {wanted[name]}, got {shape}")
    if "matrix" in fields and not _inverse(fields["matrix"], fields["inverse_matrix"]):
        raise ValueError("expected a matrix and its inverse")
    for name in {"knots", "scores", "values", "cells", "rooms"} & set(fields):
        if (np.diff(fields[name]) < 0).any():
            raise ValueError(f"expected {name} that rise")
    for name in {"slopes", "units", "nearest", "shares"} & set(fields):
        if (np.asarray(fields[name]) <= 0).any():
            raise ValueError(f"expected positive {name}")
    if "periods" in fields and (np.asarray(fields["periods"]) < 0).any():
        raise ValueError("expected no negative periods")
    if "ends" in fields and not (np.diff(fields["ends"], axis=0) > 0).all():
        raise ValueError("expected ends (low, high)")
    if "lattice" in fields:
        _, step, least, most = np.asarray(fields["lattice"])
        if (step < 0).any() or (least > most).any():
            raise ValueError("expected a lattice of positive steps within its ends")


def _inverse(matrix: Any, other: Any) -> bool:
    """Return whether two matrices are each other's inverse, in units of any size."""
    a, b = np.asarray(matrix, np.float64), np.asarray(other, np.float64)
    scale = np.abs(b).max(0)
    return bool((scale > 0).all()) and np.allclose(
        (b / scale) @ (a * scale[:, None]), np.eye(len(a)), atol=0.05
    )


def _frame_fields(frame: Any) -> list[tuple[str, str, Any]]:
    """Return part, name and value of every array of a frame and of those inside it."""
    names = {kind: part for part, kind in OUTER.items()}
    found = {f.name: getattr(frame, f.name) for f in dataclasses.fields(frame)}
    inner = _frame_fields(found.pop("inner")) if "inner" in found else []
    part = names.get(type(frame), "frame")
    return inner + [(part, name, value) for name, value in found.items() if value is not None]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
