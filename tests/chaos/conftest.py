"""Fixtures for tests that break things; their modules are imported from this directory."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
