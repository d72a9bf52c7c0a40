"""The web application in this process, on a journal of each kind."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask import Flask

from receiver.journal.journal import Journal
from receiver.plugins import load_actions
from receiver.settings import load
from receiver.web.app import create_app

MakeApp = Callable[..., Flask]


@pytest.fixture
def make_app(open_journal: Callable[..., Journal], tmp_path: Path) -> Iterator[MakeApp]:
    """Makes the application with these settings; nobody works on its journal."""
    made: list[Flask] = []

    def make(**environment: str) -> Flask:
        settings = load({"RECEIVER_DATA_DIR": str(tmp_path), **environment}, {})
        made.append(create_app(settings, load_actions(settings), open_journal()))
        return made[-1]

    yield make
    for one in made:
        one.extensions["journal_writer"].close()
        one.extensions["journal_bell"].close()
