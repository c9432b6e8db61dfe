"""Loopback stand-in for the Hugging Face Hub, which can fail on purpose."""

import hashlib
import http.server
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

# A branch, another branch and a tag.
COMMITS = {"main": "a" * 40, "old": "b" * 40, "v1": "c" * 40}

_REPO = re.compile(r"/(?:api/)?(?:(datasets|models)/)?([\w.-]+/[\w.-]+?)((?:/(?!$).*)?)")


@dataclass
class Fault:
    """What to do with the requests whose "METHOD /path" matches.

    Attributes:
        route: Regular expression, searched.
        action: A status to answer with; "private" or "gated"; "drop": half of the body, then
            close; "slow": the body in small pieces; "stall": half of the body, then nothing;
            "silence": no answer.
        times: For how many requests; None: always.
    """

    route: str
    action: int | str
    times: int | None = None


@dataclass
class Hub:
    """A running stand-in.

    Attributes:
        endpoint: For HF_ENDPOINT.
        requests: "METHOD /path status" of each request, with its Range.
    """

    datasets: dict[str, dict[str, bytes]]
    models: dict[str, dict[str, bytes]]
    old: dict[str, bytes]
    faults: list[Fault]
    cdn: bool
    endpoint: str = ""
    cdn_endpoint: str = ""
    requests: list[str] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def count(self, pattern):
        return sum(bool(re.search(pattern, request)) for request in self.requests)

    def fault(self, request):
        for fault in self.faults:
            if fault.times != 0 and re.search(fault.route, request):
                if fault.times:
                    fault.times -= 1
                return fault.action
        return None

    def files(self, kind, name, commit):
        """The files of a repository: all commits are alike, unless `old` says otherwise."""
        files = (self.models if kind == "models" else self.datasets).get(name)
        return self.old if files and self.old and commit == COMMITS["old"] else files


def sha(content):
    return hashlib.sha1(content).hexdigest()


def entries(files, paths):
    return [
        {"type": "file", "oid": sha(files[path]), "size": len(files[path]), "path": path}
        for path in paths
    ]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def log_message(self, *arguments):
        pass

    def answer(self, status, body=b"", **headers):
        self.hub.requests.append(
            f"{self.command} {self.path} {status} {self.headers.get('Range', '')}"
        )
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.action == "slow":
            for start in range(0, len(body), len(body) // 8 + 1):
                self.wfile.write(body[start : start + len(body) // 8 + 1])
                self.wfile.flush()
                time.sleep(0.25)
        elif self.action in ("drop", "stall"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if self.action == "stall":
                self.hub.closing.wait()
            self.close_connection = True
        else:
            self.wfile.write(body)

    def answer_json(self, value):
        self.answer(200, json.dumps(value).encode())

    def answer_file(self, content, **headers):
        headers |= {"ETag": f'"{sha(content)}"', "Accept_Ranges": "bytes"}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not span or self.command == "HEAD":
            return self.answer(200, content, **headers)
        first, last = int(span[1]), int(span[2] or len(content) - 1)
        part = content[first : last + 1]
        where = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        return self.answer(206, part, Content_Range=where, **headers)

    def do_GET(self):
        url = urllib.parse.urlparse(self.path)
        path = urllib.parse.unquote(url.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.action = self.hub.fault(f"{self.command} {path}")
        if self.action == "silence":
            self.hub.requests.append(f"{self.command} {self.path} silence")
            self.hub.closing.wait()
            self.close_connection = True
            return None
        if isinstance(self.action, int):
            return self.answer(self.action, b"{}")
        if self.action == "private":
            return self.answer(401, b"{}", X_Error_Code="RepoNotFound")
        if self.action == "gated":
            return self.answer(403, b"{}", X_Error_Code="GatedRepo")
        if path == "/":
            return self.answer(200)
        return self.answer_repository(path, urllib.parse.parse_qs(body.decode()), body)

    do_HEAD = do_POST = do_GET

    def answer_repository(self, path, form, body):
        cdn = path.startswith("/cdn/")
        match = _REPO.fullmatch(path.removeprefix("/cdn"))
        kind, name, rest = (match[1] or "models", match[2], match[3]) if match else ("", "", "")
        action, _, rest = rest.strip("/").partition("/")
        revision, _, rest = rest.partition("/")
        commit = COMMITS.get(revision or "main", revision)
        files = self.hub.files(kind, name, commit)
        if files is None:
            return self.answer(401, b"{}", X_Error_Code="RepoNotFound")
        if commit not in COMMITS.values():
            return self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
        if action in ("", "revision"):
            siblings = [{"rfilename": file} for file in files]
            info = {"id": name, "sha": commit, "private": False, "tags": [], "siblings": siblings}
            return self.answer_json(info)
        if action == "paths-info":
            asked = json.loads(body)["paths"] if body.startswith(b"{") else form.get("paths", [])
            return self.answer_json(entries(files, [file for file in asked if file in files]))
        if action == "tree":
            return self.answer_tree(files, rest)
        if action != "resolve":
            return self.answer(404, b"{}")
        if rest not in files:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        if self.hub.cdn and not cdn:
            # As the Hub does for large files: to another host, and the metadata are here.
            return self.answer(
                302,
                Location=f"{self.hub.cdn_endpoint}/cdn{self.path}?signature=1",
                ETag=f'"{sha(files[rest])}"',
                X_Linked_ETag=f'"{sha(files[rest])}"',
                X_Linked_Size=str(len(files[rest])),
                X_Repo_Commit=commit,
            )
        return self.answer_file(files[rest], **({} if cdn else {"X_Repo_Commit": commit}))

    def answer_tree(self, files, folder):
        within = [path for path in files if path.startswith(f"{folder}/" if folder else "")]
        if folder and not within:
            return self.answer(404, b"{}", X_Error_Code="EntryNotFound")
        start = len(folder) + 1 if folder else 0
        tree = entries(files, within)
        if "recursive=true" not in self.path.lower():
            tree = [entry for entry in tree if "/" not in entry["path"][start:]]
        folders = {path[: path.rindex("/")] for path in within if "/" in path[start:]}
        tree += [
            {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
            for path in sorted(folders)
            if "recursive=true" in self.path.lower() or "/" not in path[start:]
        ]
        return self.answer_json(tree)


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Say nothing of clients that gave up."""


@contextmanager
def stand_in(datasets=None, models=None, old=None, faults=(), cdn=False) -> Iterator[Hub]:
    """Serve repositories.

    Args:
        datasets: Files by path, by dataset name.
        models: The same of models.
        old: Files of every repository at revision "old", where they differ.
        faults: What goes wrong; the first that matches counts.
        cdn: Answer downloads with a redirect to another path.
    """
    hub = Hub(datasets or {}, models or {}, old or {}, list(faults), cdn)
    server = Server(("127.0.0.1", 0), Handler)
    server.hub = hub
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    hub.cdn_endpoint = f"http://localhost:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()
