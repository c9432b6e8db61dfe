"""Attentions with one fault each: `python check_attention.py` finds every one."""

import dataclasses
import importlib
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import commands.check_attention
import modeling.attention
from modeling import contract
from modeling.attention import GroupedQueryAttention, GroupedQueryAttentionConfig
from modeling.contract import CHECKS, examine
from modeling.contract.placements import PLACEMENTS
from modeling.kv_cache import LayerCache, StateSpec
from modeling.reference import register_oracle, registry
from modeling.reference.grouped_query import grouped_query_reference

FIELDS = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "v_head_dim": 8,
    "qk_rope_head_dim": 8,
}


class OneLater(GroupedQueryAttention):
    """Counts positions from one later where something is cached."""

    def forward(self, x, positions, cache=None, **options):
        later = cache is not None and cache.seen > 0
        return super().forward(x, positions + later, cache, **options)


class SeesItsChunk(GroupedQueryAttention):
    """Masks nothing causally where several tokens come with a cache."""

    def forward(self, x, positions, cache=None, **options):
        if cache is None or x.shape[1] == 1:
            return super().forward(x, positions, cache, **options)
        return super().forward(
            *(x, positions, cache), key_value_states=x, key_value_positions=positions, **options
        )


class SeesTheFuture(GroupedQueryAttention):
    def forward(self, x, positions, cache=None, **options):
        return super().forward(x, positions, cache, **options) + x.mean(1, keepdim=True)


class IgnoresPadding(GroupedQueryAttention):
    def forward(self, x, positions, cache=None, *, attention_mask=None, **options):
        return super().forward(x, positions, cache, **options)


class HasADeadParameter(GroupedQueryAttention):
    def __init__(self, config, layer_idx=0):
        super().__init__(config, layer_idx)
        self.dead = nn.Parameter(torch.zeros(1))


class MixesRows(GroupedQueryAttention):
    def forward(self, x, positions, cache=None, **options):
        return super().forward(x - x.mean(0, keepdim=True), positions, cache, **options)


class IsNoisy(GroupedQueryAttention):
    def forward(self, x, positions, cache=None, **options):
        return super().forward(x, positions, cache, **options) + torch.rand(1)


class IgnoresPositions(GroupedQueryAttention):
    def forward(self, x, positions, cache=None, **options):
        return super().forward(x, torch.zeros_like(positions), cache, **options)


class RemembersLengths(GroupedQueryAttention):
    """Keeps the longest cache it saw, outside of the cache."""

    longest = 0

    def forward(self, x, positions, cache=None, **options):
        output = super().forward(x, positions, cache, **options)
        if cache is not None:
            output = output * (1 + (positions[0] < self.longest))
            self.longest = max(self.longest, cache.seen)
        return output


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class HasAWrongGradient(GroupedQueryAttention):
    def forward(self, x, positions, cache=None, **options):
        return super().forward(WrongBackward.apply(x), positions, cache, **options)


class DropsADimension(GroupedQueryAttention):
    def forward(self, x, positions, cache=None, **options):
        return super().forward(x, positions, cache, **options)[..., :-1]


class NamesAnotherProjection(GroupedQueryAttention):
    def residual_projections(self):
        return [nn.Linear(16, 16)]


class ScalesItsInput(GroupedQueryAttention):
    """As consistent as it is wrong."""

    def forward(self, x, positions, cache=None, **options):
        return super().forward(1.01 * x, positions, cache, **options)


class ForgetsWhatThePassShares(GroupedQueryAttention):
    def forward(self, x, positions, cache=None, *, forward_pass=None, **options):
        return super().forward(x, positions, cache, **options)


class DetachesWhatOthersRead(GroupedQueryAttention):
    def forward(self, x, positions, cache=None, *, forward_pass=None, **options):
        output = super().forward(x, positions, cache, forward_pass=forward_pass, **options)
        if forward_pass is not None and self.state.source is None:
            held = forward_pass.held_by(self.layer_idx)
            entries = {name: tensor.detach() for name, tensor in held.entries.items()}
            forward_pass.keep(self.layer_idx, dataclasses.replace(held, entries=entries))
        return output


class ScalesOnOnePath(GroupedQueryAttention):
    def attend(self, query, held, forward_pass, *, causal):
        factor = 2 if self.config.decode_path == "repeated" else 1
        return super().attend(factor * query, held, forward_pass, causal=causal)


class SeesOneMoreThanItHolds(GroupedQueryAttention):
    """Its window in a pass is one wider than its ring."""

    def __init__(self, config, layer_idx=0):
        super().__init__(config, layer_idx)
        self.config = dataclasses.replace(config, sliding_window=config.sliding_window + 1)


class SeesOneMore(SeesOneMoreThanItHolds):
    """Its window is one wider than asked for, everywhere."""

    def __init__(self, config, layer_idx=0):
        super().__init__(config, layer_idx)
        self.state = self.config.state()


# What finds it: at least these.
FAULTS = {
    OneLater: {"decoding", "chunks", "padding", "truncation"},
    SeesItsChunk: {"chunks", "causality"},
    SeesTheFuture: {"decoding", "causality"},
    IgnoresPadding: {"padding"},
    HasADeadParameter: {"gradient", "parameters"},
    MixesRows: {"rows", "padding"},
    IsNoisy: {"determinism"},
    IgnoresPositions: {"positions"},
    RemembersLengths: {"truncation", "snapshot"},
    ForgetsWhatThePassShares: {"documents"},
    DetachesWhatOthersRead: {"sharing"},
    ScalesOnOnePath: {"paths"},
    HasAWrongGradient: {"gradient_check"},
    DropsADimension: {"shape"},
    NamesAnotherProjection: {"initialisation"},
}


class WrongBytes(StateSpec):
    def bytes(self, num_tokens, dtype):
        return round(super().bytes(num_tokens, dtype) * 1.05)


WRONG_FORMS = {
    "num_parameters": "parameters",
    "flops_per_token": "flops",
    "state": "cache_bytes",
}


def config_of(module_class, *, fields=FIELDS, **wrong):
    """A small configuration that builds a class, and has closed forms of its own."""

    @dataclass(frozen=True, kw_only=True)
    class Config(GroupedQueryAttentionConfig):
        def build(self, layer_idx=0):
            return module_class(self, layer_idx)

    for name, function in wrong.items():
        setattr(Config, name, function)
    register_oracle(Config)(grouped_query_reference)
    return Config(**fields)


def crosses(config):
    return {check.__name__ for check in CHECKS if not examine(check, config).passed}


def test_an_attention_without_a_fault_has_no_cross():
    assert crosses(config_of(GroupedQueryAttention)) == set()


@pytest.mark.parametrize("module_class", FAULTS, ids=lambda found: found.__name__)
def test_a_planted_fault_gets_its_cross(module_class):
    assert crosses(config_of(module_class)) >= FAULTS[module_class]


@pytest.mark.parametrize("form", WRONG_FORMS)
def test_a_wrong_closed_form_gets_its_cross_alone(form):
    right = getattr(GroupedQueryAttentionConfig, form)

    def wrong(self, *arguments):
        found = right(self, *arguments)
        return WrongBytes(**vars(found)) if form == "state" else found * 1.05

    assert crosses(config_of(GroupedQueryAttention, **{form: wrong})) == {WRONG_FORMS[form]}


# In a window of 3 tokens, with sinks: what each fault is found by, and by nothing else.
WINDOWED = FIELDS | {"sliding_window": 3, "attention_sinks": True}
WINDOW_FAULTS = {
    GroupedQueryAttention: set(),
    SeesOneMore: {"oracle", "cache_bytes"},
    SeesOneMoreThanItHolds: {"oracle", "decoding", "chunks", "paths", "snapshot", "documents"},
}


@pytest.mark.parametrize("module_class", WINDOW_FAULTS, ids=lambda found: found.__name__)
def test_a_fault_of_a_window_gets_its_crosses(module_class):
    found = crosses(config_of(module_class, fields=WINDOWED))
    assert found >= WINDOW_FAULTS[module_class]
    assert bool(found) == bool(WINDOW_FAULTS[module_class])


def test_what_is_consistent_and_wrong_gets_a_cross_from_its_oracle_alone():
    assert crosses(config_of(ScalesItsInput)) == {"oracle"}


def test_closed_forms_of_a_window_that_hold_only_when_it_is_full_get_their_crosses():
    class WholeRing(StateSpec):
        def bytes(self, num_tokens, dtype):
            return super().bytes(max(num_tokens, self.window or 0), dtype)

    state = GroupedQueryAttentionConfig.state
    wrong = {
        "state": lambda self: WholeRing(**vars(state(self))),
        "visible_keys": lambda self, context: 3 if context > 3 else (context + 1) / 2,
    }
    config = config_of(GroupedQueryAttention, fields=WINDOWED, **wrong)
    assert crosses(config) == {"cache_bytes", "flops"}


def test_a_ring_that_is_cut_back_to_what_it_has_overwritten_gets_a_cross(monkeypatch):
    monkeypatch.setattr(LayerCache, "check_truncation", lambda self, length: None)
    assert crosses(config_of(GroupedQueryAttention, fields=WINDOWED)) == {"truncation"}


def test_what_an_attention_raises_is_a_cross():
    def build(self, layer_idx=0):
        raise TypeError("no\nhead")

    config = config_of(GroupedQueryAttention, build=build)
    assert crosses(config) == {check.__name__ for check in CHECKS}
    assert "raised TypeError: no head" in examine(CHECKS[0], config).measured


def test_the_command_prints_a_tick_a_line_and_a_cross_with_where_to_look(monkeypatch, capsys):
    assert commands.check_attention.run(["attention=mqa"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[0] for line in lines[1 : len(CHECKS) + 1]] == ["✓"] * len(CHECKS)
    # 2 d elements of d = 8, float32, for 3 sequences.
    assert "3 x 29 tokens in float32: measured 5,568, closed form 5,568" in "".join(lines)
    # Two layers share nothing with a third.
    n = len(CHECKS)
    made = [n, n, n, n - 1, n - 1]
    assert lines[n + 1 : -1] == [
        line
        for said, count in zip(PLACEMENTS, made, strict=True)
        for line in (f"mqa {said}:", f"✓ {count} of {count} checks passed")
    ]
    assert lines[-1] == f"{n + sum(made)} of {n + sum(made)} checks passed"

    monkeypatch.setattr(GroupedQueryAttentionConfig, "num_parameters", lambda self: 7)
    assert commands.check_attention.run(["attention=mha", "layers=window", "layers.window=3"]) == 1
    out = capsys.readouterr().out
    (cross,) = (line for line in out.splitlines() if line.startswith("✗"))
    assert cross == (
        "✗ Parameters are the closed form: measured 4,096, closed form 7; look at num_parameters"
    )


def test_with_keys_the_command_checks_each_kind_of_layer_that_they_describe(capsys):
    keys = ["layers=window_full", "layers.window=2", "layers.full_every=2", "layers.share=last"]
    given = ["attention=mla", *keys, "layers.share_last=2", "model.attention.kv_lora_rank=6"]
    assert commands.check_attention.run(given) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if line.startswith("mla")]
    assert [line.partition(":")[0] for line in heads] == [
        "mla",
        *(f"mla, layer {n}" for n in "123"),
    ]
    for line, window in zip(heads, (2, None, 2, None), strict=True):
        assert f"sliding_window={window}" in line
        assert "kv_lora_rank=6" in line
    assert ["ReadingConfig" in line for line in heads] == [False, False, True, True]


def test_an_attention_whose_class_has_no_example_is_checked_as_its_file_says(monkeypatch):
    def example(cls, name):
        return cls(hidden_size=20, num_attention_heads=4)

    monkeypatch.setattr(GroupedQueryAttentionConfig, "example", classmethod(example))
    assert commands.check_attention.example("mqa").hidden_size == 32


def test_an_attention_without_an_oracle_gets_neither_tick_nor_cross():
    config = config_of(GroupedQueryAttention)
    registry._REGISTRY.pop(type(config))
    found = examine(contract.oracle, config)
    assert (found.made, found.passed) == (False, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["attention=mlaa"], "mlaa"),
        (["mla"], "python check_attention.py attention=NAME"),
        (["attention=mla", "model.attention.kv_lora_rank=0"], "kv_lora_rank (0) must be at least"),
        (["attention=gqa", "model.num_attention_heads=3"], "not divisible"),
        (["attention=gqa", "layers=window", "layers.window=0"], "layers.window (0) must be at le"),
        (["attention=mla", "layers.source=[0,0,1,3]"], "layer 2 reads layer 1, which has no keys"),
    ],
)
def test_a_mistake_in_what_is_checked_is_one_line_with_status_2(arguments, said, capsys):
    assert commands.check_attention.run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("kvlab: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"""Mine."""\nimport torhc\n', "mine.py, line 2: ModuleNotFoundError: No module named"),
        ("def build(:\n", "mine.py, line 1: SyntaxError: invalid syntax"),
        ("import torch\n\nx = torch.sigmoi\n", "mine.py, line 3: AttributeError: module 'torch'"),
    ],
)
def test_a_module_of_ones_own_that_cannot_be_imported_is_one_line(
    text, message, tmp_path, monkeypatch, capsys
):
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.setattr(modeling.attention, "__path__", [str(tmp_path)])
    importlib.invalidate_caches()
    assert commands.check_attention.run(["attention=mha"]) == 2
    err = capsys.readouterr().err
    assert f"kvlab: modeling/attention/{message}" in err
    assert err.count("\n") == 1
