"""Downloads that resume, are verified, and never stand half done under their final name."""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from attnbench.errors import UsageError

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there, and their total where the server says it."""

_CHUNK = 1 << 20
_TRANSIENT = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True)
class _Remote:
    """What tells one version of a file on a server from another."""

    url: str
    tag: str | None = None
    total: int | None = None


def digest(path: Path, algorithm: str) -> str:
    """Checksum of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def verify(path: Path, checksum: str) -> None:
    """Holds a file against its published checksum.

    Args:
        path: the file.
        checksum: algorithm and digits, such as `"md5:900150983cd24fb0d6963f7d28e17f72"`.

    Raises:
        UsageError: if they differ.
    """
    algorithm, _, expected = checksum.partition(":")
    found = digest(path, algorithm)
    if found != expected:
        raise UsageError(f"file {str(path)!r}: expected {algorithm} {expected}, got {found}")


def download(
    url: str,
    target: Path,
    *,
    checksum: str | None = None,
    progress: Progress | None = None,
    attempts: int = 5,
    timeout: float = 60.0,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Downloads `url` to `target`, going on where an earlier try stopped.

    The bytes go to `target.part`; only a file of the promised length and checksum is renamed to `target`. A server
    that sends another range than was asked for, or whose file has changed since, makes it start anew.

    Args:
        url: http or https address.
        target: file to write; if it is there, nothing is done.
        checksum: published checksum, such as `"md5:..."`.
        progress: called after each chunk.
        attempts: tries in a row that come no further than those before, after which it is given up.
        timeout: seconds that the server may be silent.
        pause: waits between tries.

    Raises:
        UsageError: if the address does not exist, the server stays away, the checksum differs or the disk is full.
    """
    if target.is_file():
        return
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"download: expected an http or https address, got {url!r}")
    transfer = _Transfer(url, target, progress, timeout)
    _persist(transfer, attempts, pause)
    if checksum is not None:
        try:
            verify(transfer.part, checksum)
        except UsageError as error:
            transfer.forget()
            raise UsageError(f"download of {url!r}: {error}; the file is deleted, try again") from error
    transfer.part.replace(target)
    transfer.note.unlink(missing_ok=True)


def _persist(transfer: _Transfer, attempts: int, pause: Callable[[float], None]) -> None:
    """Tries until the file is whole; only tries that come no further than those before count."""
    fruitless, furthest = 0, transfer.size
    while True:
        try:
            if transfer.attempt():
                return
            reason = "the connection broke off"
        except urllib.error.HTTPError as error:
            if error.code not in _AGAIN:
                raise UsageError(f"download of {transfer.url!r}: expected the file, got status {error.code}") from error
            reason = f"status {error.code}"
        except _TRANSIENT as error:
            reason = str(error) or type(error).__name__
        fruitless = 0 if transfer.size > furthest else fruitless + 1
        furthest = max(furthest, transfer.size)
        if fruitless >= attempts:
            raise UsageError(
                f"download of {transfer.url!r}: expected an answer, got {reason} in {attempts} tries; "
                f"what came is kept in {str(transfer.part)!r}, and the same command goes on from there"
            )
        pause(min(2.0**fruitless, 30.0))


class _Transfer:
    """One file on its way: the part that is there, and a note of the version that it belongs to."""

    def __init__(self, url: str, target: Path, progress: Progress | None, timeout: float) -> None:
        self.url, self.progress, self.timeout = url, progress, timeout
        self.part = target.with_name(f"{target.name}.part")
        self.note = target.with_name(f"{target.name}.part.json")
        target.parent.mkdir(parents=True, exist_ok=True)

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return self.part.stat().st_size if self.part.is_file() else 0

    def forget(self) -> None:
        """Deletes what is there."""
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def attempt(self) -> bool:
        """Asks for what is missing; returns whether the file is whole."""
        known = self._known()
        if known is None:
            self.forget()
        elif known.total is not None and self.size == known.total:
            return True
        try:
            response = self._ask(known)
        except urllib.error.HTTPError as error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            self.forget()
            return False
        with response:
            return self._receive(response, known)

    def _known(self) -> _Remote | None:
        """The version that the part belongs to; none where there is no part, or it is of another address."""
        try:
            known = _Remote(**json.loads(self.note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        too_long = known.total is not None and self.size > known.total
        return None if known.url != self.url or too_long or self.size == 0 else known

    def _ask(self, known: _Remote | None) -> http.client.HTTPResponse:
        headers = {"User-Agent": "attnbench", "Accept-Encoding": "identity"}
        if known is not None:
            headers["Range"] = f"bytes={self.size}-"
            if known.tag is not None:
                headers["If-Range"] = known.tag
        request = urllib.request.Request(self.url, headers=headers)
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=self.timeout)
        return response

    def _receive(self, response: http.client.HTTPResponse, known: _Remote | None) -> bool:
        start, total = _extent(response)
        tag = _tag(response)
        if start:
            same = known is not None and start == self.size and known.total in (None, total)
            if not same or (known is not None and known.tag is not None and tag not in (None, known.tag)):
                self.forget()
                return False
        else:
            self.forget()
        self.note.write_text(json.dumps({"url": self.url, "tag": tag, "total": total}), encoding="utf-8")
        with self.part.open("ab") as file:
            self._copy(response, file, total)
        return self.size == total if total is not None else True

    def _copy(self, response: http.client.HTTPResponse, file: BinaryIO, total: int | None) -> None:
        done = file.tell()
        try:
            while chunk := _read(response):
                self._write(file, chunk)
                done += len(chunk)
                if self.progress is not None:
                    self.progress(done, total)
        finally:
            file.flush()
            os.fsync(file.fileno())

    def _write(self, file: BinaryIO, chunk: bytes) -> None:
        try:
            file.write(chunk)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise UsageError(f"file {str(self.part)!r}: expected room on the disk, got {error.strerror}") from error
            raise


def _read(response: http.client.HTTPResponse) -> bytes:
    """The next bytes; whatever breaks the line, a route or TLS, is the network's fault and not the disk's."""
    try:
        return response.read(_CHUNK)
    except OSError as error:
        raise urllib.error.URLError(error) from error


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Where the bytes that come start in the file, and how long the file is."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        found = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        if found is None:
            return -1, None
        # all that is missing was asked for, so that a range of a file whose length is not said ends with the file
        return int(found[1]), int(found[2]) + 1 if found[3] == "*" else int(found[3])
    length = response.headers.get("Content-Length")
    return 0, int(length) if length is not None and length.isdecimal() else None


def _tag(response: http.client.HTTPResponse) -> str | None:
    """A validator that `If-Range` takes: a strong ETag, or else the date of the last change."""
    tag = response.headers.get("ETag")
    if tag is not None and not tag.startswith("W/"):
        return tag
    return response.headers.get("Last-Modified")
