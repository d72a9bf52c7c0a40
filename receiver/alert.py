"""One alert of a notification: what is kept of it, and how each field of it is read.

A wrong field makes the alert one that cannot run, with a `problem`, and never raises.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from receiver.fingerprint import fingerprint_of

_Value = TypeVar("_Value")
#: The startsAt of an alert that has none that can be read: Go's zero time.
NO_START = datetime(1, 1, 1, tzinfo=UTC)
#: Bytes of JSON that the journal keeps of one alert.
LARGEST_ALERT = 64 * 1024
# It is part of keys that are indexed, and an index entry has a limit; real ones have 16.
_LONGEST_FINGERPRINT = 128
# Characters of a label, annotation or URL that are kept: more is cut, for the alert itself is real.
_LONGEST_TEXT = 16_384
# The same where an alert is still too large, one after the other.
_CUTS = (_LONGEST_TEXT, 4096, 1024, 256)
# Characters of an alert that are less than `LARGEST_ALERT` as JSON, however they are escaped.
_SURELY_SMALL = 8192
_ALERTMANAGER_KEYS = 7
# Of Grafana's `values`.
_MOST_REF_IDS = 100
_LONGEST_REF_ID = 100
# These alerts of Grafana carry all labels of their rule, and so its action's name too.
_GRAFANA_FAILURES = {
    name: f"Grafana sends {name} when {what}, which says nothing about the rule's condition; to "
    f"run the action then too, set the rule's `{setting}` to Alerting"
    for name, what, setting in (
        ("DatasourceError", "a rule's query fails", "Alert state if execution error or timeout"),
        ("DatasourceNoData", "a rule's query returns nothing", "Alert state if no data"),
    )
}
_ZERO_TIME = re.compile(r"0001-01-01[Tt]00:00:00(?:\.0{1,9})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)
_TIME = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII
)
_KEPT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Alert:
    """One element of `alerts`: a condition at one moment, identified by `fingerprint`.

    `values` are Grafana's, by refID; None from Alertmanager. `problem` says why no action can run;
    then `starts_at` may be NO_START, and the status of what is neither firing nor resolved is
    `unknown`.
    """

    status: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    starts_at: datetime
    ends_at: datetime | None
    generator_url: str
    fingerprint: str
    values: Mapping[str, float] | None = None
    problem: str = ""

    @property
    def is_resolved(self) -> bool:
        """Whether Alertmanager says that it fires no more."""
        return self.status == "resolved"

    @property
    def name(self) -> str:
        """The label `alertname`, empty when it is missing."""
        return self.labels.get("alertname", "")

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        texts = (self.labels, self.annotations)
        return sum([len(one) + len(two) for some in texts for one, two in some.items()])

    def to_json(self) -> str:
        """Return the alert as it is kept in the journal, in Alertmanager's own keys."""
        kept: dict[str, Any] = {
            "status": self.status,
            "labels": self.labels,
            "annotations": self.annotations,
            "startsAt": self.starts_at.isoformat(),
            "endsAt": self.ends_at.isoformat() if self.ends_at else None,
            "generatorURL": self.generator_url,
            "fingerprint": self.fingerprint,
        }
        if self.values is not None:
            kept["values"] = self.values
        if self.problem:
            kept["problem"] = self.problem
        return _KEPT.encode(kept)

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
            raw.get("values"),
            raw.get("problem", ""),
        )


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


def plain_alert(raw: dict[str, Any]) -> Alert:
    """Return an alert as Alertmanager sends it; raise one of four errors for any other."""
    labels, annotations = raw["labels"], raw.get("annotations")
    fingerprint, generator_url = raw["fingerprint"], raw.get("generatorURL")
    annotations = {} if annotations is None else annotations
    generator_url = "" if generator_url is None else generator_url
    status = raw["status"]
    size = len(generator_url)
    for texts in (labels, annotations):
        for name, text in texts.items():
            if text.__class__ is not str:
                raise TypeError
            size += len(name) + len(text) + 1
    if (
        size > _SURELY_SMALL
        or (status != "firing" and status != "resolved")
        or fingerprint.__class__ is not str
        or not 0 < len(fingerprint) <= _LONGEST_FINGERPRINT
        or generator_url.__class__ is not str
        or "rulename" in labels
        or (len(raw) > _ALERTMANAGER_KEYS and ("values" in raw or "valueString" in raw))
    ):
        raise ValueError
    return Alert(
        status,
        labels,
        annotations,
        _parse_time(raw["startsAt"]),
        _parse_end(raw.get("endsAt")),
        generator_url,
        fingerprint,
    )


def unusual_alert(raw: Any) -> Alert:
    """Return an alert of Grafana, a large one, or what can be read of a malformed one.

    A malformed alert that is resolved stays so if its fingerprint is known: it closes what that
    finds, whatever else is wrong.
    """
    if not isinstance(raw, dict):
        return Alert(
            "unknown", {}, {}, NO_START, None, "", _hash_of(raw),
            problem="the alert is malformed: it is not an object",
        )  # fmt: skip
    wrong: dict[str, str] = {}
    none: dict[str, str] = {}

    def read(key: str, parse: Callable[[Any], _Value], otherwise: _Value) -> _Value:
        try:
            return parse(raw.get(key))
        except ValueError as error:
            wrong[key] = str(error)
            return otherwise

    status = read("status", _parse_status, "unknown")
    labels = read("labels", _parse_labels, none)
    annotations = read("annotations", parse_texts, none)
    starts_at = read("startsAt", _parse_time, NO_START)
    ends_at = read("endsAt", _parse_end, None)
    generator_url = read("generatorURL", _parse_url, "")
    fingerprint = read("fingerprint", _parse_fingerprint, "")
    if not fingerprint and any(labels.values()):
        fingerprint = fingerprint_of(labels)
    if not fingerprint:
        fingerprint, status = _hash_of(raw), "unknown"
        wrong.setdefault("fingerprint", "is missing, and there are no labels to compute it from")
    values = _parse_values(raw["values"]) if "values" in raw else None
    if values is None and "valueString" in raw:
        values = {}
    name = labels.get("alertname", "")
    problem = ""
    if wrong:
        reasons = "; ".join([f"{key} {why}" for key, why in wrong.items()])
        problem = f"the alert is malformed: {reasons}"
    elif name in _GRAFANA_FAILURES and (values is not None or "rulename" in labels):
        problem = _GRAFANA_FAILURES[name]
    alert = Alert(
        status, labels, annotations, starts_at, ends_at, generator_url, fingerprint, values, problem
    )
    return bounded(alert)


def _hash_of(raw: Any) -> str:
    """Return what stands for the fingerprint of an element that has none: the same each time."""
    return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()


def _parse_status(value: Any) -> str:
    if value == "firing" or value == "resolved":
        return str(value)
    raise ValueError("must be firing or resolved")


def _parse_labels(value: Any) -> dict[str, str]:
    if value is None:
        raise ValueError("are missing")
    return parse_texts(value)


def parse_texts(value: Any) -> dict[str, str]:
    """Return labels or annotations: a number or boolean becomes text, null means absent."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("must be an object of texts")
    texts = {}
    for name, text in value.items():
        if isinstance(text, str):
            texts[name] = text
        elif isinstance(text, bool):
            texts[name] = "true" if text else "false"
        elif isinstance(text, float) and not math.isfinite(text):
            texts[name] = "NaN" if math.isnan(text) else "+Inf" if text > 0 else "-Inf"
        elif isinstance(text, int | float):
            texts[name] = str(text)
        elif text is not None:
            raise ValueError(f"must be an object of texts, and {name[:60]!r} is none")
    return texts


def _parse_fingerprint(value: Any) -> str:
    """Return a fingerprint, empty where it is missing."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError("is not a text")
    if len(value) > _LONGEST_FINGERPRINT:
        raise ValueError(f"is longer than {_LONGEST_FINGERPRINT} characters")
    return value


def _parse_url(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError("is not a text")
    return value


def _parse_values(value: Any) -> dict[str, float]:
    """Return Grafana's `values`, by refID; null when there are none, or one is not finite."""
    values: dict[str, float] = {}
    for name, number in value.items() if isinstance(value, dict) else ():
        if isinstance(number, int | float) and not isinstance(number, bool):
            with suppress(OverflowError):
                if math.isfinite(number) and len(name) <= _LONGEST_REF_ID:
                    values[name] = float(number)
        if len(values) == _MOST_REF_IDS:
            break
    return values


def bounded(alert: Alert) -> Alert:
    """Return an alert that takes at most `LARGEST_ALERT` bytes of JSON; longer texts are cut.

    Annotations are cut first, because labels identify what an action acts on.
    """
    is_long = any(
        len(text) > _LONGEST_TEXT
        for texts in (alert.labels, alert.annotations)
        for pair in texts.items()
        for text in pair
    )
    if not is_long and len(alert.generator_url) <= _LONGEST_TEXT and _is_small(alert):
        return alert
    cut = replace(alert, labels=_cut_all(alert.labels, _LONGEST_TEXT))
    for longest in _CUTS:
        cut = replace(
            cut,
            annotations=_cut_all(alert.annotations, longest),
            generator_url=_cut(alert.generator_url, longest),
        )
        if _is_small(cut):
            return cut
    for longest in _CUTS[1:]:
        cut = replace(cut, labels=_cut_all(alert.labels, longest))
        if _is_small(cut):
            return cut
    number = len(alert.labels) + len(alert.annotations)
    names = {"alertname": _cut(alert.name, _CUTS[-1])} if alert.name else {}
    return replace(
        alert, labels=names, annotations={}, generator_url="", values=None,
        problem=f"the alert is too large: {number} labels and annotations, which take more than "
        f"{LARGEST_ALERT} bytes even when each is cut to {_CUTS[-1]} characters",
    )  # fmt: skip


def _is_small(alert: Alert) -> bool:
    # First what costs little: JSON has at least a byte for each character.
    return alert.size <= LARGEST_ALERT and len(alert.to_json().encode()) <= LARGEST_ALERT


def _cut_all(texts: Mapping[str, str], longest: int) -> dict[str, str]:
    return {_cut(name, longest): _cut(text, longest) for name, text in texts.items()}


def _cut(text: str, longest: int) -> str:
    """Return a text as it is kept, with what was left out at its end."""
    left = len(text) - longest
    return f"{text[:longest]}… (cut: {left} characters more)" if left > 0 else text
