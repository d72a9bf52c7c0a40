"""Expressions that nobody would write: none that passes the look before the parser harms it."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.documents import ROOT
from tests.support.fuzz import bounded, texts

# In a process of its own, for a parser that overflows its stack takes the process with it.
CHILD = """
import json, sys, threading
from datetime import datetime, UTC
from receiver.alertmanager import Alert
from receiver.calls import call_of

def main():
    now = datetime(2026, 11, 22, tzinfo=UTC)
    for line in sys.stdin:
        call = call_of(Alert("firing", {}, {}, now, None, json.loads(line), "f1"), now)
        print(json.dumps([call.metric_name, call.threshold]), flush=True)

threading.stack_size(1024 * 1024)
thread = threading.Thread(target=main)
thread.start()
thread.join()
"""
_WORDS = (
    "foo bar_total sum rate by without on ignoring group_left and or unless bool offset absent "
    "histogram_quantile count_values scalar time inf nan 1e999 0x1F 5m 1h30m 1y2w [5m] [5m:1m] @ "
    "start() end() 80 .5 -1 + - * / % ^ == != > < >= <= =~ !~ ( ) { } [ ] , : = \" ' ` # \\ \n 1e9"
)
WORDS = _WORDS.split(" ")


class Parser:
    """The child: asks it for what an expression says, and starts another when it ended."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None

    def ask(self, expression: str) -> list[str]:
        """Return metric and threshold; fail when the child hangs or dies."""
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, "-c", CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=ROOT,
                env=os.environ | {"RUST_BACKTRACE": "0"},
            )
        child = self._child
        assert child.stdin
        assert child.stdout
        url = f"http://p/graph?g0.expr={quote(expression, errors='replace')}"
        timer = threading.Timer(15, child.kill)
        timer.start()
        try:
            child.stdin.write(json.dumps(url) + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            self.close()
        assert line, f"the parser died of {expression!r}"
        found: list[str] = json.loads(line)
        return found

    def close(self) -> None:
        """End the child."""
        if self._child:
            self._child.kill()
            self._child.communicate()
            self._child = None


@pytest.fixture(scope="module")
def parser() -> Iterator[Parser]:
    one = Parser()
    yield one
    one.close()


@st.composite
def expressions(draw: st.DrawFn) -> str:
    """Return words of PromQL in any order, some of them many times over."""
    found = []
    for _ in range(draw(st.integers(1, 25))):
        times = draw(st.sampled_from([1, 1, 1, 1, 2, 50, 190, 210]))
        space = draw(st.sampled_from(["", " "]))
        found.append((draw(st.sampled_from(WORDS)) + space) * times)
    return draw(st.sampled_from(["", " "])).join(found)[:3_000]


def nested() -> st.SearchStrategy[str]:
    """Return expressions that are right in form, of any shape."""
    # Not by `map`: Hypothesis would multiply the strategies out, at each level again.
    return st.recursive(
        st.sampled_from(
            ["foo", "80", 'bar{a="b"}', "rate(foo[5m])", "foo[5m:1m]", "1e999", "time()"]
        ),
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from([">", "<=", "and", "+", "^", "> bool"]), inner).map(
                " ".join
            ),
            st.builds("({})".format, inner),
            st.builds("-{}".format, inner),
            st.builds("sum by (x) ({})".format, inner),
            st.builds("absent({})".format, inner),
            st.builds("{} offset 1e9d".format, inner),
        ),
        max_leaves=100,
    )  # fmt: skip


@bounded(150)
@given(expression=st.one_of(expressions(), nested(), texts()))
def test_parser_survives_every_expression(parser: Parser, expression: str) -> None:
    metric_name, threshold = parser.ask(expression)
    assert metric_name
    assert len(metric_name) + len(threshold) < 4_000
    assert "\0" not in metric_name + threshold


def test_child_that_dies_is_noticed(parser: Parser) -> None:
    parser.ask("foo")
    assert parser._child
    parser._child.kill()
    with pytest.raises((AssertionError, BrokenPipeError)):
        parser.ask("foo")
    parser.close()
    assert parser.ask("foo > 80") == ["foo", "> 80"]
