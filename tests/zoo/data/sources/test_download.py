"""Downloads: complete or absent, as published or refused; archives: inside their folder or refused."""

from __future__ import annotations

import hashlib
import io
import socket
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from pathlib import Path

import pytest

from tests.zoo.data.web import Site, md5, serve, tgz, zipped
from zoo.base.errors import DataError
from zoo.data.sources import download
from zoo.data.sources.download import Remote, data_root, fetch, unpack

CONTENT = bytes(range(256)) * 4096
"""1 MiB."""


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_where_downloads_go(monkeypatch, tmp_path):
    monkeypatch.setenv("POCKETZOO_DATA", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.setenv("POCKETZOO_DATA", "")
    assert data_root() == Path.home() / ".cache" / "pocketzoo"


def test_a_file_is_downloaded_once(site, tmp_path):
    remote = site.remote("a.bin", CONTENT)
    for _ in range(2):
        assert fetch(remote, tmp_path / "x").read_bytes() == CONTENT
    assert site.asked == [("a.bin", None)]
    assert _names(tmp_path / "x") == ["a.bin", "a.bin.sha256"]
    assert (tmp_path / "x/a.bin.sha256").read_text() == f"{hashlib.sha256(CONTENT).hexdigest()}  a.bin\n"


def test_no_network_says_what_to_put_where(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/a.tgz"
        with pytest.raises(DataError) as caught:
            fetch(Remote(url=address, md5="5" * 32), tmp_path)
    text = str(caught.value)
    assert text.startswith(f"cannot download {address}: ")
    assert text.endswith(f"download it elsewhere (MD5 {'5' * 32}), put it at {tmp_path / 'a.tgz'}, and repeat")
    assert _names(tmp_path) == []


def test_a_file_that_was_put_there_by_hand(site, tmp_path):
    remote = site.remote("a.bin", CONTENT)
    (tmp_path / "a.bin").write_bytes(CONTENT)
    assert fetch(remote, tmp_path).read_bytes() == CONTENT
    (tmp_path / "a.bin").write_bytes(b"another")
    with pytest.raises(
        DataError, match=rf"expected MD5 {remote.md5}, got {md5(b'another')}; .* delete it and try again"
    ):
        fetch(remote, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == b"another"
    assert site.asked == []


def test_not_found_and_other_schemes(site, tmp_path):
    with pytest.raises(DataError, match=r"cannot download .*/b\.bin: Not Found; .*\(no checksum is published\)"):
        fetch(Remote(url=site.url("b.bin")), tmp_path)
    with pytest.raises(DataError, match=r"file:///etc/hostname: expected an address that starts with https"):
        fetch(Remote(url="file:///etc/hostname"), tmp_path)


def test_a_wrong_checksum_keeps_nothing(site, tmp_path):
    site.files["a.bin"] = CONTENT
    with pytest.raises(DataError, match=rf"expected MD5 {'0' * 32}, got {md5(CONTENT)}; nothing was kept"):
        fetch(Remote(url=site.url("a.bin"), md5="0" * 32), tmp_path)
    assert _names(tmp_path) == []


def test_a_truncated_download_is_an_error_and_continues(site, tmp_path):
    remote = site.remote("a.bin", CONTENT)
    site.cut = 1000
    for got in (1000, 2000):
        with pytest.raises(
            DataError, match=rf"ended after {got} of {len(CONTENT)} bytes \(repeating continues there\)"
        ):
            fetch(remote, tmp_path)
    site.cut = None
    assert fetch(remote, tmp_path).read_bytes() == CONTENT
    assert [span for _, span in site.asked] == [None, "bytes=1000-", "bytes=2000-"]
    assert _names(tmp_path) == ["a.bin", "a.bin.sha256"]


@pytest.mark.parametrize("etag", ['"2"', 'W/"1"', ""])
def test_a_file_that_changed_in_between_starts_again(site, tmp_path, etag):
    remote = site.remote("a.bin", CONTENT)
    site.cut, site.etag = 1000, etag
    with pytest.raises(DataError, match="ended after 1000"):
        fetch(remote, tmp_path)
    site.cut, site.etag, site.files["a.bin"] = None, '"3"', CONTENT[::-1]
    assert fetch(Remote(url=remote.url, md5=md5(CONTENT[::-1])), tmp_path).read_bytes() == CONTENT[::-1]


def test_killed_between_the_last_byte_and_the_end(site, tmp_path):
    remote = site.remote("a.bin", CONTENT)
    (tmp_path / ".a.bin.part").write_bytes(CONTENT)
    (tmp_path / ".a.bin.etag").write_text(site.etag)
    assert fetch(remote, tmp_path).read_bytes() == CONTENT
    assert [span for _, span in site.asked] == [f"bytes={len(CONTENT)}-", None]


_SLOW = """
import sys, time
from pathlib import Path
from zoo.data.sources import download

def pause(response, stream, size, name):
    stream.write(response.read(4096))
    stream.flush()
    print("begun", flush=True)
    time.sleep(60)

download._copy = pause
download.fetch(download.Remote(url=sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_download_continues(site, tmp_path):
    remote = site.remote("a.bin", CONTENT)
    with subprocess.Popen([sys.executable, "-c", _SLOW, remote.url, tmp_path], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"begun\n"
        child.kill()
    assert not (tmp_path / "a.bin").exists()
    assert fetch(remote, tmp_path).read_bytes() == CONTENT
    assert site.asked[-1] == ("a.bin", "bytes=4096-")


def test_what_nobody_vouches_for_is_trusted_at_first_sight_only(site, tmp_path, capsys):
    remote = site.remote("a.zip", CONTENT, known=False)
    path = fetch(remote, tmp_path)
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert f"a.zip: SHA-256 {digest}; no checksum is published" in capsys.readouterr().err
    fetch(remote, tmp_path)
    assert capsys.readouterr().err == ""
    path.unlink()
    site.files["a.zip"] = b"changed"
    with pytest.raises(DataError, match=rf"expected SHA-256 {digest} \(as first seen, in a\.zip\.sha256\), got"):
        fetch(remote, tmp_path)
    (tmp_path / "a.zip.sha256").unlink()
    assert fetch(remote, tmp_path).read_bytes() == b"changed"


def test_redirects_are_followed_but_never_from_https_to_http(site, tmp_path):
    with serve() as other:
        other.files["a.bin"] = CONTENT
        site.redirect = other.url("a.bin")
        assert fetch(Remote(url=site.url("a.bin"), md5=md5(CONTENT)), tmp_path).read_bytes() == CONTENT
    request = urllib.request.Request("https://a/b")
    with pytest.raises(ConnectionError, match="redirected from https to http://a/b"):
        download._NoDowngrade().redirect_request(request, None, 302, "", {}, "http://a/b")


@pytest.mark.parametrize(("name", "pack"), [("a.tar.gz", tgz), ("a.tgz", tgz), ("a.zip", zipped)])
def test_an_archive_is_unpacked_once_and_need_not_stay(site, tmp_path, name, pack):
    remote = site.remote(name, pack({"pets/a/1.png": b"1", "pets/a/2.png": b"2", "notes.txt": b"not wanted"}))
    unpack(remote, tmp_path, ["pets"])
    assert {path.name: path.read_bytes() for path in (tmp_path / "pets/a").iterdir()} == {"1.png": b"1", "2.png": b"2"}
    assert _names(tmp_path) == sorted([f".{name}.unpacked", name, f"{name}.sha256", "pets"])
    (tmp_path / name).unlink()
    unpack(remote, tmp_path, ["pets"])
    assert len(site.asked) == 1


def test_what_an_interrupted_run_unpacked_is_replaced(site, tmp_path):
    remote = site.remote("a.tgz", tgz({"pets/1.png": b"1"}))
    for half in ("pets", ".a.tgz.0123.tmp"):
        (tmp_path / half).mkdir()
        (tmp_path / half / "old.png").write_bytes(b"half")
    unpack(remote, tmp_path, ["pets"])
    assert [path.name for path in (tmp_path / "pets").iterdir()] == ["1.png"]
    assert not list(tmp_path.glob("*.tmp"))


def _with_link(target: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        member = tarfile.TarInfo("pets/link")
        member.type, member.linkname = tarfile.SYMTYPE, target
        tar.addfile(member)
    return stream.getvalue()


def _zip_with_link() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        member = zipfile.ZipInfo("pets/link")
        member.external_attr = 0o120777 << 16
        archive.writestr(member, "/etc/hostname")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tgz", tgz({"pets/1.png": b"1", "../escaped": b"x"})),
        ("a.tgz", tgz({"pets/../../escaped": b"x"})),
        ("a.tgz", _with_link("../../..")),
        ("a.tgz", _with_link("/etc")),
        ("a.zip", zipped({"pets/1.png": b"1", "../escaped": b"x"})),
        ("a.zip", zipped({"/escaped": b"x"})),
        ("a.zip", zipped({"pets\\..\\..\\escaped": b"x"})),
        ("a.zip", zipped({"C:/escaped": b"x"})),
        ("a.zip", _zip_with_link()),
    ],
    ids=range(9),  # an archive holds the time at which it was made, and every process must name the tests alike
)
def test_archives_that_reach_outside_are_refused(site, tmp_path, name, content):
    folder = tmp_path / "in" / "side"
    with pytest.raises(DataError, match=r"unsafe archive, nothing was unpacked"):
        unpack(site.remote(name, content), folder, ["pets"])
    assert _names(folder) == [name, f"{name}.sha256"]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and "escaped" in path.name] == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tgz", b"nothing"),
        ("a.tgz", tgz({"pets/1.png": bytes(range(256)) * 99})[:-60]),
        ("a.zip", b"PK"),
        ("a.zip", b""),
    ],
)
def test_damaged_archives(site, tmp_path, name, content):
    with pytest.raises(DataError, match=r"cannot be unpacked: .*; delete it and try again"):
        unpack(site.remote(name, content), tmp_path, ["pets"])
    assert _names(tmp_path) == [name, f"{name}.sha256"]


def test_another_archive_than_expected(site, tmp_path):
    with pytest.raises(DataError, match=r"expected pets at the archive's top, found \['cars'\]; is it the right one"):
        unpack(site.remote("a.tgz", tgz({"cars/1.png": b"1"})), tmp_path, ["pets"])


def test_a_folder_that_cannot_be_made(site: Site, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot make the folder .*set POCKETZOO_DATA"):
        fetch(site.remote("a.bin", CONTENT), tmp_path / "file" / "x")
