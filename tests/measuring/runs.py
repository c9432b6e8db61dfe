"""Runs on disk that were never trained, for what reads them."""

import torch

from modeling.config import GPTConfig
from modeling.gpt import GPT
from tests.tiny_models import model_fields
from tracking.checkpoints import CheckpointStore
from tracking.run_folder import RunFolder

CONFIG = model_fields("mqa", vocab_size=300, max_position_embeddings=32)

SUMMARY = {
    "finished": True,
    "tokens_trained": 2 * 32,
    "tokens_per_second": 1.5,
    "validation_nll": 5.7,
    "validation_perplexity": 298.9,
}


def quiet(line):
    del line


def write_run(runs, prepared, name="run", finished=True, step=1, **changes):
    """Write a run with an untrained model; changes go into its checkpoint's state."""
    run = RunFolder(runs, name)
    run.create()
    torch.manual_seed(0)
    model = GPT(GPTConfig(**CONFIG))
    state = {
        "seed": 3,
        "model": CONFIG,
        "data": {
            "folder": str(prepared.folder),
            "fingerprint": prepared.fingerprint,
            "tokenizer_sha256": prepared.tokenizer_sha256,
        },
    }
    store = CheckpointStore(run.checkpoints_path, 1, quiet)
    store.save(step, {"model": model.state_dict()}, state | changes)
    run.write_config("trainer:\n  micro_batch_size: 2\n  gradient_accumulation_steps: 1\n")
    if finished:
        run.write_summary(SUMMARY)
    return run
