"""The examples in documents, for tests that carry them out."""

from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent.parent


def blocks(document: str, language: str) -> list[str]:
    """Return the fenced blocks of a language, in order."""
    tokens = MarkdownIt().parse((ROOT / document).read_text(encoding="utf-8"))
    return [one.content for one in tokens if one.type == "fence" and one.info == language]
