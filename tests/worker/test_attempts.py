"""How an attempt's ending is put into words that every database stores."""

import pytest

from receiver.worker.attempts import describe_error


class SilentError(Exception):
    """An exception that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(ValueError("no"), "ValueError: no", id="with a text"),
        pytest.param(ValueError(), "ValueError", id="without a text"),
        pytest.param(RuntimeError("a\ud800b\0c"), "RuntimeError: a\ufffdb\ufffdc", id="odd text"),
        pytest.param(
            SilentError(),
            "SilentError: <SilentError whose text cannot be had: RuntimeError>",
            id="cannot be shown",
        ),
    ],
)
def test_error_is_told_as_every_database_stores_it(error: Exception, expected: str) -> None:
    assert describe_error(error) == expected


def test_chain_of_causes_is_told_and_bounded() -> None:
    try:
        try:
            raise OSError("disk")
        except OSError as cause:
            raise ValueError("x" * 5000) from cause
    except ValueError as error:
        text = describe_error(error)
    assert len(text) == 2000
    assert text.startswith("ValueError: xxx")


def test_cause_is_named_after_what_it_caused() -> None:
    error = ValueError("outer")
    error.__cause__ = OSError("inner")
    assert describe_error(error) == "ValueError: outer; caused by OSError: inner"
