"""The notification that Alertmanager or Grafana posts: parsed once, here, into frozen dataclasses.

https://prometheus.io/docs/alerting/latest/configuration/#webhook_config describes the body. Grafana
sends the same with the version "1" and more keys in each alert. Unknown keys are ignored at every
level. NUL characters and lone surrogates, which no database stores, are replaced by U+FFFD.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

from receiver.alert import Alert, parse_texts, plain_alert, unusual_alert
from receiver.errors import NotificationError
from receiver.fingerprint import fingerprint_of

__all__ = [
    "Alert",
    "AlertList",
    "Notification",
    "NotificationSchema",
    "parse_notification",
    "storable",
]

# Commas and opening brackets of a body. A value takes at most about 150 bytes of memory, so a body
# of the largest size takes no more than twice the memory of its bytes.
_MOST_VALUES = 1_500_000
# As many are recorded in the time that Alertmanager waits; more would fail for ever, and keep
# others waiting each time.
_MOST_ALERTS = 50_000
# Alertmanager sends each once; here they are recorded one after the other, for each may end the
# episode before it.
_MOST_REPEATS = 1_000
_LONGEST_ENVELOPE_TEXT = 2_048
# So many are counted exactly, again and again; no group has as many.
_MOST_TRUNCATED = 1_000_000_000
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# A body in which this finds nothing holds no such character: as an escape, or as raw bytes.
_UNSTORABLE_RAW = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])|\xed[\xa0-\xbf]")


@dataclass(frozen=True, slots=True)
class Notification:
    """One webhook request body."""

    receiver: str
    status: str
    alerts: tuple[Alert, ...]
    group_key: str
    external_url: str
    truncated_alerts: int


class AlertList(fields.Field[tuple[Alert, ...]]):
    """The field `alerts`. Each alert is read alone, so that a wrong one never spoils its siblings.

    A fast path: one flat loop over alerts as Alertmanager sends them, about thirty times faster
    than a nested schema. `unusual_alert` reads all others, field by field.
    """

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any
    ) -> tuple[Alert, ...]:
        del attr, data, kwargs
        if not isinstance(value, list):
            raise ValidationError("Not a list.")
        if len(value) > _MOST_ALERTS:
            raise ValidationError(f"More than {_MOST_ALERTS}; group them by more labels.")
        alerts = []
        for raw in value:
            try:
                alerts.append(plain_alert(raw))
            except (KeyError, TypeError, ValueError, AttributeError):
                alerts.append(unusual_alert(raw))
        if len(alerts) > _MOST_REPEATS:
            repeats = Counter([one.fingerprint for one in alerts])
            if max(repeats.values()) > _MOST_REPEATS:
                raise ValidationError(f"More than {_MOST_REPEATS} of the same fingerprint.")
        return tuple(alerts)


def _check_version(value: Any) -> None:
    version = str(value) if value.__class__ is int else value
    if version not in ("4", "1"):
        raise ValidationError('Must be "4" (Alertmanager) or "1" (Grafana).')


class NotificationSchema(Schema):
    """The envelope. What the receiver does not use is not checked: it could become another."""

    class Meta:
        unknown = EXCLUDE

    version = fields.Raw(required=True, validate=_check_version)
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

    Raises NotificationError, naming each wrong field of the envelope, when it is not JSON or not a
    notification. An alert that is wrong has a `problem`, and spoils no other.
    """
    if len(body) > _MOST_VALUES and sum(map(body.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise NotificationError(
            f"the body holds more than {_MOST_VALUES} JSON values; group the alerts by more labels"
        )
    try:
        if json.detect_encoding(body) not in ("utf-8", "utf-8-sig"):
            raise NotificationError("the body is not JSON: it is not in UTF-8")
        raw = json.loads(body)
        if _UNSTORABLE_RAW.search(body):
            _fill_in_fingerprints(raw)
            _make_storable(raw)
        if not isinstance(raw, dict):
            raise NotificationError("the body is not a notification: not a JSON object")
        values = _SCHEMA.load(raw)
    except RecursionError:
        raise NotificationError("the body is nested too deeply") from None
    except ValidationError as error:
        messages: Any = error.messages
        raise NotificationError(
            "the body is not a notification of Alertmanager or Grafana",
            {field: " ".join(texts) for field, texts in messages.items()},
        ) from None
    except ValueError as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "cannot be decoded"
        raise NotificationError(f"the body is not JSON: {reason}") from None
    del values["version"]
    # Each run keeps them.
    for name in ("receiver", "group_key", "external_url"):
        values[name] = values[name][:_LONGEST_ENVELOPE_TEXT]
    return Notification(**values)


def storable(text: str) -> str:
    """Return a text as every database can store it: NUL and lone surrogates are replaced."""
    return _UNSTORABLE.sub("\ufffd", text)


def _fill_in_fingerprints(raw: Any) -> None:
    """Compute missing fingerprints while NUL characters still stand in the labels."""
    alerts = raw.get("alerts") if isinstance(raw, dict) else None
    for alert in alerts if isinstance(alerts, list) else ():
        if isinstance(alert, dict) and alert.get("fingerprint") in (None, ""):
            with suppress(ValueError):
                labels = parse_texts(alert.get("labels"))
                if any(labels.values()):
                    whole = {_SURROGATE.sub("\ufffd", one): two for one, two in labels.items()}
                    texts = {one: _SURROGATE.sub("\ufffd", two) for one, two in whole.items()}
                    alert["fingerprint"] = fingerprint_of(texts)


def _make_storable(raw: Any) -> None:
    """Replace, in place, what no database stores; a copy would take as much memory again."""
    if isinstance(raw, list):
        for index, value in enumerate(raw):
            if isinstance(value, str):
                raw[index] = storable(value)
            else:
                _make_storable(value)
    elif isinstance(raw, dict):
        items = list(raw.items())
        raw.clear()
        for name, value in items:
            if not isinstance(value, str):
                _make_storable(value)
            raw[storable(name)] = storable(value) if isinstance(value, str) else value
