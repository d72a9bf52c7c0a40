"""How a file system is named: an id or an ARN, checked before AWS is ever asked. Pure."""

import re
from dataclasses import dataclass

# The pattern of the shape FileSystemId in botocore's model of EFS (2015-02-01), word for word; a
# test compares them. botocore itself does not check it.
PATTERN = (
    "^(arn:aws[-a-z]*:elasticfilesystem:[0-9a-z-:]+:file-system/fs-[0-9a-f]{8,40}"
    "|fs-[0-9a-f]{8,40})$"
)
LONGEST = 128

_NAME = re.compile(PATTERN)
_REGION = re.compile(r"[a-z]{2,}(-[a-z]+)+-[0-9]+")
_ACCOUNT = re.compile(r"[0-9]{12}")
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class FileSystemName:
    """The id of a file system, with the region and the account when an ARN says them."""

    id: str
    region: str | None = None
    account: str | None = None

    def __str__(self) -> str:
        return f"{self.id} in {self.region}" if self.region else self.id

    def covers(self, other: "FileSystemName") -> bool:
        """Whether both can be the same file system: what only one of them says does not matter."""
        return (
            self.id == other.id
            and (self.region is None or other.region in (None, self.region))
            and (self.account is None or other.account in (None, self.account))
        )


def parse_name(text: str) -> FileSystemName:
    """Return the file system that an id or an ARN names; raise ValueError saying what is wrong."""
    if len(text) > LONGEST or not _NAME.fullmatch(text):
        raise ValueError(
            f"{shown(text)} is neither the id nor the ARN of a file system; "
            "an id looks like fs-0123456789abcdef0"
        )
    if text.startswith("fs-"):
        return FileSystemName(text)
    # The model's pattern takes any number of colons between the service and the resource.
    parts = text.split(":")
    if len(parts) != 6 or not is_region(parts[3]) or not _ACCOUNT.fullmatch(parts[4]):
        raise ValueError(
            f"{shown(text)} is not the ARN of a file system; one looks like "
            "arn:aws:elasticfilesystem:eu-west-1:111122223333:file-system/fs-0123456789abcdef0"
        )
    return FileSystemName(parts[5].removeprefix("file-system/"), parts[3], parts[4])


def is_region(text: str) -> bool:
    """Whether a text has the form of a region's name; it can then stand in a host name."""
    return len(text) <= 32 and _REGION.fullmatch(text) is not None


def shown(text: str) -> str:
    """Return text that others wrote, fit for a message: quoted, escaped and short."""
    cut = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
    return ascii(cut)
