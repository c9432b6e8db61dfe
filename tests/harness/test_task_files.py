"""Task files from somebody else: read as data; what would run is refused by file and key."""

import pytest
import yaml

from harness.errors import TaskError
from harness.task_files import read_task_files, write_copies
from harness.tasks import load_tasks

PLAIN = """
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: documents.json}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: [a, b]
doc_to_target: answer
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of task files, with documents and a module that would leave a mark."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "documents.json").write_text('{"question": "q", "answer": 0}\n')
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'MARK')!r}, 'w')\nf = print\n")
    (tmp_path / "outside.yaml").write_text(PLAIN)
    monkeypatch.chdir(folder)
    yield folder
    assert not (tmp_path / "MARK").exists()


def refusal(folder, text, name="mine.yaml"):
    (folder / name).write_text(text)
    with pytest.raises(TaskError) as error:
        read_task_files(folder)
    line = str(error.value)
    assert "\n" not in line
    assert name in line
    return line


CODE = {
    "doc_to_text: !function evil.f": "doc_to_text (!function)",
    "metric_list: [{metric: !function evil.f}]": "metric_list.metric (!function)",
    "fewshot_config: {samples: !function evil.f}": "fewshot_config.samples (!function)",
    "metadata: {a: [{b: !!python/name:evil.f ''}]}": "metadata.a.b (tag:yaml.org,2002:python/name",
    "x: !!python/object/apply:os.system ['touch MARK']": "x (tag:yaml.org,2002:python/object",
    "metadata: !anything {a: 1}": "metadata (!anything)",
    "metadata: !!binary aGVsbG8=": "metadata (tag:yaml.org,2002:binary)",
    "class: evil.Task": "class",
    "custom_dataset: evil.f": "custom_dataset",
    "process_docs: evil.f": "process_docs",
    "process_results: evil.f": "process_results",
    "use_prompt: 'other.yaml:name'": "use_prompt",
    "unsafe_code: true": "unsafe_code",
    "dataset_kwargs: {trust_remote_code: true}": "dataset_kwargs.trust_remote_code",
    "fewshot_config: {process_docs: evil.f}": "fewshot_config.process_docs",
    "metric_list: [{metric: acc, hf_evaluate: true}]": "metric_list.hf_evaluate",
    "filter_list: [{name: a, filter: [{function: custom}]}]": "filter_list.filter.function",
    "filter_list: [{name: a, filter: [{function: x, filter_fn: evil.f}]}]": "filter_fn",
    "task: [{task: other, process_docs: evil.f}]": "process_docs",
    "task: [{group: g, task: [{task: other, class: evil.C}]}]": "class",
}


@pytest.mark.parametrize("line", CODE)
def test_a_file_that_brings_code_is_refused_by_its_key(folder, line):
    key = line.partition(":")[0]
    others = [kept for kept in PLAIN.splitlines() if not kept.startswith(f"{key}:")]
    if key == "task":
        others.append("group: mine")
    said = refusal(folder, "\n".join([*others, line]))
    assert CODE[line] in said
    assert "never run" in said


def test_what_an_included_file_brings_is_refused_too(folder):
    (folder / "_template").write_text("process_docs: !function evil.f\n")
    (folder / "mine.yaml").write_text(PLAIN + "include: _template\n")
    with pytest.raises(TaskError, match=r"_template: process_docs \(!function\)"):
        read_task_files(folder)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("include: ../outside.yaml", "include: ../outside.yaml is no file of the folder"),
        ("include: /etc/hosts", "include: /etc/hosts is no file"),
        ("include: [7]", "include: 7 is no file"),
        ('include: "\\0"', "is no file of the folder"),
        ("include: mine.yaml", "included twice"),
        ("doc_to_image: x", "doc_to_image: a task file may not have this key"),
        ("dataset_kwargs: {data_files: nothing.json}", "no such file"),
        ("dataset_kwargs: {data_files: 'https://x.y/z.json'}", "on this machine"),
        ("dataset_kwargs: {data_files: ['zip://a.json::b.zip']}", "on this machine"),
        ("dataset_kwargs: {data_files: 3}", "on this machine"),
        ('dataset_kwargs: {data_files: "\\0"}', "on this machine"),
        ("dataset_kwargs: {data_files: {test: /etc/hosts}}", "/etc/hosts is no file of the folder"),
        ("dataset_kwargs: {data_files: [../outside.yaml]}", "../outside.yaml is no file of the"),
        ("dataset_kwargs: {data_files: link.json}", "link.json is no file of the folder"),
        ("dataset_kwargs: {data_files: loop.json}", "no such file"),
        ('doc_to_text: "\\ud800"', "is not YAML"),
        ("metadata: {version: 1, tokenizer: folder}", "metadata.tokenizer: a task file may not"),
        ("metadata: {version: [1]}", "got array - at $.metadata.version"),
        ("task: [{task: other, metadata: {pretrained: folder}}]", "metadata.pretrained"),
        ("dataset_kwargs: {storage_options: {}}", "dataset_kwargs.storage_options"),
        ("dataset_kwargs: [1]", "Expected object | null, got array - at $.dataset_kwargs"),
        ("dataset_path: ../somewhere", "dataset_path (../somewhere) must be a name"),
        ("dataset_path: [json]", "must be a name on the Hub"),
        ("dataset_path: pandas", "needs a dataset_path among json"),
        ("metric_list: acc", "Expected array | null, got str - at $.metric_list"),
        ("metadata: &a [1]\nrepeats: *a", "holds an alias"),
        ("metadata: " + "[" * 30 + "]" * 30, "nested more than"),
        ("metadata: 2020-13-45", "is not YAML"),
        ("a: b: c", "is not YAML"),
    ],
)
def test_what_cannot_be_a_task_is_one_line(folder, lines, said):
    key = lines.partition(":")[0]
    (folder / "link.json").symlink_to(folder.parent / "outside.yaml")
    (folder / "loop.json").symlink_to("loop.json")
    others = [kept for kept in PLAIN.splitlines() if not kept.startswith(f"{key}:")]
    assert said in refusal(folder, "\n".join([*others, lines]))


@pytest.mark.parametrize("text", ["", "- a\n", "x", "task: [a]\n", "group: g\ntask: [3]\n"])
def test_a_file_without_a_task_is_refused(folder, text):
    refusal(folder, text)


def test_a_link_a_pipe_and_bytes_are_refused(folder):
    (folder / "mine.yaml").symlink_to(folder.parent / "outside.yaml")
    with pytest.raises(TaskError, match="symbolic link"):
        read_task_files(folder)
    (folder / "mine.yaml").unlink()
    (folder / "loop").symlink_to("loop")
    (folder / "mine.yaml").write_text(PLAIN + "include: loop\n")
    with pytest.raises(TaskError, match=r"loop: it cannot be read .*symbolic link"):
        read_task_files(folder)
    (folder / "mine.yaml").write_bytes(b"task: \xff\n")
    with pytest.raises(TaskError, match="not UTF-8"):
        read_task_files(folder)


def test_an_empty_folder_none_and_two_of_a_name_are_refused(folder):
    with pytest.raises(TaskError, match=r"no \*.yaml with a task"):
        read_task_files(folder)
    with pytest.raises(TaskError, match="no such folder"):
        read_task_files(folder / "nothing")
    (folder / "one.yaml").write_text(PLAIN)
    (folder / "two.yaml").write_text(PLAIN)
    with pytest.raises(TaskError, match=r"two\.yaml and one\.yaml both hold 'mine'"):
        read_task_files(folder)


def test_copies_hold_what_was_read(folder, tmp_path):
    (folder / "_template").write_text("num_fewshot: 3\nrepeats: 2\n")
    (folder / "mine.yaml").write_text(PLAIN + "include: _template\nrepeats: 4\ngen_prefix: 'é😀'\n")
    configs = read_task_files(folder)
    write_copies(configs, tmp_path)
    [copy] = [yaml.safe_load(path.read_text()) for path in tmp_path.glob("[0-9].yaml")]
    expected = yaml.safe_load(PLAIN) | {"num_fewshot": 3, "repeats": 4, "gen_prefix": "é😀"}
    expected["dataset_kwargs"] = {"data_files": {"test": [str(folder / "documents.json")]}}
    assert copy == expected


@pytest.mark.parametrize("name", ["text", "json", "here", "some/where"])
def test_no_task_reads_what_lies_in_the_working_folder(folder, name):
    (folder / "secret.txt").write_text("of somebody else")
    for known in ("here", "some/where"):
        (folder / known).mkdir(parents=True)
        (folder / known / "test.txt").write_text("of somebody else")
    others = [kept for kept in PLAIN.splitlines() if not kept.startswith("dataset_")]
    (folder / "mine.yaml").write_text("\n".join([*others, f"dataset_path: {name}"]))
    with pytest.raises(TaskError, match=r"the data of 'mine' .*(needs .*data_files|of that name)"):
        load_tasks(["mine"], folder)
