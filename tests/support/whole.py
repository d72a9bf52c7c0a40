"""A running stack, and the receiver that its Alertmanager posts to."""

from dataclasses import dataclass
from pathlib import Path

from tests.support.receivers import Receiver
from tests.support.stack import Stack


@dataclass(frozen=True)
class Whole:
    """A running stack, and the receiver that its Alertmanager posts to."""

    stack: Stack
    receiver: Receiver
    directory: Path

    @property
    def files(self) -> Path:
        """Where file_action puts its files."""
        return self.directory / "files"

    @property
    def journal_url(self) -> str:
        """The receiver's journal."""
        return f"sqlite:///{self.directory / 'data' / 'journal.db'}"

    def restart_receiver(self) -> None:
        """Stop the receiver in good order and start it again."""
        assert self.receiver.stop() == 0
        self.receiver.start()
        self.receiver.wait_ready()
