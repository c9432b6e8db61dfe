"""Names of dtypes and devices that a user can choose, and what others may have meant."""

import re
from collections.abc import Sequence

DTYPE_NAMES = ("float32", "bfloat16", "float16")
"""What weights can be written in."""
CACHE_DTYPE_NAMES = (*DTYPE_NAMES, "int8")
"""What a KV cache can store."""
PRECISIONS = ("auto", "float32", "bfloat16")
DEVICES = ("auto", "cpu", "cuda")

_OTHER_NAMES = {
    "bfloat16": "bf16 bfloat bfloat16 bf",
    "float32": "fp32 f32 float float32 32 tf32 full single",
    "float16": "fp16 f16 float16 half 16 amp",
    "int8": "i8 int8 8 8bit q8",
}


def dtype_meant(key: str, name: str, names: Sequence[str]) -> str:
    """Return what to set for a dtype by another name, as the end of a sentence; '' if unknown."""
    plain = re.sub(r"[^a-z0-9]|torch|mixed|true", "", name.lower())
    meant = next((dtype for dtype, known in _OTHER_NAMES.items() if plain in known.split()), None)
    if meant in names:
        return f"; did you mean {key}={meant}?"
    # The same size, and a range in which no loss has to be scaled.
    return f"; kvlab does not train in float16: {key}=bfloat16 does" if meant == "float16" else ""


def device_meant(key: str, name: str, names: Sequence[str]) -> str:
    """Return what to set for a device by another name, as the end of a sentence; '' if unknown."""
    del names
    if re.fullmatch(r"(cuda|gpu):?\d+|\d+", name):
        number = re.sub(r"\D", "", name)
        return f"; one GPU of several is CUDA_VISIBLE_DEVICES={number} python ... {key}=cuda"
    if name.lower() in ("gpu", "nvidia", "rocm", "hip"):
        return f"; a GPU is {key}=cuda"
    if name.lower() in ("mps", "metal", "xpu", "tpu", "xla", "npu"):
        return f"; kvlab does not run on {name}: {key}=cpu does"
    return ""
