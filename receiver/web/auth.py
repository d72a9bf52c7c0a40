"""Who may do what: scopes, bearer tokens and basic auth, compared in constant time.

Without any credential in the settings, whoever can connect may do all: that is this machine, or
what `RECEIVER_AUTH=none` lets in. With any, every scope needs one; a scope that none is set for is
closed.
"""

import base64
import binascii
import enum
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from urllib.parse import urlsplit

from flask import Blueprint, g, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Forbidden, Unauthorized

from receiver.settings import Settings
from receiver.web.secret import Secret

_REALM = "alert-receiver"


class Scope(enum.Enum):
    """What a credential is good for; OPERATE includes READ, and SUBMIT stands alone."""

    SUBMIT = "submit"
    READ = "read"
    OPERATE = "operate"

    def includes(self, other: "Scope") -> bool:
        """Whether a credential of this scope is good for the other."""
        return self is other or (self is Scope.OPERATE and other is Scope.READ)


@dataclass(frozen=True)
class Caller:
    """Who sent a request: a user's name, or the kind of credential; and what it is good for."""

    name: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """Whether this caller has a scope."""
        return any(one.includes(scope) for one in self.scopes)


_ANYONE = Caller("anyone", frozenset(Scope))


class Access:
    """Decides each request by the credentials of the settings, whose files may change."""

    def __init__(self, settings: Settings) -> None:
        """Start with the credentials that were read with the settings."""
        self._credentials = [
            (scheme, scope, Secret(f"{scope.value}_{field}", settings, _digests[scheme]))
            for scope in Scope
            for scheme, field in (("bearer", "token"), ("basic", "basic_auth"))
            if getattr(settings, f"{scope.value}_{field}")
        ]
        self._demands_certificate = settings.tls_client_ca is not None
        self._certificate_suffices = self._demands_certificate and not any(
            scope is Scope.SUBMIT for _, scope, _ in self._credentials
        )
        self._is_open = not self._credentials and not self._demands_certificate
        # Else a page whose own name leads to 127.0.0.1 could do here what its reader may.
        self._answers_localhost_only = settings.bind.is_loopback and settings.auth != "none"

    def guard(self, blueprint: Blueprint, scope: Scope) -> Blueprint:
        """Return the blueprint, whose views all need the scope from now on."""
        blueprint.before_request(partial(self.require, scope))
        return blueprint

    def require(self, scope: Scope) -> None:
        """Return when the request under way has the scope; raise Unauthorized or Forbidden.

        `g.caller` is who sent it, from then on.
        """
        _refuse_foreign_pages()
        caller = self._caller(scope)
        if caller is None:
            raise Unauthorized(
                f"this needs a token or a login: RECEIVER_{scope.name}_TOKEN or "
                f"RECEIVER_{scope.name}_BASIC_AUTH here, http_config in Alertmanager",
                www_authenticate=self.challenges(),
            )
        if not caller.may(scope):
            raise Forbidden(f"these credentials are good, but not for what needs {scope.value}")
        g.caller = caller

    def challenges(self) -> list[WWWAuthenticate]:
        """Return how whoever has no good credentials can send some."""
        return [
            # A browser asks its reader for a password only when one can be right.
            WWWAuthenticate(scheme, {"realm": _REALM})
            for scheme in ("bearer", "basic")
            if scheme == "bearer" or any(scheme == one for one, _, _ in self._credentials)
        ]

    def _caller(self, scope: Scope) -> Caller | None:
        if self._is_open:
            if self._answers_localhost_only and not _is_localhost(request.host):
                raise Forbidden(
                    "without credentials only requests to localhost are answered; set "
                    f"RECEIVER_{scope.name}_TOKEN, or RECEIVER_AUTH=none"
                )
            return _ANYONE
        if scope is Scope.SUBMIT and self._demands_certificate:
            if not _has_certificate():
                raise Forbidden("this needs a client certificate: tls_config in Alertmanager")
            if self._certificate_suffices:
                return Caller("certificate", frozenset([Scope.SUBMIT]))
        sent = _sent_credential()
        # All are compared, so that the time tells nothing.
        matching = [
            (name, scope)
            for _, scope, secret in self._credentials
            for digest, name in secret.value().items()
            if hmac.compare_digest(digest, sent)
        ]
        if not matching:
            return None
        return Caller(matching[0][0], frozenset(scope for _, scope in matching))


# By the digest of "scheme credential": equally long, whatever is compared.
def _digest(scheme: bytes, credential: bytes) -> bytes:
    return sha256(scheme + b" " + credential).digest()


def _token_digests(tokens: tuple[str, ...]) -> Mapping[bytes, str]:
    return {_digest(b"bearer", one.encode()): "token" for one in tokens}


def _login_digests(logins: tuple[str, ...]) -> Mapping[bytes, str]:
    return {_digest(b"basic", one.encode()): one.partition(":")[0] for one in logins}


_digests = {"bearer": _token_digests, "basic": _login_digests}


def _sent_credential() -> bytes:
    header = request.headers.get("Authorization", "").encode("latin-1", "replace")
    scheme, _, credential = header.partition(b" ")
    scheme, credential = scheme.lower(), credential.strip()
    if scheme == b"basic":
        try:
            credential = base64.b64decode(credential, validate=True)
        except binascii.Error:
            credential = b""
    return _digest(scheme, credential)


def _has_certificate() -> bool:
    """Whether the connection was made with a client certificate, which TLS itself has verified."""
    connection = request.environ.get("gunicorn.socket")
    return bool(connection is not None and connection.getpeercert())


def _refuse_foreign_pages() -> None:
    """Raise Forbidden when a page of another origin makes its reader's browser change something.

    Browsers say so themselves, and send along whatever password they know.
    """
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is None and origin is not None:
        site = "same-origin" if origin.partition("://")[2] == request.host else "cross-site"
    if site not in (None, "same-origin", "none"):
        raise Forbidden("a page of another origin may not do this")


def _is_localhost(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
