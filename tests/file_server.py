"""An HTTP server on this machine that serves one file, and misbehaves as it is told."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Behaviour:
    """What the server does; `requests` holds the Range header of each request, none where there was none."""

    def __init__(self, content):
        self.content = content
        self.break_after = []
        """Bytes of the body after which each of the next answers breaks off."""
        self.statuses = []
        """Statuses that the next requests are refused with."""
        self.ignore_ranges = False
        self.lie = 0
        """Bytes by which an answer to a range starts elsewhere."""
        self.say_length = True
        self.chunked = False
        """Whether answers come in chunks; one that breaks off lacks the last of them."""
        self.moved = False
        """Whether the address of the file leads to another one."""
        self.say_total = True
        """Whether an answer to a range says how long the whole is."""
        self.etag = '"one"'
        self.modified = None
        """Date of the last change, where it is said."""
        self.requests = []
        self.validators = []
        """The If-Range header of each request, none where there was none."""

    def answer(self, asked, if_range):
        """Status, start and total of the answer to a request for `asked` bytes on."""
        # a weak ETag never matches
        strong = self.etag is not None and not self.etag.startswith("W/")
        current = (self.etag if strong else None, self.modified)
        if asked is None or self.ignore_ranges or (if_range is not None and if_range not in current):
            return 200, 0
        return (206, asked + self.lie) if asked < len(self.content) else (416, 0)


def _chunked(body, length, size=10_000):
    """The first bytes of `body` in chunks, and the chunk that says that it is all if it is."""
    parts = [body[start : min(start + size, length)] for start in range(0, min(length, len(body)), size)]
    sent = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return sent + b"0\r\n\r\n" if length >= len(body) else sent


def _handler(behaviour):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            header = self.headers.get("Range")
            behaviour.requests.append(header)
            behaviour.validators.append(self.headers.get("If-Range"))
            if behaviour.moved and self.path != "/moved.zip":
                self.send_response(302)
                self.send_header("Location", "/moved.zip")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if behaviour.statuses:
                self.send_error(behaviour.statuses.pop(0))
                return
            asked = None if header is None else int(header.removeprefix("bytes=").removesuffix("-"))
            status, start = behaviour.answer(asked, self.headers.get("If-Range"))
            if status == 416:
                self.send_error(416)
                return
            body, total = behaviour.content[start:], len(behaviour.content)
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total if behaviour.say_total else '*'}")
            if behaviour.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            elif behaviour.say_length:
                self.send_header("Content-Length", str(len(body)))
            if behaviour.etag:
                self.send_header("ETag", behaviour.etag)
            if behaviour.modified:
                self.send_header("Last-Modified", behaviour.modified)
            self.end_headers()
            length = behaviour.break_after.pop(0) if behaviour.break_after else len(body)
            # a client may hang up first
            with suppress(ConnectionError):
                self.wfile.write(_chunked(body, length) if behaviour.chunked else body[:length])
            self.close_connection = True

        def log_message(self, *_):
            pass

    return Handler


@contextmanager
def serving(content):
    """The address of `content`, and the server's `Behaviour`."""
    behaviour = Behaviour(content)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(behaviour))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/file.zip", behaviour
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
