"""Generators in files: safetensors with a header of texts, no pickle, checked before anything is built."""

from __future__ import annotations

import dataclasses
import json
import os
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from mcscore.generators.networks import MLP
from mcscore.mixtures import files
from mcscore.mixtures.files import Tensors, check_frame, check_names, frame_from, frame_tensors

FORMAT = "mcscore.generator"
VERSIONS = ("1", "2", "3")  # "1", of mcscore 0.1, had no digest; "2" neither law nor conditions
KINDS = {FORMAT: VERSIONS, files.FORMAT: (files.FORMAT_VERSION,)}
GIVEN = ("slope", "root", "inverse")


def write(generator: Any, path: str | os.PathLike, law: bool) -> None:
    """Write a `Generator` to one safetensors file, with its law or without."""
    tensors = {
        f"{part}/{name}": np.asarray(value)
        for part, params in (("params", generator.params), ("encoder", generator.encoder or {}))
        for name, value in flatten_dict(params, sep="/").items()
    }
    tensors |= frame_tensors(generator.frame)
    header = dict(
        network=json.dumps(dataclasses.asdict(generator.network)),
        frame=type(files.innermost(generator.frame)).__name__,
        about=json.dumps(dict(generator.about)),
    )
    if (given := generator.given) is not None:
        tensors |= {f"given/{name}": np.asarray(getattr(given, name)) for name in GIVEN}
        tensors |= frame_tensors(given.frame, "given_")
        header["given"] = type(files.innermost(given.frame)).__name__
    if law and generator.law is not None:
        more, header["law"] = files.law_parts(generator.law)
        tensors |= more
    files.write(path, tensors, header, FORMAT, VERSIONS[-1])


def read(path: str | os.PathLike) -> Any:
    """Return the fields of the generator saved at ``path``, or a law; ``load`` has the errors."""
    tensors, header = files.read(path, KINDS)
    try:
        if header["format"] == files.FORMAT:
            return files.law_from(tensors, header["law"])
        return _fields(tensors, header)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"path: {path} is damaged ({error})") from error


def _fields(tensors: Tensors, header: dict[str, str]) -> dict[str, Any]:
    if "frame/ties" in tensors:
        raise ValueError("ties as mcscore 0.1 kept them: fit it anew")
    network = _network(json.loads(header["network"]), tensors)
    params = unflatten_dict(_part(tensors, "params/"), sep="/")
    encoder = unflatten_dict(_part(tensors, "encoder/"), sep="/") or None
    frame = frame_from(tensors, header["frame"] or "Identity")  # version 0.1 left it empty
    about = json.loads(header["about" if "about" in header else "settings"])
    d = len(params[f"Dense_{network.depth}"]["bias"])
    found = _part(tensors, "given/")
    k, frame_of_conditions = (len(found["slope"]) if found else 0), None
    expected = jax.eval_shape(partial(network.init, d=d, given=k), jax.random.key(0))
    expected = jax.tree.map(jnp.shape, expected)
    for part in (params, encoder or params):
        if jax.tree.map(jnp.shape, part) != expected:
            raise ValueError(f"expected parameters of {network} for {d} columns")
    if len({leaf.dtype for leaf in jax.tree.leaves((params, encoder))}) > 1:
        raise ValueError("expected parameters of one precision")
    check_frame(frame, d)
    if not isinstance(about, dict):
        raise ValueError(f"expected about to be an object, got {about!r}")
    check_names(about.get("columns"), d)
    check_names(about.get("condition"), k)
    if found:
        shapes = dict(slope=(k, d), root=(d, d), inverse=(d, d))
        if {name: jnp.shape(value) for name, value in found.items()} != shapes:
            raise ValueError(f"expected conditions of shapes {shapes}")
        frame_of_conditions = frame_from(tensors, header["given"], "given_")
        check_frame(frame_of_conditions, k)
    law = files.law_from(tensors, header["law"]) if "law" in header else None
    if law is not None and (law.dimension, law.condition_dimension) != (d, k):
        raise ValueError(f"expected a law of {d} columns given {k}")
    return dict(
        params=params, frame=frame, network=network, encoder=encoder, about=about,
        given={**found, "frame": frame_of_conditions} if found else None, law=law,
    )  # fmt: skip


def _network(settings: Any, tensors: dict[str, np.ndarray]) -> MLP:
    """Return the network, no larger than the tensors that are there."""
    layers = {name.split("/")[1] for name in tensors if name.startswith("params/")}
    network = MLP(**{"skip": False} | settings)  # version 0.1 had none
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
