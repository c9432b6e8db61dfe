"""Recipes: the settings that two runs were trained with, and whether they may be ranked."""

import re
from collections.abc import Mapping
from typing import Any

from measuring.rows import EvaluatedRun
from tracking.configuration import differences

# What makes a run one of several of a variant, or merely says how its model was chosen.
_BOOKKEEPING = re.compile(
    r"run_name|seed|match|match_\w+|fair_\w+|model\.name|model\.attention\.decode_path"
)
# What a comparison of attentions is there to vary, with the width that keeps the budget.
COMPARED = re.compile(
    r"layers\..*|model\.(intermediate_size|position_embedding|attention\.(name|"
    r"num_key_value_heads|(qk_\w+_|v_)?head_dim|\w+_lora_rank))"
)
# Whatever is compared, these have to be equal: how much was learned, from what, and how large the
# model is.
_BUDGET = re.compile(
    r"trainer\.(max_tokens|sequences_per_step|overfit_batches)|begins_with|data\..*|"
    r"model\.(max_position_embeddings|num_hidden_layers|hidden_size)"
)
# Names and places: the protocol card has the hashes of data and tokenizer.
_PLACES = re.compile(r"data\.(corpora\.[^.]+\.)?(name|path)|tokenizer\..*")
PARAMETERS_TOLERANCE = 0.01


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the keys that both have and that differ; one may be of before a key was."""
    return [
        key
        for key in differences(one, other)
        if key in one and key in other and not _BOOKKEEPING.fullmatch(key)
    ]


def unequal(one: EvaluatedRun, other: EvaluatedRun) -> dict[str, tuple[Any, Any]]:
    """Return what keeps two trained models from being ranked, with both values.

    The budget of a training and the size of a model have to be equal. Everything else may be what
    is compared, but not together with the attention: nobody could say which of the two made the
    difference. A learning rate that was chosen for each (`fair_lr`) may differ with it. The
    precision is the dtype that was trained in, where both runs recorded it.

    Args:
        one: A run.
        other: One of the same protocol card, which says that data and tokenizer are the same.
    """
    if one.is_external or other.is_external:
        return {}
    found: dict[str, tuple[Any, Any]] = {}
    trained, size = (tuple(run.row[key] for run in (one, other)) for key in _OF_A_ROW)
    if None not in trained and trained[0] != trained[1]:
        found["tokens trained"] = trained
    if max(size) / min(size) - 1 > PARAMETERS_TOLERANCE:
        found["parameters"] = size
    keys = differing_keys(one.settings, other.settings)
    another_attention = any(COMPARED.fullmatch(key) for key in keys)
    # trainer.precision=auto is what the machine made of it.
    dtypes = tuple((run.row.get("trained_with") or {}).get("dtype") for run in (one, other))
    if another_attention and None not in dtypes and dtypes[0] != dtypes[1]:
        found["training dtype"] = dtypes[0], dtypes[1]
    for key in keys:
        if COMPARED.fullmatch(key) or _PLACES.fullmatch(key):
            continue
        if key == "trainer.max_tokens" and None not in trained:
            continue
        if key == "trainer.precision" and None not in dtypes:
            continue
        is_chosen = key == "optim.learning_rate" and all(
            run.settings.get("fair_lr") is True for run in (one, other)
        )
        if _BUDGET.fullmatch(key) or (another_attention and not is_chosen):
            found[key] = one.settings[key], other.settings[key]
    return found


_OF_A_ROW = ("tokens_trained", "num_parameters")
