"""What a model costs, next to the multi-head attention that is its baseline."""

from modeling.accounting import ModelBudget, budget_of
from modeling.config import GPTConfig, arrangement_label
from tracking.notices import aligned


def budget_sheet(model: GPTConfig, baseline: GPTConfig) -> str:
    """Lay out parameters, cache and FLOPs of a model and of its baseline, and the difference.

    Args:
        model: What is trained; `vocab_size` set.
        baseline: Multi-head attention with the settings that were asked for.

    Returns:
        A table of a few lines that fits a terminal of 80 columns.
    """
    own, mha = (_numbers(budget_of(config)) for config in (model, baseline))
    arrangement = arrangement_label(model.layers)
    name = "-".join(filter(None, [model.attention["name"], arrangement]))
    cache = f"KV bytes at {model.max_position_embeddings:,}"
    labels = ["parameters", "embeddings", "attention", "MLP", "norms", cache]
    rows = [("", name, "MHA, the baseline", "difference")]
    for label, one, other in zip([*labels, "training MFLOPs/token"], own, mha, strict=True):
        difference = f"{100 * (one / other - 1):+.2f} %" if one != other else "0 %"
        rows.append((label, _number(one), _number(other), difference))
    return aligned(rows)


def _numbers(budget: ModelBudget) -> list[float]:
    count = budget.parameters
    return [
        *(count.total, count.embeddings, count.attention, count.mlp, count.norms),
        *(budget.kv_cache_bytes_at_context, budget.training_flops_per_token / 1e6),
    ]


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
