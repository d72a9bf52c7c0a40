"""Reads a Dockerfile, as far as ours goes."""

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Stage:
    """One stage: its instructions in order, as (name, arguments)."""

    base: str
    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        """Return the arguments of every instruction of a kind."""
        return [arguments for kind, arguments in self.instructions if kind == name]

    def words(self, name: str) -> list[str]:
        """Return the arguments of the one instruction that is written as a JSON array."""
        (arguments,) = self.all(name)
        return [str(word) for word in json.loads(arguments)]

    def pairs(self, name: str) -> dict[str, str]:
        """Return the pairs of all instructions of a kind."""
        words = [word for arguments in self.all(name) for word in shlex.split(arguments)]
        return dict(word.split("=", 1) for word in words)


def read(file: Path) -> list[Stage]:
    """Return the stages."""
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    stages: list[Stage] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, arguments = line.strip().partition(" ")
        if name == "FROM":
            base, _, alias = arguments.partition(" AS ")
            stages.append(Stage(base, alias))
        elif name and stages:
            stages[-1].instructions.append((name, " ".join(arguments.split())))
    return stages
