"""Downloads from a server on this machine: resume, wrong hash, 404, no ranges, a broken line."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scidiff.core.errors import MissingLibrary, ScidiffError, UsageError
from scidiff.store import cards, fetch

DATA = bytes(range(256)) * 4096  # 1 MiB
SHA = hashlib.sha256(DATA).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves DATA at /file; what it does and what it was asked for are attributes."""

    daemon_threads = True
    ranges = True
    validator: str | None = '"v1"'
    cut_after: int | None = None  # bytes sent before the connection is closed, once
    body = DATA

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.path != "/file":
            self.send_error(404)
            return
        body, start = self.server.body, 0
        unchanged = self.headers.get("If-Range") in (None, self.server.validator)
        if wanted and self.server.ranges and unchanged:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        if self.server.validator:
            self.send_header("ETag", self.server.validator)
        self.end_headers()
        rest = body[start:]
        if self.server.cut_after is not None:
            rest, self.server.cut_after = rest[: self.server.cut_after], None
            self.close_connection = True
        self.wfile.write(rest)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_download_with_progress(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    digest = fetch.download(
        server.url, tmp_path / "a.bin", sha256=SHA, progress=lambda *step: seen.append(step)
    )
    assert digest == SHA and (tmp_path / "a.bin").read_bytes() == DATA and names(tmp_path) == ["a.bin"]
    assert seen[-1] == ("a.bin", len(DATA), len(DATA)) and [s[1] for s in seen] == sorted(s[1] for s in seen)


def test_a_broken_line_is_continued_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cut_after = 300_000
    assert fetch.download(server.url, tmp_path / "a.bin", sha256=SHA) == SHA
    assert server.asked == [None, "bytes=300000-"] and names(tmp_path) == ["a.bin"]


def test_an_earlier_attempt_is_continued(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.partial").write_bytes(DATA[:1000])
    fetch.atomic.write_json(tmp_path / "a.bin.partial.json", {"url": server.url, "validator": '"v1"'})
    assert fetch.download(server.url, tmp_path / "a.bin") == SHA
    assert server.asked == ["bytes=1000-"]


def test_a_complete_part_is_recognised(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.partial").write_bytes(DATA)
    fetch.atomic.write_json(tmp_path / "a.bin.partial.json", {"url": server.url, "validator": '"v1"'})
    assert fetch.download(server.url, tmp_path / "a.bin", sha256=SHA) == SHA


@pytest.mark.parametrize("situation", ["changed", "no ranges", "no validator", "other url"])
def test_a_part_that_cannot_be_continued_is_started_again(
    server: Server, tmp_path: Path, situation: str
) -> None:
    (tmp_path / "a.bin.partial").write_bytes(b"x" * 1000)
    known = {"url": server.url, "validator": '"v0"' if situation == "changed" else '"v1"'}
    if situation == "no validator":
        known = {}
    if situation == "other url":
        known["url"] = "http://127.0.0.1/other"
    server.ranges = situation != "no ranges"
    fetch.atomic.write_json(tmp_path / "a.bin.partial.json", known)
    assert fetch.download(server.url, tmp_path / "a.bin", sha256=SHA) == SHA


def test_wrong_hash_is_one_sentence_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ScidiffError, match="was removed") as caught:
        fetch.download(server.url, tmp_path / "a.bin", sha256="0" * 64)
    assert "\n" not in str(caught.value) and names(tmp_path) == []


def test_404_and_no_server(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ScidiffError, match="404"):
        fetch.download(server.url + "x", tmp_path / "a.bin")
    port = server.server_address[1]
    server.shutdown()
    server.server_close()
    with pytest.raises(ScidiffError, match="Try again"):
        fetch.download(f"http://127.0.0.1:{port}/file", tmp_path / "a.bin", timeout=2)
    assert names(tmp_path) == []


def card(tmp_path: Path, server: Server, sha: str | None) -> cards.Card:
    (tmp_path / "toy").mkdir(exist_ok=True)
    file = tmp_path / "toy" / "card.yaml"
    hash_line = f"sha256: {sha}" if sha else "sha256: null"
    file.write_text(
        f"name: toy\ntitle: Toy\ntask: none\ndomain: toy\nsource: {server.url}\n{hash_line}\nlicence: CC0\n"
        "layouts:\n  - {reader: table, files: [table.csv.gz]}\n"
        "  - {reader: bytes, files: [file], options: {a: 1}}\n"
    )
    return cards.read(file)


def test_the_cache_answers_the_second_time(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCIDIFF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SCIDIFF_DATA", raising=False)
    toy = card(tmp_path, server, SHA)
    with pytest.raises(ScidiffError, match="scidiff fetch toy"):
        fetch.provide(toy, download_missing=False)
    first = fetch.provide(toy)
    assert first.reader == "bytes" and first.options == {"a": 1} and first.origin == "cache"
    assert fetch.provide(toy, download_missing=False) == first and len(server.asked) == 1
    first.files["file"].write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="damaged"):
        assert fetch.provide(toy).files["file"].read_bytes() == DATA


def test_a_missing_hash_is_pinned_on_first_use(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCIDIFF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SCIDIFF_DATA", raising=False)
    toy = card(tmp_path, server, None)
    with pytest.warns(UserWarning, match=SHA):
        file = fetch.provide(toy).files["file"]
    assert fetch.provide(toy).files["file"] == file
    file.unlink()
    server.body = DATA[::-1]
    server.validator = '"v2"'
    with pytest.raises(ScidiffError, match="was removed"):
        fetch.provide(toy)


def test_a_folder_of_the_user_comes_first(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = card(tmp_path, server, SHA)
    own = tmp_path / "own"
    (own / "tables").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"table\.csv\.gz"):
        fetch.provide(toy, own)
    (own / "tables" / "table.csv").write_text("a\n1\n")
    found = fetch.provide(toy, own)
    assert (found.reader, found.origin) == ("table", "folder")
    assert found.files == {"table.csv.gz": own / "tables" / "table.csv"}
    monkeypatch.setenv("SCIDIFF_DATA", str(own))
    assert fetch.provide(toy) == found and server.asked == []
    with pytest.raises(UsageError, match="does not exist"):
        fetch.provide(toy, tmp_path / "none")


def test_package_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SCIDIFF_DATA", raising=False)
    pytest.importorskip("rdkit", reason="the NCI molecules are carried by rdkit")
    found = fetch.provide(cards.find("nci5k"))
    assert found.origin == "package" and len(found.files["first_5K.smi"].read_text().splitlines()) == 4999
    file = tmp_path / "card.yaml"
    file.write_text(
        "name: x\ntitle: X\ntask: none\ndomain: toy\nsource: package://absent_library/a.csv\nlicence: CC0\n"
        "layouts:\n  - {reader: table, files: [a.csv]}\n"
    )
    with pytest.raises(MissingLibrary, match="pip install absent_library"):
        fetch.provide(cards.read(file))


def test_generators_need_no_file(tmp_path: Path) -> None:
    file = tmp_path / "card.yaml"
    file.write_text(
        "name: x\ntitle: X\ntask: none\ndomain: toy\nsource: generate://ring?modes=8\nlicence: CC0\n"
        "layouts:\n  - {reader: ring, options: {noise: 0.1}}\n"
    )
    found = fetch.provide(cards.read(file))
    assert found == fetch.Provided({}, "ring", {"noise": 0.1, "modes": "8"}, "generated")
