"""Many values in one test: all are checked, and a failure names each that failed."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

Each = Callable[[object], AbstractContextManager[None]]


@contextmanager
def every() -> Iterator[Each]:
    """Give a context for each value; fail in the end when the check of any value failed.

    with every() as each:
        for name in NAMES:
            with each(name):
                assert is_good(name)
    """
    names: list[object] = []
    errors: list[BaseException] = []

    @contextmanager
    def each(name: object) -> Iterator[None]:
        names.append(name)
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - raised in the end
            error.add_note(f"with {name}")
            errors.append(error)

    yield each
    assert names, "no value was checked"
    if errors:
        failed = ", ".join(note for error in errors for note in error.__notes__[-1:])
        raise BaseExceptionGroup(f"{len(errors)} of {len(names)} failed: {failed}", errors)
