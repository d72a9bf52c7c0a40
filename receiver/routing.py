"""Which actions an alert is for, or why it is for none. Pure."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from receiver.alertmanager import Alert
from receiver.declarations import nearest

# What Prometheus leaves where a template failed at run time (template/template.go).
_TEMPLATE_ERROR = "<error expanding template"
_LONGEST_NAME = 200
_MOST_NAMES = 20
#: The rule of an alert that no action can run for, whatever it names.
UNUSABLE = "unusable"


@dataclass(frozen=True)
class Catalog:
    """The actions as routing sees them: those loaded, and why known others are not."""

    loaded: frozenset[str]
    not_loaded: Mapping[str, str] = field(default_factory=dict)

    def knows(self, name: str) -> bool:
        """Whether the name stands for an action, even one that cannot run."""
        return name in self.loaded or name in self.not_loaded

    def limited_to(self, actions: Collection[str], source: str) -> "Catalog":
        """Return the actions as routing sees them for a source that may reach only these."""
        said = f"the source {source} may reach only {', '.join(sorted(actions))}"
        out_of_reach = {name: f"{said}, not {name}" for name in self.loaded - set(actions)}
        return Catalog(self.loaded.intersection(actions), {**self.not_loaded, **out_of_reach})


@dataclass(frozen=True)
class Catalogs:
    """What each sender may reach: all that is loaded, unless its source says otherwise."""

    all_actions: Catalog
    by_source: Mapping[str, Catalog]

    def for_source(self, source: str) -> Catalog:
        """Return the actions as routing sees them for this source."""
        return self.by_source.get(source, self.all_actions)


@dataclass(frozen=True, slots=True)
class Rejection:
    """A name from an alert that stands for no action that can run; empty when none was named."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Route:
    """The actions an alert goes to, the rule that chose them, and what was refused."""

    actions: tuple[str, ...]
    rejections: tuple[Rejection, ...]
    rule: str


class Suggestions:
    """Which loaded action is close to an unknown name; for the first of many names only.

    To compare names takes long, and one notification may hold a hundred thousand unknown ones.
    """

    def __init__(self, loaded: Iterable[str], most: int = 100) -> None:
        """Compare with the names in `loaded`, for at most so many names."""
        self._loaded = loaded
        self._left = most
        self._known: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        """Return ` (did you mean …?)` when a loaded action is close, else an empty string."""
        if name in self._known or self._left == 0:
            return self._known.get(name, "")
        self._left -= 1
        return self._known.setdefault(name, nearest(name, self._loaded))


def route(
    alert: Alert,
    path_action: str,
    default: tuple[str, ...],
    catalog: Catalog,
    suggest: Callable[[str], str] | None = None,
) -> Route:
    """Choose by the first that answers: path, label, annotation `action_plugin`, ACTION_PLUGIN.

    `path_action` is empty for `POST /webhook`. One name that cannot run spoils no other. An alert
    with a `problem` goes nowhere. `suggest` returns what follows a name that is not known.
    """
    if alert.problem:
        return Route((), (Rejection("", alert.problem),), UNUSABLE)
    names: tuple[str, ...]
    if path_action:
        names, rule = (path_action,), "path"
    elif names := _names(alert.labels.get("action_plugin", "")):
        rule = "label action_plugin"
    elif names := _names(alert.annotations.get("action_plugin", "")):
        rule = "annotation action_plugin"
    else:
        names, rule = default, "ACTION_PLUGIN"
    if not names:
        reason = (
            "the alert names no action, and ACTION_PLUGIN is not set; add the label "
            "action_plugin, post to /webhook/<action>, or set ACTION_PLUGIN"
        )
        return Route((), (Rejection("", reason),), "none")
    if len(names) == 1 and names[0] in catalog.loaded:
        return Route(names, (), rule)
    unique = dict.fromkeys(names)
    return Route(
        tuple(name for name in unique if name in catalog.loaded),
        tuple(
            _rejection(name, rule, catalog, suggest or Suggestions(catalog.loaded))
            for name in unique
            if name not in catalog.loaded
        ),
        rule,
    )


def _names(text: str) -> tuple[str, ...]:
    text = text.strip()
    if text.startswith(_TEMPLATE_ERROR):
        return (text,)
    # One alert is not a way to fill the journal: what comes after the most is one wrong name.
    names = [name.strip() for name in text.split(",", _MOST_NAMES) if name.strip()]
    if len(names) > _MOST_NAMES:
        names[_MOST_NAMES] = f"{names[_MOST_NAMES]}, and so on"
    return tuple(names)


def _rejection(name: str, rule: str, catalog: Catalog, suggest: Callable[[str], str]) -> Rejection:
    shown = name[:_LONGEST_NAME]
    if name.startswith(_TEMPLATE_ERROR):
        reason = f"{rule}: a template failed where the action's name should be; mend the rule"
    elif name in catalog.not_loaded:
        reason = catalog.not_loaded[name]
    else:
        reason = f"{rule}: there is no action {shown!r}{suggest(shown)}"
    return Rejection(shown, reason)
