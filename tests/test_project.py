"""What the project says of itself: its version, its tests, what runs them."""

import re
import shlex
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_version_is_one():
    version = PROJECT["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", version)
    assert {"message", "title", "authors"} <= set(citation)
    assert citation["license"] == "MIT"
    newest = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert newest == "Unreleased" or re.fullmatch(rf"{version} - \d{{4}}-\d\d-\d\d", newest)


def test_the_workflow_runs_ci_on_each_supported_python():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    [job] = workflow["jobs"].values()
    assert job["steps"][-1]["run"] == "bash .ci/run"
    assert PROJECT["project"]["requires-python"] == ">=3.11,<3.14"
    assert job["strategy"]["matrix"]["python-version"] == ["3.11", "3.12", "3.13"]


def test_pytest_leaves_out_what_is_slow_and_ci_does_not():
    options = shlex.split(PROJECT["tool"]["pytest"]["ini_options"]["addopts"])
    assert options[options.index("-m") + 1] == "not slow"
    [line] = [one for one in (ROOT / ".ci/run").read_text().splitlines() if "pytest -m" in one]
    assert 'python -m pytest -m "" "$@"\'' in line


def test_uv_installs_the_dependencies_alone_and_its_lock_is_not_committed():
    assert PROJECT["tool"]["uv"] == {"package": False}
    assert "/uv.lock" in (ROOT / ".gitignore").read_text().splitlines()
    assert "uv run python train_model.py" in (ROOT / "docs/quickstart.md").read_text()
