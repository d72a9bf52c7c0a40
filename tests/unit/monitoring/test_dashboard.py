"""The Grafana dashboard: every expression parses, and asks for what there is."""

import json
import re
from importlib import resources
from typing import Any

import promql_parser
import pytest
from click.testing import CliRunner

from receiver.cli import cli
from receiver.metrics.instruments import INSTRUMENTS, Instrument

TEXT = (resources.files("receiver") / "monitoring" / "dashboard.json").read_text()
DASHBOARD: dict[str, Any] = json.loads(TEXT)
PANELS = [one for one in DASHBOARD["panels"] if one["type"] != "row"]
TARGETS = [
    pytest.param(target["expr"], target["legendFormat"], id=f"{panel['title']} {target['refId']}")
    for panel in PANELS
    for target in panel["targets"]
]
# What Grafana puts in their place.
VARIABLES = {"$__rate_interval": "5m", "$action": "log_action|file_action"}
SERIES: dict[str, Instrument] = {}
for _one in INSTRUMENTS:
    ends = ("_bucket", "_sum", "_count") if _one.type == "histogram" else ("",)
    SERIES |= {f"{_one.name}{end}": _one for end in ends}


def selectors(expression: promql_parser.Expr) -> list[promql_parser.VectorSelector]:
    """Return every selector of a parsed expression."""
    found: list[promql_parser.Expr] = []
    promql_parser.walk(expression, found.append)
    return [one for one in found if isinstance(one, promql_parser.VectorSelector)]


@pytest.mark.parametrize(("expr", "legend"), TARGETS)
def test_expression_parses_and_asks_for_series_and_labels_that_exist(
    expr: str, legend: str
) -> None:
    for name, text in VARIABLES.items():
        expr = expr.replace(name, text)
    assert "$" not in expr
    asked = selectors(promql_parser.parse(expr))
    assert asked
    for one in asked:
        labels = {*SERIES[one.name].labels, "le"}
        assert {matcher.name for matcher in one.matchers.matchers} <= labels
        assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= labels
    for grouped in re.findall(r"by \(([\w, ]+)\)", expr):
        known = {label for one in asked for label in SERIES[one.name].labels} | {"le"}
        assert set(grouped.split(", ")) <= known


def test_every_metric_is_shown() -> None:
    shown = {name for name in SERIES if re.search(rf"\b{name}\b", TEXT)}
    assert {SERIES[name].name for name in shown} == {one.name for one in INSTRUMENTS}


def test_variables_are_defined_and_ask_for_a_label_that_exists() -> None:
    defined = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", TEXT)) - {"__rate_interval", "__all"}
    assert used == set(defined)
    asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", defined["action"]["definition"])
    assert asked
    assert asked[2] in SERIES[asked[1]].labels


def test_panels_lie_side_by_side_and_say_what_they_show() -> None:
    places: set[tuple[int, int]] = set()
    for one in DASHBOARD["panels"]:
        grid = one["gridPos"]
        covered = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not covered & places, one["title"]
        assert max(x for x, _ in covered) < 24
        places |= covered
    assert all(one["title"] and one["description"] for one in PANELS)
    numbers = [one["id"] for one in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_command_prints_it() -> None:
    printed = CliRunner().invoke(cli, ["rule", "self", "--dashboard"])
    assert json.loads(printed.output) == DASHBOARD
