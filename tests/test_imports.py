import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("guards", "modeling", "data", "tracking", "evaluation", "training")
MAY_IMPORT = {
    "guards": set(),
    "modeling": set(),
    "data": {"guards"},
    "tracking": {"guards"},
    "evaluation": {"guards", "modeling", "data", "tracking"},
    "training": {"guards", "modeling", "data", "tracking", "evaluation"},
}
# An entry point, though it lives in a package: `python -m data.prepare`.
ENTRY_POINTS = {ROOT / "data" / "prepare.py"}
HEAVY = {"wandb", "transformers", "datasets", "matplotlib", "jinja2"}


def modules(package):
    return [path for path in (ROOT / package).rglob("*.py") if path not in ENTRY_POINTS]


def imports(path, top_level_only=False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package):
    ours = {*PACKAGES, "run_config", "train_model", "eval_model", "generate_text"}
    for path in modules(package):
        forbidden = set(imports(path)) & ours - MAY_IMPORT[package] - {package}
        assert not forbidden, f"{path.relative_to(ROOT)} imports {forbidden}"


def test_modeling_imports_torch_and_the_standard_library_only():
    for path in modules("modeling"):
        foreign = set(imports(path)) - {"torch", "modeling"} - sys.stdlib_module_names
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def test_wandb_is_known_to_tracking_only_and_hydra_to_run_config_only():
    for package in PACKAGES:
        for path in modules(package):
            names = set(imports(path))
            assert "hydra" not in names, path
            assert "wandb" not in names or path.parent.name == "tracking", path


@pytest.mark.parametrize("package", PACKAGES)
def test_slow_libraries_are_imported_where_used(package):
    for path in modules(package):
        assert not HEAVY & set(imports(path, top_level_only=True)), path


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("run_config", {"torch", *HEAVY}),
        ("training.loop", HEAVY | {"hydra"}),
        ("data.pipeline", {"torch", *HEAVY}),
    ],
)
def test_start_up_does_not_wait_for_what_it_does_not_use(module, absent):
    code = f"import sys, {module}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not absent & set(result.stdout.split())


FORBIDDEN = {
    ("pickle", "load"),
    ("pickle", "loads"),
    ("torch", "load"),
    ("yaml", "load"),
    ("hydra.utils", "instantiate"),
    ("hydra.utils", "call"),
    ("os", "system"),
}


def test_nothing_unpickles_or_runs_what_a_file_brings():
    for path in [*ROOT.glob("*.py"), *(p for package in PACKAGES for p in modules(package))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            where = f"{path.relative_to(ROOT)}:{node.lineno} calls {name}"
            assert name not in {"eval", "exec", "__import__", "compile"}, where
            assert tuple(name.rsplit(".", 1)) not in FORBIDDEN, where
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}
            assert keywords.get("shell") != "True", where
            assert keywords.get("allow_pickle") != "True", where
            assert keywords.get("trust_remote_code", "False") == "False", where
