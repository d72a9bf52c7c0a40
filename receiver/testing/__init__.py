"""A kit for authors of action plugins: make an alert and a context, and run an action once."""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pluggy

from receiver import hookspecs
from receiver.alertmanager import Alert
from receiver.context import ActionContext, Cancellation, RunLogger
from receiver.declarations import resolve
from receiver.errors import PluginError, SettingsError


def make_alert(
    name: str = "QueueTooLong",
    *,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    status: str = "firing",
    starts_at: datetime = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    fingerprint: str = "686559e8d47da46f",
) -> Alert:
    """Return a firing alert as Alertmanager would send it; `labels` are added to `alertname`."""
    return Alert(
        status=status,
        labels={"alertname": name, **(labels or {})},
        annotations=annotations or {},
        starts_at=starts_at,
        ends_at=starts_at + timedelta(minutes=5) if status == "resolved" else None,
        generator_url="http://prometheus:9090/graph?g0.expr=queue_depth+%3E+80&g0.tab=1",
        fingerprint=fingerprint,
    )


def make_context(
    alert: Alert | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    remaining_seconds: float = 60.0,
    cancellation: Cancellation | None = None,
    **changes: Any,
) -> ActionContext:
    """Return a context with `remaining_seconds` left; `changes` set any other field of it."""
    context = ActionContext(
        run_id=1,
        action="an_action",
        kind="fired",
        attempt=1,
        max_attempts=3,
        idempotency_key="0123456789abcdef0123456789abcdef",
        alert=alert or make_alert(),
        source="",
        receiver="alert-receiver",
        external_url="http://alertmanager:9093",
        deadline=datetime.now(UTC) + timedelta(seconds=remaining_seconds),
        settings=settings or {},
        log=RunLogger(logging.getLogger("receiver.testing"), {"run_id": 1}),
        deadline_monotonic=time.monotonic() + remaining_seconds,
        cancellation=cancellation or Cancellation(),
    )
    return replace(context, **changes)


def run_action(
    plugin: object,
    *,
    environment: Mapping[str, str] | None = None,
    context: ActionContext | None = None,
    hook: str = "execute",
    metric_name: str = "queue_depth",
    value: float = 90.0,
    threshold: str = "> 80",
    duration: timedelta = timedelta(minutes=5),
) -> Any:
    """Load a plugin as the receiver does, settings from `environment` included, and call it once.

    Returns what the hook returns and raises what it raises; SettingsError for bad settings,
    PluginError where there is no such hook.
    """
    manager = _registered(plugin)
    if hook not in hooks_of(plugin):
        raise PluginError([f"it has no {hook}(); mark one with @hookimpl"])
    declared = manager.hook.settings() or ()
    values, problems = resolve(declared, [environment or {}])
    if problems:
        raise SettingsError(problems)
    manager.hook.validate_config(settings=values)
    return getattr(manager.hook, hook)(
        context=replace(context or make_context(), settings=values),
        metric_name=metric_name,
        value=value,
        threshold=threshold,
        duration=duration,
    )


def hooks_of(plugin: object) -> frozenset[str]:
    """Return the hooks that a plugin has."""
    callers = _registered(plugin).get_hookcallers(plugin) or []
    return frozenset(one.name for one in callers)


def _registered(plugin: object) -> pluggy.PluginManager:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    manager.check_pending()
    return manager
