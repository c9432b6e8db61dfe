import dataclasses
import re

from modeling.accounting import match_to_mha, mha_baseline
from modeling.config import GPTConfig, LayersConfig
from tests.tiny_models import attention_fields
from training.recipe.budget_sheet import budget_sheet

ATTENTION = attention_fields("mla", width=192, heads=8, head=24, kv_lora_rank=96)
NANO_MLA = GPTConfig(vocab_size=4096, attention=ATTENTION)


def cells(sheet):
    """Numbers by model and what is counted; every line fits a terminal."""
    assert max(map(len, sheet.splitlines())) < 80
    names, *rows = ([c.strip() for c in re.split("  +", line)] for line in sheet.splitlines())
    return {name: {row[0]: row[number] for row in rows} for number, name in enumerate(names[1:], 1)}


def test_a_model_next_to_its_baseline():
    sheet = cells(budget_sheet(match_to_mha(NANO_MLA), mha_baseline(NANO_MLA)))
    assert list(sheet) == ["mla", "MHA, the baseline", "difference"]
    # The published runs of MLA and MHA at this size (README).
    assert sheet["mla"]["parameters"] == "2,548,800"
    assert sheet["MHA, the baseline"]["parameters"] == "2,557,632"
    assert sheet["difference"]["parameters"] == "-0.35 %"
    assert sheet["mla"]["embeddings"] == f"{4096 * 192:,}"
    assert sheet["difference"]["embeddings"] == "0 %"
    assert sheet["mla"]["KV bytes at 256"] == f"{256 * 1728:,}"
    assert sheet["MHA, the baseline"]["KV bytes at 256"] == f"{256 * 6144:,}"
    assert sheet["difference"]["KV bytes at 256"] == "-71.88 %"
    # 6 per weight of a matrix, and 6 h (d_qk + v) (t + 1) / 2 a layer.
    weights = 4 * (4 * 192**2 + 3 * 192 * 512) + 4096 * 192
    flops = 6 * weights + 4 * 6 * 8 * 48 * 257 / 2
    assert sheet["MHA, the baseline"]["training MFLOPs/token"] == f"{flops / 1e6:,.1f}"


def test_a_window_model_is_named_and_has_the_bytes_of_its_context():
    arranged = LayersConfig(name="window", window=64)
    sheet = cells(budget_sheet(dataclasses.replace(NANO_MLA, layers=arranged), NANO_MLA))
    assert sheet["mla-window"]["KV bytes at 256"] == f"{442368 // 4:,}"


def test_an_unmatched_model_shows_by_how_much():
    wide = dataclasses.replace(NANO_MLA, intermediate_size=512)
    sheet = cells(budget_sheet(wide, mha_baseline(wide)))
    difference = float(sheet["difference"]["parameters"].removesuffix(" %"))
    total, of = (
        int(sheet[row]["parameters"].replace(",", "")) for row in ("mla", "MHA, the baseline")
    )
    assert difference == round(100 * (total / of - 1), 2) != 0
