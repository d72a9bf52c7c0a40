"""The environment variables that gunicorn and Flask read on their own: none has an effect here.

What the receiver does follows from its own settings alone. The variables stay where they are for
actions: only the web process, and the import of the frameworks, are without them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

FOREIGN = (
    # gunicorn: options, address, number of processes, trusted proxies, a prefix of all paths.
    "GUNICORN_CMD_ARGS",
    "PORT",
    "WEB_CONCURRENCY",
    "FORWARDED_ALLOW_IPS",
    "SCRIPT_NAME",
    "SENDFILE",
    # gunicorn: sockets and process ids of another gunicorn, or of systemd.
    "GUNICORN_PID",
    "GUNICORN_FD",
    "GUNICORN_DIRTY_SOCKET",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    # Flask: a mode in which errors are answered differently.
    "FLASK_DEBUG",
    # Python: a file for the keys of all TLS connections.
    "SSLKEYLOGFILE",
)


@contextmanager
def without_foreign_variables() -> Iterator[None]:
    """Hide the variables for a while; gunicorn reads some of them when it is imported."""
    hidden = {name: os.environ.pop(name) for name in FOREIGN if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def forget_foreign_variables() -> None:
    """Remove the variables from this process for good; gunicorn reads some at each request."""
    for name in FOREIGN:
        os.environ.pop(name, None)
