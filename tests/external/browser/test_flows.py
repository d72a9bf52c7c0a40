"""What people do on the page, each from the first look to what it leaves behind."""

import pytest
from selenium.webdriver.common.keys import Keys

from receiver.journal import reading
from tests.support.browsers import Browser
from tests.support.pages import Site
from tests.support.waiting import wait_until


def last_asked(site: Site) -> dict[str, object]:
    (asked,) = reading.page_of_audit(site.journal, 1).rows
    return {name: asked[name] for name in ("who", "origin", "operation", "run_id", "detail")}


def row_of(browser: Browser, table: str, run_id: int) -> str:
    """Return what the row of a run says."""
    for row in browser.texts(f"#{table} tbody tr"):
        if row.split()[0] == str(run_id):
            return " ".join(row.split())
    raise AssertionError(f"run {run_id} is not in {table}:\n{browser.text}")


def test_first_page_says_what_runs_what_waits_and_why(browser: Browser, site: Site) -> None:
    slow, gated = site.post("slow", "Stuck"), site.post("gated", "Asks")
    first, second = site.post("held", "Twice", host="n1"), site.post("held", "Twice", host="n1")
    site.wait_for(slow, state="running")
    site.wait_for(gated, state="awaiting_approval")
    site.wait_for(first, outcome="succeeded")
    site.wait_for(second, held_by="cooldown")
    browser.open(site.url)
    assert "▶ running attempt 1 runs" in row_of(browser, "unfinished-table", slow)
    assert "waits for approval, 1h at most" in row_of(browser, "unfinished-table", gated)
    assert "Approve" in row_of(browser, "unfinished-table", gated)
    why = "delayed: the action ran for this target less than 1h ago (cooldown); due at 20"
    assert f"Twice host=n1 held … queued {why}" in row_of(browser, "unfinished-table", second)
    done = row_of(browser, "recent-table", first)
    assert "Twice host=n1 held queue_depth = 90, threshold > 80, for" in done
    assert "✓ succeeded 1 " in done
    assert done.endswith("s")
    assert browser.complaints() == []


def test_page_puts_in_what_is_new_without_being_loaded_again(browser: Browser, site: Site) -> None:
    browser.open(site.url)
    browser.driver.execute_script("window.stayed = true")
    site.post("fix_it", "JustArrived")
    browser.wait_for("JustArrived")
    assert browser.driver.execute_script("return window.stayed")


def test_update_keeps_the_focus_and_what_is_open(browser: Browser, site: Site) -> None:
    browser.open(f"{site.url}/actions")
    browser.one("#policy-fix_it summary").click()
    assert browser.focused.startswith("Limits and policy")
    before = browser.texts("#actions")
    site.wait_for(site.post("fix_it"), outcome="succeeded")
    browser.come_back()
    wait_until(lambda: browser.texts("#actions") != before, 60, "an update")
    assert browser.one("#policy-fix_it").get_attribute("open")
    assert browser.focused.startswith("Limits and policy")


def test_updates_can_be_stopped_and_taken_up_again(browser: Browser, site: Site) -> None:
    browser.open(site.url)
    # A look that has begun ends a while later; whether one has is known at once.
    browser.driver.execute_script(
        "const ask = window.fetch; window.looks = 0;"
        "window.fetch = (...what) => { window.looks += 1; return ask(...what); };"
    )
    browser.click("Stop updates")
    before = browser.driver.execute_script("return window.looks")
    site.post("fix_it", "WhileStopped")
    browser.come_back()
    assert browser.driver.execute_script("return window.looks") == before
    assert "WhileStopped" not in browser.text
    browser.click("Update again")
    browser.come_back()
    assert browser.driver.execute_script("return window.looks") > before
    browser.wait_for("WhileStopped")


# Looks are answered by the receiver, but not before the test says so; timers that wait are counted.
_HOLD_LOOKS = """
const ask = window.fetch, later = window.setTimeout, never = window.clearTimeout;
window.asked = 0; window.held = []; window.timers = new Set();
window.fetch = async (...what) => {
  window.asked += 1;
  const answer = await ask(...what), text = await answer.text();
  await new Promise((go) => window.held.push(go));
  return { ok: answer.ok, text: async () => text };
};
window.setTimeout = (what, ms) => {
  const timer = later(() => { window.timers.delete(timer); what(); }, ms);
  window.timers.add(timer);
  return timer;
};
window.clearTimeout = (timer) => { window.timers.delete(timer); never(timer); };
"""
_ARE_ALL_HELD = "return window.asked > 0 && window.held.length === window.asked"
# What a page does with an answer, it does at once.
_LET_GO = "for (const go of window.held) go(); requestAnimationFrame(arguments[0]);"


def test_look_under_way_when_updates_are_stopped_changes_nothing(
    browser: Browser, site: Site
) -> None:
    browser.open(site.url)
    browser.driver.execute_script(_HOLD_LOOKS)
    site.post("fix_it", "JustStopped")
    browser.come_back()
    wait_until(lambda: browser.driver.execute_script(_ARE_ALL_HELD), 60, "the look")
    browser.click("Stop updates")
    browser.driver.execute_async_script(_LET_GO)
    assert "JustStopped" not in browser.text


def test_looks_that_overlap_go_on_as_one(browser: Browser, site: Site) -> None:
    browser.open(site.url)
    browser.driver.execute_script(_HOLD_LOOKS)
    browser.come_back()
    browser.come_back()
    wait_until(lambda: browser.driver.execute_script(_ARE_ALL_HELD), 60, "the looks")
    browser.driver.execute_async_script(_LET_GO)
    assert browser.driver.execute_script("return window.timers.size") == 1


def test_page_says_that_it_is_not_up_to_date_once_nobody_answers(
    browser: Browser, other_site: Site
) -> None:
    browser.open(other_site.url)
    assert "not up to date" not in browser.text
    other_site.serving.kill()
    browser.come_back()
    browser.wait_for("This page is not up to date")


def test_waiting_run_is_approved_after_a_question(browser: Browser, site: Site) -> None:
    run_id = site.post("gated", "ToApprove")
    site.wait_for(run_id, state="awaiting_approval")
    browser.open(site.url)
    browser.click(f"Approve run {run_id}")
    assert browser.texts("h1")[0] == f"Approve run {run_id}, gated for ToApprove?"
    assert reading.find_run(site.journal, run_id)["state"] == "awaiting_approval"
    browser.click("Approve")
    assert f"✓ run {run_id} is approved" in browser.text
    site.wait_for(run_id, outcome="succeeded")
    browser.driver.refresh()
    assert "is approved" not in browser.texts("main")[0].splitlines()[0]
    assert "attempt 1 succeeded" in browser.text
    assert "approve asked for by anyone, page from 127.0.0.1" in browser.text
    assert last_asked(site) == {
        "who": "anyone", "origin": "page from 127.0.0.1", "operation": "approve",
        "run_id": run_id, "detail": "",
    }  # fmt: skip


def test_question_can_be_left_without_anything_done(browser: Browser, site: Site) -> None:
    run_id = site.post("gated", "LeftAlone")
    site.wait_for(run_id, state="awaiting_approval")
    browser.open(f"{site.url}/runs/{run_id}/reject")
    browser.click("Leave it")
    assert browser.driver.current_url == f"{site.url}/runs/{run_id}"
    assert reading.find_run(site.journal, run_id)["state"] == "awaiting_approval"


def test_running_attempt_is_asked_to_stop_with_a_reason(browser: Browser, site: Site) -> None:
    run_id = site.post("slow", "ToCancel")
    site.wait_for(run_id, state="running")
    browser.open(f"{site.url}/runs/{run_id}")
    browser.click(f"Cancel run {run_id}")
    browser.one("[name=reason]").send_keys("wrong host")
    browser.click("Cancel")
    assert "its attempt was asked to stop" in browser.text
    site.wait_for(run_id, outcome="cancelled")
    browser.driver.refresh()
    assert "run cancelled" in browser.text
    assert "cancelled by anyone: wrong host" in browser.text


def test_failed_run_is_retried_by_keyboard_alone(browser: Browser, site: Site) -> None:
    run_id = site.post("broken", "ToRetry")
    site.wait_for(run_id, outcome="failed")
    browser.open(f"{site.url}/runs/{run_id}")
    assert "PermanentError: no way" in browser.text

    def press_until(words: str) -> None:
        for _ in range(20):
            browser.press(Keys.TAB)
            if browser.focused.startswith(words):
                return
        raise AssertionError(f"{words!r} is never in focus")

    press_until("Retry")
    browser.press_to_leave(Keys.ENTER)
    assert browser.texts("h1")[0].startswith(f"Retry run {run_id}")
    press_until("Retry")
    browser.press_to_leave(Keys.ENTER)
    site.wait_for(run_id, outcome="failed", attempts=2)


def test_operation_that_comes_too_late_says_why(browser: Browser, site: Site) -> None:
    run_id = site.post("broken", "TooLate")
    site.wait_for(run_id, outcome="failed")
    browser.open(f"{site.url}/runs/{run_id}/retry")
    site.wait_for(run_id, outcome="failed")
    browser.open(f"{site.url}/runs/{run_id}/approve")
    browser.click("Approve")
    assert f"run {run_id} waits for no approval: it is failed" in browser.text


def test_action_is_paused_for_a_time_and_resumed(browser: Browser, site: Site) -> None:
    browser.open(f"{site.url}/actions")
    browser.click("Pause fix_it")
    browser.one("[name=for]").send_keys("1h30m")
    browser.one("[name=reason]").send_keys("deploy")
    browser.click("Pause")
    assert "fix_it paused for 1h30m" in browser.text
    run_id = site.post("fix_it", "HeldBack")
    browser.open(site.url)
    assert "fix_it is paused by anyone: deploy, until 20" in browser.text
    assert "paused: by anyone: deploy" in row_of(browser, "unfinished-table", run_id)
    browser.click("Resume fix_it")
    browser.click("Resume")
    assert "fix_it resumed" in browser.text
    site.wait_for(run_id, outcome="succeeded")


def test_all_actions_are_paused_and_resumed(browser: Browser, site: Site) -> None:
    browser.open(f"{site.url}/actions")
    browser.click("Pause all actions")
    browser.click("Pause")
    assert "All actions are paused" in browser.text
    browser.click("Resume all actions")
    browser.click("Resume")
    assert "all actions resumed" in browser.text
    assert reading.list_holds(site.journal) == []


def test_pause_for_what_is_no_time_is_refused_with_the_cure(browser: Browser, site: Site) -> None:
    browser.open(f"{site.url}/actions/held/pause")
    browser.one("[name=for]").send_keys("a while")
    browser.click("Pause")
    assert "is not a duration; write 30s, 5m or 1h30m" in browser.text
    assert reading.list_holds(site.journal) == []


def test_rejected_alert_is_shown_with_its_reason_and_replayed(browser: Browser, site: Site) -> None:
    rejected_id = site.reject("Mistyped", "fixit")
    browser.open(site.url)
    browser.click("See why")
    assert "label action_plugin: there is no action 'fixit' (did you mean fix_it?)" in browser.text
    browser.click(f"Replay rejected alert {rejected_id}")
    browser.click("Replay")
    words = f"rejected alert {rejected_id} is replayed: 0 accepted, 0 duplicate, 1 rejected"
    assert words in browser.text


def test_runs_are_narrowed_and_turned_over(browser: Browser, site: Site) -> None:
    run_ids = [site.post("fix_it", "Many") for _ in range(3)]
    failed = site.post("broken", "Many")
    site.wait_for(failed, outcome="failed")
    for run_id in run_ids:
        site.wait_for(run_id, outcome="succeeded")

    def shown() -> list[int]:
        return [int(row.split()[0]) for row in browser.texts("#runs-table tbody tr")]

    browser.open(f"{site.url}/runs")
    browser.one("[name=alert]").send_keys("Many")
    browser.click("Show")
    assert shown() == [failed, *reversed(run_ids)]
    browser.open(f"{site.url}/runs?alert=Many&outcome=succeeded&limit=2")
    assert shown() == [run_ids[2], run_ids[1]]
    browser.click("Older ones")
    assert shown() == [run_ids[0]]
    browser.open(f"{site.url}/runs?since=yesterday")
    assert "Not a valid" in browser.text


def test_run_shows_its_history_its_links_and_its_siblings(browser: Browser, site: Site) -> None:
    labels = {"alertname": "Linked & more"}
    run_id = site.post_alert(
        "fix_it", labels, {"runbook_url": "https://runbooks.example/queue?a=1&b=2"}
    )
    site.wait_for(run_id, outcome="succeeded")
    browser.open(f"{site.url}/runs/{run_id}")
    links = zip(browser.texts("a.out"), browser.values("a.out", "href"), strict=True)
    assert dict(links) == {
        "Runbook": "https://runbooks.example/queue?a=1&b=2",
        "The rule in Prometheus": "http://prometheus/graph?g0.expr=queue_depth+%3E+80&g0.tab=1",
        "The alert in Alertmanager":
            "http://alertmanager:9093/#/alerts?filter=%7Balertname%3D%22Linked%20%26%20more%22%7D",
    }  # fmt: skip
    assert set(browser.values("a.out", "rel")) == {"noopener noreferrer"}
    assert browser.texts(".history strong") == [
        "alert received", "run created", "attempt 1 started", "attempt 1 succeeded",
        "run succeeded",
    ]  # fmt: skip
    assert '"fixed": "queue_depth"' in browser.text


def test_reader_looks_and_logs_in_to_act(browser: Browser, locked_site: Site) -> None:
    locked = locked_site.url.removeprefix("http://")
    browser.open(f"http://eve:r@{locked}/")
    assert "you are eve, who may look; log in to operate" in browser.text
    browser.open(f"http://{locked}/actions")
    assert "Pause" not in browser.text
    browser.open(f"http://{locked}/")
    shown = browser.texts("#as-of")

    def is_updated() -> bool:
        browser.come_back()
        return browser.texts("#as-of") != shown

    wait_until(is_updated, 60, "an update")
    browser.open(f"http://ann:o@{locked}/login")
    browser.open(f"http://{locked}/actions/fix_it/pause")
    browser.click("Pause")
    assert "fix_it paused" in browser.text
    assert last_asked(locked_site)["who"] == "ann"


def test_page_works_without_scripts(browser: Browser, site: Site) -> None:
    browser.command("Emulation.setScriptExecutionDisabled", value=True)
    run_id = site.post("gated", "NoScript")
    site.wait_for(run_id, state="awaiting_approval")
    browser.open(site.url)
    assert "NoScript" in browser.text
    assert "Stop updates" not in browser.text
    browser.open(browser.one(f"a[href='/runs/{run_id}/reject']").get_attribute("href") or "")
    browser.one("[name=reason]").send_keys("no\n")
    browser.wait_for(f"run {run_id} is rejected")
    assert site.wait_for(run_id, outcome="cancelled")["reason"] == "rejected by anyone: no"


@pytest.mark.parametrize("path", ["/runs/99999", f"/runs/{10**20}", "/runs/99999/cancel",
                                  "/actions/no_such/pause", "/rejected/99999/replay"])  # fmt: skip
def test_what_is_not_there_is_said_in_words(browser: Browser, site: Site, path: str) -> None:
    browser.open(site.url + path)
    assert browser.texts("h1")[0] == "Not found"
    assert "there is no " in browser.text
