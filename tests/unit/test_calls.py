"""From alert to call: every table of DESIGN section 3, and alerts that nobody would write."""

import json
import math
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.alertmanager import Alert, parse_notification
from receiver.calls import UNKNOWN_METRIC, Call, call_of
from tests.support.documents import ROOT

PAYLOADS = ROOT / "tests" / "payloads"
STARTS_AT = datetime(2026, 11, 22, 14, 4, 10, 807000, tzinfo=UTC)
RECEIVED_AT = STARTS_AT + timedelta(seconds=2)
COMPLETE = {"metric_name": "foo", "value": "90", "threshold": "80", "for": "5m"}
TEMPLATE_ERROR = "<error expanding template: error executing template __alert_X: nope>"


def graph_url(expression: str) -> str:
    return f"http://prometheus.example:9090/graph?g0.expr={quote_plus(expression)}&g0.tab=1"


def an_alert(
    annotations: dict[str, str] | None = None,
    *,
    expression: str | None = None,
    url: str = "",
    name: str = "HighLoad",
    starts_at: datetime = STARTS_AT,
) -> Alert:
    return Alert(
        "firing",
        {"alertname": name} if name else {},
        annotations or {},
        starts_at,
        None,
        url if expression is None else graph_url(expression),
        "686559e8d47da46f",
    )


def call_with(**annotations: str) -> Call:
    return call_of(an_alert(COMPLETE | annotations), RECEIVED_AT)


def call_from(expression: str) -> Call:
    """Return the call of an alert whose metric and threshold only its expression says."""
    return call_of(an_alert({"value": "90", "for": "0s"}, expression=expression), RECEIVED_AT)


def test_complete_annotations_give_the_call_without_a_warning() -> None:
    call = call_of(an_alert(COMPLETE, expression="bar > 1"), RECEIVED_AT)

    assert call == Call("foo", 90.0, "80", timedelta(minutes=5, seconds=2), ())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("90", 90.0),
        ("0", 0.0),
        ("-42.5", -42.5),
        ("1e+09", 1e9),
        ("1.23456789e+08", 123456789.0),
        ("5e-324", 5e-324),
        ("1.7976931348623157e+308", 1.7976931348623157e308),
        ("93.20", 93.2),
        ("+5", 5.0),
        ("+Inf", math.inf),
        ("-Inf", -math.inf),
        ("90\n", 90.0),
    ],
)
def test_value_is_read_as_prometheus_prints_it(text: str, value: float) -> None:
    call = call_with(value=text)

    assert call.value == value
    assert call.warnings == ()


def test_value_nan_is_a_value_and_no_warning() -> None:
    call = call_with(value="NaN")

    assert math.isnan(call.value)
    assert call.warnings == ()


@pytest.mark.parametrize(
    "text",
    [
        "93.2%", "1_000", "12,5", "1.5 GiB", "1e400", "-1e400", "9" * 400, "9" * 5000, "1 000",
        "\u0669\u0660", "\uff19\uff10", "inf", "Inf", "Infinity", "nan", "0x10", ".5", "5.", "1e",
        "--1", "90 %", "<no value>", TEMPLATE_ERROR,
    ],
    ids=ascii,
)  # fmt: skip
def test_value_that_is_malformed_becomes_nan_with_a_warning(text: str) -> None:
    call = call_with(value=text)

    assert math.isnan(call.value)
    assert [warning.partition(":")[0] for warning in call.warnings] == ["annotation value"]
    assert len(call.warnings[0]) < 300


@pytest.mark.parametrize("annotations", [{}, {"value": ""}, {"value": " \n"}], ids=repr)
def test_value_that_is_missing_becomes_nan_with_a_warning(annotations: dict[str, str]) -> None:
    rest = {"metric_name": "foo", "threshold": "80", "for": "5m"}

    call = call_of(an_alert(rest | annotations), RECEIVED_AT)

    assert math.isnan(call.value)
    assert call.warnings == (
        "annotation value: is missing; write '{{ $value }}'; the value is NaN",
    )


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("0", timedelta()),
        ("0s", timedelta()),
        ("30s", timedelta(seconds=30)),
        ("500ms", timedelta(milliseconds=500)),
        ("5m", timedelta(minutes=5)),
        ("1h30m", timedelta(minutes=90)),
        ("1d2h3m4s5ms", timedelta(days=1, hours=2, minutes=3, seconds=4, milliseconds=5)),
        ("1y2w", timedelta(days=379)),
        ("100y", timedelta(days=36500)),
        (" 5m\n", timedelta(minutes=5)),
    ],
)
@pytest.mark.parametrize("name", ["for", "duration"])
def test_duration_adds_the_annotation_to_the_time_firing(
    name: str, text: str, duration: timedelta
) -> None:
    annotations = {"metric_name": "foo", "value": "90", "threshold": "80", name: text}

    call = call_of(an_alert(annotations), RECEIVED_AT)

    assert call.duration == duration + timedelta(seconds=2)
    assert call.warnings == ()


@pytest.mark.parametrize(
    "text",
    [
        "5", "5 m", "5min", "-5m", "1.5h", "30m1h", "101y", "9" * 9 + "y", "9" * 5000 + "s",
        "\u0665m", "1h 30m 0s", TEMPLATE_ERROR,
    ],
    ids=ascii,
)  # fmt: skip
def test_duration_that_is_malformed_is_left_out_with_a_warning(text: str) -> None:
    call = call_with(**{"for": text})

    assert call.duration == timedelta(seconds=2)
    assert [warning.partition(":")[0] for warning in call.warnings] == ["annotation for"]


def test_duration_annotation_stands_in_for_a_malformed_for() -> None:
    call = call_with(**{"for": "soon", "duration": "10m"})

    assert call.duration == timedelta(minutes=10, seconds=2)
    assert len(call.warnings) == 1


def test_for_annotation_goes_before_duration() -> None:
    assert call_with(**{"for": "1m", "duration": "10m"}).duration == timedelta(seconds=62)


def test_duration_counts_from_starts_at_when_no_annotation_says_more() -> None:
    annotations = {"metric_name": "foo", "value": "90", "threshold": "80"}

    call = call_of(an_alert(annotations), RECEIVED_AT)

    assert call.duration == timedelta(seconds=2)
    assert [warning.partition(":")[0] for warning in call.warnings] == ["annotation for"]


@pytest.mark.parametrize(
    "starts_at",
    [
        RECEIVED_AT + timedelta(milliseconds=1),
        datetime.max.replace(tzinfo=UTC),
        datetime.min.replace(tzinfo=UTC),
    ],
    ids=["clock ahead", "last instant", "first instant"],
)
def test_duration_is_only_the_annotation_when_starts_at_cannot_be(starts_at: datetime) -> None:
    call = call_of(an_alert(COMPLETE, starts_at=starts_at), RECEIVED_AT)

    assert call.duration == timedelta(minutes=5)
    assert [warning.partition(":")[0] for warning in call.warnings] == ["startsAt"]


@pytest.mark.parametrize(
    ("expression", "metric_name", "threshold"),
    [
        ("foo > 80", "foo", "> 80"),
        ("foo >= 80.5", "foo", ">= 80.5"),
        ("foo < 80", "foo", "< 80"),
        ("foo <= 80", "foo", "<= 80"),
        ("foo == 0", "foo", "== 0"),
        ("foo != 0", "foo", "!= 0"),
        ("foo > -5", "foo", "> -5"),
        ("foo > +Inf", "foo", "> +Inf"),
        ("foo > -Inf", "foo", "> -Inf"),
        ("foo > NaN", "foo", "> NaN"),
        ("foo > 1e+09", "foo", "> 1000000000"),
        ("foo > 1e-07", "foo", "> 1e-07"),
        ("foo > 1e300", "foo", "> 1e+300"),
        ("foo > 5 * 1024 ^ 2", "foo", "> 5 * 1024 ^ 2"),
        ("80 < foo", "foo", "> 80"),
        ("80 <= bool foo", "foo", ">= 80"),
        ("80 > foo", "foo", "< 80"),
        ("80 >= foo", "foo", "<= 80"),
        ("0 == foo", "foo", "== 0"),
        ("vector(80) < foo", "foo", "> vector(80)"),
        ("scalar(limit) < foo", "foo", "> scalar(limit)"),
        ("foo > scalar(limit)", "foo", "> scalar(limit)"),
        ("foo > bool 80", "foo", "> 80"),
        ("((foo > ((80))))", "foo", "> 80"),
        ("-foo > 3", "foo", "> 3"),
        ("time() - foo > 300", "foo", "> 300"),
        ("foo > time() - 300", "foo", "> time() - 300"),
        ("100 - foo / bar * 100 > 90", "foo", "> 90"),
        ("a > 1 and b < 2", "a", "> 1"),
        ("a > 1 or b < 2", "a", "> 1"),
        ("a > 1 unless b < 2", "a", "> 1"),
        ("a or b < 2", "b", "< 2"),
        ("a and b > 5", "a", ""),
        ("a unless on(x) b > 5", "a", ""),
        ("sum(foo > 5) > 3", "foo", "> 3"),
        ("max(foo > 5)", "foo", "> 5"),
        ("foo > bar", "foo", "> bar"),
        ('foo > on(x) group_left(y) bar{a="1 {} 2"}', "foo", '> bar{a="1 {} 2"}'),
        ("foo > on() (b or c)", "foo", "> (b or c)"),
        ("foo > sum by (x) (rate(bar[5m] offset 1h))", "foo",
         "> sum by (x)(rate(bar[5m] offset 1h))"),
        ("{__name__='abc', x!~'d'} > 1", "abc", "> 1"),
        ("{__name__=`abc`}", "abc", ""),
        ('{"my.metric", a="b"} > 3', "my.metric", "> 3"),
        ('{__name__=~"a.*"} > 3', "HighLoad", "> 3"),
        ("absent(foo{a='b'})", "foo", ""),
        ("absent(foo > 5)", "foo", ""),
        ("absent(up) or up < 1", "up", "< 1"),
        ("absent_over_time(foo[5m])", "foo", ""),
        ("ALERTS{alertstate='firing'} == 1", "ALERTS", "== 1"),
        ("ALERTS == 1 and on(job) foo", "foo", "== 1"),
        ("ALERTS_FOR_STATE > 1", "ALERTS_FOR_STATE", "> 1"),
        ("increase(foo[5m]) > 5", "foo", "> 5"),
        ("max_over_time(rate(foo[5m])[1h:1m]) > 5", "foo", "> 5"),
        ("topk(scalar(k), foo) > 5", "foo", "> 5"),
        ("topk(3, foo offset 5m) > 5", "foo", "> 5"),
        ("foo @ end() > 5", "foo", "> 5"),
        ("histogram_quantile(0.99, sum by (le) (rate(x_bucket[5m]))) > 1", "x_bucket", "> 1"),
        ("sum(rate(err{c=~'5..'}[5m])) / sum(rate(all[5m])) > 0.05", "err", "> 0.05"),
        ("instance:cpu:rate5m > 5 # the \"limit\"", "instance:cpu:rate5m", "> 5"),
        (r"foo{a=~`\d{3}`, b=~'\\pL{200}', c='a\'b'} > bar{a=~`\C\z`}", "foo",
         r"> bar{a=~`\C\z`}"),
        ("s0{a='x'} > s1", "s0", "> s1"),
        ("foo", "foo", ""),
        ("vector(1) > 0", "HighLoad", "> 0"),
        ("1 > bool 2", "HighLoad", "> 2"),
        ("42", "HighLoad", ""),
    ],
)  # fmt: skip
def test_expression_gives_metric_and_threshold(
    expression: str, metric_name: str, threshold: str
) -> None:
    call = call_from(expression)

    assert (call.metric_name, call.threshold) == (metric_name, threshold)
    missing = {
        name
        for name, is_missing in [
            ("metric_name", metric_name == "HighLoad"),
            ("threshold", not threshold),
        ]
        if is_missing
    }
    assert {warning.partition(":")[0] for warning in call.warnings} == missing


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("", "holds no expression"),
        ("foo >", "is not PromQL"),
        ("foo > > 5", "is not PromQL"),
        ("foo{a='b} > 5", "quoted text in it is not closed"),
        ("foo > nope(5)", "is not PromQL"),
        ("foo > $limit", "is not PromQL"),
        ("f\x00o > 5", "is not PromQL"),
        ("foo offset 1e999 > 5", "the parser gave up"),
        ("foo > 5" + " " * 2048, "longer than 2048 bytes"),
        ("foo{a='" + "ü" * 1024 + "'} > 5", "longer than 2048 bytes"),
        ("(" * 101 + "foo" + ")" * 101, "more than 200 brackets and operators"),
        ("-" * 201 + "foo", "more than 200 brackets and operators"),
        (" or ".join(["foo"] * 202), "more than 200 brackets and operators"),
    ],
    ids=lambda text: text[:30],
)
def test_expression_that_cannot_be_read_leaves_the_fallbacks_and_says_why(
    expression: str, why: str
) -> None:
    call = call_from(expression)

    assert (call.metric_name, call.threshold) == ("HighLoad", "")
    assert len(call.warnings) == 2
    assert all(why in warning and len(warning) < 300 for warning in call.warnings)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://[",
        "http://vmalert:8880/vmalert/alert?group_id=1&alert_id=2",
        "http://p:9090/graph#g0.expr=foo%20%3E%205",
        "http://p:9090/graph?g0.expr",
        "http://p:9090/graph?" + "a=b&" * 200 + "g0.expr=foo",
        "http://p:9090/graph?g0.expr=foo&x=" + "y" * 17000,
        "http://p:9090/graph?g0.expr=%ff%fe",
        "http://\u2100.example/?g0.expr=foo",
        "http://p:99999999/\ud800?g0.expr=\ud800",
        "\x00\n\r",
    ],
    ids=lambda url: ascii(url)[:60],
)
def test_generator_url_without_a_usable_expression_leaves_the_fallbacks(url: str) -> None:
    call = call_of(an_alert({"value": "90", "for": "0s"}, url=url), RECEIVED_AT)

    assert (call.metric_name, call.threshold) == ("HighLoad", "")
    assert len(call.warnings) == 2


def test_nul_escaped_in_the_url_does_not_reach_the_call() -> None:
    call = call_from('foo > bar{a="x\x00y"}')

    assert call.threshold == '> bar{a="x\ufffdy"}'


def test_metric_name_is_unknown_when_nothing_names_one() -> None:
    call = call_of(an_alert(name=""), RECEIVED_AT)

    assert call.metric_name == UNKNOWN_METRIC == "unknown"


@pytest.mark.parametrize("text", ["", "  ", TEMPLATE_ERROR], ids=["empty", "blank", "failed"])
def test_unusable_metric_name_and_threshold_are_taken_from_the_expression(text: str) -> None:
    annotations = COMPLETE | {"metric_name": text, "threshold": text}

    call = call_of(an_alert(annotations, expression="foo > 80"), RECEIVED_AT)

    assert (call.metric_name, call.threshold) == ("foo", "> 80")
    assert len(call.warnings) == (2 if text == TEMPLATE_ERROR else 0)


@pytest.mark.parametrize("name", ["metric_name", "threshold"])
def test_long_annotation_is_cut_with_a_warning(name: str) -> None:
    call = call_with(**{name: "x" * 257})

    assert getattr(call, name) == "x" * 256
    assert call.warnings == (f"{name}: is cut after 256 of 257 characters",)


def test_long_text_from_the_expression_is_cut_with_a_warning() -> None:
    call = call_from(f"{'m' * 300} > {' + '.join(['foo'] * 100)}")

    assert call.metric_name == "m" * 256
    assert len(call.threshold) == 256
    assert len(call.warnings) == 2


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ("01_single_firing", [("e2e_queue_depth", 90.0, "80", 3.0)]),
        ("02_single_resolved", [("e2e_queue_depth", 90.0, "80", 3.0)]),
        ("03_group_of_three", [("e2e_queue_depth", value, "80", 3.0) for value in (90, 91, 92)]),
        ("08_repeat_value_changed", [("e2e_queue_depth", 94.25, "80", 3.0)]),
        ("11_value_plus_inf", [("e2e_odd", math.inf, "0", 2.0)]),
        ("13_value_scientific", [("e2e_odd", 123456789.0, "0", 2.0)]),
        ("14_value_negative", [("e2e_odd", -42.5, "0", 2.0)]),
        ("15_unicode_newline", [("e2e_queue_depth", 90.0, "80", 2.0)]),
        ("17_absent_metric", [("e2e_heartbeat", 1.0, "absent", 3.0)]),
        ("18_soft_and_hard", [("e2e_queue_depth", 97.0, limit, 3.0) for limit in ("80", "95")]),
        ("33_value_in_label", [("e2e_queue_depth", 90.0, "80", 2.5)]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_recorded_alert_gives_its_call(
    payload: str, expected: list[tuple[str, float, str, float]]
) -> None:
    calls = [call_of(one, one.starts_at + timedelta(seconds=2)) for one in recorded(payload)]

    assert [
        (call.metric_name, call.value, call.threshold, call.duration.total_seconds())
        for call in calls
    ] == expected
    assert {call.warnings for call in calls} == {()}


def test_recorded_nan_gives_nan_without_a_warning() -> None:
    (alert,) = recorded("12_value_nan")

    call = call_of(alert, alert.starts_at)

    assert (call.metric_name, call.threshold, call.warnings) == ("e2e_odd", "0", ())
    assert math.isnan(call.value)


def test_recorded_template_error_is_replaced_by_the_expression() -> None:
    (alert,) = recorded("16_template_error")

    call = call_of(alert, alert.starts_at)

    assert (call.metric_name, call.value, call.threshold) == ("e2e_queue_depth", 90.0, "> 80")
    assert call.warnings == ("annotation threshold: its template failed; mend the alert rule",)


def test_recorded_alert_without_annotations_and_generator_still_gives_a_call() -> None:
    (alert,) = recorded("25_no_startsat_no_generator")

    call = call_of(alert, alert.starts_at)

    assert (call.metric_name, call.threshold, call.duration) == ("Bare", "", timedelta())
    assert math.isnan(call.value)
    assert len(call.warnings) == 4


@pytest.mark.parametrize("payload", sorted(path.stem for path in PAYLOADS.glob("*.json")))
def test_every_recorded_alert_gives_a_call_that_survives_the_journal(payload: str) -> None:
    for alert in recorded(payload):
        call = call_of(alert, alert.starts_at + timedelta(seconds=1))

        assert repr(Call.from_json(call.to_json())) == repr(call)


def recorded(payload: str) -> tuple[Alert, ...]:
    return parse_notification((PAYLOADS / f"{payload}.json").read_bytes()).alerts


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (90.0, "90.0"),
        (-42.5, "-42.5"),
        (1e300, "1e+300"),
        (math.nan, '"NaN"'),
        (math.inf, '"+Inf"'),
        (-math.inf, '"-Inf"'),
    ],
)
def test_call_writes_a_value_that_json_cannot_hold_as_text(value: float, written: str) -> None:
    call = Call("foo", value, "> 80", timedelta(seconds=1.5), ("één",))

    text = call.to_json()

    assert text == (
        f'{{"metric_name":"foo","value":{written},"threshold":"> 80",'
        '"duration_seconds":1.5,"warnings":["één"]}'
    )
    assert repr(Call.from_json(text)) == repr(call)


@given(
    st.builds(
        Call,
        st.text(),
        st.floats(),
        st.text(),
        st.timedeltas(timedelta(), timedelta(days=73000)),
        st.lists(st.text()).map(tuple),
    )
)
def test_every_call_survives_json(call: Call) -> None:
    assert repr(Call.from_json(call.to_json())) == repr(call)


# What a hostile or careless author might write, around and inside the grammar.
PIECES = st.sampled_from(
    ["(", ")", "[5m]", "{", "}", "a", "ALERTS", "5", "1e999", "-", "+", "^", ">", "==", " and ",
     " or ", " unless ", " bool ", " offset ", "@", "sum", "by", "absent", '"', "'", "`", "\\",
     "=~", "#", "\n", "\x00", "NaN", "5m", ",", "ü"]
)  # fmt: skip
TEXTS = (
    st.text(st.characters(codec=None), max_size=40)
    | st.lists(PIECES, max_size=30).map("".join)
    | st.floats().map(str)
    | st.sampled_from(["5m", "1h30m", TEMPLATE_ERROR, "x" * 300])
)
URLS = TEXTS | TEXTS.map("http://p/graph?g0.expr=".__add__) | st.lists(PIECES).map(
    lambda pieces: graph_url("".join(pieces))
)  # fmt: skip


@given(
    annotations=st.dictionaries(
        st.sampled_from(["metric_name", "value", "threshold", "for", "duration"]) | TEXTS, TEXTS
    ),
    labels=st.dictionaries(st.just("alertname") | TEXTS, TEXTS),
    url=URLS,
    starts_at=st.datetimes(timezones=st.just(UTC)),
    received_at=st.datetimes(timezones=st.just(UTC)),
)
def test_call_of_never_raises(
    annotations: dict[str, str],
    labels: dict[str, str],
    url: str,
    starts_at: datetime,
    received_at: datetime,
) -> None:
    alert = Alert("firing", labels, annotations, starts_at, None, url, "f1")

    call = call_of(alert, received_at)

    assert call.metric_name
    assert len(call.metric_name) <= 256
    assert len(call.threshold) <= 256
    assert call.duration >= timedelta()
    assert repr(Call.from_json(call.to_json())) == repr(call)


# Just inside the limits: each of these is really parsed.
DEEP = {
    "parentheses": "(" * 100 + "foo" + ")" * 100,
    "unary": "-" * 200 + "foo",
    "unary in parentheses": "-(" * 66 + "foo" + ")" * 66,
    "functions": "abs(" * 100 + "foo" + ")" * 100,
    "aggregations": "sum(" * 100 + "foo" + ")" * 100,
    "aggregations by": "sum by(a)(" * 50 + "foo" + ")" * 50,
    "power": "foo" + "^2" * 200,
    "negative power": "foo" + "^-2" * 100,
    "sum": "foo" + "+a" * 200,
    "sum to the right": "foo+(" * 66 + "a" + ")" * 66,
    "comparisons": "foo" + ">a" * 200,
    "compared to the right": "foo>(" * 66 + "a" + ")" * 66,
    "or": "foo" + " or foo" * 200,
    "unless to the right": "foo unless(" * 66 + "a" + ")" * 66,
    "subqueries": "rate((" * 33 + "foo" + ")[5m:])" * 33,
    "label": "foo{" + ",".join(f'l{index}="x"' for index in range(190)) + "}",
    "huge regular expressions": "foo{" + ",".join([r"b=~`\pL{200}`"] * 90) + "}",
    "nested repetition": "foo{b=~'" + "(" * 200 + "a" + "{1000})" * 200 + "'}",
    "many texts": "foo{" + ",".join(["a!=''"] * 60) + "}",
    "list": "sum by(" + ",".join(["a"] * 900) + ")(foo)",
    "comments": "# ((((\n" * 250 + "foo",
}
# Beyond the limits, or no PromQL: the fallback.
HOSTILE = {
    "too many parentheses": "(" * 1000 + "foo" + ")" * 1000,
    "endless parentheses": "(" * 1_000_000,
    "endless unary": "-" * 1_000_000 + "foo",
    "endless power": "^".join(["2"] * 1_000_000),
    "unclosed": "(" * 200,
    "open braces": "{" * 200,
    "many digits": "9" * 2048,
    "many exponent digits": "foo offset 1e" + "9" * 2000,
    "panic": "foo offset 1e999",
    "escaped quotes": '"' + '\\"' * 1000,
    "quotes": "\"'`" * 680,
    "operators": "+-*/%^" * 33,
    "words": " and or unless" * 60,
    "stars": "İ" * 1000,
}

CHILD = """
import json, sys, threading, time
from datetime import datetime, UTC
from receiver.alertmanager import Alert
from receiver.calls import call_of

def main():
    now = datetime(2026, 11, 22, tzinfo=UTC)
    for name, url in json.load(sys.stdin).items():
        print("at", name, file=sys.stderr, flush=True)
        began = time.process_time()
        call = call_of(Alert("firing", {}, {}, now, None, url, "f1"), now)
        took = time.process_time() - began
        print(json.dumps([name, call.metric_name, took]), flush=True)

# What the smallest C library in use gives a thread; the usual one gives 8 MiB.
threading.stack_size(1024 * 1024)
thread = threading.Thread(target=main)
thread.start()
thread.join()
"""


@pytest.mark.parametrize(
    ("expressions", "metric_name"),
    [pytest.param(DEEP, "foo", id="deep"), pytest.param(HOSTILE, UNKNOWN_METRIC, id="hostile")],
)
def test_expression_neither_crashes_nor_stalls_the_parser(
    expressions: dict[str, str], metric_name: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps({name: graph_url(text) for name, text in expressions.items()}),
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env=os.environ | {"RUST_BACKTRACE": "0"},
        check=False,
    )

    assert done.returncode == 0, done.stderr[-2000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert {name: found for name, found, _ in results} == dict.fromkeys(expressions, metric_name)
    # Of a processor, which others may use meanwhile. Measured: 0.03 s at most.
    assert [name for name, _, took in results if took > 1] == []


def test_parser_is_loaded_only_for_an_expression_that_is_needed() -> None:
    code = """
import sys
from datetime import datetime, UTC
from receiver.alertmanager import Alert
from receiver.calls import call_of

now = datetime.now(UTC)
complete = {"metric_name": "foo", "value": "90", "threshold": "80", "for": "5m"}
url = "http://p/graph?g0.expr=foo"
call_of(Alert("firing", {}, complete, now, None, url, "f1"), now)
assert "promql_parser" not in sys.modules
call_of(Alert("firing", {}, {}, now, None, url, "f1"), now)
assert "promql_parser" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_parser_is_imported_by_calls_alone() -> None:
    package = ROOT / "receiver"

    importers = [path for path in package.rglob("*.py") if "promql_parser" in path.read_text()]

    assert importers == [package / "calls.py"]
