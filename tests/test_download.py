"""Downloading against a local server: whole, resumed, changed, refused; and archives that try to escape."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_srn import write_tiny_srn

from mnif_nerf.data.download import download as module
from mnif_nerf.data.download import transfer, unpack
from mnif_nerf.data.download.download import ARCHIVES, download
from mnif_nerf.data.readers.srn import read_split
from mnif_nerf.errors import MNIFError


@dataclass
class Server:
    """A web server of one file whose manners a test can change while it runs."""

    content: bytes = b""
    etag: str | None = '"one"'
    ranges: bool = True
    honours_if_range: bool = True
    cut_after: list[int] = field(default_factory=list)  # bytes to send before hanging up, one entry per request
    statuses: list[int] = field(default_factory=list)  # answers to give first
    kind: str = "application/zip"
    requests: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


def make_handler(state: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.requests.append(dict(self.headers))
            self.close_connection = True
            if state.statuses:
                self.send_error(state.statuses.pop(0))
                return
            wanted = self.headers.get("Range")
            same = self.headers.get("If-Range") in (None, state.etag) or not state.honours_if_range
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.ranges and same else 0
            total = len(state.content)
            if start >= total > 0:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            if state.etag:
                self.send_header("ETag", state.etag)
            self.send_header("Content-Type", state.kind)
            self.send_header("Content-Length", str(total - start))
            self.end_headers()
            body = state.content[start:]
            self.wfile.write(body[: state.cut_after.pop(0)] if state.cut_after else body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(transfer.time, "sleep", lambda _: None)
    state = Server()
    web = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(state))
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{web.server_address[1]}/srn_cars.zip"
    yield state
    web.shutdown()
    web.server_close()
    thread.join()


@pytest.fixture(scope="module")
def srn_zip(tmp_path_factory) -> bytes:
    """A small archive of the real one's layout: one wrapper folder with the splits."""
    folder = tmp_path_factory.mktemp("source")
    write_tiny_srn(folder / "srn_cars", 2, 3, 2, 1, 12)
    return Path(shutil.make_archive(str(folder / "archive"), "zip", folder, "srn_cars")).read_bytes()


def get(server: Server, output: Path, **options) -> Path:
    return download("srn-cars", output, url=server.url, progress=False, **options)


def refusal(call) -> str:
    with pytest.raises(MNIFError) as caught:
        call()
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


def zip_of(*members: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name, content in members:
            bundle.writestr(name, content)
    return buffer.getvalue()


def test_whole_download_is_unpacked_and_reported(server, srn_zip, tmp_path, capsys):
    server.content = srn_zip
    out = get(server, tmp_path / "out")
    assert read_split(out, "train").num_scenes == 2
    assert sorted(path.name for path in out.iterdir() if path.name != ".download") == [
        "cars_test", "cars_train", "cars_train_val", "cars_val",
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert f"{len(srn_zip)} bytes, sha256 {hashlib.sha256(srn_zip).hexdigest()}" in said
    assert f"mnif-data check {out}" in said
    assert not (out / ".download" / "srn_cars.zip").exists(), "the archive's space is given back"
    get(server, tmp_path / "out")
    assert len(server.requests) == 1
    assert "are there already" in capsys.readouterr().out


def test_cut_connections_are_resumed_in_one_run(server, srn_zip, tmp_path):
    server.content, server.cut_after = srn_zip, [5000, 3000]
    get(server, tmp_path)
    assert [request.get("Range") for request in server.requests] == [None, "bytes=5000-", "bytes=8000-"]
    assert server.requests[1]["If-Range"] == '"one"'
    assert read_split(tmp_path, "train").num_views == 6


def test_a_later_run_goes_on_where_an_earlier_one_stopped(server, srn_zip, tmp_path, monkeypatch):
    server.content, server.cut_after = srn_zip, [4000] + [0] * 6
    assert "run the command again to go on from 4000 bytes" in refusal(lambda: get(server, tmp_path))
    assert (tmp_path / ".download" / "srn_cars.zip.part").stat().st_size == 4000
    server.cut_after, server.requests = [], []
    get(server, tmp_path)
    assert server.requests[0]["Range"] == "bytes=4000-"
    assert read_split(tmp_path, "train").num_views == 6


@pytest.mark.parametrize("etag", ['"one"', None])
def test_a_file_that_changed_meanwhile_is_not_spliced(server, srn_zip, tmp_path, etag):
    target = tmp_path / "file.zip"
    server.content, server.cut_after, server.etag = b"old" * 3000, [4000] + [0] * 6, etag
    refusal(lambda: transfer.fetch(server.url, target))
    server.content, server.cut_after, server.etag = srn_zip, [], etag and '"two"'
    transfer.fetch(server.url, target)
    assert target.read_bytes() == srn_zip
    assert not target.with_name("file.zip.part").exists()


def test_a_range_of_another_version_starts_over(server, srn_zip, tmp_path):
    """A server that ignores If-Range answers 206 with another ETag: the rest must not be appended."""
    target = tmp_path / "file.zip"
    server.content, server.cut_after, server.honours_if_range = b"old" * 3000, [4000] + [0] * 6, False
    refusal(lambda: transfer.fetch(server.url, target))
    server.content, server.cut_after, server.etag, server.requests = srn_zip, [], '"two"', []
    transfer.fetch(server.url, target)
    assert target.read_bytes() == srn_zip
    assert [request.get("Range") for request in server.requests] == ["bytes=4000-", None]


def test_a_server_without_ranges_starts_over(server, srn_zip, tmp_path):
    server.content, server.ranges, server.cut_after = srn_zip, False, [7000]
    get(server, tmp_path)
    assert len(server.requests) == 2
    assert read_split(tmp_path, "train").num_views == 6


def test_a_finished_part_needs_no_more_bytes(server, srn_zip, tmp_path):
    server.content, server.cut_after = srn_zip, [4000] + [0] * 6
    target = tmp_path / "file.zip"
    refusal(lambda: transfer.fetch(server.url, target))
    (tmp_path / "file.zip.part").write_bytes(srn_zip)
    server.cut_after = []
    transfer.fetch(server.url, target)
    assert target.read_bytes() == srn_zip


def test_busy_servers_are_asked_again_and_refusals_are_not(server, srn_zip, tmp_path):
    server.content, server.statuses = srn_zip, [503, 429]
    get(server, tmp_path / "a")
    assert len(server.requests) == 3
    server.statuses, server.requests = [404], []
    assert "the server answered 404" in refusal(lambda: get(server, tmp_path / "b"))
    assert len(server.requests) == 1
    server.statuses = [500] * 9
    assert "the server answered 500" in refusal(lambda: get(server, tmp_path / "b"))


def test_no_server_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer.time, "sleep", lambda _: None)
    said = refusal(lambda: download("srn-cars", tmp_path, url="http://127.0.0.1:9/x.zip", progress=False))
    assert "http://127.0.0.1:9/x.zip: " in said
    assert "refused" in said
    assert "tries" not in said, "who does not answer at all is not asked for a minute"
    for url in ("http://[::1", "http://", "http://a:99999/x", "http://a b/x", f"http://{'a' * 80}.org/x"):
        assert "not an http(s) address" in refusal(lambda url=url: transfer.fetch(url, tmp_path / "y"))
        assert "not an http(s) address" in refusal(lambda url=url: download("mine", tmp_path / "new", url=url))
    assert not (tmp_path / "new").exists()
    assert "not an http(s) address" in refusal(lambda: transfer.fetch("ftp://x/y", tmp_path / "y"))


def test_a_web_page_is_not_taken_for_an_archive(server, tmp_path):
    server.content, server.kind = b"<html>quota</html>", "text/html; charset=utf-8"
    assert "sent a web page" in refusal(lambda: get(server, tmp_path))
    assert not list(tmp_path.glob(".download/*.part"))


def test_wrong_checksum(server, srn_zip, tmp_path):
    server.content = srn_zip
    assert "expected 000" in refusal(lambda: get(server, tmp_path, sha256="000"))
    assert not list(tmp_path.glob("cars_*"))
    get(server, tmp_path, sha256=hashlib.sha256(srn_zip).hexdigest().upper())
    assert len(server.requests) == 1, "the archive of the first run is used again"


def test_address_from_environment_and_unknown_names(server, srn_zip, tmp_path, monkeypatch):
    server.content = srn_zip
    monkeypatch.setenv("MNIF_URL_SRN_CARS", server.url)
    download("srn-cars", tmp_path, progress=False)
    assert read_split(tmp_path, "test").num_scenes == 1
    assert "known: srn-cars, srn-chairs" in refusal(lambda: download("cats", tmp_path, progress=False))
    assert all(archive.url.startswith("https://") for archive in ARCHIVES.values())


def test_an_archive_on_this_machine(srn_zip, tmp_path):
    path = tmp_path / "mine.zip"
    path.write_bytes(srn_zip)
    download("mine", tmp_path / "a", url=str(path), progress=False)
    download("mine", tmp_path / "b", url=path.as_uri(), progress=False)
    assert read_split(tmp_path / "b", "train").num_scenes == 2
    assert path.exists()
    assert "no such file" in refusal(lambda: download("mine", tmp_path, url="nowhere.zip", progress=False))


def test_splits_that_are_there_are_not_overwritten(server, srn_zip, tmp_path):
    server.content = srn_zip
    (tmp_path / "cars_val").mkdir()
    assert "cars_val: exists already" in refusal(lambda: get(server, tmp_path))
    assert not (tmp_path / "cars_train").exists()


def test_a_run_killed_between_renames_is_finished_by_the_next(server, srn_zip, tmp_path, monkeypatch):
    server.content = srn_zip
    replace, calls = module.os.replace, []

    def killed(source, target):
        if "unpack." in str(source):
            calls.append(target)
            if len(calls) == 3:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(module.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        get(server, tmp_path)
    get(server, tmp_path)
    assert [read_split(tmp_path, split).num_scenes for split in ("train", "val", "test")] == [2, 1, 1]


def test_two_downloads_into_one_folder(tmp_path):
    with module._only_downloader(tmp_path):
        said = refusal(lambda: module._only_downloader(tmp_path).__enter__())
    assert "another download into this folder is running" in said


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ("../evil.txt", "points outside"),
        ("cars_train/../../evil.txt", "points outside"),
        ("/tmp/evil.txt", "points outside"),
        ("C:/evil.txt", "points outside"),
        ("..\\evil.txt", "points outside"),
        (link("cars_train"), "is a link"),
    ],
)
def test_archives_that_try_to_escape_are_refused(server, tmp_path, member, said):
    server.content = zip_of(("cars_train/a/intrinsics.txt", b"1"), (member, b"/tmp"))
    output = tmp_path / "deep" / "out"
    assert said in refusal(lambda: get(server, output))
    assert not list(tmp_path.rglob("evil*"))
    assert not list(tmp_path.rglob("intrinsics.txt"))


@pytest.mark.parametrize(("kind", "said"), [(tarfile.SYMTYPE, "is a link"), (tarfile.CHRTYPE, "special file")])
def test_tar_links_and_devices_are_refused(tmp_path, kind, said):
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tape:
        info = tarfile.TarInfo("x")
        info.type, info.linkname = kind, "/etc/passwd"
        tape.addfile(info)
    (tmp_path / "out").mkdir()
    assert said in refusal(lambda: unpack.unpack(archive, tmp_path / "out"))


def test_tar_archives_are_read_too(tmp_path):
    write_tiny_srn(tmp_path / "data", 1, 2, 1, 1, 8)
    archive = shutil.make_archive(str(tmp_path / "cars"), "gztar", tmp_path / "data")
    download("mine", tmp_path / "out", url=archive, progress=False)
    assert read_split(tmp_path / "out", "train").num_views == 2


@pytest.mark.parametrize(("suffix", "options"), [("gz", {"compresslevel": 0}), ("xz", {})])
def test_damaged_tar_archives_are_told(tmp_path, suffix, options):
    """The checksum of a compressed tar stands at its end, behind all members."""
    archive, content = tmp_path / f"a.tar.{suffix}", os.urandom(50_000)
    with tarfile.open(archive, f"w:{suffix}", **options) as tape:
        info = tarfile.TarInfo("cars_train/x")
        info.size = len(content)
        tape.addfile(info, io.BytesIO(content))
    damaged = bytearray(archive.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    archive.write_bytes(damaged)
    (tmp_path / "out").mkdir()
    assert "cannot be unpacked" in refusal(lambda: unpack.unpack(archive, tmp_path / "out"))


def test_an_archive_larger_than_the_disk(tmp_path, monkeypatch):
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("zeros", bytes(10_000_000))
    monkeypatch.setattr(unpack.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    assert "unpacks to 10 MB and 1 MB are free" in refusal(lambda: unpack.unpack(archive, tmp_path))
    assert not (tmp_path / "zeros").exists()


def test_damaged_and_foreign_archives(srn_zip, tmp_path):
    path = tmp_path / "a.zip"
    damaged = bytearray(srn_zip)
    damaged[len(damaged) // 3] ^= 0xFF
    for content, said in (
        (b"no archive", "neither a zip nor a tar"),
        (srn_zip[: len(srn_zip) // 2], "cannot be unpacked"),
        (bytes(damaged), "cannot be unpacked"),
        (zip_of(("readme.txt", b"hello")), "not in the SRN layout"),
        (zip_of(("a", b"1"), ("./a", b"2")), "two members unpack to"),
    ):
        path.write_bytes(content)
        assert said in refusal(lambda: download("mine", tmp_path / "out", url=str(path), progress=False))
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == [".download"]
    assert not list((tmp_path / "out" / ".download").glob("unpack.*"))


def test_a_disk_too_small_for_the_archive(server, srn_zip, tmp_path, monkeypatch):
    server.content = srn_zip
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    assert "free some space or choose another folder" in refusal(lambda: get(server, tmp_path))
