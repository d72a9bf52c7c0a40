"""The examples in documents, for tests that carry them out."""

import re
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent.parent


def blocks(document: str, language: str) -> list[str]:
    """Return the fenced blocks of a language, in order."""
    tokens = MarkdownIt().parse((ROOT / document).read_text(encoding="utf-8"))
    return [one.content for one in tokens if one.type == "fence" and one.info == language]


def blocks_by_heading(document: str) -> dict[tuple[str, str, int], str]:
    """Return (heading, language, which of those) -> the text of each block."""
    found: dict[tuple[str, str, int], str] = {}
    heading, tokens = "", MarkdownIt().parse((ROOT / document).read_text(encoding="utf-8"))
    for number, token in enumerate(tokens):
        if token.type == "heading_open":
            heading = tokens[number + 1].content
        elif token.type in ("fence", "code_block"):
            before = [one for one in found if one[:2] == (heading, token.info)]
            found[heading, token.info, len(before)] = token.content
    return found


def anchors(document: Path) -> set[str]:
    """Return what a link into a document can name."""
    tokens = MarkdownIt().parse(document.read_text(encoding="utf-8"))
    headings = [
        tokens[number + 1].content
        for number, token in enumerate(tokens)
        if token.type == "heading_open"
    ]
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}
