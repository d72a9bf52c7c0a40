"""Every exception of the receiver, as one tree.

Plugin authors raise `PermanentError` and `TemporaryError`; the rest is raised by the receiver
itself. Each message says which, why, and what to do.
"""

import email.utils
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta


class ReceiverError(Exception):
    """The root of the tree: catching it catches all that the receiver raises on purpose."""


class _ProblemsError(ReceiverError):
    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))

    def __reduce__(self) -> tuple[type, tuple[tuple[str, ...]]]:
        """Stay what it is on the way from process to process."""
        return type(self), (self.problems,)


class SettingsError(_ProblemsError):
    """The settings cannot be used; `problems` holds every one of them, each with its cure."""


class PluginError(_ProblemsError):
    """One or more plugins that are named or enabled cannot be used; `problems` holds them all."""


class NotificationError(ReceiverError):
    """A request body is not a notification of Alertmanager or Grafana.

    `fields` maps the name of each wrong field to what is wrong with it.
    """

    def __init__(self, detail: str, fields: dict[str, str] | None = None) -> None:
        self.detail = detail
        self.fields = fields or {}
        self.problems = (detail, *(f"{path}: {said}" for path, said in self.fields.items()))
        super().__init__(detail)


class JournalError(ReceiverError):
    """The journal cannot do what it was asked for."""


class JournalUnavailableError(JournalError):
    """The journal cannot store now (disk full, locked, connection lost); trying later may help."""


class JournalUnusableError(JournalError):
    """The journal cannot be opened: corrupt, or written by a newer version. It is left as it is."""


class JournalDataError(JournalError):
    """The journal refuses this very data, now and later; what stood beside it is not affected."""


class ExecutorLostError(ReceiverError):
    """The process that forks executors has ended, and its worker must end too."""


class OperationError(ReceiverError):
    """An operator's request cannot be carried out as asked: the run is in another state."""


class NotFoundError(OperationError):
    """An operator's request is about a run or an alert that is not there."""


class CursorError(OperationError):
    """A page is asked for by a cursor that no page before it gave."""


class ActionError(ReceiverError):
    """What a plugin raises, and what is raised inside it by the context."""


class PermanentError(ActionError):
    """Raise it when trying again cannot help: the run ends `failed` at once."""


class TemporaryError(ActionError):
    """Raise it when trying again may help; `retry_after` or `retry_at` names the earliest time.

    Without one the policy's backoff decides. `max_attempts` counts in either case. `retry_after`
    is a timedelta, a number of seconds, or the header `Retry-After` as it came: one that holds
    neither seconds nor a date names no time. `retry_at` is an aware datetime.
    """

    def __init__(
        self,
        message: str = "",
        *,
        retry_after: timedelta | float | str | None = None,
        retry_at: datetime | None = None,
    ) -> None:
        super().__init__(message)
        if isinstance(retry_after, str):
            retry_after, retry_at = _parse_retry_after(retry_after, retry_at)
        if isinstance(retry_after, int | float):
            retry_after = timedelta(seconds=retry_after)
        if not isinstance(retry_after, timedelta | None):
            raise TypeError("retry_after must be a timedelta, or a number of seconds")
        if retry_at is not None and retry_at.utcoffset() is None:
            raise ValueError("retry_at must be an aware datetime, such as datetime.now(UTC)")
        self.retry_after = retry_after
        self.retry_at = retry_at


class StillRunning(ActionError):  # noqa: N818 - not an error
    """Raise it when a job that the action started elsewhere has not ended yet.

    The run waits for `check_after` (a timedelta, or a number of seconds), and is attempted again.
    This uses up no attempt, is no failure, and does not count for the breaker. `max_duration` of
    the policy bounds how often. Store what identifies the job with `context.save` first.
    """

    def __init__(self, message: str = "", *, check_after: timedelta | float = 30.0) -> None:
        super().__init__(message)
        if isinstance(check_after, int | float):
            check_after = timedelta(seconds=check_after)
        if not isinstance(check_after, timedelta):
            raise TypeError("check_after must be a timedelta, or a number of seconds")
        self.check_after = check_after


def _parse_retry_after(
    text: str, retry_at: datetime | None
) -> tuple[timedelta | None, datetime | None]:
    """Return the pause or the moment that a header names, as in RFC 9110; a given one stays."""
    if re.fullmatch(r"\d{1,9}", text, re.ASCII):
        return timedelta(seconds=int(text)), retry_at
    try:
        moment = email.utils.parsedate_to_datetime(text)
        moment = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        return None, retry_at
    return None, retry_at or moment


class RunCancelledError(ActionError):
    """Raised by `context.raise_if_cancelled()` once the run should stop: let it pass through."""


class DeadlineExceededError(RunCancelledError):
    """Raised by `context.raise_if_cancelled()` when the attempt's time is used up."""
