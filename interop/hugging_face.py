"""Causal language models of transformers, from a folder or the Hub, for kvlab's protocol.

Nothing that a folder brings is run: no code of its own, no pickled weights, no kernels it names.
"""

import contextlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.errors import DataError
from data.file_kinds import pointer_at
from data.hub import check_reachable, explain, is_offline, resolve
from data.hub_watch import watched
from data.tokenizer import load_pretrained, sha256_of_tokenizer
from interop.errors import InteropError
from interop.folders import read_config, read_stock, weight_files
from interop.layouts import from_stock
from interop.transformers_output import silenced
from modeling.generate import PREFILL_CHUNK
from modeling.gpt import GPT
from modeling.kv_cache import storage_bytes
from settings.data import is_hub_name
from tracking.failures import is_out_of_memory

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_KEY = "hf"
_ALTERNATIVE = f"name a folder on this machine in {_KEY}"
# What a model in safetensors needs, its tokenizer with it; nothing that is pickled.
_HUB_FILES = ("*.json", "model*.safetensors", "tokenizer*", "vocab*", "merges.txt", "*.model")
LOGITS_AT_ONCE = 2**27
"""Of a forward pass: 512 MiB in float32."""
_LOGITS_OF_A_SOFTMAX = 2**22
_DECODED = 4
"""Tokens decoded behind the prompt before a cache is measured."""


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

        with _told_in_one_line(self.described):
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
    with _told_in_one_line(name):
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
            raise _refusal(
                path,
                "the local cache does not have it whole (HF_HUB_OFFLINE=1); fetch it with a "
                f"network first, or {_ALTERNATIVE}",
            ) from error
        # The layout of the cache is documented: snapshots/COMMIT.
        return folder, folder.name
    commit = resolve("model", path, revision, _KEY, _ALTERNATIVE)
    with _told_in_one_line(path):
        return watched(what, lambda: _snapshot(path, commit), _ALTERNATIVE), commit


def _snapshot(path: str, revision: str) -> Path:
    """Fetch the files of a commit, or find those of the cache where there is no network."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, revision=revision, allow_patterns=list(_HUB_FILES)))


def _refusal(name: str, why: str) -> InteropError:
    """Return what to raise about a model, by the name that it was given by."""
    return InteropError(f"{_KEY} ({name!r}): {why}")


@contextlib.contextmanager
def _told_in_one_line(name: str) -> Iterator[None]:
    """Turn what the libraries raise about a foreign folder into one line."""
    try:
        with silenced():
            yield
    except (InteropError, DataError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _refusal(name, " ".join(explain(error).split())) from error


def _config(name: str, folder: Path) -> Any:
    """Read a folder's configuration and refuse what cannot be measured, before it is loaded.

    Raises:
        InteropError: Saying why not.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    if (folder / "adapter_config.json").exists():
        raise _refusal(name, "this is an adapter, not a model; merge it into its model first")
    try:
        written = read_config(folder)
        # transformers would follow an index out of the folder.
        weights = [folder / file for file in weight_files(folder)]
    except InteropError as error:
        raise _refusal(name, str(error)) from error
    for path in weights:
        if kind := pointer_at(path):
            raise _refusal(name, f"{path} {kind}")
    if "quantization_config" in written:
        raise _refusal(
            name, "its weights are quantised, and the protocol's are float32; take another"
        )
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise _refusal(
            name, f"transformers has no causal language model of the kind {config.model_type!r}"
        )
    # Either may name a kernel on the Hub, which is code.
    config._attn_implementation = config._experts_implementation = None
    return config


def _tokenizer(name: str, folder: Path) -> "tuple[Tokenizer, str, str]":
    """Return a folder's tokenizer, its token for the end of a document, and its hash."""
    with _told_in_one_line(name):
        built = load_pretrained(str(folder), _KEY)
    if built.tokenizer.token_to_id(built.end_of_document) is None:
        raise _refusal(name, f"its eos_token {built.end_of_document!r} is not in the vocabulary")
    # Otherwise a document could contain its own end.
    built.tokenizer.encode_special_tokens = True
    return built.tokenizer, built.end_of_document, sha256_of_tokenizer(built.tokenizer)


def load_into_kvlab(
    found: HuggingFaceModel, device: torch.device, decode_path: str | None = None
) -> GPT:
    """Load a model of a family that kvlab's own modules can express into them, in float32.

    Args:
        found: Which.
        device: Where it goes.
        decode_path: How it reads its cache; see `model.attention.decode_path`.

    Raises:
        InteropError: If they cannot, or a file of it is damaged.
    """
    with _told_in_one_line(found.described):
        stock = read_stock(found.folder)
        try:
            config, weights = from_stock(stock.config, stock.weights)
        except InteropError as error:
            raise _refusal(
                found.described,
                f"{error}; hf_modules=transformers measures it all the same",
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

    with _told_in_one_line(found.described):
        config = _config(found.described, found.folder)
        whole: Any = AutoModelForCausalLM.from_pretrained(
            str(found.folder),
            config=config,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told here, by name
        )
        loaded, info = whole
        if mismatched := sorted(info["mismatched_keys"]):
            key, theirs, wanted = mismatched[0]
            raise _refusal(
                found.described,
                f"its weights have {key} as {list(theirs)}, and {type(loaded).__name__} as "
                f"config.json describes it needs {list(wanted)}",
            )
        if missing := sorted(info["missing_keys"]):
            raise _refusal(
                found.described,
                f"its weights lack {missing[0]} and {len(missing) - 1} others of "
                f"{type(loaded).__name__}; this is not a whole causal language model",
            )
        if surplus := sorted(set(info["unexpected_keys"]) - _masks(info["unexpected_keys"])):
            raise _refusal(
                found.described,
                f"{surplus[0]} and {len(surplus) - 1} others of its weights have no place in "
                f"{type(loaded).__name__} as config.json describes it",
            )
        # How a folder wishes to be sampled from is no part of what is measured, and may name code.
        loaded.generation_config = GenerationConfig()
        model = TransformersModel(loaded.to(device).eval())
        _require_vocabulary(found, model.vocab_size)
        model.require_causal(found.described)
    return model


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
        raise _refusal(
            found.described,
            f"its tokenizer has the id {largest}, and the model only {vocab_size}; they do not "
            "belong together",
        )


class TransformersModel:
    """A causal language model of transformers; `measuring.external.ExternalModel`.

    Args:
        model: In evaluation mode, float32.

    Attributes:
        model: That.
        vocab_size: Number of token ids that it embeds.
        max_position_embeddings: Tokens of the longest text it was made for; None if it says none.
        positions: "RoPE", "none" where no layer of a family with RoPE has it, or "own".
        is_bound: Whether it cannot be shown more than `max_position_embeddings`.
        window: Tokens that its window layers see, if it has any; None if it names none.
        num_parameters: Each once.
        weight_bytes: Of the weights that a decoding step reads: not what is looked up.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        config = model.config.get_text_config()
        self.vocab_size: int = model.get_input_embeddings().num_embeddings
        self.max_position_embeddings: int | None = getattr(config, "max_position_embeddings", None)
        has_rope = bool(getattr(config, "rope_parameters", None))
        # One entry a layer, true where it has RoPE, whatever the name says (SmolLM3), or its base
        # (Granite).
        layers = getattr(config, "no_rope_layers", None) or getattr(
            config, "layer_rope_theta", None
        )
        is_told = not layers or any(layers)
        self.positions = ("RoPE" if is_told else "none") if has_rope else "own"
        self.is_bound = not has_rope and self.max_position_embeddings is not None
        self.window: int | None = getattr(config, "sliding_window", None)
        self.num_parameters: int = sum(weight.numel() for weight in model.parameters())
        self.weight_bytes = _weight_bytes(model)
        _count_its_own_layers(model)
        self._takes = set(inspect.signature(model.forward).parameters)
        # Recurrent models call it so.
        self._cache = "cache_params" if "cache_params" in self._takes else "past_key_values"

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return cast(torch.device, self.model.device)

    def require_causal(self, name: str) -> None:
        """Refuse a model whose prediction depends on what comes later, or is no number.

        Args:
            name: For the message.

        Raises:
            InteropError: If it does, or is not.
        """
        tokens = torch.arange(8, device=self.device).remainder(self.vocab_size)[None]
        other = tokens.clone()
        other[0, -1] = (other[0, -1] + 1) % self.vocab_size
        with torch.no_grad():
            one, two = (self._forward(t, use_cache=False).logits[:, :-1] for t in (tokens, other))
        if not one.isfinite().all():
            raise _refusal(
                name,
                f"{type(self.model).__name__} gives logits that are not finite; its weights are "
                "damaged",
            )
        if not torch.allclose(one, two, rtol=1e-3, atol=1e-3 * float(one.abs().max())):
            raise _refusal(
                name,
                f"{type(self.model).__name__} predicts a token from later ones, too; take a causal "
                "language model",
            )

    @torch.no_grad()
    def token_nll(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the NLL in nats of each target [b, s] given tokens [b, s], float32 or wider."""
        rows = max(1, LOGITS_AT_ONCE // (tokens.shape[1] * self.vocab_size))
        parts = []
        for some, theirs in zip(tokens.split(rows), targets.split(rows), strict=True):
            logits = self._forward(some, use_cache=False).logits.flatten(0, 1)
            parts.append(_nll(logits, theirs.flatten()).view_as(theirs))
        return torch.cat(parts)

    @torch.no_grad()
    def token_nll_through_cache(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the same, where each token is fed alone, behind its own cache of the others."""
        cache, found = None, []
        for step in range(tokens.shape[1]):
            output = self._forward(tokens[:, step : step + 1], **{self._cache: cache})
            cache = _cache_of(output, self._cache)
            found.append(_nll(output.logits[:, -1], targets[:, step]))
        return torch.stack(found, dim=1)

    @torch.no_grad()
    def generate(self, batch_size: int, context_length: int) -> int:
        """Decode greedily with transformers' own `generate`, which makes the cache it likes.

        Args:
            batch_size: Sequences.
            context_length: Tokens of each that the cache holds at the end, at least 2.

        Returns:
            The bytes of the live cache: of the storages of all tensors that it holds.

        Raises:
            InteropError: If there is no cache.
        """
        num_new = min(_DECODED, context_length - 1)
        prompt = torch.zeros(
            batch_size, context_length - num_new, dtype=torch.long, device=self.device
        )
        # What a model keeps elsewhere, a recurrent state in its modules say, is in no cache.
        _cache_of(self._forward(prompt[:, :1]), self._cache)
        with silenced():
            output = self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                # The last one is not fed to the cache.
                max_new_tokens=num_new + 1,
                min_new_tokens=num_new + 1,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                pad_token_id=0,
                return_dict_in_generate=True,
            )
        num_bytes = live_bytes(_cache_of(output, "past_key_values"))
        if not num_bytes:
            raise InteropError("this model has no cache: each step computes the whole text")
        return num_bytes

    def decode_step(self, batch: int, context: int) -> "DecodeStep":
        """Return a decoding step behind `context` random tokens, which can be repeated.

        Raises:
            InteropError: If it has no positions for so many, no cache that can be fed, or fails.
        """
        with _told_in_one_line(type(self.model).__name__):
            return DecodeStep(self, batch, context)

    def positions_for(self, first: int, last: int) -> dict[str, Tensor]:
        """Return the argument that lets a model without RoPE take more tokens than it knows.

        A step takes as long at any position.

        Raises:
            InteropError: If the model cannot be told positions.
        """
        known = self.max_position_embeddings
        if not self.is_bound or known is None or last <= known:
            return {}
        if "position_ids" not in self._takes:
            raise InteropError(f"{type(self.model).__name__} has positions for {known} tokens only")
        positions = torch.arange(first, last, device=self.device).clamp(max=known - 1)
        return {"position_ids": positions[None]}

    @torch.no_grad()
    def next_logits(self, tokens: Tensor, cache: Any, first: int) -> tuple[Tensor, Any]:
        """Feed tokens [b, s] to a cache that holds `first`; None is an empty one.

        Returns:
            The logits [b, n] behind the last of them, and the cache.
        """
        options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in self._takes else {}
        options |= self.positions_for(first, first + tokens.shape[1])
        output = self._forward(tokens, **{self._cache: cache}, **options)
        return output.logits[:, -1], _cache_of(output, self._cache)

    def _forward(self, tokens: Tensor, **options: Any) -> Any:
        return self.model(input_ids=tokens, **{"use_cache": True, **options})


class DecodeStep:
    """One decoding step that can be repeated: a full cache of transformers' own class.

    A cache that cannot be put back, of a recurrent layer say, goes on growing instead.

    Args:
        model: In evaluation mode.
        batch: Sequences.
        context: Tokens of each that the cache holds before the step, random ones.

    Attributes:
        batch: That.
        context: That.
        cache_bytes: Of the live cache before the first step.
        cache_bytes_read: That, as if each layer read what it stores alone.
        weight_bytes: Of the weights that a step reads.
        beyond_trained: Whether the model was made for shorter contexts only.
    """

    def __init__(self, model: TransformersModel, batch: int, context: int) -> None:
        self.batch = batch
        self.context = context
        self.weight_bytes = model.weight_bytes
        known = model.max_position_embeddings
        self.beyond_trained = known is not None and context >= known
        self._model = model
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(model.vocab_size, (batch, context + 1), generator=generator)
        self._token = tokens[:, -1:].to(model.device)
        self._cache: Any = None
        # The last one alone, as in decoding: behind a chunk a window layer still stores all of it.
        chunks = [
            *tokens[:, : context - 1].split(PREFILL_CHUNK, dim=1),
            tokens[:, context - 1 : -1],
        ]
        start = 0
        for chunk in (each.to(model.device) for each in chunks if each.shape[1]):
            _, self._cache = model.next_logits(chunk, self._cache, start)
            start += chunk.shape[1]
        self.cache_bytes = self.cache_bytes_read = live_bytes(self._cache)
        self._can_go_back = self._cache.is_croppable
        if self._can_go_back:
            self._cache.activate_past_recording()

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """Return the logits [b, n] behind one more token, and forget it."""
        logits, self._cache = self._model.next_logits(self._token, self._cache, self.context)
        if self._can_go_back:
            self._cache.crop(-1)
        return logits


def live_bytes(cache: Any) -> int:
    """Return the bytes of the storages behind all tensors that a cache holds, each once.

    A window layer of transformers stores a window of w tokens where one was fed alone, as in
    decoding; all of a prompt where that was the last that was fed.
    """
    return storage_bytes(_tensors(cache, set()))


def _cache_of(output: Any, key: str) -> Any:
    cache = getattr(output, key, None)
    if not hasattr(cache, "is_croppable"):
        raise InteropError("this model has no cache that tokens can be fed to one by one")
    return cache


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the NLL of targets [rows] under logits [rows, n], some rows at a time."""
    rows = max(1, _LOGITS_OF_A_SOFTMAX // logits.shape[-1])
    wide = torch.promote_types(logits.dtype, torch.float32)
    return torch.cat(
        [
            F.cross_entropy(some.to(wide), theirs, reduction="none")
            for some, theirs in zip(logits.split(rows), targets.split(rows), strict=True)
        ]
    )


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if id(value) in seen or isinstance(value, nn.Module | type):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if value.dim():  # others are counters, and widths of windows
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item, seen)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item, seen)
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value), seen)


def _count_its_own_layers(model: Any) -> None:
    """Let a cache have as many layers as a decoder that is taken alone, of BART say.

    The number of layers that such a configuration gives to transformers' cache is the encoder's.
    """
    for module in model.modules():
        config = getattr(module, "config", None)
        layers = getattr(config, "decoder_layers", None)
        if config is not None and layers and not config.is_encoder_decoder:
            config.num_hidden_layers = layers


def _weight_bytes(model: Any) -> int:
    """Return the bytes of all weights but the embeddings that a token is looked up in."""
    head = model.get_output_embeddings()
    multiplied = None if head is None else head.weight
    looked_up = {
        id(module.weight): module.weight.nbytes
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module.weight is not multiplied
    }
    return sum(weight.nbytes for weight in model.parameters()) - sum(looked_up.values())
