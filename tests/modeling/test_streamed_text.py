"""Text as it is streamed: joined, what any tokenizer makes of all tokens."""

import pytest
import tokenizers
import torch
from tiny import build_gpt
from tokenizers import decoders, pre_tokenizers, trainers

import modeling.generate
from modeling.config import SamplingSettings
from modeling.generate import generate_text

TEXT = "the river old stone isn't it 's done , bees sing . Ünïcödé 日本"


def subword(model, trainer, *, pre_tokenizer, decoder):
    """A tokenizer trained on TEXT."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def llama_like():
    """Metaspace and byte fallback, with Llama's decoder."""
    letters = sorted({*TEXT.replace(" ", "\N{LOWER ONE EIGHTH BLOCK}")} - {*"日本Ü"})
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    merges = [("\N{LOWER ONE EIGHTH BLOCK}", "o"), ("o", "l"), ("s", "t")]
    names += [first + second for first, second in merges]
    model = tokenizers.models.BPE(
        {name: id for id, name in enumerate(names)}, merges, byte_fallback=True, unk_token="<unk>"
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    parts = [decoders.Replace("\N{LOWER ONE EIGHTH BLOCK}", " "), decoders.ByteFallback()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return tokenizer


class CleanedUp:
    """As transformers decodes with clean_up_tokenization_spaces: spaces before marks go."""

    def __init__(self):
        self.encode = TOKENIZERS["word_level"]().encode
        self._decode = TOKENIZERS["word_level"]().decode

    def decode(self, ids):
        text = self._decode(ids)
        for spaced, tight in ((" ' ", "'"), (" .", "."), (" ,", ","), (" 's", "'s")):
            text = text.replace(spaced, tight)
        return text


TOKENIZERS = {
    "byte_level": lambda: subword(
        tokenizers.models.BPE(),
        trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoder=decoders.ByteLevel(),
    ),
    "llama": llama_like,
    "unigram_metaspace": lambda: subword(
        tokenizers.models.Unigram(),
        trainers.UnigramTrainer(vocab_size=80, unk_token="<unk>", special_tokens=["<unk>"]),
        pre_tokenizer=pre_tokenizers.Metaspace(),
        decoder=decoders.Metaspace(),
    ),
    "word_level": lambda: subword(
        tokenizers.models.WordLevel(unk_token="<unk>"),
        trainers.WordLevelTrainer(special_tokens=["<unk>"]),
        pre_tokenizer=pre_tokenizers.Whitespace(),
        decoder=None,
    ),
    **{
        f"word_piece_cleanup_{cleanup}": lambda cleanup=cleanup: subword(
            tokenizers.models.WordPiece(unk_token="[UNK]"),
            trainers.WordPieceTrainer(vocab_size=70, special_tokens=["[UNK]"]),
            pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
            decoder=decoders.WordPiece(cleanup=cleanup),
        )
        for cleanup in (True, False)
    },
    "bpe_suffix": lambda: subword(
        tokenizers.models.BPE(end_of_word_suffix="</w>"),
        trainers.BpeTrainer(end_of_word_suffix="</w>"),
        pre_tokenizer=pre_tokenizers.Whitespace(),
        decoder=decoders.BPEDecoder(),
    ),
    "cleaned_up": CleanedUp,
}


def streamed(monkeypatch, tokens, tokenizer, prompt):
    """What generate_text yields when the model produces these tokens."""
    monkeypatch.setattr(
        modeling.generate, "generate", lambda *_: (torch.tensor([token]) for token in tokens)
    )
    model = build_gpt("mha", vocab_size=256)  # asked for its device alone
    settings = SamplingSettings(temperature=0.0)
    return list(generate_text(model, tokenizer, prompt, len(tokens), settings))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_joined_are_the_text_of_all_tokens_of_any_tokenizer(name, monkeypatch):
    tokenizer = TOKENIZERS[name]()
    start = tokenizer.encode("the river").ids
    assert tokenizer.decode(start) == "the river"
    rest = tokenizer.encode("the river old stone").ids[len(start) :]
    pieces = streamed(monkeypatch, rest, tokenizer, "the river")
    assert "".join(pieces) == " old stone"
    assert len([piece for piece in pieces if piece]) > 1
    # A prompt's own last space is not shown twice, nor lost.
    rest = tokenizer.encode("the river old").ids[len(start) :]
    if tokenizer.decode(tokenizer.encode("the ").ids) == "the":
        assert "".join(streamed(monkeypatch, rest, tokenizer, "the river ")) == "old"
    size = 1 + max(tokenizer.encode(TEXT).ids)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        tokens = torch.randint(size, (12,), generator=generator).tolist()
        joined = "".join(streamed(monkeypatch, tokens, tokenizer, "the river"))
        whole = tokenizer.decode(start + tokens)
        if whole.startswith("the river"):
            assert "the river" + joined == whole
        else:
            assert joined == tokenizer.decode(tokens)
