"""Tables larger than memory: dealt at random into parts on disk, a law for each, their average evaluated.

The law of all rows is the average of the parts' laws, weighted by their rows, as the law of several
partitions is that of theirs. Memory is that of one part, or two while the next is read. ``subsample`` draws
fewer rows instead, which is enough for most purposes.
"""

from mcscore.chunked.laws import ChunkedMixture, load, mixture
from mcscore.chunked.rows import subsample, tables

__all__ = ["ChunkedMixture", "load", "mixture", "subsample", "tables"]
