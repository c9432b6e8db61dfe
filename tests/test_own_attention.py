"""docs/own_attention.md: its files, added to a copy of the tree, are attentions like the others."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NEW_FILES = (("conf/attention", "yaml"), ("modeling/attention", "py"), ("modeling/reference", "py"))


@pytest.mark.slow
def test_a_new_attention_is_a_module_a_yaml_file_and_an_oracle(tmp_path, tiny_data):
    packages = [path.parent.name for path in ROOT.glob("*/__init__.py")]
    ignored = shutil.ignore_patterns("__pycache__", "prepared", "local")
    for name in [*packages, "conf", "tests"]:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        shutil.copy(path, tmp_path)
    files = {}
    page = (ROOT / "docs" / "own_attention.md").read_text()
    for code in re.findall(r"```(?:python|yaml)\n(.*?)```", page, re.DOTALL):
        if named := re.search(r"^# ((?:modeling|conf)/\S+)$", code, re.MULTILINE):
            files[named.group(1)] = code
    assert sorted(files) == [
        f"{folder}/{name}.{suffix}" for folder, suffix in NEW_FILES for name in ("gated", "local")
    ]
    for path, code in files.items():
        (tmp_path / path).write_text(code)

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={"PATH": "", "PROJECT_ROOT": str(tmp_path)},
            check=False,
        )

    keys = ("debug=smoke", "tracking=none", *tiny_data)
    for arguments in (
        ("attention=gated",),
        ("attention=gated", "layers=window_full", "layers.window=8"),
        ("attention=local", "model.attention.sliding_window=8"),
    ):
        trained = run("train_model.py", *arguments, *keys)
        assert trained.returncode == 0, trained.stderr
    compared = run("eval_model.py", "tracking=none")
    assert compared.returncode == 0, compared.stderr
    rows = json.loads(next((tmp_path / "reports").glob("*/results.json")).read_text())
    assert len({row["run_name"] for row in rows}) == 3

    checked = run("check_attention.py", "attention=gated,local")
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.count("✓ Decoding token by token") == 2
    assert "gated in a window of 3 tokens with sinks:\n✓" in checked.stdout
    # What the registry and conf/attention list is found by the tests, too.
    tested = run(
        *("-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider"),
        *("tests/test_configuration.py", "tests/modeling/test_attention_contract.py"),
        "-k",
        "gated or local or finer_width or lists or registered or mqaa",
        "-v",
    )
    assert tested.returncode == 0, tested.stdout
    for named in ("composes_with_every_size", "keeps_its_promise"):
        assert named in tested.stdout
    refused = run("train_model.py", "attention=gatd")
    assert "gated" in refused.stderr
