"""How what holds many arrays is shown at a prompt: their shapes, ``f32[5000,2]``, instead of numbers."""

from __future__ import annotations

from typing import Any

import equinox as eqx


def shapes(self: Any) -> str:
    """Return ``self`` as text with every array's precision and shape; made to be a ``__repr__``."""
    return eqx.tree_pformat(self)
