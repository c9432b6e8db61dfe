"""What is said of the runs of a sweep, without training one."""

import re

import pytest
from hydra._internal.utils import get_args_parser

from launch.compose import composed, register
from launch.errors import ConfigError
from launch.hydra_guard import require_plain_hydra
from launch.sweep import Sweep, require_names
from tracking.run_folder import RunFolder

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


def make(sweep, tmp_path, attention, seed, ending=lambda: None, status=0, reason=""):
    sweep.begin(NAME.format(attention, seed), attention, seed)
    sweep.train(tmp_path)
    ending()
    sweep.end(status, reason)


def test_a_sweep_says_where_it_is_and_ends_in_a_table_with_the_reasons(tmp_path, finished, capsys):
    jobs = [
        ["experiment=x", f"attention={attention}", f"seed={seed}"]
        for attention in ("mha", "mla_no_rope")
        for seed in (0, 1, 2)
    ]
    sweep = Sweep(jobs, trains=True)
    finished(NAME.format("mha", 0), 100.0)
    make(sweep, tmp_path, "mha", 0)
    make(sweep, tmp_path, "mha", 1, lambda: finished(NAME.format("mha", 1), 7500.0, **WINDOWED))
    make(sweep, tmp_path, "mha", 2, status=1, reason="out of\nmemory")
    make(sweep, tmp_path, "mla_no_rope", 0, status=1, reason="out of memory")
    make(sweep, tmp_path, "mla_no_rope", 1, status=75, reason="SIGTERM")
    sweep.conclude()
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
        ["6", "-", "-", "-", "not", "started"],
    ]
    failed = f"{NAME.format('mha', 2)}, {NAME.format('mla_no_rope', 0)}"
    assert captured.err == (
        f"kvlab: {failed} failed: out of memory\n"
        f"kvlab: 2 of 5 runs failed: {failed}; the same command tries them again\n"
    )


def test_what_other_runs_have_said_is_repeated_but_for_the_name():
    sweep = Sweep([["seed=0"], ["seed=1"]], trains=True)
    sweep.begin("mla-seed0", "mla", 0)
    assert not sweep.is_repeated("a sheet")
    assert not sweep.is_repeated("mla-seed0: 8 steps")
    sweep.begin("mla-seed1", "mla", 1)
    assert sweep.is_repeated("a sheet")
    assert sweep.is_repeated("mla-seed1: 8 steps")
    assert not sweep.is_repeated("mla-seed1: 9 steps")


def test_a_sweep_that_trains_nothing_has_no_table_and_names_runs_by_what_is_swept(capsys):
    sweep = Sweep([["eval.stride=8"], ["eval.stride=0"]], trains=False)
    for status, reason in ((0, ""), (2, "eval.stride (0) must be at least 1")):
        sweep.begin("", "", None)
        sweep.end(status, reason)
    sweep.conclude()
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
        require_names(jobs)
        return
    with pytest.raises(ConfigError, match=re.escape(message)):
        require_names(jobs)


def test_names_of_a_sweep_are_of_each_runs_own_values():
    register()
    typed = ["-m", "run_name='r${seed}'", "seed=3,4"]
    jobs = require_plain_hydra("train", get_args_parser().parse_args(typed))
    assert [composed("train", job).run_name for job in jobs] == ["r3", "r4"]
