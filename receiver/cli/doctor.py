"""`receiver doctor`: is an installation that runs all right, and does Alertmanager reach it?"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
import requests
import yaml
from rich.console import Console
from rich.text import Text

from receiver.alertmanager import Alert
from receiver.cli.inspecting import problems_of_start
from receiver.cli.options import settings_options
from receiver.cli.terminal import safe
from receiver.cli.webhooks import Webhook, configured_webhooks, try_webhook
from receiver.errors import ReceiverError, SettingsError
from receiver.journal.dialects import shown_url
from receiver.journal.instances import living_workers
from receiver.journal.journal import Journal
from receiver.journal.reading import firing_alerts
from receiver.plugins import Actions, try_to_load
from receiver.processes import closed_umask
from receiver.replicas import ReplicaWatch
from receiver.settings import Settings

_TIMEOUT_SECONDS = 10
# Far below the 5 minutes for which a startsAt may lie ahead.
_SKEW = timedelta(seconds=30)
_STYLES = {"ok": "green", "wrong": "bold red", "look": "yellow"}

# `ok`, `wrong` (exit code 1) or `look` (a person should), and what about it.
Finding = tuple[str, str]


@click.command
@click.option(
    "--alertmanager-config",
    type=click.Path(path_type=Path),
    help="Try what this alertmanager.yml says about the way to the receiver.",
)
@click.option(
    "--rules",
    "rule_files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Are the actions loaded that this rule file, or PrometheusRule, names?",
)
@click.option(
    "--clock-of",
    "clocks",
    multiple=True,
    metavar="URL",
    help="Compare the clock there, too: Prometheus, Alertmanager.",
)
@click.option("--ca-file", help="Trust the certificates in this file, for TLS.")
@settings_options
def doctor(
    settings: Settings,
    alertmanager_config: Path | None,
    rule_files: tuple[Path, ...],
    clocks: tuple[str, ...],
    ca_file: str | None,
) -> None:
    """Check an installation that runs: exit code 1 when something is wrong.

    It changes nothing. The webhook is tried with an empty object, which is refused with 400.
    """
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    scheme = "https" if settings.tls_cert else "http"
    url = f"{scheme}://{settings.bind}"
    actions, _ = try_to_load(settings)
    checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("settings", partial(_settings, settings)),
        ("journal", partial(_journal, settings)),
        ("receiver", partial(_receiver, url, ca_file)),
        *(("clock", partial(_clock, one, ca_file)) for one in (url, *clocks)),
    ]
    if alertmanager_config:
        checks.append(("webhook", partial(_alertmanager, alertmanager_config, actions)))
    checks += [("rules", partial(_rules, file, actions)) for file in rule_files]
    is_wrong = False
    for name, look in checks:
        with console.status(f"{name} …"):  # Shows on a terminal only.
            try:
                findings = list(look())
            except ReceiverError as error:
                findings = [("wrong", str(error))]
        for verdict, text in findings:
            is_wrong = is_wrong or verdict == "wrong"
            console.print(
                Text(f"{verdict:6}", _STYLES[verdict]), Text(f"{name:9}"), Text(safe(text))
            )
    sys.exit(1 if is_wrong else 0)


def _settings(settings: Settings) -> Iterator[Finding]:
    actions, problems = problems_of_start(settings)
    yield from (("wrong", problem) for problem in problems)
    if not problems:
        yield "ok", f"a start would load {', '.join(sorted(actions.loaded)) or 'no action'}"


def _journal(settings: Settings) -> Iterator[Finding]:
    where = shown_url(settings.journal_url)
    if settings.database_url is None and not (settings.data_dir / "journal.db").exists():
        raise ReceiverError(
            f"there is none in {settings.data_dir}; set RECEIVER_DATA_DIR as for the receiver, or "
            "start it once"
        )
    with closed_umask(), closing(Journal(settings.journal_url)) as journal:
        journal.check_writable()
        yield "ok", f"{where} can be written"
        with journal.reading() as connection:
            workers = living_workers(journal, connection)
        firing = firing_alerts(journal)
    if workers:
        yield "ok", f"workers that run: {len(workers)}"
    else:
        yield "wrong", "no worker runs, so no action does; start `receiver serve` or a worker"
    watch = ReplicaWatch()
    for source, alert in firing:
        for found in watch.look(source, [Alert.from_json(alert)]).new:
            yield (
                "look",
                f"alerts {found.alert_name} differ only in the label {found.label}, so the action "
                f"runs for each; drop the label in prometheus.yml: {found.cure}",
            )


def _receiver(url: str, ca_file: str | None) -> Iterator[Finding]:
    answer = _get(f"{url}/-/ready", ca_file)
    if answer.status_code == 200:
        yield "ok", f"{url} is ready"
    else:
        said = answer.text.strip()[:200]
        yield "wrong", f"{url} is not ready: {answer.status_code} {said}; its log says why"


def _clock(url: str, ca_file: str | None) -> Iterator[Finding]:
    here = datetime.now(UTC)
    date = _get(f"{url.rstrip('/')}/-/ready", ca_file).headers.get("Date")
    if date is None:
        yield "look", f"{url} does not tell its time"
        return
    # Its header has whole seconds.
    apart = parsedate_to_datetime(date) - here.replace(microsecond=0)
    if abs(apart) > _SKEW:
        yield "wrong", f"{url} is {apart.total_seconds():+.0f} s from here; synchronize the clocks"
    else:
        yield "ok", f"{url} agrees to {_SKEW.total_seconds():.0f} s"


def _get(url: str, ca_file: str | None) -> requests.Response:
    try:
        with requests.Session() as session:
            session.trust_env = False
            return session.get(
                url, timeout=_TIMEOUT_SECONDS, verify=ca_file or True, allow_redirects=False
            )
    except (requests.RequestException, OSError) as error:
        raise ReceiverError(f"{url} does not answer: {error}; is it running there?") from error


def _alertmanager(file: Path, actions: Actions) -> Iterator[Finding]:
    webhooks = configured_webhooks(_loaded(file), file.parent)
    if not webhooks:
        yield (
            "wrong",
            f"{file} has no webhook with the path /webhook; `receiver migrate` writes one",
        )
    for one in webhooks:
        yield from _webhook(one, actions)


def _webhook(webhook: Webhook, actions: Actions) -> Iterator[Finding]:
    yield try_webhook(webhook)
    if not webhook.is_routed_to:
        yield "wrong", f"{webhook}: no route leads to its receiver; add one"
    if webhook.action:
        yield from _is_loaded(webhook.action, str(webhook), actions)
    if not webhook.sends_resolved:
        yield (
            "look",
            f"{webhook}: send_resolved is false, so no episode ends and nothing is verified",
        )
    if webhook.max_alerts:
        yield "look", f"{webhook}: max_alerts leaves alerts out; set it to 0"


def _rules(file: Path, actions: Actions) -> Iterator[Finding]:
    named = 0
    for rule in _alert_rules(_loaded(file)):
        labels, where = rule.get("labels") or {}, f"{file}: {rule['alert']}"
        names = str(labels.get("action_plugin", ""))
        if "{{" in names:
            yield (
                "look",
                f"{where} chooses its action by a template; try it with `receiver explain`",
            )
            continue
        for name in filter(None, map(str.strip, names.split(","))):
            named += 1
            yield from (one for one in _is_loaded(name, where, actions) if one[0] != "ok")
        if names and "value" not in (rule.get("annotations") or {}):
            yield "look", f"{where} has no annotation value; the action gets NaN"
    yield (
        ("ok", f"{file}: {named} times an action is named")
        if named
        else (
            "look",
            f"{file}: no rule has the label action_plugin; `receiver rule new` writes one",
        )
    )


def _is_loaded(name: str, where: str, actions: Actions) -> Iterator[Finding]:
    if name in actions:
        yield "ok", f"{where}: {name} is loaded"
    else:
        why = actions.why_not_loaded(name) or f"there is no action {name}"
        yield "wrong", f"{where}: {why}; see `receiver plugins`"


def _loaded(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError([f"{file} cannot be read as YAML: {error}"]) from error


def _alert_rules(document: Any) -> Iterator[dict[str, Any]]:
    """Yield the alert rules of a rule file, a PrometheusRule or a list of them."""
    if not isinstance(document, dict):
        return
    for item in document.get("items") or ():
        yield from _alert_rules(item)
    inside = document.get("spec", document)
    for group in (inside.get("groups") or ()) if isinstance(inside, dict) else ():
        yield from (one for one in group.get("rules") or () if "alert" in one)
