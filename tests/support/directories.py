"""Temporary directories that another user can be let into."""

import stat
import tempfile
from pathlib import Path


def open_directory(prefix: str) -> "tempfile.TemporaryDirectory[str]":
    """Make a directory outside pytest's own; the caller removes the directory.

    Each run of pytest on this machine sets pytest's directory to mode 0700 again.
    So a server of another user would lose its data when another run begins.
    """
    usual = Path(tempfile.gettempdir())
    for directory in (usual, *usual.parents):
        if directory.stat().st_mode & stat.S_IWOTH:
            return tempfile.TemporaryDirectory(prefix=prefix, dir=directory)
    return tempfile.TemporaryDirectory(prefix=prefix)
