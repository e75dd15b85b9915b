from __future__ import annotations

import errno
import hashlib
import http.client
import io
import json
import ssl
import zipfile
from pathlib import Path

import numpy as np
import pytest
from file_server import serving

from attnbench.data.preparing import download as module
from attnbench.data.preparing.download import download, verify
from attnbench.errors import UsageError

CONTENT = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8).tobytes()
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "downloads" / "file.zip"


@pytest.fixture
def server():
    with serving(CONTENT) as (url, behaviour):
        behaviour.url = url
        yield behaviour


def fetch(server, target, **settings):
    """Downloads, and says how long was waited between tries."""
    pauses = []
    download(server.url, target, pause=pauses.append, timeout=5, **{"checksum": MD5, **settings})
    assert target.read_bytes() == server.content
    assert sorted(path.name for path in target.parent.iterdir()) == ["file.zip"]
    return pauses


def part(target):
    return target.with_name("file.zip.part")


def note(target):
    return target.with_name("file.zip.part.json")


def test_downloads_a_file_and_says_how_far_it_is(server, target):
    seen = []
    assert fetch(server, target, progress=lambda *done: seen.append(done)) == []
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_a_file_that_is_there_is_not_downloaded_again(server, target):
    fetch(server, target)
    fetch(server, target)
    assert server.requests == [None]


def test_goes_on_where_the_connection_broke_off(server, target):
    server.break_after = [30_000, 20_000]
    fetch(server, target)
    assert server.requests == [None, "bytes=30000-", "bytes=50000-"]


def test_goes_on_where_an_earlier_run_was_killed(server, target, monkeypatch):
    server.break_after = [30_000]

    def killed(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(server.url, target, pause=killed, checksum=MD5)
    assert not target.exists() and part(target).stat().st_size == 30_000
    fetch(server, target)
    assert server.requests == [None, "bytes=30000-"]


def test_a_part_that_is_whole_is_only_verified(server, target):
    target.parent.mkdir()
    part(target).write_bytes(CONTENT)
    note(target).write_text(json.dumps({"url": server.url, "tag": None, "total": len(CONTENT)}))
    fetch(server, target)
    assert server.requests == []


@pytest.mark.parametrize("text", [None, "{", '{"url": "http://elsewhere", "tag": null, "total": null}', '{"x": 1}'])
def test_a_part_that_nothing_is_known_of_is_not_built_on(server, target, text):
    target.parent.mkdir()
    part(target).write_bytes(b"something else")
    if text is not None:
        note(target).write_text(text)
    fetch(server, target)
    assert server.requests == [None]


def test_a_server_without_ranges_sends_the_whole_file_again(server, target):
    server.break_after, server.ignore_ranges = [30_000, 60_000], True
    fetch(server, target)
    assert server.requests == [None, "bytes=30000-", "bytes=60000-"]


@pytest.mark.parametrize("lie", [-1, 1, 500])
def test_a_server_that_lies_about_ranges_is_asked_for_the_whole_file(server, target, lie):
    server.break_after, server.lie = [30_000], lie
    fetch(server, target)
    assert server.requests == [None, "bytes=30000-", None]


def test_a_server_that_lies_and_breaks_off_is_given_up(server, target):
    server.break_after, server.lie = [30_000] * 50, 1
    with pytest.raises(UsageError, match="expected an answer, got the connection broke off in 5 tries"):
        fetch(server, target)
    assert not target.exists()


@pytest.mark.parametrize("etag", ['"two"', None])
def test_a_file_that_changed_on_the_server_is_started_anew(server, target, etag):
    """Also without an ETag its other length shows."""
    server.etag = etag and '"one"'
    server.break_after = [30_000]

    def changes(_):
        server.content, server.etag = CONTENT[::-1] + b"more", etag

    download(server.url, target, pause=changes, timeout=5)
    assert target.read_bytes() == CONTENT[::-1] + b"more"


def test_a_part_longer_than_the_file_is_not_used(server, target):
    server.break_after = [30_000]

    def grows(_):
        part(target).write_bytes(CONTENT + b"too long")

    download(server.url, target, pause=grows, timeout=5, checksum=MD5)
    assert target.read_bytes() == CONTENT


def test_a_length_that_is_not_said_ends_with_the_connection(server, target):
    server.say_length = False
    fetch(server, target)


@pytest.fixture
def archive():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("noise", CONTENT)
    return buffer.getvalue()


@pytest.mark.parametrize("ranges", [True, False])
def test_an_answer_of_unknown_length_that_broke_off_does_not_pass_for_the_file(server, target, archive, ranges):
    server.content, server.say_length, server.ignore_ranges = archive, False, not ranges
    server.break_after = [30_000]
    fetch(server, target, checksum=None)
    assert server.requests == [None, "bytes=30000-"]


def test_an_answer_of_unknown_length_that_is_no_archive_is_not_known_to_be_whole(server, target):
    server.say_length, server.ignore_ranges = False, True
    with pytest.raises(UsageError, match="got an answer of unknown length that is no whole archive in 5 tries"):
        fetch(server, target, checksum=None)
    assert not target.exists()


def test_an_answer_in_chunks_is_whole_when_it_ends(server, target):
    server.chunked = True
    fetch(server, target, checksum=None)
    assert server.requests == [None]


def test_an_answer_in_chunks_that_broke_off_goes_on(server, target):
    server.chunked, server.content = True, CONTENT * 25
    server.break_after = [2_200_000]
    fetch(server, target, checksum=None)
    assert server.requests == [None, f"bytes={2 << 20}-"]


def test_an_address_that_leads_to_another_one_is_followed_each_time(server, target):
    server.moved, server.break_after = True, [30_000]
    fetch(server, target)
    assert server.requests == [None, None, "bytes=30000-", "bytes=30000-"]


DATE, LATER = "Sat, 01 Jan 2022 00:00:00 GMT", "Sun, 02 Jan 2022 00:00:00 GMT"


@pytest.mark.parametrize(
    ("etag", "modified", "sent"),
    [
        ('"one"', DATE, '"one"'),
        ('W/"one"', None, None),
        ('W/"one"', DATE, DATE),
        (None, DATE, DATE),
        (None, None, None),
    ],
)
def test_only_what_names_a_version_byte_for_byte_is_sent_back(server, target, etag, modified, sent):
    server.etag, server.modified, server.break_after = etag, modified, [30_000]
    fetch(server, target)
    assert server.requests == [None, "bytes=30000-"] and server.validators == [None, sent]


@pytest.mark.parametrize("before", [('W/"one"', None), (None, DATE)])
def test_a_file_of_the_same_length_that_changed_is_started_anew(server, target, before):
    server.etag, server.modified = before
    server.break_after = [30_000]

    def changes(_):
        server.content = CONTENT[::-1]
        server.etag, server.modified = 'W/"two"' if server.etag else None, LATER if server.modified else None

    download(server.url, target, pause=changes, timeout=5)
    assert target.read_bytes() == CONTENT[::-1]


def test_a_note_that_still_holds_is_not_written_again(server, target, monkeypatch):
    server.break_after = [30_000, 20_000]
    writes = []
    write = module.write_atomically
    monkeypatch.setattr(module, "write_atomically", lambda *all: (writes.append(all), write(*all)))
    fetch(server, target)
    assert len(writes) == 1


def test_a_note_that_cannot_be_written_leaves_the_old_one(server, target, monkeypatch):
    target.parent.mkdir()
    part(target).write_bytes(CONTENT[:30_000])
    known = json.dumps({"url": server.url, "tag": None, "total": None})
    note(target).write_text(known)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UsageError, match="expected a folder that can be written, got No space left on device"):
        fetch(server, target)
    assert note(target).read_text() == known and part(target).read_bytes() == CONTENT[:30_000]


def test_a_range_of_a_length_that_is_not_said_has_an_end(server, target):
    server.say_length, server.say_total = True, False
    server.break_after = [30_000, 60_000]
    fetch(server, target)
    assert server.requests == [None, "bytes=30000-", "bytes=90000-"]


def test_a_range_behind_the_end_starts_anew(server, target):
    target.parent.mkdir()
    part(target).write_bytes(CONTENT)
    note(target).write_text(json.dumps({"url": server.url, "tag": '"one"', "total": None}))
    fetch(server, target)
    assert server.requests == [f"bytes={len(CONTENT)}-", None]


def test_a_wrong_checksum_leaves_nothing_behind(server, target):
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(UsageError, match=r"expected md5 \w{32}, got \w{32}; the file is deleted, try again"):
        download(server.url, target, checksum=MD5)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
def test_checksums_of_every_kind_are_verified(tmp_path, algorithm):
    (tmp_path / "x").write_bytes(b"abc")
    verify(tmp_path / "x", f"{algorithm}:{hashlib.new(algorithm, b'abc').hexdigest()}")
    with pytest.raises(UsageError, match=f"expected {algorithm} 00, got {hashlib.new(algorithm, b'abc').hexdigest()}"):
        verify(tmp_path / "x", f"{algorithm}:00")


@pytest.mark.parametrize("status", [403, 404, 410])
def test_an_address_that_does_not_exist_is_not_asked_again(server, target, status):
    server.statuses = [status]
    with pytest.raises(
        UsageError, match=f"download of '{server.url}': expected the file, got status {status}; a"
    ) as said:
        fetch(server, target)
    assert str(said.value).endswith(f"is taken if you put it into place as {str(target)!r}")
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_after_a_while(server, target, status):
    server.statuses = [status] * 3
    assert fetch(server, target) == [2.0, 4.0, 8.0]


def test_a_busy_server_is_given_up(server, target):
    server.statuses = [503] * 9
    with pytest.raises(
        UsageError, match=r"expected an answer, got status 503 in 5 tries; what came is kept in '.*part'"
    ):
        fetch(server, target)


def test_a_server_that_is_gone_is_given_up(target):
    with serving(CONTENT) as (url, _):
        pass
    pauses = []
    with pytest.raises(UsageError, match=r"expected an answer, got .*refused.* in 2 tries"):
        download(url, target, attempts=2, pause=pauses.append)
    assert len(pauses) == 1 and not target.exists()


@pytest.mark.parametrize("url", ["ftp://x/y", "file:///etc/passwd", "y.zip"])
def test_other_addresses_are_errors(target, url):
    with pytest.raises(UsageError, match="expected an http or https address, got"):
        download(url, target)


def test_a_full_disk_is_an_error_of_one_line(server, target, monkeypatch):
    class Full:
        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    def full(self, response, file, total):
        wrapped = Full()
        wrapped.file = file
        return copy(self, response, wrapped, total)

    copy = module._Transfer._copy
    monkeypatch.setattr(module._Transfer, "_copy", full)
    with pytest.raises(UsageError, match=r"file.zip.part': expected room on the disk, got No space left on device"):
        fetch(server, target)
    assert not target.exists()


@pytest.mark.parametrize("lost", [OSError(errno.EHOSTUNREACH, "No route to host"), ssl.SSLError("bad record mac")])
@pytest.mark.parametrize("when", ["begin", "read"])
def test_a_line_that_is_lost_is_no_fault_of_the_disk(server, target, monkeypatch, lost, when):
    """Before the answer begins, and while its bytes come."""
    left = [lost]

    def broken(self, *amount):
        if left:
            raise left.pop()
        return getattr(http.client.HTTPResponse, when)(self, *amount)

    response = type("Broken", (http.client.HTTPResponse,), {when: broken})
    monkeypatch.setattr(http.client.HTTPConnection, "response_class", response)
    assert fetch(server, target) == [2.0]
    left[:] = [lost] * 9
    target.unlink()
    with pytest.raises(UsageError, match=r"download of 'http.*': expected an answer, got .* in 3 tries"):
        fetch(server, target, attempts=3)
