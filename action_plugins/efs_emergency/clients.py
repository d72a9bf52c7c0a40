"""EFS clients: one per region, made at first use, shared by all threads, bounded in time.

Clients are thread-safe and sessions are not, so the one session is used under a lock.
https://boto3.amazonaws.com/v1/documentation/api/latest/guide/clients.html
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import boto3.session
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from action_plugins.efs_emergency import failures
from receiver import ActionContext, PermanentError, TemporaryError


@dataclass(frozen=True)
class Timeouts:
    """How long one request of a client may take, in seconds, and how often it is sent."""

    connect: float
    read: float
    attempts: int

    @property
    def one_request(self) -> float:
        """The longest time that one request can take."""
        return self.connect + self.read

    def config(self) -> Config:
        """Return them as botocore takes them."""
        return Config(
            connect_timeout=self.connect,
            read_timeout=self.read,
            retries={"mode": "standard", "total_max_attempts": self.attempts},
            user_agent_extra="alert-receiver/efs_emergency",
        )


PATIENT = Timeouts(connect=3, read=10, attempts=3)
# For the last seconds of an attempt: timeouts belong to a client and cannot be given per call.
HURRIED = Timeouts(connect=1, read=2, attempts=2)


@dataclass
class _Call:
    """The call that this thread is in, for the handler that botocore calls before each request."""

    context: ActionContext
    one_request_seconds: float
    hosts: set[str] = field(default_factory=set)


_current_call: ContextVar[_Call | None] = ContextVar("_current_call", default=None)


def _stop_in_time(request: Any, **_: Any) -> None:
    """Refuse to send what can no longer be answered in time: a retry, or after a cancel.

    botocore lets what is raised here pass, and does not retry it.
    """
    call = _current_call.get()
    if call is None:
        return
    call.context.raise_if_cancelled()
    host = urlsplit(request.url).netloc
    # The first request to a host (STS, then EFS) is always sent: it may well be quick.
    if host in call.hosts and call.context.remaining_seconds() < call.one_request_seconds:
        raise TemporaryError(f"{host} did not answer well within the time of this attempt")
    call.hosts.add(host)


class Clients:
    """The clients of this process. `forget` starts anew, with credentials read afresh."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._session: botocore.session.Session | None = None
        self._boto3: Any = None
        self._clients: dict[tuple[str, Timeouts], Any] = {}

    @contextmanager
    def session(self, context: ActionContext) -> Iterator[Any]:
        """Yield botocore's session to this thread alone; raise as `failures.explain` does."""
        if not self._lock.acquire(timeout=context.remaining_seconds()):
            context.raise_if_cancelled()
            raise TemporaryError("another attempt was still fetching AWS credentials")
        try:
            if self._session is None:
                session = _make_session()
                self._boto3 = boto3.session.Session(botocore_session=session)
                self._session = session
            yield self._session
        except (BotoCoreError, OSError) as error:
            raise failures.explain(error, "using the AWS configuration") from None
        except ValueError as error:
            raise PermanentError(f"the AWS configuration cannot be used: {error}") from None
        finally:
            self._lock.release()

    def get(self, region: str, timeouts: Timeouts, context: ActionContext) -> Any:
        """Return the client of a region with these timeouts, made if there is none yet.

        Making one can fetch credentials, which takes some seconds at most.
        """
        key = region, timeouts
        with self.session(context):
            if key not in self._clients:
                self._clients[key] = self._boto3.client(
                    "efs", region_name=region, config=timeouts.config()
                )
            return self._clients[key]

    def forget(self) -> None:
        """Drop session and clients: the next call reads configuration and credentials afresh."""
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
            self._session = self._boto3 = None
        for client in clients:
            client.close()


CLIENTS = Clients()


def timeouts_for(context: ActionContext) -> Timeouts:
    """Return the timeouts whose single request still fits into the time left, if any does."""
    return PATIENT if context.remaining_seconds() >= PATIENT.one_request else HURRIED


@contextmanager
def in_time(context: ActionContext, timeouts: Timeouts) -> Iterator[None]:
    """Let every request that this thread sends inside honour the deadline and a cancel."""
    context.raise_if_cancelled()
    token = _current_call.set(_Call(context, timeouts.one_request))
    try:
        yield
    finally:
        _current_call.reset(token)


def _make_session() -> Any:
    # Their debug lines hold whole requests and answers: tokens, signatures and secret keys.
    for name in ("boto3", "botocore"):
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.getEffectiveLevel(), logging.INFO))
    session = botocore.session.Session()
    # Holds for the clients that botocore makes for itself as well: STS, for IRSA.
    session.set_default_client_config(PATIENT.config())
    session.register("before-send", _stop_in_time)
    return session
