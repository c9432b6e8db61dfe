"""The runs of a sweep: which there are, what is said of them, and several at once."""

import json
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from processes import wait_for_step

import launch.run
from launch import at_once, plan, schemas
from launch.at_once import number_at_once
from launch.errors import ConfigError
from launch.sweep import Run, Sweep
from tracking.checkpoints import CheckpointStore
from tracking.run_folder import RunFolder

FIVE = ("mha", "mqa", "gqa", "mla_no_rope", "mla")
NAME = "{}-nano-python_stdlib-seed{}"


@pytest.fixture
def finished(tmp_path):
    """Give a run of tmp_path the summary of a finished one."""

    def finish(name, seconds, **cache):
        folder = RunFolder(tmp_path, name)
        with folder.lock():
            folder.write_summary(
                {
                    **{
                        "run_name": name,
                        "validation_nll": 3.77,
                        "validation_perplexity": 43.434,
                        "finished": True,
                    },
                    **{"kv_cache_bytes_per_token": 1728, "wall_seconds": seconds},
                    **cache,
                }
            )

    return finish


# Nothing is added once windows are full. An older summary says what a token takes alone.
WINDOWED = {"kv_cache_bytes_per_token": 0, "kv_cache_bytes_at_context": 2304}


def test_a_sweep_says_where_it_is_and_ends_in_a_table_with_the_reasons(tmp_path, finished, capsys):
    jobs = [
        [f"runs_dir={tmp_path}", f"attention={attention}", f"seed={seed}"]
        for attention in ("mha", "mla_no_rope")
        for seed in (0, 1, 2)
    ]
    sweep = Sweep("train", jobs)
    finished(NAME.format("mha", 0), 100.0)
    for run, status, reason in zip(
        sweep.runs,
        (0, 0, 1, 1, 75),
        ("", "", "out of\nmemory", "out of memory", "SIGTERM"),
        strict=False,
    ):
        sweep.begin(run)
        if run is sweep.runs[1]:
            finished(run.name, 7500.0, **WINDOWED)
        sweep.end(run, status, reason)
    assert sweep.conclude() == 75
    captured = capsys.readouterr()
    assert re.findall("^run [0-9].*", captured.out, re.MULTILINE) == [
        "run 1 of 6: attention=mha seed=0",
        "run 2 of 6: attention=mha seed=1 (about 8 min 20 s left)",
        "run 3 of 6: attention=mha seed=2 (about 4 h 13 min left)",
        "run 4 of 6: attention=mla_no_rope seed=0 (about 3 h 10 min left)",
        "run 5 of 6: attention=mla_no_rope seed=1 (about 2 h 6 min left)",
    ]
    table = captured.out.partition("\n\nrun  ")[2].splitlines()
    assert max(map(len, table)) + len("run  ") <= 80
    # The names do not fit: their numbers, as the headings have them.
    assert [line.split() for line in table[2:]] == [
        ["1", "mha", "0", "43.43", "1,728/token", "1:40", "done", "before"],
        ["2", "mha", "1", "43.43", "2,304", "2:05:00", "done"],
        ["3", "mha", "2", "-", "-", "-", "failed"],
        ["4", "mla_no_rope", "0", "-", "-", "-", "failed"],
        ["5", "mla_no_rope", "1", "-", "-", "-", "interrupted"],
        ["6", "mla_no_rope", "2", "-", "-", "-", "not", "started"],
    ]
    failed = f"{NAME.format('mha', 2)}, {NAME.format('mla_no_rope', 0)}"
    assert captured.err == (
        f"kvlab: {failed} failed: out of memory\n"
        f"kvlab: 2 of 5 runs failed: {failed}; the same command tries them again\n"
    )


def test_what_other_runs_have_said_is_repeated_but_for_the_name():
    sweep = Sweep("train", [["run_name=mla-seed0"], ["run_name=mla-seed1"]])
    sweep.begin(sweep.runs[0])
    assert not sweep.is_repeated("a sheet")
    assert not sweep.is_repeated("mla-seed0: 8 steps")
    sweep.begin(sweep.runs[1])
    assert sweep.is_repeated("a sheet")
    assert sweep.is_repeated("mla-seed1: 8 steps")
    assert not sweep.is_repeated("mla-seed1: 9 steps")


def test_a_sweep_that_trains_nothing_has_no_table_and_names_runs_by_what_is_swept(capsys):
    sweep = Sweep("eval", [["eval.stride=8"], ["eval.stride=0"]])
    for run in sweep.runs:
        sweep.begin(run)
    sweep.end(sweep.runs[1], 2, "eval.stride (0) must be at least 1")
    assert sweep.conclude() == 2
    captured = capsys.readouterr()
    assert captured.out == "run 1 of 2: eval.stride=8\n\nrun 2 of 2: eval.stride=0\n"
    assert captured.err == (
        "kvlab: eval.stride=0 failed: eval.stride (0) must be at least 1\n"
        "kvlab: 1 of 2 runs failed: eval.stride=0; correct that, then the same command tries them "
        "again\n"
    )


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        (
            [["optim.learning_rate=1e-3", "seed=0"], ["optim.learning_rate=2e-3", "seed=0"]],
            "2 of the 2 runs would be called 'mha-nano-python_stdlib-seed0'; let run_name tell "
            "them apart: 'run_name=${model.attention.name}-learning_rate${optim.learning_rate}-"
            "seed${seed}'",
        ),
        (
            [["layers=window_full", f"layers.window={w}"] for w in (16, 32)],
            "'mha-window_full-nano-python_stdlib-seed0'; let run_name tell them apart: 'run_name="
            "${model.attention.name}-${layers.name}-window${layers.window}-seed${seed}'",
        ),
        ([[f"layers={name}"] for name in ("uniform", "window_full")], ""),
        ([["run_name=x", "seed=0"], ["run_name=x", "seed=1"]], "called 'x'; let run_name tell"),
        ([["attention=mla", "seed=0"], ["attention=mha", "seed=0"]], ""),
        ([["run_name=a", "seed=0"], ["run_name=b", "seed=0"]], ""),
        ([["run_name='r${optim.learning_rate}'", f"optim.learning_rate={n}"] for n in (1, 2)], ""),
    ],
)
def test_a_sweep_whose_runs_have_one_name_is_refused_before_the_first(jobs, message):
    if not message:
        Sweep("train", jobs)
        return
    with pytest.raises(ConfigError, match=re.escape(message)):
        Sweep("train", jobs)


@pytest.mark.parametrize(
    ("typed", "runs"),
    [
        (["seed=3,4"], ["seed=3", "seed=4"]),
        (["seed=range(2)", "model=nano"], ["seed=0 model=nano", "seed=1 model=nano"]),
        (["attention=glob(mla*)"], ["attention=mla", "attention=mla_no_rope"]),
        (["seed=0,1", "seed=5"], ["seed=5"]),
        (["run_name='a,b'"], ["run_name='a,b'"]),
        (
            ["optim.learning_rate=choice(1e-3,2e-3)", "seed=0,1"],
            [f"optim.learning_rate={r} seed={s}" for r in (0.001, 0.002) for s in (0, 1)],
        ),
        (
            ["experiment=study_rank", "attention=mla", "match_cache_ratio=0.5"],
            [
                f"experiment=study_rank attention=mla match_cache_ratio=0.5 seed={s}"
                for s in range(3)
            ],
        ),
        (
            ["experiment=five_attentions,adamw_or_muon", "seed=1"],
            [
                *(f"experiment=five_attentions attention={a} seed=1" for a in FIVE),
                *(f"experiment=adamw_or_muon optim={o} seed=1" for o in ("adamw", "muon")),
            ],
        ),
    ],
)
def test_a_command_line_is_each_combination_of_its_values(typed, runs):
    assert [" ".join(run) for run in plan.planned("train", typed).runs] == runs


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("seed=interval(0,1)", r"seed: interval\(\) has no end of values; list them, or use range"),
        ("+optim@hydra.callbacks.x=adamw", "hydra.callbacks.x cannot be set"),
        ("hydra.job.name=x,y", "hydra.job.name cannot be set"),
    ],
)
def test_what_is_no_sweep_is_refused(typed, message):
    with pytest.raises(ConfigError, match=message):
        plan.planned("train", [typed])


def test_names_of_a_sweep_are_of_each_runs_own_values():
    sweep = Sweep("train", plan.planned("train", ["run_name='r${seed}'", "seed=3,4"]).runs)
    assert [run.name for run in sweep.runs] == ["r3", "r4"]


# At once


@pytest.mark.parametrize(
    ("jobs", "more", "number"),
    [
        ("1", "", 1),
        ("2", "", 2),
        ("9", "", 3),  # of three runs
        ("auto", "", 2),
        ("auto", "trainer.device=cpu", 2),
        ("2", "dry_run=true", 1),
        ("2", "fair_lr=true", 1),
        ("0", "", "sweep.jobs (0) must be how many runs are made at once, or auto"),
        ("two", "", "sweep.jobs (two) must be"),
        ("-1", "", "sweep.jobs (-1) must be"),
    ],
)
def test_as_many_runs_are_made_at_once_as_the_cores_allow(jobs, more, number, monkeypatch):
    monkeypatch.setattr(at_once, "_cores", lambda: 2)
    monkeypatch.setattr(at_once, "_OF_GPUS", ())
    config = OmegaConf.from_dotlist(["trainer.device=auto", *more.split()])
    runs = [Run(config, "", trains=True)] * 3
    if isinstance(number, str):
        with pytest.raises(ConfigError, match=re.escape(number)):
            number_at_once(jobs, runs)
        return
    assert number_at_once(jobs, runs) == number
    if jobs == "auto":
        monkeypatch.setattr(at_once, "_OF_GPUS", ("/dev/null",))
        assert number_at_once("auto", runs) == (2 if more else 1)  # a GPU is for one run
    monkeypatch.setattr(at_once, "rank_and_size", lambda: (0, 2))
    assert number_at_once(jobs, runs) == 1


def test_the_time_left_is_that_of_what_is_not_finished():
    config = OmegaConf.create()
    runs = [Run(config, str(number), trains=True) for number in range(5)]
    sweep = SimpleNamespace(runs=runs)
    begun = [at_once._Running(runs[1], None, None, None, time.monotonic() - 60.0)]
    assert at_once._progress(sweep, runs[2:], begun, 2) == (1, 5, "1 of 5 runs")
    runs[0].summary = {"wall_seconds": 100.0}
    runs[4].summary = {"wall_seconds": 300.0}  # of an earlier sweep
    # 140 s of the one that runs and 2 x 200 s behind it, two at once.
    assert at_once._progress(sweep, runs[2:], begun, 2)[2:] == ("1 of 5 runs", "4 min 30 s left")


@pytest.mark.parametrize(
    ("entry", "typed", "message"),
    [
        ("train", ["sweep.jobs=2"], "sweep.jobs is for the runs of a sweep: add -m"),
        ("train", ["-m", "sweep.jobs=x", "seed=0,1"], "sweep.jobs (x) must be"),
        ("eval", ["-m", "sweep.jobs=2"], "there is no key 'sweep.jobs'"),
    ],
)
def test_jobs_that_cannot_be_are_refused(entry, typed, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{entry}_model.py", *typed])
    with pytest.raises(SystemExit) as end:
        launch.run.run(entry, schemas.SCHEMAS[entry], lambda config: None)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def sweep_at_once(tmp_path, tiny_data):
    """Start a sweep of two runs at once on the tiny corpus."""

    def start(*typed):
        return subprocess.Popen(
            [
                *(sys.executable, str(schemas.ROOT / "train_model.py"), "-m", "sweep.jobs=2"),
                *(*tiny_data, "debug=smoke", "tracking=none", f"runs_dir={tmp_path}", *typed),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.mark.slow
def test_runs_at_once_have_logs_of_their_own_and_a_failing_one_stops_no_other(
    sweep_at_once, tmp_path
):
    typed = ["model.num_attention_heads=2,3,4", "run_name=h${model.num_attention_heads}"]
    process = sweep_at_once(*typed)
    out, err = process.communicate()
    assert process.returncode == 2, err
    assert out.startswith("3 runs, 2 at once; what each prints is in output.log of its folder\n")
    for number in (1, 3):
        run = f"run {number} of 3, h{number + 1}: done, validation perplexity"
        assert re.search(rf"^{run} [0-9.]+, trained in [0-9]+ s$", out, re.MULTILINE)
        folder = tmp_path / f"h{number + 1}"
        assert f"{folder.name}: mha with " in (folder / "output.log").read_text()
        assert "num_threads: " in (folder / "config.yaml").read_text()
        assert "num_threads: null" not in (folder / "config.yaml").read_text()
    reason, *rest = [line.partition("kvlab: ")[2] for line in err.splitlines()]
    assert re.match(r"run 2 of 3, h3: .*64 is not divisible by 3", reason)
    assert rest[-1].startswith("1 of 3 runs failed: h3; correct that, then the same command")
    assert [line.split()[-1] for line in out.splitlines()[-3:]] == ["done", "failed", "done"]
    assert not (tmp_path / "h3").exists()
    (tmp_path / "h2" / "output.log").unlink()
    (tmp_path / "h2" / "output.log").symlink_to(tmp_path / "taken")
    again = sweep_at_once(*typed)
    out, err = again.communicate()
    assert out.count(": done before, validation perplexity") == 1
    assert "run 1 of 3, h2: [Errno 40] Too many levels of symbolic links: " in err
    assert not (tmp_path / "taken").exists()


def steps(folder):
    return CheckpointStore(folder / "checkpoints", 1, read_only=True).steps()


@pytest.mark.slow
def test_a_signal_to_a_sweep_stops_and_saves_all_and_the_same_command_resumes(
    sweep_at_once, tmp_path
):
    typed = ["seed=0,1,2", "run_name=s${seed}", "trainer.max_tokens=51200"]
    folders = [tmp_path / f"s{seed}" for seed in range(3)]

    def begun(step):
        process = sweep_at_once(*typed)
        for folder in folders[:2]:
            wait_for_step(process, folder / "metrics.jsonl", step)
        return process

    process = begun(5)
    process.send_signal(signal.SIGINT)  # as Ctrl-C does
    out, err = process.communicate()
    assert process.returncode == 75, err
    assert len(re.findall(r"s[01]: SIGINT: checkpoint saved at step \d+ of 200", err)) == 2
    assert "3 of 3 runs are not finished; the same command resumes them" in out
    assert [line.split()[-1] for line in out.splitlines()[-3:]] == [
        *("interrupted", "interrupted", "started")
    ]
    saved = [steps(folder)[-1] for folder in folders[:2]]
    assert not folders[2].exists()
    # What is killed asks nobody; the runs notice.
    process = begun(max(saved) + 20)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while any(steps(folder)[-1] <= step for folder, step in zip(folders, saved, strict=False)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process = sweep_at_once(*typed)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.count(": done, validation perplexity") == 3
    for folder in folders:
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["finished"]
    assert "resuming s0 after step" in (folders[0] / "output.log").read_text()
