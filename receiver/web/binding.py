"""Where the receiver may listen, and to whom it answers there: it fails closed."""

import ssl

from receiver.errors import SettingsError
from receiver.settings import Settings, table


def check_bind(settings: Settings) -> None:
    """Raise SettingsError for what would be open to others, closed to Alertmanager, or no TLS."""
    problems = _tls_problems(settings)
    if settings.auth != "none" and not settings.bind.is_loopback and not _has_credentials(settings):
        problems.append(
            f"RECEIVER_BIND: {settings.bind} can be reached by others, and there are no "
            "credentials; set RECEIVER_SUBMIT_TOKEN or RECEIVER_SUBMIT_TOKEN_FILE, or "
            "RECEIVER_AUTH=none if something else protects it"
        )
    if _has_credentials(settings) and not has_credentials_for(settings, "submit"):
        problems.append(
            "RECEIVER_SUBMIT_TOKEN: is not set while other credentials are, which closes the "
            "webhook; set it, or RECEIVER_SUBMIT_BASIC_AUTH, or RECEIVER_TLS_CLIENT_CA"
        )
    if problems:
        raise SettingsError(problems)


def who_may(settings: Settings, scope: str) -> str:
    """Return in words who has a scope, as `check_bind` and `Access` see it."""
    if not _has_credentials(settings):
        if settings.auth == "none":
            return "anyone who can connect (RECEIVER_AUTH=none)"
        return "anyone on this machine"
    names = _credentials_for(settings, scope)
    who = f"whoever has {' or '.join(names)}" if names else ""
    if scope == "submit" and settings.tls_client_ca:
        who = "whoever has a certificate of RECEIVER_TLS_CLIENT_CA" + (
            f", and {' or '.join(names)}" if names else ""
        )
    return who or f"nobody, for want of RECEIVER_{scope.upper()}_TOKEN"


def has_credentials_for(settings: Settings, scope: str) -> bool:
    """Whether anybody can have this scope, by a credential that is set for it."""
    return bool(
        _credentials_for(settings, scope)
        or (scope == "submit" and settings.tls_client_ca is not None)
    )


def _has_credentials(settings: Settings) -> bool:
    return any(has_credentials_for(settings, scope) for scope in ("submit", "read", "operate"))


def _credentials_for(settings: Settings, scope: str) -> list[str]:
    """Return the names of the settings that give a scope."""
    names = [
        setting.name
        for field, setting in table().items()
        for one in ([scope, "operate"] if scope == "read" else [scope])
        if field in (f"{one}_token", f"{one}_basic_auth") and getattr(settings, field)
    ]
    if scope == "submit":
        names += [
            f"[sources.{name}] {key}"
            for name, source in settings.sources.items()
            for key in ("submit_token", "submit_basic_auth")
            if getattr(source, key)
        ]
    return names


def _tls_problems(settings: Settings) -> list[str]:
    cert, key, ca = settings.tls_cert, settings.tls_key, settings.tls_client_ca
    if cert is None or key is None:
        return [
            f"{name}: is not set, though {other} is; TLS needs a certificate and its key"
            for name, value, other, needed in (
                ("RECEIVER_TLS_CERT", cert, "RECEIVER_TLS_KEY", key),
                ("RECEIVER_TLS_KEY", key, "RECEIVER_TLS_CERT", cert),
                ("RECEIVER_TLS_CERT", cert, "RECEIVER_TLS_CLIENT_CA", ca),
            )
            if value is None and needed is not None
        ]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    problems = []
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (OSError, ValueError) as error:
        problems.append(f"RECEIVER_TLS_CERT: {cert} with the key {key}: {_why(error)}")
    try:
        if ca is not None:
            context.load_verify_locations(ca)
    except (OSError, ValueError) as error:
        problems.append(f"RECEIVER_TLS_CLIENT_CA: {ca}: {_why(error)}")
    return problems


def _no_password() -> str:
    raise ValueError("the key is encrypted; it must not be")


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"cannot be used: {(error.reason or 'not PEM').lower().replace('_', ' ')}"
    return f"cannot be used: {error.strerror if isinstance(error, OSError) else error}"
