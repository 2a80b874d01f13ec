"""Serve a folder as an S3 bucket on loopback, and count requests and bytes. It answers what s3fs asks to read.

    python benchmarks/s3_folder.py FOLDER [--milliseconds 20]

It prints its port. A bucket is a subfolder. `GET /` answers the counts as JSON and sets them to 0.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class Handler(BaseHTTPRequestHandler):
    """Answers GET, HEAD and ListObjectsV2."""

    protocol_version = "HTTP/1.1"
    folder = Path()
    delay = 0.0  # seconds before each answer, as a network has
    counts: dict[str, int] = {}  # noqa: RUF012
    lock = threading.Lock()

    def do_HEAD(self) -> None:
        """Answer the size and the version of an object."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer the counts, a list of objects, or an object or a part of it."""
        url = urlsplit(self.path)
        if url.path == "/":
            with self.lock:
                content = json.dumps(self.counts).encode()
                self.counts.update(requests=0, bytes=0)
            self.send(200, {"Content-Type": "application/json"}, content)
            return
        time.sleep(self.delay)
        query = parse_qs(url.query)
        if "list-type" in query:
            bucket = unquote(url.path).strip("/")
            self.send(200, {"Content-Type": "application/xml"}, self.listing(bucket, query))
            return
        path = self.folder / unquote(url.path).lstrip("/")
        if not path.is_file():
            self.send(404, {}, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        status = path.stat()
        headers = {
            "ETag": f'"{status.st_size:x}-{status.st_mtime_ns:x}"',
            "Last-Modified": formatdate(status.st_mtime, usegmt=True),
            "Content-Type": "binary/octet-stream",
            "Accept-Ranges": "bytes",
        }
        begin = 0
        end = status.st_size
        code = 200
        if "Range" in self.headers:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            begin = int(first)
            end = min(end, int(last) + 1)
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{status.st_size}"
            code = 206
        self.send(code, headers, path, begin, end)

    def listing(self, bucket: str, query: dict[str, list[str]]) -> bytes:
        """Return the objects of a bucket whose names begin with the prefix of a query, as XML."""
        prefix = query.get("prefix", [""])[0]
        delimiter = query.get("delimiter", [""])[0]
        root = self.folder / bucket
        names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
        lines = []
        folders = set()
        for name in sorted(name for name in names if name.startswith(prefix)):
            head, separator, _ = name[len(prefix) :].partition(delimiter or "\0")
            if separator:
                folders.add(f"{prefix}{head}{separator}")
                continue
            status = (root / name).stat()
            modified = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(status.st_mtime))
            etag = f"&quot;{status.st_size:x}-{status.st_mtime_ns:x}&quot;"
            lines.append(
                f"<Contents><Key>{escape(name)}</Key><Size>{status.st_size}</Size>"
                f"<ETag>{etag}</ETag><LastModified>{modified}</LastModified></Contents>"
            )
        for folder in sorted(folders):
            lines.append(f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>")
        content = (
            f"<KeyCount>{len(lines)}</KeyCount><IsTruncated>false</IsTruncated>{''.join(lines)}"
        )
        return f'<?xml version="1.0"?><ListBucketResult>{content}</ListBucketResult>'.encode()

    def send(
        self,
        code: int,
        headers: dict[str, str],
        content: bytes | Path,
        begin: int = 0,
        end: int | None = None,
    ) -> None:
        """Send an answer with bytes, or with a part of a file, and count it."""
        if end is None:
            end = len(content) if isinstance(content, bytes) else content.stat().st_size
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        is_counted = urlsplit(self.path).path != "/"
        num_bytes = 0
        if self.command == "GET" and isinstance(content, bytes):
            num_bytes = end - begin
            self.wfile.write(content[begin:end])
        elif self.command == "GET":
            self.wfile.flush()
            with content.open("rb") as file:
                num_bytes = self.send_file(file.fileno(), begin, end)
        if is_counted:
            with self.lock:
                self.counts["requests"] += 1
                self.counts["bytes"] += num_bytes

    def send_file(self, source: int, begin: int, end: int) -> int:
        """Send a part of an opened file, and return how many bytes the client took."""
        position = begin
        with suppress(BrokenPipeError, ConnectionResetError):  # the client has what it needs
            while position < end:
                position += os.sendfile(self.connection.fileno(), source, position, end - position)
        return position - begin

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class Server:
    """The server in a process of its own.

    Args:
        folder: The folder with the buckets.
        milliseconds: Pause before each answer.
    """

    def __init__(self, folder: Path, milliseconds: float = 0) -> None:
        command = [sys.executable, __file__, str(folder), "--milliseconds", str(milliseconds)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.endpoint = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def environment(self) -> dict[str, str]:
        """Return the variables with which s3fs reads from it."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.endpoint}

    def counts(self) -> dict[str, int]:
        """Return the numbers of requests and of bytes sent since the last call."""
        with urllib.request.urlopen(f"{self.endpoint}/") as answer:
            return dict(json.load(answer))

    def stop(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--milliseconds", type=float, default=0)
    arguments = parser.parse_args()
    Handler.folder = arguments.folder
    Handler.delay = arguments.milliseconds / 1000
    Handler.counts.update(requests=0, bytes=0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
