import json
import os
import pty
import select
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from settings.tracking import TrackingSettings
from tracking import wandb_mirror
from tracking.wandb_environment import run_id
from tracking.wandb_mirror import WandbMirror

ROOT = Path(__file__).parents[2]
KEY = "c0ffee" * 7  # 42 characters, as long as a real one

PROGRAM = """
import json, os, subprocess, sys, time
from pathlib import Path
from settings.tracking import TrackingSettings
from tracking.wandb_mirror import WandbMirror

def say(line):
    print("SAID", line, flush=True)

def mirror(name="r1", resumes=False, default_group=None, **settings):
    folder = Path(sys.argv[1]) / name
    folder.mkdir(exist_ok=True)
    chosen = TrackingSettings(**{"name": "wandb", "wandb": True, **settings})
    config = {"lr": 3e-4, "model": {"name": "mla"}}
    return WandbMirror(chosen, folder, name, config, say, default_group, resumes=resumes)

start = time.monotonic()
"""


def program(tmp_path, body, **environment):
    """Return arguments and environment of a process of its own: wandb keeps state per process."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    clean |= {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), **environment}
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "NETRC"):
        clean.pop(name, None)
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "runs").mkdir(exist_ok=True)
    arguments = [sys.executable, "-c", PROGRAM + body, str(tmp_path / "runs")]
    return arguments, {"env": clean, "cwd": tmp_path}


def run(tmp_path, body, **environment):
    arguments, options = program(tmp_path, body, **environment)
    done = subprocess.run(
        arguments,
        **options,
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return [line.removeprefix("SAID ") for line in done.stdout.splitlines()]


def read_wandb(path):
    """Read an offline wandb file: a LevelDB log of protobufs. Returns history and summary."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    position, block, part, records = 7, 32768, b"", []
    while position + 7 <= len(data):
        left = block - position % block
        if left < 7:
            position += left
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + 7])
        if size == 0 and kind == 0:
            break
        part += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last part
            records.append(part)
            part = b""
    history, summary, runs = [], {}, []
    for record in records:
        parsed = wandb_internal_pb2.Record()
        parsed.ParseFromString(record)
        kind = parsed.WhichOneof("record_type")

        def values(items):
            return {x.key or "/".join(x.nested_key): json.loads(x.value_json) for x in items}

        if kind == "history":
            history.append(values(parsed.history.item))
        elif kind == "summary":
            summary.update(values(parsed.summary.update))
        elif kind == "run":
            runs.append(parsed.run)
    return history, summary, runs


def offline_files(tmp_path, name="r1"):
    return sorted((tmp_path / "runs" / name / "wandb").glob("offline-run-*/*.wandb"))


FULL = """
m = mirror(tags=["a"])
for step in range(1, 6):
    m.log({"train/loss": 1 / step}, tokens=step * 100)
m.summary({"validation_perplexity": 12.5})
m.table("rows", ["run", "ppl"], [["mha", 12.5], ["mla", None]])
m.finish()
m.finish()
m.log({"late": 1.0}, tokens=0)
again = mirror("r2", group="seeds")
again.log({"x": 1.0}, tokens=5)
again.finish()
"""


@pytest.mark.slow
def test_offline_run_reads_back_once_per_run_of_a_process_and_holds_no_key(tmp_path):
    said = run(tmp_path, FULL, WANDB_MODE="offline", WANDB_API_KEY=KEY)
    assert said == []
    (path,) = offline_files(tmp_path)
    history, summary, runs = read_wandb(path)
    logged = [record for record in history if "train/loss" in record]
    assert [record["train/loss"] for record in logged] == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]
    assert [record["progress/tokens"] for record in logged] == [100, 200, 300, 400, 500]
    assert summary["validation_perplexity"] == 12.5
    assert any(key.split("/")[0] == "rows" for record in history for key in record)
    assert runs[0].display_name == "r1"
    assert runs[0].run_group == "r1"
    assert runs[0].project == "kvlab"
    assert list(runs[0].tags) == ["a"]
    (other,) = offline_files(tmp_path, "r2")
    assert [record["x"] for record in read_wandb(other)[0]] == [1.0]
    assert read_wandb(other)[2][0].run_group == "seeds"
    for file in (tmp_path / "runs").rglob("*"):
        if file.is_file():
            assert KEY.encode() not in file.read_bytes(), file


ENVIRONMENT = {
    "WANDB_PROJECT": "theirs",
    "WANDB_ENTITY": "team",
    "WANDB_RUN_GROUP": "groups",
    "WANDB_TAGS": "x,y",
    "WANDB_NAME": "named",
    "WANDB_NOTES": "a note",
    "WANDB_JOB_TYPE": "job",
    "WANDB_RUN_ID": "agent-1",
}
SEVERAL = """
def one(name, tokens, **options):
    m = mirror(name, **options)
    m.log({"train/loss": 1.0}, tokens=tokens)
    m.finish()

one("env", 1, default_group="study")
one("given", 1, project="kvlab", entity="me", group="mine", tags=["z"])
from tracking.wandb_environment import forget_names_of_one_run
assert sorted(forget_names_of_one_run()) == ["WANDB_NAME", "WANDB_RUN_ID"]
for name in [name for name in os.environ if name in sys.argv[2].split()]:
    del os.environ[name]
one("default", 1, default_group="study")
one("resumed", 1)
time.sleep(1.1)  # for another folder: they are named by the second
one("resumed", 2, resumes=True)
time.sleep(1.1)
one("resumed", 3)
"""


@pytest.mark.slow
def test_environment_holds_where_the_configuration_says_nothing_and_a_resumed_run_is_the_same(
    tmp_path,
):
    arguments, options = program(
        tmp_path, SEVERAL, WANDB_MODE="offline", **ENVIRONMENT, HOME="/proc/nowhere"
    )
    done = subprocess.run(
        [*arguments, " ".join(ENVIRONMENT)],
        **options,
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    # Without a home that can be written to, too, no library logs.
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def recorded(name):
        return [read_wandb(path)[2][0] for path in offline_files(tmp_path, name)]

    (env,), (given,), (default,) = (recorded(name) for name in ("env", "given", "default"))
    assert (env.project, env.entity, env.run_group) == ("theirs", "team", "groups")
    assert (given.project, given.entity, given.run_group) == ("kvlab", "me", "mine")
    assert (default.project, default.entity, default.run_group) == ("kvlab", "", "study")
    assert [sorted(run.tags) for run in (env, given, default)] == [["x", "y"], ["z"], []]
    assert (env.display_name, env.notes, env.job_type) == ("named", "a note", "job")
    assert (default.display_name, default.notes, default.job_type) == ("default", "", "")
    assert env.run_id == "agent-1" != default.run_id
    first, resumed, another = recorded("resumed")
    assert first.run_id == resumed.run_id != another.run_id
    for path, tokens in zip(offline_files(tmp_path, "resumed"), (1, 2, 3), strict=True):
        assert [record["progress/tokens"] for record in read_wandb(path)[0]] == [tokens]


@pytest.mark.parametrize("content", [None, "", "[]", '{"id": 3}', '{"id": "../x"}'])
def test_an_id_that_was_not_recorded_or_is_damaged_is_replaced(tmp_path, monkeypatch, content):
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    path = tmp_path / "wandb" / "kvlab-run-id.json"
    if content is not None:
        path.parent.mkdir()
        path.write_text(content)
    assert run_id(tmp_path, "new1", resumes=True) == "new1"
    assert run_id(tmp_path, "new2", resumes=True) == "new1"
    assert run_id(tmp_path, "new3", resumes=False) == "new3"
    monkeypatch.setenv("WANDB_RUN_ID", "theirs")  # a sweep agent's wins
    assert run_id(tmp_path, "new4", resumes=True) == "theirs"


LOG = """
m = mirror()
m.log({"train/loss": 1.0}, tokens=1)
print(f"first log took {time.monotonic() - start:.1f} s", flush=True)
m.finish()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({}, "no API key is configured"),
        ({"WANDB_MODE": "online"}, "no API key is configured"),
        ({"WANDB_API_KEY": "short"}, "the API key is not usable"),
        ({"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}, "cannot be reached"),
    ],
    ids=["no-key", "no-key-online", "bad-key", "refused"],
)
def test_unusable_key_or_server_records_offline_with_one_line(tmp_path, environment, reason):
    said, took = run(tmp_path, LOG, **environment)
    assert said.startswith("wandb: ")
    assert reason in said
    assert "recorded offline; upload it later with `wandb sync" in said
    assert "short" not in said
    assert float(took.split()[3]) < 20
    assert len(read_wandb(offline_files(tmp_path)[0])[0]) == 1


@pytest.mark.slow
def test_key_in_netrc_is_found(tmp_path):
    (tmp_path / "home").mkdir()
    netrc = tmp_path / "home" / ".netrc"
    netrc.write_text(f"machine 127.0.0.1:9 login user password {KEY}\n")
    netrc.chmod(0o600)
    said, _ = run(tmp_path, LOG, WANDB_BASE_URL="http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in said


SILENT_SERVER = """
import socket, threading
server = socket.socket()
server.bind(("127.0.0.1", 0))
server.listen(50)
held = []
def serve():
    while True:
        connection, _ = server.accept()
        held.append(connection)
        if {answers} and len(held) == 1:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.0 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
            connection.close()
threading.Thread(target=serve, daemon=True).start()
os.environ["WANDB_BASE_URL"] = f"http://127.0.0.1:{{server.getsockname()[1]}}"
"""


@pytest.mark.slow
@pytest.mark.parametrize("answers", [False, True], ids=["never", "only-the-probe"])
def test_server_that_accepts_and_never_answers_costs_at_most_25_seconds(tmp_path, answers):
    start = time.monotonic()
    said, took = run(tmp_path, SILENT_SERVER.format(answers=answers) + LOG, WANDB_API_KEY=KEY)
    assert "recorded offline" in said
    assert ("did not answer within" in said) != answers
    assert float(took.split()[3]) < 25
    assert time.monotonic() - start < 35  # the process's exit is not held up either
    assert len(read_wandb(offline_files(tmp_path)[0])[0]) == 1


@pytest.mark.slow
def test_offline_mode_contacts_no_server(tmp_path):
    body = SILENT_SERVER.format(answers=False) + LOG + "print(len(held))"
    assert run(tmp_path, body, WANDB_API_KEY=KEY, WANDB_MODE="offline")[-1] == "0"


@pytest.mark.slow
def test_killed_service_is_one_warning_and_the_next_run_has_its_own(tmp_path):
    body = """
import ctypes, signal
m = mirror()
m.log({"a": 1.0}, tokens=1)
# Only this process's own child.
children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
for child in children:
    if "wandb" in Path(f"/proc/{child}/cmdline").read_text():
        os.kill(int(child), signal.SIGKILL)
time.sleep(0.5)
for step in range(100):
    m.log({"a": 1.0}, tokens=step)
m.finish()
again = mirror("r2")
again.log({"x": 1.0}, tokens=5)
again.finish()
"""
    said = run(tmp_path, body, WANDB_MODE="offline")
    assert len(said) == 1
    assert "log failed" in said[0]
    assert f"everything is in {tmp_path}" in said[0]
    assert len(read_wandb(offline_files(tmp_path, "r2")[0])[0]) == 1


@pytest.mark.slow
def test_terminal_without_a_key_is_never_asked(tmp_path):
    arguments, options = program(tmp_path, LOG)
    leader, follower = pty.openpty()
    child = subprocess.Popen(arguments, **options, stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    shown = b""
    deadline = time.monotonic() + 40
    try:
        while child.poll() is None and time.monotonic() < deadline:
            if select.select([leader], [], [], 0.2)[0]:
                try:
                    shown += os.read(leader, 10_000)
                except OSError:  # the other end is closed
                    break
        assert child.wait(timeout=max(1, deadline - time.monotonic())) == 0, shown
    finally:
        child.kill()
        child.wait()
        os.close(leader)
    assert b"Enter your choice" not in shown
    assert shown.count(b"\n") == 2, shown


class FakeRun:
    """A wandb run whose every method does as the test says."""

    def __init__(self, behave):
        self.behave = behave
        self.summary = self
        self.calls = []

    def log(self, values):
        self.calls.append(values)
        self.behave()

    def update(self, values):
        self.log(values)

    def finish(self, exit_code):
        self.behave()


def mirror_of(tmp_path, said, behave=lambda: None, **settings):
    chosen = TrackingSettings(**{"name": "wandb", "wandb": True, **settings})
    mirror = WandbMirror(chosen, tmp_path, "r1", {}, said.append)
    fake = FakeRun(behave)
    mirror._start = lambda: fake
    return mirror, fake


def raise_error():
    raise RuntimeError("first\nsecond")


def test_error_turns_the_mirror_off_with_one_line(tmp_path):
    said = []
    mirror, fake = mirror_of(tmp_path, said, raise_error)
    for _ in range(3):
        mirror.log({"a": 1.0}, tokens=1)
    mirror.summary({})
    mirror.image("plot", tmp_path / "missing.png")
    mirror.finish()
    assert len(said) == 1
    assert "wandb: log failed (RuntimeError: first second); the run continues without it" in said[0]
    assert len(fake.calls) == 1


def test_interrupt_is_not_swallowed(tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    mirror, _ = mirror_of(tmp_path, [], interrupt)
    with pytest.raises(KeyboardInterrupt):
        mirror.log({}, tokens=1)


def test_finish_that_hangs_is_bounded_and_says_so(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(wandb_mirror, "FINISH_SECONDS", 0.1)
    monkeypatch.setattr(wandb_mirror, "_FINISH_MARGIN_SECONDS", 0.1)
    mirror, _ = mirror_of(tmp_path, said, lambda: None)
    mirror.log({}, tokens=1)
    mirror._run.behave = lambda: time.sleep(5)
    start = time.monotonic()
    mirror.finish()
    assert time.monotonic() - start < 2
    assert "not all was uploaded" in said[0]


@pytest.mark.parametrize("settings", [{"wandb": False}, {"mode": "disabled"}])
def test_off_neither_imports_wandb_nor_writes(tmp_path, settings):
    body = f"""
m = mirror(**{settings!r})
m.log({{"a": 1.0}}, tokens=1)
m.summary({{}})
m.table("t", [], [])
m.image("i", Path("x"))
m.finish()
assert "wandb" not in sys.modules
assert "torch" not in sys.modules
"""
    assert run(tmp_path, body) == []
    assert list((tmp_path / "runs" / "r1").iterdir()) == []


@pytest.mark.slow
def test_disabled_by_the_environment_writes_nothing(tmp_path):
    assert len(run(tmp_path, LOG, WANDB_MODE="disabled")) == 1
    assert list((tmp_path / "runs" / "r1").iterdir()) == []
