"""Runs train_model.py in one forked process after the other, each with a fault of its own.

What takes seconds to import is imported once; each fork is a process as a user would start one,
with its own command line, files for its output, signals and exit status. Standard input holds a
JSON list of cases, standard output gets one of results.
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from commands import train  # noqa: E402
from launch.run import run  # noqa: E402
from launch.schemas import TrainConfig  # noqa: E402
from modeling.gpt import GPT  # noqa: E402
from tracking import checkpoint  # noqa: E402
from training import loop, validation  # noqa: E402


def call_before(owner, name, act):
    """Have `act` called, with the same arguments, before a function."""
    function = getattr(owner, name)

    def both(*args, **kwargs):
        act(*args, **kwargs)
        return function(*args, **kwargs)

    setattr(owner, name, both)


class Fault:
    """Signals or starves this process at a place: in a step, a validation, a save, the end."""

    def __init__(self, case):
        self.signals = case.get("signals", [])
        self.room_bytes = case.get("room_bytes")
        self.sent_at = None
        self.batches_after = 0
        self.note = Path(case["note"])
        place, _, number = case.get("at", "").partition(" ")
        number = int(number or 0)
        if place == "step":
            # Its first argument that counts steps counts from 0.
            call_before(loop, "learning_rate", lambda *args: args[2] == number - 1 and self.send())
        if place == "save":
            call_before(checkpoint, "save_file", lambda *args: self.send(pause=0.5))
        if place in ("validation", "end"):
            call_before(validation, "score", self.arm_scoring(is_end=place == "end"))
            call_before(GPT, "token_nll", self.scoring)
        self.left = None

    def arm_scoring(self, *, is_end):
        def arm(model, stream, context, stride, batch_size, device, max_tokens, give_way):
            self.left = 2 if is_end == (max_tokens is None) else None

        return arm

    def scoring(self, *args):
        if self.sent_at is not None:
            self.batches_after += 1
        elif self.left is not None:
            self.left -= 1
            if self.left == 0:
                self.send()
        self.write()

    def send(self, pause=0.0):
        if self.sent_at is not None:
            return
        self.sent_at = time.time()
        self.write()
        if self.room_bytes is not None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + self.room_bytes
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for name in self.signals:
            os.kill(os.getpid(), getattr(signal, name))
        time.sleep(pause)

    def write(self):
        self.note.write_text(json.dumps([self.sent_at, self.batches_after]))


def streams_of(case):
    """Open what a case wants standard output and standard error to be."""
    if case.get("output") == "closed pipe":
        reader, writer = os.pipe()
        os.close(reader)
        return writer, writer
    if case.get("output") == "closed terminal":
        master, slave = os.openpty()
        os.close(master)
        return slave, slave
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    return os.open(case["out"], flags), os.open(case["err"], flags)


def main():
    results = []
    for case in json.load(sys.stdin):
        process = os.fork()
        if process == 0:
            for target, stream in zip((1, 2), streams_of(case), strict=True):
                os.dup2(stream, target)
            Fault(case)
            sys.argv = [str(ROOT / "train_model.py"), *case["arguments"]]
            run("train", TrainConfig, train.main)
        _, status = os.waitpid(process, 0)
        ended = time.time()
        note = Path(case["note"])
        sent_at, batches = json.loads(note.read_text()) if note.exists() else (None, 0)
        results.append(
            {
                "status": os.waitstatus_to_exitcode(status),
                "seconds": ended - sent_at if sent_at else None,
                "batches_after": batches,
            }
        )
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
