"""Posts the call as JSON to an HTTP endpoint, which does the rest.

An answer with an expected status is success; every answer else, and none, is an error that says
whether trying again may help. The endpoint can tell a second attempt from a second run by the
header `Idempotency-Key`. Its address may hold a password or a token: only scheme, host and port
are ever shown.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from action_plugins.http_plugin.options import SETTINGS, check_files, read_options
from receiver import ActionContext, Setting, call_as_json, hookimpl


@hookimpl
def settings() -> Sequence[Setting]:
    """Declare where to post, what, how, and what means success."""
    return SETTINGS


@hookimpl
def validate_config(settings: Mapping[str, Any]) -> None:
    """Refuse what cannot be sent, and files that are not there, every problem at once."""
    check_files(read_options(settings))


@hookimpl
def execute(
    context: ActionContext, metric_name: str, value: float, threshold: str, duration: timedelta
) -> dict[str, Any]:
    """Send the call once; return the status and the first part of the answer."""
    # The web process loads plugins too, and never calls them: so `requests` comes with the call.
    from action_plugins.http_plugin import exchange

    options = read_options(context.settings)
    body = None
    if options.has_body:
        call = call_as_json(context, metric_name, value, threshold, duration)
        filled = call if options.template is None else options.template.fill(call)
        body = json.dumps(filled, allow_nan=False).encode()
    return exchange.send(context, options, body)


@hookimpl
def describe(
    context: ActionContext, metric_name: str, value: float, threshold: str, duration: timedelta
) -> str:
    """Say what would be sent, and to which host; the alert's texts quoted and cut."""
    options = read_options(context.settings)
    crossed = f", threshold {threshold!r:.100}" if threshold else ""
    return (
        f"would {options.method} to {options.endpoint.shown} that {metric_name!r:.200} is "
        f"{value:g}{crossed}, for {duration.total_seconds():g}s"
    )
