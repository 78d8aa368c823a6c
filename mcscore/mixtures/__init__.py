"""Mixtures: the data law as a Gaussian mixture, and the kernels that make one of a table."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
