"""Frames: maps between the user's columns and the coordinates in which the law lives."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
