import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from files import disk
from files.errors import RunError
from tracking import checkpoint as checkpoint_module
from tracking.checkpoint import read_checkpoint, same_version
from tracking.checkpoints import CheckpointStore
from tracking.parts import write_parts

ROOT = Path(__file__).parents[2]
FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


def content(step):
    """Return tensors of several dtypes and a state, different for each step."""
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(5, 7, generator=generator)
    tensors = {
        "model": {"w": weight, "half": weight[0].bfloat16(), "scalar": torch.tensor(float("nan"))},
        "optimizer": {"exp_avg": -weight, "step": torch.tensor(step), "none": torch.zeros(0, 3)},
    }
    return tensors, {"tokens": step * 1000, "loss": 0.1, "config": {"a": [1, None, "ü"]}}


@pytest.fixture
def said():
    return []


@pytest.fixture
def store(tmp_path, said):
    return CheckpointStore(tmp_path / "checkpoints", keep_last=2, say=said.append)


def names_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


def assert_holds(checkpoint, step):
    tensors, state = content(step)
    assert checkpoint.step == step
    assert checkpoint.state == state
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, group in tensors.items():
        assert checkpoint.tensors[name].keys() == group.keys()
        for key, tensor in group.items():
            torch.testing.assert_close(
                checkpoint.tensors[name][key], tensor, rtol=0, atol=0, equal_nan=True
            )


def test_save_and_load_round_trip_bit_for_bit(store, tmp_path):
    assert store.load_newest() is None
    assert store.steps() == []
    path = store.save(20, *content(20))
    assert path == tmp_path / "checkpoints" / "00000020"
    assert names_in(path) == sorted(FILES)
    assert_holds(store.load_newest(), 20)
    assert_holds(store.load(20), 20)
    assert read_checkpoint(path, names=[]).state == content(20)[1]
    assert read_checkpoint(path, names=["model"]).tensors.keys() == {"model"}
    # All files are readable by whom the user's umask allows; safetensors alone would say 0600.
    assert len({(path / name).stat().st_mode for name in FILES}) == 1


def test_old_ones_are_pruned_but_the_best_one_survives_a_restart(store, tmp_path):
    for step in (10, 20, 30, 40):
        store.save(step, *content(step), best=10)
    assert store.steps() == [10, 30, 40]
    restarted = CheckpointStore(tmp_path / "checkpoints", keep_last=2)
    restarted.save(50, *content(50), best=10)
    assert restarted.steps() == [10, 40, 50]
    restarted.save(60, *content(60), best=60)
    assert restarted.steps() == [50, 60]


def test_saving_after_resuming_an_older_one_removes_the_later_ones(store):
    for step in (10, 20):
        store.save(step, *content(step))
    store.load(10)
    store.save(15, *content(15))
    assert store.steps() == [10, 15]


def test_saving_the_same_step_again_replaces_it(store):
    store.save(10, *content(10))
    tensors, state = content(10)
    store.save(10, tensors, {**state, "tokens": 7})
    assert store.load_newest().state["tokens"] == 7
    assert store.steps() == [10]


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"rng": {"np": np.float64(1)}}, r"state\.rng\.np is a numpy\.float64"),
        ({"path": Path("x")}, r"state\.path is a pathlib\."),
        ({"a": [0, {"b": (1,)}]}, r"state\.a\[1\]\.b is a builtins\.tuple"),
        ({"t": torch.zeros(1)}, r"state\.t is a torch\.Tensor"),
        ({"loss": float("inf")}, r"state\.loss is inf"),
        ({3: 1}, "state has the key 3"),
    ],
)
def test_state_that_json_would_change_is_refused_before_anything_is_written(
    store, tmp_path, state, where
):
    with pytest.raises(TypeError, match=where):
        store.save(1, {}, state)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "/abs", "a/b", "", "A", ".a", "a\n"])
def test_group_name_that_could_leave_the_folder_is_refused(store, tmp_path, name):
    with pytest.raises(ValueError, match="must be lower case"):
        store.save(1, {name: {}}, {})
    assert list(tmp_path.iterdir()) == []


def test_tied_or_strided_tensors_are_refused_and_leave_nothing(store, tmp_path):
    store.save(1, *content(1))
    tied = torch.zeros(3, 4)
    with pytest.raises(RuntimeError, match="share memory"):
        store.save(2, {"model": {"a": tied, "b": tied}}, {})
    with pytest.raises(ValueError, match="non contiguous"):
        store.save(2, {"model": {"a": tied.t()}}, {})
    assert names_in(tmp_path / "checkpoints") == ["00000001"]


def test_read_only_store_leaves_a_running_save_alone_and_refuses_to_save(store, tmp_path):
    store.save(1, *content(1))
    (tmp_path / "checkpoints" / ".tmp-2").mkdir()
    reader = CheckpointStore(tmp_path / "checkpoints", keep_last=1, read_only=True)
    assert_holds(reader.load_newest(), 1)
    assert (tmp_path / "checkpoints" / ".tmp-2").exists()
    with pytest.raises(RunError, match="opened for reading"):
        reader.save(3, *content(3))
    store.load_newest()
    assert not (tmp_path / "checkpoints" / ".tmp-2").exists()


def test_no_flipped_bit_of_a_manifest_goes_unnoticed(store):
    path = store.save(20, *content(20)) / "manifest.json"
    good = path.read_bytes()
    for index in range(len(good)):
        data = bytearray(good)
        data[index] ^= 1 << (index % 8)
        path.write_bytes(data)
        with pytest.raises(RunError):
            store.load(20)


def test_all_damaged_is_an_error_that_names_each(store):
    for step in (10, 20):
        (store.save(step, *content(step)) / "state.json").unlink()
    with pytest.raises(RunError, match=r"no checkpoint in .*00000020.*missing.*00000010.*missing"):
        store.load_newest()


def edit_manifest(path, **changes):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, r"manifest\.json was written by another version"),
        ({"format_version": True}, r"expected int, got bool at \$\.format_version"),
        ({"step": 21}, "it says step 21, its folder 00000020"),
        ({"files": []}, r"expected object, got array at \$\.files"),
        (
            {"files": {"../../x": {"size": 1, "sha256": "0" * 64}}},
            r"matching regex .* at key in \$\.files",
        ),
        (
            {"files": {"/etc/x": {"size": 1, "sha256": "0" * 64}}},
            r"matching regex .* at key in \$\.files",
        ),
        (
            {"files": {"a\n": {"size": 1, "sha256": "0" * 64}}},
            r"matching regex .* at key in \$\.files",
        ),
        (
            {"files": {"a": {"size": -1.5, "sha256": "0" * 64}}},
            r"expected int, got float at \$\.files\.a\.size",
        ),
        ({"files": {"a": {"size": 1}}}, r"missing required field sha256 at \$\.files\.a"),
        ({"files": {}}, r"model\.safetensors does not belong to the checkpoint, or manifest\.json"),
        ({"extra": 1}, "unknown field extra"),
        ({"step": -1}, r"expected int >= 0 at \$\.step"),
    ],
)
def test_edited_manifest_is_refused_in_one_line(store, changes, message):
    path = store.save(20, *content(20))
    edit_manifest(path, **changes)
    with pytest.raises(RunError, match=message) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_checkpoint_that_is_a_link_is_refused(store, tmp_path):
    path = store.save(20, *content(20))
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(RunError, match="is not a folder"):
        read_checkpoint(path)
    store.save(20, *content(20))
    assert not path.is_symlink()
    assert (tmp_path / "outside" / "model.safetensors").exists()


def test_first_save_is_verified_and_a_difference_stops_it(store, tmp_path, monkeypatch):
    real = checkpoint_module.save_file

    def save_other(group, path):
        real({key: tensor + 1 for key, tensor in group.items()}, path)

    monkeypatch.setattr(checkpoint_module, "save_file", save_other)
    with pytest.raises(RunError, match=r"model\.safetensors does not hold what was written"):
        store.save(1, *content(1))
    assert names_in(tmp_path / "checkpoints") == []


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_files_are_synced_then_the_folder_then_renamed_and_old_ones_deleted_last(
    store, tmp_path, monkeypatch, kind
):
    for step in (10, 20):
        store.save(step, *content(step))
    calls = []

    def record(name, describe):
        real = getattr(os, name)

        def wrapper(*args, **kwargs):
            calls.append((name, *describe(*args)))
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, wrapper)

    def name_of(file):
        number = file if isinstance(file, int) else file.fileno()
        return (Path(f"/proc/self/fd/{number}").readlink().name,)

    record("fsync", name_of)
    record("rename", lambda a, b: (Path(a).name, Path(b).name))
    record("replace", lambda a, b: (Path(b).name,))
    record("unlink", lambda path: (Path(path).name,))
    if kind == "sharded":
        save_sharded(store, 30)
    else:
        store.save(30, *content(30))
    monkeypatch.undo()
    publish = calls.index(("rename", ".tmp-30", "00000030"))
    before, after = calls[:publish], calls[publish + 1 :]
    last = {call[1:]: index for index, call in enumerate(before) if call[0] == "fsync"}
    order = [index for index, call in enumerate(before) if call == ("replace", "manifest.json")]
    part = "-shard-00001" if kind == "sharded" else ""
    for name in ("model", "optimizer"):
        assert last[(f"{name}{part}.safetensors",)] < order[0]
    assert before.index(("replace", "state.json")) < order[0]
    assert before[-1] == ("fsync", ".tmp-30")
    assert after[0] == ("fsync", "checkpoints")
    assert after[1] == ("rename", "00000010", ".tmp-removed-10")
    assert {call[0] for call in after[2:]} == {"unlink"}
    # But that the shards got their names, nothing was moved or removed.
    assert not any(call[0] == "unlink" for call in before)
    assert all("-shard-" in call[2] for call in before if call[0] == "rename")


MUTATING = ("mkdir", "rename", "replace", "fsync", "unlink", "rmdir", "chmod")


def killed_before(operation, action):
    """Run `action` in a child that is killed just before its n-th operation on the file system.

    Before each sync of a file there is one more: to be killed when half of it was written.

    Returns:
        Whether the child was killed, that is, whether there was such an operation.
    """
    pid = os.fork()
    if pid == 0:
        count = 0

        def die_at_the_chosen(prepare=lambda: None):
            nonlocal count
            count += 1
            if count == operation:
                prepare()
                os.kill(os.getpid(), signal.SIGKILL)

        def counted(real):
            def wrapper(*args, **kwargs):
                die_at_the_chosen()
                return real(*args, **kwargs)

            return wrapper

        def halve(descriptor):
            os.truncate(f"/proc/self/fd/{descriptor}", os.fstat(descriptor).st_size // 2)

        try:
            for name in MUTATING:
                setattr(os, name, counted(getattr(os, name)))
            counted_sync = os.fsync

            def fsync(descriptor):
                number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
                if stat.S_ISREG(os.fstat(number).st_mode):
                    die_at_the_chosen(lambda: halve(number))
                counted_sync(number)

            os.fsync = fsync
            checkpoint_module.save_file = counted(checkpoint_module.save_file)
            action()
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        return False
    assert os.WTERMSIG(status) == signal.SIGKILL
    return True


class OneRank:
    """Has one process write all shards."""

    def __init__(self, groups):
        self.groups = groups

    def write(self, folder):
        write_parts(folder, self.groups)


def save_sharded(store, step, **options):
    tensors, state = content(step)
    return store.save(step, {}, state, OneRank(tensors), **options)


def save_whole(store, step):
    newest = store.load(step)
    store.save(step, newest.tensors, newest.state)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["next", "again", "later-exists", "best", "sharded", "sharded-best", "made-whole"]
)
def test_kill_9_between_any_two_operations_leaves_the_newest_complete_one(tmp_path, kind):
    keep_last = 1
    save_sharded(CheckpointStore(tmp_path / "warm", 1), 1)  # imports, once for all children
    for operation in range(1, 100):
        folder = tmp_path / str(operation)

        def store(folder=folder):
            return CheckpointStore(folder, keep_last, say=lambda line: pytest.fail(line))

        before = store()
        if kind == "later-exists":
            before.save(30, *content(30))
            # A later one that an older one was resumed before, as after load(10).
            (folder / "00000030").rename(tmp_path / "aside")
            before.save(10, *content(10))
            (tmp_path / "aside").rename(folder / "00000030")
        else:
            before.save(10, *content(10))
            if kind == "made-whole":
                save_sharded(before, 20)
            else:
                before.save(20, *content(20), best=10 if kind.endswith("best") else None)
        action, allowed = {
            "next": (lambda: store().save(30, *content(30)), {20, 30}),
            "again": (lambda: store().save(20, *content(20)), {20}),
            "later-exists": (lambda: store().save(15, *content(15)), {15, 30}),
            "best": (lambda: store().save(30, *content(30), best=10), {20, 30}),
            "sharded": (lambda: save_sharded(store(), 30), {20, 30}),
            "sharded-best": (lambda: save_sharded(store(), 30, best=10), {20, 30}),
            "made-whole": (lambda: save_whole(store(), 20), {20}),
        }[kind]
        killed = killed_before(operation, action)
        after = store()
        found = after.load_newest()
        assert found.step in allowed
        assert_holds(found, found.step)
        left = names_in(folder)
        assert [name for name in left if name.startswith(".")] == []
        if not killed:
            break
        after.save(40, *content(40), best=10 if kind.endswith("best") else None)
        assert_holds(after.load_newest(), 40)
        if kind.endswith("best"):
            assert_holds(after.load(10), 10)
    assert not killed
    assert operation > 20


def test_too_little_space_is_refused_before_writing(store, tmp_path, monkeypatch):
    store.save(10, *content(10))
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 1000)
    with pytest.raises(
        RunError, match=r"not enough disk space in .*: 1\.05 MB needed, 1\.00 kB free"
    ):
        store.save(20, *content(20))
    assert names_in(tmp_path / "checkpoints") == ["00000010"]
    assert_holds(store.load_newest(), 10)


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from tracking.checkpoints import CheckpointStore
from files.errors import RunError
store = CheckpointStore(Path(sys.argv[1]), keep_last=2)
store.save(10, {"model": {"w": torch.ones(10)}}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
for tensors, state in (({"model": {"w": torch.ones(500_000)}}, {}), ({}, {"x": "x" * (2 << 20)})):
    try:
        store.save(20, tensors, state)
    except RunError as error:
        print(error)
    print(sorted(entry.name for entry in Path(sys.argv[1]).iterdir()), store.load_newest().step)
"""


@pytest.mark.slow
def test_file_size_limit_names_path_and_sizes_and_keeps_the_earlier_one(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "c")],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stdout + done.stderr
    for line in (lines[0], lines[2]):
        assert str(tmp_path / "c") in line
        assert "File too large" in line
        assert re.search(r"[\d.]+ MB needed, [\d.]+ [kMGT]?B free", line)
    assert lines[1] == lines[3] == "['00000010'] 10"


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_write_error_is_wrapped_and_leaves_nothing(store, tmp_path, monkeypatch, call):
    store.save(10, *content(10))

    def fail(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(RunError, match="Input/output error"):
        store.save(20, *content(20))
    monkeypatch.undo()
    assert names_in(tmp_path / "checkpoints") == ["00000010"]


def test_keep_last_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="keep_last"):
        CheckpointStore(tmp_path, keep_last=0)


def test_limits_of_this_process_are_untouched():
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer"),
    ],
)
def test_what_the_machine_lacks_is_not_blamed_on_the_checkpoint(error, tmp_path):
    with pytest.raises(type(error)) as raised, same_version(tmp_path):
        raise error
    assert raised.value is error
    with pytest.raises(RunError, match="another version"), same_version(tmp_path):
        raise RuntimeError("Error(s) in loading state_dict for GPT")
