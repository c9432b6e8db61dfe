"""Damage at random to every file that a run reads back: the undamaged value, or one line."""

import json
import os
import re
import shutil
from random import Random

import pytest
import torch
from effort import SEED, share_of
from mutations import mutated_bytes, mutated_json
from test_checkpoint_faults import STATE, resumed, safetensors, save, write_shard

from files.errors import RunError
from tracking import checkpoint_files, run_folder, run_lock
from tracking.checkpoint import read_checkpoint
from tracking.checkpoints import CheckpointStore
from tracking.configuration import differences, read_configuration
from tracking.metrics import MetricsLog, read_metrics
from tracking.run_folder import RunFolder
from training.errors import TrainingError

CONFIG = """\
seed: 1
run_name: mla
optim: {name: adamw, learning_rate: 3e-4}
data:
  path: null
  text_template: "${x} {text}"
trainer:
- 1.5
- true
"""
METRICS = [
    {"step": 1, "progress/tokens": 128, "train/loss": 5.25, "train/perplexity": 190.56},
    {"step": 2, "progress/tokens": 256, "train/loss": None, "perf/mfu": 0.25},
    {"event": "resumed"},
]
SUMMARY = {
    "run_name": "mla",
    "attention": "mla",
    "num_parameters": 12345,
    "tokens_trained": 1000,
    "overfit_batches": None,
    "validation_nll": 1.5,
    "validation_perplexity": 4.48,
    "tokens_per_second": 1e4,
    "finished": True,
    "versions": {"torch": "2.13.0"},
    "git_commit": None,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return tmp_path


def put(path, data):
    """Replace a file: some file systems flush one that is cut and written again."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def some(genuine, random):
    """Return a damaged JSON file, damaged as text or as values."""
    if random.random() < 0.3:
        return mutated_bytes(json.dumps(genuine).encode(), random)
    return mutated_json(genuine, random)


def fuzz_summary(folder):
    run = RunFolder(folder, "run")
    run.create()

    def read(random):
        put(run.summary_path, some(SUMMARY, random))
        summary = run.read_summary()
        # As the entry points use it.
        if summary.get("finished"):
            f"{summary['validation_perplexity']:.2f} {summary['validation_nll']:.2f}"
        for key in ("tokens_per_second", "wall_seconds", "peak_memory_bytes"):
            assert type(summary.get(key)) in (int, float, type(None))
            float(summary.get(key) or 0)

    return read


def fuzz_metrics(folder):
    path = folder / "metrics.jsonl"
    lines = [json.dumps(record).encode() for record in METRICS]

    def read(random):
        damaged = list(lines)
        if random.random() < 0.5:
            damaged[random.randrange(len(lines))] = mutated_json(random.choice(METRICS), random)
        data = b"\n".join(damaged) + b"\n" * random.randint(0, 1)
        put(path, mutated_bytes(data, random) if random.random() < 0.5 else data)
        records = read_metrics(path)
        # A second reading of what is kept: nothing is written that would be refused.
        MetricsLog(path).drop_after(1)
        kept = read_metrics(path)
        assert all(record in records for record in kept)
        steps = [record["step"] for record in kept if numeric(record)]
        assert all(step <= 1 for step in steps)

    return read


def numeric(record):
    return isinstance(record.get("step"), int | float)


def fuzz_config(folder):
    path = folder / "config.yaml"
    path.write_text(CONFIG)
    genuine = read_configuration(path)

    def read(random):
        put(path, mutated_bytes(CONFIG.encode(), random))
        differences(genuine, read_configuration(path))

    return read


def fuzz_samples(folder):
    run = RunFolder(folder, "run")
    run.create()

    def read(random):
        put(run.samples_path, mutated_bytes("def f(x):\n    ü\n".encode(), random))
        assert len(run.read_sample()) <= 20_000

    return read


def fuzz_lock_owner(folder):
    path = folder / ".lock-owner.json"

    def read(random):
        put(path, some({"pid": 7, "host": "a", "since": "2026-01-01"}, random))
        text = run_lock.owner_in(path)
        assert len(text) < 2000
        assert "\x1b" not in text
        text.encode()

    return read


def fuzz_manifest(folder):
    path = save(CheckpointStore(folder, 1), 20, "whole")
    genuine = json.loads((path / "manifest.json").read_text())

    def read(random):
        data = some(genuine, random)
        put(path / "manifest.json", data)
        found = checkpoint_files.listed_files(path)
        for name in found.files:
            checkpoint_files.verify_file(path, found, name)
        assert found.step == 20
        assert set(found.files) == set(genuine["files"])

    return read


def listed(path):
    """Make the manifest fit the files."""
    (path / "manifest.json").unlink()
    checkpoint_files.list_files(path, 20)


def fuzz_state(folder):
    path = save(CheckpointStore(folder, 1), 20, "whole")

    def read(random):
        put(path / "state.json", some(STATE, random))
        listed(path)
        state = read_checkpoint(path, names=[]).state
        try:
            assert resumed(state).step == 20
        except TrainingError as error:  # of other data or settings: nothing that is damaged
            if not re.search("fingerprint|other settings", str(error)):
                raise

    return read


def tensors_of(path):
    """Return header and data of a safetensors file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def fuzz_tensors(folder):
    path = save(CheckpointStore(folder, 1), 20, "whole")
    file = path / "model.safetensors"
    genuine = file.read_bytes()
    header, data = tensors_of(file)

    def read(random):
        forged = random.random() < 0.6
        new = safetensors(mutated_json(header, random), data) if forged else None
        put(file, new or mutated_bytes(genuine, random))
        listed(path)
        for tensor in read_checkpoint(path, names=["model"]).tensors["model"].values():
            assert tensor.numel() * tensor.element_size() <= len(file.read_bytes())

    return read


def fuzz_shards(folder):
    path = folder / "00000020"
    path.mkdir()
    (path / "state.json").write_text("{}")
    for number in (1, 2):
        half = torch.arange(6.0).reshape(3, 2) + number
        name = f"model-shard-0000{number}.safetensors"
        write_shard(path / name, {"w": (half, 3 * (number - 1))})
    file = path / "model-shard-00002.safetensors"
    genuine = file.read_bytes()
    header, data = tensors_of(file)
    info = json.loads(header["__metadata__"]["DCP_SHARDING_INFO"])
    checkpoint_files.list_files(path, 20)

    def read(random):
        kind = random.random()
        if kind < 0.4:
            place = mutated_json(info, random).decode("utf-8", "replace")
            metadata = {"DCP_SHARDING_INFO": place}
            new = safetensors(header | {"__metadata__": metadata}, data)
        elif kind < 0.7:
            new = safetensors(mutated_json(header, random), data)
        else:
            new = mutated_bytes(genuine, random)
        put(file, new)
        listed(path)
        for tensor in read_checkpoint(path).tensors["model"].values():
            assert tensor.numel() * tensor.element_size() <= 2 * len(genuine)

    return read


def fuzz_any_file_of_a_checkpoint(folder):
    """Not listed again: every change of a byte must be found."""
    genuine = save(CheckpointStore(folder / "genuine", 1), 20, "whole")
    path = folder / "00000020"
    shutil.copytree(genuine, path)
    names = sorted(file.name for file in path.iterdir() if file.name != "manifest.json")
    contents = {name: (path / name).read_bytes() for name in names}

    def read(random):
        name = random.choice(names)
        damaged = mutated_bytes(contents[name], random)
        put(path / name, damaged)
        try:
            read_checkpoint(path)
            assert damaged == contents[name]
        finally:
            put(path / name, contents[name])

    return read


INPUTS = {
    fuzz_summary: 11_000,
    fuzz_metrics: 4_000,
    fuzz_config: 1_500,
    fuzz_samples: 2_000,
    fuzz_lock_owner: 14_000,
    fuzz_manifest: 13_000,
    fuzz_state: 3_500,
    fuzz_tensors: 2_000,
    fuzz_shards: 600,
    fuzz_any_file_of_a_checkpoint: 2_000,
}


def fuzz(target, folder, inputs):
    """Read as many damaged files; returns how many were refused, and how many read."""
    read, random = target(folder), Random(SEED)
    refused = taken = lines = 0
    for _ in range(inputs):
        try:
            read(random)
            taken += 1
        except RunError as error:
            refused += 1
            lines = max(lines, len(str(error).splitlines()))
    assert lines <= 1
    return refused, taken


@pytest.mark.slow
@pytest.mark.parametrize("target", INPUTS, ids=lambda target: target.__name__)
def test_damage_at_random_is_one_line_or_harmless(target, folder):
    refused, taken = fuzz(target, folder, share_of(INPUTS[target]))
    never_refused = target in (fuzz_samples, fuzz_lock_owner)  # text, and what a message may lack
    assert (refused == 0) if never_refused else (refused > taken / 20)


def test_there_are_fifty_thousand_inputs():
    assert sum(INPUTS.values()) >= 50_000
    assert {value for name, value in globals().items() if name.startswith("fuzz_")} == set(INPUTS)


def test_a_reader_that_trusts_a_file_would_be_noticed(folder, monkeypatch):
    """The fuzzing, with the code broken on purpose, must turn red."""
    monkeypatch.setattr(run_folder, "_Summary", dict)
    with pytest.raises((AssertionError, TypeError, ValueError)):
        fuzz(fuzz_summary, folder, 2000)
