"""The README of efs_emergency: its code blocks, and its alert rules by exporter."""

from pathlib import Path

import yaml
from markdown_it import MarkdownIt

from action_plugins import efs_emergency

README = Path(efs_emergency.__file__).with_name("README.md")
TEXT = README.read_text(encoding="utf-8")
BLOCKS = [token for token in MarkdownIt().parse(TEXT) if token.type == "fence"]
FILE_SYSTEM = "fs-0123456789abcdef0"


def blocks(language):
    """Return the contents of the README's code blocks in a language."""
    return [token.content for token in BLOCKS if token.info == language]


RULES = {
    rule["metadata"]["name"].removeprefix("efs-burst-credits-"): (text, rule)
    for text in blocks("yaml")
    for rule in [yaml.safe_load(text)]
    if rule.get("kind") == "PrometheusRule"
}
LABELS = {
    "yace": {"dimension_FileSystemId": "", "region": "eu-west-1", "account_id": "111122223333"},
    "cloudwatch-exporter": {"file_system_id": ""},
}
