import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from training.run_log import RunLog
from training.summary import describe_run

SUMMARY = {
    "run_name": "mla-nano-python_stdlib-seed0",
    "attention": "mla",
    "num_parameters": 2548800,
    "tokens_trained": 1501184,
    "overfit_batches": None,
    "train_loss": 4.1637,
    "validation_perplexity": 60.208,
    "validation_bits_per_byte": 1.6694,
    "kv_cache_bytes_at_context": 442368,
    "kv_cache_context": 256,
    "kv_cache_curve": {"fixed": 0, "slope": 1728, "plateau": 0, "slope_beyond": 1728},
    "cache_ratio_to_mha": 0.28125,
    "tokens_per_second": 4022.4,
    "mfu": 0.4149,
    "peak_memory_bytes": 700 * 2**20,
    "wall_seconds": 373.4,
}
BASELINES = {"unigram_perplexity": 736.294, "bigram_perplexity": 90.888}


def described(*arguments, **changes):
    return describe_run(
        SUMMARY | changes, "python_stdlib", BASELINES, Path("runs") / "mla-nano", arguments
    )


def test_a_run_in_words():
    assert described() == (
        "mla-nano-python_stdlib-seed0: mla with 2,548,800 parameters, trained on 1,501,184 tokens "
        "of python_stdlib in 6 min 13 s (4,022 tokens/s, MFU 0.41, peak memory 700 MiB)\n"
        "validation perplexity 60.21 (unigram model 736.29, bigram model 90.89), 1.669 bits per "
        "byte: better than counting pairs of tokens\n"
        "KV cache 442,368 bytes at 256 tokens, 0.281 of MHA's (1,728 a token)\n"
        "files: runs/mla-nano\n"
        "next: python eval_model.py or python generate_text.py run=mla-nano-python_stdlib-seed0"
    )


@pytest.mark.parametrize(
    ("curve", "growth"),
    [
        (None, ""),
        ((0, 288, 8, 0), " (288 a token up to 8 tokens, then 0)"),
        ((512, 72, 8, 36), " (512 bytes and 72 a token up to 8 tokens, then 36)"),
    ],
)
def test_how_the_cache_grows(curve, growth):
    parts = ("fixed", "slope", "plateau", "slope_beyond")
    text = described(kv_cache_curve=curve and dict(zip(parts, curve, strict=True)))
    assert f"of MHA's{growth}\n" in text


@pytest.mark.parametrize(
    ("perplexity", "standing"),
    [
        (90.9, "better than counting tokens, not yet than counting pairs; train it longer"),
        (736.3, "not yet better than counting tokens; train it longer"),
    ],
)
def test_where_the_loss_stands(perplexity, standing):
    assert f"bits per byte: {standing}\n" in described(validation_perplexity=perplexity)


def test_an_overfit_run_says_so():
    assert "overfit" not in described()
    text = described(overfit_batches=2, train_loss=0.0123)
    assert "2 step(s)' sequences again and again (trainer.overfit_batches)" in text
    assert "training loss 0.012 nats per token" in text
    assert "train it longer" not in text


def test_the_next_commands_find_the_run():
    text = described("runs_dir=/my runs")
    assert re.search(
        r"next: python eval_model.py 'runs_dir=/my runs' or python generate_text.py "
        r"run=mla-nano-python_stdlib-seed0 'runs_dir=/my runs'$",
        text,
    )


def test_wandb_gets_the_cache_at_a_context_and_what_a_step_reads(tmp_path):
    sent = {}
    mirror = SimpleNamespace(log=lambda metrics, tokens: sent.update(metrics), summary=sent.update)
    run = SimpleNamespace(path=tmp_path, metrics_path=tmp_path / "metrics.jsonl")
    values = {
        "validation_nll": 3.77,
        "kv_cache_bytes_per_token": 0,
        "kv_cache_bytes_measured": 864.0,
    }
    RunLog(run, mirror, print, is_main=False).mirror_summary(
        SUMMARY | values | {"kv_cache_bytes_read_per_step": 884736}
    )
    assert sent["kv_cache/bytes_at_context"] == 442368
    assert sent["kv_cache/bytes_read_per_step"] == 884736
    assert sent["kv_cache/bytes_per_token"] == 0
    assert sent["kv_cache_curve"] == SUMMARY["kv_cache_curve"]
