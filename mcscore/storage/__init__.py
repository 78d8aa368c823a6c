"""What is written to disk: whole or not at all, recognized when read again, resumed where it stopped."""

from mcscore.storage.checkpoints import Checkpoint
from mcscore.storage.files import kept, replacing, write_text
from mcscore.storage.fingerprints import digest_of_file, fingerprint
from mcscore.storage.tensors import read_tensors, write_tensors

__all__ = [
    "Checkpoint",
    "digest_of_file",
    "fingerprint",
    "kept",
    "read_tensors",
    "replacing",
    "write_tensors",
    "write_text",
]
