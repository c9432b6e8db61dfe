"""Local files and the default corpus ask nobody: a proxy on this machine counts who tries."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from texts import sentences

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@contextlib.contextmanager
def counting_proxy():
    """Yield a proxy's URL and the list of what was asked of it; it never answers."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            # The listening socket's end ends this.
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        asked.append(connection.recv(200))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", asked
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture
def command(tmp_path):
    """Run commands behind the proxy, none of which may use it."""
    with counting_proxy() as (url, asked):
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), url)
        proxies |= {name.lower(): value for name, value in proxies.items()}
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        for name in ("WANDB_MODE", "NO_PROXY", "no_proxy"):
            kept.pop(name, None)
        environment = kept | proxies | {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}

        def run(*arguments):
            done = subprocess.run(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, done.stderr
            assert asked == [], arguments
            return done.stdout

        yield run
        # The proxy counts: a request that is meant for the Hub reaches it.
        probe = "import urllib.request as u; u.urlopen('http://huggingface.co/x', timeout=9)"
        subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True)
        assert len(asked) == 1


def test_local_files_ask_nobody_from_preparing_to_exporting(command, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    texts = sentences(400)
    for number in range(20):
        (corpus / f"{number}.txt").write_text("\n".join(texts[number::40]))
    rows = [{"text": text} for text in texts[20:]]
    (corpus / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (corpus / "b.csv").write_text('text\n"' + '"\n"'.join(texts[:90]) + '"\n')
    pyarrow.parquet.write_table(pa.table({"text": texts[5:]}), corpus / "validation.parquet")
    data = ["data=local", f"data.path={corpus}", f"data.prepared_dir={tmp_path}/prepared"]
    data += ["tokenizer.vocab_size=300"]
    runs = f"runs_dir={tmp_path}/runs"
    command("prepare_data.py", "inspect", *data)
    command("train_model.py", *data, "debug=smoke", runs)
    command("eval_model.py", runs, f"reports_dir={tmp_path}/reports")
    (run,) = (path.name for path in (tmp_path / "runs").iterdir() if path.name[0] != ".")
    command("generate_text.py", runs, f"run={run}", "max_new_tokens=4")
    command("export_model.py", runs, f"run={run}", f"out={tmp_path}/exported")


def test_the_default_corpus_asks_nobody(command, tmp_path):
    command("prepare_data.py", "tokenizer=bytes", f"data.prepared_dir={tmp_path}/prepared")
