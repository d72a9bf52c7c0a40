"""A real browser without a screen, for a whole test session, and what is asked of it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import ActionChains, Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.support.stack import requires
from tests.support.waiting import wait_until

_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",
)  # fmt: skip
DESKTOP, PHONE = (1280, 900), (390, 844)


@dataclass(frozen=True)
class Browser:
    """Chromium, seen as a person does: by what stands on the page."""

    driver: Chrome

    @property
    def text(self) -> str:
        """All that the page shows."""
        return "\n".join(self.texts("body"))

    @property
    def focused(self) -> str:
        """What is shown of that which has the focus."""
        return str(self.driver.execute_script("return document.activeElement.innerText"))

    def press(self, key: str) -> None:
        """Press a key, wherever the focus is."""
        ActionChains(self.driver).send_keys(key).perform()

    def press_to_leave(self, key: str) -> None:
        """Press a key that leads to another page; return on that."""
        self.driver.execute_script("window.isOld = true")
        self.press(key)
        wait_until(self._is_another_page, 60, f"where {key!r} leads")

    def open(self, url: str) -> "Browser":
        """Go to a page."""
        self.driver.get(url)
        return self

    def one(self, css: str) -> WebElement:
        """Return the first that a selector finds; there must be one."""
        return self.driver.find_element(By.CSS_SELECTOR, css)

    # In one look each: while one asks for elements, the page may put in others.

    def texts(self, css: str) -> list[str]:
        """Return what is shown of each that a selector finds."""
        script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.innerText)"
        return list(self.driver.execute_script(script, css))

    def values(self, css: str, name: str) -> list[str]:
        """Return a property (`href`: the whole URL) of each that a selector finds."""
        script = (
            "return [...document.querySelectorAll(arguments[0])].map((one) => one[arguments[1]])"
        )
        return list(self.driver.execute_script(script, css, name))

    def click(self, words: str) -> None:
        """Click on the link or button of these words, those included that only a reader hears.

        Returns on the page to which that leads, if to any.
        """
        path = f"//*[self::a or self::button][normalize-space()={words!r}]"

        def clicked() -> WebElement | None:
            try:
                found = self.driver.find_element(By.XPATH, path)
                self.driver.execute_script(
                    "arguments[0].scrollIntoView({block: 'center'}); window.isOld = true", found
                )
                stays = found.get_attribute("type") == "button"
                found.click()
            except StaleElementReferenceException:
                return None  # The page has just put in another.
            if not stays:
                wait_until(self._is_another_page, 60, f"where {words!r} leads")
            return found

        wait_until(clicked, 60, f"click on {words!r}")

    def _is_another_page(self) -> bool:
        script = "return !window.isOld && document.readyState === 'complete'"
        return bool(self.driver.execute_script(script))

    def wait_for(self, words: str, seconds: float = 30) -> None:
        """Return once the page shows these words, without being loaded again by the test."""
        wait_until(lambda: words in self.text, seconds, f"{words!r} on {self.driver.current_url}")

    def come_back(self) -> None:
        """Do as if the tab had been away: the page then looks at once, not after seconds."""
        self.driver.execute_script("document.dispatchEvent(new Event('visibilitychange'))")

    def emulate(self, **features: str) -> None:
        """Have media features, `prefers_color_scheme="dark"`."""
        named = [{"name": name.replace("_", "-"), "value": v} for name, v in features.items()]
        self.command("Emulation.setEmulatedMedia", features=named)

    def resize(self, width: int, height: int) -> None:
        """Be a screen of this size."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip

    def command(self, name: str, **arguments: Any) -> Any:
        """Give a command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, arguments)

    def complaints(self) -> list[str]:
        """Return what the browser complained about since it was asked last."""
        return [one["message"] for one in self.driver.get_log("browser")]


def start_browser(directory: Path) -> Browser:
    """Start Chromium with nothing of anybody's in it; all that it writes goes to the directory."""
    requires("chromium", "chromedriver")
    options = ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for one in (*_OPTIONS, f"--user-data-dir={directory / 'profile'}"):
        options.add_argument(one)
    service = Service(
        "/usr/bin/chromedriver", log_output=str(directory / "chromedriver.log"),
        env={**os.environ, "HOME": str(directory)},
    )  # fmt: skip
    return Browser(Chrome(options, service))
