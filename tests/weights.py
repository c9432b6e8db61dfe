"""What a run's newest checkpoint holds, and whether two of them are equal."""

import torch

from tracking.checkpoints import CheckpointStore


class Killed(Exception):
    """What ends a training in a test as a kill would: nothing is saved."""


def final_tensors(folder):
    """Return every tensor as <group>/<name>, of a RunFolder or the path of one."""
    checkpoints = getattr(folder, "checkpoints_path", None) or folder / "checkpoints"
    checkpoint = CheckpointStore(checkpoints, 1, read_only=True).load_newest()
    return {f"{g}/{k}": t for g, tensors in checkpoint.tensors.items() for k, t in tensors.items()}


def assert_same_bits(one, other):
    """Compare what `final_tensors` returned."""
    assert one.keys() == other.keys()
    different = [key for key in one if not torch.equal(one[key], other[key])]
    assert not different
