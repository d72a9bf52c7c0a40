"""The settings of `efs_emergency`: declared, and read into one checked value. Pure."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from action_plugins.efs_emergency.names import FileSystemName, is_region, parse_name
from receiver import Setting

LABEL = "EFS_FILE_SYSTEM_PROMETHEUS_LABEL"
STATIC_ID = "EFS_FILE_SYSTEM_ID"
FALLBACK = "EFS_FALLBACK_TO_STATIC"
ALLOWED = "EFS_ALLOWED_FILE_SYSTEM_IDS"
LONGEST_WAIT = "EFS_LONGEST_WAIT"
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")

SETTINGS = (
    Setting(
        LABEL,
        "list",
        help="the label of the alert that holds the file system's id or ARN, such as "
        "`dimension_FileSystemId`; of a list, the first that the alert has; "
        f"set it, or `{STATIC_ID}`",
        required_unless=STATIC_ID,
    ),
    Setting(
        STATIC_ID,
        help=f"the id or ARN of the one file system to switch; set it, or `{LABEL}`",
        required_unless=LABEL,
    ),
    Setting(
        FALLBACK,
        "boolean",
        "false",
        f"whether an alert without that label means `{STATIC_ID}`; otherwise its run fails",
    ),
    Setting(ALLOWED, "list", help="the only file systems that may be switched, ids or ARNs"),
    Setting(
        LONGEST_WAIT,
        "duration",
        "1h",
        "how far away AWS' 'wait until' may be for the run to wait for it; beyond, it fails at "
        "once and names the time",
    ),
    Setting(
        "AWS_REGION", help="the region, where neither an ARN nor the label `region` of the alert"
        " names one",
    ),
    Setting("AWS_DEFAULT_REGION", help="the region, where `AWS_REGION` is not set either"),
)  # fmt: skip

# Prometheus' own form, and the dots that OpenTelemetry brings.
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_.]*")


@dataclass(frozen=True)
class Options:
    """What the operator has decided."""

    labels: tuple[str, ...]
    file_system: FileSystemName | None
    falls_back: bool
    allowed: tuple[FileSystemName, ...]
    longest_wait: timedelta
    region: str | None

    @property
    def known_regions(self) -> frozenset[str]:
        """Every region that the operator wrote somewhere."""
        named = (self.file_system, *self.allowed)
        regions = {self.region, *(one.region for one in named if one is not None)}
        return frozenset(region for region in regions if region)

    @property
    def is_static_id_unused(self) -> bool:
        """Whether a static id is set that no alert can ever reach."""
        return bool(self.labels) and self.file_system is not None and not self.falls_back


def read_options(settings: Mapping[str, Any]) -> Options:
    """Return the parsed settings as one value; raise ValueError with every problem at once."""
    problems: list[str] = []
    labels = tuple(settings.get(LABEL) or ())
    problems += [
        f'{LABEL}: "{label}" is not the name of a label; name the label that holds the id, and '
        f"write the id itself into {STATIC_ID}"
        for label in labels
        if not _LABEL_NAME.fullmatch(label)
    ]
    static = _names(STATIC_ID, [str(settings.get(STATIC_ID) or "").strip()], problems)
    allowed = _names(ALLOWED, settings.get(ALLOWED) or (), problems)
    if allowed and static and not any(one.covers(static[0]) for one in allowed):
        problems.append(
            f"{STATIC_ID}: {static[0]} is not among {ALLOWED}; add it there, or unset one of them"
        )
    falls_back = bool(settings.get(FALLBACK))
    if not problems and not labels and not static:
        problems.append(f"{STATIC_ID}: is not set; set it, or {LABEL}")
    elif not problems and falls_back and not static:
        problems.append(f"{FALLBACK}: is true, but {STATIC_ID} is not set; set it, or unset this")
    regions = [(name, str(settings.get(name) or "").strip()) for name in REGIONS]
    problems += [
        f'{name}: "{region}" is not a region; write one such as eu-west-1'
        for name, region in regions
        if region and not is_region(region)
    ]
    if problems:
        raise ValueError("; ".join(problems))
    return Options(
        labels=labels,
        file_system=static[0] if static else None,
        falls_back=falls_back,
        allowed=allowed,
        longest_wait=settings.get(LONGEST_WAIT) or timedelta(0),
        region=next((region for _, region in regions if region), None),
    )


def _names(setting: str, texts: Iterable[str], problems: list[str]) -> tuple[FileSystemName, ...]:
    names = []
    for text in texts:
        try:
            if text:
                names.append(parse_name(text))
        except ValueError as error:
            problems.append(f"{setting}: {error}")
    return tuple(names)
