"""Keys of the data and tokenizer groups."""

import codecs
import re
import string
from dataclasses import dataclass, fields

from settings.fields import LABEL, Section, is_label, key

SOURCES = ("python_stdlib", "python_packages", "local", "hub", "mixture")
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

_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


def is_hub_name(path: str) -> bool:
    """Return whether `path` can be a name on the Hub: "name" or "namespace/name"."""
    return _HUB_NAME.fullmatch(path) is not None


def is_utf8(encoding: str) -> bool:
    """Return whether `encoding` is a name of UTF-8."""
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


@dataclass
class DataSettings(Section, prefix="data."):
    """Where the text comes from and how it is cut into documents, splits and shards."""

    name: str = key(kind="label")
    """Label of the corpus; part of run and folder names."""
    source: str = key(one_of=SOURCES)
    """python_stdlib, python_packages, local, hub or mixture."""
    path: str | None = key(None, kind="path", changes_result=False)
    """Hub name (NAMESPACE/NAME) for source hub; file or folder for source local."""
    config_name: str | None = None
    """Configuration of a Hub dataset."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset; a commit pins the text. null takes the newest, and
    the manifest records which that was."""
    streaming: bool = False
    """Read a Hub dataset while it downloads, keeping no copy."""
    train_split: str = "train"
    """The source's name for what becomes split "train"."""
    validation_split: str | None = "validation"
    """The source's name for what becomes split "validation"; null takes validation_fraction of the
    training documents instead. Where the source has no split of the default name "validation", the
    same happens; another missing name is an error."""
    text_column: str = "text"
    """Column with the text (parquet, JSON, CSV, Hub)."""
    text_template: str | None = key(None, kind="prose")
    r"""Text made of several columns instead: "{title}\n\n{text}"; {{ and }} are braces."""
    encoding: str = "utf-8"
    """What local text, JSON and CSV files are written in: a name of Python's such as latin-1,
    cp1252 or utf-16. Bytes are counted as UTF-8 all the same."""
    invalid_utf8: str = key("refuse", one_of=("refuse", "replace"))
    """What becomes of bytes that cannot be decoded in these files: refuse, or replace by U+FFFD."""
    document_start: str | None = key(None, kind="prose")
    """Regular expression for rows that begin a document: consecutive rows are joined into one, a
    row a line, until the next such row. Of .txt files a row is then a line, not the whole file."""
    count_line_ends_as_words: bool = False
    """Count one word more per line, as WikiText does."""
    validation_fraction: float = key(0.03, above=0, at_most=0.5)
    """Share of the documents that goes to validation where there is no such split, by the hash of
    the text (python_stdlib, python_packages: of the file name)."""
    max_train_tokens: int | None = key(None, at_least=1)
    """Stop reading training documents at the one with which the training split reaches this many
    tokens; null reads all."""
    drop_leaked_documents: bool = False
    """Leave out training documents that are, character for character, in the validation or test
    split too. They are counted either way."""
    corpora: dict[str, "DataSettings"] = key(dict)
    """Corpora that source mixture mixes, by a name of their own. Their prepared_dir, shard_tokens
    and num_workers are not used."""
    weights: dict[str, float] = key(dict)
    """Share of each of them in training, by the same names; need not add up to 1."""
    shard_tokens: int = key(2**24, at_least=1, at_most=MAX_SHARD_TOKENS)
    """Tokens per shard file, at most."""
    num_workers: int | None = key(None, at_least=1, at_most=MAX_WORKERS, changes_result=False)
    """Processes that encode text; null takes one per core. Their number changes no byte."""
    prepared_dir: str = key("", kind="path", changes_result=False)
    """Folder that holds prepared corpora."""
    sample_prompt: str | None = key(None, kind="prose", changes_result=False)
    """Default of trainer.sample_prompt; null takes the first words of the validation split."""

    def problems(self) -> list[str]:
        """Return what is wrong with the values, one message each, naming the key."""
        return super().problems() + ([] if self.prepared_dir else ["data.prepared_dir is not set"])

    def conflicts(self) -> list[str]:
        """Return what is wrong with what a text says, and with values that have to fit others."""
        found = [
            f"data.{name} ('') must be the name of a {what}"
            for name, what in (("train_split", "split"), ("text_column", "column"))
            if not getattr(self, name)
        ]
        if self.validation_split in ("", self.train_split):
            found.append(
                f"data.validation_split ({self.validation_split!r}) must be another split than "
                "data.train_split, or null to take data.validation_fraction of its documents"
            )
        found += _pattern_problems(self.document_start or "")
        found += [] if self.text_template is None else _template_problems(self.text_template)
        found += _encoding_problems(self.encoding)
        if self.source == "mixture":
            found += self._mixture_problems()
        else:
            found += [
                f"data.{name} applies to source mixture only"
                for name in ("corpora", "weights")
                if getattr(self, name)
            ]
        return found + self._source_problems()

    def _differ(self, *names: str) -> list[str]:
        """Return the keys, of those named, that do not have their default."""
        defaults = {field.name: field.default for field in fields(self)}
        return [name for name in names if getattr(self, name) != defaults[name]]

    def _source_problems(self) -> list[str]:
        found = []
        if self.source in ("local", "hub"):
            if self.path in (None, "", "???"):
                what = "a file or folder" if self.source == "local" else "a dataset's Hub name"
                found.append(f"data.path is not set; source {self.source} needs {what}")
            elif self.source == "hub" and not is_hub_name(str(self.path)):
                found.append(
                    f"data.path ({self.path!r}) must be a Hub name such as namespace/name; "
                    "files on this machine are data=local data.path=..."
                )
        elif self.path is not None and self.source in SOURCES:
            found.append(
                f"data.path ({self.path!r}) must be null: {self.source} finds its files; those of "
                "your own are data=local data.path=..."
            )
        others = [] if self.source in ("local", "mixture") else self._differ("encoding")
        found += [
            f"data.{name} ({self.encoding!r}) applies to source local only" for name in others
        ]
        others = [] if self.source == "hub" else ["config_name", "revision", "streaming"]
        return found + [
            f"data.{name} ({getattr(self, name)!r}) applies to source hub only"
            for name in self._differ(*others)
        ]

    def _mixture_problems(self) -> list[str]:
        if len(self.corpora) < 2:
            return [f"data.corpora has {len(self.corpora)} corpora; a mixture needs at least 2"]
        found = [
            f"data.{name} is each corpus' own; set data.corpora.NAME.{name}"
            for name in self._differ(*_OF_ONE_CORPUS)
        ]
        if len({name.casefold() for name in self.corpora}) < len(self.corpora):
            found.append(
                f"data.corpora ({', '.join(self.corpora)}) has names that differ in case only, "
                "which some file systems cannot distinguish; rename one"
            )
        if self.weights.keys() != self.corpora.keys():
            found.append(
                f"data.weights ({', '.join(self.weights) or 'empty'}) must name the same as "
                f"data.corpora ({', '.join(self.corpora)})"
            )
        found += [
            f"data.weights.{name} ({weight}) must be above 0 and finite"
            for name, weight in self.weights.items()
            if not 0 < weight < float("inf")
        ]
        for name, corpus in self.corpora.items():
            if not is_label(name):
                found.append(f"a name in data.corpora ({name!r}) must be {LABEL}")
            if corpus.source == "mixture":
                found.append(f"data.corpora.{name}.source must not be mixture itself")
                continue
            own = Section.problems(corpus)  # without prepared_dir, which is the mixture's
            found += [one.replace("data.", f"data.corpora.{name}.", 1) for one in own]
            if corpus.drop_leaked_documents:
                found.append(
                    f"data.corpora.{name}.drop_leaked_documents is the mixture's; set "
                    "data.drop_leaked_documents"
                )
        return found


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


def _pattern_problems(pattern: str) -> list[str]:
    try:
        re.compile(pattern)
    except re.error as error:
        return [f"data.document_start ({pattern!r}) is not a regular expression: {error}"]
    return []


def _template_problems(template: str) -> list[str]:
    try:
        parts = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        return [f"data.text_template ({template!r}) is no template: {error}"]
    # Nothing but names: a format may reach into an object and pad to any length.
    if not parts or any(
        not re.fullmatch(r"[^.\[\]]+", name or "") or spec or conversion
        for name, spec, conversion in parts
    ):
        return [
            f"data.text_template ({template!r}) must hold column names in braces and nothing else "
            'in them, such as "{title}\\n\\n{text}"'
        ]
    return []


@dataclass
class TokenizerSettings(Section, prefix="tokenizer."):
    """How text becomes token ids."""

    name: str = key(kind="label")
    """Label of the tokenizer; part of folder names."""
    kind: str = key(one_of=TOKENIZER_KINDS)
    """bpe (trained on the corpus), bytes, or pretrained (one of transformers)."""
    vocab_size: int = key(4096, at_least=MIN_VOCAB_SIZE, at_most=MAX_VOCAB_SIZE)
    """Entries to learn (bpe only): an end-of-text token, 256 bytes and merges. Ids fit uint16 up to
    65536."""
    path: str | None = key(None, kind="path", changes_result=False)
    """Hub name or folder (pretrained only)."""
    max_training_bytes: int = key(2**25, at_least=1)
    """Train on the first training documents, up to this many UTF-8 bytes (bpe only); bounds time
    and memory on large corpora."""

    def conflicts(self) -> list[str]:
        """Return what is wrong with values that have to fit others."""
        if self.kind == "pretrained" and self.path in (None, "", "???"):
            return ["tokenizer.path is not set; kind pretrained needs a Hub name or a folder"]
        if self.kind != "pretrained" and self.path is not None:
            return [f"tokenizer.path ({self.path!r}) must be null: kind {self.kind} reads no file"]
        return []
