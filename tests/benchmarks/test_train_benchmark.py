import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import measuring.machine
from benchmarks import train, train_report
from benchmarks.train_systems import SYSTEMS
from benchmarks.train_worker import WorkerError
from modeling.accounting import num_parameters
from modeling.config import GPTConfig

ROOT = Path(__file__).resolve().parents[2]
PEERS = [name for name, system in SYSTEMS.items() if system.is_peer]


def job(system, size="nano"):
    return train.make_job(train.parse([]), size, "float32", system)


def row(system, mode="eager", seconds=(1.0, 1.0, 1.0), above_import=100):
    turns = [
        {"seconds": s, "peak_bytes": 1000 + above_import, "page_faults": 0, "loss": 1.0}
        for s in seconds
    ]
    facts = {"size": "nano", "dtype": "float32", "system": system, "mode": mode}
    facts["import_bytes"] = 1000
    return train_report.make_row(facts, turns, tokens=100, flops=6.0, peak=1200.0)


def ratios(rows):
    return {ratio.what: ratio for ratio in train_report.compare(rows)}


def test_row_has_speed_utilisation_and_memory():
    found = row("kvlab-mha", seconds=(1.0, 2.0, 9.0), above_import=7)
    assert found["tokens_per_second"] == 50
    assert found["mfu"] == 50 * 6 / 1200
    assert found["peak_bytes"] == 1007
    assert found["peak_above_import_bytes"] == 7


def test_speed_is_compared_with_the_fastest_peer_within_rounds():
    rows = [
        row("kvlab-mha", seconds=(1.0, 2.0, 4.0)),
        row("transformers-mha", seconds=(1.2, 2.4, 4.4)),
        row("litgpt-mha", seconds=(5.0, 5.0, 5.0)),
        row("litgpt-gqa", seconds=(0.1, 0.1, 0.1)),
    ]
    ratio = ratios(rows)["MHA tokens/s, fastest peer, eager / eager"]
    assert ratio.theirs == "transformers-mha eager"
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.2, 1.1, 1.2))


def test_best_takes_each_systems_faster_mode():
    rows = [
        row("kvlab-mha", "eager", (2.0,)),
        row("kvlab-mha", "compiled", (3.0,)),
        row("transformers-mha", "eager", (4.0,)),
        row("transformers-mha", "compiled", (1.0,)),
    ]
    ratio = ratios(rows)["MHA tokens/s, fastest peer, best / best"]
    assert (ratio.ours, ratio.theirs) == ("kvlab-mha eager", "transformers-mha compiled")
    assert ratio.value == 0.5


def test_memory_is_compared_with_the_leanest_peer():
    rows = [
        row("kvlab-mla", above_import=90),
        row("transformers-mla", above_import=100, seconds=(9.0,)),
        row("litgpt-mla", above_import=300),
    ]
    ratio = ratios(rows)["MLA peak memory above import, leanest peer, eager / eager"]
    assert (ratio.theirs, ratio.value) == ("transformers-mla eager", 0.9)


def test_latent_attention_is_compared_with_mha_by_step_time():
    ratio = ratios([row("kvlab-mha", seconds=(2.0,)), row("kvlab-mla", seconds=(2.2,))])
    assert ratio["MLA / MHA step time, eager / eager"].value == pytest.approx(1.1)


def test_systems_are_chosen_by_pattern(capsys):
    chosen = train.parse(["--systems", "*-mha", "kvlab-mla"]).systems
    assert chosen == ["kvlab-mha", "kvlab-mla", "transformers-mha", "litgpt-mha"]
    with pytest.raises(SystemExit):
        train.parse(["--systems", "nanogpt"])
    assert "no system is named like nanogpt" in capsys.readouterr().err


@pytest.mark.parametrize(("available", "is_enough"), [(100, False), (126, True), (None, True)])
def test_process_is_not_started_where_memory_might_not_do(monkeypatch, available, is_enough):
    monkeypatch.setattr(measuring.machine, "bytes_in_proc", lambda *_: available)
    facts = {"warmup_peak_bytes": 100}
    started = [SimpleNamespace(job=SimpleNamespace(device="cpu"), facts=facts)]
    train.require_memory([])
    if is_enough:
        train.require_memory(started)
    else:
        with pytest.raises(WorkerError, match="fewer --systems"):
            train.require_memory(started)


@pytest.mark.parametrize("size", ["nano", "seed_35m"])
def test_peer_that_must_compress_its_queries_has_as_many_parameters(size):
    with_latent, mha = job("litgpt-mla", size), job("kvlab-mha", size)
    assert with_latent.model["attention"]["q_lora_rank"] > 0
    counts = [num_parameters(GPTConfig(**one.model)).total for one in (with_latent, mha)]
    assert max(counts) / min(counts) < 1.01, counts


@pytest.mark.slow
@pytest.mark.parametrize("system", PEERS)
def test_peer_is_built_with_the_parameters_of_its_kvlab_configuration(system):
    pytest.importorskip(system.partition("-")[0])
    one = job(system)
    model = SYSTEMS[system].build(one)().model
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == num_parameters(GPTConfig(**one.model)).total
    baseline = num_parameters(GPTConfig(**job("kvlab-mha").model)).total
    assert abs(count / baseline - 1) < 0.01


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """One round at the smallest size, where litgpt cannot be imported."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "litgpt.py").write_text("raise ModuleNotFoundError(\"No module named 'litgpt'\")\n")
    options = "--sizes smoke --dtypes float32 --modes eager --rounds 1 --steps-per-turn 1"
    options += " --systems kvlab-mha kvlab-mla litgpt-mha --threads 1 --allocator tuned"
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.train", *options.split(), "--output", folder / "result"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == (folder / "result.md").read_text().strip()
    return json.loads((folder / "result.json").read_text())


@pytest.mark.slow
def test_rows_are_positive_and_finite(result):
    assert [row["system"] for row in result["rows"]] == ["kvlab-mha", "kvlab-mla"]
    for found in result["rows"]:
        for key in ("tokens_per_second", "mfu", "step_seconds", "peak_above_import_bytes"):
            assert math.isfinite(found[key]), key
            assert found[key] > 0, key
        assert found["mfu"] < 1
        assert len(found["step_seconds_by_round"]) == 1
        assert found["peak_bytes"] > found["import_bytes"] > 0
        assert found["threads"] == 1
        assert found["allocator_variables"]["MALLOC_MMAP_MAX_"] == "0"
        assert found["num_parameters"] > 100_000
    assert result["groups"][0]["matmul_flops"] > 0
    assert result["groups"][0]["parameter_spread"] < 0.01
    assert [ratio["what"] for ratio in result["ratios"]] == ["MLA / MHA step time, eager / eager"]


@pytest.mark.slow
def test_system_whose_package_is_missing_is_left_out_with_the_reason(result):
    [left_out] = result["left_out"]
    assert left_out["system"] == "litgpt-mha"
    assert left_out["reason"] == "ModuleNotFoundError: No module named 'litgpt'"
