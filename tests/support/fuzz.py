"""How long the fuzz tests run, and the texts that they are made of."""

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# `make fuzz` sets it; without it a run is short, and the same every time.
LONG = int(os.environ.get("RECEIVER_FUZZ_EXAMPLES", "0"))

# The profile of `make unit`.
SHORT_PROFILE = "dev"

HOSTILE = {
    "empty": "",
    "blank": " \t ",
    "lines": "one\r\ntwo\nthree\u2028four\x85five",
    "nul": "a\0b",
    "terminal": "\x1b[31mred\x1b]0;title\x07\x9b2J\x7f\b\b",
    "right to left": "abc\u202egnp.exe\u2066",
    "surrogate": "\udfff\ud800",
    "astral": "\U0001f4a5\U000e0041",
    "accents": "Z" + "\u0300" * 200,
    "HTML": "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>",
    "markup": "[red]bold[/red] [link=http://evil]x[/link] `code` **bold**",
    "format": "%s %n %(x)s {} {0.__class__} ${HOME} $(id) `id` ; rm -rf / | cat & #",
    "template": "{{ 7 * 7 }} {% raw %} <%= 1 %> ${7*7}",
    "path": "../../../../etc/passwd\\..\\..\\x",
    "absolute path": "/etc/passwd",
    "URL": "http://169.254.169.254/latest/meta-data?x=1#y",
    "SQL": "'; DROP TABLE runs; -- \" OR 1=1",
    "JSON": '{"level": "ERROR", "message": "forged"}\n{"a": "b"}',
    "log": 'ok level=error msg="forged" outcome=failed',
    "exposition": 'x"} 1\n# HELP forged x\nforged{a="b',
    "number": "1e309",
    "action": "log_action, file_action\n,,log_action",
    "template error": "<error expanding template: error executing template>",
    "long": "\u00e4" * 5_000,
}


def texts() -> st.SearchStrategy[str]:
    """Return texts: any, hostile ones, and long ones that no compression shortens."""
    return st.one_of(
        st.text(st.characters(codec=None), max_size=30),
        st.sampled_from(sorted(HOSTILE.values())),
        st.integers(0, 2**20).map(
            lambda seed: "".join(chr(33 + seed * n % 90) for n in range(9_000))
        ),
    )


def examples(number: int) -> Any:
    """Return the settings of a property: this many examples, 25 in the profile `dev`."""
    is_short = settings.get_current_profile_name() == SHORT_PROFILE
    return settings(max_examples=min(number, 25) if is_short else number, deadline=None)


def bounded(examples: int) -> Any:
    """Return the settings of a fuzz test: this many examples, many more in a long run."""
    is_short = settings.get_current_profile_name() == SHORT_PROFILE
    return settings(
        max_examples=LONG or min(examples, 25 if is_short else examples),
        derandomize=not LONG,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
