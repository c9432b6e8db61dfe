import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = (
    *("guards", "files", "modeling", "settings", "data", "tracking", "measuring", "comparing"),
    *("reporting", "training", "interop", "harness", "launch", "commands"),
)
MAY_IMPORT = {
    "guards": set(),
    "files": set(),
    "modeling": set(),
    "settings": {"modeling"},
    "data": {"guards", "files", "settings"},
    "tracking": {"guards", "files", "settings"},
    "measuring": {"guards", "files", "settings", "modeling", "data", "tracking"},
    "comparing": {"guards", "files", "settings", "modeling", "data", "tracking", "measuring"},
    "reporting": {
        "guards",
        "files",
        "settings",
        "modeling",
        "data",
        "tracking",
        "measuring",
        "comparing",
    },
    "training": {"guards", "files", "settings", "modeling", "data", "tracking", "measuring"},
    "interop": {"guards", "files", "settings", "modeling", "data", "tracking"},
    "harness": {"guards", "files", "settings", "modeling", "data", "tracking", "interop"},
    "launch": {*PACKAGES} - {"comparing", "reporting", "commands"},
    "commands": {*PACKAGES},
}
ENTRY_POINTS = {"train_model", "eval_model", "generate_text", "export_model"}
ENTRY_POINTS |= {"prepare_data", "check_attention"}
USERS_OF_HYDRA = {f"launch/{name}.py" for name in ("compose", "explain", "launcher", "plan")}
HEAVY = {"wandb", "transformers", "datasets", "matplotlib", "jinja2", "lm_eval"}


def modules(name):
    """The files of a package, or the one of a module."""
    folder = ROOT / name
    paths = folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]
    return [*paths]


def everything():
    of_packages = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    return [*ROOT.glob("*.py"), *of_packages]


def imports(path, top_level_only=False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def test_every_room_is_listed_wherever_rooms_are():
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == {*PACKAGES, "benchmarks"}
    assert set(MAY_IMPORT) == set(PACKAGES)
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert {*tools["mypy"]["files"]} == {*PACKAGES, *(f"{name}.py" for name in ENTRY_POINTS)}
    warnings = tools["pytest"]["ini_options"]["filterwarnings"]
    assert {*warnings} == {f"error:::{name}" for name in PACKAGES}
    page = (ROOT / "docs/architecture.md").read_text()
    assert all(f"| `{name}/` |" in page for name in PACKAGES)


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_imports_go_one_way(name):
    ours = {*MAY_IMPORT, *ENTRY_POINTS}
    for path in modules(name):
        forbidden = set(imports(path)) & ours - MAY_IMPORT[name] - {name}
        assert not forbidden, f"{path.relative_to(ROOT)} imports {forbidden}"


# The folders of a package, each with the ones that it may import; and what all share, at the front.
ROOMS = {
    "training": (("machine", "recipe", "ranks", "endurance"), {"errors"}),
    "data": (
        ("hub", "sources", "tokenizing", "shards", "preparing"),
        {"errors", "splits"},
    ),
}


def modules_imported(path):
    """What a file imports, also inside functions, as whole names; not what only types need."""
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", ROOMS)
def test_the_rooms_of_a_package_import_one_way(package):
    rooms, at_the_front = ROOMS[package]
    folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert folders == set(rooms)
    for number, room in enumerate(rooms):
        for path in modules(f"{package}/{room}"):
            names = [name.split(".") for name in modules_imported(path)]
            seen = {name[1] for name in names if name[0] == package and len(name) > 1}
            assert seen <= {*at_the_front, *rooms[: number + 1]}, path.relative_to(ROOT)
    for name in at_the_front:
        for whole in modules_imported(ROOT / package / f"{name}.py"):
            assert not whole.startswith(tuple(f"{package}.{room}" for room in rooms)), name


def test_no_module_imports_one_that_imports_it():
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in everything()
    }
    unresolved = {name: set(modules_imported(path)) & set(paths) for name, path in paths.items()}
    # What imports nothing that is left is left out, until only circles are left.
    while free := [name for name, others in unresolved.items() if not others & set(unresolved)]:
        for name in free:
            del unresolved[name]
    assert not unresolved


# The build backend of pyproject.toml; attentions and oracles, which are found in their folders.
FOUND_BY_NAME = ("launch.no_package", "modeling.attention.", "modeling.reference.")


def test_every_module_is_imported_by_another():
    paths = {path: modules_imported(path) for path in everything()}
    imported = {name for names in paths.values() for name in names}
    for path in paths:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.name != "__init__.py" and "." in name and not name.startswith(FOUND_BY_NAME):
            assert name in imported, f"nothing imports {path.relative_to(ROOT)}"


def test_modeling_imports_torch_and_the_standard_library_only():
    for path in modules("modeling"):
        foreign = set(imports(path)) - {"torch", "modeling"} - sys.stdlib_module_names
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def test_wandb_is_known_to_tracking_only_and_hydra_to_four_modules_of_launch():
    for path in everything():
        names = set(imports(path))
        name = path.relative_to(ROOT).as_posix()
        assert ("hydra" in names) == (name in USERS_OF_HYDRA), name
        assert "wandb" not in names or path.parent.name == "tracking", name


@pytest.mark.parametrize("package", PACKAGES)
def test_slow_libraries_are_imported_where_used(package):
    for path in modules(package):
        assert not HEAVY & set(imports(path, top_level_only=True)), path


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("launch.schemas", {"torch", "hydra", *HEAVY}),
        ("launch.run", {"torch", *HEAVY}),
        ("training.loop", HEAVY | {"hydra"}),
        ("data.pipeline", {"torch", "tokenizers", *HEAVY}),
    ],
)
def test_start_up_does_not_wait_for_what_it_does_not_use(module, absent):
    code = f"import sys, {module}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not absent & set(result.stdout.split())


# Modules that run what a file brings.
FORBIDDEN_MODULES = {
    *("pickle", "_pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve", "runpy", "imp"),
    *("pickle5", "jsonpickle", "pty"),
}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "input"),
    *("torch.load", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"),
    *("torch.distributed.checkpoint.FileSystemReader", "pandas.read_pickle"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all"),
    *("hydra.utils.instantiate", "hydra.utils.call", "hydra.utils.get_method"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("importlib.import_module", "importlib.util.spec_from_file_location"),
}
# A keyword that must have this value wherever it is given; and where it must be given.
KEYWORDS = {
    "shell": "False",
    "allow_pickle": "False",
    "weights_only": "True",
    "trust_remote_code": "False",
    "use_safetensors": "True",
}
LOADERS_OF_TRANSFORMERS = ("AutoTokenizer", "AutoConfig", "AutoModel", "AutoModelForCausalLM")
NEEDED = {
    "numpy.load": {"allow_pickle"},
    **{
        f"transformers.{name}.from_pretrained": {"trust_remote_code"}
        for name in LOADERS_OF_TRANSFORMERS
    },
}
for name in ("AutoModel", "AutoModelForCausalLM"):
    NEEDED[f"transformers.{name}.from_pretrained"] |= {"use_safetensors"}
# They import modules of kvlab's own package, and of an installed one by a name in the source.
MAY_IMPORT_BY_NAME = {
    "modeling/attention/registry.py",
    "modeling/reference/registry.py",
    "data/hub/watch.py",
}


def names_of(tree):
    """What each imported name stands for, whatever it is called here."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.split(".")[0]
                found[alias.asname or whole] = whole
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return found


def dangers(source):
    """What in a module could run what a file brings, a line each."""
    tree = ast.parse(source)
    names = names_of(tree)
    for whole in names.values():
        if whole.split(".")[0] in FORBIDDEN_MODULES or whole in FORBIDDEN_CALLS:
            yield f"imports {whole}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            written = ast.unparse(node)
            first, _, rest = written.partition(".")
            whole = f"{names.get(first, first)}.{rest}"
            if whole in FORBIDDEN_CALLS:
                yield f"uses {whole}"
        if not isinstance(node, ast.Call):
            continue
        first, _, rest = ast.unparse(node.func).partition(".")
        whole = names.get(first, first) + (f".{rest}" if rest else "")
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}
        if whole in FORBIDDEN_CALLS:
            yield f"calls {whole}"
        for key in NEEDED.get(whole, set()) - set(keywords):
            yield f"calls {whole} without {key}"
        for key, value in KEYWORDS.items():
            if keywords.get(key, value) != value:
                yield f"calls {whole} with {key}={keywords[key]}"


def test_nothing_unpickles_or_runs_what_a_file_brings():
    paths = [*everything(), *(ROOT / "benchmarks").rglob("*.py")]
    assert len(paths) > 100
    for path in paths:
        name = path.relative_to(ROOT).as_posix()
        found = set(dangers(path.read_text()))
        if name in MAY_IMPORT_BY_NAME:
            found -= {line for line in found if line.endswith("importlib.import_module")}
        assert not found, name


@pytest.mark.parametrize(
    "source",
    [
        *(f"import {name}" for name in sorted(FORBIDDEN_MODULES)),
        *("import pickle as p\np.load(f)", "from pickle import loads", "import joblib.externals"),
        *("import torch\ntorch.load(f)", "from torch import load", "from torch import load as l"),
        *("import torch as t\nt.load(f, weights_only=True)", "import torch\nx = torch.load"),
        *("import torch.jit as j\nj.load(f)", "f(x, weights_only=False)", "f(weights_only=flag)"),
        *("import numpy as np\nnp.load(f)", "import numpy\nnumpy.load(f, allow_pickle=True)"),
        *("from numpy import load\nload(f)", "from yaml import load", "import yaml\nyaml.load(f)"),
        *("from hydra.utils import instantiate", "import hydra\nhydra.utils.call(c)"),
        *("eval(x)", "exec(x)", "compile(x, y, z)", "__import__(x)", "input()"),
        *("import os\nos.system(x)", "from os import system", "from os import popen as p"),
        *("import subprocess as s\ns.run(x, shell=True)", "f(x, trust_remote_code=True)"),
        *("import importlib\nimportlib.import_module(x)", "from importlib import import_module"),
        "from transformers import AutoTokenizer\nAutoTokenizer.from_pretrained(x)",
        "from transformers import AutoConfig\nAutoConfig.from_pretrained(x)",
        "import transformers\ntransformers.AutoModelForCausalLM.from_pretrained(x)",
        *(
            f"from transformers import AutoModelForCausalLM as A\nA.from_pretrained(x, {given})"
            for given in ("trust_remote_code=False", "use_safetensors=True")
        ),
        "f(x, use_safetensors=None)",
    ],
)
def test_the_search_finds_what_it_looks_for(source):
    assert list(dangers(source)), source


def test_the_search_leaves_harmless_code_alone():
    assert not list(dangers("import numpy as np\nnp.load(f, allow_pickle=False)\njson.load(f)"))


@pytest.mark.parametrize("name", sorted(ENTRY_POINTS))
def test_an_entry_point_is_a_dozen_lines_that_nothing_imports(name):
    tree = ast.parse((ROOT / f"{name}.py").read_text())
    assert sum(isinstance(node, ast.stmt) for node in ast.walk(tree)) < 20
    assert set(imports(ROOT / f"{name}.py", top_level_only=True)) <= {"launch", "sys"}
