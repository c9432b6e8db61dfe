"""Little documents, and what tests of prepared data do with a folder."""

import json

import pyarrow

from files.sealed import sealed, unsealed
from settings.data import DataSettings, TokenizerSettings

BYTES = TokenizerSettings(name="bytes", kind="bytes")
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


def sentences(count, start=0):
    """Distinct little documents."""
    return [
        f"{WORDS[i % 10]} {WORDS[i * 7 % 10]}\n{i} é {WORDS[i * 3 % 10]}."
        for i in range(start, start + count)
    ]


def zstandard(data):
    """Compress bytes as one Zstandard frame."""
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def quiet(_):
    """Take a line for the user."""


def tokens_of(prepared, split):
    """All tokens of a split."""
    stream = prepared.stream(split)
    return stream.window(0, len(stream))


def file_bytes(folder):
    """The content of every file, by its name."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def forge(folder, change, name="manifest.json"):
    """Change a sealed file and give it the hash of the changed content."""
    content = unsealed(json.loads((folder / name).read_text()))
    change(content)
    (folder / name).write_text(json.dumps(sealed(content)))


def flip(path, at=-2):
    """Flip a bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def write_corpus(folder, words, number):
    """Write so many documents to train on, and a quarter of that to validate on, as JSON lines."""
    folder.mkdir(parents=True)
    for split, count in (("train", number), ("validation", number // 4)):
        rows = [json.dumps({"text": f"{words} {split} {i:04d}"}) + "\n" for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(rows))


def settings_for(folder, **changes):
    """Settings for FOLDER/corpus, prepared in FOLDER/prepared."""
    values = {"name": "test", "source": "local", "path": str(folder / "corpus")}
    values |= {"prepared_dir": str(folder / "prepared"), "shard_tokens": 200, "num_workers": 1}
    return DataSettings(**(values | changes))


def overrides(corpus, **changes):
    """The same on a command line, in bytes as tokens."""
    settings = settings_for(corpus, **changes)
    return [
        "data=local",
        "tokenizer=bytes",
        *(
            f"data.{key}={getattr(settings, key)}"
            for key in ("name", "path", "prepared_dir", "shard_tokens", "num_workers")
        ),
    ]
