"""A Hugging Face Hub on loopback: as much of its HTTP interface as loading a dataset needs."""

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "a" * 34
COMMIT = "c0" * 20


@dataclass(frozen=True)
class Dataset:
    """A dataset as its owner has published it."""

    files: Mapping[str, bytes]
    private: bool = False  # whoever has not the token sees nothing
    gated: bool = False  # …sees that it is there, and no file


@dataclass
class Hub:
    """The datasets that a hub has, and what it was asked for."""

    datasets: Mapping[str, Dataset]
    url: str = ""
    fault: int = 0  # an HTTP status that it answers with, whatever it is asked
    asked: list[str] = field(default_factory=list)

    def answer(
        self, path: str, token: str, body: bytes
    ) -> tuple[int, dict[str, str], bytes | object]:
        """Returns status, headers and body of the answer; a body that is no bytes is JSON."""
        self.asked.append(path)
        if self.fault:
            return self.fault, {}, {"error": "out of order"}
        for name, dataset in self.datasets.items():
            for root in (f"/api/datasets/{name}", f"/datasets/{name}"):
                if path == root or path.startswith(root + "/"):
                    knows = token == TOKEN
                    if dataset.private and not knows:
                        break
                    if dataset.gated and not knows and "/resolve/" in path:
                        return 401, {"X-Error-Code": "GatedRepo"}, {"error": "restricted"}
                    return self._of(name, dataset, path.removeprefix(root), body)
        return 401 if not token else 404, {"X-Error-Code": "RepoNotFound"}, {"error": "not found"}

    def _of(
        self, name: str, dataset: Dataset, rest: str, body: bytes
    ) -> tuple[int, dict[str, str], bytes | object]:
        if rest in ("", f"/revision/{COMMIT}", "/revision/main"):
            gated = "manual" if dataset.gated else False
            siblings = [{"rfilename": path} for path in dataset.files]
            return 200, {}, {"id": name, "sha": COMMIT, "gated": gated, "siblings": siblings}
        if rest.startswith(f"/tree/{COMMIT}"):
            return 200, {}, _listing(dataset.files, unquote(rest).removeprefix(f"/tree/{COMMIT}"))
        if rest.startswith("/paths-info/"):
            asked = parse_qs(body.decode()).get("paths", [])
            return (
                200,
                {},
                [_entry(path, dataset.files[path]) for path in asked if path in dataset.files],
            )
        data = dataset.files.get(unquote(rest).removeprefix(f"/resolve/{COMMIT}/"))
        if data is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, {"error": "no such file"}
        etag = hashlib.sha1(data).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, data


def _listing(files: Mapping[str, bytes], folder: str) -> list[dict[str, object]]:
    """Returns what stands directly in a folder, as the hub lists it."""
    start = folder.strip("/") + "/" if folder.strip("/") else ""
    inside = {path.removeprefix(start): path for path in files if path.startswith(start)}
    folders = {start + name.split("/")[0] for name in inside if "/" in name}
    return [
        *({"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders),
        *(_entry(path, files[path]) for name, path in inside.items() if "/" not in name),
    ]


def _entry(path: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Yields the hub while it answers at `hub.url`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            token = self.headers.get("authorization", "").removeprefix("Bearer ")
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, headers, answer = hub.answer(urlsplit(self.path).path, token, body)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_HEAD = do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
