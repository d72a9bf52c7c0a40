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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from urllib.parse import urlsplit

from flask import Blueprint, g, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Forbidden, Unauthorized

from receiver.declarations import declared
from receiver.settings import Settings, table
from receiver.sources import Source
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
    """Who sent a request: a user's name, or the kind of credential; and what it is good for.

    `source` is the only one that the credential may post as; None: it is bound to none.
    """

    name: str
    scopes: frozenset[Scope]
    source: str | None = None

    def may(self, scope: Scope) -> bool:
        """Whether this caller has a scope."""
        return any(one.includes(scope) for one in self.scopes)


_ANYONE = Caller("anyone", frozenset(Scope))


class Access:
    """Decides each request by the credentials of the settings, whose files may change."""

    def __init__(self, settings: Settings) -> None:
        """Start with the credentials that were read with the settings."""
        self._credentials = [*_general_credentials(settings), *_bound_credentials(settings)]
        self._sources_with_credentials = frozenset(
            name for name, source in settings.sources.items() if source.has_credentials
        )
        self._demands_certificate = settings.tls_client_ca is not None
        self._certificate_suffices = self._demands_certificate and not any(
            one.scope is Scope.SUBMIT for one in self._credentials
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
            if scheme == "bearer" or any(scheme == one.scheme for one in self._credentials)
        ]

    def source_of(self, asked: str) -> str:
        """Return the source of the request under way, whose query asks for this one or for none.

        Raises Forbidden where its credentials may not post as that source.
        """
        own: str | None = g.caller.source
        if own is None:
            if asked in self._sources_with_credentials:
                raise Forbidden(
                    f"only the credentials of [sources.{asked}] may post as the source {asked}"
                )
            return asked
        if asked not in ("", own):
            raise Forbidden(
                f"these credentials are those of the source {own}, and may not post as {asked}; "
                "leave ?source= out of the URL"
            )
        return own

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
            (name, one)
            for one in self._credentials
            for digest, name in one.secret.value().items()
            if hmac.compare_digest(digest, sent)
        ]
        if not matching:
            return None
        sources = {one.source for _, one in matching if one.source is not None}
        if scope is Scope.SUBMIT and len(sources) > 1:  # Their files were changed meanwhile.
            raise Forbidden("these credentials are those of several sources; give each its own")
        scopes = frozenset(one.scope for _, one in matching)
        return Caller(matching[0][0], scopes, next(iter(sources), None))


@dataclass(frozen=True)
class _Credential:
    """What can be sent: by which scheme, what for, and as which source if it is bound to one."""

    scheme: str
    scope: Scope
    secret: Secret[Mapping[bytes, str]]
    source: str | None = None


def _general_credentials(settings: Settings) -> Iterator[_Credential]:
    settings_table = table()
    for scope in Scope:
        for scheme, key in (("bearer", "token"), ("basic", "basic_auth")):
            setting = settings_table[f"{scope.value}_{key}"]
            if value := getattr(settings, f"{scope.value}_{key}"):
                file = settings.secret_files.get(setting.name)
                yield _Credential(scheme, scope, Secret(setting, value, file, _digests[scheme]))


def _bound_credentials(settings: Settings) -> Iterator[_Credential]:
    source_table = declared(Source)
    for name, source in settings.sources.items():
        for scheme, key in (("bearer", "submit_token"), ("basic", "submit_basic_auth")):
            if value := getattr(source, key):
                file, section = source.secret_files.get(key), f"[sources.{name}]"
                secret = Secret(source_table[key], value, file, _digests[scheme], section)
                yield _Credential(scheme, Scope.SUBMIT, secret, name)


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
