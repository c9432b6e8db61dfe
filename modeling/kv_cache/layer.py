"""One layer's preallocated cache: all tokens, or a ring of the newest ones."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from modeling.kv_cache.held import Held
from modeling.kv_cache.spec import StateSpec
from modeling.kv_cache.storage import CACHE_DTYPES, SCALE_DTYPE, quantised, storage_bytes


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A moment of a layer's cache, to `restore`.

    Args:
        seen: Tokens seen then.
        tensors: Copies of what later tokens overwrite: a ring, and state of fixed shape. Tokens
            that nothing overwrites are not copied.
    """

    seen: int
    tensors: list[Tensor]


class LayerCache:
    """One layer's cache: a tensor [batch_size, heads, capacity, width] for each named entry.

    Memory is allocated once. Where the layer declares a window shorter than `max_length`, the
    tensors are a ring: token i lies in slot i mod window, over the one that left the window.

    Args:
        spec: What the layer keeps, as `AttentionConfig.state` declares it.
        batch_size: Sequences decoded together.
        max_length: Tokens per sequence that may be seen.
        dtype: Of the stored elements, one of `CACHE_DTYPES`.
        device: Where they live.

    Attributes:
        seen: Tokens per sequence that went in.
        tensors: The stored elements of each entry.
        scales: Theirs, for int8.
        fixed: State of fixed shape [batch_size, ...], float32, which the layer itself updates.
        overflowed: Bool, without dimensions: whether an element of a token that went in was too
            large to be stored. Only float16 has a smaller range than what is computed with.

    Raises:
        ValueError: If there would be no room for a token, or the dtype is none of those.
    """

    def __init__(
        self,
        spec: StateSpec,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1 or max_length < 1:
            raise ValueError(
                f"a cache needs batch_size >= 1 and max_length >= 1, got {batch_size} and "
                f"{max_length}"
            )
        if dtype not in CACHE_DTYPES:
            names = ", ".join(str(valid).removeprefix("torch.") for valid in CACHE_DTYPES)
            raise ValueError(f"a cache cannot hold {dtype}; it takes {names}")
        self.spec = spec
        self.dtype = dtype
        self.batch_size = batch_size
        self.max_length = max_length
        self.capacity = spec.held(max_length)
        self.seen = 0
        self.tensors: dict[str, Tensor] = {}
        self.scales: dict[str, Tensor] = {}
        for name, (heads, width) in spec.per_token.items():
            shape = (batch_size, heads, self.capacity)
            self.tensors[name] = torch.zeros(*shape, width, dtype=dtype, device=device)
            if dtype == torch.int8:
                self.scales[name] = torch.zeros(*shape, 1, dtype=SCALE_DTYPE, device=device)
        self.fixed = {
            name: torch.zeros(batch_size, *shape, device=device)
            for name, shape in spec.fixed.items()
        }
        # Noted as tokens come: a ring may have overwritten the one that overflowed. On the device,
        # so that a step does not wait for it.
        self.overflowed = torch.zeros((), dtype=torch.bool, device=device)
        # Where the spec needs them, [b or 1, 1, capacity, 1] int32 under one name. Not counted in
        # `num_bytes`: they follow from the order of the tokens, are shared by the rows unless
        # padded, and are no part of what attention caches.
        self._positions: dict[str, Tensor] = {}
        # Those whose tokens are all still there, or copied.
        self._snapshots: weakref.WeakSet[Snapshot] = weakref.WeakSet()

    @property
    def held(self) -> int:
        """Tokens per sequence that can still be read."""
        return min(self.seen, self.capacity)

    def update(self, positions: Tensor | None = None, **new: Tensor) -> Held:
        """Store s new tokens, without their autograd graph, and return what their queries may see.

        Nothing is copied but the new tokens themselves, unless several tokens at once reach beyond
        a ring's end: the first of them still need keys that the last of them overwrite.

        Args:
            positions: [s] or [b, s] integer positions of the tokens, where the spec needs them.
            new: One tensor [batch_size, heads, s, width] for each entry of the cache.

        Returns:
            The held tokens, the new ones among them; views that the next update changes.

        Raises:
            ValueError: If the entries or their shapes are not those the cache was made for, or if
                the tokens do not fit; nothing is stored then.
        """
        num_new = self._num_new(new)
        end = self._end(num_new)
        stored = self._encoded(new, positions)
        overtakes = num_new > 1 and end > self.capacity
        before = self._in_order(min(self.seen, self.capacity - 1)) if overtakes else None
        # Of the new tokens, those that are not overwritten by newer ones.
        for slot, first, count in self._slots(max(self.seen, end - self.capacity), end):
            for here, new_ones in zip(self._tokens, stored, strict=True):
                for name, tensor in new_ones.items():
                    if count < num_new:
                        tensor = tensor.narrow(2, first - self.seen, count)
                    here[name].narrow(2, slot, count).copy_(tensor)
        oldest = max(0, self.seen - self.capacity + 1)
        self.seen = end
        if before is None:
            return self.view()
        return before.followed_by(stored).as_held(oldest, 0)

    def view(self) -> Held:
        """Return the tokens that are held now; views that the next update changes."""
        held = self.held
        oldest = self.seen - held
        views = self._tokens.map(lambda tensor: tensor.narrow(2, 0, held))
        return views.as_held(oldest, self.seen % self.capacity if oldest else 0)

    def number_held(self) -> None:
        """Take the index in the sequence of each held token for its position, where one is kept."""
        if self.spec.needs_positions:
            index = self.view().indices(self.overflowed.device).to(torch.int32)
            rows = index.new_zeros(1, 1, self.capacity, 1)
            rows[0, 0, : self.held, 0] = index
            self._positions = {_POSITIONS: rows}

    def advance(self, num_new: int, **fixed: Tensor) -> None:
        """Put a new fixed state in place of the old one, after `num_new` more tokens.

        Args:
            num_new: Tokens that it has seen more than the one before.
            fixed: [batch_size, ...] each; copied.

        Raises:
            ValueError: If so many tokens are more than the cache was made for.
        """
        end = self._end(num_new)
        for name, tensor in fixed.items():
            self.fixed[name].copy_(tensor.detach())
        self.seen = end

    def _end(self, num_new: int) -> int:
        """Return the tokens seen after so many more, or refuse them."""
        end = self.seen + num_new
        if end > self.max_length:
            raise ValueError(
                f"the cache holds at most {self.max_length} tokens, {end} would be needed; "
                "make it longer"
            )
        return end

    def _num_new(self, new: dict[str, Tensor]) -> int:
        """Return s, having compared all shapes with those that the cache was made for."""
        if new.keys() != self.tensors.keys():
            raise ValueError(
                f"this cache holds {sorted(self.tensors)}, not {sorted(new)}: it was made for "
                "another kind of attention"
            )
        num_new = next(iter(new.values())).shape[2]
        for name, tensor in new.items():
            stored = self.tensors[name]
            expected = (stored.shape[0], stored.shape[1], num_new, stored.shape[3])
            if tuple(tensor.shape) != expected:
                raise ValueError(
                    f"cache entry '{name}' takes [batch, heads, tokens, width] = "
                    f"[{expected[0]}, {expected[1]}, any, {expected[3]}], as many tokens as the "
                    f"other entries, got "
                    f"{list(tensor.shape)}: it was made for another model or batch"
                )
        return num_new

    @property
    def _tokens(self) -> "_Tokens":
        """Every stored tensor that has a place for each token."""
        return _Tokens(self.tensors, self.scales, self._positions)

    def _encoded(self, new: dict[str, Tensor], positions: Tensor | None) -> "_Tokens":
        """Return the tokens as they are stored."""
        elements, scales = {}, {}
        for name, tensor in new.items():
            stored = tensor.detach() if tensor.requires_grad else tensor
            if name in self.scales:
                stored, scales[name] = quantised(stored)
            elif self.dtype == torch.float16:
                stored = stored.to(self.dtype)
                self.overflowed |= stored.isinf().any()
            elements[name] = stored
        return _Tokens(elements, scales, self._numbered(positions))

    def _numbered(self, positions: Tensor | None) -> dict[str, Tensor]:
        """Return the positions of new tokens as they are stored, if the spec needs them."""
        if not self.spec.needs_positions:
            return {}
        assert positions is not None
        rows = positions if positions.dim() == 2 else positions[None]
        known = self._positions.get(_POSITIONS)
        if known is None or known.shape[0] < rows.shape[0]:
            room = torch.zeros(
                rows.shape[0], 1, self.capacity, 1, dtype=torch.int32, device=rows.device
            )
            self._positions = {_POSITIONS: room if known is None else room.copy_(known)}
        rows = rows.expand(self._positions[_POSITIONS].shape[0], -1)
        return {_POSITIONS: rows[:, None, :, None].to(torch.int32)}

    def _slots(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """Return where tokens [start, end) lie: (slot, first token, tokens) of one or two runs."""
        if start == end:
            return []
        slot = start % self.capacity
        count = min(end - start, self.capacity - slot)
        runs = [(slot, start, count)]
        return runs if start + count == end else [*runs, (0, start + count, end - start - count)]

    def _in_order(self, count: int) -> "_Tokens":
        """Return the newest `count` tokens, oldest first: copies where they wrap around."""
        runs = self._slots(self.seen - count, self.seen) or [(0, 0, 0)]
        return self._tokens.map(
            lambda tensor: torch.cat([tensor.narrow(2, slot, n) for slot, _, n in runs], dim=2)
        )

    def live_tensors(self) -> list[Tensor]:
        """Return every tensor that it keeps, scales and fixed state included."""
        return [*self.tensors.values(), *self.scales.values(), *self.fixed.values()]

    def num_bytes(self) -> int:
        """Return the bytes that the live tensors' storages take, each storage counted once."""
        return storage_bytes(self.live_tensors())

    @property
    def _is_overwritten(self) -> bool:
        """Whether a later token changes what an earlier one left."""
        return bool(self.fixed) or self.capacity < self.max_length

    def _overwritten(self) -> list[Tensor]:
        if not self._is_overwritten:
            return []
        # Positions last, which a new cache does not have.
        return [*self.live_tensors(), *self._positions.values()]

    def snapshot(self) -> Snapshot:
        """Return this moment, to come back to however many tokens later."""
        found = Snapshot(self.seen, [tensor.clone() for tensor in self._overwritten()])
        self._snapshots.add(found)
        return found

    def restore(self, snapshot: Snapshot) -> None:
        """Come back to an earlier moment of this cache.

        Raises:
            ValueError: If it is of another cache, or the tokens of then are forgotten.
        """
        if snapshot not in self._snapshots:
            raise ValueError(
                f"this snapshot of {snapshot.seen} tokens cannot be restored: it is of another "
                "cache, or this one went back to fewer tokens since, and forgot the others"
            )
        for tensor, then in zip(self._overwritten(), snapshot.tensors, strict=False):
            tensor.copy_(then)
        self._go_back(snapshot.seen)

    def _go_back(self, length: int) -> None:
        """Have seen so many tokens: snapshots of more can no longer be restored."""
        self.seen = length
        for snapshot in list(self._snapshots):
            if snapshot.seen > length:
                self._snapshots.discard(snapshot)

    def truncate(self, length: int) -> None:
        """Forget every token from position `length` on.

        Raises:
            ValueError: If fewer tokens are stored, or what they overwrote is needed.
        """
        self.check_truncation(length)
        self._go_back(length)

    def check_truncation(self, length: int) -> None:
        """Refuse a length that this cache cannot go back to; `snapshot` can.

        Raises:
            ValueError: As in `truncate`.
        """
        if not 0 <= length <= self.seen:
            raise ValueError(f"cannot truncate a cache of {self.seen} tokens to {length}")
        if length == self.seen or not self._is_overwritten or (length == 0 and not self.fixed):
            return
        if self.fixed:
            raise ValueError(
                f"cannot truncate to {length} tokens: a state of fixed size does not remember "
                "earlier moments; take a snapshot there and restore it"
            )
        if self.seen > self.capacity:
            raise ValueError(
                f"cannot truncate to {length} tokens: a ring of the newest {self.capacity} of "
                f"{self.seen} tokens has overwritten what token {length} needs; take a snapshot "
                "there and restore it"
            )

    def reset(self) -> None:
        """Forget everything; the memory stays."""
        self._go_back(0)
        self.overflowed.zero_()
        self._positions = {}
        for tensor in self.fixed.values():
            tensor.zero_()


_POSITIONS = "positions"


class _Tokens(NamedTuple):
    """What is stored of some tokens: tensors [b, heads, tokens, ...] by the name of their entry."""

    elements: dict[str, Tensor]
    scales: dict[str, Tensor]
    positions: dict[str, Tensor]

    def map(self, change: Callable[[Tensor], Tensor]) -> "_Tokens":
        """Return what becomes of each tensor."""
        return _Tokens(*({name: change(t) for name, t in group.items()} for group in self))

    def followed_by(self, others: "_Tokens") -> "_Tokens":
        """Return these tokens and, in their dtype, others behind them."""
        return _Tokens(
            *(
                {name: torch.cat((t, behind[name].to(t.dtype)), dim=2) for name, t in group.items()}
                for group, behind in zip(self, others, strict=True)
            )
        )

    def as_held(self, first: int, oldest_slot: int) -> Held:
        """Return them as those that queries may see."""
        positions = self.positions.get(_POSITIONS)
        return Held(
            entries=self.elements,
            scales=self.scales,
            first=first,
            oldest_slot=oldest_slot,
            is_cached=True,
            positions=None if positions is None else positions[:, 0, :, 0],
        )
