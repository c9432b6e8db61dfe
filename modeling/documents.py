"""Documents packed one after another: who may attend to whom where each keeps to itself."""

import torch
from torch import Tensor


def document_mask(
    tokens: Tensor,
    end_of_document_id: int,
    past: int = 0,
    start: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return which keys do not come before each query's document.

    Args:
        tokens: [b, s] int64, the queries.
        end_of_document_id: Of the token that ends a document, and belongs to it.
        past: Tokens in the cache before these.
        start: [b] int64, where in the cache the document of a row's first query starts; at 0 if
            not given.
        attention_mask: Bool, [b, t] or [b, s, t] with t = past + s, that has to allow a key too.

    Returns:
        [b, s, t] bool, True where a query may see a key as far as documents go: what comes after
        the query is for causality to hide. And [b] int64: `start` for the tokens after these.
    """
    b, s = tokens.shape
    index = torch.arange(past + s, device=tokens.device)
    if start is None:
        start = torch.zeros(b, dtype=torch.long, device=tokens.device)
    begin = start[:, None]  # [b, 1]
    # The token behind an end begins a document, and what follows belongs to the newest one.
    behind = torch.where(tokens == end_of_document_id, index[past:] + 1, begin)  # [b, s]
    first = torch.cat((begin, behind), dim=1).cummax(dim=1).values  # [b, s+1]
    mask = index >= first[:, :-1, None]  # [b, s, t]
    if attention_mask is not None:
        mask = mask & (attention_mask if attention_mask.dim() == 3 else attention_mask[:, None])
    return mask, first[:, -1]
