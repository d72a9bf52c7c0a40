"""A browser for the session, and a receiver whose actions do all that actions do."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browsers import DESKTOP, Browser, start_browser
from tests.support.pages import Site, start_site


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One Chromium for all tests."""
    started = start_browser(tmp_path_factory.mktemp("chromium"))
    yield started
    started.driver.quit()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """The browser as if it were new: on a desktop, in the light, without cookies."""
    chromium.resize(*DESKTOP)
    chromium.emulate(prefers_color_scheme="light")
    chromium.command("Network.clearBrowserCookies")
    chromium.complaints()
    yield chromium
    chromium.command("Emulation.setScriptExecutionDisabled", value=False)
    chromium.open("about:blank")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One receiver for all tests: each uses alerts of its own."""
    started = start_site(tmp_path_factory.mktemp("site"))
    yield started
    started.close()


@pytest.fixture
def other_site(tmp_path: Path) -> Iterator[Site]:
    """A receiver that a test may stop."""
    started = start_site(tmp_path)
    yield started
    started.close()


@pytest.fixture
def locked_site(tmp_path: Path) -> Iterator[Site]:
    """A receiver where eve may look, and ann may act."""
    started = start_site(
        tmp_path,
        RECEIVER_SUBMIT_TOKEN="s",
        RECEIVER_READ_BASIC_AUTH="eve:r",
        RECEIVER_OPERATE_BASIC_AUTH="ann:o",
    )
    yield started
    started.close()
