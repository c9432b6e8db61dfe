"""Documents packed one after another, where each keeps to itself."""

import torch
from torch import Tensor


def document_starts(
    tokens: Tensor, end_of_document_id: int, past: int = 0, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return where each token's document starts.

    From that follows which keys a query may see, and where a recurrent state is reset.

    Args:
        tokens: [b, s] int64.
        end_of_document_id: Of the token that ends a document, and belongs to it.
        past: Tokens in the cache before these.
        start: [b] int64, where in the cache the document of a row's first token starts; at 0 if
            not given.

    Returns:
        [b, s] int64, the index in the sequence of the first token of each token's document. And
        [b] int64: `start` for the tokens after these.
    """
    b, s = tokens.shape
    if start is None:
        start = torch.zeros(b, dtype=torch.long, device=tokens.device)
    begin = start[:, None]  # [b, 1]
    index = torch.arange(past, past + s, device=tokens.device)
    # The token behind an end begins a document, and what follows belongs to the newest one.
    behind = torch.where(tokens == end_of_document_id, index + 1, begin)  # [b, s]
    first = torch.cat((begin, behind), dim=1).cummax(dim=1).values  # [b, s+1]
    return first[:, :-1], first[:, -1]
