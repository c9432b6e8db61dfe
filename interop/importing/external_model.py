"""Causal language models of transformers, from a folder or the Hub, for kvlab's protocol.

Nothing that a folder brings is run: no code of its own, no pickled weights, no kernels it names.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data.hub.connection import check_reachable, is_offline, resolve
from data.hub.watch import watched
from data.sources.file_kinds import pointer_at
from data.tokenizing.pretrained import load_pretrained
from data.tokenizing.tokenizer import sha256_of_tokenizer
from interop.errors import InteropError
from interop.importing.folder import read_config, read_stock, weight_files
from interop.library import in_one_line, refusal
from interop.stock import from_stock
from interop.transformers_model import TransformersModel
from modeling.gpt import GPT
from settings.data import is_hub_name

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_KEY = "hf"
_ALTERNATIVE = f"name a folder on this machine in {_KEY}"
# What a model in safetensors needs, its tokenizer with it; nothing that is pickled.
_HUB_FILES = ("*.json", "model*.safetensors", "tokenizer*", "vocab*", "merges.txt", "*.model")


@dataclass(frozen=True)
class HuggingFaceModel:
    """A model in a folder, looked at but not loaded.

    Args:
        label: How it is shown: "hf:" and the folder's name, or that on the Hub.
        folder: Where its files are.
        described: Where it came from, for a report: a folder as it was given, or name and commit.
        kind: "hf:" and transformers' name of the architecture.
        architecture: transformers' name of the class.
        tokenizer: Its own; text that looks like a special token is encoded as ordinary text.
        tokenizer_sha256: Of the tokenizer as `data.tokenizer.save_tokenizer` stores it.
        end_of_document: The token behind each document, its eos token.
    """

    label: str
    folder: Path
    described: str
    kind: str
    architecture: str
    tokenizer: "Tokenizer"
    tokenizer_sha256: str
    end_of_document: str

    def tokenizer_of_transformers(self) -> Any:
        """Return it as transformers wraps it."""
        from transformers import AutoTokenizer

        with in_one_line(self.described):
            return AutoTokenizer.from_pretrained(
                str(self.folder), trust_remote_code=False, local_files_only=True
            )


def find(name: str) -> HuggingFaceModel:
    """Look at a model, and fetch its files if they are on the Hub.

    Args:
        name: A folder, or NAME or NAME@REVISION of the Hub.

    Raises:
        InteropError: If there is none, or it is not what can be measured.
        DataError: If the Hub cannot be reached.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        label, described = f"hf:{folder.absolute().name}", name
    else:
        path, _, revision = name.partition("@")
        if not is_hub_name(path):
            raise InteropError(
                f"{_KEY}: no such folder: {name}; give one that transformers wrote, or a name of "
                "the Hub, NAME or NAME@REVISION"
            )
        folder, commit = _fetch(path, revision or None)
        label, described = f"hf:{name}", f"{path} at commit {commit}"
    with in_one_line(name):
        config = _config(name, folder)
    tokenizer, end_of_document, sha256 = _tokenizer(name, folder)
    return HuggingFaceModel(
        label=label,
        folder=folder,
        described=described,
        kind=f"hf:{config.model_type}",
        architecture=str((config.architectures or ["no named class"])[0]),
        tokenizer=tokenizer,
        tokenizer_sha256=sha256,
        end_of_document=end_of_document,
    )


def _fetch(path: str, revision: str | None) -> tuple[Path, str]:
    """Return the folder of the local cache that a repository is in, and its commit."""
    what = f"model {path!r}"
    check_reachable(what, _ALTERNATIVE)
    if is_offline():
        try:
            folder = _snapshot(path, revision or "main")
        except Exception as error:
            raise refusal(
                path,
                "the local cache does not have it whole (HF_HUB_OFFLINE=1); fetch it with a "
                f"network first, or {_ALTERNATIVE}",
            ) from error
        # The layout of the cache is documented: snapshots/COMMIT.
        return folder, folder.name
    commit = resolve("model", path, revision, _KEY, _ALTERNATIVE)
    with in_one_line(path):
        return watched(what, lambda: _snapshot(path, commit), _ALTERNATIVE), commit


def _snapshot(path: str, revision: str) -> Path:
    """Fetch the files of a commit, or find those of the cache where there is no network."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, revision=revision, allow_patterns=list(_HUB_FILES)))


def _config(name: str, folder: Path) -> Any:
    """Read a folder's configuration and refuse what cannot be measured, before it is loaded.

    Raises:
        InteropError: Saying why not.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    if (folder / "adapter_config.json").exists():
        raise refusal(name, "this is an adapter, not a model; merge it into its model first")
    try:
        written = read_config(folder)
        # transformers would follow an index out of the folder.
        weights = [folder / file for file in weight_files(folder)]
    except InteropError as error:
        raise refusal(name, str(error)) from error
    for path in weights:
        if kind := pointer_at(path):
            raise refusal(name, f"{path} {kind}")
    if "quantization_config" in written:
        raise refusal(
            name, "its weights are quantised, and the protocol's are float32; take another"
        )
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise refusal(
            name, f"transformers has no causal language model of the kind {config.model_type!r}"
        )
    # Either may name a kernel on the Hub, which is code.
    config._attn_implementation = config._experts_implementation = None
    return config


def _tokenizer(name: str, folder: Path) -> "tuple[Tokenizer, str, str]":
    """Return a folder's tokenizer, its token for the end of a document, and its hash."""
    with in_one_line(name):
        built = load_pretrained(str(folder), _KEY)
    if built.tokenizer.token_to_id(built.end_of_document) is None:
        raise refusal(name, f"its eos_token {built.end_of_document!r} is not in the vocabulary")
    # Otherwise a document could contain its own end.
    built.tokenizer.encode_special_tokens = True
    return built.tokenizer, built.end_of_document, sha256_of_tokenizer(built.tokenizer)


def load_into_kvlab(
    found: HuggingFaceModel, device: torch.device, decode_path: str | None = None
) -> GPT:
    """Load a model of a family that kvlab's own modules can express into them, in float32.

    Args:
        found: The model.
        device: Where it goes.
        decode_path: How it reads its cache; see `model.attention.decode_path`.

    Raises:
        InteropError: If they cannot, or a file of it is damaged.
    """
    with in_one_line(found.described):
        stock = read_stock(found.folder)
        try:
            config, weights = from_stock(stock.config, stock.weights)
        except InteropError as error:
            raise refusal(
                found.described, f"{error}; hf_modules=transformers measures it all the same"
            ) from error
        if decode_path is not None:
            config.attention = config.attention | {"decode_path": decode_path}
        model = GPT(config)
        model.load_state_dict(weights)
        _require_vocabulary(found, model.embed_tokens.num_embeddings)
    return model.to(device).eval()


def load(found: HuggingFaceModel, device: torch.device) -> "TransformersModel":
    """Load a model into transformers' own class, in float32.

    Raises:
        InteropError: If the folder does not hold the whole model, or it is not a causal one.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    with in_one_line(found.described):
        config = _config(found.described, found.folder)
        whole: Any = AutoModelForCausalLM.from_pretrained(
            str(found.folder),
            config=config,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
        )
        loaded, info = whole
        if problem := _unlike(type(loaded).__name__, info):
            raise refusal(found.described, problem)
        # How a folder wishes to be sampled from is no part of what is measured, and may name code.
        loaded.generation_config = GenerationConfig()
        model = TransformersModel(loaded.to(device).eval())
        _require_vocabulary(found, model.vocab_size)
        model.require_causal(found.described)
    return model


def _unlike(name: str, info: dict[str, Any]) -> str | None:
    """Say how a folder's weights are not those of a class, if they are not."""
    described = f"{name} as config.json describes it"
    if mismatched := sorted(info["mismatched_keys"]):
        key, theirs, wanted = mismatched[0]
        return f"its weights have {key} as {list(theirs)}, and {described} needs {list(wanted)}"
    if missing := sorted(info["missing_keys"]):
        others = f"{missing[0]} and {len(missing) - 1} others"
        return f"its weights lack {others} of {name}; this is not a whole causal language model"
    if surplus := sorted(set(info["unexpected_keys"]) - _masks(info["unexpected_keys"])):
        others = f"{surplus[0]} and {len(surplus) - 1} others"
        return f"{others} of its weights have no place in {described}"
    return None


def _masks(names: Iterable[str]) -> set[str]:
    """Return those that are no weights: the causal masks of GPT-2 and GPT-Neo, once stored."""
    return {name for name in names if re.search(r"\battn(\.attention)?\.(masked_)?bias$", name)}


def _require_vocabulary(found: HuggingFaceModel, vocab_size: int) -> None:
    """Refuse a tokenizer with ids that the model does not embed.

    Raises:
        InteropError: Naming both numbers.
    """
    largest = max(found.tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= vocab_size:
        raise refusal(
            found.described,
            f"its tokenizer has the id {largest}, and the model only {vocab_size}; they do not "
            "belong together",
        )
