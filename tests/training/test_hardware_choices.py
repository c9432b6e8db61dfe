import pytest
import torch

from tracking.metrics import read_metrics
from training.errors import TrainingError
from training.hardware import measure_matmul_flops, pick_autocast_dtype, pick_device

CPU = torch.device("cpu")


def test_auto_takes_bfloat16_only_where_it_is_native(monkeypatch):
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    for probe in probes:
        monkeypatch.setattr(torch.cpu, probe, lambda: False, raising=False)
    assert pick_autocast_dtype("auto", CPU) is None
    monkeypatch.setattr(torch.cpu, probes[0], lambda: True, raising=False)
    assert pick_autocast_dtype("auto", CPU) is torch.bfloat16


def test_precision_can_be_forced():
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
