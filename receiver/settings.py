"""The settings of the receiver: one table, read from flags, environment and `receiver.toml`.

The fields of `Settings` are the table: it feeds `--help`, docs/settings.md and the tests. The first
of flag, environment, file and default decides. All problems are reported at once.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from receiver.declarations import (
    Address,
    Setting,
    Window,
    declared,
    nearest,
    resolve,
    secret_file,
    setting,
)
from receiver.errors import SettingsError
from receiver.policies import Limits
from receiver.policy_settings import POLICY_PREFIX, PolicySources, is_injected, load_policies
from receiver.sources import Source, load_sources

_TOML_KEYS = {"RECEIVER_ACTIONS": "enabled_actions"}
_CONFIG = Setting("RECEIVER_CONFIG", "path", help="the settings file, `receiver.toml`")
# Of commands that ask another receiver; no business of one that serves.
URL = Setting("RECEIVER_URL", "url", help="ask the receiver there, instead of the journal here")


@dataclass(frozen=True)
class Settings:
    """Every setting of the receiver, parsed; what has a name of the user's stands apart."""

    bind: Address = setting(
        "RECEIVER_BIND", "address", "127.0.0.1:8080", "the address to listen on"
    )
    data_dir: Path = setting(
        "RECEIVER_DATA_DIR",
        "path",
        "~/.local/state/alert-receiver",
        "the directory of the journal (SQLite); must be on a local disk",
    )
    database_url: str | None = setting(
        "RECEIVER_DATABASE_URL",
        "text",
        None,
        "the journal elsewhere: `postgresql+psycopg://user:password@host/name`",
        secret=True,
    )
    actions: tuple[str, ...] | None = setting(
        "RECEIVER_ACTIONS",
        "list",
        None,
        "the actions to load; default: the built-ins and those in `PLUGIN_DIR`",
    )
    action_plugin: tuple[str, ...] = setting(
        "ACTION_PLUGIN", "list", "", "the action of alerts that name none; a list runs several"
    )
    plugin_dir: Path | None = setting(
        "PLUGIN_DIR", "path", None, "a directory of plugins, a `.py` file or a package each"
    )
    auth: str = setting(
        "RECEIVER_AUTH",
        "text",
        "token",
        "`token`, or `none` to listen beyond loopback without credentials",
        choices=("token", "none"),
    )
    submit_token: tuple[str, ...] | None = setting(
        "RECEIVER_SUBMIT_TOKEN",
        "tokens",
        None,
        "the bearer token that Alertmanager sends to the webhook; two while it is changed",
        secret=True,
    )
    read_token: tuple[str, ...] | None = setting(
        "RECEIVER_READ_TOKEN",
        "tokens",
        None,
        "the bearer token of who may look: the page, the API, `/metrics`",
        secret=True,
    )
    operate_token: tuple[str, ...] | None = setting(
        "RECEIVER_OPERATE_TOKEN",
        "tokens",
        None,
        "the bearer token of who may look and act: retry, cancel, pause, approve, replay",
        secret=True,
    )
    submit_basic_auth: tuple[str, ...] | None = setting(
        "RECEIVER_SUBMIT_BASIC_AUTH",
        "logins",
        None,
        "`user:password` for the webhook; two while it is changed",
        secret=True,
    )
    read_basic_auth: tuple[str, ...] | None = setting(
        "RECEIVER_READ_BASIC_AUTH",
        "logins",
        None,
        "`user:password` of who may look",
        secret=True,
    )
    operate_basic_auth: tuple[str, ...] | None = setting(
        "RECEIVER_OPERATE_BASIC_AUTH",
        "logins",
        None,
        "`user:password` of who may look and act",
        secret=True,
    )
    metrics_open: bool = setting(
        "RECEIVER_METRICS_OPEN", "boolean", "false", "`/metrics` needs no credentials"
    )
    worker_metrics_bind: Address | None = setting(
        "RECEIVER_WORKER_METRICS_BIND",
        "address",
        None,
        "where a `receiver worker` that runs alone shows its `/metrics`",
    )
    tls_cert: Path | None = setting(
        "RECEIVER_TLS_CERT",
        "path",
        None,
        "the certificate, with its chain: the receiver speaks TLS",
    )
    tls_key: Path | None = setting(
        "RECEIVER_TLS_KEY", "path", None, "the private key of that certificate"
    )
    tls_client_ca: Path | None = setting(
        "RECEIVER_TLS_CLIENT_CA",
        "path",
        None,
        "whose client certificates the webhook demands, besides any other credentials",
    )
    max_body: int = setting(
        "RECEIVER_MAX_BODY", "size", "32MiB", "the largest request body that is accepted"
    )
    max_header: int = setting(
        "RECEIVER_MAX_HEADER", "size", "8KiB",
        "the largest header of a request that is accepted, its name included",
        minimum="1KiB", maximum="64KiB",
    )  # fmt: skip
    request_timeout: timedelta = setting(
        "RECEIVER_REQUEST_TIMEOUT",
        "duration",
        "30s",
        "how long a request may take, from its first byte to the end of the answer",
    )
    episode_tolerance: timedelta = setting(
        "RECEIVER_EPISODE_TOLERANCE",
        "duration",
        "0s",
        "a firing alert whose startsAt is later by no more than this continues its open episode",
    )
    grafana_value: str = setting(
        "RECEIVER_GRAFANA_VALUE",
        "text",
        "",
        "the refID of Grafana's query that is the `value`, where no annotation gives it",
    )
    dry_run: bool = setting(
        "RECEIVER_DRY_RUN", "boolean", "false", "no action acts; each only says what it would do"
    )
    limits_rate_limit: tuple[Window, ...] = setting(
        "RECEIVER_LIMITS_RATE_LIMIT", "rates", "", "runs of all actions together: `10/1h, 50/1d`"
    )
    limits_max_concurrent: int | None = setting(
        "RECEIVER_LIMITS_MAX_CONCURRENT", "count", None, "runs of all actions at a time"
    )
    retention: timedelta = setting(
        "RECEIVER_RETENTION", "duration", "30d", "how long runs and rejected alerts are kept"
    )
    audit_retention: timedelta | None = setting(
        "RECEIVER_AUDIT_RETENTION", "duration", None, "the same for the audit; default: as runs"
    )
    episode_retention: timedelta = setting(
        "RECEIVER_EPISODE_RETENTION", "duration", "400d", "how long re-sent alerts are known"
    )
    grace_period: timedelta = setting(
        "RECEIVER_GRACE_PERIOD",
        "duration",
        "25s",
        "how long running attempts may finish after SIGTERM",
    )
    lease: timedelta = setting(
        "RECEIVER_LEASE",
        "duration",
        "15s",
        "how long a worker may be silent before others take its runs (PostgreSQL); in all the same",
    )
    web_threads: int = setting(
        "RECEIVER_WEB_THREADS",
        "count",
        "16",
        "requests that are answered at a time, notifications apart",
    )
    web_one_processor: bool = setting(
        "RECEIVER_WEB_ONE_PROCESSOR",
        "boolean",
        "true",
        "while it is busy, the web process stays on one processor at a time, which is faster",
    )
    worker_executors: int = setting(
        "RECEIVER_WORKER_EXECUTORS",
        "count",
        "16",
        "attempts that run at a time, of all actions, each in a process of its own",
        maximum="256",
    )
    log_level: str = setting(
        "LOG_LEVEL",
        "text",
        "info",
        "`debug`, `info`, `warning` or `error`",
        choices=("debug", "info", "warning", "error"),
    )
    log_format: str = setting(
        "RECEIVER_LOG_FORMAT",
        "text",
        "json",
        "`json`, or `text` for people",
        choices=("json", "text"),
    )
    traces: str = setting(
        "RECEIVER_TRACES",
        "text",
        "none",
        "`otlp` sends traces to where OpenTelemetry's own variables say; needs the extra `[otel]`",
        choices=("none", "otlp"),
    )
    policies: Mapping[str, PolicySources] = field(default_factory=dict)
    plugin_settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict, repr=False)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    secret_files: Mapping[str, Path] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)

    @property
    def limits(self) -> Limits:
        """What bounds all actions together, `[limits]`."""
        return Limits(self.limits_rate_limit, self.limits_max_concurrent)

    @property
    def journal_url(self) -> str:
        """The database URL; SQLite in the data directory unless another is set."""
        return self.database_url or f"sqlite:///{self.data_dir / 'journal.db'}"


def table() -> dict[str, Setting]:
    """Return field name -> setting, in the order of docs/settings.md."""
    return declared(Settings)


def toml_key(one: Setting) -> str:
    """Return the key of a setting in `receiver.toml`: `RECEIVER_DATA_DIR` is `data_dir` there."""
    # `actions` is where the policies stand.
    return _TOML_KEYS.get(one.name, one.name.removeprefix("RECEIVER_").lower())


def load(
    environment: Mapping[str, str], flags: Mapping[str, str], config: Path | None = None
) -> Settings:
    """Read all settings; `flags` maps a setting's name to the text given on the command line.

    Raises SettingsError with every problem found: unknown names, bad values, an unreadable file.
    """
    located, problems = resolve([_CONFIG], [environment])
    file = _read_file(config or located["RECEIVER_CONFIG"], problems)
    sections = {name: file.pop(name, {}) for name in ("actions", "plugins", "sources")}
    if isinstance(file.get("limits"), dict):
        file |= {f"limits_{key}": value for key, value in file.pop("limits").items()}
    for name, section in sections.items():
        if not isinstance(section, dict) or not all(isinstance(v, dict) for v in section.values()):
            cure = "; RECEIVER_ACTIONS is enabled_actions there" if name == "actions" else ""
            key = "name" if name == "sources" else "action"
            problems.append(f"receiver.toml: {name} must be tables, [{name}.<{key}>]{cure}")
            sections[name] = {}

    settings = table()
    by_key = {toml_key(one): one for one in settings.values()}
    known = [*by_key, *sections]
    for key in file:
        if key.removesuffix("_file") not in by_key or (
            key.endswith("_file") and not by_key[key.removesuffix("_file")].secret
        ):
            problems.append(f"receiver.toml: {key} is not a setting{nearest(key, known)}")
    from_file: dict[str, object] = {}
    for key, one in by_key.items():
        from_file |= {name: file[k] for name, k in _with_file(one.name, key) if k in file}
    problems += _unknown_names(environment, settings.values())
    sources = [flags, environment, from_file]
    values, wrong = resolve(settings.values(), sources)
    policies, wrong_policies = load_policies(environment, sections["actions"])
    sources_found, wrong_sources = load_sources(sections["sources"], values)
    problems += wrong + wrong_policies + wrong_sources
    if problems:
        raise SettingsError(problems)
    return Settings(
        **{name: values[one.name] for name, one in settings.items()},
        policies=policies,
        plugin_settings=sections["plugins"],
        sources=sources_found,
        environment=dict(environment),
        secret_files={
            one.name: path for one in settings.values() if (path := secret_file(one, sources))
        },
    )


def _with_file(name: str, key: str) -> list[tuple[str, str]]:
    return [(name, key), (f"{name}_FILE", f"{key}_file")]


def _read_file(path: Path | None, problems: list[str]) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"RECEIVER_CONFIG: {path} cannot be read: {error.strerror}")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"RECEIVER_CONFIG: {path} is not TOML: {error}")
    return {}


def _unknown_names(environment: Mapping[str, str], settings: Any) -> list[str]:
    known = {_CONFIG.name, URL.name}
    for one in settings:
        known |= {one.name, f"{one.name}_FILE"} if one.secret else {one.name}
    return [
        f"{name}: is not a setting{nearest(name, known)}; unset it"
        for name in sorted(environment)
        if name.startswith("RECEIVER_")
        and not name.startswith(POLICY_PREFIX)
        and name not in known
        and not is_injected(name)
    ]
