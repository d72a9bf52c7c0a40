"""Tests that need root: a laptop skips them, and CI runs them as root."""

import os

import pytest

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("CI"),
    reason="only root can become another user or mount a disk: sudo make test",
)
