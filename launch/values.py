"""What a key takes, where a value is of another type or two sizes do not divide."""

import re
from collections.abc import Callable, Sequence

from launch.keys import look_up

_WANTED = {
    "int": "a whole number, such as 1500000, 1_500_000, 1.5e6 or 1.5M",
    "float": "a number, such as 0.1 or 3e-4",
    "bool": "true or false",
}


def not_of_type(config_name: str, key: str, reason: str, *, is_typed: bool = True) -> str:
    """Say what a key takes, where a value is of another type.

    Args:
        config_name: Of the entry point.
        key: Dotted; '' where nothing is known of it.
        reason: What the library says.
        is_typed: False for a value in a file, whose whole numbers are digits.
    """
    reason = re.sub(r"\b(List|Dict)Config\b", lambda kind: kind.group(1).lower(), reason.strip())
    if "is not Optional" in reason or "Incompatible value 'None'" in reason:
        return f"{key}: null is not allowed" if key else "null is not allowed"
    if missing := re.search(r"Interpolation key '([^']+)' not found", reason):
        other = missing.group(1)
        return f"{key}: ${{{other}}} stands for the key {other}, which is not there"
    if "Cannot assign" in reason or "Dict[" in reason:
        return f"{key} is a section of keys: {key}.NAME.KEY=VALUE"
    whole = re.sub(r"\[\d+\]$", "", key)  # without which entry of a list it is
    wanted = _WANTED.get(known.kind) if (known := look_up(config_name, whole)) else None
    found = re.search(r"Value '(.*?)'(?: of type '\w+')? (?:could not be|is not a valid)", reason)
    if wanted and found:
        if not is_typed:
            wanted = wanted.replace(", 1_500_000, 1.5e6 or 1.5M", " or 1_500_000")
        listed = "a list; each is to be " if known and known.is_list and key == whole else ""
        text = f"{key} ({found.group(1)}) must be {listed}{wanted}"
        percent = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", found.group(1))
        return f"{text}; that is {float(percent.group(1)) / 100:g}" if percent else text
    return f"{key}: {reason}" if key else reason


def not_divisible(key: str, division: str, typed: Sequence[str]) -> str:
    """Say which sizes divide, where a width is worked out from two that do not.

    Args:
        key: What could not be worked out.
        division: "A is not divisible by B".
        typed: The command line, which may have set one of the two.
    """
    leaf = key.rpartition(".")[2]
    found = re.match(r"(\d+) is not divisible by (-?\d+)", division)
    if found is None:
        return f"{key} cannot be worked out: {division}; set {key}"
    whole, part = int(found.group(1)), int(found.group(2))
    if leaf == "num_key_value_heads":
        near = _near(whole, lambda n: n % part == 0)
        divisors = [str(n) for n in range(1, whole + 1) if whole % n == 0]
        return (
            f"model.num_attention_heads ({whole}): {division}, which attention=gqa needs; set "
            f"model.num_attention_heads={' or '.join(map(str, near))}, or "
            f"model.attention.num_key_value_heads to one of {', '.join(divisors)}"
        )
    if leaf == "qk_rope_head_dim":
        return _odd_heads(key, whole, typed)
    if leaf in ("head_dim", "qk_nope_head_dim") and part < 1:
        return f"model.num_attention_heads ({part}) must be at least 1"
    if leaf not in ("head_dim", "qk_nope_head_dim"):
        return f"{key} cannot be worked out: {division}; set {key}"
    heads = next(
        (name for one in typed if (name := one.partition("=")[0]).endswith("num_attention_heads")),
        "model.num_attention_heads",
    )
    # RoPE rotates pairs of a head's dimensions, and MLA's those of half a head.
    pairs = 2 if leaf == "head_dim" else 4
    if any(one.startswith("model.hidden_size=") for one in typed):
        near = _near(whole, lambda n: n % part == 0)
        even = _near(whole, lambda n: n % (part * pairs) == 0)
        rope = "" if near == even else f"; with RoPE, which rotates pairs, {_or(even)}"
        return (
            f"model.hidden_size ({whole}): {division}, {heads}; set model.hidden_size={_or(near)}"
            f"{rope}"
        )
    near = _near(part, lambda n: whole % n == 0 and (whole // n) % pairs == 0)
    return (
        f"{heads} ({part}): {division}, the width model.hidden_size by the number of heads; set "
        f"model.num_attention_heads={_or(near)}"
    )


def _odd_heads(key: str, width: int, typed: Sequence[str]) -> str:
    """Say what to set where half a head, which RoPE rotates, is no whole number of dimensions."""
    given = {one.partition("=")[0].rpartition(".")[2]: one.partition("=")[2] for one in typed}
    if given.get("qk_nope_head_dim") == str(width):
        return (
            f"model.attention.qk_nope_head_dim ({width}) is odd, and RoPE rotates half as many "
            f"dimensions; set {key}={width // 4 * 2 or 2}, say"
        )
    sizes = {name: int(value) for name, value in given.items() if value.isdecimal()}
    if heads := sizes.get("num_attention_heads", sizes.get("hidden_size", 0) // width):
        near = _near(heads * width, lambda n: n % (4 * heads) == 0)
        counts = _near(heads, lambda n: width * heads % (4 * n) == 0)
        other = f", or model.num_attention_heads={_or(counts)}" if counts else ""
        set_to = f"model.hidden_size={_or(near)}{other}"
    else:
        set_to = "other sizes of model.hidden_size and model.num_attention_heads"
    return (
        f"model.hidden_size over model.num_attention_heads gives heads of {width} dimensions, of "
        f"which RoPE rotates half, in pairs; set {set_to}"
    )


def _or(values: Sequence[int]) -> str:
    return " or ".join(map(str, values))


def _near(value: int, fits: Callable[[int], bool]) -> list[int]:
    """Return the nearest values that fit: one below and one above, if there are."""
    below = next((n for n in range(value - 1, 0, -1) if fits(n)), None)
    above = next((n for n in range(value + 1, 4 * value + 64) if fits(n)), None)
    return [n for n in (below, above) if n is not None]
