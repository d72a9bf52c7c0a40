"""The chart as Helm renders it, each example once per session."""

from pathlib import Path

import pytest

from tests.support.charts import EXAMPLES, HELMS, Helm, Resource, find_helm


@pytest.fixture(params=HELMS)
def helm(request: pytest.FixtureRequest) -> Helm:
    """Helm 3 and Helm 4 in turn."""
    return find_helm(request.param)


@pytest.fixture(params=EXAMPLES, ids=lambda path: path.name.removesuffix("-values.yaml"))
def example(request: pytest.FixtureRequest) -> Path:
    """Each file of values in `ci/` in turn."""
    return Path(request.param)


@pytest.fixture
def resources(example: Path) -> list[Resource]:
    """What Helm 4 makes of each example; that Helm 3 makes the same of it has a test of its own."""
    return find_helm("helm4").template(example)
