"""Prepare a corpus: python -m data.prepare data=wikitext2. The entry point of this package."""

import ensure_environment

ensure_environment.ensure()

import run_config  # noqa: E402


def main(config: run_config.PrepareConfig) -> None:
    """Prepare the corpus that the configuration names, if that is not done, and describe it."""
    from data.pipeline import prepare

    prepared = prepare(config.data, config.tokenizer, print)
    for split, counts in prepared.splits.items():
        print(
            f"{split}: {counts.documents:,} documents, {counts.tokens:,} tokens, "
            f"{counts.utf8_bytes:,} bytes, {counts.words:,} words"
        )
    print(
        f"vocabulary {prepared.vocab_size:,}; validation perplexity of a unigram model "
        f"{prepared.baselines['unigram_perplexity']:.2f}, of a bigram model "
        f"{prepared.baselines['bigram_perplexity']:.2f}"
    )
    print(prepared.folder)


if __name__ == "__main__":
    run_config.run("prepare", run_config.PrepareConfig, main)
