"""The face of the package: names are imported when they are first used, and old places still answer."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

from lazy_loader import attach_stub

ROOMS = (
    "chunked", "datasets", "experiments", "flows", "frames", "generators", "inference", "jet", "metrics",
    "mixtures", "pipeline", "plotting", "schedules", "storage",
)  # fmt: skip
MOVED = {  # what README, docs or notebooks of 0.1 used: where it is now
    "AdamsBashforth": ("mcscore.flows", "AdamsBashforth"),
    "comparison": ("mcscore.experiments.comparison", None),
    "density": ("mcscore.generators.inversion", None),
    "effective_sample_size": ("mcscore.metrics", "effective_sample_size"),
    "reproduce": ("mcscore.experiments.reproduce", None),
}


def face(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__``: names of the stub beside ``file``, and rooms.

    Raises:
        AttributeError: From ``__getattr__``, for a name that is neither here nor was in version 0.1.
    """
    from_stub, _, names = attach_stub(package, file)
    public = sorted(set(names) - set(ROOMS))

    def __getattr__(name: str) -> Any:
        if name not in MOVED:
            return from_stub(name)
        module, member = MOVED[name]
        new = module if member is None else f"{module}.{member}"
        warnings.warn(f"{package}.{name} is now {new}", DeprecationWarning, stacklevel=2)
        found = importlib.import_module(module)
        return found if member is None else getattr(found, member)

    return __getattr__, lambda: sorted([*public, *ROOMS, "__version__"]), public
