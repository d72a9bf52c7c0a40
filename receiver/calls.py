"""From an alert to the arguments that an action plugin is called with.

Whatever an alert holds, there is a call: what is missing or malformed becomes a warning, for the
alert itself says that the threshold was crossed. The worker builds the call once, at the first
claim, and keeps it with the run; the web process never does, so it never loads the parser.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from receiver.alertmanager import Alert

if TYPE_CHECKING:
    import promql_parser as promql

#: The metric name of an alert that has neither an annotation, nor an expression, nor an alertname.
UNKNOWN_METRIC = "unknown"

_LONGEST_TEXT = 256
_SHOWN_REF_IDS = 10
_LONGEST_URL = 16_384
_LONGEST_EXPRESSION_BYTES = 2048
_MOST_OPERATORS = 200
_LONGEST_DURATION = timedelta(days=36500)
_TEMPLATE_ERROR = "<error expanding template:"

_NUMBER = re.compile(r"[+-]?\d{1,400}(?:\.\d{1,400})?(?:[eE][+-]?\d{1,4})?", re.ASCII)
_NOT_FINITE = {"NaN": math.nan, "+Inf": math.inf, "-Inf": -math.inf}
_DURATION = re.compile(
    r"(?:(?P<y>\d{1,9})y)?(?:(?P<w>\d{1,9})w)?(?:(?P<d>\d{1,9})d)?(?:(?P<h>\d{1,9})h)?"
    r"(?:(?P<m>\d{1,9})m)?(?:(?P<s>\d{1,9})s)?(?:(?P<ms>\d{1,12})ms)?",
    re.ASCII,
)

_COMMENT_OR_TEXT = re.compile(
    r"""(?P<comment>\#[^\r\n]*)
    | (?P<text>"(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*' | `[^`]*`)
    | (?P<unclosed>["'`])""",
    re.VERBOSE,
)
_OPERATOR = re.compile(r"[()\[\]{}@^*/%+\-<>=!~]|\b(?:and|or|unless|atan2|bool|offset)\b", re.I)
_STAND_IN = re.compile(r'"s(\d+)"')
_MIRRORED = {">": "<", ">=": "<=", "<": ">", "<=": ">=", "==": "==", "!=": "!="}
_ABOUT_ALERTS = ("ALERTS", "ALERTS_FOR_STATE")


@dataclass(frozen=True, slots=True)
class Call:
    """What `execute` is called with besides its context; `warnings` says what had to be guessed."""

    metric_name: str
    value: float
    threshold: str
    duration: timedelta
    warnings: tuple[str, ...]

    def to_json(self) -> str:
        """Return the call as it is kept with its run; the value may be NaN or infinite."""
        return json.dumps(
            {
                "metric_name": self.metric_name,
                "value": self.value if math.isfinite(self.value) else _number_text(self.value),
                "threshold": self.threshold,
                "duration_seconds": self.duration.total_seconds(),
                "warnings": self.warnings,
            },
            ensure_ascii=False,
            allow_nan=False,
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> "Call":
        """Return the call that `to_json` wrote."""
        raw = json.loads(text)
        return cls(
            raw["metric_name"],
            float(raw["value"]),
            raw["threshold"],
            timedelta(seconds=raw["duration_seconds"]),
            tuple(raw["warnings"]),
        )


def call_of(alert: Alert, received_at: datetime, grafana_value: str = "") -> Call:
    """Return the call for an alert; never raises, whatever the alert holds.

    The alert's own annotations come first. The expression in `generatorURL` stands in for a missing
    `metric_name` or `threshold`, and is parsed only then. `grafana_value` is the refID of the value
    in an alert of Grafana.
    """
    warnings: list[str] = []
    metric_name = _annotation(alert, "metric_name", warnings)
    threshold = _annotation(alert, "threshold", warnings)
    found = _Facts() if metric_name and threshold else _expression_facts(alert.generator_url)
    metric_name = metric_name or found.metric
    if not metric_name:
        metric_name = alert.name or UNKNOWN_METRIC
        why = found.why or "the expression of generatorURL names no metric"
        warnings.append(
            f"metric_name: no annotation gives it, and {why}; {_quoted(metric_name)} is used"
        )
    threshold = threshold or found.threshold
    if not threshold:
        why = found.why or "the expression of generatorURL compares with nothing"
        warnings.append(f"threshold: no annotation gives it, and {why}; it is empty")
    return Call(
        _bounded("metric_name", metric_name, warnings),
        _value(alert, grafana_value, warnings),
        _bounded("threshold", threshold, warnings),
        _rule_for(alert, warnings) + _time_firing(alert, received_at, warnings),
        tuple(warnings),
    )


def _annotation(alert: Alert, name: str, warnings: list[str]) -> str | None:
    """Return the annotation: None when it is missing or blank, empty when its template failed."""
    text = alert.annotations.get(name, "").strip()
    if _TEMPLATE_ERROR in text:
        warnings.append(f"annotation {name}: its template failed; mend the alert rule")
        return ""
    return text or None


def _bounded(name: str, text: str, warnings: list[str]) -> str:
    if len(text) > _LONGEST_TEXT:
        warnings.append(f"{name}: is cut after {_LONGEST_TEXT} of {len(text)} characters")
    return text[:_LONGEST_TEXT]


def _quoted(text: str) -> str:
    return json.dumps(text if len(text) <= 60 else text[:59] + "…", ensure_ascii=False)


def _value(alert: Alert, grafana_value: str, warnings: list[str]) -> float:
    text = _annotation(alert, "value", warnings)
    if text is None and alert.values is not None:
        return _grafana_value(alert.values, grafana_value, warnings)
    if text is None:
        warnings.append("annotation value: is missing; write '{{ $value }}'; the value is NaN")
    elif text in _NOT_FINITE:
        return _NOT_FINITE[text]
    elif text:
        # Stricter than float(): that reads 1_000 as 1000 and 1e400 as infinite.
        number = float(text) if _NUMBER.fullmatch(text) else math.inf
        if math.isfinite(number):
            return number
        warnings.append(
            f"annotation value: {_quoted(text)} is not a number as Prometheus prints it; "
            "write '{{ $value }}'; the value is NaN"
        )
    return math.nan


def _grafana_value(values: Mapping[str, float], ref_id: str, warnings: list[str]) -> float:
    """Return the value that Grafana measured: the entry of the refID, or the only one."""
    if ref_id in values:
        return float(values[ref_id])
    if len(values) == 1:
        return float(next(iter(values.values())))
    names = ", ".join([_quoted(name) for name in list(values)[:_SHOWN_REF_IDS]])
    if ref_id:
        why = f"RECEIVER_GRAFANA_VALUE is {_quoted(ref_id)}, and values has {names or 'no entry'}"
    elif values:
        why = f"values has {names}: set RECEIVER_GRAFANA_VALUE to one of them"
    else:
        why = "values is empty, as it is when one of them is not finite"
    warnings.append(
        f"annotation value: is missing, and {why}; write '{{{{ $values.A.Value }}}}' with the "
        "rule's own refID; the value is NaN"
    )
    return math.nan


def _rule_for(alert: Alert, warnings: list[str]) -> timedelta:
    """Return how long the condition held before the alert fired, as its annotations say."""
    texts = {name: _annotation(alert, name, warnings) for name in ("for", "duration")}
    for name, text in texts.items():
        if text:
            duration = _duration(text)
            if duration is not None:
                return duration
            warnings.append(
                f"annotation {name}: {_quoted(text)} is not a duration of up to 100 years; "
                "write 30s, 5m or 1h30m"
            )
    if set(texts.values()) == {None}:
        warnings.append(
            "annotation for: is missing; write the rule's own `for`, or 0s; "
            "the duration counts from startsAt"
        )
    return timedelta()


def _duration(text: str) -> timedelta | None:
    match = _DURATION.fullmatch("0s" if text == "0" else text)
    if not match:
        return None
    part = {unit: int(number or 0) for unit, number in match.groupdict().items()}
    try:
        duration = timedelta(
            days=365 * part["y"] + part["d"], weeks=part["w"], hours=part["h"],
            minutes=part["m"], seconds=part["s"], milliseconds=part["ms"],
        )  # fmt: skip
    except OverflowError:
        return None
    return duration if duration <= _LONGEST_DURATION else None


def _time_firing(alert: Alert, received_at: datetime, warnings: list[str]) -> timedelta:
    firing = received_at - alert.starts_at
    if timedelta() <= firing <= _LONGEST_DURATION:
        return firing
    wrong = "is later than the receipt; compare the clocks"
    if firing > _LONGEST_DURATION:
        wrong = "is more than 100 years ago"
    warnings.append(
        f"startsAt: {alert.starts_at.isoformat()} {wrong}; the duration does not count from it"
    )
    return timedelta()


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is known of a part of an expression; `why` says why nothing is known of the whole."""

    metric: str = ""
    threshold: str = ""
    is_constant: bool = False
    why: str = ""


def _expression_facts(generator_url: str) -> _Facts:
    """Return what the expression in the URL says. The URL is read, never followed."""
    try:
        expression = _expression_in(generator_url)
        if not expression:
            return _Facts(why="generatorURL holds no expression")
        plain, texts = _without_texts(expression)
        return _parsed_facts(plain, texts)
    except ValueError as error:
        return _Facts(why=f"the expression of generatorURL is not read: {error}")


def _expression_in(url: str) -> str:
    if len(url) > _LONGEST_URL:
        raise ValueError(f"the URL is longer than {_LONGEST_URL} characters")
    try:
        query = urlsplit(url).query
        expression = parse_qs(query, max_num_fields=100).get("g0.expr", [""])[0]
    except ValueError:
        raise ValueError("the URL is malformed") from None
    if len(expression.encode("utf-8", "surrogatepass")) > _LONGEST_EXPRESSION_BYTES:
        raise ValueError(f"it is longer than {_LONGEST_EXPRESSION_BYTES} bytes")
    # %00 was no NUL yet when the edge replaced those: no database stores it.
    return expression.replace("\0", "\ufffd")


def _without_texts(expression: str) -> tuple[str, list[str]]:
    """Return the expression with a stand-in for every quoted text, and the texts as written.

    The parser compiles each regular expression: sixty of `\\pL{200}` take it seconds, and it
    refuses some that Go reads. Neither concerns the metric or the comparison.
    """
    texts: list[str] = []

    def stand_in(match: re.Match[str]) -> str:
        if match["unclosed"]:
            raise ValueError("a quoted text in it is not closed")
        if match["comment"] is not None:
            return " "
        texts.append(match[0])
        return f'"s{len(texts) - 1}"'

    plain = _COMMENT_OR_TEXT.sub(stand_in, expression)
    if len(_OPERATOR.findall(plain)) > _MOST_OPERATORS:
        raise ValueError(f"it has more than {_MOST_OPERATORS} brackets and operators")
    return plain, texts


def _parsed_facts(plain: str, texts: list[str]) -> _Facts:
    # Here, at the first expression, so that only the process that builds calls loads it.
    import promql_parser

    try:
        tree = promql_parser.parse(plain)
    except ValueError as error:
        raise ValueError(f"it is not PromQL: {_quoted(str(error))}") from None
    except BaseException as error:
        # `offset 1e999` makes the parser panic, and a panic of Rust is no Exception in Python.
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the parser gave up: {_quoted(str(error))}") from None
    return _Reader(texts).facts_of(tree)


class _Reader:
    """Reads the syntax tree of one expression, whose quoted texts are `texts`."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts

    def facts_of(self, node: object) -> _Facts:
        """Return the metric that the value of a node comes from, and what it is compared with."""
        import promql_parser as promql

        if isinstance(node, promql.BinaryExpr):
            return self._binary_facts(node, self.facts_of(node.lhs), self.facts_of(node.rhs))
        if isinstance(node, promql.ParenExpr | promql.UnaryExpr | promql.SubqueryExpr):
            return self.facts_of(node.expr)
        if isinstance(node, promql.AggregateExpr):
            return _joined(self.facts_of(node.expr), self.facts_of(node.param))
        if isinstance(node, promql.Call):
            return _call_facts(node.func.name, [self.facts_of(one) for one in node.args])
        if isinstance(node, promql.MatrixSelector):
            return _Facts(self._metric_of(node.vector_selector))
        if isinstance(node, promql.VectorSelector):
            return _Facts(self._metric_of(node))
        return _Facts(is_constant=True)

    def _binary_facts(self, node: "promql.BinaryExpr", left: _Facts, right: _Facts) -> _Facts:
        operator = str(node.op)
        if operator in _MIRRORED:
            # 80 < foo is crossed when foo > 80.
            if left.is_constant and not right.is_constant:
                threshold = f"{_MIRRORED[operator]} {self._text_of(node.lhs)}"
            else:
                threshold = f"{operator} {self._text_of(node.rhs)}"
        elif operator in ("and", "unless"):
            # The value comes from the left; `unless b > 5` holds while b is not above 5.
            threshold = left.threshold
        else:
            return _joined(left, right)
        return _Facts(_metric_among(left, right), threshold, left.is_constant and right.is_constant)

    def _metric_of(self, selector: "promql.VectorSelector") -> str:
        import promql_parser as promql

        if selector.name:
            return selector.name
        for matcher in selector.matchers.matchers:
            if matcher.name == "__name__" and matcher.op == promql.MatchOp.Equal:
                return self._with_texts(f'"{matcher.value}"')[1:-1]
        return ""

    def _text_of(self, node: object) -> str:
        """Return a side of a comparison as PromQL."""
        import promql_parser as promql

        inner = node
        while isinstance(inner, promql.ParenExpr):
            inner = inner.expr
        if isinstance(inner, promql.NumberLiteral):
            return _number_text(inner.val)
        # The parser writes foo{} for foo. No quoted text is in it yet that this could spoil.
        return self._with_texts(" ".join(str(node).replace("{}", "").split()))

    def _with_texts(self, plain: str) -> str:
        return _STAND_IN.sub(lambda match: self._texts[int(match[1])], plain)


def _call_facts(function: str, arguments: list[_Facts]) -> _Facts:
    joined = _joined(*arguments)
    if function in ("absent", "absent_over_time"):
        # It has a value while nothing in it crosses anything.
        return replace(joined, threshold="")
    return replace(joined, is_constant=True) if function == "scalar" else joined


def _joined(*parts: _Facts) -> _Facts:
    """Return metric and threshold of the first part that compares, else the first metric."""
    first = sorted(parts, key=lambda part: not part.threshold)
    return _Facts(
        _metric_among(*first),
        first[0].threshold if first else "",
        all(part.is_constant for part in parts),
    )


def _metric_among(*parts: _Facts) -> str:
    """Return the first metric, if possible not of a constant part and not about alerts."""
    found = [part.metric for part in sorted(parts, key=lambda part: part.is_constant)]
    named = [metric for metric in found if metric]
    return next((one for one in named if one not in _ABOUT_ALERTS), named[0] if named else "")


def _number_text(number: float) -> str:
    if math.isfinite(number):
        return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)
    return "NaN" if math.isnan(number) else f"{number:+}".replace("inf", "Inf")
