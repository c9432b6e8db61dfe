import dataclasses
import math

import pytest

from settings.data import DataSettings, TokenizerSettings

GOOD_DATA = {"name": "x", "source": "python_stdlib", "prepared_dir": "p"}
HUB = {"source": "hub", "path": "a/b"}
GOOD_TOKENIZER = {"name": "x", "kind": "bpe"}


def mixture(names=("a", "b"), weights=None, b=None):
    corpora = {name: DataSettings(**GOOD_DATA) for name in names}
    if b:
        corpora["b"] = DataSettings(**(GOOD_DATA | b))
    return {
        "source": "mixture",
        "corpora": corpora,
        "weights": weights or dict.fromkeys(names, 1.0),
    }


BAD_DATA = [
    ({"name": "???"}, "data.name is not set"),
    ({"name": "a/b"}, "data.name"),
    ({"name": ".hidden"}, "data.name"),
    ({"source": "csv"}, "data.source ('csv') must be python_stdlib, "),
    ({"source": "local"}, "data.path is not set"),
    ({"source": "hub", "path": "./x"}, "data=local"),
    ({"source": "hub", "path": "https://x/y"}, "data.path"),
    ({"path": "x"}, "data.path ('x') must be null"),
    ({"config_name": "x"}, "data.config_name"),
    ({"revision": "x"}, "data.revision"),
    ({"streaming": True}, "data.streaming"),
    ({"train_split": ""}, "data.train_split"),
    ({"validation_split": "train"}, "data.validation_split ('train')"),
    ({"text_column": ""}, "data.text_column"),
    ({"document_start": "("}, "data.document_start ('(')"),
    ({"validation_fraction": 0.0}, "data.validation_fraction (0.0)"),
    ({"validation_fraction": -1.0}, "data.validation_fraction (-1.0)"),
    ({"validation_fraction": 0.6}, "data.validation_fraction (0.6)"),
    ({"validation_fraction": math.nan}, "data.validation_fraction (nan)"),
    ({"validation_fraction": math.inf}, "data.validation_fraction (inf)"),
    ({"max_train_tokens": 0}, "data.max_train_tokens (0)"),
    ({"shard_tokens": 0}, "data.shard_tokens (0)"),
    ({"shard_tokens": 2**40}, "data.shard_tokens"),
    ({"num_workers": 0}, "data.num_workers (0)"),
    ({"invalid_utf8": "ignore"}, "data.invalid_utf8 ('ignore') must be refuse or replace"),
    ({"encoding": "latin-1"}, "data.encoding ('latin-1') applies to source local only"),
    (mixture() | {"encoding": "latin-1"}, "set data.corpora.NAME.encoding"),
    ({"text_template": "no column"}, "data.text_template ('no column')"),
    ({"text_template": "{a"}, "data.text_template ('{a') is no template"),
    ({"text_template": "{a.__class__}"}, "data.text_template"),
    ({"text_template": "{a[0]}"}, "data.text_template"),
    ({"text_template": "{a:>9999999999}"}, "data.text_template"),
    ({"text_template": "{a!r}"}, "data.text_template"),
    ({"text_template": "{}"}, "data.text_template"),
    ({"weights": {"a": 1.0}}, "data.weights applies to source mixture only"),
    ({"source": "mixture"}, "data.corpora has 0 corpora"),
    (mixture(weights={"a": 1.0}), "data.weights (a) must name the same as data.corpora (a, b)"),
    (mixture(weights={"a": 1.0, "b": 0.0}), "data.weights.b (0.0)"),
    (mixture(weights={"a": 1.0, "b": math.nan}), "data.weights.b (nan)"),
    (mixture(b={"path": "x"}), "data.corpora.b.path ('x') must be null"),
    (mixture(b={"source": "mixture"}), "data.corpora.b.source must not be mixture"),
    (mixture() | {"max_train_tokens": 5}, "data.max_train_tokens is each corpus' own"),
    (mixture() | {"validation_fraction": 0.1}, "set data.corpora.NAME.validation_fraction"),
    (mixture(b={"drop_leaked_documents": True}), "set data.drop_leaked_documents"),
    (mixture(names=("wiki", "Wiki")), "differ in case only"),
    (mixture(names=("a", "b/c")), "a name in data.corpora ('b/c')"),
]
BAD_TOKENIZER = [
    ({"kind": "???"}, "tokenizer.kind is not set"),
    ({"name": "a b"}, "tokenizer.name"),
    ({"kind": "word"}, "tokenizer.kind ('word') must be bpe, bytes or pretrained"),
    ({"vocab_size": 256}, "tokenizer.vocab_size (256) must be from 257"),
    ({"vocab_size": -1}, "tokenizer.vocab_size (-1)"),
    ({"vocab_size": 2**30}, "tokenizer.vocab_size"),
    ({"max_training_bytes": 0}, "tokenizer.max_training_bytes (0)"),
    ({"kind": "pretrained"}, "tokenizer.path is not set"),
    ({"path": "x"}, "tokenizer.path ('x') must be null"),
]


def test_good_settings_have_no_problems():
    assert DataSettings(**GOOD_DATA).problems() == []
    assert DataSettings(**(GOOD_DATA | HUB), config_name="c", streaming=True).problems() == []
    assert DataSettings(**(GOOD_DATA | mixture())).problems() == []
    template = "{title}: {a b}{{x}}"
    assert DataSettings(**GOOD_DATA, text_template=template).problems() == []
    assert TokenizerSettings(**GOOD_TOKENIZER).problems() == []


@pytest.mark.parametrize(("change", "message"), BAD_DATA)
def test_bad_data_settings_are_refused_by_key(change, message):
    problems = DataSettings(**(GOOD_DATA | change)).problems()
    assert len(problems) == 1
    assert message in problems[0]


@pytest.mark.parametrize(("change", "message"), BAD_TOKENIZER)
def test_bad_tokenizer_settings_are_refused_by_key(change, message):
    problems = TokenizerSettings(**(GOOD_TOKENIZER | change)).problems()
    assert len(problems) == 1
    assert message in problems[0]


def test_all_problems_are_listed_at_once():
    settings = DataSettings(**(GOOD_DATA | {"shard_tokens": 0, "validation_fraction": 2.0}))
    assert len(settings.problems()) == 2


@pytest.mark.parametrize(
    ("schema", "cases"), [(DataSettings, BAD_DATA), (TokenizerSettings, BAD_TOKENIZER)]
)
def test_every_numeric_field_has_a_rule(schema, cases):
    numeric = {f.name for f in dataclasses.fields(schema) if f.type in (int, float, int | None)}
    assert numeric <= {key for change, _ in cases for key in change}
