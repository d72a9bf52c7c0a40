"""`receiver send`: post a notification as Alertmanager would."""

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import click
import requests
from requests.auth import HTTPBasicAuth

from receiver.cli.options import settings_options
from receiver.cli.remote import without_login
from receiver.errors import ReceiverError
from receiver.settings import URL, Settings

SAMPLES = {
    "firing": "one alert that fires",
    "resolved": "the same alert, resolved",
    "group": "three alerts of one group: two fire, one has resolved",
}
_TIMEOUT_SECONDS = 15
_WEBHOOK = "/webhook"


@click.command
@click.argument("what", required=False)
@click.option("--list", "list_them", is_flag=True, help="List the samples.")
@click.option("--print", "print_it", is_flag=True, help="Print the body instead of posting it.")
@click.option(
    "--url",
    help="The receiver's URL, or the webhook's.  [default: RECEIVER_URL, or RECEIVER_BIND]",
)
@click.option("--ca-file", help="Trust the certificates in this file, for TLS.")
@click.option("--action", help="Post to /webhook/ACTION.")
@click.option("--source", help="Post as this source, with its credentials if it has some.")
@settings_options
def send(
    settings: Settings,
    what: str | None,
    list_them: bool,
    print_it: bool,
    url: str | None,
    ca_file: str | None,
    action: str | None,
    source: str | None,
) -> None:
    """Post WHAT to a receiver: the name of a sample, or a file.

    A sample fires from now on, so that each one sent begins an episode; a file is sent as it is.
    It logs in by RECEIVER_SUBMIT_TOKEN, or by RECEIVER_SUBMIT_BASIC_AUTH without it.
    """
    if list_them or what is None:
        for name, text in SAMPLES.items():
            click.echo(f"{name:9} {text}")
        return
    body = sample(what, datetime.now(UTC)) if what in SAMPLES else _read(what)
    if print_it:
        click.echo(body)
        return
    target = _target(settings, url, action, source)
    own = settings.sources.get(source or "")
    sender = own if own is not None and own.has_credentials else settings
    headers = {"Content-Type": "application/json"}
    login = None
    if sender.submit_token:
        headers["Authorization"] = f"Bearer {sender.submit_token[0]}"
    elif sender.submit_basic_auth:
        user, _, password = sender.submit_basic_auth[0].partition(":")
        login = HTTPBasicAuth(user.encode(), password.encode())
    try:
        session = requests.Session()
        session.trust_env = False  # The token goes to the receiver, not to a proxy.
        answer = session.post(
            target,
            data=body.encode(),
            headers=headers,
            auth=login,
            verify=ca_file or True,
            timeout=_TIMEOUT_SECONDS,
            allow_redirects=False,
        )
    except (requests.RequestException, OSError) as error:
        raise ReceiverError(
            f"{without_login(target)} does not answer: {error}; is `receiver serve` running there?"
        ) from error
    click.echo(f"{answer.status_code} {answer.text.strip()}")
    if answer.status_code != 200:
        sys.exit(1)


def _target(settings: Settings, url: str | None, action: str | None, source: str | None) -> str:
    """Return where to post: the webhook, also where only the address of its receiver is given."""
    address: str | None = click.get_current_context().obj
    if url is None and address is not None:
        url = f"{address.rstrip('/')}{_WEBHOOK}"
    scheme = "https" if settings.tls_cert else "http"
    try:
        whole: str = URL.parse(url or f"{scheme}://{settings.bind}")
    except ValueError as error:
        raise ReceiverError(f"--url: the address {error}") from None
    parts = urlsplit(whole)
    path = parts.path.rstrip("/") or _WEBHOOK
    if action:
        path += f"/{quote(action, safe='')}"
    query = parts.query
    if source is not None:
        query = f"{query}&source={quote(source, safe='')}".lstrip("&")
    return parts._replace(path=path, query=query).geturl()


def sample(name: str, now: datetime) -> str:
    """Return a sample body whose alerts began (and, if resolved, ended) as of `now`."""
    file = Path(__file__).parent.parent / "samples" / f"{name}.json"
    body: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for alert in body["alerts"]:
        if alert["status"] == "firing":
            alert["startsAt"] = now.isoformat()
        else:
            alert["startsAt"] = (now - timedelta(minutes=5)).isoformat()
            alert["endsAt"] = now.isoformat()
    return json.dumps(body, indent=2)


def _read(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ReceiverError(
            f"{name} is neither a sample ({', '.join(SAMPLES)}) nor a readable file: {error}"
        ) from error
