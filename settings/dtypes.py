"""Names of dtypes that a user can choose."""

DTYPE_NAMES = ("float32", "bfloat16", "float16")
"""What weights can be written in."""
