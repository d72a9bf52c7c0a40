"""The policies of actions, as environment and `receiver.toml` give them."""

import re
from collections.abc import Mapping, Sequence

from receiver.declarations import Setting, declared, resolve
from receiver.policies import Policy, describe_unknown_key, removed_key

POLICY_PREFIX = "RECEIVER_ACTION_"
# Kubernetes adds such variables to every pod for a Service called `receiver` or `receiver-…`.
_INJECTED = re.compile(r"RECEIVER_(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)")

# What was said about an action's policy, key -> text; the first that has a key decides.
PolicySources = Sequence[Mapping[str, object]]


def is_injected(name: str) -> bool:
    """Whether Kubernetes adds a variable of this name for a Service of the receiver."""
    return _INJECTED.fullmatch(name) is not None


def load_policies(
    environment: Mapping[str, str], section: Mapping[str, Mapping[str, object]]
) -> tuple[dict[str, PolicySources], list[str]]:
    """Return what environment and `[actions]` say of each action, and what is wrong with it."""
    keys = {one.name: field_name for field_name, one in declared(Policy).items()}
    raw: dict[str, dict[str, dict[str, object]]] = {}
    problems: list[str] = []
    for name in sorted(environment):
        if not name.startswith(POLICY_PREFIX):
            continue
        words = name.removeprefix(POLICY_PREFIX).lower()
        # The longest key first: an action's own name may end in a shorter one.
        for key in sorted(keys, key=len, reverse=True):
            if words.endswith(f"_{key}"):
                action = words.removesuffix(f"_{key}")
                raw.setdefault(action, {}).setdefault("environment", {})[key] = environment[name]
                break
        else:
            if is_injected(name):
                continue
            if removed := removed_key(words):
                problems.append(f"{name}: {describe_unknown_key(removed)}")
                continue
            problems.append(
                f"{name}: is not RECEIVER_ACTION_<NAME>_<KEY>; the keys are "
                + ", ".join(sorted(key.upper() for key in keys))
            )
    for action, values in section.items():
        raw.setdefault(action, {})["file"] = dict(values)
        problems += [
            f"receiver.toml: [actions.{action}] {describe_unknown_key(key)}"
            for key in values
            if key not in keys
        ]
    sources: dict[str, PolicySources] = {
        action: (found.get("environment", {}), found.get("file", {}))
        for action, found in raw.items()
    }
    for action, said in sources.items():
        problems += policy_of(action, said)[1]
    return sources, problems


def policy_of(action: str, sources: Sequence[Mapping[str, object]]) -> tuple[Policy, list[str]]:
    """Return the policy that these sources give, the first that has a key decides; and problems."""
    table = declared(Policy)

    def shown_as(one: Setting) -> str:
        if len(sources) > 1 and sources[0].get(one.name):
            return f"{POLICY_PREFIX}{action}_{one.name}".upper()
        return f"[actions.{action}] {one.name}"

    # `none` switches off what a plugin's own policy would switch on.
    off = {
        one.name
        for one in table.values()
        if one.default in (None, "")
        and next((said[one.name] for said in sources if said.get(one.name)), None) == "none"
    }
    kept = [{key: raw for key, raw in said.items() if key not in off} for said in sources]
    values, problems = resolve(table.values(), kept, shown_as)
    if problems:
        return Policy(), problems
    return Policy(**{name: values[one.name] for name, one in table.items()}), []
