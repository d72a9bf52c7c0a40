"""Values as a person would write them: what is shown is what could be set."""

import pytest

from receiver.declarations import TYPES, Setting, declared
from receiver.policies import Policy
from receiver.settings import Settings
from receiver.written import as_written, setting_as_written

DECLARED = [
    one
    for table in (Settings, Policy)
    for one in declared(table).values()
    if one.default and one.type != "path" and not one.secret
]


@pytest.mark.parametrize("one", DECLARED, ids=lambda one: one.name)
def test_default_is_shown_as_it_could_be_set(one: Setting) -> None:
    assert one.parse(setting_as_written(one, one.default_value())) == one.default_value()


@pytest.mark.parametrize(
    ("kind", "written"),
    [
        ("address", "[::1]:8080"), ("backoff", "2s..1m"), ("boolean", "true"), ("boolean", "false"),
        ("breaker", "5 failures, 10m"), ("breaker", "none"), ("count", "7"), ("duration", "1h30m"),
        ("list", "a, b"), ("list", "none"), ("rates", "3/1h, 7/1d"), ("text", "x"),
    ],
)  # fmt: skip
def test_value_is_written_as_it_was_read(kind: str, written: str) -> None:
    parsed = TYPES[kind]("" if (kind, written) == ("list", "none") else written)
    assert as_written(parsed) == written


@pytest.mark.parametrize(
    ("value", "shown"), [(2**25, "32MiB"), (3 * 2**10, "3KiB"), (1000, "1000"), (0, "0")]
)
def test_size_is_written_in_the_largest_unit_that_fits(value: int, shown: str) -> None:
    assert setting_as_written(Setting("SIZE", "size"), value) == shown


def test_secret_is_only_said_to_be_there() -> None:
    secret = Setting("TOKEN", "tokens", secret=True)
    assert setting_as_written(secret, ("s3cret",)) == "(hidden)"
    assert setting_as_written(secret, None) == "none"
