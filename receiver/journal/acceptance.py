"""Records notifications: folds a batch, in order of arrival, into episodes, runs and rejections.

The decisions are those of `receiver.identity` and `receiver.episodes`; here they are carried out
with few statements for many alerts. A batch is cut into waves in which each (source, fingerprint)
stands once, so that what a later alert meets is what an earlier one left.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from receiver import episodes, identity
from receiver.alertmanager import Alert
from receiver.identity import Episode
from receiver.intake import Counts, Intake, Routed
from receiver.journal import changes, tables
from receiver.journal.dialects import DIALECTS, Key
from receiver.journal.journal import Journal
from receiver.journal.prepared import Prepared
from receiver.journal.rejections import is_taken_up, set_missing_starts
from receiver.policies import Rules
from receiver.subject import target_of

# Keys in one IN (…): SQLite takes 32,766 values in all, older ones 999. Each has its statement.
_CHUNKS = (1, 16, 400)
_LONGEST_INDEXED = 200  # Characters: an index entry has a limit.
# The time of a route is written at most so often.
_ROUTE_RESOLUTION = timedelta(days=1)

_EPISODE_NAMES = (
    "source", "fingerprint", "action", "starts_at", "mark_at", "seen_at", "receiver",
    "closed_at", "ends_at", "round", "ahead_starts_at",
)  # fmt: skip
_RUN_NAMES = (
    "source", "fingerprint", "action", "starts_at", "kind", "ordinal", "episode_action", "target",
    "alert_name", "alert", "receiver", "external_url", "created_at", "received_at", "due_at",
    "traceparent", "state", "reason", "approval", "expires_at", "scheduled_at",
)  # fmt: skip
_REJECTED_NAMES = (
    "source", "fingerprint", "name", "rule", "starts_at", "alert_name", "alert", "receiver",
    "external_url", "reason", "times", "first_seen_at", "seen_at",
)  # fmt: skip


class _Statements:
    """The statements of one database, compiled once: for one alert that costs the most."""

    def __init__(self, compiler: sa.Dialect) -> None:
        dialect = DIALECTS[compiler.name]()

        def inserting(table: sa.Table) -> Any:
            return dialect.insert(table).inline()  # Nobody asks for the keys.

        runs = inserting(tables.runs).on_conflict_do_nothing()
        self.create_runs = Prepared(runs, _RUN_NAMES, compiler)
        rows = inserting(tables.episodes)
        rows = rows.on_conflict_do_update(
            index_elements=["source", "fingerprint", "action"],
            set_={name: rows.excluded[name] for name in _EPISODE_NAMES[3:]},
        )
        self.write_rows = Prepared(rows, _EPISODE_NAMES, compiler)
        refused = inserting(tables.rejected)
        refused = refused.on_conflict_do_update(
            index_elements=["source", "fingerprint", "name", "starts_at"],
            set_={
                "times": tables.rejected.c.times + sa.literal_column("1"),
                **{name: refused.excluded[name] for name in ("seen_at", "rule", "reason", "alert")},
                "closed_at": sa.null(),
                "closed_by": sa.null(),
            },
        )
        self.keep_rejected = Prepared(refused, _REJECTED_NAMES, compiler)
        is_open = sa.exists().where(tables.rejected.c.closed_at.is_(None))
        self.has_open_rejected = Prepared(sa.select(is_open), (), compiler)
        routes = inserting(tables.routes)
        routes = routes.on_conflict_do_update(
            index_elements=["source", "receiver"],
            set_={"resolved_at": routes.excluded.resolved_at},
        )
        self.keep_routes = Prepared(routes, ("source", "receiver", "resolved_at"), compiler)
        route = tables.routes.c
        known = sa.select(route.resolved_at).where(
            route.source == sa.bindparam("of_source"),
            route.receiver == sa.bindparam("of_receiver"),
            route.resolved_at > sa.bindparam("since"),
            route.resolved_at <= sa.bindparam("until"),
        )
        self.find_route = Prepared(known, ("of_source", "of_receiver", "since", "until"), compiler)
        self.lock_rows = {}
        for size in _CHUNKS:
            names = [f"fingerprint_{number}" for number in range(size)]
            table = tables.episodes
            query = dialect.for_update(
                sa.select(*(table.c[name] for name in _EPISODE_NAMES))
                .where(
                    table.c.source == sa.bindparam("of_source"),
                    table.c.fingerprint.in_(
                        [sa.bindparam(name, type_=sa.String) for name in names]
                    ),
                )
                .order_by(table.c.source, table.c.fingerprint, table.c.action)
            )
            self.lock_rows[size] = Prepared(query, ["of_source", *names], compiler), names


@lru_cache(maxsize=4)
def _statements(compiler: sa.Dialect) -> _Statements:
    return _Statements(compiler)


@dataclass
class _Tally:
    """The counts of one notification while its batch is folded."""

    accepted: int = 0
    duplicate: int = 0
    resolved: int = 0
    rejected: int = 0
    ahead: int = 0

    def counts(self) -> Counts:
        """Return them as they are now."""
        return Counts(self.accepted, self.duplicate, self.resolved, self.rejected, self.ahead)


@dataclass
class _Wave:
    """Alerts that do not touch each other's rows, and what they amount to."""

    alerts: list[tuple[Intake, _Tally, Routed]] = field(default_factory=list)
    touched: dict[Key, Episode] = field(default_factory=dict)
    created: list[dict[str, Any]] = field(default_factory=list)
    superseded: list[Key] = field(default_factory=list)
    closed: list[Episode] = field(default_factory=list)
    put_back: list[Episode] = field(default_factory=list)


def record(journal: Journal, batch: Sequence[Intake], rules: Rules) -> list[Counts]:
    """Record notifications in one transaction; they are durable when this returns.

    Returns the counts of each. Raises JournalDataError when the data of one of them is refused,
    JournalUnavailableError when nothing can be stored; in both cases nothing was.
    """
    tallies = [_Tally() for _ in batch]
    with journal.writing() as connection:
        now = journal.now(connection)
        rows = _lock_rows(journal, connection, batch)
        for wave in _waves(batch, tallies):
            _record_wave(journal, connection, wave, rows, rules, now)
    return [tally.counts() for tally in tallies]


def _waves(batch: Sequence[Intake], tallies: Sequence[_Tally]) -> Iterator[_Wave]:
    waves: list[_Wave] = []
    depth: dict[tuple[str, str], int] = defaultdict(int)
    for intake, tally in zip(batch, tallies, strict=True):
        for routed in intake.alerts:
            key = (intake.source, routed.alert.fingerprint)
            if depth[key] == len(waves):
                waves.append(_Wave())
            waves[depth[key]].alerts.append((intake, tally, routed))
            depth[key] += 1
    yield from waves


def _chunks(fingerprints: Iterable[str]) -> Iterator[list[str]]:
    unique = sorted(set(fingerprints))
    for start in range(0, len(unique), _CHUNKS[-1]):
        yield unique[start : start + _CHUNKS[-1]]


def _lock_rows(
    journal: Journal, connection: Connection, batch: Sequence[Intake]
) -> dict[tuple[str, str], dict[str, Episode]]:
    """Return every row of the batch's alerts, by (source, fingerprint) and action, locked."""
    fingerprints: dict[str, set[str]] = defaultdict(set)
    keys: set[Key] = set()
    for intake in batch:
        for routed in intake.alerts:
            fingerprint = routed.alert.fingerprint
            fingerprints[intake.source].add(fingerprint)
            if not routed.alert.is_resolved:
                keys |= {(intake.source, fingerprint, name) for name in routed.route.actions}
    journal.dialect.lock_episodes(connection, keys)
    rows: dict[tuple[str, str], dict[str, Episode]] = defaultdict(dict)
    for source in sorted(fingerprints):
        for chunk in _chunks(fingerprints[source]):
            size = next(size for size in _CHUNKS if size >= len(chunk))
            query, names = _statements(journal.engine.dialect).lock_rows[size]
            values = dict.fromkeys(names, chunk[0]) | dict(zip(names, chunk, strict=False))
            for found in query.fetch(connection, {"of_source": source, **values}):
                row = Episode(*found)
                if row.starts_at is not None:  # Else it holds the place of one to come.
                    rows[row.source, row.fingerprint][row.action] = row
    return rows


def _record_wave(
    journal: Journal,
    connection: Connection,
    wave: _Wave,
    rows: dict[tuple[str, str], dict[str, Episode]],
    rules: Rules,
    now: datetime,
) -> None:
    resolved_by: set[tuple[str, str]] = set()
    for intake, tally, routed in wave.alerts:
        of_alert = rows[intake.source, routed.alert.fingerprint]
        if routed.alert.is_resolved:
            tally.resolved += max(1, len(routed.route.actions) + len(routed.route.rejections))
            resolved_by.add((intake.source, intake.receiver[:_LONGEST_INDEXED]))
            _fold_resolved(wave, of_alert, routed.alert, now)
        else:
            tally.rejected += len(routed.route.rejections)
            for action in routed.route.actions:
                _fold_firing(connection, wave, tally, of_alert, intake, routed.alert, action,
                             rules, now)  # fmt: skip
    runs = changes.runs_of_many(connection, [*wave.put_back, *wave.closed])
    decided: list[episodes.Change] = []
    for row in wave.put_back:
        key = (row.source, row.fingerprint, row.action)
        wave.touched[key], put_back = episodes.when_put_back(runs[key], row)
        decided += put_back
    for row in wave.closed:
        key = (row.source, row.fingerprint, row.action)
        decided += episodes.when_closed(runs[key], row, rules.resolved_after(row.action), now)
    changes.apply(journal, connection, rules, decided, now)
    changes.supersede(connection, wave.superseded, now)
    for key, row in wave.touched.items():
        rows[key[0], key[1]][key[2]] = row
    _write_rows(journal, connection, wave)
    _write_rejections(journal, connection, wave, now)
    _write_routes(journal, connection, resolved_by, now)


def _fold_firing(
    connection: Connection,
    wave: _Wave,
    tally: _Tally,
    of_alert: dict[str, Episode],
    intake: Intake,
    alert: Alert,
    action: str,
    rules: Rules,
    now: datetime,
) -> None:
    row = of_alert.get(action)
    key = (intake.source, alert.fingerprint, action)
    has_run = identity.needs_identity(
        row, alert.starts_at, now, rules.tolerance
    ) and changes.has_fired_run(connection, key, alert.starts_at)
    decision = identity.decide_firing(
        row, *key, alert.starts_at, intake.receiver, now, rules.tolerance, has_run
    )
    tally.ahead += decision.is_ahead
    if decision.row is not None:
        wave.touched[key] = decision.row
    if decision.kind == "new":
        tally.accepted += 1
        wave.created.append(_run_values(intake, alert, action, rules, decision.reason, now))
        if row is not None:
            wave.superseded.append(key)
    else:
        tally.duplicate += 1
        if decision.kind == "put back" and decision.row is not None:
            wave.put_back.append(decision.row)


def _fold_resolved(wave: _Wave, of_alert: dict[str, Episode], alert: Alert, now: datetime) -> None:
    for row in of_alert.values():
        decision = identity.decide_resolved(row, alert.ends_at, now)
        if decision.row is not None:
            wave.touched[row.source, row.fingerprint, row.action] = decision.row
            wave.closed.append(decision.row)


def _run_values(
    intake: Intake, alert: Alert, action: str, rules: Rules, reason: str, now: datetime
) -> dict[str, Any]:
    policy = rules.policy(action)
    is_dry_run = rules.is_dry_run(action, alert.annotations)
    return {
        "source": intake.source,
        "fingerprint": alert.fingerprint,
        "action": action,
        "starts_at": alert.starts_at,
        "kind": "fired",
        "ordinal": 0,
        "episode_action": action,
        "target": target_of(policy, intake.source, alert.fingerprint, alert.labels),
        "alert_name": alert.name[:_LONGEST_INDEXED],
        "alert": alert.to_json(),
        "receiver": intake.receiver,
        "external_url": intake.external_url,
        "traceparent": intake.traceparent or None,
        "created_at": now,
        "received_at": now,
        "due_at": tables.AT_ONCE,
        **changes.first_state(policy, is_dry_run, reason, now),
    }


def _row_values(row: Episode) -> dict[str, Any]:
    return {name: getattr(row, name) for name in _EPISODE_NAMES}


def _write_rows(journal: Journal, connection: Connection, wave: _Wave) -> None:
    statements = _statements(journal.engine.dialect)
    if wave.created:
        # The identity is unique: what stands there already is the same run.
        statements.create_runs.execute(connection, wave.created)
    if wave.touched:
        statements.write_rows.execute(
            connection, [_row_values(row) for row in wave.touched.values()]
        )


def _write_rejections(journal: Journal, connection: Connection, wave: _Wave, now: datetime) -> None:
    """Keep what was refused, and close what is refused no more: resolved, or taken up."""
    refused: list[dict[str, Any]] = [
        {
            "source": intake.source,
            "fingerprint": routed.alert.fingerprint,
            "name": rejection.name,
            "rule": routed.route.rule,
            "starts_at": routed.alert.starts_at,
            "alert_name": routed.alert.name[:_LONGEST_INDEXED],
            "alert": text,
            "receiver": intake.receiver,
            "external_url": intake.external_url,
            "reason": rejection.reason,
            "times": 1,
            "first_seen_at": now,
            "seen_at": now,
        }
        for intake, _, routed in wave.alerts
        if not routed.alert.is_resolved and routed.route.rejections
        for text in [routed.alert.to_json()]
        for rejection in routed.route.rejections
    ]
    set_missing_starts(connection, refused, now)
    still_refused = {(one["source"], one["fingerprint"], one["name"]) for one in refused}
    statements = _statements(journal.engine.dialect)
    if statements.has_open_rejected.fetch(connection, {}) == [[True]]:
        _close_rejections(connection, wave, still_refused, now)
    if refused:
        statements.keep_rejected.execute(connection, refused)


def _close_rejections(
    connection: Connection, wave: _Wave, still_refused: set[tuple[str, str, str]], now: datetime
) -> None:
    table = tables.rejected
    told = {(intake.source, routed.alert.fingerprint): routed for intake, _, routed in wave.alerts}
    for chunk in _chunks(fingerprint for _, fingerprint in told):
        query = sa.select(
            table.c.id, table.c.source, table.c.fingerprint, table.c.name, table.c.rule
        ).where(table.c.closed_at.is_(None), table.c.fingerprint.in_(chunk))
        for found in connection.execute(query).all():
            routed = told.get((found.source, found.fingerprint))
            key = (found.source, found.fingerprint, found.name)
            if routed is None or key in still_refused:
                continue
            if not routed.alert.is_resolved and not is_taken_up(found.name, found.rule, routed):
                continue
            closed_by = "resolved" if routed.alert.is_resolved else "taken up"
            connection.execute(
                sa.update(table)
                .where(table.c.id == found.id)
                .values(closed_at=now, closed_by=closed_by)
            )


def _write_routes(
    journal: Journal, connection: Connection, resolved_by: set[tuple[str, str]], now: datetime
) -> None:
    """Keep that these receivers send resolved alerts; retention deletes those that stopped."""
    statements = _statements(journal.engine.dialect)
    bound = {"since": now - _ROUTE_RESOLUTION, "until": now}
    values = [
        {"source": source, "receiver": receiver, "resolved_at": now}
        for source, receiver in sorted(resolved_by)
        if not statements.find_route.fetch(
            connection, {"of_source": source, "of_receiver": receiver, **bound}
        )
    ]
    if values:
        statements.keep_routes.execute(connection, values)
