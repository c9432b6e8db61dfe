"""What a file is by its first bytes, where that is not the text that its name promises."""

import codecs
import contextlib
import re
from pathlib import Path

from settings.data import is_utf8

# Enough for a pointer, for every signature, and to see an encoding by its zero bytes.
HEAD_BYTES = 4096

_UNPACK = "unpack it and set data.path to the folder"
_CONVERT = "convert it to text, or move it out of data.path"
# No text begins like these: all of them hold a byte that UTF-8 text cannot, or a zero byte.
_SIGNATURES = (
    (b"\x1f\x8b\x08", "gzip data", "give its name the ending .gz"),
    (b"\xfd7zXZ\x00", "xz data", "give its name the ending .xz"),
    (b"\x28\xb5\x2f\xfd", "Zstandard data", "give its name the ending .zst"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"\x89PNG\r\n\x1a\n", "a PNG image", _CONVERT),
    (b"\xff\xd8\xff", "a JPEG image", _CONVERT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document", _CONVERT),
    (b"\x7fELF", "a program", _CONVERT),
    (b"SQLite format 3\x00", "an SQLite database", _CONVERT),
    (b"\x93NUMPY", "a NumPy array", _CONVERT),
)
# Text might begin like these, so that more than the signature has to be there.
_PLAIN_SIGNATURES = (
    (re.compile(rb"%PDF-\d\.\d[\r\n]"), "a PDF document", _CONVERT),
    (re.compile(rb"BZh[1-9]1AY&SY"), "bzip2 data", "give its name the ending .bz2"),
    (re.compile(rb"PAR1[^ -~\n\r\t]"), "a parquet file", "give its name the ending .parquet"),
    (re.compile(rb"GIF8[79]a.{0,8}[\x00-\x08\x80-\xff]", re.DOTALL), "a GIF image", _CONVERT),
    (re.compile(rb"RIFF.{4}(WAVE|AVI |WEBP)", re.DOTALL), "a media file", _CONVERT),
    (re.compile(rb"PK\x03\x04.{26}(\[Content_Types\]|word/|xl/|ppt/|_rels)", re.DOTALL),
     "an Office document (.docx, .xlsx, .pptx)", _CONVERT),
    (re.compile(rb"PK\x03\x04.{26}mimetypeapplication/(epub|vnd)", re.DOTALL),
     "an e-book or OpenDocument file", _CONVERT),
    (re.compile(rb"PK(\x03\x04|\x05\x06)"), "a zip archive", _UNPACK),
    (re.compile(rb".{257}ustar[\x00 ]", re.DOTALL), "a tar archive", _UNPACK),
)  # fmt: skip
_BYTE_ORDER_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
# Written by its first releases, too, when it was called hawser.
_LFS = re.compile(
    rb"version https://(git-lfs|hawser)\.github\.com/spec/v1\r?\n(ext-.*\n)*oid sha256:"
)
_ANNEX = re.compile(rb"/annex/objects/[A-Z0-9]+E?-s\d+--\S+\s*")
_MARKUP = re.compile(rb"\s*<(!doctype html|html|\?xml)[\s>]", re.IGNORECASE)
# Of more, or in a shorter text, it is the encoding that differs.
_FEW = 10
_EASTERN = re.compile("[\u3000-\u30ff\u4e00-\u9fff\uff00-\uffef]")
_EASTERN_OR_PLAIN = re.compile("[\u3000-\u30ff\u4e00-\u9fff\uff00-\uffef\t\n\r -~]")
_EASTERN_STOPS = re.compile("[\u3001\u3002\uff0c\u3000\n]")
# In text these are no rarity: tab, the ends of lines and pages, backspace and escape.
_BINARY_CONTROLS = bytes({*range(32), 127} - {8, 9, 10, 11, 12, 13, 27})


def foreign_kind(head: bytes, encoding: str = "utf-8") -> str | None:
    """Say what a file is that is named like text, JSON, CSV or parquet and is something else.

    Args:
        head: Its first HEAD_BYTES bytes, unpacked where its name says that it is compressed.
        encoding: What `data.encoding` says text is written in.

    Returns:
        What it is and what to do, as the rest of a sentence; None if nothing speaks against it.
    """
    if pointer := pointer_kind(head):
        return pointer
    wide = codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))
    if wide and head and (problem := _not_wide(head, encoding)):
        return problem
    if not wide and (found := _wide_encoding(head)):
        return (
            f"is {found.upper()} text; set data.encoding={found}, or convert it to UTF-8 with "
            f"`iconv -f {found.upper()} -t UTF-8`"
        )
    for signature, what, remedy in _SIGNATURES:
        if head.startswith(signature):
            return f"is {what}; {remedy}"
    for pattern, what, remedy in _PLAIN_SIGNATURES:
        if pattern.match(head):
            return f"is {what}; {remedy}"
    return None


def pointer_kind(head: bytes) -> str | None:
    """Say whether version control left a file in another one's place; as `foreign_kind`."""
    if _LFS.match(head):
        return "is a Git LFS pointer, not the file itself; fetch that with `git lfs pull`"
    if _ANNEX.fullmatch(head):
        return "is a git-annex pointer, not the file itself; fetch that with `git annex get`"
    return None


def pointer_at(path: Path) -> str | None:
    """Return whether a file is such a pointer; as `foreign_kind`. None if it cannot be read."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return pointer_kind(file.read(HEAD_BYTES))
    return None


def _not_wide(head: bytes, encoding: str) -> str | None:
    """Refuse what UTF-16 or UTF-32 would read as nonsense without an error."""
    if head.isascii() and 0 not in head:
        return f"is ASCII text, not {encoding}; leave data.encoding out, or convert the file"
    name = codecs.lookup(encoding).name
    marked = any(head.startswith(mark) for mark, known in _BYTE_ORDER_MARKS if known == name)
    if name in ("utf-16", "utf-32") and not marked:
        return (
            f"has no byte order mark, which {encoding} needs; set data.encoding={name}-le or "
            f"{name}-be, or leave it out if the file is UTF-8"
        )
    return None


def _wide_encoding(head: bytes) -> str | None:
    """Recognise UTF-16 and UTF-32 by their mark, or by where their zero bytes are."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            # The head may end within a character. A mark alone is no evidence.
            text = codecs.getincrementaldecoder(encoding)("replace").decode(head)
            if text and all(letter.isprintable() or letter.isspace() for letter in text):
                return encoding
    if len(head) < 16:
        return None
    for width, places in ((4, {"utf-32-le": (1, 2, 3), "utf-32-be": (0, 1, 2)}),
                          (2, {"utf-16-le": (1,), "utf-16-be": (0,)})):  # fmt: skip
        rows = head[: len(head) // width * width]
        zeros = [rows[place::width].count(0) / (len(rows) // width) for place in range(width)]
        for encoding, empty in places.items():
            others = [zeros[place] for place in range(width) if place not in empty]
            # Text of any script has spaces and ends of lines, whose upper bytes are zero.
            if min(zeros[place] for place in empty) > 0.5 and max(others) < 0.05:
                return encoding
    return _eastern(head)


def _eastern(head: bytes) -> str | None:
    """Recognise Chinese and Japanese in UTF-16, which has few zero bytes."""
    with contextlib.suppress(UnicodeDecodeError):
        codecs.getincrementaldecoder("utf-8")().decode(head)
        return None
    for encoding in ("utf-16-le", "utf-16-be"):
        text = head[: len(head) // 2 * 2].decode(encoding, "replace")
        # Bytes of other encodings, taken in pairs, are many other things, too.
        share = len(_EASTERN_OR_PLAIN.findall(text)) / len(text)
        if share > 0.98 and _EASTERN.search(text) and _EASTERN_STOPS.search(text):
            return encoding
    return None


def undecodable(sample: bytes, encoding: str) -> str:
    """Say what to do about text that its encoding does not allow.

    Args:
        sample: The first megabyte or so.
        encoding: What it was taken for.

    Returns:
        What to do, as the rest of a sentence after "line N is not UTF-8".
    """
    if codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
        return "; it is damaged or cut short: restore it, or move it out of data.path"
    if _is_binary(sample):
        return "; convert it to text, or move it out of data.path: the file is binary"
    if not is_utf8(encoding):
        return "; set data.encoding to what the file is written in"
    # Bytes that could not be decoded.
    damaged = len(re.findall("[\udc80-\udcff]", sample.decode("utf-8", "surrogateescape")))
    advice = (
        "; convert the file to UTF-8, or set data.encoding to what it is written in (such as "
        "cp1252, latin-1, gb18030, shift_jis or utf-16)"
    )
    if 0 < damaged <= min(_FEW, len(sample) // 200):
        plural = "s are" if damaged > 1 else " is"
        advice += f"; where the {damaged} byte{plural} damage, data.invalid_utf8=replace"
    return advice


def _is_binary(sample: bytes) -> bool:
    controls = len(sample) - len(sample.translate(None, _BINARY_CONTROLS))
    return controls > 0.02 * len(sample)


def is_markup(head: bytes) -> bool:
    """Return whether a file begins like a page of HTML or XML, such as a download's error page."""
    return _MARKUP.match(head) is not None
