"""Settings of the data and tokenizer groups: plain dataclasses that OmegaConf reads as schemas."""

import codecs
import re
import string
from dataclasses import dataclass, field

SOURCES = ("python_stdlib", "python_packages", "local", "hub", "mixture")
INVALID_UTF8 = ("refuse", "replace")
TOKENIZER_KINDS = ("bpe", "bytes", "pretrained")

# The 256 bytes and the end-of-text token; a byte-level vocabulary cannot be smaller.
MIN_VOCAB_SIZE = 257
MAX_VOCAB_SIZE = 2**20
MAX_SHARD_TOKENS = 2**30
MAX_WORKERS = 1024

# A mixture leaves these to its corpora.
_OF_ONE_CORPUS = (
    *("train_split", "validation_split", "text_column", "text_template", "encoding"),
    "invalid_utf8",
    *("document_start", "count_line_ends_as_words", "validation_fraction", "max_train_tokens"),
)

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


def is_hub_name(path: str) -> bool:
    """Return whether `path` can be a name on the Hub: "name" or "namespace/name"."""
    return _HUB_NAME.fullmatch(path) is not None


def is_utf8(encoding: str) -> bool:
    """Return whether `encoding` is a name of UTF-8."""
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


def _encoding_problems(encoding: str) -> list[str]:
    try:
        # Of what is no text codec (hex, rot13, zlib), decoding says so, but not for no bytes.
        bytes(4).decode(encoding, "replace")
        codecs.getincrementaldecoder(encoding)
    except (LookupError, ValueError):
        return [
            f"data.encoding ({encoding!r}) is no text encoding of Python's; examples are utf-8, "
            "latin-1, cp1252, utf-16, gb18030, shift_jis"
        ]
    return []


def _label_problems(key: str, value: str) -> list[str]:
    if _LABEL.fullmatch(value):
        return []
    return [
        f"{key} ({value!r}) must be letters, digits, '.', '_' and '-', at most 100, as it becomes "
        "part of folder names"
    ]


@dataclass
class DataSettings:
    r"""Where the text comes from and how it is cut into documents, splits and shards.

    Attributes:
        name: Label of the corpus; part of run and folder names.
        source: One of SOURCES.
        path: Hub name ("namespace/name") for source hub; file or folder for source local.
        config_name: Configuration of a Hub dataset.
        revision: Branch, tag or commit of a Hub dataset; null takes the newest and records it.
        streaming: Read a Hub dataset while it downloads, keeping no copy.
        train_split: The source's name for what becomes split "train".
        validation_split: The source's name for what becomes split "validation"; null takes
            `validation_fraction` of the training documents instead. Where the source has no split
            of the default name "validation", the same happens; another missing name is an error.
        text_column: Column with the text (parquet, JSON, Hub).
        text_template: Text made of several columns instead: "{title}\n\n{text}"; {{ and }} are
            braces.
        encoding: What local text, JSON and CSV files are written in: a name of Python's such as
            latin-1, cp1252 or utf-16. Bytes are counted as UTF-8 all the same.
        invalid_utf8: What becomes of bytes that cannot be decoded in these files: refuse, or
            replace by U+FFFD.
        document_start: Regular expression (`re.match`). Consecutive rows are joined into one
            document, one row a line, and a row that matches begins the next document.
            For .txt files a row is a line instead of the whole file.
        count_line_ends_as_words: Count one word more per line, as WikiText does.
        validation_fraction: Share of the documents that goes to validation, by the hash of the
            text (python_stdlib, python_packages: of the file name), where there is no such split.
        max_train_tokens: Stop reading training documents at the one with which the training split
            reaches this many tokens; null reads all.
        drop_leaked_documents: Leave out training documents that are, character for character,
            in the validation or test split too. They are counted either way.
        corpora: Corpora that source mixture mixes, by a name of their own. Their prepared_dir,
            shard_tokens and num_workers are not used.
        weights: Share of each of them in training, by the same names; need not add up to 1.
        shard_tokens: Tokens per shard file, at most.
        num_workers: Processes that encode text; null takes one per core. Their number changes no
            byte.
        prepared_dir: Folder that holds prepared corpora.
        sample_prompt: Default of trainer.sample_prompt; null takes the first words of the
            validation split.
    """

    name: str = "???"
    source: str = "???"
    path: str | None = None
    config_name: str | None = None
    revision: str | None = None
    streaming: bool = False
    train_split: str = "train"
    validation_split: str | None = "validation"
    text_column: str = "text"
    text_template: str | None = None
    encoding: str = "utf-8"
    invalid_utf8: str = "refuse"
    document_start: str | None = None
    count_line_ends_as_words: bool = False
    validation_fraction: float = 0.03
    max_train_tokens: int | None = None
    drop_leaked_documents: bool = False
    corpora: dict[str, "DataSettings"] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    shard_tokens: int = 2**24
    num_workers: int | None = None
    prepared_dir: str = "???"
    sample_prompt: str | None = None

    def problems(self) -> list[str]:
        """List what is wrong with these values, one message each, naming the key."""
        missing = [
            f"data.{key} is not set"
            for key in ("name", "source", "prepared_dir")
            if getattr(self, key) in ("", "???")
        ]
        if missing:
            return missing
        found = _label_problems("data.name", self.name)
        found += self._source_problems()
        if not self.train_split:
            found.append("data.train_split ('') must be the name of a split")
        if self.validation_split in ("", self.train_split):
            found.append(
                f"data.validation_split ({self.validation_split!r}) must be another split than "
                "data.train_split, or null to take data.validation_fraction of its documents"
            )
        if not self.text_column:
            found.append("data.text_column ('') must be the name of a column")
        if self.document_start is not None:
            try:
                re.compile(self.document_start)
            except re.error as error:
                found.append(
                    f"data.document_start ({self.document_start!r}) is not a regular expression: "
                    f"{error}"
                )
        if self.text_template is not None:
            found += _template_problems(self.text_template)
        found += _encoding_problems(self.encoding)
        if self.invalid_utf8 not in INVALID_UTF8:
            found.append(
                f"data.invalid_utf8 ({self.invalid_utf8!r}) must be {' or '.join(INVALID_UTF8)}"
            )
        # Written so that nan fails.
        if not 0 < self.validation_fraction <= 0.5:
            found.append(
                f"data.validation_fraction ({self.validation_fraction}) must be above 0 and at "
                "most 0.5"
            )
        if self.max_train_tokens is not None and not self.max_train_tokens >= 1:
            found.append(
                f"data.max_train_tokens ({self.max_train_tokens}) must be at least 1, or null for "
                "all"
            )
        if not 1 <= self.shard_tokens <= MAX_SHARD_TOKENS:
            found.append(
                f"data.shard_tokens ({self.shard_tokens}) must lie between 1 and {MAX_SHARD_TOKENS}"
            )
        if self.num_workers is not None and not 1 <= self.num_workers <= MAX_WORKERS:
            found.append(
                f"data.num_workers ({self.num_workers}) must lie between 1 and {MAX_WORKERS}, or "
                "be null for all cores"
            )
        return found

    def _source_problems(self) -> list[str]:
        if self.source not in SOURCES:
            return [f"data.source ({self.source!r}) must be one of {', '.join(SOURCES)}"]
        found = self._mixture_problems()
        if self.source in ("local", "hub"):
            if self.path in (None, "", "???"):
                what = "a file or folder" if self.source == "local" else "a dataset's Hub name"
                found.append(f"data.path is not set; source {self.source} needs {what}")
            elif self.source == "hub" and not is_hub_name(str(self.path)):
                found.append(
                    f"data.path ({self.path!r}) must be a Hub name such as namespace/name; "
                    "files on this machine are data=local data.path=..."
                )
        elif self.path is not None:
            found.append(
                f"data.path ({self.path!r}) must be null: {self.source} finds its files; those of "
                "your own are data=local data.path=..."
            )
        if self.source not in ("local", "mixture") and self.encoding != DataSettings.encoding:
            found.append(f"data.encoding ({self.encoding!r}) applies to source local only")
        if self.source != "hub":
            for key, unset in (("config_name", None), ("revision", None), ("streaming", False)):
                value = getattr(self, key)
                if value != unset:
                    found.append(f"data.{key} ({value!r}) applies to source hub only")
        return found

    def _mixture_problems(self) -> list[str]:
        if self.source != "mixture":
            given = [key for key in ("corpora", "weights") if getattr(self, key)]
            return [f"data.{key} applies to source mixture only" for key in given]
        if len(self.corpora) < 2:
            return [f"data.corpora has {len(self.corpora)} corpora; a mixture needs at least 2"]
        found = []
        for key in _OF_ONE_CORPUS:
            if getattr(self, key) != getattr(DataSettings, key):
                found.append(f"data.{key} is each corpus' own; set data.corpora.NAME.{key}")
        if len({name.casefold() for name in self.corpora}) < len(self.corpora):
            found.append(
                f"data.corpora ({', '.join(self.corpora)}) has names that differ in case only, "
                "which some file systems do not tell apart; rename one"
            )
        if self.weights.keys() != self.corpora.keys():
            found.append(
                f"data.weights ({', '.join(self.weights) or 'empty'}) must name the same as "
                f"data.corpora ({', '.join(self.corpora)})"
            )
        for name, weight in self.weights.items():
            if not 0 < weight < float("inf"):
                found.append(f"data.weights.{name} ({weight}) must be above 0 and finite")
        for name, corpus in self.corpora.items():
            found += _label_problems("a name in data.corpora", name)
            if corpus.source == "mixture":
                found.append(f"data.corpora.{name}.source must not be mixture itself")
            else:
                found += [
                    problem.replace("data.", f"data.corpora.{name}.", 1)
                    for problem in corpus.problems()
                ]
                if corpus.drop_leaked_documents:
                    found.append(
                        f"data.corpora.{name}.drop_leaked_documents is the mixture's; set "
                        "data.drop_leaked_documents"
                    )
        return found


def _template_problems(template: str) -> list[str]:
    try:
        fields = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        return [f"data.text_template ({template!r}) is no template: {error}"]
    # Nothing but names: a format may reach into an object and pad to any length.
    if not fields or any(
        not re.fullmatch(r"[^.\[\]]+", name or "") or spec or conversion
        for name, spec, conversion in fields
    ):
        return [
            f"data.text_template ({template!r}) must hold column names in braces and nothing else "
            'in them, such as "{title}\\n\\n{text}"'
        ]
    return []


@dataclass
class TokenizerSettings:
    """How text becomes token ids.

    Attributes:
        name: Label of the tokenizer; part of folder names.
        kind: One of TOKENIZER_KINDS.
        vocab_size: Entries to learn, end-of-text token included (bpe only).
        path: Hub name or folder (pretrained only).
        max_training_bytes: Train on the first training documents, up to this many UTF-8 bytes
            (bpe only); bounds time and memory on large corpora.
    """

    name: str = "???"
    kind: str = "???"
    vocab_size: int = 4096
    path: str | None = None
    max_training_bytes: int = 2**25

    def problems(self) -> list[str]:
        """List what is wrong with these values, one message each, naming the key."""
        missing = [
            f"tokenizer.{key} is not set"
            for key in ("name", "kind")
            if getattr(self, key) in ("", "???")
        ]
        if missing:
            return missing
        found = _label_problems("tokenizer.name", self.name)
        if self.kind not in TOKENIZER_KINDS:
            found.append(
                f"tokenizer.kind ({self.kind!r}) must be one of {', '.join(TOKENIZER_KINDS)}"
            )
        if not MIN_VOCAB_SIZE <= self.vocab_size <= MAX_VOCAB_SIZE:
            found.append(
                f"tokenizer.vocab_size ({self.vocab_size}) must lie between {MIN_VOCAB_SIZE} "
                f"(256 bytes and the end-of-text token) and {MAX_VOCAB_SIZE}"
            )
        if self.max_training_bytes < 1:
            found.append(
                f"tokenizer.max_training_bytes ({self.max_training_bytes}) must be at least 1"
            )
        if self.kind == "pretrained" and self.path in (None, "", "???"):
            found.append("tokenizer.path is not set; kind pretrained needs a Hub name or a folder")
        if self.kind != "pretrained" and self.path is not None:
            found.append(
                f"tokenizer.path ({self.path!r}) must be null: kind {self.kind} reads no file"
            )
        return found
