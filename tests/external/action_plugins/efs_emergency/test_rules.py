"""The README's alert rules: Prometheus accepts them, and they fire when they should."""

import subprocess

import pytest
import yaml

from tests.support.efs_readme import FILE_SYSTEM, LABELS, RULES
from tests.support.stack import requires

HEALTHY = "fs-0fedcba9876543210"


@pytest.fixture
def promtool():
    """The promtool of this machine; in CI it must be there."""
    (path,) = requires("promtool")
    return path


@pytest.fixture(params=sorted(LABELS))
def exporter(request):
    return request.param


@pytest.fixture
def rule_file(exporter, tmp_path):
    """The spec of a PrometheusRule as the plain rule file that it is."""
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump(RULES[exporter][1]["spec"]), encoding="utf-8")
    return path


def run_promtool(promtool, *arguments):
    """Return what promtool says; fail with it when it is not content."""
    done = subprocess.run(
        [promtool, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_rules(promtool, rule_file):
    assert "SUCCESS: 1 rules found" in run_promtool(promtool, "check", "rules", rule_file)


def test_the_rules_fire_for_the_file_system_that_runs_dry_and_for_no_other(
    promtool, rule_file, exporter, tmp_path
):
    key = next(iter(LABELS[exporter]))
    labels = {**LABELS[exporter], key: FILE_SYSTEM}

    def series(file_system, instance, values):
        text = ",".join(
            f'{name}="{value}"'
            for name, value in {**labels, key: file_system, "instance": instance}.items()
        )
        return {"series": f"aws_efs_burst_credit_balance_average{{{text}}}", "values": values}

    alert = {
        "exp_labels": {
            **labels,
            "alertname": "EfsBurstCreditsLow",
            "severity": "critical",
            "action_plugin": "efs_emergency",
        },
        "exp_annotations": {
            "summary": f"EFS {FILE_SYSTEM} has 93.13GiB of burst credits left",
            "metric_name": "aws_efs_burst_credit_balance_average",
            "value": "1e+11",
            "threshold": "< 214748364800",
            "for": "5m",
        },
    }
    path = tmp_path / "tests.yml"
    path.write_text(
        yaml.safe_dump(
            {
                "rule_files": [str(rule_file)],
                "evaluation_interval": "1m",
                "tests": [
                    {
                        "interval": "1m",
                        "input_series": [
                            # The exporter restarts as another instance: still one alert.
                            series(FILE_SYSTEM, "a", "300e9x4 100e9x9 stale"),
                            series(FILE_SYSTEM, "b", "_x14 100e9x10"),
                            series(HEALTHY, "a", "2.3e12x30"),
                            series("fs-00000000", "a", " ".join(["NaN"] * 30)),
                        ],
                        "alert_rule_test": [
                            {"eval_time": time, "alertname": "EfsBurstCreditsLow", "exp_alerts": x}
                            for time, x in (("9m", []), ("11m", [alert]), ("20m", [alert]))
                        ],
                    }
                ],
            }
        ),
        encoding="utf-8",
    )
    assert "SUCCESS" in run_promtool(promtool, "test", "rules", path)
