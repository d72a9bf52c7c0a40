"""How the receiver sees the plugin: found, configured or not, and light until it runs."""

import logging
import subprocess
import sys

import pytest

from action_plugins import efs_emergency
from receiver import settings as receiver_settings
from receiver.errors import PluginError, SettingsError
from receiver.plugins import load_actions
from receiver.testing import run_action

FILE_SYSTEM = "fs-0123456789abcdef0"


def load(**environment):
    """Return the plugin as the receiver loads it with this environment."""
    loaded = load_actions(receiver_settings.load(environment, {}))
    return loaded.plugins["efs_emergency"]


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({"EFS_FILE_SYSTEM_ID": FILE_SYSTEM}, id="static-id"),
        pytest.param({"EFS_FILE_SYSTEM_PROMETHEUS_LABEL": "dimension_FileSystemId"}, id="label"),
    ],
)
def test_one_of_the_two_settings_is_enough(environment):
    plugin = load(RECEIVER_ACTIONS="efs_emergency", **environment)
    assert (plugin.state, plugin.reason) == ("loaded", "")
    assert plugin.hooks == (
        "settings", "validate_config", "default_policy", "execute", "describe",
    )  # fmt: skip


def test_without_both_it_stops_the_start_when_it_is_named():
    with pytest.raises(PluginError, match=r"EFS_FILE_SYSTEM_ID: is not set") as caught:
        load(RECEIVER_ACTIONS="efs_emergency")
    assert "EFS_FILE_SYSTEM_PROMETHEUS_LABEL: is not set" in str(caught.value)


def test_without_both_it_is_quietly_not_configured_when_nothing_names_it():
    plugin = load()
    assert plugin.state == "not configured"


def test_a_bad_id_stops_the_start_with_its_cure():
    with pytest.raises(PluginError, match="'vol-1' is neither the id nor the ARN"):
        load(EFS_FILE_SYSTEM_ID="vol-1")


def test_settings_are_checked_before_the_plugin_sees_them():
    with pytest.raises(SettingsError, match='EFS_FALLBACK_TO_STATIC: "perhaps"'):
        run_action(
            efs_emergency,
            environment={"EFS_FILE_SYSTEM_ID": FILE_SYSTEM, "EFS_FALLBACK_TO_STATIC": "perhaps"},
        )


def test_a_static_id_that_nothing_can_reach_is_warned_about(caplog):
    caplog.set_level(logging.WARNING)
    load(EFS_FILE_SYSTEM_ID=FILE_SYSTEM, EFS_FILE_SYSTEM_PROMETHEUS_LABEL="fs")
    assert "the static file system is never used" in caplog.text


def test_boto3_is_not_imported_before_the_first_run():
    program = (
        "import sys\n"
        "from action_plugins import efs_emergency\n"
        "efs_emergency.settings()\n"
        f"efs_emergency.validate_config({{'EFS_FILE_SYSTEM_ID': '{FILE_SYSTEM}'}})\n"
        "sys.exit(bool({'boto3', 'botocore'} & set(sys.modules)))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_limits_count_by_the_label_that_names_the_file_system():
    plugin = load(EFS_FILE_SYSTEM_PROMETHEUS_LABEL="one, other")
    assert plugin.default_policy["target_labels"] == "one,other"
    assert load(EFS_FILE_SYSTEM_ID=FILE_SYSTEM).default_policy["target_labels"] == ""
