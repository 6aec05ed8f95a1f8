import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARDS = {file.stem: json.loads(file.read_text()) for file in sorted((GRAFANA / "dashboards").glob("*.json"))}


def pytest_generate_tests(metafunc):
    """Runs a test that takes `dashboard` once for each dashboard."""
    if "dashboard" in metafunc.fixturenames:
        metafunc.parametrize("dashboard", list(DASHBOARDS.values()), ids=list(DASHBOARDS))


@pytest.fixture(scope="session")
def dashboards():
    return DASHBOARDS
