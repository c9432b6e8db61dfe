"""Loopback stand-in for the Hugging Face Hub: serves one dataset's files, without folders."""

import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager

COMMITS = {"main": "a" * 40, "old": "b" * 40}


def _handler(name: str, files: dict[str, bytes]) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def answer(self, status, body=b"", **headers):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def entries(self, paths):
            sha = {path: hashlib.sha1(files[path]).hexdigest() for path in paths}
            return [
                {"type": "file", "oid": sha[path], "size": len(files[path]), "path": path}
                for path in paths
            ]

        def do_GET(self):
            url = urllib.parse.urlparse(self.path)
            path = urllib.parse.unquote(url.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if path == "/":
                return self.answer(200)
            if name not in path:
                code = "GatedRepo" if "gated" in path else "RepoNotFound"
                return self.answer(403 if "gated" in path else 404, b"{}", X_Error_Code=code)
            rest = path.split(name, 1)[1]
            if match := re.fullmatch(r"(?:/revision/([^/]+))?", rest):
                commit = COMMITS.get(match[1] or "main", match[1])
                if commit not in COMMITS.values():
                    return self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
                info = {"id": name, "sha": commit, "private": False, "tags": []}
                info["siblings"] = [{"rfilename": file} for file in files]
                return self.answer(200, json.dumps(info).encode())
            if rest.startswith("/paths-info/"):
                asked = urllib.parse.parse_qs(body.decode()).get("paths", [])
                if body.startswith(b"{"):
                    asked = json.loads(body)["paths"]
                known = self.entries([file for file in asked if file in files])
                return self.answer(200, json.dumps(known).encode())
            if re.fullmatch(r"/tree/[^/]+", rest):
                return self.answer(200, json.dumps(self.entries(list(files))).encode())
            if match := re.fullmatch(r"/resolve/([^/]+)/(.+)", rest):
                commit = COMMITS.get(match[1], match[1])
                if match[2] not in files:
                    return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
                content = files[match[2]]
                headers = {
                    "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                    "X_Repo_Commit": commit,
                    "Accept_Ranges": "bytes",
                }
                span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                if span and self.command == "GET":
                    first, last = int(span[1]), int(span[2] or len(content) - 1)
                    part = content[first : last + 1]
                    where = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
                    return self.answer(206, part, Content_Range=where, **headers)
                return self.answer(200, content, **headers)
            return self.answer(404, b"{}")

        do_HEAD = do_POST = do_GET

    return Handler


@contextmanager
def serve(name: str, files: dict[str, bytes]) -> Iterator[str]:
    """Serve dataset `name`; yields the address for HF_ENDPOINT."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(name, files))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
