"""What `pip install .` and its like say: kvlab runs from its checkout."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from launch import no_package

ROOT = Path(__file__).parent.parent
INSTEAD = "kvlab is not installed but runs from its checkout: sh prepare_for_use.sh"
HOOKS = ["build_wheel", "build_sdist", "build_editable"]
HOOKS += [f"get_requires_for_{hook}" for hook in HOOKS]
HOOKS += ["prepare_metadata_for_build_wheel", "prepare_metadata_for_build_editable"]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_of_a_front_end_says_what_to_do(hook):
    with pytest.raises(SystemExit, match=f"^{INSTEAD}$"):
        getattr(no_package, hook)("folder", config_settings=None)


def test_nothing_is_fetched_in_order_to_refuse():
    backend = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    assert backend["requires"] == []
    assert (ROOT / backend["backend-path"][0] / f"{backend['build-backend']}.py").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--editable"]])
def test_pip_refuses_in_that_line(options, tmp_path):
    told = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install"),
            *("--no-deps", "--no-index", f"--prefix={tmp_path}", *options, str(ROOT)),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 1
    [line] = [line for line in (told.stdout + told.stderr).splitlines() if "kvlab is" in line]
    assert line.strip() == INSTEAD
    assert "Traceback" not in told.stdout + told.stderr
    assert not list(tmp_path.iterdir())
