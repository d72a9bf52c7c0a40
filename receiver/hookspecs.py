"""The hooks of an action plugin: when each is called, how often, and what raising means.

A plugin is a module, or an object with methods, whose functions are marked with `@hookimpl`. Each
may leave out the arguments that it does not use. Only `execute` is required.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pluggy

from receiver.declarations import Setting

if TYPE_CHECKING:
    from receiver.context import ActionContext

PROJECT = "receiver"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def name() -> str | None:
    """Return the action's name: lower-case letters, digits and underscores.

    Called once, when the plugin is loaded. Without it the name is that of the file, package or
    entry point; a name that differs from that is an error, for settings choose by it. Raising
    makes the plugin broken.
    """


@hookspec(firstresult=True)
def settings() -> Sequence[Setting] | None:
    """Return the settings that the plugin declares.

    Called once, when the plugin is loaded. They are read from the environment under exactly
    their names, else from `[plugins.<action>]` in `receiver.toml` (names in lower case), checked
    together with all others at start, and handed over as `settings` and `context.settings`.
    Raising makes the plugin broken.
    """


@hookspec(firstresult=True)
def validate_config(settings: Mapping[str, Any]) -> None:
    """Check what the declared types cannot: that a directory is writable, that two settings fit.

    Called once in each process, after the settings were read and before anything runs. Must be
    quick and change nothing outside. Raising anything makes the plugin broken, and stops the
    start if the action is named or enabled: say which setting, why, and the cure.
    """


@hookspec(firstresult=True)
def default_policy(settings: Mapping[str, Any]) -> Mapping[str, str] | None:
    """Return policy keys that suit the action better than the general defaults, as texts.

    Called once in each process, after `validate_config`. What an operator says in
    `[actions.<name>]` comes first. Raising makes the plugin broken.
    """


@hookspec(firstresult=True)
def execute(
    context: "ActionContext",
    metric_name: str,
    value: float,
    threshold: str,
    duration: timedelta,
) -> Any:
    """Do the thing that the action is there for, because an alert fires.

    Called in a thread, once per attempt; at most once at a time per target. Attempts of
    one run share `context.idempotency_key`: after a crash, the same run may be called again.
    `value` is NaN, `threshold` empty where the rule does not say. Return None, a text or something
    JSON can hold: it is kept with the run. Raising PermanentError ends the run `failed`;
    TemporaryError and anything else is tried again as the policy says.
    """


@hookspec(firstresult=True)
def resolved(
    context: "ActionContext",
    metric_name: str,
    value: float,
    threshold: str,
    duration: timedelta,
) -> Any:
    """Undo or follow up, once the alert has resolved and its `execute` had succeeded.

    Called like `execute`, `resolved_after` the later of the two; not at all when the alert fires
    again meanwhile. The arguments are those of `execute`. Raising means what it means there.
    """


@hookspec(firstresult=True)
def describe(
    context: "ActionContext",
    metric_name: str,
    value: float,
    threshold: str,
    duration: timedelta,
) -> str | None:
    """Return in one sentence what `execute` would do now; change nothing.

    Called instead of `execute` in a dry run, and by `receiver explain`. Raising fails the dry
    run only.
    """
