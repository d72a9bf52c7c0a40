"""metric-reader's configuration: every generation is read, and its silent mistakes are errors."""

from datetime import timedelta

import pytest

from receiver.errors import SettingsError
from receiver.migration.predecessor import OldLevel, read

TABLES = """
metric_name = "queue_depth"
label_filters = 'job="a",queue="orders"'
threshold_operator = "less_than"
missing_value_behavior = "last_value"
log_level = "warn"
leader_election_lock_namespace = "x"
[soft]
threshold = 80
plugin = "log_action"
duration = "1m30s"
backoff_delay = "1.5h"
[hard]
threshold = 20.5
plugin = "file_action"
"""
FLAT = """
metric_name = "queue_depth"
threshold_operator = "greater_than"
soft_threshold = 80.0
soft_threshold_plugin = "log_action"
hard_threshold = 100.0
hard_threshold_plugin = "file_action"
threshold_duration = "30s"
backoff_delay = "1m"
"""
SINGLE = {
    "METRIC_NAME": "queue_depth",
    "THRESHOLD": ">80.5",
    "THRESHOLD_DURATION": "5m",
    "BACKOFF_DELAY": "10m0s",
    "ACTION_PLUGIN": "log_action",
}
SOFT = {
    "METRIC_NAME": "queue_depth",
    "THRESHOLD_OPERATOR": "greater_than",
    "SOFT_THRESHOLD": "80",
    "SOFT_PLUGIN": "log_action",
}


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def test_tables_of_soft_and_hard_are_read() -> None:
    old = read(TABLES, {})
    assert old.query == 'queue_depth{job="a",queue="orders"}'
    assert (old.metric, old.operator, old.missing) == ("queue_depth", "<", "last_value")
    assert old.soft == OldLevel(80, "log_action", seconds(90), seconds(5400))
    assert old.hard == OldLevel(20.5, "file_action", seconds(0), seconds(0))
    assert (old.log_level, old.is_single) == ("warn", False)


def test_flat_keys_share_duration_and_pause() -> None:
    old = read(FLAT, {})
    assert old.soft == OldLevel(80, "log_action", seconds(30), seconds(60))
    assert old.hard == OldLevel(100, "file_action", seconds(30), seconds(60))


def test_single_threshold_names_its_operator_itself() -> None:
    old = read("", SINGLE)
    assert old.is_single
    assert old.operator == ">"
    assert old.soft == OldLevel(80.5, "log_action", seconds(300), seconds(600))
    assert old.hard is None


def test_environment_wins_over_the_file_and_what_is_empty_does_not() -> None:
    said = {"SOFT_THRESHOLD": "70", "SOFT_DURATION": "", "HARD_THRESHOLD_PLUGIN": "log_action"}
    old = read(TABLES, {**said, "HOME": "/", "PATH": "/bin"})
    assert (old.soft.threshold, old.soft.duration) == (70, seconds(90))
    assert old.hard
    assert old.hard.plugin == "log_action"


def test_query_names_the_metric_only_if_it_is_one() -> None:
    said = {name: text for name, text in SOFT.items() if name != "METRIC_NAME"}
    assert read("", said | {"PROMETHEUS_QUERY": "up"}).metric == "up"
    old = read("", said | {"PROMETHEUS_QUERY": "rate(errors_total[5m])"})
    assert (old.query, old.metric) == ("rate(errors_total[5m])", "")


def test_plugin_keeps_its_settings_and_no_others() -> None:
    said = SOFT | {
        "HARD_THRESHOLD": "90", "HARD_PLUGIN": "drain", "DRAIN_QUEUE": "orders",
        "FILE_ACTION_SIZE": "12", "DRAINAGE": "x",
    }  # fmt: skip
    assert read("", said).plugin_settings == {"drain": {"DRAIN_QUEUE": "orders"}}


def test_table_of_a_plugin_is_carried_over_and_told_of() -> None:
    old = read(TABLES + '[plugins.file_action]\ndir = "/x"\nsize = 5\n', {"FILE_ACTION_SIZE": "7"})
    assert old.plugin_settings == {
        "file_action": {"FILE_ACTION_DIR": "/x", "FILE_ACTION_SIZE": "7"}
    }
    assert "table:FILE_ACTION_DIR" in old.left_out


@pytest.mark.parametrize(
    ("file", "environment", "problem"),
    [
        pytest.param(
            "", {"METRIC_NAME": "m", "THRESHOLD_OPERATOR": "less_than", "HARD_PLUGIN": "x",
                 "SOFT_THRESHOLD": "1"},
            "HARD_PLUGIN: x has no threshold; set HARD_THRESHOLD", id="plugin without a threshold",
        ),
        pytest.param(
            "", {"METRIC_NAME": "m", "SOFT_THRESHOLD": "1"},
            "THRESHOLD_OPERATOR: is not set, and without it", id="no operator",
        ),
        pytest.param(
            "", SOFT | {"THRESHOLD_OPERATOR": ">"},
            'THRESHOLD_OPERATOR: ">" is not one of greater_than, less_than', id="wrong operator",
        ),
        pytest.param(
            "", SINGLE | {"THRESHOLD": "80"}, 'THRESHOLD: "80" has no operator',
            id="single threshold without operator",
        ),
        pytest.param(
            "", SINGLE | {"SOFT_THRESHOLD": "80"}, "THRESHOLD and SOFT_THRESHOLD: are of two",
            id="two generations",
        ),
        pytest.param(
            "", {**SINGLE, "ACTION_PLUGIN": ""}, "ACTION_PLUGIN: is not set", id="nothing to run"
        ),
        pytest.param(
            "", SOFT | {"FILE_ACTION_SIZE": "1 elephant"},
            'FILE_ACTION_SIZE: "1 elephant" is not a number of bytes above 0', id="bad size",
        ),
        pytest.param(
            "", SOFT | {"FILE_ACTION_SIZE": "0"}, 'FILE_ACTION_SIZE: "0" is not', id="no size"
        ),
        pytest.param(
            '[plugins.drain]\nqueue = "a"', SOFT, "[plugins.drain] queue: metric-reader ignored it",
            id="table of a plugin that was ignored",
        ),
        pytest.param(
            '[plugins.file_action]\nsizes = "a"', SOFT, "[plugins.file_action] sizes: metric",
            id="unknown key in the table of a plugin",
        ),
        pytest.param(
            "[soft]\nduration = 30", SOFT, '[soft] duration: 30 has no unit', id="no unit"
        ),
        pytest.param(
            "[soft]\ntreshold = 30", SOFT, "[soft] treshold: is not a setting", id="misspelt key"
        ),
        pytest.param(
            "", SOFT | {"SOFT_DURATON": "5m"},
            "SOFT_DURATON: is not a setting of metric-reader (did you mean SOFT_DURATION?)",
            id="misspelt variable",
        ),
        pytest.param(
            "", SOFT | {"SOFT_DURATION": "5 min"}, 'SOFT_DURATION: "5 min" is not a duration',
            id="bad duration",
        ),
        pytest.param(
            "", SOFT | {"HARD_THRESHOLD": "90%"}, 'HARD_THRESHOLD: "90%" is not a number',
            id="bad number",
        ),
        pytest.param(
            "", {"METRIC_NAME": "m", "THRESHOLD_OPERATOR": "less_than", "HARD_THRESHOLD": "1"},
            "HARD_THRESHOLD: stands alone", id="hard alone",
        ),
        pytest.param(
            "", {"METRIC_NAME": "m", "THRESHOLD_OPERATOR": "less_than"},
            "SOFT_THRESHOLD: is not set", id="no threshold",
        ),
        pytest.param(
            "", SOFT | {"MISSING_VALUE_BEHAVIOR": "one"}, 'MISSING_VALUE_BEHAVIOR: "one" is not',
            id="unknown behaviour",
        ),
        pytest.param(
            "", SOFT | {"METRIC_NAME": ""}, "METRIC_NAME: is not set", id="no metric"
        ),
        pytest.param(
            "", SOFT | {"METRIC_NAME": "a b"}, 'METRIC_NAME: "a b" is not the name', id="no name"
        ),
        pytest.param(
            "", SOFT | {"PROMETHEUS_QUERY": "x"}, "METRIC_NAME and PROMETHEUS_QUERY", id="both"
        ),
        pytest.param("[soft", {}, "config.toml is not TOML", id="no TOML"),
        pytest.param("plugins = 1", {}, "config.toml: plugins must be tables", id="no tables"),
    ],
)  # fmt: skip
def test_mistake_is_an_error(file: str, environment: dict[str, str], problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(file, environment)
    (said,) = caught.value.problems
    assert said.startswith(problem)


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        read("", {"SOFT_THRESHOLD": "x", "HARD_PLUGIN": "y", "FILE_ACTION_SIZE": "-1"})
    assert len(caught.value.problems) == 5
