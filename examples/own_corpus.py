"""From a folder of text to a perplexity: prepare it, train a tiny model for some steps, score it.

From the checkout: python -m examples.own_corpus FOLDER (of .txt, .jsonl, .csv or parquet files).
With checkpoints and reports: python train_model.py data=local data.path=FOLDER
"""

import sys
import tempfile
from pathlib import Path

import torch

from data.batches import TrainingWindows
from data.errors import DataError
from data.pipeline import prepare
from measuring.perplexity import score
from modeling.config import GPTConfig
from modeling.gpt import GPT
from settings.data import DataSettings, TokenizerSettings

CONTEXT, BATCH, STEPS = 64, 8, 30
SIZES = {"hidden_size": 64, "num_attention_heads": 4}
MHA = {"name": "mha", **SIZES, "num_key_value_heads": 4, "v_head_dim": 16}
MHA |= {"head_dim": 16, "qk_rope_head_dim": 16}


def train(prepared):
    """Train a tiny model with multi-head attention by AdamW."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=prepared.vocab_size, attention=MHA, **SIZES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    windows = TrainingWindows(prepared.training_streams(), CONTEXT, 0)
    for step in range(STEPS):
        loss = model.loss(*windows.batch(step * BATCH, BATCH))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def main(folder, prepared_dir):
    """Prepare a folder and train on it; a file with "validation" in its name is held out."""
    data = DataSettings(
        name="mine", source="local", path=str(folder), prepared_dir=str(prepared_dir)
    )
    prepared = prepare(data, TokenizerSettings(name="bpe", kind="bpe", vocab_size=300), print)
    result = score(train(prepared), prepared.stream("validation"), CONTEXT, CONTEXT)
    unigrams = prepared.baselines["unigram_perplexity"]
    print(f"validation perplexity {result.perplexity:.1f}, of counted tokens alone {unigrams:.1f}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m examples.own_corpus FOLDER")
    with tempfile.TemporaryDirectory() as kept_until_the_end:
        try:
            main(Path(sys.argv[1]), Path(kept_until_the_end))
        except DataError as error:
            raise SystemExit(str(error)) from None
