"""The version-4 notification that Alertmanager posts: parsed once, here, into frozen dataclasses.

https://prometheus.io/docs/alerting/latest/configuration/#webhook_config describes the body. Unknown
keys are ignored at every level. NUL characters and lone surrogates, which no database stores, are
replaced by U+FFFD.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

from receiver.errors import NotificationError

_SHOWN_ERRORS = 20
# As many are recorded in the time that Alertmanager waits; more would fail for ever, and keep
# others waiting each time.
_MOST_ALERTS = 50_000
# Alertmanager sends each once; here they are recorded one after the other, for each may end the
# episode before it.
_MOST_REPEATS = 1_000
# So many are counted exactly, again and again; no group has as many.
_MOST_TRUNCATED = 1_000_000_000
# It is part of keys that are indexed, and an index entry has a limit; real ones have 16.
_LONGEST_FINGERPRINT = 128
# Labels or annotations of one alert: Prometheus' users have tens.
_MOST_TEXTS = 1_000
# Characters of a label, annotation or URL that are kept: more is cut, for the alert itself is real.
_LONGEST_TEXT = 16_384
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# A body in which this finds nothing holds no such character: as an escape, or as raw bytes.
_UNSTORABLE_RAW = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])|\xed[\xa0-\xbf]")
_ZERO_TIME = re.compile(r"0001-01-01[Tt]00:00:00(?:\.0{1,9})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)
_TIME = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII
)
_KEPT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Alert:
    """One element of `alerts`: a condition at one moment, identified by `fingerprint`."""

    status: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    starts_at: datetime
    ends_at: datetime | None
    generator_url: str
    fingerprint: str

    @property
    def is_resolved(self) -> bool:
        """Whether Alertmanager says that it fires no more."""
        return self.status == "resolved"

    @property
    def name(self) -> str:
        """The label `alertname`, empty when it is missing."""
        return self.labels.get("alertname", "")

    def to_json(self) -> str:
        """Return the alert as it is kept in the journal, in Alertmanager's own keys."""
        return _KEPT.encode(
            {
                "status": self.status,
                "labels": self.labels,
                "annotations": self.annotations,
                "startsAt": self.starts_at.isoformat(),
                "endsAt": self.ends_at.isoformat() if self.ends_at else None,
                "generatorURL": self.generator_url,
                "fingerprint": self.fingerprint,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Alert":
        """Return the alert that `to_json` wrote."""
        raw = json.loads(text)
        return cls(
            raw["status"],
            raw["labels"],
            raw["annotations"],
            datetime.fromisoformat(raw["startsAt"]),
            datetime.fromisoformat(raw["endsAt"]) if raw["endsAt"] else None,
            raw["generatorURL"],
            raw["fingerprint"],
        )


@dataclass(frozen=True, slots=True)
class Notification:
    """One webhook request body."""

    receiver: str
    status: str
    alerts: tuple[Alert, ...]
    group_key: str
    external_url: str
    truncated_alerts: int


def _parse_time(text: Any) -> datetime:
    if not isinstance(text, str) or not _TIME.fullmatch(text):
        raise ValueError("is not a time as in RFC 3339, such as 2026-11-22T14:04:10.807Z")
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        # Year 1 with a positive offset lies before the first instant that datetime has.
        raise ValueError("is not a time that exists") from None


def _parse_end(text: Any) -> datetime | None:
    """Return an endsAt; the year 1, Go's zero time, means that there is none yet."""
    if text is None or text == "" or (isinstance(text, str) and _ZERO_TIME.fullmatch(text)):
        return None
    return _parse_time(text)


class AlertList(fields.Field[tuple[Alert, ...]]):
    """The field `alerts`.

    A fast path: one flat loop over well-formed alerts, about thirty times faster than a nested
    schema. It only says that something is wrong; the slow path then says what and where.
    """

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any
    ) -> tuple[Alert, ...]:
        del attr, data, kwargs
        if not isinstance(value, list):
            raise ValidationError("Not a list.")
        if len(value) > _MOST_ALERTS:
            raise ValidationError(f"More than {_MOST_ALERTS}; group them by more labels.")
        try:
            alerts = tuple([_alert(raw) for raw in value])
        except (KeyError, TypeError, ValueError, AttributeError):
            _explain(value)
        if len(alerts) > _MOST_REPEATS:
            repeats = Counter([one.fingerprint for one in alerts])
            if max(repeats.values()) > _MOST_REPEATS:
                raise ValidationError(f"More than {_MOST_REPEATS} of the same fingerprint.")
        return alerts


def _alert(raw: dict[str, Any]) -> Alert:
    labels, annotations = raw["labels"], raw.get("annotations")
    fingerprint, generator_url = raw["fingerprint"], raw.get("generatorURL")
    annotations = {} if annotations is None else annotations
    generator_url = "" if generator_url is None else generator_url
    status = raw["status"]
    is_long = len(generator_url) > _LONGEST_TEXT
    for texts in (labels, annotations):
        if len(texts) > _MOST_TEXTS:
            raise ValueError
        for name, text in texts.items():
            if text.__class__ is not str:
                raise TypeError
            is_long = is_long or len(text) > _LONGEST_TEXT or len(name) > _LONGEST_TEXT
    if (
        (status != "firing" and status != "resolved")
        or fingerprint.__class__ is not str
        or not 0 < len(fingerprint) <= _LONGEST_FINGERPRINT
        or generator_url.__class__ is not str
    ):
        raise ValueError
    if is_long:
        labels = {_cut(name): _cut(text) for name, text in labels.items()}
        annotations = {_cut(name): _cut(text) for name, text in annotations.items()}
        generator_url = _cut(generator_url)
    return Alert(
        status,
        labels,
        annotations,
        _parse_time(raw["startsAt"]),
        _parse_end(raw.get("endsAt")),
        generator_url,
        fingerprint,
    )


def _cut(text: str) -> str:
    """Return a text as it is kept, with what was left out at its end."""
    left = len(text) - _LONGEST_TEXT
    return f"{text[:_LONGEST_TEXT]}… (cut: {left} characters more)" if left > 0 else text


def _explain(alerts: list[Any]) -> NoReturn:
    """Raise ValidationError: index -> field -> messages, as a nested schema would."""
    errors: dict[int, Any] = {}
    for index, raw in enumerate(alerts):
        wrong = _wrong_fields(raw)
        if wrong:
            errors[index] = wrong
            if len(errors) > _SHOWN_ERRORS:
                break
    raise ValidationError(errors)


def _wrong_fields(raw: Any) -> dict[str, list[str]]:
    if not isinstance(raw, dict):
        return {"_schema": ["Not an object."]}
    wrong: dict[str, list[str]] = {}
    if raw.get("status") not in ("firing", "resolved"):
        wrong["status"] = ["Must be firing or resolved."]
    for key in ("labels", "annotations"):
        texts = raw.get(key)
        if texts is None and key == "annotations":
            continue
        if not isinstance(texts, dict):
            wrong[key] = ["Not an object of texts."]
        elif not all(isinstance(text, str) for text in texts.values()):
            wrong[key] = ["Not all values are texts."]
        elif len(texts) > _MOST_TEXTS:
            wrong[key] = [f"More than {_MOST_TEXTS}."]
    for key, parse in (("startsAt", _parse_time), ("endsAt", _parse_end)):
        try:
            parse(raw.get(key))
        except ValueError as error:
            wrong[key] = [str(error)]
    fingerprint = raw.get("fingerprint")
    if not isinstance(fingerprint, str) or not fingerprint:
        wrong["fingerprint"] = ["Missing or not a text."]
    elif len(fingerprint) > _LONGEST_FINGERPRINT:
        wrong["fingerprint"] = [f"Longer than {_LONGEST_FINGERPRINT} characters."]
    if not isinstance(raw.get("generatorURL"), str | None):
        wrong["generatorURL"] = ["Not a text."]
    return wrong


class NotificationSchema(Schema):
    """The envelope. What the receiver does not use is not checked: it could become another."""

    class Meta:
        unknown = EXCLUDE

    version = fields.String(required=True, validate=validate.Equal("4"))
    receiver = fields.String(load_default="")
    status = fields.String(required=True, validate=validate.OneOf(["firing", "resolved"]))
    group_key = fields.String(load_default="", data_key="groupKey")
    external_url = fields.String(load_default="", data_key="externalURL")
    truncated_alerts = fields.Integer(
        load_default=0,
        strict=True,
        data_key="truncatedAlerts",
        validate=validate.Range(0, _MOST_TRUNCATED),
    )
    alerts = AlertList(required=True)


_SCHEMA = NotificationSchema()


def parse_notification(body: bytes) -> Notification:
    """Return the notification in a request body.

    Raises NotificationError, naming each wrong field by its path, when it is not JSON or not a
    version-4 notification.
    """
    try:
        if json.detect_encoding(body) not in ("utf-8", "utf-8-sig"):
            raise NotificationError("the body is not JSON: it is not in UTF-8")
        raw = json.loads(body)
        if _UNSTORABLE_RAW.search(body):
            raw = _storable(raw)
    except RecursionError:
        raise NotificationError("the body is nested too deeply") from None
    except ValueError as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "cannot be decoded"
        raise NotificationError(f"the body is not JSON: {reason}") from None
    if not isinstance(raw, dict):
        raise NotificationError("the body is not a notification: not a JSON object")
    try:
        values = _SCHEMA.load(raw)
    except ValidationError as error:
        wrong = _paths(error.messages, "")
        raise NotificationError("the body is not a version-4 notification", wrong) from None
    del values["version"]
    return Notification(**values)


def storable(text: str) -> str:
    """Return a text as every database can store it: NUL and lone surrogates are replaced."""
    return _UNSTORABLE.sub("\ufffd", text)


def _storable(raw: Any) -> Any:
    if isinstance(raw, str):
        return storable(raw)
    if isinstance(raw, list):
        return [_storable(one) for one in raw]
    if isinstance(raw, dict):
        return {_storable(key): _storable(value) for key, value in raw.items()}
    return raw


def _paths(messages: Any, prefix: str) -> dict[str, str]:
    """Flatten marshmallow's messages to `alerts[3].startsAt` -> text, at most `_SHOWN_ERRORS`."""
    found: dict[str, str] = {}
    for key, value in messages.items():
        if isinstance(key, int):
            path = f"{prefix}[{key}]"
        elif key == "_schema":
            path = prefix
        else:
            path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, dict):
            found |= _paths(value, path)
        else:
            found[path] = " ".join(value)
    return dict(list(found.items())[:_SHOWN_ERRORS])
