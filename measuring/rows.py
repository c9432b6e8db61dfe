"""What was measured of one model, and the protocol card that says how."""

import dataclasses
from typing import Any

from data.prepared import PreparedData
from data.shards.manifest import SplitCounts
from measuring.decode import Decodable
from measuring.perplexity import Score
from modeling.arrangement import layer_configs
from modeling.config import GPTConfig
from settings.evaluation import EvalSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResultRow:
    """The row of results.json for one model, to which `comparing` adds (docs/notation.md).

    What kvlab does not know of an external model is None.
    """

    run_name: str
    attention: str
    """Registered name; of an external model its kind."""
    layers: str | None = None
    """Arrangement of the layers."""
    positions: str
    seed: int | None = None
    num_parameters: int
    tokens_trained: int | None = None
    split: str
    tokens_scored: int | None
    nll: float | None
    """Nats per token; None, as all likelihoods, where perplexity was not asked for."""
    perplexity: float | None
    word_perplexity: float | None
    bits_per_byte: float | None
    kv_cache_bytes_per_token: float | None
    """Bytes that a token adds once windows are full, by the closed form."""
    kv_cache_bytes_measured: float | None
    """Live bytes at the stated context / its tokens."""
    kv_cache_tokens_measured: int | None
    """Tokens in the cache that was measured, all sequences together."""
    kv_cache_context: int | None
    """Tokens of the sequence at which the cache is stated."""
    kv_cache_bytes_at_context: float | None
    kv_cache_bytes_read_per_step: float | None
    kv_cache_curve: dict[str, int] | None
    """Fields of `accounting.CacheCurve`."""
    kv_cache_points: list[list[float]] | None
    """Pairs of tokens and measured bytes of a sequence."""
    cache_ratio_to_mha: float | None
    generation_peak_extra_bytes: int | None
    train_tokens_per_second: float | None = None
    train_peak_memory_bytes: int | None = None
    train_wall_seconds: float | None = None
    versions: dict[str, str] | None = None
    """Versions of the libraries that it was trained with."""
    git_commit: str | None = None
    reads_whole_text: bool
    """Whether its tokenizer gives back every byte of the text."""
    trained_with: dict[str, Any] | None = None
    """As `numerics.trained_with` returns it."""
    protocol: dict[str, Any]
    """The card that says how the numbers came about."""
    tasks: dict[str, dict[str, Any]] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the row with its keys in order; without `tasks` where none were run."""
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return row if self.tasks is not None else {k: v for k, v in row.items() if k != "tasks"}


@dataclasses.dataclass(frozen=True)
class EvaluatedRun:
    """What was found out about a run.

    Args:
        row: `ResultRow.as_dict` of it, to which `comparing` adds.
        model: The configuration of the model; None if it is of another library's modules.
        windows: What was scored, window by window; None where perplexity was not asked for.
        settings: The recorded configuration with dotted keys; the model as it was trained.
        curve: "tokens" and "perplexity": the validations during the training.
        sample: The text that the run wrote at its end.
        notes: What a reader of its numbers should know, a line each.
        prepared: The corpus whose text was scored; None where it is not at hand.
        decodable: The model, where another library's modules are still to be timed.
    """

    row: dict[str, Any]
    model: GPTConfig | None
    windows: Score | None
    settings: dict[str, Any]
    curve: dict[str, list[float]]
    sample: str | None
    notes: list[str] = dataclasses.field(default_factory=list)
    prepared: PreparedData | None = None
    decodable: Decodable | None = None

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.row["run_name"])

    @property
    def is_external(self) -> bool:
        """Whether it is a model that kvlab did not train, of which no seed is known."""
        return self.row["seed"] is None


def quality_of(windows: Score | None, counts: SplitCounts) -> dict[str, Any]:
    """Return the keys of a row that say what was scored; all None where nothing was."""
    if windows is None:
        keys = ("tokens_scored", "nll", "perplexity", "word_perplexity", "bits_per_byte")
        return dict.fromkeys(keys)
    return {
        "tokens_scored": windows.tokens_scored,
        "nll": windows.nll,
        "perplexity": windows.perplexity,
        "word_perplexity": windows.word_perplexity(counts.words),
        "bits_per_byte": windows.bits_per_byte(counts.utf8_bytes),
    }


def protocol_card(
    prepared: PreparedData,
    split: str,
    windows: tuple[int, int],
    cache_context: int,
    settings: EvalSettings,
    *,
    dtype: str,
    device: str,
    intra_document_mask: bool,
) -> dict[str, Any]:
    """Return the card that says how a row's numbers came about.

    Args:
        prepared: The corpus; a model with another tokenizer has its own hashes and tokens.
        split: Which.
        windows: Context and stride.
        cache_context: Tokens of the sequence whose cache is stated.
        settings: How it was scored.
        dtype: That of the weights, in which it was computed.
        device: What computed it: "cpu", or a GPU's name.
        intra_document_mask: Whether attention kept to documents.
    """
    counts = prepared.splits[split]
    context, stride = windows
    cached = f"token by token, {settings.cache_dtype or dtype} cache"
    return {
        "corpus": prepared.name,
        "revision": prepared.revision,
        "split": split,
        "data_fingerprint": prepared.fingerprint,
        "tokenizer_sha256": prepared.tokenizer_sha256,
        "context": context,
        "stride": stride,
        "cache_context": cache_context,
        "dtype": dtype,
        "device": device,
        "decode_path": cached if settings.decode else "full windows, no cache",
        "intra_document_mask": intra_document_mask,
        "tokens": counts.tokens,
        "words": counts.words,
        "utf8_bytes": counts.utf8_bytes,
    }


def positions_of(config: GPTConfig) -> str:
    """Name how a model encodes positions."""
    rope = any(getattr(layer, "qk_rope_head_dim", 0) for layer in layer_configs(config))
    learned = config.position_embedding == "learned"
    return " + ".join(name for name, has in (("RoPE", rope), ("learned", learned)) if has) or "none"
