"""`receiver runs`, `receiver run` and `receiver rejected`: what is, and why."""

import json
from collections.abc import Mapping
from typing import Any, Protocol

import click

from receiver.cli.opened import (
    json_option,
    moment,
    opened,
    plain,
    print_json,
    print_table,
)
from receiver.cli.options import settings_options
from receiver.cli.terminal import safe
from receiver.desk import OUTCOMES, STATES
from receiver.journal.reading import Page, Row
from receiver.settings import Settings


@click.command
@click.option("--action", help="Only runs of this action.")
@click.option("--alert", "alert_name", help="Only runs of alerts of this name.")
@click.option("--state", type=click.Choice(STATES), help="Only runs in this state.")
@click.option("--outcome", type=click.Choice(OUTCOMES), help="Only runs that ended so.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@json_option
@settings_options
def runs(settings: Settings, as_json: bool, limit: int, **wanted: str | None) -> None:
    """List runs, the newest first: what ran, for what, how it ended, or why it waits."""
    equal: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    with opened(settings) as desk:
        shown = newest_runs(desk, limit, equal)
        held = desk.holds()
    if as_json:
        print_json([plain(one) for one in shown])
        return
    for one in held:
        name = "all actions" if one["action"] == "*" else one["action"]
        until = f" until {moment(one['until'])}" if one["until"] else ""
        click.echo(safe(f"{one['kind']}: {name}, {one['reason']}{until}"))
    print_table(
        ("run", "created (UTC)", "alert", "action", "kind", "state", "tries", "why"),
        [
            (
                one["id"],
                moment(one["created_at"]),
                one["alert_name"],
                one["action"],
                one["kind"] + (f" {one['ordinal']}" if one["ordinal"] else ""),
                one["outcome"] or one["state"],
                one["attempts"],
                one["why"],
            )
            for one in shown
        ],
    )


class PagesOfRuns(Protocol):
    """Where runs are looked for page by page."""

    def page_of_runs(self, limit: int, cursor: str = "", **equal: Any) -> Page:
        """See Desk."""


def newest_runs(desk: PagesOfRuns, limit: int, equal: Mapping[str, Any]) -> list[Row]:
    """Return the newest runs, of as many pages as that takes."""
    found: list[Row] = []
    cursor: str | None = ""
    while cursor is not None and len(found) < limit:
        page = desk.page_of_runs(limit - len(found), cursor, **equal)
        found += page.rows
        cursor = page.next
    return found


@click.command
@click.argument("run_id", type=int)
@json_option
@settings_options
def run(settings: Settings, run_id: int, as_json: bool) -> None:
    """Show all about a run: its alert, arguments, attempts, result, and who did what to it."""
    with opened(settings) as desk:
        found = desk.run(run_id)
    history, audit = found.pop("history"), found.pop("audit")
    if as_json:
        whole = plain(found)
        whole["history"] = [plain(one) for one in history]
        whole["audit"] = [plain(one) for one in audit]
        print_json(whole)
        return
    alert, call, result = found["alert"], found["call"], found["result"]
    for label, value in (
        ("run", found["id"]),
        ("state", found["outcome"] or found["state"]),
        ("why", found["why"]),
        ("action", found["action"]),
        ("kind", f"{found['kind']} {found['ordinal'] or ''}".strip()),
        ("target", found["target"]),
        ("alert", found["alert_name"]),
        ("labels", json.dumps(alert["labels"], ensure_ascii=False)),
        ("episode", f"since {found['starts_at']:%Y-%m-%d %H:%M:%S} UTC"),
        ("arguments", json.dumps(call, ensure_ascii=False) if call else "not worked out yet"),
        ("dry run", "yes" if found["dry_run"] else None),
        ("result", None if result is None else json.dumps(result)),
        ("error", found["error"]),
        ("effect", found["effect"]),
    ):
        if value not in (None, ""):
            click.echo(f"{label:10} {safe(value)}")
    for one in history:
        ended = moment(one["finished_at"]) or "running"
        error = f": {one['error']}" if one["error"] else ""
        click.echo(safe(f"attempt {one['number']:2} {moment(one['started_at'])} to {ended}, "
                        f"{one['outcome'] or 'not ended'}{error}"))  # fmt: skip
    for one in audit:
        said = f" ({one['detail']})" if one["detail"] else ""
        click.echo(safe(f"{moment(one['at'])} {one['operation']} by {one['who']}, "
                        f"{one['origin']}{said}"))  # fmt: skip


@click.command
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@json_option
@settings_options
def rejected(settings: Settings, limit: int, as_json: bool) -> None:
    """List the alerts that could not be mapped to an action, and why; see `receiver replay`."""
    with opened(settings) as desk:
        found = desk.page_of_rejected(limit).rows
    if as_json:
        print_json([plain(one) for one in found])
        return
    print_table(
        ("id", "last seen (UTC)", "alert", "name", "times", "state", "why"),
        [
            (
                one["id"],
                moment(one["seen_at"]),
                one["alert_name"],
                one["name"],
                one["times"],
                one["closed_by"] or "open",
                one["reason"],
            )
            for one in found
        ],
    )
