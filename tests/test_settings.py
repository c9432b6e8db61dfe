"""Each key stands in one place: what its field says is what is checked, shown and recorded."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from launch.keys import SCRIPTS, attention_keys, keys_of, look_up, meaning_of
from launch.schemas import SCHEMAS
from settings.fields import Section, changes_result, default_of, key, out_of_range
from settings.run import TrainConfig

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"
# Where the keys of a group's files go, if not below its own name; those of attentions have no
# schema, and experiments set what they are about, whatever the default is.
PACKAGES = {"block": "model"}
WITHOUT_DEFAULTS = {"attention", "experiment", "debug", "local"}


@pytest.mark.parametrize("entry", SCRIPTS)
def test_every_key_has_a_meaning(entry):
    for name in keys_of(entry):
        if name != "model.attention":  # a section
            meaning = meaning_of(entry, name)
            assert meaning[-1:] in (".", ")"), name
            assert not re.match(r"Of |Tells? ", meaning), name


def sections(schema):
    found = [schema]
    for field in dataclasses.fields(schema):
        if isinstance(field.default_factory, type) and dataclasses.is_dataclass(
            field.default_factory
        ):
            found += sections(field.default_factory)
    return found


@pytest.mark.parametrize(
    "schema", dict.fromkeys(one for each in SCHEMAS.values() for one in sections(each))
)
def test_every_default_is_in_its_range(schema):
    wrong = [text for text in out_of_range(schema(), "") if not text.endswith("is not set")]
    assert wrong == []


def flat(node, prefix):
    for name, value in node.items():
        if isinstance(value, dict) and f"{prefix}.{name}" != "data.weights":
            yield from flat(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", value


FILES = sorted(CONF.glob("*/*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_says_what_it_is_and_then_only_what_differs(path):
    text = path.read_text()
    assert re.match(r"(# @package [\w.]+\n)?# \w", text), "a first comment"
    group = path.parent.name
    if group in WITHOUT_DEFAULTS:
        return
    values = yaml.safe_load(text) or {}
    values.pop("defaults", None)
    for name, value in flat(values, PACKAGES.get(group, group)):
        inherited = "defaults:" in text  # then it may take back what another file set
        assert inherited or value != default_of(TrainConfig, name), f"{name} has its default"


@dataclasses.dataclass
class Example(Section, prefix="x."):
    count: int = key(3, at_least=1, below=10)
    share: float | None = key(None, above=0, at_most=1)
    word: str | None = key(None, one_of=("a", "b"), hint=lambda key, value, words: "; or so")
    label: str = key(kind="label", changes_result=False)
    sections: dict[str, int] = key(dict)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, "x.label is not set"),
        ({"label": "n"}, None),
        ({"label": "n", "count": 0}, "x.count (0) must be at least 1 and below 10"),
        ({"label": "n", "count": 10}, "x.count (10) must be at least 1 and below 10"),
        ({"label": "n", "share": 0.0}, "x.share (0.0) must be above 0 and at most 1, or null"),
        ({"label": "n", "share": 1.0}, None),
        ({"label": "n", "share": float("nan")}, "x.share (nan) must be above 0 and at most 1, or"),
        ({"label": "n", "word": "c"}, "x.word ('c') must be null, a or b; or so"),
        ({"label": "../n"}, "x.label ('../n') must be letters, digits, '.', '_' and '-', at most"),
        ({"label": "n\n"}, "x.label ('n\\n') must be letters"),
    ],
)
def test_a_value_is_checked_by_its_field(change, problem):
    found = Example(**change).problems()
    assert len(found) == (problem is not None)
    assert not found or found[0].startswith(problem)


def test_what_has_a_part_in_the_result_stands_on_the_field():
    assert changes_result(Example, "count")
    assert not changes_result(Example, "label")
    assert changes_result(Example, "sections.mine")
    assert changes_result(Example, "of_another_version")
    for name in (
        "eval.tasks",
        "eval.of_another_version",
        "data.corpora.mine.path",
        "trainer.device",
    ):
        assert not changes_result(TrainConfig, name)
    for name in ("data.corpora.mine.encoding", "layers.attentions.mine.head_dim", "trainer.gone"):
        assert changes_result(TrainConfig, name)


# Keys that a page names, each in full; a file that looks like one is none.
NAMED = re.compile(
    r"(?<![\w./-])((?:trainer|optim|schedule|data|tokenizer|eval|sampling|tracking|layers|model)"
    r"(?:\.(?!json|safetensors)[a-z_]+)+)(?=[=`\s,;:)'\"]|$)"
)
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *CONF.glob("*/*.yaml")]


def is_key(name):
    sections = {".".join(key.split(".")[:-1]) for one in SCRIPTS for key in keys_of(one)}
    return name in sections or any(look_up(one, name) is not None for one in SCRIPTS)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=str)
def test_pages_name_no_key_that_does_not_exist(page):
    text = re.sub(r"(python|import|from|-m) (data|modeling)\.\w+", "", page.read_text())
    for name in set(NAMED.findall(text)):
        is_module = (ROOT / f"{name.replace('.', '/')}.py").exists()
        is_of_own = name.startswith("model.attention.")  # which a page may add
        is_page = name.endswith(".md")
        assert is_key(name) or is_module or is_of_own or is_page, name


def test_each_attention_s_keys_are_fields_of_its_class():
    from modeling.attention import attention_config_class

    for choice, names in attention_keys().items():
        fields = {field.name for field in dataclasses.fields(attention_config_class(choice))}
        assert set(names) - {"name"} <= fields, choice
