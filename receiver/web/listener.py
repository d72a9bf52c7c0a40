"""The listening socket: bound in the first process, before any other part of the receiver starts.

The web process gets this socket from its parent. So the port stays bound while the web process is
restarted, and new connections wait in the backlog meanwhile.
"""

import errno
import os
import socket
import time

from receiver.declarations import Address
from receiver.errors import SettingsError

# gunicorn's own default.
_BACKLOG = 2048
# A receiver that was killed a moment ago may hold the port for as long as its web process ends.
_PATIENCE_SECONDS = 0.6
_STEP_SECONDS = 0.02


def open_listener(address: Address) -> socket.socket:
    """Return a socket that listens at this address; raise SettingsError when none can.

    The socket is closed in programs that this process executes. A fork that does not serve
    closes it.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            listener = _bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise SettingsError([_describe(address, error)]) from None
            time.sleep(_STEP_SECONDS)
        else:
            return listener


def is_in_use(address: Address) -> bool:
    """Return whether another socket listens at this address; nothing listens here afterwards.

    Raises SettingsError when no process on this machine could listen there as this user.
    """
    try:
        listener = _bind(address)
        listener.close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return True
        raise SettingsError([_describe(address, error)]) from None
    return False


def _bind(address: Address) -> socket.socket:
    found = socket.getaddrinfo(
        address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    # A name such as `localhost` means IPv4 when it has addresses of both kinds.
    family, kind, protocol, _, place = min(found, key=lambda one: one[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
    except OSError:
        listener.close()
        raise
    return listener


def _describe(address: Address, error: OSError) -> str:
    """Return one line: the address, the reason and the cure."""
    other = f"set another address with --bind or RECEIVER_BIND ({_make_run(address)})"
    match error.errno:
        case errno.EADDRINUSE:
            reason = f"another program uses this port; stop it, or {other}"
        case errno.EACCES:
            reason = (
                f"port {address.port} is privileged, and this user (uid {os.geteuid()}) may not "
                f"bind it; {other}, or give the process CAP_NET_BIND_SERVICE"
            )
        case errno.EADDRNOTAVAIL:
            reason = f"this machine has no such address; {other}"
        case _ if isinstance(error, socket.gaierror):
            reason = f"the host name cannot be resolved: {error.strerror}; {other}"
        case _:
            reason = f"cannot listen there: {error.strerror or error}; {other}"
    return f"RECEIVER_BIND: {address}: {reason}"


def _make_run(address: Address) -> str:
    port = address.port + 1 if 1024 <= address.port < 65535 else 8080
    return f"for make run: BIND={Address('127.0.0.1', port)}"
