"""Prepare, check or look at a corpus: python -m data.prepare [verify | inspect] data=wikitext2."""

import sys
from pathlib import Path

# As `python data/prepare.py`, only this folder is searched for modules.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import ensure_environment

ensure_environment.ensure()

from typing import TYPE_CHECKING  # noqa: E402

import launch.run  # noqa: E402
from launch import schemas  # noqa: E402
from launch.errors import ConfigError  # noqa: E402
from launch.terminal import say  # noqa: E402

if TYPE_CHECKING:
    from data.prepared import PreparedData


def main(config: schemas.PrepareConfig) -> None:
    """Do what the configuration's command names."""
    if config.command == "verify":
        prepared = _existing(config)
        prepared.verify()
        # The united splits of a mixture have the shards of its corpora.
        own = [split for split in prepared.splits if prepared.parts_of(split) == [split]]
        shards = sum(prepared.num_shards[split] for split in own)
        say(f"{prepared.folder}: {shards} shards and the tokenizer are what was written")
    elif config.command == "inspect":
        from data.inspection import describe

        say(describe(_existing(config) if config.folder else _prepared(config)))
    else:
        prepared = _prepared(config)
        for split, counts in prepared.splits.items():
            say(
                f"{split}: {counts.documents:,} documents, {counts.tokens:,} tokens, "
                f"{counts.utf8_bytes:,} bytes, {counts.words:,} words"
            )
        say(
            f"vocabulary {prepared.vocab_size:,}; validation perplexity of a unigram model "
            f"{prepared.baselines['unigram_perplexity']:.2f}, of a bigram model "
            f"{prepared.baselines['bigram_perplexity']:.2f}"
        )
        say(str(prepared.folder))


def _prepared(config: schemas.PrepareConfig) -> "PreparedData":
    from data.pipeline import prepare

    return prepare(config.data, config.tokenizer, say)


def _existing(config: schemas.PrepareConfig) -> "PreparedData":
    """Open a prepared folder, preparing nothing."""
    from data.pipeline import prepared_folder
    from data.prepared import PreparedData

    if config.folder is not None:
        return PreparedData(Path(config.folder).expanduser())
    folder = prepared_folder(config.data, config.tokenizer)
    if not folder.exists():
        raise ConfigError(
            f"{folder} is not there: this corpus is not prepared yet; leave out '{config.command}' "
            "to prepare it"
        )
    return PreparedData(folder)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in schemas.PREPARE_COMMANDS:
        sys.argv[1] = f"command={sys.argv[1]}"
    launch.run.run("prepare", schemas.PrepareConfig, main)
