"""Numbers that a change of structure must leave as they are, for each of the five attentions.

This file wrote `golden.json` beside it. With the PyTorch and the processor of the record the
numbers are equal bit for bit; elsewhere products are summed in another order. A change that is
meant to move them writes the record again and says so in the changelog:

    KVLAB_WRITE_GOLDEN=1 python -m pytest -n 0 tests/training/test_golden.py
"""

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest
import torch

from modeling.accounting import kv_cache_bytes_per_token
from modeling.config import GPTConfig
from modeling.gpt import GPT
from tests.modeling.tiny import decode_paths
from tracking.metrics import read_metrics

RECORD = Path(__file__).with_name("golden.json")
HEADS = {"hidden_size": 64, "num_attention_heads": 8, "v_head_dim": 8}
GROUPED = HEADS | {"head_dim": 8, "qk_rope_head_dim": 8}
LATENT = HEADS | {"kv_lora_rank": 32, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4}
FIVE = {
    "mha": GROUPED | {"num_key_value_heads": 8},
    "mqa": GROUPED | {"num_key_value_heads": 1},
    "gqa": GROUPED | {"num_key_value_heads": 2},
    "mla": LATENT,
    "mla_no_rope": LATENT | {"qk_rope_head_dim": 0},
}
STEPS, BATCH, CONTEXT = 20, 4, 32


def machine() -> str:
    """What decides the last bits: PyTorch, the instructions it uses, and the processor."""
    version, capability = torch.__version__.split("+")[0], torch.backends.cpu.get_cpu_capability()
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = dict.fromkeys(re.findall(r"^(?:vendor_id|cpu family|model)\s*: (.*)$", told, re.M))
    return f"torch {version}, {capability}, {' '.join(cpu)}"


def model_config(name: str, vocab_size: int) -> GPTConfig:
    return GPTConfig(
        vocab_size=vocab_size,
        max_position_embeddings=CONTEXT,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=8,
        intermediate_size=96,
        position_embedding="learned" if name == "mla_no_rope" else "none",
        attention=FIVE[name] | {"name": name},
    )


def losses_of_training(name, prepared, recipe, run_training) -> dict[str, list[float]]:
    """The losses of 20 steps, and what the trained model scores."""
    model = model_config(name, prepared.vocab_size)
    folder = run_training(
        dataclasses.replace(recipe, model=model),
        f"golden-{name}",
        max_tokens=STEPS * BATCH * CONTEXT,
        micro_batch_size=BATCH,
        gradient_accumulation_steps=1,
        eval_every_steps=STEPS,
        num_threads=1,
    )
    records = read_metrics(folder.path / "metrics.jsonl")
    return {key: [r[key] for r in records if key in r] for key in ("train/loss", "validation/nll")}


@torch.no_grad()
def logits_through_the_cache(name: str, path: str) -> list[float]:
    """The last logits of a prompt that is fed in a chunk of 17 tokens and then one by one."""
    config = model_config(name, vocab_size=50)
    config.attention["decode_path"] = path
    torch.manual_seed(3)
    model = GPT(config).eval()
    tokens = torch.randint(50, (2, CONTEXT), generator=torch.Generator().manual_seed(4))
    cache = model.new_cache(2, CONTEXT)
    logits = model(tokens[:, :17], cache=cache)[:, -1]
    for position in range(17, CONTEXT):
        logits = model(tokens[:, position : position + 1], cache=cache)[:, -1]
    return [float(value) for value in logits[:, ::7].flatten()]


@pytest.mark.parametrize("name", FIVE)
def test_losses_logits_and_bytes_are_those_of_the_record(name, prepared, recipe, run_training):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        numbers = losses_of_training(name, prepared, recipe, run_training)
        for path in decode_paths(FIVE[name] | {"name": name}):
            numbers[f"logits, {path}"] = logits_through_the_cache(name, path)
    finally:
        torch.set_num_threads(threads)
    sizes = [
        kv_cache_bytes_per_token(model_config(name, 50), dtype)
        for dtype in (torch.float32, torch.bfloat16, torch.int8)
    ]
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if os.environ.get("KVLAB_WRITE_GOLDEN"):
        entry = {"machine": machine(), "bytes per token": sizes, "numbers": numbers}
        RECORD.write_text(json.dumps(record | {name: entry}, indent=1) + "\n")
        return
    wanted = record[name]
    assert sizes == wanted["bytes per token"]
    assert numbers.keys() == wanted["numbers"].keys()
    for key, values in wanted["numbers"].items():
        if wanted["machine"] == machine():
            assert numbers[key] == values, key
        else:
            assert numbers[key] == pytest.approx(values, rel=2e-3, abs=2e-5), key
