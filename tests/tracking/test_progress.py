import contextlib
import fcntl
import os
import re
import struct
import sys
import termios

import pytest

from launch.terminal import say, wrapped
from tracking.progress import Bar, in_words

PIECES = ("step 412 of 733", "loss 4.169", "3,750 tokens/s", "2 min 14 s left")
NAME = "mla-nano-python_stdlib-seed0"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (250.0, "4 min 10 s"),
        (7500.0, "2 h 5 min"),
        (90061.0, "1 d 1 h"),
    ],
)
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words


@pytest.fixture
def terminal(monkeypatch):
    """A terminal as stdout and stderr: `resize` it, and `read` what it was sent."""
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    with os.fdopen(theirs, "w") as stream:

        class Terminal:
            @staticmethod
            def resize(columns):
                size = struct.pack("HHHH", 24, columns, 0, 0)
                fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
                for name in ("stdout", "stderr"):  # here: pytest has its own until a test begins
                    monkeypatch.setattr(sys, name, stream)

            @staticmethod
            def read():
                stream.flush()
                found = b""
                with contextlib.suppress(BlockingIOError):
                    while True:
                        found += os.read(ours, 65536)
                return re.split(r"[\r\n]+", found.decode())

        yield Terminal
        monkeypatch.undo()
    os.close(ours)


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (20, []),
        (40, [0]),
        (60, [0, 1, 3]),
        *((columns, [0, 1, 2, 3]) for columns in (80, 100, 120, 200)),
    ],
)
def test_a_bar_fits_its_terminal_with_its_text_whole(terminal, columns, shown):
    terminal.resize(columns)
    with Bar() as bar:
        bar.show(412, 733, *PIECES)
        (line,) = filter(None, terminal.read())
    found = re.fullmatch(r" 56 %\|(.*)\| (.*)", line)
    assert len(line) == columns - 1
    assert line.isprintable()  # no colour, and nothing else that a terminal obeys
    assert len(found[1]) >= 6
    assert found[2] == ", ".join(PIECES[index] for index in shown)


def test_a_bar_follows_a_terminal_that_is_resized_and_one_without_a_size_has_80(terminal):
    with Bar() as bar:
        for done, columns in enumerate((80, 120, 60, 0), start=1):
            terminal.resize(columns)
            bar.show(done, done, *PIECES)
            assert {len(line) for line in terminal.read() if line} == {(columns or 80) - 1}


def test_another_kind_of_work_is_shown_at_once_and_the_line_is_cleared_at_the_end(terminal):
    terminal.resize(80)
    with Bar() as bar:
        bar.show(1, 3, "step 1 of 3")
        bar.show(2, 3, "step 2 of 3")  # a moment later
        watch = bar.count("validating", "tokens")
        watch(0, 93_931)
        watch(93_931, 93_931)
        bar.show(1, 1, "writing a {sample}")
        lines = [line for line in terminal.read() if line]
    texts = [line.split("| ")[-1] for line in lines]
    assert texts == [
        "step 1 of 3",
        "validating 0 of 93,931 tokens",
        "validating 93,931 of 93,931 tokens, 0 s left",
        "writing a {sample}",
    ]
    assert set("".join(terminal.read())) == {" "}  # over what was there


def test_a_line_is_said_above_a_bar_and_broken_at_words(terminal):
    terminal.resize(60)
    with Bar() as bar:
        bar.show(1, 3, "step 1 of 3")
        terminal.read()
        say("memory allocator: freed memory is kept (trainer.tune_allocator=false to change)")
        lines = [line for line in terminal.read() if line.strip()]
    assert lines[:2] == [
        "memory allocator: freed memory is kept",
        "  (trainer.tune_allocator=false to change)",
    ]
    assert lines[2].endswith("step 1 of 3")


def test_a_log_has_a_line_now_and_then_and_only_from_work_with_a_name(capsys):
    for name, seconds in (("", 0.0), (NAME, 60.0), (NAME, 0.0)):
        with Bar(name, log_every_seconds=seconds) as bar:
            bar.show(1, 3, "scoring 1 of 3 tokens", "9 s left")
    with Bar(NAME, is_shown=False, log_every_seconds=0.0) as bar:
        bar.show(1, 3, "scoring 1 of 3 tokens")
    captured = capsys.readouterr()
    assert captured.err == f"{NAME}: scoring 1 of 3 tokens, 9 s left\n"
    assert captured.out == ""


LONG_PATH = f"/data/{'x' * 60}/runs"
COMMAND = f"python generate_text.py run={NAME} runs_dir=/data/runs"
TABLE = f"name    {'x' * 70}  value"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("short", ["short"]),
        (f"next: {COMMAND}", ["next:", f"  {COMMAND}"]),
        (
            f"next: python eval_model.py or {COMMAND}; then look at what it says",
            ["next: python eval_model.py or", f"  {COMMAND};", "  then look at what it says"],
        ),
        (
            f"no key is there; upload it later with `wandb sync runs/{NAME}/wandb/offline-run-*`",
            [
                "no key is there; upload it later with",
                f"  `wandb sync runs/{NAME}/wandb/offline-run-*`",
            ],
        ),
        (f"written to {LONG_PATH} now", ["written to", f"  {LONG_PATH}", "  now"]),
        (f"{TABLE}\n{'-' * 70}  -----", [TABLE, f"{'-' * 70}  -----"]),
        (f"    {'indented ' * 9}", [f"    {'indented ' * 9}"]),
        (f"| {'markdown | ' * 9}", [f"| {'markdown | ' * 9}"]),
    ],
)
def test_sentences_are_broken_at_words_and_commands_and_tables_stay_whole(text, lines):
    assert wrapped(text, 60).split("\n") == lines


def test_what_is_piped_is_not_broken(capsys):
    text = "word " * 60
    say(text)
    assert capsys.readouterr().out == text + "\n"
