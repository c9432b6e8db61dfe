"""Models of transformers as the protocol measures them, and folders that are refused."""

import inspect
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from external_models import VOCAB, deepseek, gpt2, gpt_neo, llama, mamba, mistral, saved, smollm3
from safetensors.torch import load_file, save_file

import interop.importing.external_model
import interop.transformers_model
from data.tokenizing.tokenizer import END_OF_TEXT, TOKENIZER_FILES, bytes_tokenizer, save_tokenizer
from interop.errors import InteropError
from interop.importing.external_model import find, load, load_into_kvlab
from interop.transformers_model import TransformersModel, live_bytes
from tests.data.hub_stand_in import COMMITS, stand_in

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
FAMILIES = {"llama": llama, "deepseek": deepseek, "gpt2": gpt2, "mistral": mistral}


def tokens_of(*shape, seed=1):
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def rounding(dtype, nats):
    """What some hundred roundings of a sum of so many nats amount to."""
    return 200 * torch.finfo(dtype).eps * float(nats.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_likelihoods_are_those_of_a_plain_log_softmax(family, monkeypatch):
    # A forward pass of one row at a time, and a softmax of five.
    monkeypatch.setattr(interop.transformers_model, "LOGITS_AT_ONCE", 12 * VOCAB)
    monkeypatch.setattr(interop.transformers_model, "_LOGITS_OF_A_SOFTMAX", 5 * VOCAB)
    model = FAMILIES[family]().double()
    text = tokens_of(3, 13)
    tokens, targets = text[:, :-1], text[:, 1:]
    with torch.no_grad():
        plain = model(tokens).logits.log_softmax(-1)
    expected = -plain.gather(2, targets[..., None])[..., 0]
    measured = TransformersModel(model)
    for found in (
        measured.token_nll(tokens, targets),
        measured.token_nll_through_cache(tokens, targets),
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=rounding(torch.float64, expected))


def test_likelihoods_are_float32_where_a_model_is_narrower():
    measured = TransformersModel(llama().bfloat16())
    assert measured.token_nll(tokens_of(1, 4), tokens_of(1, 4)).dtype == torch.float32


@pytest.mark.parametrize(
    ("build", "per_token"),
    [
        (llama, 2 * 2 * 2 * 8),  # layers, keys and values, heads, width
        (deepseek, 2 * (16 + 4)),  # layers, latent and shared key
        (gpt2, 2 * 2 * 32),
    ],
)
def test_the_cache_is_measured_as_generate_leaves_it(build, per_token):
    assert TransformersModel(build()).generate(3, 20) == 3 * 20 * per_token * 4


def test_a_sliding_window_keeps_its_cache_small():
    measured = TransformersModel(mistral())
    full = 2 * 2 * 2 * 8 * 4  # bytes of a token
    for context in (1, 4, 6, 20, 32):
        step = measured.decode_step(2, context)
        assert step.cache_bytes == 2 * min(context, 6) * full
        if context > 1:
            assert measured.generate(2, context) == step.cache_bytes
    assert torch.equal(step(), step())


def test_storages_are_counted_once_wherever_a_cache_holds_them():
    whole = torch.zeros(10)
    layer = SimpleNamespace(keys=whole[:3], states={"a": [torch.zeros(2, dtype=torch.float64)]})
    cache = SimpleNamespace(layers=(layer,), more=[whole[5:]], model=torch.nn.Linear(4, 4))
    cache.itself = cache
    assert live_bytes(cache) == 10 * 4 + 2 * 8


@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoding_step_is_the_next_one_and_can_be_repeated(family, monkeypatch):
    monkeypatch.setattr(interop.transformers_model, "PREFILL_CHUNK", 4)
    model = FAMILIES[family]()
    fed = []
    forward = model.forward

    def recorded(*args, **options):
        fed.append(options["input_ids"])
        return forward(*args, **options)

    recorded.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(model, "forward", recorded)
    step = TransformersModel(model).decode_step(2, 11)
    first, again = step(), step()
    assert [piece.shape[1] for piece in fed] == [4, 4, 2, 1, 1, 1]
    with torch.no_grad():
        whole = model(input_ids=torch.cat(fed[:-1], dim=1)).logits[:, -1]
    torch.testing.assert_close(first, whole, rtol=0, atol=rounding(torch.float32, whole))
    assert torch.equal(first, again)
    assert (step.batch, step.context, step.beyond_trained) == (2, 11, False)
    assert step.cache_bytes * 11 * 2 // (11 * 2) == TransformersModel(model).generate(2, 11)


def test_learned_positions_end_where_they_end_and_steps_do_not():
    measured = TransformersModel(gpt2())
    assert measured.is_bound
    step = measured.decode_step(1, 50)
    assert step.beyond_trained
    assert torch.isfinite(step()).all()
    bound = TransformersModel(llama())
    assert not bound.is_bound
    assert bound.positions == "RoPE"


def test_a_family_with_rope_may_have_it_in_no_layer():
    for layers, positions in (([0, 0], "none"), ([0, 1], "RoPE")):
        measured = TransformersModel(smollm3(no_rope_layers=layers))
        assert (measured.positions, measured.is_bound) == (positions, False)


def test_what_a_library_raises_at_a_decoding_step_is_one_line(monkeypatch):
    measured = TransformersModel(llama())

    def fail(*args, **options):
        raise IndexError("index\nout of range")

    monkeypatch.setattr(measured, "_forward", fail)
    with pytest.raises(InteropError, match=r"LlamaForCausalLM.*index out of range"):
        measured.decode_step(1, 4)


def test_what_cannot_be_cropped_keeps_growing():
    measured = TransformersModel(mamba())
    assert (measured.max_position_embeddings, measured.is_bound) == (None, False)
    step = measured.decode_step(2, 9)
    assert step().shape == step().shape == (2, VOCAB)
    # Its state does not grow with the text.
    assert measured.generate(1, 30) == measured.generate(1, 10)


def test_weights_that_are_looked_up_are_not_read():
    total = 4 * TransformersModel(llama()).num_parameters
    assert TransformersModel(llama()).weight_bytes == total - VOCAB * 32 * 4
    tied = TransformersModel(llama(tie_word_embeddings=True))
    assert tied.weight_bytes == 4 * tied.num_parameters == total - VOCAB * 32 * 4
    learned = TransformersModel(gpt2())
    assert learned.weight_bytes == 4 * learned.num_parameters - 32 * 32 * 4


# Folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(llama(), tmp_path_factory.mktemp("models") / "small-llama")


@pytest.fixture
def copied(folder, tmp_path):
    """A copy to spoil."""
    copy = tmp_path / "spoilt"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_is_found_and_loaded_whole(folder, monkeypatch):
    found = find(str(folder))
    assert (found.label, found.described) == ("hf:small-llama", str(folder))
    assert (found.kind, found.architecture) == ("hf:llama", "LlamaForCausalLM")
    assert found.end_of_document == END_OF_TEXT
    # Text that looks like a special token is text.
    assert len(found.tokenizer.encode(END_OF_TEXT, add_special_tokens=False).ids) > 1
    text = tokens_of(1, 9)
    ours = load(found, CPU).token_nll(text[:, :-1], text[:, 1:])
    assert torch.equal(ours, TransformersModel(llama()).token_nll(text[:, :-1], text[:, 1:]))
    monkeypatch.chdir(folder)
    assert find(".").label == "hf:small-llama"


def test_the_tokenizer_is_known_by_what_kvlab_would_store(folder, tmp_path):
    import hashlib

    stored = (folder / TOKENIZER_FILES[0]).read_bytes()
    assert find(str(folder)).tokenizer_sha256 == hashlib.sha256(stored).hexdigest()


def test_what_was_once_stored_beside_weights_is_no_matter(tmp_path):
    cases = {
        "gpt2": (gpt2(), "transformer.h.0.attn.masked_bias"),
        "gpt-neo": (gpt_neo(), "transformer.h.0.attn.attention.bias"),
        "llama": (llama(), "model.layers.0.self_attn.rotary_emb.inv_freq"),
        "tied": (llama(tie_word_embeddings=True), "lm_head.weight"),
    }
    for name, (model, key) in cases.items():
        folder = saved(model, tmp_path / name)
        path = folder / "model.safetensors"
        weights = load_file(path)
        assert key not in weights
        # transformers unties a head that differs.
        more = weights["model.embed_tokens.weight"].clone() if name == "tied" else torch.ones(1, 4)
        save_file(weights | {key: more}, path, {"format": "pt"})
        loaded = load(find(str(folder)), CPU)
        assert loaded.num_parameters == TransformersModel(model).num_parameters
    # A weight of a layer is none of these.
    for key in ("h.0.attn.c_attn.bias", "h.1.attn.attention.out_proj.bias", "h.0.attn.bias.weight"):
        assert interop.importing.external_model._masks([key]) == set()


def test_narrow_weights_are_measured_in_float32(tmp_path):
    found = find(str(saved(llama().bfloat16(), tmp_path / "narrow")))
    assert load(found, CPU).model.dtype == torch.float32


def spoil_pickled(path):
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def spoil_index(path):
    """Weights in the folder above, which transformers would load."""
    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").rename(path.parent / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "../model.safetensors")}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def spoil_head(path):
    weights = load_file(path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, path / "model.safetensors", {"format": "pt"})


def spoil_numbers(path):
    weights = load_file(path / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, path / "model.safetensors", {"format": "pt"})


def changed(**keys):
    return lambda path: change(path / "config.json", **keys)


def spoil_tokenizer(path):
    tokenizer = bytes_tokenizer()
    tokenizer.add_tokens(["one", "more"])
    save_tokenizer(tokenizer, END_OF_TEXT, path)


def spoil_eos(path):
    change(path / "tokenizer_config.json", eos_token=None, bos_token=None)


REFUSED = {
    "fewer layers": (changed(num_hidden_layers=1), "have no place in LlamaForCausalLM"),
    "adapter": (lambda path: (path / "adapter_config.json").write_text("{}"), "is an adapter"),
    "list": (
        lambda path: (path / "config.json").write_text("[]"),
        "config.json is damaged: expected object",
    ),
    "pickled": (spoil_pickled, "has no model.safetensors"),
    "index of another folder": (spoil_index, "'../model.safetensors' is no safetensors file in"),
    "weights of another name": (
        changed(transformers_weights="other.safetensors"),
        "transformers_weights names a file of weights",
    ),
    "no numbers": (spoil_numbers, "logits that are not finite"),
    "quantised": (changed(quantization_config={"quant_method": "x"}), "quantised"),
    "unknown": (changed(model_type="nothing"), "nothing"),
    "no language model": (changed(model_type="t5"), "no causal language model of the kind 't5'"),
    "no head": (spoil_head, "its weights lack lm_head.weight"),
    "another shape": (
        changed(intermediate_size=44),
        r"down_proj.weight as \[32, 48\], and .* needs \[32, 44\]",
    ),
    "another tokenizer": (spoil_tokenizer, "its tokenizer has the id 258"),
    "a pointer": (
        lambda path: (path / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
        ),
        r"model\.safetensors is a Git LFS pointer.*git lfs pull",
    ),
    "no eos": (spoil_eos, "has no eos_token"),
    "no tokenizer": (
        lambda path: [(path / name).unlink() for name in TOKENIZER_FILES],
        "cannot load a tokenizer",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_measured_is_refused_in_one_line(case, copied, capfd):
    spoil, message = REFUSED[case]
    spoil(copied)
    with pytest.raises((InteropError, ValueError), match=message) as refusal:
        load(find(str(copied)), CPU)
    line = str(refusal.value)
    assert "\n" not in line
    assert "hf (" in line
    assert capfd.readouterr().out == ""


def test_how_a_folder_wishes_to_be_sampled_from_is_no_matter(copied):
    """Contrastive search is code of the Hub, and a quantised cache another library."""
    wishes = {"penalty_alpha": 0.6, "top_k": 4, "cache_implementation": "quantized"}
    (copied / "generation_config.json").write_text(json.dumps(wishes))
    expected = TransformersModel(llama()).generate(2, 9)
    assert load(find(str(copied)), CPU).generate(2, 9) == expected


def test_kvlabs_modules_refuse_a_tokenizer_with_more_ids(copied):
    spoil_tokenizer(copied)
    with pytest.raises(InteropError, match="its tokenizer has the id 258"):
        load_into_kvlab(find(str(copied)), CPU)


def test_no_such_folder_says_what_can_be_named():
    with pytest.raises(InteropError, match="no such folder: a/b/c; give one that"):
        find("a/b/c")
    with pytest.raises(InteropError, match="the local cache does not have it whole"):
        find("nobody/nothing")


def test_code_next_to_a_model_is_not_run(copied):
    mark = copied / "MARK"
    (copied / "own.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Own: pass\n")
    own = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    change(copied / "config.json", model_type="own", auto_map=own)
    with pytest.raises(InteropError, match="comes with code of its own"):
        find(str(copied))
    # Where transformers has the architecture, its own class is taken.
    change(copied / "config.json", model_type="llama", auto_map=own)
    assert type(load(find(str(copied)), CPU).model).__name__ == "LlamaForCausalLM"
    assert not mark.exists()


def test_a_kernel_that_a_folder_names_is_not_asked_for(copied):
    change(copied / "config.json", attn_implementation="somebody/kernel")
    assert "/" not in load(find(str(copied)), CPU).model.config._attn_implementation


def test_a_model_that_sees_what_comes_later_is_refused(tmp_path):
    from transformers import BertConfig, BertLMHeadModel

    config = BertConfig(
        **{"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "is_decoder": False},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3},
    )
    torch.manual_seed(0)
    found = find(str(saved(BertLMHeadModel(config), tmp_path / "both-ways")))
    with pytest.raises(InteropError, match="BertLMHeadModel predicts a token from later ones"):
        load(found, CPU)


# The Hub

FETCH = """
import json, sys, torch
from interop.importing.external_model import find, load
for name in sys.argv[1:]:
    try:
        found = find(name)
        model = load(found, torch.device("cpu"))
        result = {"label": found.label, "described": found.described, "n": model.num_parameters}
    except ValueError as error:
        result = {"error": str(error)}
    print(json.dumps(result), flush=True)
"""


def fetch(endpoint, home, *names, offline="0"):
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": offline}
    done = subprocess.run(
        [sys.executable, "-c", FETCH, *names],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_name_of_the_hub_is_pinned_and_nothing_pickled_is_fetched(folder, tmp_path):
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files |= {"pytorch_model.bin": b"x", "README.md": b"x", "own.py": b"x"}
    with stand_in(models={"t/small": files}) as hub:
        names = ("t/small", "t/small@v1", "t/small@never", "t/none")
        newest, tagged, never, none = fetch(hub.endpoint, tmp_path, *names)
        fetched = list(hub.requests)
    expected = TransformersModel(llama()).num_parameters
    assert newest == {
        "label": "hf:t/small",
        "described": f"t/small at commit {COMMITS['main']}",
        "n": expected,
    }
    assert tagged["label"] == "hf:t/small@v1"
    assert tagged["described"].endswith(COMMITS["v1"])
    assert "no such branch, tag or commit" in never["error"]
    assert "no such repository" in none["error"]
    assert not [line for line in fetched if "pytorch_model.bin" in line or "own.py" in line]
    offline, missing = fetch("http://127.0.0.1:9", tmp_path, "t/small", "t/never", offline="1")
    assert offline["described"] == newest["described"]
    assert "the local cache does not have it whole" in missing["error"]


@pytest.mark.parametrize("family", ["llama", "deepseek", "mistral"])
def test_kvlabs_modules_say_the_same_as_transformers(family, tmp_path):
    found = find(str(saved(FAMILIES[family]().double(), tmp_path / family)))
    theirs = TransformersModel(FAMILIES[family]().double())
    ours = load_into_kvlab(found, CPU, "expanded" if family == "deepseek" else None)
    assert ours.embed_tokens.weight.dtype == torch.float32
    assert sum(weight.numel() for weight in ours.parameters()) == theirs.num_parameters
    if family == "deepseek":
        assert ours.config.attention["decode_path"] == "expanded"
    text = tokens_of(3, 20)
    expected = theirs.token_nll(text[:, :-1], text[:, 1:])
    nats = ours.double().token_nll(text[:, :-1], text[:, 1:])
    # Its angles are float32 in transformers.
    torch.testing.assert_close(nats, expected, rtol=0, atol=rounding(torch.float32, expected))
    cache = ours.new_cache(3, 20)
    ours(text, cache=cache)
    assert cache.num_bytes() == theirs.generate(3, 20)  # its weights are float64, too


def test_what_kvlab_has_no_modules_for_is_refused(tmp_path):
    found = find(str(saved(llama(sliding_window=6), tmp_path / "sliding")))
    with pytest.raises(InteropError, match=r"hf \(.*sliding_window: .*hf_modules=transformers"):
        load_into_kvlab(found, CPU)
