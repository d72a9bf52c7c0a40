"""Switches the EFS file system that an alert names to elastic throughput, before it stalls.

For a bursting file system whose burst credits run out. README.md says what it needs, what it costs
and how to go back: that is a person's decision, so there is no `resolved` hook here.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from action_plugins.efs_emergency.options import FALLBACK, LABEL, SETTINGS, STATIC_ID, read_options
from receiver import ActionContext, Setting, hookimpl

_log = logging.getLogger(__name__)


@hookimpl
def settings() -> Sequence[Setting]:
    """Declare the settings; one of the first two must be set."""
    return SETTINGS


@hookimpl
def validate_config(settings: Mapping[str, Any]) -> None:
    """Check ids, ARNs, label names and regions; raise ValueError with every problem.

    Asks nobody: whether AWS can be reached is seen at the first run, or at a dry run.
    """
    if read_options(settings).is_static_id_unused:
        _log.warning(
            "the static file system is never used: a label is set, and no fallback",
            extra={"setting": STATIC_ID, "label_setting": LABEL, "cure": f"set {FALLBACK}=true"},
        )


@hookimpl
def default_policy(settings: Mapping[str, Any]) -> Mapping[str, str]:
    """Last out AWS' throttling, and let limits count by file system where a label names it."""
    labels = ",".join(read_options(settings).labels)
    return {"max_attempts": "20", "backoff": "5s..5m", "target_labels": labels}


@hookimpl
def execute(context: ActionContext) -> dict[str, Any]:
    """Switch the file system to elastic throughput, confirm it, return what was before and after.

    Safe to repeat: what is elastic already is a success and is not touched. Raises PermanentError
    and TemporaryError as README.md lists them.
    """
    # Half a second and 35 MB, which only a process that acts should pay: the web process imports
    # plugins too.
    from action_plugins.efs_emergency import switching

    return switching.switch(context)


@hookimpl
def describe(context: ActionContext) -> str:
    """Say what `execute` would change now, and what that costs; asks AWS, changes nothing."""
    from action_plugins.efs_emergency import switching

    return switching.outlook(context)
