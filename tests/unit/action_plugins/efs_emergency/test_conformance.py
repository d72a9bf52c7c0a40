"""efs_emergency keeps what the receiver expects of all actions."""

from typing import Any

import pytest

from action_plugins import efs_emergency
from receiver.testing import make_alert
from receiver.testing.conformance import THREADS, ActionConformance, Subject

LABEL = "dimension_FileSystemId"


def file_system(number: int) -> str:
    return f"fs-{number:017x}"


class TestEfsEmergency(ActionConformance):
    """File systems of a fake AWS, one for each alert."""

    @pytest.fixture
    def subject(self, efs: Any) -> Subject:
        for number in range(THREADS):
            efs.add(file_system(number))
        return Subject(
            efs_emergency,
            effects=lambda: [
                one.parameters["FileSystemId"] for one in efs.seen("UpdateFileSystem")
            ],
            environment={"EFS_FILE_SYSTEM_PROMETHEUS_LABEL": LABEL, "AWS_REGION": "us-east-1"},
            alert=lambda number: make_alert(labels={LABEL: file_system(number)}),
            temporary_trouble=lambda: efs.fail(
                "DescribeFileSystems", "InternalServerError", times=3
            ),
            permanent_trouble=lambda: efs.fail("DescribeFileSystems", "AccessDeniedException"),
        )
