"""Preparing, checking or describing a corpus: what prepare_data.py does."""

from pathlib import Path

from data.inspection import describe
from data.pipeline import prepare, prepared_folder
from data.prepared import PreparedData
from launch.errors import ConfigError
from launch.schemas import PrepareConfig
from launch.terminal import say


def main(config: PrepareConfig) -> None:
    """Do what the configuration's command names."""
    if config.command == "verify":
        prepared = _existing(config)
        prepared.verify()
        # The united splits of a mixture have the shards of its corpora.
        own = [split for split in prepared.splits if prepared.parts_of(split) == [split]]
        shards = sum(prepared.num_shards[split] for split in own)
        say(f"{prepared.folder}: {shards} shards and the tokenizer are what was written")
    elif config.command == "inspect":
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


def _prepared(config: PrepareConfig) -> PreparedData:
    return prepare(config.data, config.tokenizer, say)


def _existing(config: PrepareConfig) -> PreparedData:
    """Open a prepared folder, preparing nothing."""
    if config.folder is not None:
        return PreparedData(Path(config.folder).expanduser())
    folder = prepared_folder(config.data, config.tokenizer)
    if not folder.exists():
        raise ConfigError(
            f"{folder} is not there: this corpus is not prepared yet; leave out '{config.command}' "
            "to prepare it"
        )
    return PreparedData(folder)
