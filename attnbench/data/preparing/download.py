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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

from attnbench.atomic import write_atomically
from attnbench.data.preparing.unpack import expect_whole
from attnbench.errors import UsageError

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there, and their total where the server says it."""

_CHUNK = 1 << 20
_TRANSIENT = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_WEAK = "W/"
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
    that sends another range than was asked for, or whose file has changed since, makes it start anew. Where neither
    length nor checksum is known, the file has to be a zip or tar file, which tells whether it is whole.

    Args:
        url: http or https address.
        target: file to write; if it is there, nothing is done.
        checksum: published checksum, such as `"md5:..."`.
        progress: called after each chunk.
        attempts: tries in a row that come no further than those before, after which it is given up.
        timeout: seconds that the server may be silent.
        pause: waits between tries.

    Raises:
        UsageError: if the address does not exist, the server stays away, the checksum differs, a file of unknown
            length is no whole archive, or the disk is full.
    """
    if target.is_file():
        return
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"download: expected an http or https address, got {url!r}")
    transfer = _Transfer(url, target, progress, timeout, has_checksum=checksum is not None)
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
                raise UsageError(
                    f"download of {transfer.url!r}: expected the file, got status {error.code}; "
                    f"a file that comes from elsewhere is taken if you put it into place as {str(transfer.target)!r}"
                ) from error
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

    def __init__(
        self, url: str, target: Path, progress: Progress | None, timeout: float, *, has_checksum: bool
    ) -> None:
        self.url, self.target, self.progress, self.timeout = url, target, progress, timeout
        self.has_checksum = has_checksum
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
            if known.tag is not None and not known.tag.startswith(_WEAK):
                headers["If-Range"] = known.tag
        request = urllib.request.Request(self.url, headers=headers)
        try:
            response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=self.timeout)
        except urllib.error.URLError:
            raise
        except OSError as error:
            # urllib leaves what breaks between the request and its answer as it is
            raise urllib.error.URLError(error) from error
        return response

    def _receive(self, response: http.client.HTTPResponse, known: _Remote | None) -> bool:
        start, total = _extent(response)
        found = _Remote(self.url, _tag(response), total)
        if start:
            if known is None or start != self.size or not _same(known, found):
                self.forget()
                return False
            found = replace(found, tag=found.tag or known.tag)
        else:
            self.forget()
            known = None
        if found != known:
            write_atomically(self.note, json.dumps(asdict(found)).encode())
        with self.part.open("ab") as file:
            self._copy(response, file, total)
        return self._is_whole(response, total)

    def _is_whole(self, response: http.client.HTTPResponse, total: int | None) -> bool:
        """Whether all came; an answer that says neither length nor end may have broken off, which an archive shows."""
        if total is not None:
            return self.size == total
        if not response.chunked and not self.has_checksum:
            try:
                expect_whole(self.part)
            except UsageError as error:
                raise http.client.HTTPException("an answer of unknown length that is no whole archive") from error
        return True

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


def _same(known: _Remote, found: _Remote) -> bool:
    """Whether the file on the server may be the one that the part belongs to: nothing that both say differs."""
    return known.total in (None, found.total) and (None in (known.tag, found.tag) or known.tag == found.tag)


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
    """A validator that `If-Range` takes, a strong ETag or the date of the last change; else a weak ETag, to compare."""
    tag = response.headers.get("ETag")
    if tag is not None and not tag.startswith(_WEAK):
        return tag
    return response.headers.get("Last-Modified", tag)
