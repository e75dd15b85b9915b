from __future__ import annotations

import io
import stat
import tarfile
import zipfile

import pytest

from attnbench.data.preparing.unpack import expect_whole, unpack
from attnbench.errors import UsageError

FILES = {"Top/a.txt": b"a", "Top/deep/b.bin": bytes(range(256)) * 400, "Other/c.txt": b"c"}


def zipped(path, files=FILES, **_):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("Top")
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path, files=FILES, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        folder = tarfile.TarInfo("Top")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


each = pytest.mark.parametrize("pack", [zipped, tarred, lambda path, files=FILES: tarred(path, files, "w")])


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@each
def test_unpacks_every_file(tmp_path, pack):
    into, calls = tmp_path / "into", []
    assert unpack(pack(tmp_path / "x"), into, progress=lambda: calls.append(1)) == 3 == len(calls)
    assert contents(into) == FILES


@each
def test_prefix_and_choice(tmp_path, pack):
    assert unpack(pack(tmp_path / "x"), tmp_path / "into", prefix="Top/", wanted=("deep/",)) == 1
    assert contents(tmp_path / "into") == {"deep/b.bin": FILES["Top/deep/b.bin"]}


@each
def test_what_is_there_whole_is_left_alone_and_what_is_not_is_mended(tmp_path, pack):
    archive, into = pack(tmp_path / "x"), tmp_path / "into"
    unpack(archive, into)
    (into / "Top/a.txt").write_bytes(b"z")
    (into / "Top/deep/b.bin").write_bytes(b"half")
    unpack(archive, into)
    assert contents(into) == {**FILES, "Top/a.txt": b"z"}


@each
@pytest.mark.parametrize("name", ["../evil", "Top/../../evil", "/evil", "Top\\..\\evil", "C:evil"])
def test_names_that_lead_outside_are_errors(tmp_path, pack, name):
    archive = pack(tmp_path / "x", {name: b"evil"})
    with pytest.raises(UsageError, match="expected names inside its folder, got '"):
        unpack(archive, tmp_path / "into")
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]


@each
def test_a_link_in_the_folder_leads_nothing_out_of_it(tmp_path, pack):
    (tmp_path / "into").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "into/Top").symlink_to(tmp_path / "outside")
    with pytest.raises(UsageError, match="expected names inside its folder"):
        unpack(pack(tmp_path / "x"), tmp_path / "into")
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_tar_files_are_errors(tmp_path, kind):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        entry = tarfile.TarInfo("Top/link")
        entry.type, entry.linkname = kind, "/etc/passwd"
        archive.addfile(entry)
    with pytest.raises(UsageError, match="expected files, got the link or device 'Top/link'"):
        unpack(tmp_path / "x.tar", tmp_path / "into")
    assert not (tmp_path / "into/Top/link").exists()


def test_links_in_zip_files_are_errors(tmp_path):
    entry = zipfile.ZipInfo("Top/link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(UsageError, match="expected files, got the link or device"):
        unpack(tmp_path / "x.zip", tmp_path / "into")


@each
def test_an_archive_cut_short_is_an_error_and_leaves_no_half_file(tmp_path, pack):
    noise = {f"Top/{number}": bytes([number]) * 5000 + hash_bytes(number) for number in range(9)}
    archive = pack(tmp_path / "x", noise)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size * 2 // 3])
    with pytest.raises(
        UsageError, match=r"x': expected a whole zip or tar file, got .*; delete it to download it anew"
    ):
        unpack(archive, tmp_path / "into")
    found = contents(tmp_path / "into") if (tmp_path / "into").is_dir() else {}
    assert all(content == noise[name] for name, content in found.items() if not name.endswith(".part"))


def hash_bytes(number):
    import numpy as np

    return np.random.default_rng(number).bytes(5000)


BROKEN = r"x': expected a whole zip or tar file, got .*; delete it to download it anew"


def flipped(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def expect_broken(archive, into):
    with pytest.raises(UsageError, match=BROKEN):
        expect_whole(archive)
    with pytest.raises(UsageError, match=BROKEN):
        unpack(archive, into)
    # no file is there whose bytes are not known to be right
    assert not into.exists()


@pytest.mark.parametrize("place", [50_000, -8, -1])
def test_a_flipped_byte_in_a_compressed_tar_file_or_its_trailer_is_an_error(tmp_path, place):
    """Without compression a flipped byte is one that inflates well; the last eight are checksum and length."""
    with tarfile.open(tmp_path / "x", "w:gz", compresslevel=0) as archive:
        entry = tarfile.TarInfo("a")
        entry.size = 100_000
        archive.addfile(entry, io.BytesIO(bytes(100_000)))
    flipped(tmp_path / "x", place)
    expect_broken(tmp_path / "x", tmp_path / "into")


@pytest.mark.parametrize("mode", ["w:bz2", "w:xz"])
def test_other_compressions_are_held_against_their_checksums_too(tmp_path, mode):
    archive = tarred(tmp_path / "x", mode=mode)
    assert unpack(archive, tmp_path / "whole") == 3
    flipped(archive, archive.stat().st_size // 2)
    expect_broken(archive, tmp_path / "into")


def test_a_damaged_zip_file_is_found_without_unpacking_it(tmp_path):
    archive = zipped(tmp_path / "x")
    expect_whole(archive)
    flipped(archive, archive.read_bytes().index(b"Top/deep/b.bin") + 100)
    with pytest.raises(UsageError, match=BROKEN):
        expect_whole(archive)


def header_of(path, name):
    with tarfile.open(path) as archive:
        return archive.getmember(name).offset


@pytest.mark.parametrize("name", FILES)
def test_a_broken_header_in_a_tar_file_is_an_error(tmp_path, name):
    archive = tarred(tmp_path / "x", mode="w")
    flipped(archive, header_of(archive, name) + 5)
    expect_broken(archive, tmp_path / "into")


@pytest.mark.parametrize("more", [0, 100])
@pytest.mark.parametrize("name", FILES)
def test_a_tar_file_cut_at_a_header_is_an_error(tmp_path, name, more):
    archive = tarred(tmp_path / "x", mode="w")
    archive.write_bytes(archive.read_bytes()[: header_of(archive, name) + more])
    expect_broken(archive, tmp_path / "into")


def test_a_tar_file_without_its_end_is_an_error(tmp_path):
    archive = tarred(tmp_path / "x", mode="w")
    last = header_of(archive, "Other/c.txt")
    archive.write_bytes(archive.read_bytes()[: last + 2 * tarfile.BLOCKSIZE])
    expect_broken(archive, tmp_path / "into")


def test_something_else_is_an_error(tmp_path):
    (tmp_path / "x").write_bytes(b"<html>Not found</html>")
    with pytest.raises(UsageError, match="expected a whole zip or tar file"):
        unpack(tmp_path / "x", tmp_path / "into")


def test_an_archive_without_what_is_wanted_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="expected files under 'Nowhere/', got none"):
        unpack(zipped(tmp_path / "x"), tmp_path / "into", prefix="Nowhere/")
