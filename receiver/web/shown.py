"""How the page shows values: hostile texts made harmless, links that are links, times and ages."""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

from markupsafe import Markup

from receiver.durations import format_duration
from receiver.journal.reading import Row
from receiver.web.charts import draw

# Outcome or state -> a sign, so that nothing is told by colour alone, and the words for it.
_SIGNS = {
    "succeeded": ("✓", "succeeded"),
    "failed": ("✗", "failed"),
    "unknown": ("?", "unknown"),
    "skipped": ("↷", "skipped"),
    "cancelled": ("⊘", "cancelled"),
    "running": ("▶", "running"),
    "queued": ("…", "queued"),
    "awaiting_approval": ("!", "waits for approval"),
    "loaded": ("✓", "loaded"),
    "wrapper": ("✓", "wraps all actions"),
    "broken": ("✗", "broken"),
    "disabled": ("-", "disabled"),
    "not configured": ("-", "not configured"),
}
_LONGEST_CELL = 200


def harmless(value: Any) -> Any:
    """Return what an expression of a template may give: signs that nobody sees are spelt out.

    Escaping keeps a text from being HTML; this keeps it from reordering or hiding what stands
    around it, and from holding what no UTF-8 has.
    """
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "".join(
        one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in value
    )


def link(url: object) -> str | None:
    """Return the URL when it may become a link, http or https with a host; else None."""
    if not isinstance(url, str) or not url.isprintable() or any(c.isspace() for c in url):
        return None
    try:
        parts = urlsplit(url)
        return url if parts.scheme in ("http", "https") and parts.hostname else None
    except ValueError:
        return None


def alertmanager_link(external_url: str, labels: Mapping[str, str]) -> str | None:
    """Return where Alertmanager shows the alerts of this name, None when it says not where."""
    if link(external_url) is None:
        return None
    name = json.dumps(labels.get("alertname", ""), ensure_ascii=False)
    wanted = quote("{alertname=" + name + "}", safe="")
    return link(f"{external_url.rstrip('/')}/#/alerts?filter={wanted}")


def short(value: object) -> str:
    """Return a text that fits into a cell."""
    said = str(value)
    return said if len(said) <= _LONGEST_CELL else f"{said[:_LONGEST_CELL]}…"


def moment(value: datetime | None) -> Markup:
    """Return an instant to the second, in UTC."""
    if value is None:
        return Markup("")
    return Markup('<time datetime="{}">{}</time>').format(
        f"{value:%Y-%m-%dT%H:%M:%SZ}", f"{value:%Y-%m-%d %H:%M:%S}"
    )


def precise(value: datetime) -> Markup:
    """Return an instant to the millisecond, in UTC: what comes within one second has an order."""
    said = f"{value:%Y-%m-%d %H:%M:%S}.{value.microsecond // 1000:03}"
    return Markup('<time datetime="{}Z">{}</time>').format(said.replace(" ", "T"), said)


def ago(value: datetime | None, now: datetime) -> str:
    """Return how long ago an instant was, roughly; or in how long it will be."""
    if value is None:
        return ""
    distance = now - value
    if abs(distance) < timedelta(seconds=1):
        return "now"
    said = format_duration(_rough(abs(distance)))
    return f"{said} ago" if distance > timedelta(0) else f"in {said}"


def _rough(duration: timedelta) -> timedelta:
    """Return the duration without what nobody wants to know of one so long."""
    for longer_than, step in ((86400 * 3, 86400), (3600 * 10, 3600), (600, 60)):
        if duration.total_seconds() >= longer_than:
            return timedelta(seconds=duration.total_seconds() // step * step)
    return timedelta(seconds=math.floor(duration.total_seconds()))


def lasted(began: datetime | None, ended: datetime | None) -> str:
    """Return how long something took, exactly where that is short."""
    if began is None or ended is None:
        return ""
    took = max(0.0, (ended - began).total_seconds())
    if took < 1:
        return f"{round(took * 1000)}ms"
    return f"{took:.1f}s" if took < 10 else format_duration(timedelta(seconds=took))


def seconds(number: float | None) -> str:
    """Return a number of seconds as a duration."""
    return "" if number is None else format_duration(timedelta(seconds=number))


def badge(state: str) -> Markup:
    """Return a state or an outcome with its sign."""
    sign, words = _SIGNS.get(state, ("", state))
    return Markup('<span class="badge {}"><span aria-hidden="true">{}</span> {}</span>').format(
        state.replace(" ", "-"), sign, words
    )


def arguments(call: Row | None) -> str:
    """Return what an action is told, in one line."""
    if call is None:
        return "not worked out yet"
    value = float(call["value"])
    said = f"{call['metric_name']} " + ("(no value)" if math.isnan(value) else f"= {value:g}")
    if call["threshold"]:
        said += f", threshold {call['threshold']}"
    return f"{said}, for {seconds(call['duration_seconds'])}"


def effect(run: Row) -> str:
    """Return what a run did to its alert."""
    if run["effect"] is None:
        return ""
    if run["effect"] == "effective" and run["effect_seconds"] is not None:
        return f"effective after {seconds(run['effect_seconds'])}"
    return str(run["effect"])


def total(hours: Mapping[int, Mapping[str, int]]) -> int:
    """Return how many there are in all hours, of all outcomes."""
    return sum(sum(outcomes.values()) for outcomes in hours.values())


def as_json(value: Any) -> str:
    """Return a value as JSON for people."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def history(run: Row) -> Sequence[tuple[datetime, str, str]]:
    """Return what happened to a run, in order: when, what, and what was said about it."""
    found = [
        (
            run["received_at"],
            "alert received",
            f"from {run['external_url']}, receiver {run['receiver']}",
        )
    ]
    found.append((run["created_at"], "run created", run["kind"]))
    for one in run["history"]:
        number = f"attempt {one['number']}" + (" (dry run)" if one["dry_run"] else "")
        found.append((one["started_at"], f"{number} started", f"by worker {one['owner']}"))
        if one["finished_at"]:
            took = f"after {lasted(one['started_at'], one['finished_at'])}"
            said = f"{took}: {one['error']}" if one["error"] else took
            found.append((one["finished_at"], f"{number} {one['outcome']}", said))
    for one in run["audit"]:
        said = f"by {one['who']}, {one['origin']}" + (f": {one['detail']}" if one["detail"] else "")
        found.append((one["at"], f"{one['operation']} asked for", said))
    if run["finished_at"]:
        found.append((run["finished_at"], f"run {run['outcome']}", run["reason"]))
    # Sorted by time alone: what happened within one transaction keeps this order.
    return sorted(found, key=lambda one: one[0])


FILTERS = {
    "ago": ago, "arguments": arguments, "as_json": as_json, "badge": badge, "chart": draw,
    "effect": effect, "history": history, "link": link, "moment": moment,
    "precise": precise, "seconds": seconds, "short": short, "total": total,
}  # fmt: skip
