"""Who sends: what `[sources.<name>]` in `receiver.toml` says about each sender."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from receiver.declarations import (
    as_text,
    declared,
    nearest,
    resolve,
    secret_file,
    setting,
)

_NAME = re.compile(r"[\w.:@/-]{0,128}", re.ASCII)
NAME_RULE = "at most 128 letters, digits and . : @ / _ - are allowed"


@dataclass(frozen=True)
class Source:
    """One sender; the fields are a table of docs/settings.md."""

    submit_token: tuple[str, ...] | None = setting(
        "submit_token",
        "tokens",
        None,
        "the bearer token that only this source has; two while it is changed",
        secret=True,
    )
    submit_basic_auth: tuple[str, ...] | None = setting(
        "submit_basic_auth",
        "logins",
        None,
        "`user:password` that only this source has; two while it is changed",
        secret=True,
    )
    actions: tuple[str, ...] | None = setting(
        "actions", "list", None, "the actions that alerts of this source reach; none: all"
    )
    # Key -> file that a secret is read from.
    secret_files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def has_credentials(self) -> bool:
        """Whether only its own credentials may post as this source."""
        return bool(self.submit_token or self.submit_basic_auth)


def is_source_name(text: str) -> bool:
    """Whether a text can name a source; the empty one is the source of senders without a name."""
    return _NAME.fullmatch(text) is not None


def load_sources(
    section: Mapping[str, Mapping[str, object]], values: Mapping[str, Any]
) -> tuple[dict[str, Source], list[str]]:
    """Return name -> source of the section `[sources]`, and problems.

    `values` are those of the other settings, by name: no source has the credential of another.
    """
    sources: dict[str, Source] = {}
    problems: list[str] = []
    for name, raw in section.items():
        sources[name], wrong = _load_source(name, raw)
        problems += wrong
    return sources, [*problems, *_describe_shared_credentials(sources, values)]


def _load_source(name: str, raw: Mapping[str, object]) -> tuple[Source, list[str]]:
    place = f"[sources.{name}]"
    table = declared(Source)
    problems = []
    if not name or not is_source_name(name):
        problems.append(f"receiver.toml: {place} is not the name of a source; {NAME_RULE}")
    known = {*table, *(one.file_name for one in table.values() if one.secret)}
    problems += [
        f"receiver.toml: {place} {key} is not a key of a source{nearest(key, known)}"
        for key in raw
        if key not in known
    ]
    # Empty is "not set" elsewhere. Here that would open the source to others, or all actions to it.
    problems += [
        f"{place} {key}: is empty; leave it out"
        for key in sorted(known)
        if key in raw and _is_empty(raw[key])
    ]
    values, wrong = resolve(table.values(), [raw], lambda one: f"{place} {one.name}")
    if problems or wrong:
        return Source(), problems + wrong
    files = {
        one.name: file for one in table.values() if (file := secret_file(one, [raw])) is not None
    }
    return Source(**{key: values[one.name] for key, one in table.items()}, secret_files=files), []


def _is_empty(raw: object) -> bool:
    return not as_text(raw).replace(",", "").strip()


def _describe_shared_credentials(
    sources: Mapping[str, Source], values: Mapping[str, Any]
) -> Iterator[str]:
    """Yield a problem for each credential that two sources have, or a source and all senders."""
    for key in ("submit_token", "submit_basic_auth"):
        general = f"RECEIVER_{key.upper()}"
        places = dict.fromkeys(values.get(general) or (), general)
        for name, source in sources.items():
            place = f"[sources.{name}] {key}"
            for credential in getattr(source, key) or ():
                if credential in places:
                    yield f"{place}: is also in {places[credential]}; give each its own"
                places[credential] = place
