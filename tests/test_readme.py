import json
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch import compose, schemas
from launch.typed import for_hydra
from reporting.contents import protocol_line
from reporting.headline import headline
from reporting.markdown import table
from reporting.plots import plot_quality
from reporting.tables import comparison, decode_tables
from reporting.terminal import Screen, draw

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ENTRIES = {
    "train_model.py": ("train", schemas.TrainConfig),
    "eval_model.py": ("eval", schemas.EvalConfig),
    "generate_text.py": ("generate", schemas.GenerateConfig),
}


def code_blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    """Every command that trains, evaluates or generates, wherever the README has it."""
    script = r"python ((?:train_model|eval_model|generate_text)\.py(?:(?! or python)[^`\n|)&])*)"
    found = re.findall(script, README)
    return sorted({command.strip() for command in found})


def test_the_readme_has_the_three_commands_and_both_one_liners():
    for line in (
        "    sh prepare_for_use.sh\n",
        "    python train_model.py attention=mla\n    python eval_model.py\n",
        "`sh prepare_for_use.sh && python train_model.py attention=mla`",
        "`sh prepare_for_use.sh --dev && python -m pytest`",
    ):
        assert line in README
    assert "sh prepare_for_use.sh --dev && python -m pytest" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("command", commands())
def test_every_command_composes(command):
    script, *arguments = shlex.split(command)
    if "attention=gated" in arguments:
        pytest.skip("the README adds that attention; test_a_sixth_attention runs it")
    name, schema = ENTRIES[script]
    # Of a sweep the first choice: one run is composed at a time.
    overrides = [re.sub(r"=([^\[,]*),.*", r"=\1", part) for part in arguments if part != "-m"]
    overrides = for_hydra(name, overrides)
    compose.checked(compose.composed(name, overrides), schema)


@pytest.mark.parametrize("code", [c for c in code_blocks("python") if "register_" not in c])
def test_every_python_example_runs(code):
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})  # noqa: S102 (our own text)


def pages():
    """Everything that shows commands: the pages, and what --help prints."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "conf").glob("*.yaml")]
    return sorted(path for path in found if path.name != "CHANGELOG.md")


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.name)
def test_commands_are_quoted_for_zsh(page):
    """An unquoted bracket, * or ? is a pattern there, and an error where no file matches."""
    command = r"(?:^ {4,}|`)((?:python|torchrun|sh|srun) [^`\n]*)"
    for found in re.findall(command, page.read_text(), re.MULTILINE):
        text = re.sub(r"\s[\[|(] ?[a-z]\w*=?.*$|  .*$", "", found)  # optional arguments, remarks
        unquoted = re.sub(r"'[^']*'|\"[^\"]*\"", "", text)
        assert not re.search(r"[][*?]", unquoted), f"{page.name}: {found}"


@pytest.fixture
def study():
    """The committed study that the README shows: its folder and its variants."""
    folder = re.search(r"\(docs/results/([^/)]+study-nano)/report\.md\)", README).group(1)
    folder = ROOT / "docs" / "results" / folder
    rows = json.loads((folder / "results.json").read_text())
    # Reports of that day say what a token takes; each token took as much.
    context = {"kv_cache_context": rows[0]["protocol"]["context"]}
    variants = json.loads((folder / "variants.json").read_text())
    return folder, [variant | context for variant in variants]


def test_the_table_and_the_headline_are_those_of_the_committed_study(study):
    folder, variants = study
    rows = json.loads((folder / "results.json").read_text())
    shown = "\n".join(line.strip() for line in README.splitlines())
    for line in [protocol_line(rows[0]), *draw(comparison(variants), Screen(96)).splitlines()]:
        assert line.strip() in shown
    assert " ".join(headline(variants).split()) in " ".join(README.split())


def test_the_committed_study_is_what_its_rows_and_windows_say(study):
    folder, variants = study
    rows = {r["run_name"]: r for r in json.loads((folder / "results.json").read_text())}
    windows = json.loads((folder / "windows.json").read_text())
    for variant in variants:
        nlls = [rows[name]["nll"] for name in variant["runs"]]
        assert variant["nll"] == pytest.approx(statistics.fmean(nlls))
        for name in variant["runs"]:
            found = windows[name]
            assert sum(found["nll"]) / sum(found["tokens"]) == pytest.approx(rows[name]["nll"])


def test_the_speed_of_decoding_is_that_of_the_committed_report():
    folder = re.search(r"\(docs/results/([^/)]+decode)/report\.md\)", README).group(1)
    variants = json.loads((ROOT / "docs" / "results" / folder / "variants.json").read_text())
    assert table(decode_tables(variants)[-1]) in README


def test_the_plot_is_drawn_from_the_committed_study(study, tmp_path):
    folder, variants = study
    relative = (folder / "difference.png").relative_to(ROOT).as_posix()
    assert f"({relative})" in README
    plot_quality(variants, [tmp_path / "difference.png"])
    drawn, committed = (
        np.asarray(Image.open(path).convert("L"), dtype=np.float64)
        for path in (tmp_path / "difference.png", folder / "difference.png")
    )
    assert drawn.shape == committed.shape
    # Fonts are matplotlib's own; what is left is anti-aliasing.
    assert np.abs(drawn - committed).mean() < 0.5


NEW_FILES = (("conf/attention", "yaml"), ("modeling/attention", "py"), ("modeling/reference", "py"))


@pytest.mark.slow
def test_a_sixth_attention_is_a_module_a_yaml_file_and_an_oracle(tmp_path, tiny_data):
    names = (
        *("guards", "files", "interop", "launch", "modeling", "data", "tracking", "training"),
        *("measuring", "comparing", "reporting", "settings", "conf", "tests"),
    )
    ignored = shutil.ignore_patterns("__pycache__", "prepared", "local")
    for name in names:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        shutil.copy(path, tmp_path)
    files = {}
    for language in ("python", "yaml"):
        for code in code_blocks(language):
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
