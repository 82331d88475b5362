"""Downloads, archives and what is made of them: every fault of servers, files and other processes that was found."""

import hashlib
import io
import os
import re
import signal
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
from PIL import Image
from torch import nn
from torchvision.datasets import Imagenette

from salkit.data import downloads, load_images
from salkit.data import files as image_files
from salkit.data.downloads import fetch, unpack, verify
from salkit.models import checkpoints, zoo


def checksum_of(content, algorithm="sha256"):
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


CONTENT, LOGIN, OWN = np.random.default_rng(0).bytes(600_000), b"<html>log in first</html>", b"the user's"
SHA256 = checksum_of(CONTENT)


class Server(ThreadingHTTPServer):
    """Serves `content` on 127.0.0.1, misbehaves as its fields say and keeps what it was asked for and how many bytes it sent."""

    daemon_threads = True
    content, ranges, status, encoding, pause_after = CONTENT, True, 200, None, None
    drop_after = ()  # a number a request: bytes after which the connection is lost

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/file"
        self.asked, self.served, self.go_on = [], [], threading.Event()


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
        size = len(s.content)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and s.ranges else 0
        if start and start >= size:
            return self.send_error(416)
        self.send_response(206 if start else 200)
        headers = {"Content-Range": start and f"bytes {start}-{size - 1}/{size}", "Content-Encoding": s.encoding}
        for name, value in (headers | {"Content-Length": str(size - start)}).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        sent = s.content[start:][: s.drop_after.pop(0) if s.drop_after else size]
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
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with Server() as server, ThreadPoolExecutor(1) as pool:
        pool.submit(server.serve_forever, 0.01)
        yield server
        server.go_on.set()
        server.shutdown()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "in" / "net.bin"


@pytest.fixture
def get(server, path):
    return lambda url=server.url, **change: fetch(url, path, **{"checksum": SHA256, "show_progress": False} | change)


def names(folder):
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock") if folder.exists() else []


def zip_of(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


# fetch


@pytest.mark.parametrize(
    ("fields", "left", "served"),
    [
        ({}, None, [600_000]),
        ({"ranges": False, "drop_after": [300_000]}, None, [300_000, 600_000]),
        ({"encoding": "gzip"}, None, [600_000]),  # which is not undone
        ({}, CONTENT[:1000], [599_000]),
        ({}, b"x" * 1000, [599_000, 600_000]),  # of another file
        ({}, CONTENT + b"more", [600_000]),
        ({}, CONTENT, []),
        ({}, b"", [600_000]),
    ],
)
def test_whatever_the_server_does_and_an_earlier_run_left_the_file_is_right(server, get, path, fields, left, served):
    vars(server).update(fields)
    if left is not None:
        path.parent.mkdir()
        path.with_name("net.bin.part").write_bytes(left)
    assert get() == get() == path
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["net.bin"]
    assert server.asked[0] == (f"bytes={len(left)}-" if left else None)
    assert server.served == served, "only what is missing, and nothing the second time"


def test_a_lost_connection_is_taken_up_in_the_same_call(server, get):
    server.drop_after = [250_000, 100_000]
    assert get().read_bytes() == CONTENT
    assert len(server.asked) == 3
    # What is lost with the connection is less than the 64 KiB that are read at once.
    assert sum(server.served) < len(CONTENT) + 2 * 65536


def test_an_interrupted_download_is_taken_up_by_the_next_call_with_only_the_rest(server, get, path):
    server.drop_after = [300_000, 1, 1]
    part = path.with_name("net.bin.part")
    with pytest.raises(FileNotFoundError, match=r"could not be fetched .* bytes are kept in net.bin.part: the next try goes on"):
        get()
    assert names(path.parent) == ["net.bin.part"]
    have = part.stat().st_size
    assert CONTENT.startswith(part.read_bytes())
    assert have > 200_000
    assert get().read_bytes() == CONTENT
    assert server.asked[-1] == f"bytes={have}-"
    assert server.served[3:] == [len(CONTENT) - have]
    assert not part.exists()


@pytest.mark.parametrize("checksum", [SHA256[:15], checksum_of(CONTENT, "md5"), checksum_of(CONTENT, "sha1")])
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


def test_a_file_is_hashed_once_and_again_when_it_changed(server, get, path, monkeypatch):
    hashed, original = [get()], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: hashed.append(given) or original(*given))
    assert [get(), get(), get()] == [path] * 3
    assert len(hashed) <= 2
    path.write_bytes(CONTENT[:-1] + b"?")
    assert get().read_bytes() == CONTENT, "a wrong file is never used"
    assert server.asked == [None, None]


PLACE = rf"get http://127.*/file and copy it \({SHA256}\) to \S+/in/net.bin\. Or paint\.$"


@pytest.mark.parametrize(
    ("fields", "change", "asked", "message"),
    [
        ({"content": LOGIN}, {}, 1, rf"^http.*/file: expected {SHA256}, got {checksum_of(LOGIN)} \(25 bytes\); nothing of it was kept"),
        ({"status": 404}, {"title": "Net", "hint": "Or paint."}, 1, rf"^Net STATE .*404 .*HTTP_PROXY names no proxy\)\. On.* {PLACE}"),
        ({"status": 404}, {"zipped": True}, 1, r"copy the file net.bin in it \(sha256"),
        ({}, {"download": False}, 0, r"^net.bin STATE and .* \(downloading is switched off\)"),
        ({}, {"url": "http://127.0.0.1:1/file"}, 0, "STATE and .*refused.*HTTP_PROXY names no proxy"),
        ({"content": zip_of({"other": CONTENT})}, {"zipped": True}, 1, f"expected {SHA256}, got sha256"),
        ({"content": zip_of({"net.bin": b"short"})}, {"zipped": True}, 1, f"expected {SHA256}, got sha256"),
        ({"content": CONTENT}, {"zipped": True}, 1, f"expected {SHA256}, got sha256"),
    ],
)
def test_what_cannot_be_fetched_is_named_and_only_a_right_file_takes_anothers_place(server, get, path, fields, change, asked, message):
    vars(server).update(fields)
    error = ValueError if "content" in fields else FileNotFoundError
    with pytest.raises(error, match=message.replace("STATE", f"is not in {path.parent}")):
        get(**change)
    assert path.parent.exists() == change.get("download", True)
    assert names(path.parent) == [], "nothing wrong is kept"
    assert len(server.asked) == asked, "what fails before the first byte is not tried again"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(OWN)
    with pytest.raises(error, match=message.replace("STATE", rf"in {path.parent} is not the right file \({checksum_of(OWN)}\)")):
        get(**change)
    assert path.read_bytes() == OWN


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_fails_is_named_without_its_password(server, get, monkeypatch, scheme):
    server.status = 407
    for port, reason in ((1, ""), (server.server_port, "407 .*Proxy Authentication Required.*")):
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://me:secret@127.0.0.1:{port}")
        with pytest.raises(FileNotFoundError, match=rf"{reason}{scheme.upper()}_PROXY names the proxy 127.0.0.1:{port}\)") as caught:
            get(f"{scheme}://files.invalid/file")
        assert "secret" not in str(caught.value)


def test_a_bar_over_the_bytes_if_wanted(get, capsys):
    get(show_progress=True, title="Net").unlink()
    assert "Net: 100%" in capsys.readouterr().err
    get()
    assert capsys.readouterr().err == ""


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_threads_that_want_the_same_file_get_it_from_one_download(server, get):
    server.pause_after = 200_000
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(get) for _ in range(4)]
        wait_for(lambda: server.asked)
        time.sleep(0.1)  # all of them have seen by now that it is not there
        server.go_on.set()
        assert {future.result().read_bytes() for future in running} == {CONTENT}
    assert len(server.asked) == 1


def process(url, path):
    # A bare package in salkit's place: the real one imports torch, which takes seconds.
    code = """import runpy, sys, types
salkit = sys.modules["salkit"] = types.ModuleType("salkit")
salkit.__path__ = [sys.argv[1]]
runpy.run_path(sys.argv[1] + "/data/downloads.py")["fetch"](*sys.argv[2:4], checksum=sys.argv[4])"""
    command = [sys.executable, "-c", code, str(Path(downloads.__file__).parents[1]), url, str(path), SHA256]
    return subprocess.Popen(command, env=os.environ | {"TQDM_DISABLE": "1"}, stderr=subprocess.PIPE)


def test_processes_share_a_download_and_a_killed_one_leaves_only_the_part(server, path):
    server.pause_after = 200_000
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


def test_a_file_out_of_a_zip(server, get, path):
    server.content, server.drop_after = zip_of({"readme": b"", "net.bin": CONTENT}), [200_000]
    assert get(zipped=True).read_bytes() == CONTENT
    assert names(path.parent) == ["net.bin"]


# unpack


def tar_of(members):
    """Members: name -> bytes, or what to set of the member's TarInfo."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            vars_of = {"size": len(content)} if isinstance(content, bytes) else content
            for key, value in vars_of.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content if isinstance(content, bytes) else b""))
    return file.getvalue()


@pytest.mark.parametrize("content", [tar_of({"set/train/a": b"A", "set/val/b": b"B"}), zip_of({"train/a": b"A", "val/b": b"B"})])
def test_unpacked_whole_with_and_without_a_folder_of_its_own(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "old").touch()  # what a killed process left is not mixed in
    folder = unpack(tmp_path / "a", tmp_path / "out")
    assert (folder / "train" / "a").read_bytes() == b"A"
    assert names(folder) == ["train", "val"]
    assert names(tmp_path) == ["a", "out"]
    (folder / "val" / "b").unlink()
    assert names(unpack(tmp_path / "a", folder) / "val") == [], "a folder that is there is left as it is"


def zip_link(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


ELSEWHERE = [
    *[tar_of({"a": b"A", name: b"E"}) for name in ("../evil", "set/../../evil", "/evil", "C:/evil", "set\\..\\..\\evil")],
    *[tar_of({"a": b"A", "evil": {"type": tarfile.SYMTYPE, "linkname": link}}) for link in ("/etc/passwd", "a")],
    tar_of({"a": b"A", "evil": {"type": tarfile.LNKTYPE, "linkname": "../../evil"}}),
    *[tar_of({"a": b"A", "evil": {"type": kind}}) for kind in (tarfile.CHRTYPE, tarfile.FIFOTYPE)],
    *[zip_of({"a": b"A", name: b"E"}) for name in ("../evil", "/evil", "C:\\evil", "a/..\\../evil")],
    zip_of({"a": b"A", zip_link("evil"): b"/etc/passwd"}),
]
ZIPPED = zip_of({"a": CONTENT})
DAMAGED = [tar_of({"a": CONTENT, "b": CONTENT})[:300_000], b"no archive", b"", ZIPPED[:1000] + b"?" + ZIPPED[1001:]]


@pytest.mark.parametrize(
    ("content", "message"),
    [(content, "files and folders inside it only, got the member '.*evil'; nothing was unpacked") for content in ELSEWHERE]
    + [(content, "a tar or zip in one piece, got") for content in DAMAGED],
)
def test_archives_that_are_damaged_or_would_write_elsewhere_are_refused_whole(tmp_path, content, message):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tgz").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.tgz: expected {message}"):
        unpack(tmp_path / "in" / "a.tgz", tmp_path / "in" / "out")
    assert names(tmp_path / "in") == ["a.tgz"]
    assert names(tmp_path) == ["in"]
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
    server.content = tar_of({f"cifar-10-batches-bin/{name}": record(f, 0) + record(f, 1) for name, f in files.items()})
    for name, value in {"URL": server.url, "CHECKSUM": checksum_of(server.content), "IMAGES_PER_FILE": 2}.items():
        monkeypatch.setattr(image_files, f"CIFAR10_{name}", value)
    return partial(load_images, "cifar10", root=tmp_path)


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


def test_cifar10_unpacked_wrong_or_as_pickles(cifar10, tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(
        FileNotFoundError, match=rf"CIFAR-10 is not in {tmp_path} .*copy it .* are pickles, and loading a pickle runs what is in it"
    ):
        cifar10(download=False)
    cifar10()
    batch = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    whole = batch.read_bytes()
    for wrong in (whole[:-1], whole[:3073], b"", b"\x0a" + whole[1:]):
        batch.write_bytes(wrong)
        with pytest.raises(ValueError, match=rf"test_batch.bin: expected 2 records of 3073 bytes.* got {len(wrong)} bytes; delete"):
            cifar10()
    batch.unlink()
    with pytest.raises(FileNotFoundError, match=r"CIFAR-10: expected .*test_batch.bin, which is missing; delete"):
        cifar10()


def test_imagenette_from_its_archive_or_as_torchvision_left_it(server, tmp_path, monkeypatch):
    url, md5 = Imagenette._ARCHIVES["full"]
    assert (image_files.IMAGENETTE_URL, image_files.IMAGENETTE_CHECKSUM) == (url, f"md5:{md5}")
    file = io.BytesIO()
    Image.new("RGB", (300, 260), "red").save(file, "jpeg")
    server.content = tar_of({f"imagenette2/{part}/n03888257/a.JPEG": file.getvalue() for part in ("train", "val")})
    monkeypatch.setattr(image_files, "IMAGENETTE_URL", server.url)
    monkeypatch.setattr(image_files, "IMAGENETTE_CHECKSUM", checksum_of(server.content, "md5"))
    with pytest.raises(FileNotFoundError, match=rf"Imagenette is not in {tmp_path}/a .*copy .* packaged samples .* need no network"):
        load_images("imagenette", root=tmp_path / "a", download=False)
    found = load_images("imagenette", root=tmp_path / "a")
    assert found.labels.tolist() == [701]
    assert found.ids == ("n03888257/a.JPEG",)
    (tmp_path / "b" / "imagenette2").mkdir(parents=True)
    os.rename(tmp_path / "a" / "imagenette2" / "val", tmp_path / "b" / "imagenette2" / "val")
    assert torch.equal(load_images("imagenette", root=tmp_path / "b").images, found.images)
    assert len(server.asked) == 1


class Runs:
    """Unpickling it leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_weights_are_opened_after_their_checksum_matched_and_run_no_code(tmp_path):
    net, twin, path, trace = nn.Linear(2, 3), nn.Linear(2, 3), tmp_path / "net.pth", tmp_path / "trace"
    torch.save(net.state_dict(), path)
    checksum = checksum_of(path.read_bytes(), "sha1")
    checkpoints.load_pth(twin, path, checksum)
    assert torch.equal(twin.weight, net.weight)
    torch.save({"weight": Runs(trace)}, path)
    with pytest.raises(ValueError, match=f"expected {checksum}, got sha1:"):
        checkpoints.load_pth(twin, path, checksum)
    with pytest.raises(Exception, match="Weights only load failed"):
        checkpoints.load_pth(twin, path, checksum_of(path.read_bytes(), "sha1"))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "known"), [("cifar10-resnet164", "sha1:74ae9f4bccb7fb6a8f3f603fdabe8d8632c46b2f"), ("resnet50", "sha256:0676ba61")]
)
def test_weights_of_the_papers_nets_arrive(server, tmp_path, monkeypatch, name, known):
    """The whole way, with a small net whose checksum is made to match."""
    net, file = nn.Linear(2, 3), io.BytesIO()
    torch.save(net.state_dict(), file)
    content = file.getvalue()
    server.content = zip_of({"resnet164bn_cifar10-0368-74ae9f4b.pth": content}) if "164" in name else content

    def made_up(url, path, *, checksum, **more):
        assert checksum == known
        return fetch(server.url, path, checksum=checksum_of(content, known.partition(":")[0]), **more)

    monkeypatch.setitem(zoo.CLASSIFIERS, name, (lambda: nn.Linear(2, 3), zoo.CLASSIFIERS[name][1]))
    monkeypatch.setattr(zoo, "data_dir", lambda: tmp_path)
    monkeypatch.setattr(zoo, "fetch", made_up)
    monkeypatch.setattr(checkpoints, "verify", lambda path, checksum: path)
    loaded = zoo.load_classifier(name).net.state_dict()
    assert all(torch.equal(v, loaded[k]) for k, v in net.state_dict().items())
