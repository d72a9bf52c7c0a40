"""The webhooks that an Alertmanager configuration names, and whether they can be reached."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import requests
from requests.auth import HTTPBasicAuth

from receiver.errors import SettingsError

_TIMEOUT_SECONDS = 10
_CURES = {
    401: "its credentials are wrong or missing; compare with RECEIVER_SUBMIT_TOKEN",
    403: "its credentials may not post; give it RECEIVER_SUBMIT_TOKEN, or those of its source",
    404: "there is no such action, or no receiver; compare the path with `receiver plugins`",
    503: "the receiver cannot store now, or is stopping; its log says why",
}


@dataclass(frozen=True)
class Webhook:
    """One webhook whose path is the receiver's, with how Alertmanager would speak to it."""

    url: str
    receiver: str
    is_routed_to: bool
    sends_resolved: bool
    max_alerts: int
    options: dict[str, Any] = field(repr=False, default_factory=dict)

    def __str__(self) -> str:
        return f"{self.receiver}, {self.url}"

    @property
    def action(self) -> str:
        """The action that its path names; empty where alerts name their own."""
        return unquote(urlsplit(self.url).path.rstrip("/").partition("/webhook/")[2])


def configured_webhooks(config: Any, directory: Path) -> list[Webhook]:
    """Return those that look like a receiver's; relative files are looked up in `directory`."""
    if not isinstance(config, dict):
        raise SettingsError(["the Alertmanager configuration is not a mapping"])
    routed = set(_receivers_of(config.get("route") or {}))
    return [
        Webhook(
            str(one["url"]),
            str(receiver.get("name")),
            receiver.get("name") in routed,
            one.get("send_resolved", True) is True,
            int(one.get("max_alerts", 0)),
            _options(one.get("http_config") or {}, directory),
        )
        for receiver in config.get("receivers") or ()
        for one in receiver.get("webhook_configs") or ()
        if "/webhook" in urlsplit(str(one.get("url", ""))).path
    ]


def try_webhook(webhook: Webhook) -> tuple[str, str]:
    """Return whether it is reached and let in; what is posted is refused, and so never stored."""
    headers = {"Content-Type": "application/json", **webhook.options.get("headers", {})}
    more = {name: one for name, one in webhook.options.items() if name != "headers"}
    try:
        with requests.Session() as session:
            session.trust_env = False  # The token goes to the receiver, not to a proxy.
            answer = session.post(
                webhook.url,
                data=b"{}",
                headers=headers,
                timeout=_TIMEOUT_SECONDS,
                allow_redirects=False,
                **more,
            )
    except (requests.RequestException, OSError) as error:
        return "wrong", f"{webhook} cannot be reached from here: {error}"
    if answer.status_code == 400:
        wrong = set(parse_qs(urlsplit(webhook.url).query, keep_blank_values=True)) - {"source"}
        if wrong:
            parameters = ", ".join(sorted(wrong))
            return "wrong", f"{webhook} has the unknown parameter {parameters}; use only source"
        return "ok", f"{webhook} is reached and let in"
    cure = _CURES.get(answer.status_code, "this is no receiver, or something stands before it")
    return "wrong", f"{webhook} answers {answer.status_code}: {cure}"


def _receivers_of(route: dict[str, Any]) -> Iterator[str]:
    if "receiver" in route:
        yield str(route["receiver"])
    for child in route.get("routes") or ():
        yield from _receivers_of(child)


def _options(http: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Return what `requests` needs to speak as Alertmanager would."""
    options: dict[str, Any] = {}
    if authorization := http.get("authorization"):
        scheme = authorization.get("type", "Bearer")
        secret = _secret(authorization, "credentials", directory)
        options["headers"] = {"Authorization": f"{scheme} {secret}"}
    if basic := http.get("basic_auth"):
        password = _secret(basic, "password", directory)
        options["auth"] = HTTPBasicAuth(str(basic.get("username", "")).encode(), password.encode())
    tls = http.get("tls_config") or {}
    if tls.get("insecure_skip_verify"):
        options["verify"] = False
    elif "ca_file" in tls:
        options["verify"] = str(directory / tls["ca_file"])
    if "cert_file" in tls:
        options["cert"] = (str(directory / tls["cert_file"]), str(directory / tls["key_file"]))
    return options


def _secret(section: dict[str, Any], key: str, directory: Path) -> str:
    if key in section:
        return str(section[key])
    file = directory / str(section.get(f"{key}_file", ""))
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            [f"{file}: {key}_file of the Alertmanager configuration cannot be read: {error}"]
        ) from error
