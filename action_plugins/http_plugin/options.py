"""The settings of `http_plugin`: declared, and read into one checked value. Pure but for files."""

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from action_plugins.http_plugin.body import Template
from receiver import Setting

T = TypeVar("T")

ENDPOINT = "HTTP_PLUGIN_ENDPOINT"
METHOD = "HTTP_PLUGIN_METHOD"
HEADERS = "HTTP_PLUGIN_HEADERS"
TOKEN_FILE = "HTTP_PLUGIN_TOKEN_FILE"  # noqa: S105 - a setting's name
BODY = "HTTP_PLUGIN_BODY"
EXPECTED = "HTTP_PLUGIN_EXPECTED_STATUS"
TIMEOUT = "HTTP_PLUGIN_TIMEOUT"
BUNDLE = "HTTP_PLUGIN_CA_BUNDLE"
CERTIFICATE = "HTTP_PLUGIN_CLIENT_CERT"
KEY = "HTTP_PLUGIN_CLIENT_KEY"

WITHOUT_BODY = ("GET", "DELETE")

SETTINGS = (
    Setting(
        ENDPOINT,
        "url",
        "http://localhost:8080",
        "the URL to call; `user:password@` in it is sent as basic auth",
        secret=True,
    ),
    Setting(
        METHOD,
        "text",
        "POST",
        "the method; `GET` and `DELETE` carry no body",
        choices=("POST", "PUT", "PATCH", "GET", "DELETE"),
    ),
    Setting(HEADERS, "text", None, "more headers, `Name: value`, one a line", secret=True),
    Setting(
        TOKEN_FILE,
        "path",
        None,
        "a file that holds a bearer token; read at every attempt, so that it may be renewed",
    ),
    Setting(
        BODY,
        "text",
        None,
        "the body, a JSON document in whose strings `{{ metric_name }}` and other names are "
        "filled in; default: the whole call",
    ),
    Setting(
        EXPECTED, "list", "2xx", "the statuses that mean success: such as `200, 202` or `2xx, 409`"
    ),
    Setting(TIMEOUT, "duration", "10s", "the time for one exchange, from first to last"),
    Setting(
        BUNDLE,
        "path",
        None,
        "a PEM file of the authorities to trust for https instead of the public ones",
    ),
    Setting(
        CERTIFICATE, "path", None, "a PEM file with the certificate to show for https, and its key"
    ),
    Setting(KEY, "path", None, "the PEM file of that key, where it is not in the same file"),
)

_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~]*)")
# What the exchange itself says; a second word on it would only contradict.
_OWN_HEADERS = frozenset({
    "accept-encoding", "connection", "content-length", "host", "idempotency-key", "te", "trailer",
    "transfer-encoding", "upgrade",
})  # fmt: skip
_STATUS = re.compile(r"[1-5](?:xx|[0-9]{2})")


@dataclass(frozen=True)
class Endpoint:
    """Where to post: the URL without its credentials, these as a header, and what may be shown."""

    url: str = field(repr=False)
    authorization: str | None = field(repr=False)
    shown: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """Return the parts of a URL."""
        parts = urlsplit(url)
        credentials, _, host = parts.netloc.rpartition("@")
        authorization = None
        if credentials:
            user, _, password = credentials.partition(":")
            pair = f"{unquote(user)}:{unquote(password)}".encode()
            authorization = f"Basic {base64.b64encode(pair).decode()}"
        bare = parts._replace(netloc=host, fragment="")
        return cls(urlunsplit(bare), authorization, f"{parts.scheme}://{host}")


@dataclass(frozen=True)
class Options:
    """What the operator has decided."""

    endpoint: Endpoint
    method: str
    headers: Mapping[str, str] = field(repr=False)
    token_file: Path | None
    template: Template | None
    expected: tuple[str, ...]
    seconds: float
    bundle: Path | None
    certificate: Path | None
    key: Path | None

    @property
    def has_body(self) -> bool:
        """Whether a request of this method carries one."""
        return self.method not in WITHOUT_BODY

    def expects(self, status: int) -> bool:
        """Whether an answer with this status means success."""
        return any(one in (str(status), f"{status // 100}xx") for one in self.expected)


def read_options(settings: Mapping[str, Any]) -> Options:
    """Return the parsed settings as one value; raise ValueError with every problem at once."""
    problems: list[str] = []
    endpoint = Endpoint.parse(settings[ENDPOINT])
    options = Options(
        endpoint=endpoint,
        method=settings[METHOD],
        headers=_read(HEADERS, parse_headers, settings[HEADERS] or "", problems, {}),
        token_file=settings[TOKEN_FILE],
        template=_read(BODY, Template.parse, settings[BODY], problems, None),
        expected=_read(EXPECTED, _statuses, settings[EXPECTED], problems, ()),
        seconds=settings[TIMEOUT].total_seconds(),
        bundle=settings[BUNDLE],
        certificate=settings[CERTIFICATE],
        key=settings[KEY],
    )
    if not options.seconds:
        problems.append(f"{TIMEOUT}: 0s leaves no time to post; write 10s")
    if options.template is not None and not options.has_body:
        problems.append(f"{BODY}: {options.method} carries no body; unset it, or {METHOD}")
    if options.key is not None and options.certificate is None:
        problems.append(f"{KEY}: is set without {CERTIFICATE}; set both")
    named = [one for one in options.headers if one.lower() == "authorization"]
    ways = [
        f"the user in {ENDPOINT}" if endpoint.authorization else "",
        f"{TOKEN_FILE}" if options.token_file else "",
        f"Authorization in {HEADERS}" if named else "",
    ]
    if sum(map(bool, ways)) > 1:
        problems.append(f"{' and '.join(filter(None, ways))} are set together; keep one of them")
    if problems:
        raise ValueError("; ".join(problems))
    return options


def check_files(options: Options) -> None:
    """Raise ValueError where a file that is named is not there."""
    problems = [
        f"{name}: {path} is not a file; name a {kind}"
        for name, path, kind in (
            (TOKEN_FILE, options.token_file, "file that holds the token"),
            (BUNDLE, options.bundle, "PEM file"),
            (CERTIFICATE, options.certificate, "PEM file"),
            (KEY, options.key, "PEM file"),
        )
        if path is not None and not path.is_file()
    ]
    if problems:
        raise ValueError("; ".join(problems))


def parse_headers(text: str) -> dict[str, str]:
    """Return name -> value of lines `Name: value`; raise ValueError without showing a value."""
    headers: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = _HEADER.fullmatch(line.strip())
        if match is None:
            raise ValueError(
                f"line {number} is not a header; write `Name: value` in printable ASCII"
            )
        if match[1].lower() in _OWN_HEADERS:
            raise ValueError(f"{match[1]} is set by the exchange itself; leave it out")
        if match[1].lower() in map(str.lower, headers):
            raise ValueError(f"{match[1]} stands there twice; keep one of them")
        headers[match[1]] = match[2].strip()
    return headers


def _statuses(words: tuple[str, ...]) -> tuple[str, ...]:
    found = tuple(word.lower() for word in words)
    for word in found:
        if not _STATUS.fullmatch(word):
            raise ValueError(f'"{word:.20}" is not a status; write 200 or 2xx')
    if not found:
        raise ValueError("names no status; write 2xx")
    return found


def _read(name: str, parse: Callable[[Any], T], raw: Any, problems: list[str], otherwise: T) -> T:
    """Return a setting parsed further; note a problem under its name."""
    try:
        return otherwise if raw is None else parse(raw)
    except ValueError as error:
        problems.append(f"{name}: {error}")
        return otherwise
