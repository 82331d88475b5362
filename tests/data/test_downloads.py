import hashlib
import io
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from salkit.data import downloads, load_images
from salkit.data import files as image_files
from salkit.data.downloads import fetch, unpack, verify
from salkit.models import checkpoints, zoo

CONTENT = np.random.default_rng(0).bytes(600_000)
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `files` on 127.0.0.1, misbehaves as its fields say and keeps what it was asked for and how many bytes it sent."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.ranges, self.status, self.encoding = {"/file": CONTENT}, True, 200, None
        self.drop_after = []  # a number a request: bytes after which the connection is lost
        self.pause_after, self.go_on = None, threading.Event()
        self.asked, self.served = [], []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/file"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_):
        pass

    def do_CONNECT(self):
        self.send_error(407, "Proxy Authentication Required")

    def do_GET(self):
        s = self.server
        wanted = self.headers["Range"]
        s.asked.append(wanted)
        if s.status != 200:
            return self.send_error(s.status)
        body = s.files[self.path]
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and s.ranges else 0
        if start and start >= len(body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if s.encoding:
            self.send_header("Content-Encoding", s.encoding)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        stop = start + s.drop_after.pop(0) if s.drop_after else len(body)
        sent = body[start:stop]
        s.served.append(len(sent))  # before the last byte, after which the client may already look
        try:
            if s.pause_after:
                self.wfile.write(sent[: s.pause_after])
                sent = sent[s.pause_after :]
                s.go_on.wait(20)
            self.wfile.write(sent)
        except OSError:  # the client was killed
            pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with Server() as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield server
        server.go_on.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def get(server, tmp_path):
    return partial(fetch, server.url, tmp_path / "in" / "net.bin", checksum=SHA256, show_progress=False)


def names(folder):
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


# fetch


def test_a_download_is_whole_and_happens_once(server, get):
    path = get()
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["net.bin"]
    assert get() == path
    assert server.asked == [None]


@pytest.mark.parametrize("checksum", [SHA256[:15], f"md5:{hashlib.md5(CONTENT).hexdigest()}", f"sha1:{hashlib.sha1(CONTENT).hexdigest()}"])
def test_every_kind_of_checksum(get, checksum):
    assert get(checksum=checksum).read_bytes() == CONTENT
    algorithm, digits = checksum.split(":")
    wrong = f"{algorithm}:{'0' if digits[0] != '0' else '1'}{digits[1:]}"
    with pytest.raises(ValueError, match=rf"expected {wrong}, got {checksum}"):
        verify(get(checksum=checksum), wrong)


@pytest.mark.parametrize("checksum", ["sha256:", "sha256:12345", "crc:12345678", "12345678", "sha256:0676BA61", "md5:wxyzwxyz"])
def test_a_checksum_that_is_none_is_refused_before_anything_is_asked(server, get, checksum):
    with pytest.raises(ValueError, match=r"checksum: expected one of .* got"):
        get(checksum=checksum)
    assert server.asked == []


def test_a_file_is_hashed_once_and_again_when_it_changed(server, get, monkeypatch):
    path, hashed, original = get(), [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: hashed.append(given) or original(*given))
    assert [get(), get(), get()] == [path] * 3
    assert len(hashed) <= 1
    path.write_bytes(CONTENT[:-1] + b"?")
    assert get().read_bytes() == CONTENT, "a wrong file is never used"
    assert server.asked == [None, None]


def test_a_lost_connection_is_taken_up_in_the_same_call(server, get):
    server.drop_after = [250_000, 100_000]
    assert get().read_bytes() == CONTENT
    assert len(server.asked) == 3
    # What is lost with the connection is less than the 64 KiB that are read at once.
    assert sum(server.served) < len(CONTENT) + 2 * 65536


def test_an_interrupted_download_is_taken_up_by_the_next_call_with_only_the_rest(server, get, tmp_path):
    server.drop_after = [300_000, 1, 1]
    part = tmp_path / "in" / "net.bin.part"
    with pytest.raises(FileNotFoundError, match=r"could not be fetched .* bytes are kept in net.bin.part: the next try goes on"):
        get()
    assert names(part.parent) == ["net.bin.part"]
    have = part.stat().st_size
    assert CONTENT.startswith(part.read_bytes())
    assert have > 200_000
    server.served.clear()
    assert get().read_bytes() == CONTENT
    assert server.asked[-1] == f"bytes={have}-"
    assert server.served == [len(CONTENT) - have]
    assert not part.exists()


def test_servers_without_ranges_or_with_an_encoding(server, get):
    server.ranges, server.drop_after = False, [300_000]
    path = get()
    assert path.read_bytes() == CONTENT, "sent all again"
    assert server.served == [300_000, len(CONTENT)]
    path.unlink()
    server.encoding = "gzip"
    assert get().read_bytes() == CONTENT, "a content encoding is not undone"


@pytest.mark.parametrize(
    "part", [CONTENT[:1000], b"x" * 1000, CONTENT + b"more", CONTENT, b""], ids=["right", "of another file", "longer", "whole", "empty"]
)
def test_whatever_an_earlier_run_left_the_file_is_right(server, get, tmp_path, part):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "net.bin.part").write_bytes(part)
    assert get().read_bytes() == CONTENT
    assert names(tmp_path / "in") == ["net.bin"]
    if part == CONTENT:
        assert server.served == []


def test_wrong_content_is_named_and_nothing_of_it_kept(server, get, tmp_path):
    server.files["/file"] = b"<html>log in first</html>"
    got = hashlib.sha256(server.files["/file"]).hexdigest()
    with pytest.raises(ValueError, match=rf"{server.url}: expected {SHA256}, got sha256:{got} \(25 bytes\)"):
        get()
    assert names(tmp_path / "in") == []
    (tmp_path / "in" / "net.bin").write_bytes(b"the user's")
    with pytest.raises(ValueError, match=r"expected sha256"):
        get()
    assert (tmp_path / "in" / "net.bin").read_bytes() == b"the user's", "only a right file takes its place"


def test_a_missing_page_says_what_to_put_where(server, get, tmp_path):
    server.status = 404
    where = rf"get {server.url} and copy it \({SHA256}\) to {tmp_path}/in/net.bin\. Or paint\.$"
    with pytest.raises(FileNotFoundError, match=rf"^Net is not in {tmp_path}/in .*404 .*HTTP_PROXY names no proxy\)\. On.* {where}"):
        get(title="Net", hint="Or paint.")
    assert len(server.asked) == 1, "what fails before the first byte is not tried again"


def test_switched_off_nothing_is_asked(server, get, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"net.bin is not in .* \(downloading is switched off\)"):
        get(download=False)
    assert not (tmp_path / "in").exists()
    get().write_bytes(b"other")
    with pytest.raises(FileNotFoundError, match=rf"is not the right file \(sha256:{hashlib.sha256(b'other').hexdigest()}\)"):
        get(download=False)
    assert len(server.asked) == 1


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_fails_is_named_without_its_password(server, get, monkeypatch, scheme):
    server.status = 407
    for port, reason in ((closed_port(), ""), (server.server_port, "407 .*Proxy Authentication Required.*")):
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://me:secret@127.0.0.1:{port}")
        with pytest.raises(FileNotFoundError, match=rf"{reason}{scheme.upper()}_PROXY names the proxy 127.0.0.1:{port}\)") as caught:
            fetch(f"{scheme}://files.invalid/file", *get.args[1:], **get.keywords)
        assert "secret" not in str(caught.value)


def test_no_server(get):
    with pytest.raises(FileNotFoundError, match=r"refused.*HTTP_PROXY names no proxy"):
        fetch(f"http://127.0.0.1:{closed_port()}/file", *get.args[1:], **get.keywords)


def test_a_bar_over_the_bytes_if_wanted(get, capsys):
    get(show_progress=True, title="Net").unlink()
    assert "Net: 100%" in capsys.readouterr().err
    get()
    assert capsys.readouterr().err == ""


def test_threads_that_want_the_same_file_get_it_from_one_download(server, get):
    server.pause_after = 200_000
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(get) for _ in range(4)]
        wait_for(lambda: server.asked)
        time.sleep(0.1)  # all of them have seen by now that it is not there
        server.go_on.set()
        paths = [future.result() for future in running]
    assert {p.read_bytes() for p in paths} == {CONTENT}
    assert len(server.asked) == 1


def process(url, path):
    # A bare package in salkit's place: the real one imports torch, which takes seconds.
    code = """import runpy, sys, types
salkit = sys.modules["salkit"] = types.ModuleType("salkit")
salkit.__path__ = [sys.argv[1]]
runpy.run_path(sys.argv[1] + "/data/downloads.py")["fetch"](*sys.argv[2:4], checksum=sys.argv[4])"""
    command = [sys.executable, "-c", code, str(Path(downloads.__file__).parents[1]), url, str(path), SHA256]
    return subprocess.Popen(command, env=os.environ | {"TQDM_DISABLE": "1"}, stderr=subprocess.PIPE)


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_processes_share_a_download_and_a_killed_one_leaves_only_the_part(server, get, tmp_path):
    server.pause_after = 200_000
    path = tmp_path / "in" / "net.bin"
    part = path.with_name("net.bin.part")
    running = [process(server.url, path) for _ in range(2)]
    wait_for(lambda: part.exists() and part.stat().st_size > 100_000)
    assert not path.exists()
    assert len(server.asked) == 1, "the other process waits"
    # Both at once, or the one that waits would go on from where the other was.
    for p in running:
        p.send_signal(signal.SIGKILL)
    for p in running:
        p.communicate()
    assert not path.exists()
    have = part.stat().st_size
    server.pause_after = None
    server.go_on.set()
    again = [process(server.url, path) for _ in range(2)]
    assert [(p.communicate()[1], p.returncode) for p in again] == [(b"", 0)] * 2, "and no bar, as TQDM_DISABLE says"
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={have}-"]


def zip_of(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def test_a_file_out_of_a_zip(server, get, tmp_path):
    server.files["/file"] = zip_of({"readme": b"", "net.bin": CONTENT})
    server.drop_after = [200_000]
    assert get(zipped=True).read_bytes() == CONTENT
    assert names(tmp_path / "in") == ["net.bin"]
    (tmp_path / "in" / "net.bin").unlink()
    for other in (zip_of({"other": CONTENT}), zip_of({"net.bin": b"short"}), CONTENT):
        server.files["/file"] = other
        with pytest.raises(ValueError, match=f"expected {SHA256}, got sha256"):
            get(zipped=True)
        assert names(tmp_path / "in") == []
    server.status = 404
    with pytest.raises(FileNotFoundError, match=r"copy the file net.bin in it \(sha256"):
        get(zipped=True)


# unpack


def tar_of(path, *members):
    """Members: (name, bytes), or a TarInfo."""
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def tar_info(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_unpacked_whole_with_and_without_a_folder_of_its_own(tmp_path):
    (tmp_path / "b.zip").write_bytes(zip_of({"train/a": b"A", "val/b": b"B"}))
    for i, archive in enumerate([tar_of(tmp_path / "a.tgz", ("set/train/a", b"A"), ("set/val/b", b"B")), tmp_path / "b.zip"]):
        folder = unpack(archive, tmp_path / "out" / str(i))
        assert (folder / "train" / "a").read_bytes() == b"A"
        assert names(folder) == ["train", "val"]
    assert names(tmp_path / "out") == ["0", "1"]
    (folder / "val" / "b").unlink()
    assert names(unpack(archive, folder) / "val") == [], "a folder that is there is left as it is"


def test_what_a_killed_process_left_is_not_mixed_in(tmp_path):
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "old").touch()
    assert names(unpack(tar_of(tmp_path / "a.tgz", ("a", b"A"), ("b", b"B")), tmp_path / "out")) == ["a", "b"]
    assert not (tmp_path / "out.part").exists()


@pytest.mark.parametrize(
    "member",
    [
        ("../evil", b"E"),
        ("set/../../evil", b"E"),
        ("/evil", b"E"),
        ("C:/evil", b"E"),
        ("set\\..\\..\\evil", b"E"),
        tar_info("evil", tarfile.SYMTYPE, "/etc/passwd"),
        tar_info("evil", tarfile.SYMTYPE, "a"),
        tar_info("evil", tarfile.LNKTYPE, "../../evil"),
        tar_info("evil", tarfile.CHRTYPE),
        tar_info("evil", tarfile.FIFOTYPE),
    ],
)
def test_a_tar_that_would_write_elsewhere_is_refused_whole(tmp_path, member):
    (tmp_path / "in").mkdir()
    archive = tar_of(tmp_path / "in" / "a.tgz", ("a", b"A"), member)
    with pytest.raises(ValueError, match=r"a.tgz: expected files and folders inside it only, got the member '.*evil'"):
        unpack(archive, tmp_path / "in" / "out")
    assert names(tmp_path / "in") == ["a.tgz"]
    assert names(tmp_path) == ["in"]


@pytest.mark.parametrize("name", ["../evil", "/evil", "C:\\evil", "a/..\\../evil", "link"])
def test_a_zip_that_would_write_elsewhere_is_refused_whole(tmp_path, name):
    info = zipfile.ZipInfo(name)
    if name == "link":
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
    (tmp_path / "a.zip").write_bytes(zip_of({"a": b"A", info: b"/etc/passwd"}))
    with pytest.raises(ValueError, match=f"a.zip: expected files .* got the member {re.escape(repr(name))}"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert names(tmp_path) == ["a.zip"]


def test_damaged_archives_are_named(tmp_path):
    whole = tar_of(tmp_path / "a.tgz", ("a", CONTENT), ("b", CONTENT)).read_bytes()
    zipped = zip_of({"a": CONTENT})
    broken = (whole[:300_000], b"no archive", b"", zipped[:1000] + b"?" + zipped[1001:])
    for content in broken:
        (tmp_path / "a.tgz").write_bytes(content)
        with pytest.raises(ValueError, match=r"a.tgz: expected a tar or zip in one piece, got"):
            unpack(tmp_path / "a.tgz", tmp_path / "out")
        assert names(tmp_path) == ["a.tgz"]
    with pytest.raises(FileNotFoundError, match=r"archive: expected a tar or zip, got .*missing"):
        unpack(tmp_path / "missing", tmp_path / "out")


# The data sets and weights


@pytest.fixture
def cifar10(server, tmp_path, monkeypatch):
    """A made-up CIFAR-10 of two images a file; image i of file f has label (f + i) % 10, and red f, green i, blue its column."""

    def record(f, i):
        planes = np.stack([np.full((32, 32), f), np.full((32, 32), i), np.tile(np.arange(32), (32, 1))])
        return bytes([(f + i) % 10]) + planes.astype(np.uint8).tobytes()

    files = {f"data_batch_{f}.bin": f for f in range(1, 6)} | {"test_batch.bin": 9}
    members = [(f"cifar-10-batches-bin/{name}", record(f, 0) + record(f, 1)) for name, f in files.items()]
    server.files["/file"] = tar_of(tmp_path / "made-up.tgz", *members).read_bytes()
    monkeypatch.setattr(image_files, "CIFAR10_URL", server.url)
    monkeypatch.setattr(image_files, "CIFAR10_CHECKSUM", f"sha256:{hashlib.sha256(server.files['/file']).hexdigest()}")
    monkeypatch.setattr(image_files, "CIFAR10_IMAGES_PER_FILE", 2)
    return partial(load_images, "cifar10", root=tmp_path / "downloads")


def test_the_binary_cifar10_by_hand(server, cifar10):
    test, train = cifar10(), cifar10(split="train")
    assert test.ids == ("cifar10_test_00000", "cifar10_test_00001")
    assert train.ids[-1] == "cifar10_train_00009"
    assert test.labels.tolist() == [9, 0]
    assert train.labels.tolist() == [1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    pixels = (test.pixels() * 255).round().int()
    assert pixels[1, 5, 7].tolist() == [9, 1, 7], "row 5, column 7: planes are red, green, blue, each row after row"
    assert (train.pixels()[:, 0, 0, 0] * 255).round().tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert len(server.asked) == 1


def test_cifar10_unpacked_wrong_or_as_pickles(server, cifar10, tmp_path):
    folder = tmp_path / "downloads" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"CIFAR-10 is not in .*copy it .* are pickles, and loading a pickle runs what is in it"):
        cifar10(download=False)
    cifar10()
    folder = tmp_path / "downloads" / "cifar-10-batches-bin"
    batch = folder / "test_batch.bin"
    whole = batch.read_bytes()
    for wrong in (whole[:-1], whole[:3073], b"", b"\x0a" + whole[1:]):
        batch.write_bytes(wrong)
        with pytest.raises(ValueError, match=rf"test_batch.bin: expected 2 records of 3073 bytes.* got {len(wrong)} bytes; delete"):
            cifar10()
    batch.unlink()
    with pytest.raises(FileNotFoundError, match=r"CIFAR-10: expected .*test_batch.bin, which is missing; delete"):
        cifar10()


def test_imagenette_from_its_archive_or_as_torchvision_left_it(server, tmp_path, monkeypatch):
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (300, 260), "red").save(file, "jpeg")
    members = [(f"imagenette2/{part}/n03888257/a.JPEG", file.getvalue()) for part in ("train", "val")]
    server.files["/file"] = tar_of(tmp_path / "made-up.tgz", *members).read_bytes()
    monkeypatch.setattr(image_files, "IMAGENETTE_URL", server.url)
    monkeypatch.setattr(image_files, "IMAGENETTE_CHECKSUM", f"md5:{hashlib.md5(server.files['/file']).hexdigest()}")
    found = load_images("imagenette", root=tmp_path / "a")
    assert found.labels.tolist() == [701]
    assert found.ids == ("n03888257/a.JPEG",)
    (tmp_path / "b" / "imagenette2").mkdir(parents=True)
    os.rename(tmp_path / "a" / "imagenette2" / "val", tmp_path / "b" / "imagenette2" / "val")
    assert torch.equal(load_images("imagenette", root=tmp_path / "b").images, found.images)
    assert len(server.asked) == 1


def test_the_addresses_are_the_sources():
    from torchvision.datasets import Imagenette

    url, md5 = Imagenette._ARCHIVES["full"]
    assert (image_files.IMAGENETTE_URL, image_files.IMAGENETTE_CHECKSUM) == (url, f"md5:{md5}")


class Runs:
    """Unpickling it leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_weights_are_opened_after_their_checksum_matched_and_run_no_code(tmp_path):
    net, trace = nn.Linear(2, 3), tmp_path / "trace"
    torch.save(net.state_dict(), tmp_path / "net.pth")
    checksum = f"sha1:{hashlib.sha1((tmp_path / 'net.pth').read_bytes()).hexdigest()}"
    twin = nn.Linear(2, 3)
    checkpoints.load_pth(twin, tmp_path / "net.pth", checksum)
    assert torch.equal(twin.weight, net.weight)
    torch.save({"weight": Runs(trace)}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=f"expected {checksum}, got sha1:"):
        checkpoints.load_pth(twin, tmp_path / "net.pth", checksum)
    with pytest.raises(Exception, match="Weights only load failed"):
        checkpoints.load_pth(twin, tmp_path / "net.pth", f"sha1:{hashlib.sha1((tmp_path / 'net.pth').read_bytes()).hexdigest()}")
    assert not trace.exists()


@pytest.mark.parametrize("name", ["cifar10-resnet164", "resnet50"])
def test_weights_of_the_papers_nets_arrive(server, tmp_path, monkeypatch, name):
    """The whole way, with a small net whose checksum is made to match."""
    net, file = nn.Linear(2, 3), io.BytesIO()
    monkeypatch.setitem(zoo.CLASSIFIERS, name, (lambda: nn.Linear(2, 3), zoo.CLASSIFIERS[name][1]))
    torch.save(net.state_dict(), file)
    content = file.getvalue()
    server.files["/file"] = zip_of({"resnet164bn_cifar10-0368-74ae9f4b.pth": content}) if "164" in name else content
    digest = hashlib.sha1 if "164" in name else hashlib.sha256
    checksums = {"sha1:74ae9f4bccb7fb6a8f3f603fdabe8d8632c46b2f", "sha256:0676ba61"}
    original_fetch = zoo.fetch

    def made_up(url, path, *, checksum, **more):
        assert checksum in checksums
        return original_fetch(server.url, path, checksum=f"{checksum.split(':')[0]}:{digest(content).hexdigest()}", **more)

    monkeypatch.setattr(zoo, "data_dir", lambda: tmp_path)
    monkeypatch.setattr(zoo, "fetch", made_up)
    monkeypatch.setattr(checkpoints, "verify", lambda path, checksum: path)
    loaded = zoo.load_classifier(name).net.state_dict()
    assert all(torch.equal(v, loaded[k]) for k, v in net.state_dict().items())
