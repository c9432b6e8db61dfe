"""What the project says of itself: its version, its tests, what runs them."""

import shlex
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_pytest_leaves_out_what_is_slow_and_ci_does_not():
    options = shlex.split(PROJECT["tool"]["pytest"]["ini_options"]["addopts"])
    assert options[options.index("-m") + 1] == "not slow"
    [line] = [one for one in (ROOT / ".ci/run").read_text().splitlines() if "pytest -m" in one]
    assert 'python -m pytest -m "" "$@"\'' in line
