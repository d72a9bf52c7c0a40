"""How settings are declared and read: every type, every source, every problem with its cure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import FrozenInstanceError, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.declarations import (
    TYPES,
    Address,
    Backoff,
    Breaker,
    Setting,
    Window,
    as_text,
    declared,
    is_missing,
    nearest,
    resolve,
    setting,
)
from tests.support.every import every

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
HUNDRED_YEARS = timedelta(days=36500)

GOOD: Mapping[str, Sequence[tuple[str, Any]]] = {
    "address": [
        ("127.0.0.1:8080", Address("127.0.0.1", 8080)),
        (" 0.0.0.0:80 ", Address("0.0.0.0", 80)),
        ("localhost:65535", Address("localhost", 65535)),
        ("receiver.example.com:1", Address("receiver.example.com", 1)),
        ("[::1]:8080", Address("::1", 8080)),
        ("[::]:8080", Address("::", 8080)),
    ],
    "backoff": [
        ("1s..5m", Backoff(SECOND, 5 * MINUTE)),
        (" 1s .. 5m ", Backoff(SECOND, 5 * MINUTE)),
        ("30s", Backoff(30 * SECOND, 30 * SECOND)),
        ("30s..30s", Backoff(30 * SECOND, 30 * SECOND)),
        ("0s..1h30m", Backoff(timedelta(0), 90 * MINUTE)),
    ],
    "boolean": [
        *((text, True) for text in ("true", "yes", "on", "1", "True", "YES", " on ")),
        *((text, False) for text in ("false", "no", "off", "0", "False", "NO", " off ")),
    ],
    "breaker": [
        ("5 failures, 10m", Breaker(5, 10 * MINUTE)),
        (" 1  failures ,1h30m ", Breaker(1, 90 * MINUTE)),
        ("none", None),
        (" none ", None),
    ],
    "count": [("1", 1), ("16", 16), (" 7 ", 7), ("007", 7), ("999999999", 999_999_999)],
    "duration": [
        ("30s", 30 * SECOND),
        ("5m", 5 * MINUTE),
        ("1h30m", 90 * MINUTE),
        ("250ms", timedelta(milliseconds=250)),
        ("1w2d3h4m5s6ms", 9 * DAY + 3 * HOUR + 4 * MINUTE + 5 * SECOND + timedelta(milliseconds=6)),
        (" 5m ", 5 * MINUTE),
        ("90m", 90 * MINUTE),
        ("0s", timedelta(0)),
        ("00001s", SECOND),
        ("36500d", HUNDRED_YEARS),
    ],
    "integer": [("0", 0), ("-5", -5), ("+5", 5), (" 7 ", 7), ("9" * 18, 10**18 - 1)],
    "logins": [
        ("user:hunter2", ("user:hunter2",)),
        (" a:1\n b:2\n", ("a:1", "b:2")),
        ("user:with:colons", ("user:with:colons",)),
        ("jürgen:pässword€", ("jürgen:pässword€",)),
    ],
    "list": [
        ("a", ("a",)),
        ("a,b", ("a", "b")),
        (" a ,\n b\nc,, ", ("a", "b", "c")),
        (",", ()),
        ("a b", ("a b",)),
        ("b,a,b", ("b", "a", "b")),
    ],
    "path": [
        ("/data", Path("/data")),
        ("data/files", Path("data/files")),
        ("~/data", Path("/home/of-the-test/data")),
        ("/with space/ü", Path("/with space/ü")),
    ],
    "rates": [
        ("3/1h", (Window(3, HOUR),)),
        ("3/1h, 7/1d", (Window(3, HOUR), Window(7, DAY))),
        (" 3 / 1h\n7/1d, ", (Window(3, HOUR), Window(7, DAY))),
        (",", ()),
    ],
    "size": [
        ("0", 0),
        ("1048576", 2**20),
        ("10MiB", 10 * 2**20),
        ("10Mi", 10 * 2**20),
        ("10MB", 10**7),
        ("10 mib", 10 * 2**20),
        (" 1kB ", 1_000),
        ("1KiB", 1024),
        ("1.5KiB", 1536),
        ("0.5GiB", 2**29),
        ("1TiB", 2**40),
        ("2tb", 2 * 10**12),
        ("512b", 512),
        ("1.001kB", 1_001),
        ("8.2MB", 8_200_000),
        ("0.067GB", 67_000_000),
        ("9007199254740993", 2**53 + 1),
        ("9" * 18, 10**18 - 1),
    ],
    "text": [("x", "x"), (" x ", " x "), ("ü\n", "ü\n")],
    "token": [
        ("hunter2", "hunter2"),
        (" hunter2\n", "hunter2"),
        ("!Bearer/+=~\"'\\:;,", "!Bearer/+=~\"'\\:;,"),
        ("x" * 1_000, "x" * 1_000),
    ],
    "tokens": [
        ("hunter2", ("hunter2",)),
        (" hunter2\n", ("hunter2",)),
        ("old new", ("old", "new")),
        ("old\r\nnew\n", ("old", "new")),
        ("!Bearer/+=~\"'\\:;,", ("!Bearer/+=~\"'\\:;,",)),
        ("x" * 1_000, ("x" * 1_000,)),
    ],
    "url": [
        ("http://localhost:8080", "http://localhost:8080"),
        (
            " https://user:secret@host.example/path?a=b ",
            "https://user:secret@host.example/path?a=b",
        ),
        ("http://[::1]:80/", "http://[::1]:80/"),
    ],
}

BAD: Mapping[str, Sequence[tuple[str, str]]] = {
    "address": [
        (text, "is not an address; write 127.0.0.1:8080")
        for text in (
            "8080", ":8080", "localhost", "localhost:", "localhost:http", "localhost:65536",
            "localhost:-1", "localhost:080808", "127.0.0.1:80 80", "[]:80", " ",
        )
    ],
    "backoff": [
        *(
            (text, "is not a backoff; write the first and the longest pause: 1s..5m")
            for text in ("1", "1s..", "..5m", "1s...5m", "1s-5m", "1s..5m..9m", "fast", "..", " ")
        ),
        ("5m..1s", "starts with a pause longer than its longest; write 1s..5m"),
    ],
    "boolean": [(text, "is neither true nor false") for text in ("2", "ja", "tru", "nono", " ")],
    "breaker": [
        (text, "is not a breaker; write 5 failures, 10m, or none")
        for text in (
            "5", "5 failures", "5, 10m", "0 failures, 10m", "-1 failures, 10m", "off", " ",
            "five failures, 10m", "5 failures 10m", "5 failures, 10", "5 failures, 10m, 3",
            "99999 failures, 1m",
        )
    ],
    "count": [
        (text, "is not a whole number of at least 1")
        for text in ("0", "-1", "+1", "1.0", "1e3", "1_000", "1000000000", "many", "0x10", " ")
    ],
    "duration": [
        *(
            (text, "is not a duration; write 30s, 5m or 1h30m")
            for text in (
                "30", "5 m", "5M", "1.5h", "-5m", "+5m", "5m1h", "1h1h", "s", "forever", "1y",
                "5min", "1h 30m", "PT5M", " ",
            )
        ),
        ("36500d1ms", "is longer than 100 years"),
        ("99999999999999999999w", "is longer than 100 years"),
        ("9" * 400 + "ms", "is longer than 100 years"),
    ],
    "integer": [
        (text, "is not a whole number")
        for text in ("1.0", "1e3", "1_000", "9" * 19, "--5", "+", "0x10", "five", "1,000", " ")
    ],
    "list": [],
    "logins": [
        *(
            (text, "is not a login; write user:password, without spaces in either")
            for text in (" ", "user", "user:", ":password", "user:pass word", "a\0b:c", "a:b\x7f")
        ),
        ("a:1 b:2 c:3", "holds more than two; write the old one and the new one"),
    ],
    "path": [
        *((text, "is not a path") for text in (" ", "\t\n", "/data\0/x")),
        *(
            (text, "begins with a home directory that is not known; write a full path")
            for text in ("~no-such-user", "~no-such-user/x")
        ),
    ],
    "rates": [
        (text, "is not a rate; write a number and a time, or several: 3/1h, 7/1d")
        for text in (
            "3", "3/", "/1h", "3/h", "3/1", "0/1h", "-1/1h", "3/0s", "3/1h/2", "3/1h 7/1d", "1h/3",
            "3/1h, x", "3 per hour", "1.5/1h",
        )
    ],
    "size": [
        *(
            (text, "is not a size; write bytes or 10MiB")
            for text in (
                "1 elephant", "MiB", "-1", "+1", "1e6", "1_000", ".5MiB", "5.MiB", "10 M", "10MiBs",
                "1,5MiB", "10MiB 5KiB", " ", "9" * 400, "9" * 400 + "KiB", "0." + "0" * 400 + "1",
            )
        ),
        ("0.5", "is not a whole number of bytes; write bytes or 10MiB"),
        ("1.0001KiB", "is not a whole number of bytes; write bytes or 10MiB"),
    ],
    "text": [],
    "token": [
        (text, "is not a token; use printable ASCII without spaces")
        for text in (
            " ", "two words", "two\nlines", "tab\tbed", "café", "€", "a\0b", "a\x7fb", "a\ud800b",
        )
    ],
    "tokens": [
        *(
            (text, "is not a token; use printable ASCII without spaces")
            for text in (" ", "\n", "café", "good €", "a\0b", "a\x7fb", "a\ud800b")
        ),
        ("one two three", "holds more than two; write the old one and the new one"),
    ],
    "url": [
        (text, "is not a URL; write http://host:port/path")
        for text in (
            "localhost:8080", "//localhost", "ftp://localhost", "http://", "http:///path",
            "http://host:port/", "http://host:99999/", "http://host:0/", "http://[::1/", "file:///x",
            "javascript:alert(1)", " ",
        )
    ],
}  # fmt: skip


def test_every_type_is_held_to_a_table() -> None:
    assert GOOD.keys() == BAD.keys() == TYPES.keys()


def test_good_value_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of-the-test")

    with every() as each:
        for type_, text, value in [(type_, *row) for type_, rows in GOOD.items() for row in rows]:
            with each(f"{type_} {text!r}"):
                found = Setting("X", type_).parse(text)

                assert found == value
                assert type(found) is type(value)


def test_bad_value_is_shown_with_its_cure_and_never_replaced() -> None:
    with every() as each:
        for type_, text, cure in [(type_, *row) for type_, rows in BAD.items() for row in rows]:
            with each(f"{type_} {text[:24]!r}"):
                one = Setting("X", type_)

                with pytest.raises(ValueError, match=f"^{re.escape(cure)}$"):
                    one.parse(text)
                values, problems = resolve([one], [{"X": text}])

                assert problems == [f'X: "{text}" {cure}']
                assert "X" not in values


@pytest.mark.parametrize("type_", sorted(TYPES))
@given(text=st.text())
def test_any_text_is_a_value_or_a_problem(type_: str, text: str) -> None:
    values, problems = resolve([Setting("X", type_)], [{"X": text}])

    assert len(problems) == (0 if "X" in values else 1)


@given(
    st.timedeltas(timedelta(0), HUNDRED_YEARS).map(
        lambda one: timedelta(milliseconds=one // timedelta(milliseconds=1))
    )
)
def test_every_duration_can_be_written(duration: timedelta) -> None:
    milliseconds = duration // timedelta(milliseconds=1)
    seconds, rest = divmod(milliseconds, 1000)

    assert Setting("X", "duration").parse(f"{milliseconds}ms") == duration
    assert Setting("X", "duration").parse(f"{seconds}s{rest}ms") == duration


def test_unknown_type_is_refused_with_those_that_exist() -> None:
    expected = f"X: 'number' is not a type of setting; use {', '.join(sorted(TYPES))}"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        Setting("X", "number")


@pytest.mark.parametrize(
    ("type_", "text", "value"),
    [("text", "info", "info"), ("list", "info,debug", ("info", "debug")), ("list", ",", ())],
)
def test_choice_is_taken(type_: str, text: str, value: Any) -> None:
    one = Setting("LOG_LEVEL", type_, choices=("debug", "info"))

    assert resolve([one], [{"LOG_LEVEL": text}]) == ({"LOG_LEVEL": value}, [])


@pytest.mark.parametrize(
    ("type_", "text"),
    [("text", "loud"), ("text", "INFO"), ("text", " info"), ("list", "info,x")],
)
def test_what_is_not_among_the_choices_is_refused_with_them(type_: str, text: str) -> None:
    one = Setting("LOG_LEVEL", type_, "info", choices=("debug", "info"))

    assert resolve([one], [{"LOG_LEVEL": text}])[1] == [
        f'LOG_LEVEL: "{text}" is not one of debug, info'
    ]


@pytest.mark.parametrize(
    ("default", "value"), [(None, None), ("5m", 5 * MINUTE)], ids=["no default", "default"]
)
@pytest.mark.parametrize("sources", [[], [{}], [{"X": ""}, {"X": ""}]], ids=str)
def test_what_is_not_set_or_empty_has_its_default(
    sources: list[Mapping[str, object]], default: str | None, value: Any
) -> None:
    assert resolve([Setting("X", "duration", default)], sources) == ({"X": value}, [])


def test_first_source_decides_and_an_empty_one_falls_through() -> None:
    one = Setting("X", "count", "1")

    assert resolve([one], [{"X": "2"}, {"X": "3"}])[0] == {"X": 2}
    assert resolve([one], [{}, {"X": "3"}])[0] == {"X": 3}
    assert resolve([one], [{"X": ""}, {"X": "3"}])[0] == {"X": 3}


def test_bad_default_is_told_as_what_it_is() -> None:
    assert resolve([Setting("X", "size", "1 elephant")], [{}])[1] == [
        'X: "1 elephant" is not a size; write bytes or 10MiB'
    ]


def test_bad_value_in_the_first_source_hides_none_behind_it() -> None:
    _, problems = resolve([Setting("X", "count")], [{"X": "many"}, {"X": "3"}])

    assert problems == ['X: "many" is not a whole number of at least 1']


def test_all_problems_are_told_at_once_in_the_order_of_the_table(tmp_path: Path) -> None:
    table = [
        Setting("A", "size"),
        Setting("B", required=True, help="the b of it"),
        Setting("C", "count", "7"),
        Setting("D", secret=True),
        Setting("E", "boolean"),
    ]

    values, problems = resolve(
        table, [{"A": "1 elephant", "E": "maybe", "D_FILE": str(tmp_path / "none")}]
    )

    assert problems == [
        'A: "1 elephant" is not a size; write bytes or 10MiB',
        "B: is not set; the b of it",
        f"D_FILE: cannot be read: No such file or directory: {tmp_path / 'none'}",
        'E: "maybe" is neither true nor false',
    ]
    assert values["C"] == 7


def test_problem_names_the_setting_as_it_is_shown() -> None:
    _, problems = resolve(
        [Setting("timeout", "duration"), Setting("x", required=True)],
        [{"timeout": "5"}],
        shown_as=lambda one: f"[actions.a] {one.name}",
    )

    assert problems == [
        '[actions.a] timeout: "5" is not a duration; write 30s, 5m or 1h30m',
        "[actions.a] x: is not set; it is required",
    ]


@pytest.mark.parametrize(
    ("source", "problems"),
    [
        pytest.param({}, ["A: is not set; the a", "B: is not set; the b"], id="neither"),
        pytest.param({"A": "1"}, [], id="one"),
        pytest.param({"B": "1"}, [], id="the other"),
        pytest.param({"A": "1", "B": "1"}, [], id="both"),
        pytest.param({"A": "", "B": ""}, ["A: is not set; the a", "B: is not set; the b"],
                     id="both empty"),
    ],
)  # fmt: skip
def test_of_two_that_replace_each_other_one_is_required(
    source: Mapping[str, object], problems: list[str]
) -> None:
    table = [
        Setting("A", help="the a", required_unless="B"),
        Setting("B", help="the b", required_unless="A"),
    ]

    found = resolve(table, [{}, source])[1]

    assert found == problems
    assert all(is_missing(one) for one in found)


def test_file_of_the_other_setting_counts_as_set(tmp_path: Path) -> None:
    file = tmp_path / "b"
    file.write_text("x")
    table = [Setting("A", required_unless="B"), Setting("B", secret=True)]

    assert resolve(table, [{"B_FILE": str(file)}]) == ({"A": None, "B": "x"}, [])


def test_bad_value_is_no_missing_one() -> None:
    (problem,) = resolve([Setting("X", "count", required=True)], [{"X": "0"}])[1]

    assert not is_missing(problem)


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text("  from-the-file\n\n")
    return file


TOKEN = Setting("TOKEN", secret=True, required=True, help="the token")


def test_secret_is_read_from_a_file_without_the_space_around_it(secret_file: Path) -> None:
    assert resolve([TOKEN], [{"TOKEN_FILE": str(secret_file)}]) == ({"TOKEN": "from-the-file"}, [])


def test_secret_and_its_file_together_are_refused(secret_file: Path) -> None:
    _, problems = resolve([TOKEN], [{"TOKEN": "hunter2", "TOKEN_FILE": str(secret_file)}])

    assert problems == ["TOKEN: is set together with TOKEN_FILE; keep one of them"]


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [("TOKEN", "TOKEN_FILE", "hunter2"), ("TOKEN_FILE", "TOKEN", "from-the-file")],
)
def test_secret_and_file_of_different_sources_do_not_clash(
    first: str, second: str, value: str, secret_file: Path
) -> None:
    texts = {"TOKEN": "hunter2", "TOKEN_FILE": str(secret_file)}

    assert resolve([TOKEN], [{first: texts[first]}, {second: texts[second]}]) == (
        {"TOKEN": value},
        [],
    )


@pytest.mark.parametrize("content", ["", " \n\t\n"], ids=["empty", "blank"])
def test_empty_secret_file_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(content)

    assert resolve([TOKEN], [{"TOKEN_FILE": str(file)}])[1] == [
        "TOKEN: is empty in the file that TOKEN_FILE names"
    ]


def test_secret_file_that_cannot_be_read_is_named_with_the_cause(tmp_path: Path) -> None:
    assert resolve([TOKEN], [{"TOKEN_FILE": str(tmp_path)}])[1] == [
        f"TOKEN_FILE: cannot be read: Is a directory: {tmp_path}"
    ]


def test_secret_file_that_is_no_text_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(b"\xff\xfe\x00")

    (problem,) = resolve([TOKEN], [{"TOKEN_FILE": str(file)}])[1]

    assert problem.startswith("TOKEN: ")


def test_empty_name_of_a_file_counts_as_not_set() -> None:
    assert resolve([TOKEN], [{"TOKEN": "hunter2", "TOKEN_FILE": ""}]) == ({"TOKEN": "hunter2"}, [])


def test_only_a_secret_is_read_from_a_file(secret_file: Path) -> None:
    one = Setting("X", default="default")

    assert resolve([one], [{"X_FILE": str(secret_file)}]) == ({"X": "default"}, [])


@pytest.mark.parametrize("type_", sorted(BAD.keys() - {"list", "text"}))
def test_bad_secret_is_not_shown(type_: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("hunter2 ..")
    one = Setting("TOKEN", type_, secret=True, choices=("x",))

    for source in ({"TOKEN": "hunter2 .."}, {"TOKEN_FILE": str(file)}):
        values, problems = resolve([one], [source])
        assert "hunter2" not in "".join(problems)
        assert len(problems) == 1
        assert values == {}


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("x", "x"),
        (7, "7"),
        (0, "0"),
        (1.5, "1.5"),
        (True, "true"),
        (False, "false"),
        (["a", "b"], "a,b"),
        ([True, 7], "true,7"),
        ([], ""),
    ],
)
def test_toml_value_becomes_what_a_user_would_write(raw: object, text: str) -> None:
    assert as_text(raw) == text


@pytest.mark.parametrize(
    ("type_", "raw", "value"),
    [
        ("boolean", False, False),
        ("boolean", True, True),
        ("integer", 0, 0),
        ("count", 7, 7),
        ("size", 1024, 1024),
        ("list", ["a", "b"], ("a", "b")),
    ],
)
def test_toml_value_of_the_right_type_is_read(type_: str, raw: object, value: object) -> None:
    assert resolve([Setting("X", type_, required=True)], [{"X": raw}]) == ({"X": value}, [])


@pytest.mark.parametrize(
    ("type_", "raw"),
    [("duration", 60), ("boolean", 7), ("count", True), ("count", 1.5), ("size", [1, 2])],
)
def test_toml_value_of_the_wrong_type_is_refused(type_: str, raw: object) -> None:
    assert len(resolve([Setting("X", type_)], [{"X": raw}])[1]) == 1


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("log_acton", " (did you mean log_action?)"),
        ("log_action", " (did you mean log_action?)"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_nearest_known_name_is_suggested(name: str, hint: str) -> None:
    assert nearest(name, ["file_action", "log_action"]) == hint
    assert nearest(name, []) == ""


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("RECEIVER_LOG_LEVEL", "LOG_LEVEL"),
        ("RECEIVER_PLUGIN_DIR", "PLUGIN_DIR"),
        ("RECEIVER_BINDD", "RECEIVER_BIND"),
        ("BIND", "RECEIVER_BIND"),
        ("RECEIVER_Z", ""),
        ("RECEIVER_", ""),
        ("RECEIVER", ""),
    ],
)
def test_prefix_that_all_have_makes_no_names_alike(name: str, hint: str) -> None:
    known = ["RECEIVER_BIND", "RECEIVER_AUTH", "LOG_LEVEL", "PLUGIN_DIR"]

    assert nearest(name, known) == (f" (did you mean {hint}?)" if hint else "")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.127.0.1", False),
        ("192.168.1.1", False),
        ("localhost.example.com", False),
        ("1270.0.0.1", False),
    ],
)
def test_address_knows_whether_only_this_machine_can_connect(host: str, loopback: bool) -> None:
    assert Address(host, 80).is_loopback is loopback


@pytest.mark.parametrize("text", ["127.0.0.1:8080", "[::1]:8080", "localhost:80"])
def test_address_is_shown_as_it_is_written(text: str) -> None:
    assert str(Setting("X", "address").parse(text)) == text


@dataclass(frozen=True)
class Table:
    """A table of settings, as the receiver and its policies have one."""

    timeout: timedelta = setting("TIMEOUT", "duration", "60s", "how long")
    token: str | None = setting("TOKEN", "text", None, "the token", secret=True)
    other: int = 7


def test_table_of_a_dataclass_gives_defaults_and_declarations() -> None:
    assert Table() == Table(MINUTE, None, 7)
    assert declared(Table) == {
        "timeout": Setting("TIMEOUT", "duration", "60s", "how long"),
        "token": Setting("TOKEN", "text", None, "the token", secret=True),
    }


def test_secret_is_not_shown_with_its_table() -> None:
    shown = repr(Table(token="hunter2"))

    assert "hunter2" not in shown
    assert "other=7" in shown


def test_declaration_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Setting("X").name = "Y"  # type: ignore[misc]
