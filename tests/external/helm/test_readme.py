"""The chart's README: its examples are rendered, its tables compared, its links followed."""

import json
import re
import shlex
from pathlib import Path

import yaml

from receiver.rules import OPERATORS
from tests.support.charts import CHART, EXAMPLES, find_helm, pick, written
from tests.support.documents import ROOT, blocks

DOCUMENT = "helm/alert-receiver/README.md"
README = (ROOT / DOCUMENT).read_text(encoding="utf-8")
SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def cells(heading: str) -> list[list[str]]:
    """Return the cells of the tables under a heading, without their heads."""
    under = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [
        [cell.strip() for cell in line.strip("| ").split(" | ")]
        for line in under.splitlines()
        if line.startswith("| `")
    ]


def test_command_of_the_readme_installs() -> None:
    (block,) = blocks(DOCUMENT, "sh")
    assert "docker build --tag registry.example.com/alert-receiver:0.1.0 ." in block
    (line,) = [line for line in block.splitlines() if line.startswith("helm install")]
    _, *arguments = shlex.split(line)
    arguments[arguments.index("helm/alert-receiver")] = str(CHART)
    text = find_helm("helm4").run(*arguments, "--dry-run=client")
    assert 'image: "registry.example.com/alert-receiver:0.1.0"' in text


def test_thresholds_of_the_readme_make_the_alerts_that_it_names(tmp_path: Path) -> None:
    (block,) = blocks(DOCUMENT, "yaml")
    values = yaml.safe_load(block)
    resources = find_helm("helm4").template(written(tmp_path, values))
    (group,) = pick(resources, "PrometheusRule")["spec"]["groups"]
    made = [rule["alert"] for rule in group["rules"]]
    assert [tuple(made)] == re.findall(r"makes the alerts `(\w+)` and `(\w+)`", README)
    actions = [rule["labels"]["action_plugin"] for rule in group["rules"]]
    assert actions == ["log_action", "file_action"]


def test_keys_of_a_threshold_are_those_of_the_schema() -> None:
    rows = cells("Thresholds")
    known = SCHEMA["$defs"]["threshold"]["properties"]
    modes = known["missing"]["enum"]
    first = [re.findall(r"`(\w+)`", row[0]) for row in rows]
    assert [name for names in first[-len(modes) :] for name in names] == modes
    assert sorted(name for names in first[: -len(modes)] for name in names) == sorted(known)
    assert known["operator"]["enum"] == list(OPERATORS)
    (operators,) = [row for row in rows if row[0] == "`operator`"]
    assert set(re.findall(r"`([<>=!]+)`", operators[2])) == set(OPERATORS)


def test_links_lead_somewhere() -> None:
    links = [one for one in re.findall(r"\]\(([^)\s]+)\)", README) if "://" not in one]
    assert links
    assert all((CHART / link).exists() for link in links)
    assert len(EXAMPLES) >= 5
