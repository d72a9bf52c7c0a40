"""The chart as both versions of Helm render it, each example once per session."""

from pathlib import Path

import pytest
from charts import EXAMPLES, HELMS, Helm, Resource, find_helm

_rendered: dict[tuple[str, str], list[Resource]] = {}


@pytest.fixture(params=HELMS)
def helm(request: pytest.FixtureRequest) -> Helm:
    """Helm 3 and Helm 4 in turn."""
    return find_helm(request.param)


@pytest.fixture(params=EXAMPLES, ids=lambda path: path.name.removesuffix("-values.yaml"))
def example(request: pytest.FixtureRequest) -> Path:
    """Each file of values in `ci/` in turn."""
    return Path(request.param)


@pytest.fixture
def resources(helm: Helm, example: Path) -> list[Resource]:
    """What each Helm makes of each example."""
    key = (helm.binary.name, example.name)
    if key not in _rendered:
        _rendered[key] = helm.template(example)
    return _rendered[key]
