"""Sizes in the unit that fits them."""


def in_units(num_bytes: float) -> str:
    """Write a number of bytes with three digits or so: 17 B, 4.1 kB, 38.2 MB, 1.53 GB, 200 GB.

    Args:
        num_bytes: At least 0; units are powers of 1000, as disks are sold.
    """
    if round(num_bytes) < 1000:
        return f"{num_bytes:.0f} B"
    value = float(num_bytes)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        # What would be rounded to 1000 belongs to the next.
        if value < 999.5 or unit == "TB":
            break
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:,.{digits}f} {unit}"
