"""Finds, loads, validates, lists and calls the plugins: one by one, through pluggy.

Three sources: the built-ins (`action_plugins`), the entry-point group `receiver.actions`, and
`PLUGIN_DIR`. Only what is enabled is imported. A plugin with a plain `execute` is an action; the
wrappers of any plugin surround every action.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pluggy

from receiver import hookspecs, plainjson
from receiver.declarations import Setting, declared, is_missing, nearest, resolve
from receiver.discovery import Candidate, find_candidates
from receiver.errors import PluginError, SettingsError
from receiver.plugin_hooks import HOOKS, inspect_hooks, split_wrappers
from receiver.policies import Policy, Rules, describe_unknown_key
from receiver.policy_settings import policy_of
from receiver.routing import Catalog, Catalogs
from receiver.settings import Settings

PREFIX = "RECEIVER_"
_SETTING = re.compile(r"[A-Z][A-Z0-9_]*")
KEYS = frozenset(one.name for one in declared(Policy).values())


@dataclass(frozen=True)
class Plugin:
    """One plugin that was found, and what became of it.

    `state` is `loaded`, `wrapper` (loaded, surrounds all actions), `disabled` (not among the
    enabled; not imported), `not configured` (a required setting is absent and nothing names it)
    or `broken`; `reason` says why it is not loaded.
    """

    name: str
    origin: str
    state: str
    reason: str = ""
    version: str = ""
    hooks: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)
    default_policy: Mapping[str, str] = field(default_factory=dict)
    implementation: object = field(default=None, repr=False)


class Actions:
    """The plugins of this process; `call` runs one hook of one action, wrappers around it."""

    def __init__(self) -> None:
        self.plugins: dict[str, Plugin] = {}
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._callers: dict[tuple[str, str], pluggy.HookCaller] = {}
        self._plain: dict[str, object] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.loaded

    @property
    def loaded(self) -> frozenset[str]:
        """The names of the actions that can be run."""
        return frozenset(one.name for one in self.plugins.values() if one.state == "loaded")

    def why_not_loaded(self, name: str) -> str | None:
        """Return why a known plugin is no loaded action; None when nobody knows the name."""
        plugin = self.plugins.get(name)
        if plugin is None:
            return None
        if plugin.state == "wrapper":
            return f"{name} only wraps other actions; it has no execute of its own"
        return f"the action {name} is {plugin.state}: {plugin.reason}"

    def has_hook(self, name: str, hook: str) -> bool:
        """Whether the action itself implements a hook."""
        return hook in self.plugins[name].hooks

    def call(self, name: str, hook: str, arguments: Mapping[str, Any]) -> Any:
        """Call one hook of one action, with every wrapper; raises what the plugin raises."""
        caller = self._callers.get((name, hook))
        if caller is None:
            others = [plain for other, plain in self._plain.items() if other != name]
            caller = self._manager.subset_hook_caller(hook, others)
            self._callers[name, hook] = caller
        return caller(**arguments)

    def register(self, plugin: Plugin) -> None:
        """Add a plugin; one with an implementation takes part in calls from now on.

        Its wrappers apart from the rest: they surround every action, also where it is one itself.
        """
        if plugin.implementation is not None:
            for one in self.plugins.values():
                if one.implementation is plugin.implementation:
                    raise ValueError(f"it is the very object that {one.name} is")
            plain, wrappers = split_wrappers(plugin.implementation)
            self._manager.register(wrappers, f"{plugin.name}, its wrappers")
            if plugin.state == "loaded":
                self._manager.register(plain, plugin.name)
                self._plain[plugin.name] = plain
        self.plugins[plugin.name] = plugin
        self._callers.clear()


def load_actions(
    settings: Settings,
    left_out: frozenset[str] = frozenset(),
    on_load: Callable[[str], None] | None = None,
) -> Actions:
    """Load every enabled plugin but those that are left out.

    `on_load` is called with the name of each plugin once it is loaded.

    Raises PluginError, with every problem found, when a plugin that is named or enabled cannot be
    used, or a name stands for nothing.
    """
    actions, problems = try_to_load(settings, left_out, on_load)
    if problems:
        raise PluginError(problems)
    return actions


def try_to_load(
    settings: Settings,
    left_out: frozenset[str] = frozenset(),
    on_load: Callable[[str], None] | None = None,
) -> tuple[Actions, list[str]]:
    """Return what `load_actions` finds, and the problems for which it would raise."""
    named = _named(settings)
    candidates, problems = find_candidates(settings.plugin_dir, lambda name: name in named)
    for name, where in named.items():
        if name not in candidates:
            problems.append(f"{where}: there is no plugin {name}{nearest(name, candidates)}")
    actions = Actions()
    for candidate in candidates.values():
        if candidate.name in left_out:
            continue
        if _is_enabled(candidate, settings):
            plugin = _load(candidate, settings, actions)
            if on_load is not None:
                on_load(candidate.name)
        else:
            reason = "it is not among RECEIVER_ACTIONS"
            plugin = Plugin(candidate.name, candidate.origin, "disabled", reason, candidate.version)
        if plugin.state == "not configured" and candidate.name in named:
            plugin = replace(plugin, state="broken")
        if plugin.state == "broken" or (plugin.state == "disabled" and candidate.name in named):
            problems.append(f"{candidate.name} ({candidate.origin}): {plugin.reason}")
        if plugin.name not in actions.plugins:
            actions.register(plugin)
    problems += [
        f"ACTION_PLUGIN: {actions.why_not_loaded(name)}"
        for name in settings.action_plugin
        if name in actions.plugins and actions.plugins[name].state == "wrapper"
    ]
    return actions, problems


def _named(settings: Settings) -> dict[str, str]:
    """Return name -> where it is named, for every plugin that the settings name."""
    named = dict.fromkeys(settings.plugin_settings, "[plugins]")
    named |= {
        str(said[0]): f"[actions.{name}] escalate_to"
        for name, sources in settings.policies.items()
        if (said := [one["escalate_to"] for one in sources if one.get("escalate_to")])
    }
    named |= {name: f"[actions.{name}]" for name in settings.policies}
    named |= dict.fromkeys(settings.actions or (), "RECEIVER_ACTIONS")
    named |= dict.fromkeys(settings.action_plugin, "ACTION_PLUGIN")
    return named


def _is_enabled(candidate: Candidate, settings: Settings) -> bool:
    if settings.actions is not None:
        return candidate.name in settings.actions
    return candidate.source != "entry point" or candidate.name in _named(settings)


def _load(candidate: Candidate, settings: Settings, actions: Actions) -> Plugin:
    """Import, check and configure one plugin, and register it; whatever it raises is its end."""
    name, origin = candidate.name, candidate.origin

    def broken(reason: str) -> Plugin:
        return Plugin(name, origin, "broken", reason, candidate.version)

    try:
        implementation = candidate.import_it()
        hooks, wrappers, problems = inspect_hooks(implementation)
        if problems:
            return broken("; ".join(problems))
        called = _call_alone(implementation, "name", {}) if "name" in hooks else None
        if called is not None and called != name:
            return broken(
                f"its name() says {called!r}, its place says {name!r}; settings choose by the "
                "name, so let both be the same"
            )
        declared = tuple(_call_alone(implementation, "settings", {}) or ())
        if problems := _misdeclared(declared):
            return broken(f"settings(): {'; '.join(problems)}")
        values, problems = _plugin_settings(name, declared, settings)
        plugin = Plugin(
            name=name,
            origin=origin,
            state="loaded" if "execute" in hooks else "wrapper",
            version=candidate.version or str(getattr(implementation, "__version__", "")),
            hooks=tuple(hook for hook in HOOKS if hook in hooks or hook in wrappers),
            settings=declared,
            values=values,
            implementation=implementation,
        )
        if problems:
            missing = all(is_missing(problem) for problem in problems)
            state = "not configured" if missing else "broken"
            return Plugin(name, origin, state, "; ".join(problems), plugin.version,
                          plugin.hooks, declared)  # fmt: skip
        if "validate_config" in hooks:
            _call_alone(implementation, "validate_config", {"settings": values})
        if "default_policy" in hooks:
            suited = _call_alone(implementation, "default_policy", {"settings": values}) or {}
            _, problems = policy_of(name, [suited])
            problems += [describe_unknown_key(key) for key in suited if key not in KEYS]
            if problems:
                return broken(f"default_policy(): {'; '.join(problems)}")
            plugin = replace(plugin, default_policy=suited)
        actions.register(plugin)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin's call
        return broken(f"{type(error).__name__}: {plainjson.text_of(error)}")
    return plugin


def _call_alone(implementation: object, hook: str, arguments: Mapping[str, Any]) -> Any:
    """Call a hook of a plugin that is not loaded yet, without the wrappers of others."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(implementation)
    return getattr(manager.hook, hook)(**arguments)


def _misdeclared(declared: tuple[object, ...]) -> list[str]:
    """Return what is wrong with the settings that a plugin declares, whatever they are set to."""
    problems: list[str] = []
    names: set[str] = set()
    for one in declared:
        if not isinstance(one, Setting):
            problems.append(f"{one!r:.100} is no Setting; write Setting(name, type, default, help)")
            continue
        if not _SETTING.fullmatch(one.name) or one.name.startswith(PREFIX):
            problems.append(
                f"{one.name!r:.100} is not a name for a setting; use capitals, digits and "
                f"underscores, and leave {PREFIX} to the receiver's own"
            )
        if one.name in names:
            problems.append(f"{one.name} is declared twice")
        names.add(one.name)
    return problems


def _plugin_settings(
    name: str, declared: tuple[Setting, ...], settings: Settings
) -> tuple[dict[str, Any], list[str]]:
    section = settings.plugin_settings.get(name, {})
    from_file = {key.upper(): value for key, value in section.items()}
    known = {one.name for one in declared} | {f"{one.name}_FILE" for one in declared if one.secret}
    values, problems = resolve(declared, [settings.environment, from_file])
    problems += [
        f"receiver.toml: [plugins.{name}] {key} is not one of its settings"
        f"{nearest(key.upper(), known).lower()}"
        for key in section
        if key.upper() not in known
    ]
    return values, problems


def catalog_of(actions: Actions) -> Catalog:
    """Return the actions as routing sees them."""
    reasons = {name: actions.why_not_loaded(name) or "" for name in actions.plugins}
    loaded = actions.loaded
    return Catalog(loaded, {name: why for name, why in reasons.items() if name not in loaded})


def catalogs_of(settings: Settings, actions: Actions) -> Catalogs:
    """Return the actions as routing sees them, for each source."""
    whole = catalog_of(actions)
    return Catalogs(
        whole,
        {
            name: whole.limited_to(source.actions, name)
            for name, source in settings.sources.items()
            if source.actions is not None
        },
    )


def rules_of(settings: Settings, actions: Actions) -> Rules:
    """Return what the journal must know of settings and plugins, where all fits together.

    Raises SettingsError when policies do not: an escalation to no action or in a circle, a limit
    that looks back further than runs are kept; and for a source that may reach no such action.
    """
    rules = rules_as_far_as_loaded(settings, actions)
    policies = rules.policies
    problems = [
        f"[actions.{name}] escalate_to: there is no action {policy.escalate_to}"
        f"{nearest(policy.escalate_to, policies)}"
        for name, policy in policies.items()
        if policy.escalate_to is not None and policy.escalate_to not in policies
    ]
    problems += [
        f"[sources.{source}] actions: there is no action {name}{nearest(name, actions.plugins)}"
        for source, one in settings.sources.items()
        for name in one.actions or ()
        if name not in actions.plugins
    ]
    problems += _circles({name: one.escalate_to for name, one in policies.items()})
    for name, windows in (
        ("[limits] rate_limit", settings.limits_rate_limit),
        *((f"[actions.{name}]", one.longest_windows) for name, one in policies.items()),
    ):
        if any(window.period > settings.retention for window in windows):
            problems.append(
                f"{name}: a limit looks back further than RECEIVER_RETENTION keeps runs"
            )
    if problems:
        raise SettingsError(problems)
    return rules


def rules_as_far_as_loaded(settings: Settings, actions: Actions) -> Rules:
    """Return the rules of what could be loaded: to look and to stop must work where runs cannot."""
    policies = {
        name: policy_of(
            name, [*settings.policies.get(name, ()), actions.plugins[name].default_policy]
        )[0]
        for name in sorted(actions.loaded)
    }
    return Rules(
        tolerance=settings.episode_tolerance,
        policies=policies,
        resolved_hooks=frozenset(
            name for name in actions.loaded if actions.has_hook(name, "resolved")
        ),
        limits=settings.limits,
        dry_run=settings.dry_run,
        grafana_value=settings.grafana_value,
    )


def _circles(escalations: Mapping[str, str | None]) -> list[str]:
    problems = []
    for start in escalations:
        path = [start]
        while (following := escalations.get(path[-1])) is not None:
            path.append(following)
            if following in path[:-1]:
                break
        # Told once, by the first of the circle in the alphabet.
        if len(path) > 1 and path[-1] == start and start == min(path):
            problems.append(f"escalate_to goes in a circle: {' → '.join(path)}")
    return problems
