import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tracking.metrics import read_metrics
from training.errors import TrainingError
from training.machine.hardware import (
    busy_machine_advice,
    measure_matmul_flops,
    pick_autocast_dtype,
    pick_device,
)

CPU = torch.device("cpu")


def test_auto_takes_bfloat16_only_where_it_is_native_and_either_can_be_forced(monkeypatch):
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    for probe in probes:
        monkeypatch.setattr(torch.cpu, probe, lambda: False, raising=False)
    assert pick_autocast_dtype("auto", CPU) is None
    monkeypatch.setattr(torch.cpu, probes[0], lambda: True, raising=False)
    assert pick_autocast_dtype("auto", CPU) is torch.bfloat16
    assert pick_autocast_dtype("float32", CPU) is None
    assert pick_autocast_dtype("bfloat16", CPU) is torch.bfloat16


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == CPU
    with pytest.raises(TrainingError, match="no CUDA device; use device=cpu"):
        pick_device("cuda")
    with pytest.raises(TrainingError, match=r"device \('tpu'\) must be auto, cpu or cuda"):
        pick_device("tpu")


def test_measured_flops_are_positive():
    assert measure_matmul_flops(CPU, torch.float32, size=64) > 0


@pytest.mark.slow
def test_bfloat16_training_follows_float32(recipe, run_training):
    folders = [
        run_training(recipe, precision, precision=precision)
        for precision in ("float32", "bfloat16")
    ]
    losses = [[r["train/loss"] for r in read_metrics(f.metrics_path)] for f in folders]
    assert losses[0] != losses[1]
    # bfloat16 has 8 bits of mantissa; losses near 5.7 differ in the third digit.
    torch.testing.assert_close(losses[0], losses[1], rtol=2**-7, atol=0.0)


@pytest.mark.parametrize(
    ("load", "seconds", "threads", "is_said"),
    [
        (8.5, 0.0, 4, True),
        (8.5, 0.0, 1, False),  # there is no fewer
        (4.0, 0.0, 4, False),  # as many as there are CPUs
        (4.5, 60.0, 4, False),  # one of them is this process
        (4.5, 6.0, 4, True),
        (8.5, 1e5, 4, True),  # after hours; a process takes no more than the CPUs that there are
        (None, 0.0, 4, False),
        (OSError, 0.0, 4, False),
    ],
)
def test_a_busy_machine_is_said_with_what_to_set(monkeypatch, load, seconds, threads, is_said):
    def average():
        if load is OSError:
            raise OSError
        return (load, 0.0, 0.0)

    if load is None:
        monkeypatch.delattr("os.getloadavg")
    else:
        monkeypatch.setattr("os.getloadavg", average)
    # Half of it of processes that have ended.
    monkeypatch.setattr("os.times", lambda: (seconds / 2, 0.0, 0.0, seconds / 2, 1e9))
    for module in ("training.machine.hardware", "measuring.machine"):
        monkeypatch.setattr(f"{module}.cpu_count", lambda: 4)
    said = busy_machine_advice(threads)
    assert said.endswith("with 4 threads is slow, set trainer.num_threads=1") == is_said
    assert bool(said) == is_said


WITHOUT = """
import os, sys
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("sched_getaffinity", "getloadavg", "fork"):
    delattr(os, name)
import signal
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2"):
    delattr(signal, name)
import launch.run
from launch import schemas
from commands import train
from training.machine import hardware
hardware.bytes_in_proc = lambda file, key: None
launch.run.run("train", schemas.TrainConfig, train.main)
"""


@pytest.mark.slow
def test_a_training_needs_no_module_that_only_some_systems_have(tiny_data, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-c", WITHOUT, *tiny_data, "debug=smoke", "tracking=none"),
            *("trainer.sample_tokens=0", "run_name=x", f"runs_dir={tmp_path}"),
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    assert json.loads((tmp_path / "x" / "summary.json").read_text())["finished"]
