"""Settings that cannot be are refused with key, value and way out, before anything starts."""

import dataclasses
import functools
import os
import pty
import subprocess
import sys
import typing

import pytest

import launch.run
from launch import compose, schemas
from launch.errors import ConfigError
from launch.explain import explain
from launch.failures import USER_ERRORS
from launch.recorded import as_yaml, require_same_run
from modeling.arrangement import layer_configs
from training.recipe.budget import make_budget


def composed(*overrides, name="train"):
    return compose.composed(name, list(overrides))


def refusal(*overrides, name="train"):
    """What a user reads, from whichever layer refuses."""
    try:
        config = compose.checked(composed(*overrides, name=name), schemas.SCHEMAS[name])
        if name == "train":
            layer_configs(config.model)
            config.eval.windows(config.model)
            make_budget(config.trainer, config.schedule, config.model.max_position_embeddings)
    except USER_ERRORS as error:
        return str(error)
    except compose.COMPOSING_FAILED as error:
        return explain(error, schemas.SCHEMAS[name])
    pytest.fail(f"{overrides} were accepted")


@pytest.fixture
def experiment(tmp_path):
    """Write an experiment of the user's own; returns what chooses it."""

    def write(text):
        (tmp_path / "experiment").mkdir(exist_ok=True)
        (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\n" + text)
        return [f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"]

    return write


@pytest.fixture
def start(monkeypatch, capsys):
    """Start an entry point in this process, with a job that must not be reached."""

    def run(*arguments, entry="train"):
        monkeypatch.setattr("sys.argv", [f"{entry}_model.py", *arguments])
        started = []
        with pytest.raises(SystemExit) as end:
            launch.run.run(entry, schemas.SCHEMAS[entry], started.append)
        assert started == []
        return end.value.code, capsys.readouterr().err

    return run


WRONG = [
    ("trainer.max_tokens", "abc"),
    ("trainer.max_tokens", "1e3"),
    ("trainer.max_tokens", "10.5"),
    ("trainer.micro_batch_size", "10.5"),
    ("trainer.compile", "maybe"),
    ("optim.learning_rate", "null"),
    ("model.attention.head_dim", "10.5"),
    ("model.hidden_size", "[1]"),
    ("optim.learning_rate", "fast"),
    ("seed", "1.5"),
]


def nested(key, value):
    *parents, leaf = key.split(".")
    return "".join(f"{parent}: {{" for parent in parents) + f"{leaf}: {value}" + "}" * len(parents)


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_wrong_type_reads_alike_from_a_file_and_from_the_command_line(key, value, experiment):
    typed = refusal(f"{key}={value}")
    said = refusal(*experiment(nested(key, value) + "\n"))
    # A file is YAML, where a whole number is digits alone.
    in_a_file = typed.replace("1500000, 1_500_000, 1.5e6 or 1.5M", "1500000 or 1_500_000")
    assert said.removesuffix(" (in conf/experiment/mine.yaml or one of that name)") == in_a_file
    assert key.rpartition(".")[2] in typed
    assert {"1e3": "1000.0"}.get(value, value) in typed
    assert "\n" not in typed


@pytest.mark.parametrize("section", ["trainer", "model", "optim", "data", "eval", "sampling"])
def test_a_section_replaced_by_a_number_is_named(section, experiment, start):
    for value in ("5", "[1,2]"):
        status, err = start(f"{section}={value}")
        assert status == 2
        assert section in err
        assert err.count("\n") == 1
        said = refusal(*experiment(f"{section}: {value}\n"))
        assert said.startswith(f"{section}: {value.replace(',', ', ')} is no section of keys")


# Fields of whole numbers in which 0 says something; all others are at least 1.
MAY_BE_ZERO = {
    *("seed", "model.end_of_document_id", "schedule.warmup_steps", "trainer.sample_tokens"),
    *("sampling.seed", "max_new_tokens"),
}


@functools.cache
def whole_numbers(entry="train"):
    """Every field of whole numbers that a user can set, dotted."""
    schema = schemas.SCHEMAS[entry]
    found = []
    for field in dataclasses.fields(schema):
        sections = {field.name: field.type} if dataclasses.is_dataclass(field.type) else {}
        for section, kind in sections.items():
            hints = typing.get_type_hints(kind)
            found += [f"{section}.{key}" for key in hints if hints[key] in (int, int | None)]
        if not sections and typing.get_type_hints(schema)[field.name] is int:
            found.append(field.name)
    return found


@functools.cache
def default_config(entry="train"):
    extra = ["run=x"] if entry == "generate" else []
    return compose.checked(composed(*extra, name=entry), schemas.SCHEMAS[entry])


def problems(config, key, value):
    section, _, leaf = key.rpartition(".")
    owner = getattr(config, section) if section else config
    return [text for text in dataclasses.replace(owner, **{leaf: value}).problems() if leaf in text]


@pytest.mark.parametrize("entry", ["train", "eval", "generate"])
def test_zero_is_refused_where_it_says_nothing(entry):  # C3
    assert len(whole_numbers("train")) > 25
    for key in whole_numbers(entry):
        accepted = not problems(default_config(entry), key, 0)
        assert accepted == (key in MAY_BE_ZERO), key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.num_hidden_layers", 10**9),
        ("data.num_workers", 10**6),
        ("trainer.num_threads", 10**6),
        ("trainer.micro_batch_size", 10**9),
        ("trainer.max_tokens", 10**30),
        ("tokenizer.vocab_size", 10**9),
        ("data.shard_tokens", 10**12),
        ("seed", 2**63),
        ("sampling.seed", 2**63),
    ],
)
def test_a_number_that_would_take_the_machine_is_refused(key, value):
    (problem,) = problems(default_config(), key, value)
    assert str(value) in problem


@pytest.mark.parametrize("value", ["inf", "nan", "-1"])
def test_a_rate_that_is_no_rate_is_refused(value):
    assert "optim.learning_rate" in refusal(f"optim.learning_rate={value}")


SECRET = "canary-0123456789-canary-0123456789-canary"


@pytest.mark.parametrize(
    ("entry", "override"),
    [
        ("train", "tracking.tags=['${oc.env:WANDB_API_KEY}']"),
        ("train", "run_name=${oc.env:WANDB_API_KEY}"),
        ("train", "run_name=${oc.env:PATH,x}"),
        ("train", "run_name=${oc.decode:${oc.env:WANDB_API_KEY}}"),
        ("train", "run_name=${env:WANDB_API_KEY}"),
        ("eval", "report_name=${oc.env:WANDB_API_KEY}"),
        ("generate", "run=${oc.env:WANDB_API_KEY}"),
        ("generate", "prompt='${oc.env:WANDB_API_KEY}'"),
        ("prepare", "data.name=${oc.env:WANDB_API_KEY}"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_no_environment_variable_comes_into_a_configuration(
    flags, entry, override, monkeypatch, start
):  # C7, S7
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    status, err = start(*flags, override, entry=entry)
    assert status == 2
    assert SECRET not in err
    assert "environment variable" in err or "env" in err


def test_a_place_may_be_named_by_the_environment(monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    composed = compose.composed("train", ["runs_dir=${oc.env:SCRATCH}/runs"])
    assert compose.checked(composed, schemas.TrainConfig).runs_dir == "/scratch/me/runs"


def test_an_error_that_nobody_can_read_changes_no_status():
    code = "from launch.terminal import complain, outlive_readers; outlive_readers(); "
    code += "complain('lost'); raise SystemExit(75)"
    main, other = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", f"input(); {code}"],
        cwd=schemas.ROOT,
        stdin=subprocess.PIPE,
        stderr=other,
    )
    os.close(other)
    os.close(main)  # the terminal is closed
    process.communicate(b"\n")
    assert process.returncode == 75


def test_an_experiment_brings_no_environment_variable(experiment, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    said = refusal(*experiment("tracking: {tags: ['${oc.env:HF_TOKEN}']}\n"))
    assert "cannot read the environment variable HF_TOKEN" in said
    assert SECRET not in said
    assert refusal(*experiment("run_name: ${oc.env:HF_TOKEN}\n")) != ""


@pytest.mark.parametrize(
    ("entry", "key"),
    [("train", "trainer.sample_prompt"), ("generate", "prompt"), ("train", "data.path")],
)
def test_bytes_that_are_no_text_are_refused_before_training(entry, key, start):
    status, err = start(f"{key}=x\udce9", entry=entry)
    assert status == 2
    assert f"{key} ('x\\udce9') holds bytes that are no text" in err
    err.encode()


def test_a_nul_from_a_file_is_refused(experiment):
    said = refusal(*experiment('data: {path: "a\\0b"}\n'))
    assert "data.path ('a\\x00b') holds bytes that are no text" in said


def test_an_experiment_that_is_no_text_is_refused(experiment, tmp_path):
    chosen = experiment("")
    (tmp_path / "experiment" / "mine.yaml").write_bytes(b"# @package _global_\nrun_name: \xff\n")
    assert "codec can't decode" in refusal(*chosen)


NAMES = ["../../x", "/abs", "a/../..", "a\nb", "x" * 300, ".hidden", "", "a b", "-x"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("entry", "key"),
    [("train", "study"), ("eval", "report_name"), ("eval", "study"), ("train", "data.name")],
)
def test_a_name_that_could_leave_its_folder_is_refused(entry, key, name, start):  # S4
    quoted = name.replace("\n", "\\n")
    status, err = start(f"{key}='{quoted}'", entry=entry)
    assert status == 2
    assert key.replace("study", "") in err or "experiment" in err
    assert err.count("\n") == 1


@pytest.fixture
def train(tmp_path, tiny_data, monkeypatch, capsys):
    """Run train_model.py in this process on the tiny corpus."""
    from commands.train import main

    given = [
        *(*tiny_data, "debug=smoke", "tracking=none", "trainer.device=cpu", "run_name=x"),
        f"runs_dir={tmp_path}/runs",
    ]

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["train_model.py", *given, *arguments])
        with pytest.raises(SystemExit) as end:
            launch.run.run("train", schemas.TrainConfig, main)
        return end.value.code, *capsys.readouterr()

    return run


@pytest.mark.slow
def test_an_unfinished_run_is_resumed_only_as_it_was(train, tmp_path):  # C6
    status, _, err = train("trainer.max_minutes=0.0001")
    assert status == 75, err
    folder = tmp_path / "runs" / "x"

    def content():
        return {
            path: path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.name != ".lock"
        }

    before = content()
    assert any(path.name == "model.safetensors" for path in before)
    for change, said in (
        ("attention=mqa", "model.attention.num_key_value_heads: 8 -> 1"),
        ("optim.learning_rate=0.5", "optim.learning_rate: 0.008 -> 0.5"),
        ("seed=3", "seed: 0 -> 3"),
        ("trainer.max_tokens=4096", "trainer.max_tokens: 2048 -> 4096"),
    ):
        status, _, err = train(change)
        assert (status, err.count("\n")) == (2, 1), err
        assert said in err
        assert "choose another name with run_name=..." in err
        assert content() == before, change
    status, out, err = train("trainer.keep_last=3", "trainer.log_every_steps=2")
    assert status == 0, err
    assert "resuming x after step" in out


@pytest.mark.slow
def test_the_configuration_of_a_run_without_a_checkpoint_is_replaced_and_that_is_said(
    train, tmp_path
):  # C6
    folder = tmp_path / "runs" / "x"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 5\n")
    status, out, err = train("trainer.max_minutes=0.0001")
    assert status == 75, err
    assert "x has a new configuration; the one that was there is replaced" in out
    assert "seed: 0" in (folder / "config.yaml").read_text()
    status, out, _ = train("trainer.max_minutes=0.0001")
    assert "has a new configuration" not in out


def test_what_a_run_recorded_is_read_as_data(tmp_path, monkeypatch):  # S3
    monkeypatch.chdir(tmp_path)
    saved = tmp_path / "config.yaml"
    for text in (
        "optim: !!python/object/apply:os.system ['touch MARK']\n",
        "!!python/object/new:os.system ['touch MARK']\n",
    ):
        saved.write_text(text)
        with pytest.raises(ConfigError, match=r"config\.yaml cannot be read"):
            require_same_run(saved, default_config())
    saved.write_text(as_yaml(default_config()))
    with saved.open("a") as file:
        file.write("hydra: {callbacks: {x: {_target_: pathlib.Path.touch, _args_: [MARK]}}}\n")
        file.write("_target_: os.system\ncommand: touch MARK\n")
    with pytest.raises(ConfigError, match=r"_target_: os.system -> None"):
        require_same_run(saved, default_config())
    assert not (tmp_path / "MARK").exists()


def test_an_unknown_component_lists_those_there_are(start):  # S3, C4
    for choice, known in (("attention=os.system", "mla_no_rope"), ("tokenizer=evil.C", "bytes")):
        status, err = start(choice)
        assert status == 2
        assert f"there is no {choice.partition('=')[0]} '{choice.partition('=')[2]}'" in err
        assert known in err
    for override, known in (
        ("model.attention.name=evil.Class", "available: gqa, gqa_tied, mha"),
        ("optim.name=evil.Class", "must be adamw or muon"),
        ("data.source=evil.Class", "python_stdlib"),
    ):
        assert known in refusal(override)
