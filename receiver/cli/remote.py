"""The desk of a receiver elsewhere, reached by its API."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

import requests
from marshmallow import Schema, ValidationError

from receiver import schemas
from receiver.errors import NotFoundError, NotificationError, OperationError, ReceiverError
from receiver.journal.reading import Page, Row
from receiver.settings import Settings

_TIMEOUT_SECONDS = 30
# In the order in which they are good for more.
_TOKENS = ("operate_token", "read_token")
_LOGINS = ("operate_basic_auth", "read_basic_auth")


class _Bearer(requests.auth.AuthBase):
    """A token; as `auth`, so that no .netrc takes its place."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class ApiDesk:
    """See `receiver.desk.Desk`; the credentials are those that the settings name."""

    def __init__(self, url: str, settings: Settings) -> None:
        self._base = f"{url.rstrip('/')}/api/v1"
        self._shown = without_login(self._base)
        self._session = requests.Session()
        self._session.auth = _credential(settings)

    def page_of_runs(
        self,
        limit: int,
        cursor: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        **equal: object,
    ) -> Page:
        """See Desk."""
        query = {"since": since, "until": until, "alert": equal.pop("alert_name", None), **equal}
        wanted = {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in query.items()
            if value is not None
        }
        return self._page("runs", schemas.RunSchema, limit, cursor, wanted)

    def run(self, run_id: int) -> Row:
        """See Desk."""
        return self._ask("GET", f"runs/{run_id}", schemas.WholeRunSchema)

    def holds(self) -> list[Row]:
        """See Desk."""
        found: list[Row] = self._ask("GET", "holds", schemas.HoldsSchema)["holds"]
        return found

    def workers(self) -> list[Row]:
        """See Desk."""
        found: list[Row] = self._ask("GET", "workers", schemas.WorkersSchema)["workers"]
        return found

    def page_of_rejected(self, limit: int, cursor: str = "") -> Page:
        """See Desk."""
        return self._page("rejected", schemas.RejectedSchema, limit, cursor, {})

    def explain(self, body: bytes, source: str = "", path_action: str = "") -> list[Row]:
        """See Desk."""
        query = {"source": source, "action": path_action}
        answer = self._ask("POST", "explain", schemas.ExplanationSchema, query, data=body)
        found: list[Row] = answer["explained"]
        return found

    def retry(self, run_id: int) -> str:
        """See Desk."""
        return self._do(f"runs/{run_id}/retry")

    def cancel(self, run_id: int, reason: str = "") -> str:
        """See Desk."""
        return self._do(f"runs/{run_id}/cancel", reason=reason)

    def approve(self, run_id: int) -> str:
        """See Desk."""
        return self._do(f"runs/{run_id}/approve")

    def reject(self, run_id: int, reason: str = "") -> str:
        """See Desk."""
        return self._do(f"runs/{run_id}/reject", reason=reason)

    def pause(self, action: str | None, reason: str = "", lasting: timedelta | None = None) -> str:
        """See Desk."""
        said = None if lasting is None else f"{lasting // timedelta(milliseconds=1)}ms"
        return self._do("pause", action=action, reason=reason, **{"for": said})

    def resume(self, action: str | None) -> str:
        """See Desk."""
        return self._do("resume", action=action)

    def replay(self, rejected_id: int) -> Mapping[str, int]:
        """See Desk."""
        path = f"rejected/{rejected_id}/replay"
        return self._ask("POST", path, schemas.CountsSchema, json={})

    def _do(self, path: str, **body: object) -> str:
        return str(self._ask("POST", path, schemas.DoneSchema, json=body)["done"])

    def _page(
        self, name: str, rows: type[Schema], limit: int, cursor: str, query: Mapping[str, object]
    ) -> Page:
        """Return so many rows, of as many pages as that takes."""
        answer = schemas.page_of(name, rows)
        found: list[Row] = []
        following: str | None = cursor
        while following is not None and len(found) < limit:
            more = {"limit": min(limit - len(found), schemas.MOST), "cursor": following, **query}
            page = self._ask("GET", name, answer, more)
            found += page[name]
            following = page["next"]
        return Page(found, following)

    def _ask(
        self,
        method: str,
        path: str,
        answer: type[Schema],
        query: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Row:
        url, shown = (f"{base}/{quote(path)}" for base in (self._base, self._shown))
        if "data" in more:
            more["headers"] = {"Content-Type": "application/json"}
        try:
            response = self._session.request(
                method, url, params=query, timeout=_TIMEOUT_SECONDS, allow_redirects=False, **more
            )
        except requests.RequestException as error:
            raise ReceiverError(f"{shown} cannot be asked: {_cause(error)}") from error
        try:
            if response.status_code != 200:
                raise _error(response.status_code, schemas.ProblemSchema().loads(response.text))
            found: Row = answer().loads(response.text)
        except (ValueError, ValidationError, AttributeError) as error:
            raise ReceiverError(
                f"{shown} answers {response.status_code}, and not as a receiver does"
            ) from error
        return found


def without_login(url: str) -> str:
    """Return a URL as it may be shown: without user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _credential(settings: Settings) -> requests.auth.AuthBase | None:
    for token in _TOKENS:
        if tokens := getattr(settings, token):
            return _Bearer(tokens[0])
    for login in _LOGINS:
        if logins := getattr(settings, login):
            user, _, password = logins[0].partition(":")
            return requests.auth.HTTPBasicAuth(user.encode(), password.encode())
    return None


def _error(status: int, problem: Row) -> ReceiverError:
    detail = str(problem.get("detail", "no more is said"))
    if status == 404:
        return NotFoundError(detail)
    if status == 409:
        return OperationError(detail)
    if status == 400:
        errors = problem.get("errors", [])
        return NotificationError(detail, {one["field"]: one["error"] for one in errors})
    return ReceiverError(f"the receiver answers {status}: {detail}")


def _cause(error: BaseException) -> str:
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error).partition("\n")[0] or type(error).__name__
