"""`prepare_for_use.sh` in a copied tree, with stub packages and a stub data step, offline."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
ROOT = Path(__file__).resolve().parent.parent
SHELL = shutil.which("dash") or shutil.which("sh")
TOOLS = ("dirname", "readlink", "sed")  # all that the script may use beside Python

DATA_STEP = """
import json, os, sys
from pathlib import Path
call = {"arguments": sys.argv[1:], "folder": os.getcwd(), "prefix": sys.prefix}
call["input"] = sys.stdin.read()
with Path("data_calls.jsonl").open("a") as file:
    file.write(json.dumps(call) + "\\n")
if "fail=1" in sys.argv:
    sys.exit("the data step failed for a reason") if "status=7" not in sys.argv else sys.exit(7)
"""

# Records its arguments and "installs" the pins, as real pip would, by leaving their metadata.
FAKE_PIP = """
import json, sys
from pathlib import Path
if "install" in sys.argv:
    with Path("pip_calls.jsonl").open("a") as file:
        file.write(json.dumps(sys.argv[1:]) + "\\n")
    if Path("pip_fails").exists():
        sys.exit("no matching distribution")
    names = [sys.argv[-1]]
    for name in names:
        for line in Path(name).read_text().splitlines():
            if line.startswith("-r "):
                names.append(line[3:])
            elif "==" in line:
                package, version = line.split("==")
                record = Path(__file__).parents[1] / f"{package}-{version}.dist-info"
                record.mkdir(exist_ok=True)
                (record / "METADATA").write_text(f"Name: {package}\\nVersion: {version}\\n")
"""


def site_packages(folder):
    places = {"base": str(folder), "platbase": str(folder)}
    return Path(sysconfig.get_path("purelib", "posix_prefix", places))


class Project:
    """A copied tree, an interpreter in `environment`, and a PATH with nothing else on it."""

    def __init__(self, folder):
        self.folder = folder / "a project"
        self.environment = folder / "environment"
        self.tools = folder / "tools"
        self.site = site_packages(self.environment)
        (self.folder / "data").mkdir(parents=True)
        shutil.copy(ROOT / "prepare_for_use.sh", self.folder)
        (self.folder / "data" / "__init__.py").touch()
        (self.folder / "prepare_data.py").write_text(DATA_STEP)
        (self.folder / "requirements.txt").write_text("# why\nkvlab_stub==1.0\n")
        (self.folder / "requirements-dev.txt").write_text("-r requirements.txt\nkvlab_dev==2.0\n")

        venv.create(self.environment, symlinks=True, with_pip=False)
        (self.site / "pip").mkdir()
        (self.site / "pip" / "__init__.py").touch()
        (self.site / "pip" / "__main__.py").write_text(FAKE_PIP)
        self.tools.mkdir()
        for name in TOOLS:
            (self.tools / name).symlink_to(shutil.which(name))
        self.put_on_path("python")

    def put_on_path(self, name):
        (self.tools / name).write_text(f'#!{SHELL}\nexec "{self.environment}/bin/python" "$@"\n')
        (self.tools / name).chmod(0o755)

    def at_start(self, code):
        """Make the interpreter run one line of code whenever it starts."""
        with (self.site / "at_start.pth").open("a") as file:
            file.write(f"import sys; {code}\n")

    def own_externally(self):
        """Make the interpreter look like one of a system's package manager (PEP 668)."""
        system = self.folder.parent / "system"
        self.at_start(f"sys.prefix = sys.base_prefix = {str(system)!r}")
        name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        (system / "lib" / name).mkdir(parents=True)
        (system / "lib" / name / "EXTERNALLY-MANAGED").touch()

    def run(self, *arguments, script="prepare_for_use.sh", cwd=None, **variables):
        environment = {"PATH": str(self.tools), "HOME": str(self.folder.parent), **variables}
        environment["PIP_CONFIG_FILE"] = os.devnull
        return subprocess.run(
            [SHELL, script, *arguments],
            cwd=cwd or self.folder,
            env=environment,
            input="must not be read",
            capture_output=True,
            text=True,
            timeout=120,
        )

    def calls(self, name):
        file = self.folder / f"{name}_calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_first_run_installs_prepares_and_names_the_next_command(project):
    result = project.run()
    assert (result.returncode, result.stderr) == (0, "")
    [pip_call] = project.calls("pip")
    assert pip_call[-2:] == ["-r", "requirements.txt"]
    assert "--no-input" in pip_call
    [data_call] = project.calls("data")
    assert data_call["arguments"] == []
    assert data_call["folder"] == str(project.folder)
    assert data_call["input"] == ""
    ready, following = result.stdout.splitlines()[-2:]
    assert ready == "Ready: the packages of requirements.txt and the data."
    assert following == "Next: python train_model.py attention=mla"


def test_second_run_calls_no_pip(project):
    project.run()
    result = project.run()
    assert result.returncode == 0
    assert len(project.calls("pip")) == 1
    assert len(project.calls("data")) == 2
    assert "Installing" not in result.stdout


@pytest.mark.parametrize(
    ("found", "num_pip_calls"), [("1.0", 0), ("1.0+cu130", 0), ("1.0.1", 1), ("0.9", 1)]
)
def test_pip_is_called_only_for_another_version(project, found, num_pip_calls):
    record = project.site / f"kvlab_stub-{found}.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Name: kvlab_stub\nVersion: {found}\n")
    assert project.run().returncode == 0
    assert len(project.calls("pip")) == num_pip_calls


def test_damaged_record_of_a_package_is_installed_again(project):
    (project.site / "kvlab_stub-1.0.dist-info").mkdir()
    assert project.run().returncode == 0
    assert len(project.calls("pip")) == 1


def test_works_from_another_folder_and_through_symlinks(project, tmp_path):
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (elsewhere / "absolute.sh").symlink_to(project.folder / "prepare_for_use.sh")
    (elsewhere / "relative.sh").symlink_to(Path("..", "a project", "prepare_for_use.sh"))
    (elsewhere / "twice.sh").symlink_to("relative.sh")
    scripts = [project.folder / "prepare_for_use.sh", "absolute.sh", "relative.sh", "twice.sh"]
    for script in scripts:
        result = project.run(script=script, cwd=elsewhere)
        assert (result.returncode, result.stderr) == (0, "")
    assert [call["folder"] for call in project.calls("data")] == [str(project.folder)] * 4


def test_cdpath_leads_nowhere_else(project, tmp_path):
    decoy = tmp_path / "decoys" / project.folder.name
    decoy.mkdir(parents=True)
    script = Path(project.folder.name, "prepare_for_use.sh")
    result = project.run(script=script, cwd=tmp_path, CDPATH=str(decoy.parent))
    assert (result.returncode, result.stderr) == (0, "")
    assert project.calls("data")[0]["folder"] == str(project.folder)


@pytest.mark.parametrize("arguments", [["--dev", "data=tiny"], ["data=tiny", "--dev"]])
def test_dev_installs_the_tools_and_is_not_passed_on(project, arguments):
    result = project.run(*arguments)
    assert result.returncode == 0
    assert [call[-1] for call in project.calls("pip")] == ["requirements-dev.txt"]
    assert project.calls("data")[0]["arguments"] == ["data=tiny"]
    assert result.stdout.splitlines()[-1] == "Next: python -m pytest"
    assert project.run("--dev").returncode == 0
    assert project.run().returncode == 0
    assert len(project.calls("pip")) == 1


def test_dev_sees_what_the_included_file_lacks(project):
    project.run("--dev")
    shutil.rmtree(project.site / "kvlab_stub-1.0.dist-info")
    project.run("--dev")
    assert len(project.calls("pip")) == 2


def test_dev_after_a_plain_run_installs_the_rest(project):
    project.run()
    project.run("--dev")
    assert [call[-1] for call in project.calls("pip")] == [
        "requirements.txt",
        "requirements-dev.txt",
    ]


def test_overrides_reach_the_data_step_and_the_next_command(project):
    overrides = ["data=local", "+data.path=a folder/*", "seed=1", "data.splits=[a,b]", "x="]
    result = project.run(*overrides)
    assert result.returncode == 0
    assert project.calls("data")[0]["arguments"] == overrides
    shown = "data=local '+data.path=a folder/*' seed=1 'data.splits=[a,b]' x="
    expected = f"Next: python train_model.py attention=mla {shown}"
    assert result.stdout.splitlines()[-1] == expected


@pytest.mark.parametrize("argument", ["mla", "-x", "--develop", "--a=b", "=b", ""])
def test_bad_argument_is_refused_in_one_line(project, argument):
    result = project.run("data=tiny", argument, "--dev")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert f"'{argument}'" in result.stderr
    assert not project.calls("pip")
    assert not project.calls("data")


@pytest.mark.parametrize("argument", ["-h", "--help"])
def test_help_prints_the_usage_and_does_nothing(project, argument):
    result = project.run("data=tiny", argument)
    assert (result.returncode, result.stderr) == (0, "")
    assert "usage: sh prepare_for_use.sh [--dev] [KEY=VALUE ...]" in result.stdout
    assert "#" not in result.stdout
    assert "set -eu" not in result.stdout
    assert not project.calls("data")


@pytest.mark.parametrize("version", [(2, 7), (3, 9), (3, 10), (3, 14)])
def test_unsupported_python_is_refused_in_one_line(project, version):
    project.at_start(f"sys.version_info = ({version[0]}, {version[1]}, 0, 'final', 0)")
    result = project.run()
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert f"python is Python {version[0]}.{version[1]} and kvlab needs 3.11 to" in result.stderr
    assert not project.calls("pip")
    assert not project.calls("data")


def test_unsupported_python_uses_a_supported_venv_beside_the_script(project):
    shutil.copytree(project.environment, project.folder / ".venv", symlinks=True)
    project.at_start("sys.version_info = (3, 14, 0, 'final', 0)")
    result = project.run()
    assert (result.returncode, result.stderr) == (0, "")
    assert project.calls("data")[0]["prefix"] == str(project.folder / ".venv")


@pytest.mark.parametrize("broken_python", [False, True])
def test_python3_stands_in_and_is_said_to(project, broken_python):
    (project.tools / "python").unlink()
    if broken_python:  # as the shim of a version manager without a version
        (project.tools / "python").write_text(f"#!{SHELL}\nexit 127\n")
        (project.tools / "python").chmod(0o755)
    project.put_on_path("python3")
    result = project.run()
    assert (result.returncode, result.stderr) == (0, "")
    assert "type the commands with python3" in result.stdout
    assert result.stdout.splitlines()[-1] == "Next: python3 train_model.py attention=mla"


def test_no_python_at_all_is_one_line(project):
    (project.tools / "python").unlink()
    result = project.run()
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "install Python 3.11, 3.12 or 3.13" in result.stderr


def test_failing_pip_stops_before_the_data_step(project):
    (project.folder / "pip_fails").touch()
    result = project.run()
    assert result.returncode == 1
    assert "no matching distribution" in result.stderr
    assert not project.calls("data")
    assert "Ready" not in result.stdout


@pytest.mark.parametrize(("overrides", "status"), [(["fail=1"], 1), (["fail=1", "status=7"], 7)])
def test_failing_data_step_gives_its_status_and_nothing_after(project, overrides, status):
    result = project.run(*overrides)
    assert result.returncode == status
    assert "Ready" not in result.stdout
    assert "Next" not in result.stdout
    assert result.stderr == ("the data step failed for a reason\n" if status == 1 else "")


def test_no_pip_and_no_way_to_get_it_is_one_line(project):
    shutil.rmtree(project.site / "pip")
    project.at_start("sys.modules['ensurepip'] = None")
    result = project.run()
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "has no pip" in result.stderr
    assert not project.calls("data")


def test_externally_managed_python_without_ensurepip_names_the_package(project):
    project.own_externally()
    project.at_start("sys.modules['ensurepip'] = None")
    result = project.run()
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "python3-venv" in result.stderr
    assert not (project.folder / ".venv").exists()


def test_externally_managed_python_that_has_everything_is_used(project):
    project.run()
    project.own_externally()
    assert project.run().returncode == 0
    assert not (project.folder / ".venv").exists()


def make_wheel(folder, name, version):
    """Write the smallest wheel that pip installs."""
    record = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(
            f"{record}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        wheel.writestr(
            f"{record}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{record}/RECORD", f"{name}.py,,\n{record}/RECORD,,\n")


@pytest.mark.slow
def test_externally_managed_python_gets_a_venv_with_real_pip(project, tmp_path):
    project.own_externally()
    make_wheel(tmp_path, "kvlab_stub", "1.0")
    make_wheel(tmp_path, "kvlab_dev", "2.0")
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    made = project.folder / ".venv"

    result = project.run("data=tiny", **offline)
    assert (result.returncode, result.stderr) == (0, "")
    assert "making .venv" in result.stdout
    assert (site_packages(made) / "kvlab_stub.py").exists()
    assert not (project.site / "kvlab_stub.py").exists()
    assert not project.calls("pip")
    assert project.calls("data")[0]["prefix"] == str(made)
    ready, found, following = result.stdout.splitlines()[-3:]
    assert ready.startswith("Ready")
    assert "find it by themselves" in found
    assert following == "Next: python train_model.py attention=mla data=tiny"

    # The second run needs neither the wheels nor pip; --dev adds what is missing.
    result = project.run(PIP_NO_INDEX="1")
    assert (result.returncode, result.stderr) == (0, "")
    assert "making .venv" not in result.stdout
    assert "Installing" not in result.stdout
    result = project.run("--dev", **offline)
    assert result.returncode == 0
    assert (site_packages(made) / "kvlab_dev.py").exists()
    assert result.stdout.splitlines()[-1] == "Next: . .venv/bin/activate && python -m pytest"

    # A .venv whose interpreter is gone is made again.
    for link in (made / "bin").glob("python*"):
        link.unlink()
        link.symlink_to(tmp_path / "gone")
    result = project.run(**offline)
    assert (result.returncode, result.stderr) == (0, "")
    assert "making .venv" in result.stdout


@pytest.mark.slow
def test_environment_without_pip_gets_it(project, tmp_path):
    shutil.rmtree(project.site / "pip")
    make_wheel(tmp_path, "kvlab_stub", "1.0")
    result = project.run(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    assert (result.returncode, result.stderr) == (0, "")
    assert (project.site / "kvlab_stub.py").exists()
    assert project.calls("data")[0]["prefix"] == str(project.environment)


def test_real_requirements_are_pins():
    """Only `name==version` lets a second run see without pip that nothing is missing."""
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text().splitlines():
            assert re.fullmatch(r"#.*|-r requirements\.txt|[\w-]+==[\w.]+", line), (name, line)


@pytest.mark.parametrize("script", ["prepare_for_use.sh", ".ci/run"])
def test_shellcheck_finds_nothing(script):
    beside_python = Path(sys.executable).parent / "shellcheck"
    shellcheck = str(beside_python) if beside_python.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (requirements-dev.txt has it)")
    result = subprocess.run([shellcheck, script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_pre_commit_runs_what_ci_runs():
    hooks = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text())
    stages = re.findall(r'^stage "[^"]*" (.*)', (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    checks = [stage for stage in stages if not stage.startswith(("sh ", '"$python"'))]
    assert checks == hooks
