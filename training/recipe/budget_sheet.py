"""What a model costs beside the multi-head attention that it is measured against."""

from tabulate import tabulate

from modeling.accounting import Budget, budget_of
from modeling.config import GPTConfig, arrangement_label

_COLUMNS = ("", "parameters", "embeddings", "attention", "MLP", "norms")


def budget_sheet(model: GPTConfig, baseline: GPTConfig) -> str:
    """Lay out parameters, cache and FLOPs of a model and of its baseline, and the difference.

    Args:
        model: What is trained; `vocab_size` set.
        baseline: `modeling.accounting.mha_baseline` of what was asked for.

    Returns:
        A table of a few lines.
    """
    own, mha = (_numbers(budget_of(config)) for config in (model, baseline))
    arrangement = arrangement_label(model.layers)
    rows = [
        ["-".join(filter(None, [model.attention["name"], arrangement])), *map(_number, own)],
        ["MHA, the baseline", *map(_number, mha)],
        ["difference", *map(_percent, own, mha)],
    ]
    cache = f"KV bytes at {model.max_position_embeddings:,}"
    headers = [*_COLUMNS, cache, "training MFLOPs/token"]
    align = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(rows, headers=headers, colalign=align, disable_numparse=True)


def _numbers(budget: Budget) -> list[float]:
    count = budget.parameters
    return [
        *(count.total, count.embeddings, count.attention, count.mlp, count.norms),
        *(budget.kv_cache_bytes_at_context, budget.training_flops_per_token / 1e6),
    ]


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def _percent(value: float, of: float) -> str:
    return f"{100 * (value / of - 1):+.2f} %" if value != of else "0 %"
