"""What attention keeps of the tokens it has seen: declared, stored, read."""

from modeling.kv_cache.held import Held
from modeling.kv_cache.layer import LayerCache, Snapshot
from modeling.kv_cache.model import KVCache, KVCacheSnapshot
from modeling.kv_cache.spec import CacheEntries, StateSpec
from modeling.kv_cache.storage import (
    CACHE_DTYPES,
    SCALE_DTYPE,
    bytes_per_token,
    cache_dtype_of,
    storage_bytes,
)

__all__ = [
    "CACHE_DTYPES",
    "SCALE_DTYPE",
    "CacheEntries",
    "Held",
    "KVCache",
    "KVCacheSnapshot",
    "LayerCache",
    "Snapshot",
    "StateSpec",
    "bytes_per_token",
    "cache_dtype_of",
    "storage_bytes",
]
