"""The loop over many values in one test, on which other tests rely."""

import pytest

from tests.support.every import every


def test_all_values_that_fail_are_named() -> None:
    with pytest.raises(ExceptionGroup) as caught, every() as each:
        for number in (1, 2, 3):
            with each(f"number {number}"):
                assert number == 2
    assert caught.value.message == "2 of 3 failed: with number 1, with number 3"
    assert len(caught.value.exceptions) == 2


def test_failure_of_pytest_itself_counts() -> None:
    with pytest.raises(BaseExceptionGroup) as caught, every() as each:
        with each("nothing is raised"), pytest.raises(ValueError):
            pass
        with each("pass"):
            pass
    assert caught.value.message == "1 of 2 failed: with nothing is raised"


def test_loop_over_nothing_fails() -> None:
    with pytest.raises(AssertionError, match="no value was checked"), every():
        pass


def test_error_outside_of_the_checks_is_raised_itself() -> None:
    with pytest.raises(KeyError), every():
        raise KeyError("x")
