"""The page for everybody: with a phone, in the dark, by ear; and what hostile alerts do to it."""

import json

import pytest

from receiver.journal import reading
from tests.support.browsers import DESKTOP, PHONE, Browser
from tests.support.documents import ROOT
from tests.support.pages import Site

AXE = ROOT / ".cache" / "axe" / "axe.min.js"
HOSTILE = (
    "<script>document.title='taken'</script>",
    '"><img src=x onerror="document.title=\'taken\'">',
    "' onmouseover='alert(1)",
    "javascript:document.title='taken'",
    "{{ 7 * 7 }}{% raw %}",
    "</title></textarea></style><svg/onload=alert(1)>",
    "\u202egnp.exe\u2066",
    "\x1b[2J\x07\x9b",
    "a" * 5000,
    "&lt;b&gt;&amp;",
)
URLS = (
    "javascript:alert(1)", "JaVaScRiPt:alert(1)", " javascript:alert(1)", "java\nscript:alert(1)",
    "data:text/html,<script>alert(1)</script>", "vbscript:x", "//evil.example", "/runs", "http:",
    "http://", "https://[", "file:///etc/passwd", "http://e\u202ex",
)  # fmt: skip


@pytest.fixture(scope="module")
def shown(site: Site) -> dict[str, str]:
    """The path of each page, of a receiver that has something to show on it."""
    failed = site.post("broken", "Shown")
    done = site.post("fix_it", "Shown", host="n9")
    asks = site.post("gated", "Shown")
    running = site.post("slow", "Shown")
    site.reject("Shown", "fixit")
    site.wait_for(failed, outcome="failed")
    site.wait_for(done, outcome="succeeded")
    site.wait_for(asks, state="awaiting_approval")
    site.wait_for(running, state="running")
    return {
        "now": "/", "runs": "/runs", "failed run": f"/runs/{failed}", "run": f"/runs/{done}",
        "actions": "/actions", "rejected": "/rejected", "audit": "/audit", "settings": "/settings",
        "question": f"/runs/{running}/cancel", "pause": "/pause", "error": "/runs/99999",
        "no runs": "/runs?alert=nothing",
    }  # fmt: skip


PAGES = ("now", "runs", "failed run", "run", "actions", "rejected", "audit", "settings",
         "question", "pause", "error", "no runs")  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_page_keeps_nobody_out_and_fits_on_the_screen(
    browser: Browser, site: Site, shown: dict[str, str], page: str
) -> None:
    assert AXE.exists(), "run tests/install-axe"
    assert set(PAGES) == set(shown)
    for size, scheme in ((DESKTOP, "light"), (PHONE, "dark")):
        browser.resize(*size)
        browser.emulate(prefers_color_scheme=scheme)
        browser.open(site.url + shown[page])
        browser.driver.execute_script(AXE.read_text())
        found = browser.driver.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "axe.run({resultTypes: ['violations']}).then((found) => done(found.violations));"
        )
        told = [(one["id"], [node["html"] for node in one["nodes"]]) for one in found]
        assert told == [], (page, scheme)
        widths = "return [document.documentElement.scrollWidth, window.innerWidth]"
        wide, screen = browser.driver.execute_script(widths)
        assert wide <= screen == size[0]


def test_hostile_alerts_are_only_text(browser: Browser, site: Site) -> None:
    texts = dict(zip((f"t{number}" for number in range(len(HOSTILE))), HOSTILE, strict=True))
    run_ids = [
        site.post_alert("hostile", {"alertname": one, "l": one}, {**texts, "summary": one})
        for one in HOSTILE
    ]
    kept = [site.reject(one, one) for one in HOSTILE if one.strip()]
    for run_id in run_ids:
        site.wait_for(run_id, outcome="succeeded")
    paths = ["/", "/runs", "/actions", "/rejected", "/audit"]
    paths += [f"/runs/{run_id}" for run_id in run_ids]
    paths += [f"/runs/{run_ids[0]}/retry", f"/rejected/{kept[0]}/replay"]
    for path in paths:
        browser.open(site.url + path)
        assert browser.driver.title.endswith("· alert-receiver")
        assert browser.texts("img, iframe, object, embed, style, [onerror], [onmouseover]") == []
        assert browser.values("script", "src") == [f"{site.url}/static/page.js"]
        for href in browser.values("a", "href"):
            assert href.startswith(("http://", "https://"))
        assert browser.complaints() == []
        assert not set(browser.text) & set("\u202e\u2066\x1b\x07\x9b")
    browser.open(f"{site.url}/runs/{run_ids[0]}")
    assert HOSTILE[0] in browser.text
    assert json.loads(browser.texts("pre")[0])["t1"] == HOSTILE[1]


def test_only_what_leads_to_the_web_becomes_a_link(browser: Browser, site: Site) -> None:
    for url in URLS:
        run_id = site.post_alert(
            "fix_it", {"alertname": "Linked"}, {"runbook_url": url}, generatorURL=url
        )
        browser.open(f"{site.url}/runs/{run_id}")
        assert browser.texts("a.out") == ["The alert in Alertmanager"], url
    assert reading.find_run(site.journal, run_id)["external_url"] == "http://alertmanager:9093"
