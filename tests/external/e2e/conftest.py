"""The real stack: Prometheus and Alertmanager, booted once per session on the README's examples."""

from collections.abc import Iterator

import pytest
import yaml

from tests.support.documents import blocks
from tests.support.receivers import Receiver
from tests.support.stack import Stack, shortened_alertmanager, shortened_rules
from tests.support.whole import Whole

TOKEN = "only-for-this-test"


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    """The README's rules and Alertmanager configuration, only times shortened."""
    directory = tmp_path_factory.mktemp("whole")
    (directory / "token").write_text(TOKEN + "\n")
    receiver = Receiver(
        "serve",
        {
            "RECEIVER_DATA_DIR": str(directory / "data"),
            "RECEIVER_SUBMIT_TOKEN_FILE": str(directory / "token"),
            "FILE_ACTION_DIR": str(directory / "files"),
        },
        directory / "receiver.log",
    )
    (directory / "stack").mkdir()
    resource, alertmanager = blocks("README.md", "yaml")
    rules = yaml.safe_dump(yaml.safe_load(resource)["spec"], sort_keys=False)
    try:
        with Stack(
            directory / "stack",
            rules=shortened_rules(rules),
            alertmanager=shortened_alertmanager(alertmanager),
            webhook_url=receiver.url,
            credentials_file=directory / "token",
        ) as stack:
            receiver.wait_ready()
            yield Whole(stack, receiver, directory)
    finally:
        receiver.kill()
