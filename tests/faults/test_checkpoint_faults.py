"""Checkpoints that were damaged, or made by somebody else: found, named, never run, never huge."""

import dataclasses
import io
import json
import os
import pickle
import resource
import shutil
import time
import types
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from files.errors import RunError
from modeling.config import GPTConfig
from modeling.gpt import GPT
from settings.training import OptimSettings
from tests.tiny_models import tiny_config
from tracking import checkpoint as checkpoint_module
from tracking import checkpoint_files
from tracking.checkpoint import Checkpoint, read_checkpoint, same_version
from tracking.checkpoints import CheckpointStore
from tracking.parts import shapes
from training.endurance.checkpointing import RunCheckpoints
from training.endurance.provenance import Provenance
from training.endurance.resumption import Identity, Progress, resume
from training.errors import TrainingError
from training.ranks.joining import alone
from training.recipe.optim import build_optimizers, optimizer_tensors

GROUPS = ("model", "optimizer", "rng")


def content(step):
    """Return what a run saves, small, and different for each step."""
    weight = torch.randn(6, 7, generator=torch.Generator().manual_seed(step))
    tensors = {
        "model": {"w": weight, "b": weight[0].clone()},
        "optimizer": {"w/exp_avg": -weight, "w/step": torch.tensor(float(step))},
        "rng": {"cpu": torch.arange(50, dtype=torch.uint8) + step},
    }
    return tensors, {"progress": {"step": step}, "seed": 3}


class TwoRanks:
    """Writes what two ranks would: each half of every tensor, and the first the scalars, too."""

    def __init__(self, groups):
        self.groups = groups

    def write(self, folder):
        for name, tensors in self.groups.items():
            (folder / name).mkdir()
            for rank in range(2):
                parts = {}
                for key, tensor in tensors.items():
                    if tensor.dim():
                        cut = tensor.shape[0] // 2
                        parts[key] = (tensor[:cut], 0) if rank == 0 else (tensor[cut:], cut)
                    elif rank == 0:
                        parts[key] = (tensor, 0)
                write_shard(folder / name / f"shard-0000{rank + 1}.safetensors", parts)


def write_shard(path, parts):
    """Write parts, given as (tensor, where it begins along the first dimension), by name."""
    where = {
        key: {"saved_offsets": ([start] + [0] * (part.dim() - 1))[: part.dim()]}
        for key, (part, start) in parts.items()
    }
    metadata = {"DCP_SHARDING_INFO": json.dumps(where), "DCP_VERSION": "1.0", "format": "pt"}
    save_file({key: part.contiguous() for key, (part, _) in parts.items()}, path, metadata)


def save(store, step, kind):
    tensors, state = content(step)
    if kind == "whole":
        return store.save(step, tensors, state)
    rng = {"rng": tensors.pop("rng")}
    return store.save(step, rng, state, TwoRanks(tensors))


def assert_holds(checkpoint, step):
    tensors, state = content(step)
    assert checkpoint.step == step
    assert checkpoint.state == state
    assert {group: set(found) for group, found in checkpoint.tensors.items()} == {
        group: set(wanted) for group, wanted in tensors.items()
    }
    for group, wanted in tensors.items():
        for key, tensor in wanted.items():
            assert torch.equal(checkpoint.tensors[group][key], tensor), key


@pytest.fixture(params=["whole", "sharded"])
def kind(request):
    return request.param


@pytest.fixture
def said():
    return []


@pytest.fixture
def store(tmp_path, said):
    return CheckpointStore(tmp_path / "checkpoints", keep_last=3, say=said.append)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Folders of two checkpoints of each kind, to be copied."""
    folder = tmp_path_factory.mktemp("originals")
    for kind in ("whole", "sharded"):
        store = CheckpointStore(folder / kind, keep_last=3)
        other = CheckpointStore(folder / f"other-{kind}", keep_last=3)
        for step in (10, 20):
            save(store, step, kind)
            tensors, state = content(step)
            tensors = {
                group: {key: tensor + 1 for key, tensor in found.items()}
                for group, found in tensors.items()
            }
            rng = {"rng": tensors["rng"]} if kind == "sharded" else tensors
            rest = {name: tensors[name] for name in ("model", "optimizer")}
            other.save(step, rng, state, TwoRanks(rest) if kind == "sharded" else None)
    return folder


def flip(position):
    def damage(path, other):
        data = bytearray(path.read_bytes())
        data[int(position * (len(data) - 1))] ^= 1
        path.write_bytes(data)

    return damage


def cut(fraction):
    def damage(path, other):
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * fraction)])

    return damage


def without_the_last_byte(path, other):
    path.write_bytes(path.read_bytes().removesuffix(b"\n")[:-1])  # JSON could lose its newline


def linked(path, other):
    target = path.parents[2] / f"outside-{path.name}"
    path.rename(target)
    path.symlink_to(target)


def piped(path, other):
    path.unlink()
    os.mkfifo(path)


def endless(path, other):
    path.unlink()
    path.symlink_to("/dev/zero")


DAMAGE = {
    "empty": cut(0),
    "half": cut(0.5),
    "minus-one-byte": without_the_last_byte,
    "bit-first": flip(0),
    "bit-middle": flip(0.5),
    "bit-last": flip(1),
    "deleted": lambda path, other: path.unlink(),
    "text": lambda path, other: path.write_text("hello\n"),
    "another-run's": lambda path, other: shutil.copy(other, path),
    "link": linked,
    "pipe": piped,
    "endless": endless,
    "folder": lambda path, other: (path.unlink(), path.mkdir()),
}
FILES = {
    "whole": [f"{group}.safetensors" for group in GROUPS],
    "sharded": [
        *(f"{group}-shard-0000{rank}.safetensors" for group in GROUPS[:2] for rank in (1, 2)),
        "rng.safetensors",
    ],
}


def require_found(originals, folder, kind, name, damage):
    """Damage a file of the newest of two checkpoints; the one before must be used, and both named.

    Returns:
        Whether the damage changed the file at all.
    """
    shutil.copytree(originals / kind, folder)
    path = folder / "00000020" / name
    before = path.read_bytes()
    DAMAGE[damage](path, originals / f"other-{kind}" / "00000020" / name)
    if path.is_file() and not path.is_symlink() and path.read_bytes() == before:
        return False
    said = []
    store = CheckpointStore(folder, keep_last=3, say=said.append)
    assert_holds(store.load_newest(), 10)
    assert len(said) == 1
    assert "00000020" in said[0]
    assert name in said[0] or "format" in said[0]
    assert said[0].endswith("00000010 instead")
    assert "\n" not in said[0]
    with pytest.raises(RunError, match="other checkpoints: 10"):
        store.load(20)
    # The run resumes from 10, and the damaged one does not count as one of the last.
    save(store, 15, kind)
    assert store.steps() == [10, 15]
    return True


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_of_any_file_is_found_and_the_checkpoint_before_used(
    originals, tmp_path, kind, damage
):
    names = [*FILES[kind], "state.json", "manifest.json"]
    changed = [
        require_found(originals, tmp_path / str(number), kind, name, damage)
        for number, name in enumerate(names)
    ]
    # Two runs may have the same state and, with it, the same state.json.
    assert sum(changed) >= len(names) - (damage == "another-run's")


@pytest.mark.parametrize("damage", ["bit-last", "another-run's"])
def test_a_hash_that_says_nothing_would_be_noticed(originals, tmp_path, monkeypatch, damage, kind):
    """The test above, with the code broken on purpose, must turn red."""
    genuine = originals / kind / "00000020" / "manifest.json"
    listed = json.loads(genuine.read_text())["files"]
    monkeypatch.setattr(
        checkpoint_files, "sha256_of_file", lambda path: listed[path.name]["sha256"]
    )
    with pytest.raises(AssertionError):
        require_found(originals, tmp_path / "c", kind, FILES[kind][0], damage)


# What somebody else put there, with a manifest that fits.


def listed_again(path):
    """Rewrite the manifest so that it agrees with the files: a forger's checkpoint."""
    (path / "manifest.json").unlink()
    checkpoint_files.list_files(path, int(path.name))


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def refused_quickly(path, names=None):
    """Return the one line that refuses a checkpoint, in bounded time and memory."""
    size = sum(file.stat().st_size for file in path.iterdir())
    peak, start = peak_bytes(), time.monotonic()
    with pytest.raises(RunError) as caught:
        read_checkpoint(path, names=names)
    assert time.monotonic() - start < 2
    # The peak of the whole process, with some room for its own allocations.
    assert peak_bytes() - peak <= 2 * size + (64 << 20)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


PICKLES = {
    "zip": torch.save,
    "legacy": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
    **{
        f"raw-{protocol}": lambda value, path, protocol=protocol: path.write_bytes(
            pickle.dumps(value, protocol)
        )
        for protocol in (0, 1, 2, 3, 4, 5)
    },
}
PLACES = {
    "tensors": ("model.safetensors", True),
    "random state": ("rng.safetensors", True),
    "state": ("state.json", True),
    "shard": ("model-shard-00003.safetensors", True),
    "extra": ("pytorch_model.bin", False),
    "extra, listed": ("model.pt", True),
    "metadata": (".metadata", False),
}


def require_not_run(path, mark, make, name, listed):
    """Put a pickle into a checkpoint and read it; its code must not run."""
    make(Evil(mark), path / "new")
    (path / "new").rename(path / name)  # torch.save does not take every name
    if listed:
        listed_again(path)
    said = "not read at all"
    try:
        assert_holds(read_checkpoint(path), 20)
    except RunError as error:
        said = str(error)
    assert not mark.exists()
    return said


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("make", PICKLES)
def test_a_pickle_in_a_checkpoint_is_never_run(originals, tmp_path, monkeypatch, kind, make, place):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = shutil.copytree(originals / kind / "00000020", tmp_path / "00000020")
    said = require_not_run(path, tmp_path / "MARK", PICKLES[make], *PLACES[place])
    # The two oldest protocols begin like any text or bytes: refused as what they are not, or not
    # read, like a note next to the checkpoint.
    is_marked = make not in ("raw-0", "raw-1")
    is_part = PLACES[place][0].endswith((".safetensors", ".json", ".pt"))
    assert ("refusing to run code from" in said) == is_marked
    assert (said == "not read at all") == (not is_marked and not is_part)
    assert not is_marked or PLACES[place][0] in said


@pytest.mark.parametrize("make", PICKLES)
def test_a_loader_that_runs_pickles_would_be_noticed(originals, tmp_path, monkeypatch, make):
    """The test above, with the code broken on purpose, must turn red."""
    monkeypatch.setattr(checkpoint_files, "_is_pickle", lambda path: False)

    def load_anything(path):
        if make.startswith("raw"):
            return pickle.loads(path.read_bytes())  # noqa: S301
        # Not by its name, by which PyTorch, too, takes it for safetensors.
        return torch.load(io.BytesIO(path.read_bytes()), weights_only=False)

    monkeypatch.setattr(checkpoint_module, "load_file", load_anything)
    path = shutil.copytree(originals / "whole" / "00000020", tmp_path / "00000020")
    with pytest.raises((AssertionError, pickle.UnpicklingError)):
        require_not_run(path, tmp_path / "MARK", PICKLES[make], *PLACES["tensors"])
    assert (tmp_path / "MARK").exists()


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(begin, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def zip_bomb():
    """Return a small zip, as torch.save writes them, that unpacks to 200 MB."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(200_000_000))
    return file.getvalue()


MALFORMED = {
    "empty": b"",
    "short": b"1234567",
    "header 2^62": (1 << 62).to_bytes(8, "little") + b"{}",
    "header 200 MB": (200_000_000).to_bytes(8, "little") + b"{}",
    "trailing": safetensors({}, b"trailing"),
    "overlap": safetensors({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)),
    "hole": safetensors({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)),
    "shape is not offsets": safetensors({"a": entry(0, 4, (2,))}, bytes(4)),
    "shape 2^62": safetensors({"a": entry(0, 4, (1 << 62,))}, bytes(4)),
    "shape overflows": safetensors({"a": entry(0, 4, (1 << 33, 1 << 33))}, bytes(4)),
    "negative": safetensors({"a": entry(0, 4, (-1,))}, bytes(4)),
    "offsets 2^62": safetensors({"a": entry(1 << 62, (1 << 62) + 4)}, bytes(4)),
    "offsets reversed": safetensors({"a": entry(4, 0)}, bytes(4)),
    "unknown dtype": safetensors({"a": entry(0, 4, dtype="F31")}, bytes(4)),
    "not utf-8": safetensors(b'{"\xff": 1}'),
    "deep": safetensors(b'{"a":' * 100_000),
    "not an object": safetensors(b"[1, 2]"),
    "two of a name": safetensors(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        bytes(8),
    ),
    "metadata of lists": safetensors({"__metadata__": {"format": [1]}, "a": entry(0, 4)}, bytes(4)),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_tensors_are_refused_in_one_line_quickly(originals, tmp_path, kind, case):
    path = shutil.copytree(originals / kind / "00000020", tmp_path / "00000020")
    name = FILES[kind][1]  # a whole file, and the second shard of two
    (path / name).write_bytes(MALFORMED[case])
    listed_again(path)
    assert str(path) in refused_quickly(path)


def test_a_zip_bomb_is_not_unpacked(originals, tmp_path):
    path = shutil.copytree(originals / "whole" / "00000020", tmp_path / "00000020")
    (path / "model.safetensors").write_bytes(zip_bomb())
    listed_again(path)
    assert "refusing to run code" in refused_quickly(path)


@pytest.mark.slow
def test_a_hundred_thousand_tensors_take_their_share_of_time_and_memory(originals, tmp_path):
    path = shutil.copytree(originals / "whole" / "00000020", tmp_path / "00000020")
    many = {f"t{number}": entry(4 * number, 4 * number + 4) for number in range(100_000)}
    (path / "model.safetensors").write_bytes(safetensors(many, bytes(400_000)))
    listed_again(path)
    start, peak = time.monotonic(), peak_bytes()
    assert len(read_checkpoint(path, names=["model"]).tensors["model"]) == 100_000
    assert time.monotonic() - start < 10
    assert peak_bytes() - peak < 300 << 20


def cut_in_two(first=0, second=3, **second_parts):
    """Return what two shards hold of a tensor of 6 rows."""
    weight = torch.arange(42.0).reshape(6, 7)
    parts = {"w": (weight[3:], second)} | second_parts
    return {"w": (weight[:3], first)}, parts


FORGED_SHARDS = {
    "far away": cut_in_two(second=1 << 40),
    "beyond 2^63": cut_in_two(second=(1 << 63) - 2),
    "negative": cut_in_two(second=-3),
    "overlapping": cut_in_two(second=2),
    "the same place": cut_in_two(second=0),
    "a gap": cut_in_two(second=4),
    "not from the beginning": cut_in_two(first=1, second=4),
    "another width": ({"w": (torch.ones(3, 7), 0)}, {"w": (torch.ones(3, 8), 3)}),
    "another rank": ({"w": (torch.ones(3, 7), 0)}, {"w": (torch.ones(3), 3)}),
    "another type": ({"w": (torch.ones(3, 7), 0)}, {"w": (torch.ones(3, 7).double(), 3)}),
    "a scalar twice": (
        {"w": (torch.tensor(1.0), 0)},
        {"w": (torch.tensor(2.0), 0)},
    ),
    "text": cut_in_two(second="3"),
    "a fraction": cut_in_two(second=3.5),
}


@pytest.mark.parametrize("case", FORGED_SHARDS)
def test_shards_that_do_not_make_up_whole_tensors_are_refused_before_memory_is_taken(
    originals, tmp_path, case
):
    path = shutil.copytree(originals / "sharded" / "00000020", tmp_path / "00000020")
    for number, parts in enumerate(FORGED_SHARDS[case], start=1):
        write_shard(path / f"model-shard-0000{number}.safetensors", parts)
    listed_again(path)
    assert str(path) in refused_quickly(path, names=["model"])


def test_a_tensor_of_another_group_does_not_replace_one(originals, tmp_path):
    path = shutil.copytree(originals / "sharded" / "00000020", tmp_path / "00000020")
    write_shard(path / "zzz-shard-00001.safetensors", {"w": (torch.zeros(6, 7), 0)})
    listed_again(path)
    assert "do not make up one tensor" in refused_quickly(path, names=["model"])


@pytest.mark.parametrize("info", ["{", "[]", "{}", '{"w": 1, "b": 1}', '{"w": {}}', "[" * 100_000])
def test_a_shard_that_says_nonsense_about_its_place_is_refused(originals, tmp_path, info):
    path = shutil.copytree(originals / "sharded" / "00000020", tmp_path / "00000020")
    tensors = {"w": torch.ones(3, 7), "b": torch.ones(3)}
    save_file(tensors, path / "model-shard-00002.safetensors", {"DCP_SHARDING_INFO": info})
    listed_again(path)
    assert str(path) in refused_quickly(path)


def test_an_unlisted_file_is_refused_by_name(originals, tmp_path, kind):
    folder = shutil.copytree(originals / kind, tmp_path / "checkpoints")
    newest = folder / "00000020"
    write_shard(newest / "model-shard-00009.safetensors", {"w": (torch.zeros(6, 7), 0)})
    said = []
    assert_holds(CheckpointStore(folder, 1, said.append).load_newest(), 10)
    assert "model-shard-00009.safetensors does not belong to the checkpoint" in said[0]
    (newest / "model-shard-00009.safetensors").rename(newest / "\x1b[2J\n.safetensors")
    with pytest.raises(RunError, match=r"\\x1b\[2J") as caught:
        read_checkpoint(newest)
    assert "\x1b" not in str(caught.value)


def test_other_files_are_no_damage_unless_they_could_be_read_as_tensors(originals, tmp_path, kind):
    newest = shutil.copytree(originals / kind, tmp_path / "checkpoints") / "00000020"
    (newest / ".DS_Store").write_bytes(b"of a file manager")
    (newest / "notes.txt").write_text("the good one")
    (newest / ".ipynb_checkpoints").mkdir()
    assert_holds(read_checkpoint(newest), 20)
    write_shard(newest / ".model.safetensors", {"w": (torch.zeros(6, 7), 0)})
    with pytest.raises(RunError, match="does not belong to the checkpoint"):
        read_checkpoint(newest)


def test_shapes_of_honest_shards_are_those_of_the_tensors(originals):
    found = shapes(originals / "sharded" / "00000020")
    tensors, _ = content(20)
    assert found == {
        key: (tensor.shape, tensor.dtype)
        for group in tensors.values()
        for key, tensor in group.items()
    }


# What is put back into a model.

NARROW = {"kv_lora_rank": 8, "qk_rope_head_dim": 4}
CONFIG = tiny_config("mla", head=4, vocab_size=31, of_attention=NARROW)
WEIGHT = "embed_tokens.weight"


def trained(optimizer):
    """Return a model after one step, its optimizers and what it saves."""
    torch.manual_seed(0)
    model = GPT(CONFIG)
    optimizers = build_optimizers(model, OptimSettings(name=optimizer))
    tokens = torch.randint(31, (2, 8))
    model.loss(tokens, tokens).backward()
    for each in optimizers:
        each.step()
        each.zero_grad()
    tensors = {
        "model": {key: tensor.clone() for key, tensor in model.state_dict().items()},
        "optimizer": {
            key: tensor.clone() for key, tensor in optimizer_tensors(model, optimizers).items()
        },
        "rng": {"cpu": torch.get_rng_state()},
    }
    return model, optimizers, tensors


def put(group, key, change):
    def forge(tensors):
        tensors[group][key] = change(tensors[group][key])

    return group, key, forge


def drop(group, key):
    return group, key, lambda tensors: tensors[group].pop(key)


def with_one(value):
    def change(tensor):
        tensor.view(-1)[3] = value
        return tensor

    return change


MOMENT = "layers.0.mlp.down_proj.weight"
FORGED_TENSORS = {
    "integers": put("model", WEIGHT, lambda tensor: tensor.long()),
    "doubles": put("model", WEIGHT, lambda tensor: tensor.double()),
    "NaN": put("model", WEIGHT, with_one(float("nan"))),
    "infinity": put("model", WEIGHT, with_one(float("-inf"))),
    "shape": put("model", WEIGHT, lambda tensor: tensor[1:].clone()),
    "missing": drop("model", WEIGHT),
    "one too many": ("model", "x", lambda tensors: tensors["model"].update(x=torch.ones(1))),
    "moment's shape": put("optimizer", f"{WEIGHT}/exp_avg", lambda tensor: tensor[1:].clone()),
    "moment's dtype": put("optimizer", f"{WEIGHT}/exp_avg", lambda tensor: tensor.half()),
    "moment's NaN": put("optimizer", f"{WEIGHT}/exp_avg_sq", with_one(float("nan"))),
    "moment missing": drop("optimizer", f"{WEIGHT}/exp_avg_sq"),
    "count missing": drop("optimizer", f"{WEIGHT}/step"),
    "count's shape": put("optimizer", f"{WEIGHT}/step", lambda tensor: torch.ones(2)),
    "moment of nothing": (
        "optimizer",
        "nothing/exp_avg",
        lambda tensors: tensors["optimizer"].update({"nothing/exp_avg": torch.ones(1)}),
    ),
    "moment without a slash": (
        "optimizer",
        "exp_avg",
        lambda tensors: tensors["optimizer"].update({"exp_avg": torch.ones(1)}),
    ),
}


@pytest.mark.parametrize("case", FORGED_TENSORS)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_tensors_that_no_training_leaves_are_refused_by_name_when_put_back(
    tmp_path, kind, optimizer, case
):
    model, optimizers, tensors = trained(optimizer)
    _, name, forge = FORGED_TENSORS[case]
    forge(tensors)
    if kind == "sharded" and case == "moment without a slash":
        pytest.skip("its name would be one of the random states, which others read")
    path = write_forged(tmp_path, kind, tensors)
    run = RunCheckpoints(
        CheckpointStore(tmp_path / "c", 1),
        alone("cpu"),
        model,
        optimizers,
        sharded=kind == "sharded",
    )
    with (
        pytest.raises(RunError, match=rf"\b{name}\b") as caught,
        same_version(path),
    ):
        run.put_back(read_checkpoint(path, names=["rng"] if kind == "sharded" else None))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def write_forged(tmp_path, kind, tensors):
    store = CheckpointStore(tmp_path / "c", 1)
    if kind == "whole":
        return store.save(1, tensors, {})
    rest = {name: tensors[name] for name in ("model", "optimizer")}
    return store.save(1, {"rng": tensors["rng"]}, {}, TwoRanks(rest))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_training_leaves_is_put_back(tmp_path, kind, optimizer):
    _, _, tensors = trained(optimizer)
    path = write_forged(tmp_path, kind, tensors)
    torch.manual_seed(7)
    other = GPT(CONFIG)
    others = build_optimizers(other, OptimSettings(name=optimizer))
    run = RunCheckpoints(
        CheckpointStore(tmp_path / "c", 1),
        alone("cpu"),
        other,
        others,
        sharded=kind == "sharded",
    )
    run.put_back(read_checkpoint(path, names=["rng"] if kind == "sharded" else None))
    assert all(
        torch.equal(tensor, tensors["model"][key]) for key, tensor in other.state_dict().items()
    )
    found = optimizer_tensors(other, others)
    assert found.keys() == tensors["optimizer"].keys()
    assert all(torch.equal(tensor, tensors["optimizer"][key]) for key, tensor in found.items())
    assert torch.equal(torch.get_rng_state(), tensors["rng"]["cpu"])


STATE = {
    "progress": {"step": 20, "train_seconds": 1.5, "best_nll": None},
    "seed": 3,
    "model": {},
    "data": {"folder": "/data", "fingerprint": "f" * 64, "tokenizer_sha256": "a"},
    "numerics": {"dtype": "float32"},
}


@dataclasses.dataclass
class Same:
    """The part of a recipe that STATE has."""

    model: GPTConfig = dataclasses.field(default_factory=GPTConfig)
    seed: int = 3


def resumed(state, fingerprint="f" * 64):
    provenance = Provenance({"dtype": "float32"}, {}, None)
    put_back = types.SimpleNamespace(put_back=lambda checkpoint: None)
    prepared = types.SimpleNamespace(fingerprint=fingerprint, folder=Path("/data"))
    checkpoint = Checkpoint(20, Path("/runs/run/checkpoints/00000020"), {}, state)
    with same_version(checkpoint.path):
        identity = Identity(Same(), prepared, provenance)
        return resume(checkpoint, identity, put_back, 1.0, lambda line: None)


def test_an_honest_state_is_resumed():
    progress = resumed(STATE)
    assert progress == Progress(step=20, train_seconds=1.5, possible_flops=1.5, resumes=1)


@pytest.mark.parametrize(
    ("key", "kind", "says"),
    [
        ("data.fingerprint", int, r"expected int, got str at \$\.data\.fingerprint"),
        ("data.name", str, r"missing required field name at \$\.data"),
        ("nothing.at.all", str, r"missing required field nothing at \$"),
        ("seed.x", str, r"expected object, got int at \$\.seed"),
    ],
)
def test_one_value_of_a_state_is_of_its_type(key, kind, says):
    checkpoint = Checkpoint(20, Path("/c"), {}, STATE)
    assert checkpoint.value("data.fingerprint", str) == "f" * 64
    assert checkpoint.value("model", dict) == {}
    with pytest.raises(RunError, match=rf"/c/state.json is damaged: .*{says}; it may be another"):
        checkpoint.value(key, kind)


def test_other_data_is_still_the_trainings_own_error():
    with pytest.raises(TrainingError, match="give the run another run_name"):
        resumed(STATE, fingerprint="e" * 64)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data", "x", r"expected object, got str at \$\.data"),
        ("data", {}, r"missing required field folder at \$\.data"),
        ("data", STATE["data"] | {"fingerprint": 5}, r"expected str, got int at \$\.data\.finger"),
        ("progress", None, r"expected object, got null at \$\.progress"),
        ("progress", {"step": 19}, "its state is that of step 19"),
        ("progress", {}, "its state is that of step 0"),
        ("progress", {"step": "20"}, r"expected int, got str at \$\.progress\.step"),
        ("progress", {"step": True}, r"expected int, got bool at \$\.progress\.step"),
        ("progress", {"step": 20, "best_nll": []}, r"got array at \$\.progress\.best_nll"),
        ("progress", {"step": 20, "steps": 1}, r"unknown field steps at \$\.progress"),
        ("numerics", [], r"expected object, got array at \$\.numerics"),
    ],
)
def test_a_state_of_other_keys_and_types_is_one_line_that_names_the_key(key, value, message):
    with pytest.raises(RunError, match=message) as caught:
        resumed(STATE | {key: value})
    assert "00000020" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [KeyError("x"), TypeError("x"), AttributeError("x"), ValueError("x"), IndexError("x")]
)
def test_python_s_own_errors_are_reported_as_another_version(error):
    with pytest.raises(RunError, match="another version"), same_version(Path("c")):
        raise error
