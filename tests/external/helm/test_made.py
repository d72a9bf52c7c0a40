"""What in the chart is made from elsewhere is as `tests/renew-chart` would make it now."""

import configparser

import pytest
import yaml

from receiver import settings as receiver_settings
from tests.support.charts import CHART
from tests.support.documents import ROOT
from tests.support.made import COPIES, WITH_A_VALUE, documented, readme_text, schema_text

RENEW = "run tests/renew-chart"


def test_schema_knows_the_settings_and_policies_of_the_receiver() -> None:
    assert (CHART / "values.schema.json").read_text() == schema_text(), RENEW


def test_settings_with_a_value_of_their_own_exist_and_are_set_by_the_templates() -> None:
    names = {one.name for one in receiver_settings.table().values()}
    assert set(WITH_A_VALUE) <= names
    pod = (CHART / "templates" / "_pod.tpl").read_text()
    for name in WITH_A_VALUE:
        credential = name.removeprefix("RECEIVER_")
        assert f"name: {name}" in pod or f'"{credential}"' in pod, name


def test_readme_has_the_table_of_values() -> None:
    assert (CHART / "README.md").read_text() == readme_text(), RENEW


def test_every_value_is_described() -> None:
    rows = list(documented())
    assert len(rows) > 80
    assert [path for path, _, words in rows if len(words) < 10] == []


@pytest.mark.parametrize("name", COPIES)
def test_copy_is_what_the_receiver_brings(name: str) -> None:
    assert (CHART / name).read_bytes() == COPIES[name].read_bytes(), RENEW


def test_versions_are_those_of_the_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == setup["metadata"]["version"]
    assert chart["description"] == setup["metadata"]["description"]
