"""Damage to genuine files, at random but the same for the same `random.Random`."""

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

# JSON as it stands in a file, where a Python value could not be written so.
HOSTILE_JSON = (
    b"null",
    b"true",
    b"false",
    b"0",
    b"-1",
    b"1",
    b"2",
    b"65537",
    b"-0.0",
    b"0.5",
    b"1e-320",
    b"1e308",
    b"1e999",
    b"-1e999",
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"9223372036854775808",
    b"-9223372036854775809",
    b"1" + b"0" * 400,
    b"7" * 5000,  # more digits than Python converts
    b'""',
    b'"0"',
    b'"x"',
    b'"\\u0000"',
    b'"\\ud800"',
    b'"\\udfff\\ud800"',
    b'"\\u001b[2J\\u202e"',
    b'"line\\nline"',
    b'"../../escape"',
    b'"/etc/passwd"',
    b'"."',
    b'".."',
    b'"\xff"',
    b'"' + b"a" * 5000 + b'"',
    b"[]",
    b"{}",
    b"[[]]",
    b"[null]",
    b'{"": null}',
    b'{"a": {"b": []}}',
    b'{"__class__": "os.system", "_target_": "os.system"}',
    b"[" * 60 + b"]" * 60,
    b"[" * 20_000 + b"]" * 20_000,
    b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
)

HOSTILE_BYTES = (
    b"",
    b"\x00",
    b"\n",
    b" ",
    b"PK\x03\x04",
    b"\x93NUMPY\x01\x00v\x00",
    b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    b"\x1f\x8b\x08\x00",
    b"\xef\xbb\xbf",
    b"\xff\xfe{\x00}\x00",
    b"{}",
    b"[]",
    b"null",
    b'"',
    b"[" * 20_000,
)


def mutated_bytes(data: bytes, random: Random) -> bytes:
    """Damage a file as disks, editors and interrupted copies do, or put something else there.

    Args:
        data: The genuine file.
        random: Decides everything.

    Returns:
        Damaged bytes; now and then they equal the genuine ones.
    """
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        data = random.choice(_BYTE_DAMAGES)(data, random)
    return data


def _truncate(data: bytes, random: Random) -> bytes:
    return data[: random.randint(0, len(data))]


def _flip_bits(data: bytes, random: Random) -> bytes:
    flipped = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8)) if data else 0):
        flipped[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(flipped)


def _overwrite(data: bytes, random: Random) -> bytes:
    start, length = _piece(data, random)
    return data[:start] + random.randbytes(length) + data[start + length :]


def _delete(data: bytes, random: Random) -> bytes:
    start, length = _piece(data, random)
    return data[:start] + data[start + length :]


def _repeat(data: bytes, random: Random) -> bytes:
    start, length = _piece(data, random)
    return data[: start + length] + data[start:]


def _zero(data: bytes, random: Random) -> bytes:
    start, length = _piece(data, random)
    return data[:start] + bytes(length) + data[start + length :]


def _insert(data: bytes, random: Random) -> bytes:
    start = random.randint(0, len(data))
    return data[:start] + random.choice(HOSTILE_BYTES) + data[start:]


def _replace(data: bytes, random: Random) -> bytes:
    if random.random() < 0.5:
        return random.choice(HOSTILE_BYTES)
    return random.randbytes(random.randint(0, 200))


_BYTE_DAMAGES = (
    _truncate,
    _flip_bits,
    _flip_bits,
    _flip_bits,
    _overwrite,
    _delete,
    _repeat,
    _zero,
    _insert,
    _replace,
)


def _piece(data: bytes, random: Random) -> tuple[int, int]:
    start = random.randint(0, len(data))
    length = random.choice((1, 2, 8, 64, 4096))
    return start, min(random.randint(1, length), len(data) - start)


def mutated_json(value: Any, random: Random) -> bytes:
    """Damage the values of a JSON document: what comes back is mostly JSON, of the wrong kind.

    Args:
        value: The genuine document, as `json.loads` gives it; it is left as it is.
        random: Decides everything.

    Returns:
        The damaged document as a file's bytes.
    """
    root = {"": copy.deepcopy(value)}
    raw: dict[str, bytes] = {}
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        _damage_value(root, raw, random)
    data = json.dumps(root.get(""), ensure_ascii=random.random() < 0.9).encode(
        "utf-8", "surrogatepass"
    )
    for mark, text in raw.items():
        data = data.replace(f'"{mark}"'.encode(), text)
    return mutated_bytes(data, random) if random.random() < 0.05 else data


def _damage_value(root: dict[str, Any], raw: dict[str, bytes], random: Random) -> None:
    places = list(_places(root))
    if not places:  # all of it was deleted
        return
    holder, key = random.choice(places)
    value = holder[key]
    kind = random.random()
    if kind < 0.6:
        mark = f"raw-{len(raw)}-{random.getrandbits(64):x}"
        raw[mark] = random.choice(HOSTILE_JSON)
        holder[key] = mark
    elif kind < 0.7:
        del holder[key]
    elif kind < 0.75:
        _duplicate(holder, key, random)
    elif kind < 0.85:
        other, other_key = random.choice(places)
        holder[key] = copy.deepcopy(other[other_key])
    elif kind < 0.9:
        holder[key] = random.choice(([value], {"": value}, str(value), [value] * 3))
    else:
        holder[key] = _near(value, random)


def _duplicate(holder: Any, key: Any, random: Random) -> None:
    if isinstance(holder, list):
        holder.insert(random.randint(0, len(holder)), copy.deepcopy(holder[key]))
    else:
        holder[random.choice((f"{key} ", f"{key}2", key.upper(), "\ud800"))] = holder[key]


def _near(value: Any, random: Random) -> Any:
    """Return a value of the same type that is not the same."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + random.choice((-1, 1, 2**31, -(2**63)))
    if isinstance(value, float):
        return value * random.choice((-1.0, 1.0000001, 1e300, 0.0))
    if isinstance(value, str):
        return mutated_bytes(value.encode("utf-8", "surrogatepass"), random).decode("latin-1")
    return [] if isinstance(value, list) else {} if isinstance(value, dict) else 0


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (holder, key) of every value below a dict or list."""
    if not isinstance(node, dict | list):
        return
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        yield from _places(node[key])
