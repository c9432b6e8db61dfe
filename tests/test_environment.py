import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from launch import environment

ROOT = Path(environment.__file__).resolve().parents[1]
ENTRY = """
from launch.environment import ensure
ensure()
import os, sys
print(sys.prefix, sys.argv[1:], os.environ["PROJECT_ROOT"], "KVLAB_TRIED_VENV" in os.environ)
sys.exit(7)
"""


def make_venv(folder, packages=()):
    """Make an environment without pip that holds empty packages; return its interpreter."""
    venv.create(folder, symlinks=True, with_pip=False)
    for name in packages:
        (site_packages(folder) / name).mkdir()
        (site_packages(folder) / name / "__init__.py").touch()
    return folder / "bin" / "python"


def site_packages(folder):
    places = {"base": str(folder), "platbase": str(folder)}
    return Path(sysconfig.get_path("purelib", "posix_prefix", places))


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    (folder / "launch").mkdir(parents=True)
    (folder / "launch" / "__init__.py").touch()
    source = (ROOT / "launch" / "environment.py").read_text()
    (folder / "launch" / "environment.py").write_text(source)
    (folder / "train_model.py").write_text(ENTRY)
    return folder


@pytest.fixture
def bare_python(tmp_path):
    return make_venv(tmp_path / "bare")


def run(*command, cwd, **variables):
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd), **variables}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60
    )


def test_packages_are_those_of_the_requirements():
    names = re.findall(r"^([\w-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    modules = {"hydra" if name == "hydra-core" else name for name in names}
    assert modules == set(environment.PACKAGES)


def test_import_alone_does_nothing(project, bare_python):
    code = "import os, launch.environment; print('PROJECT_ROOT' in os.environ)"
    result = run(bare_python, "-c", code, cwd=project)
    assert (result.returncode, result.stdout, result.stderr) == (0, "False\n", "")


def test_complete_environment_is_kept(project, tmp_path):
    python = make_venv(tmp_path / "full", environment.PACKAGES)
    make_venv(project / ".venv", environment.PACKAGES)
    result = run(python, "train_model.py", cwd=project)
    assert result.stdout == f"{tmp_path / 'full'} [] {project} False\n"


def test_project_root_of_another_project_does_not_count(project, tmp_path):
    python = make_venv(tmp_path / "full", environment.PACKAGES)
    result = run(python, "train_model.py", cwd=project, PROJECT_ROOT="/elsewhere")
    assert result.stdout == f"{tmp_path / 'full'} [] {project} False\n"


@pytest.mark.parametrize("missing", ["torch", "hydra", "tqdm"])
def test_missing_package_without_venv_is_one_line(project, tmp_path, missing):
    rest = set(environment.PACKAGES) - {missing}
    python = make_venv(tmp_path / "partial", rest)
    result = run(python, "train_model.py", cwd=project)
    assert result.returncode == 2
    assert result.stdout == ""
    expected = f"kvlab: {missing} is not installed for {python}; run: sh prepare_for_use.sh\n"
    assert result.stderr == expected


def test_folder_with_the_name_of_a_package_is_no_package(project, tmp_path):
    python = make_venv(tmp_path / "partial", set(environment.PACKAGES) - {"wandb"})
    (project / "wandb").mkdir()
    result = run(python, "train_model.py", cwd=project)
    assert result.returncode == 2
    assert "wandb is not installed" in result.stderr


@pytest.mark.parametrize("command", [["train_model.py"], ["-m", "train_model"]])
def test_missing_package_goes_on_in_venv_with_the_same_arguments(project, bare_python, command):
    make_venv(project / ".venv", environment.PACKAGES)
    arguments = ["attention=mla", "note=two words", "-m"]
    result = run(bare_python, "-X", "utf8", *command, *arguments, cwd=project)
    assert result.stderr == ""
    assert result.stdout == f"{project / '.venv'} {arguments} {project} False\n"
    assert result.returncode == 7


def test_venv_is_found_from_another_folder(project, bare_python, tmp_path):
    make_venv(project / ".venv", environment.PACKAGES)
    result = run(bare_python, project / "train_model.py", cwd=tmp_path)
    assert result.stdout == f"{project / '.venv'} [] {project} False\n"


def test_venv_that_lacks_packages_is_one_line_about_it(project, bare_python):
    python = make_venv(project / ".venv")
    for started in (bare_python, python):
        result = run(started, "train_model.py", cwd=project)
        assert result.returncode == 2
        expected = f"kvlab: torch is not installed for {python}; run: sh prepare_for_use.sh\n"
        assert result.stderr == expected


def test_venv_that_leads_back_does_not_loop(project, bare_python):
    python = project / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho started >&2\nexec "{bare_python}" "$@"\n')
    python.chmod(0o755)
    result = run(bare_python, "train_model.py", cwd=project)
    assert result.returncode == 2
    first, second = result.stderr.splitlines()
    assert first == "started"
    assert second.startswith("kvlab: torch is not installed")


@pytest.mark.parametrize("version", [(3, 9), (3, 10), (3, 14)])
def test_unsupported_python_is_one_line_or_goes_on_in_venv(project, tmp_path, version):
    python = make_venv(tmp_path / "other", environment.PACKAGES)
    claim = f"import sys; sys.version_info = ({version[0]}, {version[1]}, 0, 'final', 0)\n"
    (site_packages(tmp_path / "other") / "claim.pth").write_text(claim)
    result = run(python, "train_model.py", cwd=project)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert f"Python 3.11 to 3.13 is needed and {python} is 3.{version[1]};" in result.stderr

    make_venv(project / ".venv", environment.PACKAGES)
    result = run(python, "train_model.py", cwd=project)
    assert result.stdout == f"{project / '.venv'} [] {project} False\n"


def test_this_environment_passes_and_imports_no_package():
    code = (
        "import sys, launch.environment as e; e.ensure();"
        "print([name for name in e.PACKAGES if name in sys.modules])"
    )
    result = run(sys.executable, "-c", code, cwd=ROOT)
    assert (result.returncode, result.stdout) == (0, "[]\n"), result.stderr


def test_windows_is_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(environment.os, "name", "nt")
    with pytest.raises(SystemExit) as end:
        environment.ensure()
    assert end.value.code == 2
    monkeypatch.undo()
    err = capsys.readouterr().err
    assert err == (
        "kvlab: Linux or macOS is needed; on Windows use WSL, the Windows Subsystem for Linux\n"
    )
