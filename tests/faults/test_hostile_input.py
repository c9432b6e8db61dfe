"""What somebody else wrote (configurations, runs, tokenizers, texts) runs and commands nothing."""

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import launch.run
from data.errors import DataError
from launch import schemas

ROOT = Path(__file__).parents[2]


@pytest.fixture
def start(monkeypatch, capsys):
    """Start train_model.py's configuration in this process; returns status, and what it said."""

    def run(*arguments, job=lambda config: None, entry="train"):
        monkeypatch.setattr("sys.argv", [f"{entry}_model.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            launch.run.run(entry, schemas.SCHEMAS[entry], job)
        return end.value.code, capsys.readouterr().err

    return run


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """A file that must never come into being; a module in the working folder would make it."""
    (tmp_path / "source").write_text("copied")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'MARK')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "MARK"
    sys.modules.pop("evil", None)


TARGETS = {
    "os.system": "{_target_: os.system, command: 'touch MARK'}",
    "copyfile": "{_target_: shutil.copyfile, src: source, dst: MARK}",
    "write_text": "{_target_: pathlib.Path.write_text, _args_: [{_target_: pathlib.Path, _args_: "
    "[MARK]}, x]}",
    "touch": "{_target_: pathlib.Path.touch, _args_: [{_target_: pathlib.Path, _args_: [MARK]}]}",
    "torch.load": "{_target_: torch.load, f: MARK.pt, weights_only: false}",
    "module": "{_target_: evil.Class}",
}
PLACES = {
    "callback": "hydra: {callbacks: {x: %s}}\n",
    "launcher": "hydra: {launcher: %s}\n",
    "sweeper": "hydra: {sweeper: %s}\n",
    "sweeper's parameter": "hydra: {sweeper: {params: {+hydra.callbacks.x: '%s'}}}\n",
    "sweep": "sweep: {+hydra.callbacks.x: '%s'}\n",
    "arm": "arms: ['\"+hydra.callbacks.x=%s\"']\n",
    "logging": "hydra: {job_logging: {formatters: {x: {(): evil.Class}}}}  # %s\n",
    "environment": "hydra: {job: {env_set: {PYTHONSTARTUP: evil.py}}}  # %s\n",
    "own key": "optim: %s\n",
}

QUOTED = ("sweeper's parameter", "sweep", "arm")


class Evil:
    def __reduce__(self):
        return (os.system, ("touch MARK",))


@pytest.fixture
def pickled(tmp_path):
    import torch

    torch.save(Evil(), tmp_path / "MARK.pt")


def bring(how, tmp_path, text, monkeypatch):
    """Let an experiment come from a folder of its own, or lie among kvlab's."""
    text = "# @package _global_\n" + text
    if how == "searchpath":
        (tmp_path / "brought" / "experiment").mkdir(parents=True)
        (tmp_path / "brought" / "experiment" / "mine.yaml").write_text(text)
        return [f"hydra.searchpath=[file://{tmp_path}/brought]"]
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(text)
    monkeypatch.setattr(schemas, "ROOT", tmp_path)
    return []


CASES = [
    *(("searchpath", ["-m"], place, "touch") for place in PLACES),
    *(("searchpath", ["-m"], "callback", target) for target in TARGETS if target != "touch"),
    ("searchpath", ["--multi"], "callback", "touch"),
    ("searchpath", ["--cfg=job"], "callback", "touch"),
    *(("searchpath", ["-m", "swept"], place, "touch") for place in ("callback", "logging")),
    ("searchpath", [], "callback", "touch"),
    *(("searchpath", [], "own key", target) for target in TARGETS),
    ("conf", ["-m"], "callback", "touch"),
    ("conf", [], "own key", "module"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "flags", "place", "target"), CASES)
def test_an_experiment_runs_no_code(
    how, flags, place, target, start, mark, pickled, tmp_path, monkeypatch
):  # S3
    text = PLACES[place] % TARGETS[target].replace("'", "''" if place in QUOTED else "'")
    arguments = [*bring(how, tmp_path, text, monkeypatch), "experiment=mine"]
    if flags[1:] == ["swept"]:
        arguments[-1], flags = "experiment=five_attentions,mine", flags[:1]
    started = []
    status, err = start(*flags, *arguments, job=started.append)
    assert not mark.exists()
    assert (status, started) == (2, [])
    assert err.startswith("kvlab: ")
    assert "hydra." in err or "_target_" in err


@pytest.mark.parametrize("place", ["callback", "logging", "environment"])
def test_not_even_without_the_check_an_experiment_runs_code(
    place, start, mark, tmp_path, monkeypatch
):
    text = PLACES[place] % TARGETS["touch"]
    arguments = bring("searchpath", tmp_path, text, monkeypatch)
    monkeypatch.setattr("launch.plan._require_no_setting_of_hydra", lambda *given: None)
    started = []
    status, err = start("-m", *arguments, "experiment=mine", "seed=0,1", job=started.append)
    assert (status, len(started), mark.exists()) == (0, 2, False), err


def test_yaml_makes_no_objects(start, mark, tmp_path, monkeypatch):  # S3
    text = "optim: !!python/object/apply:os.system ['touch MARK']\n"
    status, err = start(*bring("searchpath", tmp_path, text, monkeypatch), "experiment=mine")
    assert (status, mark.exists()) == (2, False)
    assert "could not determine a constructor for the tag" in err
    assert "mine.yaml" in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-m", "hydra.run.dir=../../x"], "hydra.run.dir cannot be set"),
        (["-m", "hydra.sweep.dir=/tmp/x"], "hydra.sweep.dir cannot be set"),
        (["hydra.output_subdir=../x"], "hydra.output_subdir cannot be set"),
        (["-m", "+hydra.callbacks.x._target_=evil.Class"], "hydra.callbacks.x._target_ cannot"),
        (["-m", "hydra.callbacks={x:{_target_:evil.Class}}"], "hydra.callbacks cannot be set"),
        (["-m", "hydra.launcher._target_=evil.Class"], "hydra.launcher._target_ (evil.Class)"),
        (["-m", "+hydra.launcher.x={_target_:evil.Class}"], "hydra.launcher.x._target_ (evil"),
        (["-m", "+hydra.launcher.x=[{_target_:evil.Class}]"], "hydra.launcher.x ([{'_target_'"),
        (["-m", "+optim@hydra.callbacks.x=adamw"], "hydra.callbacks.x cannot"),
        (["-m", "+hydra.job.env_copy=[HOME]"], "hydra.job.env_copy cannot be set"),
        (["-m", "~hydra.callbacks"], "hydra.callbacks cannot be set"),
        (["--config-dir", "."], "there is no --config-dir"),
        (["-cd=."], "there is no -cd"),
        (["--config-path", "/tmp"], "there is no --config-path"),
        (["--config-name", "eval"], "there is no --config-name"),
        (["--experimental-rerun", "MARK.pt"], "there is no --experimental-rerun"),
    ],
)
def test_the_command_line_makes_hydra_run_no_code(arguments, named, start, mark):  # S3, S4
    started = []
    status, err = start(*arguments, job=started.append)
    assert (status, started, mark.exists()) == (2, [], False)
    assert named in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_launcher_and_its_settings_may_be_typed_but_come_from_no_file(
    start, tmp_path, monkeypatch
):
    seen = []
    status, err = start("-m", "hydra/launcher=basic", "seed=0,1", job=seen.append)
    assert (status, [config.seed for config in seen]) == (0, [0, 1]), err
    text = "defaults:\n  - override /hydra/sweeper: basic\nhydra: {sweep: {dir: ../../x}}\n"
    status, err = start("-m", *bring("searchpath", tmp_path, text, monkeypatch), "experiment=mine")
    assert status == 2
    assert "experiment=mine sets hydra.sweep.dir" in err


# A training, its evaluation and its text, from the commands


@pytest.fixture
def kvlab(tmp_path, corpus_folder, prepared, monkeypatch, capsys):
    """Run an entry point in this process on the tiny corpus; returns status, output and errors."""
    from commands import evaluate, generate, train

    mains = {
        "train": train.main,
        "eval": evaluate.main,
        "generate": generate.main,
    }
    data = [
        *("data=local", f"data.path={corpus_folder}", "data.name=tiny", "tokenizer.vocab_size=300"),
        *("debug=smoke", "tracking=none", "match=none", "trainer.device=cpu"),
    ]
    given = {
        "train": [*data, f"data.prepared_dir={prepared.folder.parent}"],
        "eval": ["tracking=none", f"reports_dir={tmp_path}/reports", "device=cpu"],
        "generate": ["device=cpu"],
    }

    def run(entry, *arguments):
        flags = [argument for argument in arguments if argument.startswith("-")]
        others = [argument for argument in arguments if argument not in flags]
        command = [*flags, *given[entry], f"runs_dir={tmp_path}/runs", *others]
        monkeypatch.setattr("sys.argv", [f"{entry}.py", *command])
        with pytest.raises(SystemExit) as end:
            launch.run.run(entry, schemas.SCHEMAS[entry], mains[entry])
        return end.value.code, *capsys.readouterr()

    return run


SHORT = ("trainer.max_tokens=1024", "schedule.warmup_steps=1")
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\r\ud800"
COMMANDS = set("\x1b\x07\x9b\u202e\r\ud800")


@pytest.mark.slow
def test_what_a_model_writes_commands_no_terminal(kvlab, tmp_path, monkeypatch):
    def write(*args, **kwargs):
        yield from HOSTILE[:-1]

    monkeypatch.setattr("training.validation.generate_text", write)
    status, out, err = kvlab("train", *SHORT, "run_name=x", "trainer.sample_prompt=def ")
    assert (status, err) == (0, "")
    assert "\\x1b]0;owned\\x07" in out
    assert not COMMANDS & set(out)
    raw = (tmp_path / "runs" / "x" / "samples.txt").read_bytes().decode()
    assert raw == f"def {HOSTILE[:-1]}\n"
    monkeypatch.setattr("commands.generate.generate_text", write)
    status, out, err = kvlab("generate", "run=x", "prompt=a\x1bb")
    assert status == 0, err
    assert out.startswith("a\\x1bb\\x1b]0;owned")
    assert not COMMANDS & set(out)
    status, out, err = kvlab("eval", "eval.decode_speed.batch_sizes=[]")
    assert status == 0, err
    assert not COMMANDS & set(out + err)
    for path in (tmp_path / "reports").rglob("report.*"):
        assert not COMMANDS - {"\r"} & set(path.read_bytes().decode())


@pytest.mark.parametrize("text", [HOSTILE, "two\nlines", "\N{LINE SEPARATOR}x"])
def test_an_error_is_one_line_that_commands_no_terminal(text, start):
    def job(config):
        raise DataError(f"{text}: no such column")

    status, err = start(job=job)
    assert status == 2
    assert err.startswith("kvlab: ")
    assert len(err.splitlines()) == 1
    assert not COMMANDS & set(err)


@pytest.mark.slow
def test_names_in_a_folder_of_runs_command_no_terminal(kvlab, tmp_path):
    folder = tmp_path / "runs" / "evil\x1b[2J\x07"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    (folder / "summary.json").write_text('{"\\u001b[2J": 1}')
    assert kvlab("train", *SHORT, "run_name=x")[0] == 0
    status, out, err = kvlab("eval", "eval.decode_speed.batch_sizes=[]")
    assert status == 0
    assert "left out: " in err
    assert not COMMANDS & set(out + err)
    (report,) = (tmp_path / "reports").rglob("report.md")
    assert "Left out: `" in report.read_text()
    assert not COMMANDS & set(report.read_text())


CANARY = "canary0123456789" * 3


@pytest.mark.slow
def test_no_key_is_written_or_said(kvlab, tmp_path, corpus_folder, monkeypatch):  # S7
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, CANARY)
    own = f"data.prepared_dir={tmp_path}/prepared"
    said = [
        kvlab("train", *SHORT, own, "run_name=x"),
        kvlab("eval", "eval.decode_speed.batch_sizes=[]"),
        kvlab("generate", "run=x", "max_new_tokens=4"),
        kvlab("train", own, "run_name=${oc.env:HF_TOKEN}"),
        kvlab("train", own, "optim.learning_rate=-1"),
        kvlab("train", own, "run_name=x", "seed=1"),
        kvlab("generate", "run=none"),
    ]
    assert [status for status, _, _ in said] == [0, 0, 0, 2, 2, 2, 2], said
    assert CANARY not in "".join(out + err for _, out, err in said)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"runs", "reports", "prepared"} <= {
        path.relative_to(tmp_path).parts[0] for path in written
    }
    for path in written:
        assert CANARY.encode() not in path.read_bytes(), path
        assert CANARY not in str(path)


@pytest.mark.slow
def test_a_terminal_that_knows_no_unicode_is_written_to(kvlab, tmp_path):
    assert kvlab("train", *SHORT, "run_name=x")[0] == 0
    command = ["generate_text.py", f"runs_dir={tmp_path}/runs", "run=x", "prompt=é\N{SNOWMAN}"]
    done = subprocess.run(
        [sys.executable, str(ROOT / command[0]), *command[1:], "max_new_tokens=4"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"\\xe9\\u2603")


@pytest.mark.slow
def test_what_the_machine_refuses_is_one_line(start):
    import torch

    def job(config):
        torch.empty(2**50)

    status, err = start(job=job)
    assert status == 1
    assert err.startswith("kvlab: out of memory (")
    assert err.endswith("; lower trainer.micro_batch_size, eval.batch_size or data.num_workers\n")
    for error, said in (
        (MemoryError(), "out of memory (MemoryError)"),
        (OSError(28, "No space left on device", "/x"), "/x: No space left on device; mend that"),
        (OSError(24, "Too many open files"), "Too many open files; mend that"),
        (BrokenPipeError(32, "Broken pipe"), "nobody reads the output any more"),
        (KeyboardInterrupt(), "interrupted"),
    ):

        def failing(config, error=error):
            raise error

        status, err = start(job=failing)
        assert status == (130 if isinstance(error, KeyboardInterrupt) else 1)
        assert err.startswith(f"kvlab: {said}")
        assert err.count("\n") == 1


@pytest.mark.slow
def test_a_run_too_large_for_the_memory_is_left_out_and_the_others_are_kept(kvlab, monkeypatch):
    import measuring.evaluate as evaluate
    from measuring.errors import EvaluationError

    assert kvlab("train", *SHORT, "run_name=x")[0] == 0
    assert kvlab("train", *SHORT, "run_name=y")[0] == 0
    right = evaluate.measure_kv_cache
    calls = []

    def too_large(*args):
        calls.append(args)
        if len(calls) == 1:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return right(*args)

    monkeypatch.setattr(evaluate, "measure_kv_cache", too_large)
    quick = "eval.decode_speed.batch_sizes=[]"
    status, _, err = kvlab("eval", quick)
    assert status == 0
    assert "left out: x: [enforce fail] DefaultCPUAllocator" in err
    calls.clear()
    status, _, err = kvlab("eval", quick, "run=x")
    assert status == 1
    assert "kvlab: out of memory (" in err
    assert "lower eval.batch_size" in err

    def refuse_x(name, *_):
        if name == "x":
            raise EvaluationError(f"{name}: refused")

    monkeypatch.setattr(evaluate, "require_closed_form", refuse_x)
    status, _, err = kvlab("eval", quick)
    assert status == 0
    assert "left out: x: refused\n" in err  # with its name once
    status, _, err = kvlab("eval", quick, "run=x")
    assert status == 2
    assert err.endswith("kvlab: x: refused\n")


# Names and tokenizers


@pytest.mark.parametrize(
    "name", ["../../x", "/abs", "a/../..", "a\nb", "x" * 300, ".hidden", "a b", "a\\b", "~"]
)
@pytest.mark.parametrize("entry", ["train", "generate"])
def test_a_run_name_that_could_leave_its_folder_is_refused(
    name, entry, kvlab, tmp_path, monkeypatch
):  # S4
    monkeypatch.chdir(tmp_path)  # where no folder happens to be called so
    key = {"train": "run_name", "generate": "run"}[entry]
    status, _, err = kvlab(entry, f"{key}='{name}'")
    assert status == 2
    assert "run_name" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_a_link_to_elsewhere_is_not_followed(kvlab, tmp_path):  # S4
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "x").symlink_to(tmp_path / "elsewhere")
    for entry, key in (("train", "run_name"), ("generate", "run")):
        status, _, err = kvlab(entry, f"{key}=x")
        assert status == 2
        assert "is a symbolic link" in err
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("stdin", ["closed", "terminal"])
def test_a_tokenizers_own_code_is_neither_run_nor_asked_about(
    stdin, mark, prepared, tmp_path
):  # S5
    folder = tmp_path / "tokenizer"
    shutil.copytree(prepared.folder / "tokenizer", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["own.Own", "own.Own"]}
    config["tokenizer_class"] = "Own"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text('{"auto_map": {"AutoConfig": "own.Own"}}')
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')\nclass Own: pass\n")
    for name in ("tokenizer.model", "pytorch_model.bin", "vocab.pkl"):
        (folder / name).write_bytes(pickle_of(f"touch {mark}"))
    (tmp_path / "texts").mkdir()
    for split in ("train", "validation"):
        (tmp_path / "texts" / f"{split}.txt").write_text(f"some {split} text\n")
    main, other = pty.openpty()
    done = subprocess.run(
        [
            *(sys.executable, "prepare_data.py", "data=local", f"data.path={tmp_path}/texts"),
            *("tokenizer=pretrained", f"tokenizer.path={folder}"),
            f"data.prepared_dir={tmp_path}/prepared",
        ],
        cwd=ROOT,
        stdin=other if stdin == "terminal" else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    os.close(main)
    os.close(other)
    assert not mark.exists()
    assert done.returncode == 2
    assert "code of its own, which is never run" in done.stderr
    assert "[y/N]" not in done.stdout + done.stderr
    assert not list((tmp_path / "prepared").glob("*/manifest.json"))


def pickle_of(command):
    """A pickle, written by hand, that runs a command where it is loaded."""
    return f"cposix\nsystem\n(V{command}\ntR.".encode()


def test_the_pickle_would_run_where_it_is_loaded(mark):
    import pickle

    pickle.loads(pickle_of("touch MARK"))  # noqa: S301
    assert mark.exists()
