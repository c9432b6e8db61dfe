"""How fast, and in how much memory, text becomes token shards.

    python -m benchmarks.prepare [speed | memory]

speed: one text (installed Python packages, as one parquet file) and one tokenizer, prepared in turn
by kvlab and by `datasets.map(batched=True, num_proc=2)` followed by writing, once with
transformers' tokenizer and once with the leanest call of the tokenizers library. kvlab's time is
all of `prepare`: reading, encoding, counting, hashing, writing to the disk; of the others, map and
writing. All write the same tokens, which is checked. Prints medians and ratios.

memory: `prepare` of 10 MB, 100 MB and all of python_packages, each in a process of its own. Prints
the peak resident memory of the main process and of its largest worker (Linux).
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data.pipeline import prepare
from data.sources.python_library import python_files
from settings.data import DataSettings, TokenizerSettings

ROOT = Path(__file__).resolve().parent.parent

PROCESSES = 2
REPETITIONS = 5
SPEED_BYTES = 30_000_000
MEMORY_BYTES = (10_000_000, 100_000_000, 10**12)

MEASURE = """
import contextlib, json, re, sys, threading, time
from pathlib import Path
from data.pipeline import prepare
from settings.data import DataSettings, TokenizerSettings
data, tokenizer = json.loads(sys.argv[1])

def peak(process):
    # Not getrusage: a child's figure there begins with its parent's.
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\\s+(\\d+)", status)
    return int(found[1]) * 1024 if found else 0

workers = [0]

def watch():
    while True:
        for task in list(Path("/proc/self/task").iterdir()):
            # Threads come and go.
            with contextlib.suppress(OSError):
                for child in (task / "children").read_text().split():
                    workers[0] = max(workers[0], peak(child))
        time.sleep(0.1)

threading.Thread(target=watch, daemon=True).start()
start = time.perf_counter()
prepared = prepare(DataSettings(**data), TokenizerSettings(**tokenizer), lambda _: None)
print(json.dumps({
    "seconds": time.perf_counter() - start,
    "bytes": sum(counts.utf8_bytes for counts in prepared.splits.values()),
    "main": peak("self"),
    "worker": workers[0],
}))
"""


def texts(num_bytes: int) -> list[str]:
    """Read installed Python files, up to a size."""
    found, size = [], 0
    for file in python_files("python_packages"):
        if size < num_bytes:
            try:
                text = Path(file.path).read_bytes().decode()
            except UnicodeDecodeError:
                continue
            if text:
                found.append(text)
                size += file.num_bytes
    return found


def by_kvlab(folder: Path, tokenizer: Path) -> np.ndarray:
    """Prepare the text in `folder` and return its tokens."""
    data = DataSettings(
        name="benchmark",
        source="local",
        path=str(folder / "text"),
        prepared_dir=str(folder / "kvlab"),
        num_workers=PROCESSES,
    )
    choice = TokenizerSettings(name="same", kind="pretrained", path=str(tokenizer))
    prepared = prepare(data, choice, lambda _: None)
    stream = prepared.stream("train")
    return stream.window(0, len(stream))


def by_map(rows: Any, folder: Path, encode: Callable[[list[str]], list[list[int]]]) -> np.ndarray:
    """Encode with datasets.map and write one file of uint16 tokens, as nanoGPT does."""
    end = 0

    def ids_of(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        ids = [[*one, end] for one in encode(batch["text"])]
        return {"ids": ids, "length": [len(one) for one in ids]}

    encoded = rows.map(
        ids_of,
        batched=True,
        num_proc=PROCESSES,
        remove_columns=["text"],
        load_from_cache_file=False,
    )
    path = folder / "tokens.bin"
    tokens = np.memmap(path, np.uint16, "w+", shape=(sum(encoded["length"]),))
    at = 0
    for batch in encoded.with_format("numpy").iter(batch_size=1000):
        piece = np.concatenate(batch["ids"])
        tokens[at : at + len(piece)] = piece
        at += len(piece)
    tokens.flush()
    return np.array(tokens)


def speed() -> None:
    """Time kvlab and the others in turn."""
    import datasets
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    # Their processes are the parallelism, as are kvlab's.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text").mkdir()
        written = texts(SPEED_BYTES)
        size = sum(len(text.encode()) for text in written)
        table = datasets.Dataset.from_dict({"text": written})
        table.to_parquet(folder / "text" / "train.parquet")
        datasets.Dataset.from_dict({"text": ["x y"]}).to_parquet(
            folder / "text" / "validation.parquet"
        )
        data = DataSettings(
            name="text", source="local", path=str(folder / "text"), prepared_dir=str(folder / "p")
        )
        made = prepare(data, TokenizerSettings(name="bpe", kind="bpe"), lambda _: None)
        tokenizer = made.folder / "tokenizer"
        rows = datasets.load_dataset(
            "parquet",
            data_files=str(folder / "text" / "train.parquet"),
            split="train",
            cache_dir=str(folder / "cache"),
        )
        wrapped = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        raw = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
        systems: dict[str, Callable[[], np.ndarray]] = {
            "kvlab": lambda: by_kvlab(folder, tokenizer),
            "map, transformers": lambda: by_map(rows, folder, lambda t: wrapped(t)["input_ids"]),
            "map, tokenizers": lambda: by_map(
                rows,
                folder,
                lambda t: [e.ids for e in raw.encode_batch_fast(t, add_special_tokens=False)],
            ),
        }
        times: dict[str, list[float]] = {system: [] for system in systems}
        expected = None
        for repetition in range(REPETITIONS + 1):
            for system, run in systems.items():
                shutil.rmtree(folder / "kvlab", ignore_errors=True)
                start = time.perf_counter()
                tokens = run()
                # The first round warms imports and the disk's cache.
                if repetition:
                    times[system].append(time.perf_counter() - start)
                expected = tokens if expected is None else expected
                if not np.array_equal(tokens, expected):
                    raise SystemExit(f"{system} wrote other tokens than kvlab")
    ours = statistics.median(times["kvlab"])
    print(
        f"{size / 1e6:.1f} MB of text, {0 if expected is None else len(expected):,} tokens, "
        f"{PROCESSES} processes"
    )
    for system, some in times.items():
        median = statistics.median(some)
        print(
            f"{system:18} {median:6.2f} s {size / 1e6 / median:6.2f} MB/s; kvlab is "
            f"{median / ours:.2f} times as fast (of {', '.join(f'{t:.2f}' for t in some)})"
        )


def memory() -> None:
    """Measure peak memory at growing sizes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for num_bytes in MEMORY_BYTES:
            data: dict[str, Any] = {"name": "m", "prepared_dir": str(folder), "num_workers": 2}
            if num_bytes < 10**12:
                # python_packages has no size limit in bytes; tokens are about 3 bytes of code.
                data["max_train_tokens"] = num_bytes // 3
            data["source"] = "python_packages"
            data["validation_fraction"] = 0.001
            done = subprocess.run(
                [sys.executable, "-c", MEASURE, json.dumps([data, {"name": "b", "kind": "bpe"}])],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
            )
            found = json.loads(done.stdout)
            print(
                f"{found['bytes'] / 1e6:7.1f} MB of text in {found['seconds']:6.1f} s, tokenizer "
                f"training included: main process {found['main'] / 1e6:.0f} MB, largest worker "
                f"{found['worker'] / 1e6:.0f} MB"
            )


if __name__ == "__main__":
    for command in sys.argv[1:] or ["speed", "memory"]:
        {"speed": speed, "memory": memory}[command]()
