"""What every collector of logs must be able to take."""

import json
import re

# As documented in docs/metrics.md.
LINE_BYTES = 16 * 1024
FIELD_BYTES = 8 * 1024
_FIRST_OF_TEXT = re.compile(r"\d\d:\d\d:\d\d\.\d{3} (debug|info|warning|error|critical) +\S")


def assert_collectable(text: str, style: str = "json") -> None:
    """Each line is bounded, and one record; for people, a traceback is indented under its line."""
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        assert len(line.encode()) < LINE_BYTES, line[:200]
        if style == "json":
            _assert_json(line)
        else:
            assert line.isprintable(), line
            assert line.startswith("    ") or _FIRST_OF_TEXT.match(line), line


def _assert_json(line: str) -> None:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        names = [name for name, _ in pairs]
        assert len(names) == len(set(names)), names
        return dict(pairs)

    assert line.isascii(), line
    try:
        fields = json.loads(line, object_pairs_hook=unique)
    except ValueError:
        raise AssertionError(f"no JSON: {line[:500]}") from None
    assert list(fields)[:4] == ["time", "level", "logger", "message"], line
    # A strict parser refuses half a character.
    json.dumps(fields, ensure_ascii=False).encode()
    for name, value in fields.items():
        assert len(json.dumps(value)) <= FIELD_BYTES, name
        assert _depth(value) <= 10, name
        assert not isinstance(value, int) or abs(value) < 2**63, name


def _depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)
