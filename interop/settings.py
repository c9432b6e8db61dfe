"""What can be asked of an export; imports nothing that is slow to import."""

DTYPE_NAMES = ("float32", "bfloat16", "float16")
"""What weights can be written in."""
