"""The hooks of a plugin: which functions are marked, and what is wrong with them."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from receiver import hookspecs
from receiver.declarations import nearest

_RUN_BY_NOBODY = (
    inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction
)  # fmt: skip
_CALLED = ("resolved", "describe", "default_policy")
HOOKS = tuple(
    name for name, spec in vars(hookspecs).items() if hasattr(spec, f"{hookspecs.PROJECT}_spec")
)


def inspect_hooks(implementation: object) -> tuple[set[str], set[str], list[str]]:
    """Return the plain hooks and the wrapped hooks of a plugin, and what is wrong with them."""
    plain: set[str] = set()
    wrappers: set[str] = set()
    problems: list[str] = []
    if isinstance(implementation, type):
        return plain, wrappers, ["it is a class; name an object of it, made in the module"]
    for name, options in _marked(implementation):
        hook = options.get("specname") or name
        if hook not in HOOKS:
            problems.append(f"there is no hook {hook}{nearest(hook, HOOKS)}")
            continue
        function = getattr(implementation, name)
        if not _is_wrapper(options) and any(is_one(function) for is_one in _RUN_BY_NOBODY):
            wrapper = ", or a wrapper: @hookimpl(wrapper=True)"
            problems.append(
                f"{hook}() is async or has a yield, so that calling it does nothing; make it a "
                f"plain function{wrapper if inspect.isgeneratorfunction(function) else ''}"
            )
        known = inspect.signature(getattr(hookspecs, hook)).parameters
        problems += [
            f"{hook}() has no argument {argument.name}{nearest(argument.name, known)}; "
            f"it may take {', '.join(known) or 'none'}"
            for argument in inspect.signature(function).parameters.values()
            if argument.default is inspect.Parameter.empty and argument.name not in known
        ]
        (wrappers if _is_wrapper(options) else plain).add(hook)
    if problems or "execute" in plain:
        return plain, wrappers, problems
    if not wrappers:
        problems.append("it has no execute(); mark one with @hookimpl")
    else:  # Its plain hooks would answer for the actions of others.
        problems += [f"it has {hook}() but no execute()" for hook in sorted(plain & set(_CALLED))]
    return plain, wrappers, problems


def _marked(implementation: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each function of a plugin that is marked, and how it is marked."""
    for name in dir(implementation):
        method = inspect.getattr_static(implementation, name)
        method = getattr(method, "__func__", method)
        options = getattr(method, f"{hookspecs.PROJECT}_impl", None)
        if isinstance(options, dict):
            yield name, options


def _is_wrapper(options: Mapping[str, Any]) -> bool:
    return bool(options.get("wrapper") or options.get("hookwrapper"))


class _Part:
    """Some of the functions of one plugin, for pluggy: equal to no other."""


def split_wrappers(implementation: object) -> tuple[object, object]:
    """Return two objects: one with a plugin's plain functions, one with its wrappers."""
    plain, wrappers = _Part(), _Part()
    for name, options in _marked(implementation):
        setattr(wrappers if _is_wrapper(options) else plain, name, getattr(implementation, name))
    return plain, wrappers


def has_wrappers(implementation: object) -> bool:
    """Whether a plugin surrounds the actions of others."""
    return any(_is_wrapper(options) for _, options in _marked(implementation))
