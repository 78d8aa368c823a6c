"""Generators in files: safetensors with a header of texts, no pickle, checked before anything is built."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from mcscore.frames import (
    AffineFrame,
    BoundedFrame,
    GaussianizedFrame,
    Identity,
    OpenedFrame,
    PeriodicFrame,
)
from mcscore.frames.opened import PLACES
from mcscore.generators.networks import MLP
from mcscore.storage import fingerprint, read_tensors, write_tensors

FORMAT = "mcscore.generator"
FORMAT_VERSION = "2"  # "1", of mcscore 0.1, had no digest
FRAMES = {kind.__name__: kind for kind in (Identity, AffineFrame, GaussianizedFrame)}
OUTER = dict(
    bounded=BoundedFrame, opened=OpenedFrame, periodic=PeriodicFrame
)  # from the inside out


def write(generator: Any, path: str | os.PathLike) -> None:
    """Write a `Generator` to one safetensors file, moved into place when complete."""
    tensors = {
        f"{part}/{name}": value
        for part, params in (("params", generator.params), ("encoder", generator.encoder or {}))
        for name, value in flatten_dict(params, sep="/").items()
    }
    tensors |= {f"{part}/{name}": value for part, name, value in _frame_fields(generator.frame)}
    tensors = {name: np.asarray(value) for name, value in tensors.items()}
    versions = {name: _version(name) for name in ("mcscore", "jax", "flax")}
    header = dict(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        network=json.dumps(dataclasses.asdict(generator.network)),
        frame=type(_innermost(generator.frame)).__name__,
        about=json.dumps(dict(generator.about)),
        versions=json.dumps(versions),
    )
    write_tensors(path, tensors, header | dict(digest=fingerprint(header, tensors)))


def read(path: str | os.PathLike) -> dict[str, Any]:
    """Return the fields of the generator saved at ``path``; ``load`` has the errors."""
    tensors, header = read_tensors(path)
    if header.get("format") != FORMAT:
        raise ValueError(f"path: {path} is no generator saved by mcscore")
    if (found := header.get("format_version")) not in ("1", FORMAT_VERSION):
        raise ValueError(f"path: {path} has format {found}, this mcscore reads {FORMAT_VERSION}")
    digest = header.pop("digest", None)
    try:
        old = digest is None and found == "1"
        if not old and digest != fingerprint(header, tensors):
            raise ValueError("its numbers are not those that were written")
        return _fields(tensors, header)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"path: {path} is damaged ({error})") from error


def _fields(tensors: dict[str, np.ndarray], header: dict[str, str]) -> dict[str, Any]:
    for name, value in tensors.items():
        if not np.issubdtype(value.dtype, np.floating) or not np.isfinite(value).all():
            raise ValueError(f"expected finite floating-point numbers in {name}")
    name = header["frame"] or "Identity"  # version 0.1 left it empty
    if name not in FRAMES:
        raise ValueError(f"unknown frame {name!r}")
    if "frame/ties" in tensors:
        raise ValueError("ties as mcscore 0.1 kept them: fit it anew")
    network = _network(json.loads(header["network"]), tensors)
    params = unflatten_dict(_part(tensors, "params/"), sep="/")
    encoder = unflatten_dict(_part(tensors, "encoder/"), sep="/") or None
    frame = FRAMES[name](**_part(tensors, "frame/"))
    for prefix, kind in OUTER.items():
        if found := _part(tensors, f"{prefix}/"):
            frame = kind(**found, inner=frame)
    about = json.loads(header["about" if "about" in header else "settings"])
    d = len(params[f"Dense_{network.depth}"]["bias"])
    expected = jax.eval_shape(partial(network.init, d=d), jax.random.key(0))
    expected = jax.tree.map(jnp.shape, expected)
    for part in (params, encoder or params):
        if jax.tree.map(jnp.shape, part) != expected:
            raise ValueError(f"expected parameters of {network} for {d} columns")
    if len({leaf.dtype for leaf in jax.tree.leaves((params, encoder))}) > 1:
        raise ValueError("expected parameters of one precision")
    _check_frame(frame, d)
    _check_about(about, d)
    return dict(params=params, frame=frame, network=network, encoder=encoder, about=about)


def _network(settings: Any, tensors: dict[str, np.ndarray]) -> MLP:
    """Return the network, no larger than the tensors that are there."""
    layers = {name.split("/")[1] for name in tensors if name.startswith("params/")}
    network = MLP(**settings)
    if network.depth + 1 != len(layers):
        raise ValueError(
            f"expected {network.depth + 1} layers as the settings say, got {len(layers)}"
        )
    if tensors["params/Dense_0/bias"].shape != (network.width,):
        raise ValueError(f"expected layers of width {network.width}")
    return network


def _part(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, Array]:
    return {
        k.removeprefix(prefix): jnp.asarray(v) for k, v in tensors.items() if k.startswith(prefix)
    }


def _check_about(about: Any, d: int) -> None:
    if not isinstance(about, dict):
        raise ValueError(f"expected about to be an object, got {about!r}")
    columns = about.get("columns")
    if columns is not None and not (
        isinstance(columns, list) and len(columns) == d and all(isinstance(c, str) for c in columns)
    ):
        raise ValueError(f"expected {d} names of columns, got {columns!r}")


def _check_frame(frame: Any, d: int) -> None:
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


def _innermost(frame: Any) -> Any:
    return _innermost(frame.inner) if hasattr(frame, "inner") else frame


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
