"""What the API answers and takes, as marshmallow schemas; its clients read by them, too.

What stands for a row of the journal is made from its table, so that no column is forgotten.
"""

import re
from collections.abc import Sequence
from datetime import UTC, timedelta
from typing import Any

import sqlalchemy as sa
from marshmallow import EXCLUDE, RAISE, Schema, ValidationError, fields, validate

from receiver.declarations import TYPES
from receiver.desk import KINDS, OUTCOMES, STATES
from receiver.journal import tables
from receiver.journal.reading import LARGE
from receiver.journal.tables import Instant

MOST = 1000
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_MEANINGS = {
    "alert": "the alert, in Alertmanager's own keys",
    "call": "the arguments of the action, once they are worked out",
    "created_at": "when the run was created",
    "due_at": "when it may start; 1970: at once",
    "effect": "what it did to the alert: effective, ineffective or unverified",
    "episode_action": "the action of the episode; another than `action` for an escalation",
    "held_by": "the guardrail that delays it",
    "interruptions": "how many workers died during its attempts since a person's last retry",
    "kind": f"why the run exists: {', '.join(KINDS)}",
    "ordinal": "which of several of its kind",
    "outcome": f"how it ended: {', '.join(OUTCOMES)}",
    "reason": "why it is in its state, as it was written then",
    "result": "what the action returned",
    "saved_state": "what an attempt saved for the next one",
    "scheduled_at": "when `due_at` or `expires_at` was computed; null where neither was",
    "starts_at": "since when the alert fires",
    "state": f"one of {', '.join(STATES)}",
    "target": "what is acted on, as limits count it",
    "who": "the name of a login, or the kind of credential, or the user at a terminal",
}


def _storable(text: str) -> None:
    if _UNSTORABLE.search(text):
        raise ValidationError("Holds characters that cannot be stored.")


def instant(**more: Any) -> fields.AwareDateTime:
    """Return a field for an instant, in UTC where nothing else is said."""
    return fields.AwareDateTime(format="iso", default_timezone=UTC, **more)


def _text(longest: int, **more: Any) -> fields.String:
    return fields.String(validate=[validate.Length(max=longest), _storable], **more)


class _Answer(Schema):
    """What is read from an answer: of a newer receiver it may hold more."""

    class Meta:
        unknown = EXCLUDE


class _Request(Schema):
    """What is taken: a name that is not known is a mistake."""

    class Meta:
        unknown = RAISE


def _field_of(column: sa.Column[Any]) -> fields.Field[Any]:
    more: dict[str, Any] = {"allow_none": bool(column.nullable)}
    if column.name in _MEANINGS:
        more["metadata"] = {"description": _MEANINGS[column.name]}
    if column.name in ("alert", "call"):
        return fields.Dict(keys=fields.String(), **more)
    if column.name in ("result", "saved_state"):
        return fields.Raw(**more)
    if isinstance(column.type, Instant):
        return instant(**more)
    if isinstance(column.type, sa.Boolean):
        return fields.Boolean(**more)
    if isinstance(column.type, sa.Integer):
        return fields.Integer(**more)
    return fields.String(**more)


def _row(
    name: str, table: sa.Table, without: Sequence[str] = (), **more: fields.Field[Any]
) -> type[Schema]:
    """Return the schema of a table's rows, and more."""
    columns: dict[str, fields.Field[Any]] = {
        one.name: _field_of(one) for one in table.columns if one.name not in without
    }
    return _Answer.from_dict({**columns, **more}, name=name)


def _why() -> fields.String:
    meaning = "in words why it waits now, or how it ended"
    return fields.String(metadata={"description": meaning})


AttemptSchema = _row("Attempt", tables.attempts)
AuditSchema = _row("Audit", tables.audit)
EpisodeSchema = _row("Episode", tables.episodes)
HoldSchema = _row("Hold", tables.holds)
RejectedSchema = _row("Rejected", tables.rejected, LARGE)
RunSchema = _row("Run", tables.runs, LARGE, why=_why())
WholeRejectedSchema = _row("WholeRejected", tables.rejected)
WholeRunSchema = _row(
    "WholeRun",
    tables.runs,
    why=_why(),
    history=fields.List(fields.Nested(AttemptSchema)),
    audit=fields.List(fields.Nested(AuditSchema)),
)


def page_of(name: str, rows: type[Schema]) -> type[Schema]:
    """Return the schema of a page of rows, under their plural."""
    meaning = (
        "the cursor of the next page; null on the last one. A page before the last can have fewer "
        "rows than asked for, or none"
    )
    return _Answer.from_dict(
        {
            name: fields.List(fields.Nested(rows)),
            "next": fields.String(allow_none=True, metadata={"description": meaning}),
        },
        name=f"PageOf{name.capitalize()}",
    )


class ActionSchema(_Answer):
    """A plugin that was found."""

    name = fields.String()
    state = fields.String(
        metadata={"description": "loaded, wrapper, disabled, not configured or broken"}
    )
    reason = fields.String()
    origin = fields.String()
    version = fields.String()
    hooks = fields.List(fields.String())
    has_worker = fields.Boolean(
        metadata={"description": "whether a worker that is running has loaded it"}
    )
    unfinished = fields.Dict(keys=fields.String(), values=fields.Integer())
    ended_last_day = fields.Dict(keys=fields.String(), values=fields.Integer())
    policy = fields.Dict(keys=fields.String(), values=fields.String())
    holds = fields.List(fields.Nested(HoldSchema))


class ActionsSchema(_Answer):
    """All plugins."""

    actions = fields.List(fields.Nested(ActionSchema))


class HoldsSchema(_Answer):
    """All that holds actions back."""

    holds = fields.List(fields.Nested(HoldSchema))


class WorkerSchema(_Answer):
    """A worker that is running, and the actions that it has loaded."""

    id = fields.String()
    actions = fields.List(fields.String())


class WorkersSchema(_Answer):
    """All workers that are running."""

    workers = fields.List(fields.Nested(WorkerSchema))


class ArgumentsSchema(_Answer):
    """The arguments of an action."""

    metric_name = fields.String()
    value = fields.Raw(metadata={"description": "a number, or NaN, inf or -inf as text"})
    threshold = fields.String()
    duration_seconds = fields.Float()
    warnings = fields.List(fields.String())


class ExplainedSchema(_Answer):
    """What one alert would lead to, for one action."""

    alertname = fields.String()
    fingerprint = fields.String()
    status = fields.String()
    rule = fields.String(allow_none=True)
    action = fields.String(allow_none=True)
    episode = fields.String()
    reason = fields.String()
    arguments = fields.Nested(ArgumentsSchema, allow_none=True)
    runs = fields.String(allow_none=True, metadata={"description": "what would run, if anything"})
    guardrails = fields.String(allow_none=True)


class ExplanationSchema(_Answer):
    """What a notification would lead to."""

    explained = fields.List(fields.Nested(ExplainedSchema))


class DoneSchema(_Answer):
    """What was done, in words."""

    done = fields.String()


class CountsSchema(_Answer):
    """What became of an alert, counted per action."""

    accepted = fields.Integer()
    duplicate = fields.Integer()
    resolved = fields.Integer()
    rejected = fields.Integer()
    ahead = fields.Integer()


class WrongFieldSchema(_Answer):
    """One wrong field."""

    field = fields.String()
    error = fields.String()


class ProblemSchema(_Answer):
    """An error, as RFC 9457 has it."""

    type = fields.String()
    title = fields.String()
    status = fields.Integer()
    detail = fields.String()
    errors = fields.List(fields.Nested(WrongFieldSchema))


class NothingQuery(_Request):
    """There is nothing to ask for."""


class PageQuery(_Request):
    """Which page."""

    limit = fields.Integer(load_default=50, validate=validate.Range(1, MOST))
    cursor = _text(64, load_default="", metadata={"description": "`next` of the page before"})


class RunsQuery(PageQuery):
    """Which runs."""

    action = _text(200)
    alert_name = _text(1000, data_key="alert", metadata={"description": "the alert's name"})
    state = fields.String(validate=validate.OneOf(STATES))
    outcome = fields.String(validate=validate.OneOf(OUTCOMES))
    kind = fields.String(validate=validate.OneOf(KINDS))
    source = _text(128)
    fingerprint = _text(128)
    since = instant(metadata={"description": "created then or later"})
    until = instant(metadata={"description": "created before"})


class ExplainQuery(_Request):
    """As if a notification came so."""

    action = _text(200, load_default="", metadata={"description": "as if to /webhook/<action>"})
    source = _text(128, load_default="", metadata={"description": "as if with ?source="})


class ReasonBody(_Request):
    """Why; kept with it."""

    reason = _text(1000, load_default="")


class NothingBody(_Request):
    """There is nothing to say."""


class ActionBody(_Request):
    """Which action."""

    action = _text(
        200,
        load_default=None,
        allow_none=True,
        metadata={"description": "null: all actions together"},
    )


class Duration(fields.String):
    """A duration as settings have it."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **more: Any) -> Any:
        text = super()._deserialize(value, attr, data, **more)
        try:
            found: timedelta = TYPES["duration"](text)
        except ValueError as error:
            raise ValidationError(f"{error}.") from None
        return found


class PauseBody(ActionBody, ReasonBody):
    """What to pause, for how long, and why."""

    lasting = Duration(
        data_key="for",
        load_default=None,
        allow_none=True,
        metadata={"description": "a duration such as 1h30m; null: until resumed"},
    )
