"""The command line itself: help, completion, and what is misspelt."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documents import ROOT

RECEIVER = Path(sys.executable).parent / "receiver"


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [RECEIVER, *arguments], text=True, timeout=60, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment},
    )  # fmt: skip


@pytest.mark.parametrize("group", [[], ["rule"]])
def test_no_command_at_all_shows_the_help(group: list[str]) -> None:
    done = run(*group)
    assert done.returncode == 2
    assert done.stdout.startswith("Usage: receiver ")
    assert "\nCommands:\n" in done.stdout
    assert "Error" not in done.stdout


def test_misspelt_command_is_told_the_right_one() -> None:
    done = run("rnus")
    assert done.returncode == 2
    assert "there is no command rnus (did you mean runs?)" in done.stdout


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("receiver mig", "plain,migrate\n"),
        ("receiver rule n", "plain,new\n"),
        ("receiver rule new --mi", "plain,--missing\n"),
    ],
)
def test_shell_completes_commands_and_options(words: str, offered: str) -> None:
    number = str(len(words.split()) - 1)
    done = run(_RECEIVER_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=number)
    assert (done.returncode, done.stdout) == (0, offered)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_that_the_readme_names_is_there(shell: str) -> None:
    assert f"{shell}_source" in (ROOT / "README.md").read_text(encoding="utf-8")
    done = run(_RECEIVER_COMPLETE=f"{shell}_source")
    assert done.returncode == 0
    assert "_receiver_completion" in done.stdout
