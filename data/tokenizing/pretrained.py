"""The tokenizer that the settings name: trained, of bytes, or a pretrained one of transformers."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data.errors import DataError
from data.hub.connection import cached_commit, check_reachable, explain, is_offline, resolve
from data.hub.watch import watched
from data.sources.file_kinds import pointer_at
from data.tokenizing.tokenizer import END_OF_TEXT, bytes_tokenizer, is_of_the_library, train_bpe
from settings.data import TokenizerSettings, is_hub_name

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class BuiltTokenizer(NamedTuple):
    """A tokenizer, the token that ends documents, and the commit if it comes from the Hub."""

    tokenizer: "Tokenizer"
    end_of_document: str
    commit: str | None = None


def build_tokenizer(settings: TokenizerSettings, texts: Iterable[str]) -> BuiltTokenizer:
    """Build or load the tokenizer that the settings name.

    Args:
        settings: Kind, size and path.
        texts: Training documents; read for kind bpe only.

    Raises:
        DataError: If a pretrained tokenizer cannot be used.
    """
    if settings.kind == "pretrained":
        return load_pretrained(str(settings.path))
    if settings.kind == "bytes":
        return BuiltTokenizer(bytes_tokenizer(), END_OF_TEXT)
    return BuiltTokenizer(train_bpe(texts, settings), END_OF_TEXT)


def load_pretrained(path: str, key: str = "tokenizer.path") -> BuiltTokenizer:
    """Load a fast tokenizer from the Hub or a folder; its code, if it has any, is not run.

    Args:
        path: A folder, or a name of the Hub.
        key: The setting that names it, for messages.

    Raises:
        DataError: If it cannot be found or reached, is not a fast one, or has no eos token.
    """
    folder = Path(path).expanduser()
    is_local = folder.is_dir()
    what, alternative = f"tokenizer {path!r}", f"use a folder on this machine in {key}"
    commit = None
    if not is_local:
        if not is_hub_name(path):
            raise DataError(f"{key}: no such folder: {path}")
        check_reachable(what, alternative)
        if is_offline():
            commit = cached_commit("model", path, "main")
        else:
            commit = resolve("model", path, None, key, alternative)

    def load() -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            str(folder) if is_local else path, revision=commit or "main", trust_remote_code=False
        )

    try:
        wrapped = load() if is_local else watched(what, load, alternative)
    except DataError:
        raise
    except BaseException as error:
        if not is_of_the_library(error):
            raise
        if is_local:
            why = _why_not(folder, explain(error, folder))
            raise DataError(f"{key} ({path!r}): cannot load a tokenizer: {why}") from error
        where = " from the local cache (HF_HUB_OFFLINE=1)" if is_offline() else ""
        raise DataError(
            f"{key} ({path!r}): cannot load a tokenizer{where}: {explain(error)}"
        ) from error
    if not wrapped.is_fast:
        raise DataError(f"{key} ({path!r}): this tokenizer has no fast version")
    if wrapped.eos_token is None:
        raise DataError(f"{key} ({path!r}): this tokenizer has no eos_token to end documents with")
    tokenizer = wrapped.backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # It would add tokens such as <s>, which the prepared text does not have.
    tokenizer.post_processor = None
    return BuiltTokenizer(tokenizer, wrapped.eos_token, commit)


def _why_not(folder: Path, otherwise: str) -> str:
    """Say what keeps a folder's tokenizer from being loaded: a file that is a pointer, or else."""
    for path in sorted(folder.iterdir()):
        # Weights may be pointers: nobody reads them here.
        if path.suffix in (".json", ".txt", ".model") and (kind := pointer_at(path)):
            return f"{path} {kind}"
    return otherwise
