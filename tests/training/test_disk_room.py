"""Room for checkpoints is looked at before the first step, and sizes are in fitting units."""

import re
import shutil

import pytest

from files.errors import WriteFailed
from files.sizes import in_units
from tracking import checkpoints
from tracking.checkpoints import CheckpointStore


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 4),  # the last two, the best, and the one that is being written
        ({"keep_last": 1}, 3),
        ({"eval_every_steps": 12}, 3),  # none is validated and saved but at the end
        ({"checkpoint_every_steps": 12}, 1),
        ({"checkpoint_every_steps": 11, "eval_every_steps": 11}, 2),
    ],
    ids=str,
)
def test_checkpoints_that_will_not_fit_are_refused_before_the_first_step(
    recipe, run_training, folder_of, monkeypatch, changes, count
):
    changes = {"checkpoint_every_steps": 3, "eval_every_steps": 3} | changes
    sizes, written = [], []
    monkeypatch.setattr(checkpoints, "free_bytes", lambda folder: 10_000)
    with pytest.raises(WriteFailed) as caught:
        run_training(recipe, "full", **changes)
    assert not folder_of("full").metrics_path.exists()
    found = re.fullmatch(
        r"not enough disk space in .*full: ([\d.]+) MB needed for (\d) checkpoints? of ([\d.]+) MB,"
        r" 10\.0 kB free; free some space, (set trainer\.keep_last=1 \(now 2\), )?or set runs_dir "
        r"to a folder on another disk",
        str(caught.value),
    )
    assert int(found[2]) == count
    assert bool(found[4]) == ("keep_last" not in changes)
    assert float(found[1]) == pytest.approx(count * float(found[3]), abs=0.01)
    # What is asked for is what there is at most, and a little for names and rounding.
    save = CheckpointStore._publish

    def publish(store, temporary, final):
        folders = [path for path in temporary.parent.iterdir() if path.is_dir()]
        sizes.append(sum(path.stat().st_size for path in temporary.iterdir()))
        written.append(len(folders))
        save(store, temporary, final)

    monkeypatch.setattr(CheckpointStore, "_publish", publish)
    monkeypatch.setattr(checkpoints, "free_bytes", lambda folder: float(found[1]) * 1e6 + 5000)
    run_training(recipe, "fits", **changes)
    assert max(written) in (count, count - 1)  # the best may be among the last
    assert max(sizes) < float(found[3]) * 1e6 < max(sizes) + 1.1 * 2**20


def test_a_resumed_run_needs_room_for_what_is_still_to_be_saved(
    recipe, run_training, folder_of, monkeypatch
):
    run_training(recipe, "x", checkpoint_every_steps=3)
    shutil.rmtree(folder_of("x").checkpoints_path / "00000012")
    folder_of("x").summary_path.unlink()
    monkeypatch.setattr(checkpoints, "free_bytes", lambda folder: 10_000)
    with pytest.raises(WriteFailed, match="needed for 1 checkpoint of"):
        run_training(recipe, "x", checkpoint_every_steps=3)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        *((0, "0 B"), (999, "999 B"), (999.6, "1.00 kB"), (1000, "1.00 kB"), (9_999, "10.0 kB")),
        *((38_240_000, "38.2 MB"), (999_600, "1.00 MB"), (99_960, "100 kB"), (2e11, "200 GB")),
        *((1.5e12, "1.50 TB"), (5e15, "5,000 TB")),
    ],
)
def test_sizes_are_in_units_that_fit_them(num_bytes, text):
    assert in_units(num_bytes) == text
