"""What in the chart is made from elsewhere: by `tests/renew-chart`, and compared by tests."""

import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import yaml

from action_plugins import efs_emergency, exec_plugin, file_action, http_plugin, log_action
from receiver import settings as receiver_settings
from receiver.declarations import Setting, declared
from receiver.policies import Policy
from tests.support.charts import CHART
from tests.support.documents import ROOT

BUILT_INS = (efs_emergency, exec_plugin, file_action, http_plugin, log_action)
# Where a file of the chart comes from.
COPIES = {
    "files/rules.yml": ROOT / "receiver" / "monitoring" / "rules.yml",
    "files/dashboard.json": ROOT / "receiver" / "monitoring" / "dashboard.json",
}
# Settings with a value of their own in the chart.
WITH_A_VALUE = (
    "RECEIVER_BIND", "RECEIVER_DATA_DIR", "RECEIVER_DATABASE_URL", "RECEIVER_AUTH",
    "RECEIVER_SUBMIT_TOKEN", "RECEIVER_READ_TOKEN", "RECEIVER_OPERATE_TOKEN",
    "RECEIVER_SUBMIT_BASIC_AUTH", "RECEIVER_READ_BASIC_AUTH", "RECEIVER_OPERATE_BASIC_AUTH",
    "RECEIVER_METRICS_OPEN", "RECEIVER_WORKER_METRICS_BIND", "RECEIVER_TLS_CERT",
    "RECEIVER_TLS_KEY", "RECEIVER_TLS_CLIENT_CA", "RECEIVER_GRACE_PERIOD", "ACTION_PLUGIN",
    "PLUGIN_DIR",
)  # fmt: skip
TABLE_BEGINS, TABLE_ENDS = "<!-- values -->\n", "<!-- end of values -->\n"


def setting_names() -> list[str]:
    """Return what can stand under `settings`."""
    settings: list[Setting] = list(receiver_settings.table().values())
    for plugin in BUILT_INS:
        settings += getattr(plugin, "settings", list)()
    names = set()
    for one in settings:
        if one.name not in WITH_A_VALUE:
            names |= {one.name, f"{one.name}_FILE"} if one.secret else {one.name}
    return sorted(names)


def policy_keys() -> list[str]:
    """Return what can stand under `policies.<action>`."""
    return sorted(one.name for one in declared(Policy).values())


def schema_text() -> str:
    """Return values.schema.json with the names that the receiver knows."""
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    schema["$defs"]["settingName"]["enum"] = setting_names()
    schema["$defs"]["policyKey"]["enum"] = policy_keys()
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def documented() -> Iterator[tuple[str, str, str]]:
    """Yield path, default and description of every value in values.yaml."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    lines = text.splitlines()

    def walk(node: yaml.MappingNode, path: str) -> Iterator[tuple[str, str, str]]:
        for key, value in node.value:
            where = f"{path}{key.value}"
            said = []
            number = key.start_mark.line - 1
            while number >= 0 and lines[number].strip().startswith("# "):
                said.insert(0, lines[number].strip()[2:])
                number -= 1
            if said:
                default = json.dumps(_plain(value), ensure_ascii=False)
                yield where, default, " ".join(said)
            elif isinstance(value, yaml.MappingNode) and value.value:
                yield from walk(value, f"{where}.")
            else:
                yield where, "", ""

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    yield from walk(root, "")


def _plain(node: yaml.Node) -> Any:
    return yaml.safe_load(yaml.serialize(node, Dumper=yaml.SafeDumper))


def readme_text() -> str:
    """Return the chart's README with its table of values."""
    text = (CHART / "README.md").read_text(encoding="utf-8")
    rows = "".join(
        f"| `{path}` | {_cell(default)} | {words} |\n" for path, default, words in documented()
    )
    table = f"| value | default | |\n|---|---|---|\n{rows}"
    return re.sub(
        f"{TABLE_BEGINS}.*{TABLE_ENDS}",
        lambda _: f"{TABLE_BEGINS}\n{table}\n{TABLE_ENDS}",
        text,
        flags=re.DOTALL,
    )


def _cell(default: str) -> str:
    return "" if default in ('""', "{}", "[]") else f"`{default}`"


def renew() -> None:
    """Write all of it."""
    (CHART / "values.schema.json").write_text(schema_text(), encoding="utf-8")
    (CHART / "README.md").write_text(readme_text(), encoding="utf-8")
    for name, source in COPIES.items():
        (CHART / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source, CHART / name)
