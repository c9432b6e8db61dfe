"""The model's keys. Nothing here imports torch, so that `--help` need not wait for it.

A field's `metadata` says what `settings.fields.key` writes for other sections.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

NORMS = ("rms_norm", "layer_norm")
MLPS = ("swiglu", "gelu", "relu")
MAX_LAYERS = 1000
"""More would be built for hours, and until memory ends, before anything fails."""
POSITION_EMBEDDINGS = ("none", "learned")
SHARED = ("pairs", "upper", "last")
"""What `LayersConfig.share` can be."""


def _word(default: str | None, words: tuple[str, ...]) -> Any:
    """Return the field of a key that is one of a few words."""
    return field(default=default, metadata={"one_of": words})


def _out_of_range(
    section: Any, prefix: str, least: int | None, *names: str, null: str = ""
) -> Iterable[str]:
    """Yield a message for each named value below the least, or not in (0, 1) if there is none."""
    for name in names:
        value = getattr(section, name)
        if least is None and not 0.0 < value < 1.0:
            yield f"{prefix}{name} ({value}) must be in (0, 1)"
        elif least is not None and value is not None and value < least:
            yield f"{prefix}{name} ({value}) must be at least {least}{null}"


def _unknown_words(section: Any, prefix: str) -> Iterable[str]:
    """Yield a message for each value that is none of the words of its field."""
    for one in fields(section):
        value, words = getattr(section, one.name), one.metadata.get("one_of", ())
        if words and value not in (one.default, *words):
            *others, last = ["null", *words] if one.default is None else words
            yield f"{prefix}{one.name} ('{value}') must be {', '.join(others)} or {last}"


def arrangement_label(layers: Any) -> str:
    """Return what an arrangement is called in names and tables; '' if all layers are alike.

    Args:
        layers: A `LayersConfig`, or a section of a configuration with its keys.
    """
    if layers.name != "uniform":
        return str(layers.name)
    keys = ("window", "share", "source", "pattern")
    return "arranged" if any(getattr(layers, key) is not None for key in keys) else ""


@dataclass
class LayersConfig:
    """How layers differ from each other: which see a window alone, which read another's cache.

    Windows and shared caches go together with each other and with any attention that has keys.
    """

    name: str = "uniform"
    """Label of the arrangement, part of the run's name unless it is uniform."""
    window: int | None = None
    """Newest tokens that a query of a window layer sees, itself included; null: no window."""
    full_every: int | None = None
    """Every so many layers, the last of them sees all tokens; null: none does, if there is a
    window."""
    full_rope: bool = True
    """Whether the full layers among window layers have RoPE, if the attention has."""
    full_rope_theta: float | None = None
    """Base of RoPE on the full layers among window layers; null: the attention's rope_theta."""
    sinks: bool = False
    """On window layers, a learned logit per head joins the softmax, and its weight is dropped."""
    share: str | None = _word(None, SHARED)
    """Which layers read the keys and values of another: pairs (every second that of the one
    before), upper (the upper half that of its first layer), last (the last share_last that of the
    last layer of the same kind before them), or null: none."""
    share_last: int | None = None
    """With share=last: how many layers; null: half of them."""
    source: list[int] | None = None
    """In place of share: for each layer the layer whose keys and values it reads, itself for its
    own, such as [0,0,2,2]."""
    pattern: list[str] | None = None
    """Attention of each layer, repeated to the number of layers: own (model.attention) or a name
    in layers.attentions; null: own for all."""
    attentions: dict[str, Any] = field(default_factory=dict)
    """Other attentions that the pattern names: name -> fields as in model.attention."""

    def problems(self) -> list[str]:
        """Return every reason why these values cannot be arranged, each naming the key."""
        counts = ("window", "full_every", "share_last")
        found = [*_out_of_range(self, "layers.", 1, *counts, null=", or null")]
        found += _unknown_words(self, "layers.")
        if self.window is None:
            idle = [key for key in ("full_every", "full_rope_theta") if getattr(self, key)]
            idle += ["sinks"] if self.sinks else []
            found += [f"layers.{key} needs layers.window" for key in idle]
        if self.full_rope_theta is not None:
            if not self.full_rope:
                found.append("layers.full_rope_theta needs layers.full_rope=true")
            if not 1.0 < self.full_rope_theta < float("inf"):
                found.append(
                    f"layers.full_rope_theta ({self.full_rope_theta}) must be a finite number "
                    "above 1, or null"
                )
        if self.share is not None and self.source is not None:
            found.append("layers.share and layers.source say the same thing; set one of them")
        if self.share_last is not None and self.share != "last":
            found.append("layers.share_last needs layers.share=last")
        if self.pattern is not None:
            known = {"own", *self.attentions}
            found += [
                f"layers.pattern names '{name}', which is neither own nor in layers.attentions"
                for name in sorted(set(self.pattern) - known)
            ]
            if not self.pattern:
                found.append("layers.pattern must name an attention at least; set it to null")
        return found

    def problems_with(self, num_layers: int) -> list[str]:
        """Return every reason why these values do not fit a model of so many layers."""
        if self.share_last is not None and self.share_last >= num_layers:
            return [
                f"layers.share_last ({self.share_last}) must be less than the {num_layers} layers, "
                "of which one has to have keys of its own"
            ]
        source = self.source
        if source is None:
            return []
        if len(source) != num_layers:
            return [
                f"layers.source has {len(source)} entries, and the model {num_layers} layers; "
                "give one for each"
            ]
        found = []
        for layer, read in enumerate(source):
            if not 0 <= read <= layer:
                found.append(
                    f"layers.source: layer {layer} cannot read layer {read}; it must be from 0 to "
                    f"{layer}, itself"
                )
            elif source[read] != read:
                found.append(
                    f"layers.source: layer {layer} reads layer {read}, which has no keys of its "
                    f"own; let it read layer {source[read]}"
                )
        return found[:1]


@dataclass
class GPTConfig:
    """A decoder-only language model; field names as in transformers' Llama where it has them."""

    name: str = "custom"
    """Label of the size, part of the run's name."""
    vocab_size: int | None = None
    """n, entries of the vocabulary; null takes the tokenizer's."""
    max_position_embeddings: int = 256
    """Context length in tokens: of training, and the most a learned position embedding knows."""
    hidden_size: int = 192
    """m, width of the residual stream."""
    num_hidden_layers: int = 4
    """Number of layers."""
    num_attention_heads: int = 8
    """h; the attention's own num_attention_heads follows it."""
    intermediate_size: int = 512
    """Width of the MLP; of MHA's MLP where `match` adapts the others to MHA's parameters."""
    mlp: str = _word("swiglu", MLPS)
    """swiglu, gelu or relu."""
    mlp_bias: bool = False
    """Biases in the MLP."""
    norm: str = _word("rms_norm", NORMS)
    """rms_norm or layer_norm."""
    norm_eps: float = 1e-6
    """Added to the mean square, or the variance, in the norms."""
    position_embedding: str = _word("none", POSITION_EMBEDDINGS)
    """learned adds a vector per position at the input; none leaves positions to RoPE."""
    allow_nope: bool = False
    """Allow a model with no position information at all."""
    intra_document_mask: bool = False
    """A token attends only to its own document; positions count through the window all the same."""
    end_of_document_id: int | None = None
    """Id of the token that ends a document, and belongs to it; null takes the tokenizer's."""
    tie_word_embeddings: bool = True
    """The output projection is the input embedding."""
    initializer_range: float = 0.02
    """Standard deviation of initial weights; residual projections get it / sqrt(2 layers)."""
    attention: dict[str, Any] = field(default_factory=dict)
    """name, and the fields of that attention's configuration class."""
    layers: LayersConfig = field(default_factory=LayersConfig, metadata={"follows": "layers"})
    """How layers differ; follows the group `layers`."""

    def __post_init__(self) -> None:
        if isinstance(self.layers, dict):  # out of a file
            self.layers = LayersConfig(**self.layers)

    def problems(self) -> list[str]:
        """Return every reason why these values cannot be built, each naming the key.

        What only the attention can judge is checked by its own class.
        """
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        found = [*_out_of_range(self, "model.", 2, "max_position_embeddings", "vocab_size")]
        found += _out_of_range(self, "model.", 1, *sizes)
        found += _out_of_range(self, "model.", None, "norm_eps", "initializer_range")
        found += _unknown_words(self, "model.")
        if self.num_hidden_layers > MAX_LAYERS:
            found.append(
                f"model.num_hidden_layers ({self.num_hidden_layers}) must be at most {MAX_LAYERS}"
            )
        end = self.end_of_document_id
        if end is not None and (
            end < 0 or (self.vocab_size is not None and end >= self.vocab_size)
        ):
            below = "" if self.vocab_size is None else f" and below vocab_size ({self.vocab_size})"
            found.append(
                f"model.end_of_document_id ({end}) must be at least 0{below}; set "
                "model.end_of_document_id=null to take the tokenizer's"
            )
        for key in ("hidden_size", "num_attention_heads"):
            if self.attention.get(key, getattr(self, key)) != getattr(self, key):
                found.append(
                    f"model.attention.{key} ({self.attention[key]}) must equal model.{key} "
                    f"({getattr(self, key)}); set model.{key} and leave the other out"
                )
        found += self.layers.problems()
        return found + self.layers.problems_with(self.num_hidden_layers)


@dataclass
class SamplingSettings:
    """How the next token is chosen from the logits."""

    temperature: float = 0.8
    """0 is greedy; above, logits are divided by it."""
    top_k: int | None = None
    """Keep only the k likeliest tokens; null keeps all."""
    top_p: float = 0.95
    """Keep the smallest set of likeliest tokens with at least this probability."""
    seed: int = 0
    """Seed of the sampler's own random numbers."""

    def problems(self) -> list[str]:
        """Return every value out of its range, naming the key."""
        found = []
        if not 0.0 <= self.temperature < float("inf"):
            found.append(f"sampling.temperature ({self.temperature}) must be 0 or more, and finite")
        if self.top_k is not None and self.top_k < 1:
            found.append(f"sampling.top_k ({self.top_k}) must be at least 1, or null for all")
        if not 0.0 < self.top_p <= 1.0:
            found.append(f"sampling.top_p ({self.top_p}) must be in (0, 1]")
        if not 0 <= self.seed < 2**63:
            found.append(f"sampling.seed ({self.seed}) must be from 0 to 2^63 - 1")
        return found
