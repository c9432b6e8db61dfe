"""How far a long computation is, in words."""


def in_words(seconds: float) -> str:
    """Say how long something takes, in its two largest units: 40 s, 4 min 10 s, 2 h 5 min."""
    total = round(seconds)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    index = next((i for i, (_, size) in enumerate(units) if total >= size), len(units) - 1)
    (unit, size), smaller = units[index], units[index + 1 : index + 2]
    words = f"{total // size} {unit}"
    for name, small in smaller:
        if rest := total % size // small:
            words += f" {rest} {name}"
    return words
