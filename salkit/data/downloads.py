"""Downloads: files are fetched under a temporary name, checked, then renamed; archives are unpacked the same way.

Pooch was tried. It has no lock between processes, compares complete checksums only (torchvision publishes the first digits), cannot check
the checksum of a zip's member, and unpacks archives in place without refusing links.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from urllib.parse import urlsplit

import requests
from filelock import FileLock
from requests.utils import get_environ_proxies, select_proxy
from urllib3.exceptions import HTTPError as BrokenTransfer

from salkit.progress import progress_bar

TIMEOUT = (10, 60)
"""Seconds to connect, and seconds without a byte."""

TRIES = 3
"""How often one call resumes a broken transfer."""

ALGORITHMS = ("sha256", "sha1", "md5")


def fetch(
    url: str,
    path: str | Path,
    *,
    checksum: str,
    title: str | None = None,
    zipped: bool = False,
    hint: str = "",
    download: bool = True,
    show_progress: bool = True,
) -> Path:
    """The file at `path`; it is downloaded unless a file with the right checksum is there.

    An interrupted download stays as `path.part`; the next call resumes it if the server can. A file appears at `path` only after its
    checksum matched. Only one process downloads a file, others wait. A file is hashed once per process, and again after it changed.

    Args:
        url: where to download it from.
        path: where to put it; missing folders are made.
        checksum: `"sha256:..."`, `"sha1:..."` or `"md5:..."`, with at least the first 8 hexadecimal digits.
        title: its name in messages; default the file's name.
        zipped: `url` is a zip with a member of the file's name; the checksum is the member's.
        hint: text added to the message if it cannot be fetched.
        download: whether a missing file may be downloaded.
        show_progress: whether to show a progress bar.

    Raises:
        ValueError: `checksum` is malformed, or the downloaded file has another one.
        FileNotFoundError: the file is missing and cannot be downloaded; the message says which file to put where.

    Example:
        >>> fetch("https://example.org/net.pth", "downloads/net.pth", checksum="sha256:0676ba61")  # doctest: +SKIP
        PosixPath('downloads/net.pth')
    """
    path, title = Path(path), title or Path(path).name
    part = path.with_name(f"{path.name}.part")
    found, reason = _checksum(path, checksum), "downloading is switched off"
    if _fits(found, checksum):
        return path
    if download:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(f"{path}.lock"):
                # The process that held the lock before may have fetched it.
                if not _fits(_checksum(path, checksum), checksum):
                    _fetch(url, path, part, checksum, zipped, title if show_progress else None)
            return path
        except (requests.RequestException, BrokenTransfer) as error:
            reason = _reason(error, url)
    state = f"is not in {path.parent}" if found is None else f"in {path.parent} is not the right file ({found})"
    what = f"the file {path.name} in it ({checksum})" if zipped else f"it ({checksum})"
    kept = f"{part.stat().st_size} bytes are kept in {part.name}: the next try goes on from there. " if part.exists() else ""
    raise FileNotFoundError(
        f"{title} {state} and could not be fetched ({reason}). {kept}On a machine with a network get {url} and copy {what} to {path}. "
        f"{hint}".rstrip()
    )


def verify(path: str | Path, checksum: str) -> Path:
    """Check a file's checksum (see `fetch`) and return its path.

    Raises:
        ValueError: the checksum is another one.
        FileNotFoundError: there is no such file.

    Example:
        >>> verify("downloads/net.pth", "sha256:0676ba61")  # doctest: +SKIP
        PosixPath('downloads/net.pth')
    """
    path = Path(path)
    found = _checksum(path, checksum)
    if found is None:
        raise FileNotFoundError(f"path: expected a file with checksum {checksum}, got {path}, which is not one")
    if not _fits(found, checksum):
        raise ValueError(f"{path}: expected {checksum}, got {found}")
    return path


def unpack(archive: str | Path, folder: str | Path) -> Path:
    """Unpack a tar or zip to `folder`, whole or not at all; an existing folder is left as it is.

    If the archive has a single folder at its top, that becomes `folder`. Links are refused wherever they point: no archive of the kit
    has any, and every known way past tarfile's filter needs one.

    Raises:
        ValueError: not a tar or zip, a damaged one, or one with a link or a member outside its folder.
        FileNotFoundError: there is no such archive.

    Example:
        >>> unpack("downloads/imagenette2.tgz", "downloads/imagenette2")  # doctest: +SKIP
        PosixPath('downloads/imagenette2')
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise FileNotFoundError(f"archive: expected a tar or zip, got {archive}, which is not a file")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():
            return folder
        part = folder.with_name(f"{folder.name}.part")
        # What a killed process left.
        shutil.rmtree(part, ignore_errors=True)
        try:
            _extract(archive, part)
            inside = list(part.iterdir())
            os.rename(inside[0] if len(inside) == 1 and inside[0].is_dir() else part, folder)
        except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{archive}: expected a tar or zip in one piece, got {error}") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def _fetch(url: str, path: Path, part: Path, checksum: str, zipped: bool, title: str | None) -> None:
    resumed = part.exists()
    for left in reversed(range(TRIES)):
        try:
            _transfer(url, part, title)
            break
        except BrokenTransfer:  # lost in the middle; what fails before the first byte is a RequestException
            if not left:
                raise
    whole = _unzip(part, path.name) if zipped else part
    size, found = whole.stat().st_size, _hash(whole, checksum.partition(":")[0])
    if _fits(found, checksum):
        os.replace(whole, path)
        part.unlink(missing_ok=True)
        return
    for wrong in {part, whole}:
        wrong.unlink()
    if not resumed:
        raise ValueError(f"{url}: expected {checksum}, got {found} ({size} bytes); nothing of it was kept")
    # What an interrupted run left may be part of another file: once more from the start.
    _fetch(url, path, part, checksum, zipped, title)


def _transfer(url: str, part: Path, title: str | None) -> None:
    """Append to `part` what is missing; whether the pieces fit together is left to the checksum."""
    have = part.stat().st_size if part.exists() else 0
    # "identity", and raw bytes below: some servers call a .tgz a gzip-encoded tar, which would be decoded on the way.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if have and response.status_code == 416:  # nothing beyond: it is whole, or longer than the file
            return
        response.raise_for_status()
        if response.status_code != 206:  # the whole file, asked for or not
            have = 0
        length = response.headers.get("Content-Length")
        sizes = {"total": have + int(length) if length else None, "initial": have, "unit": "B", "unit_scale": True}
        with part.open("ab" if have else "wb") as file, progress_bar(None, title is not None, desc=title, **sizes) as bar:
            for chunk in response.raw.stream(1 << 16, decode_content=False):
                file.write(chunk)
                bar.update(len(chunk))


def _reason(error: Exception, url: str) -> str:
    cause = getattr(error.args[0], "reason", error) if error.args else error
    variable = f"{urlsplit(url).scheme.upper()}_PROXY"
    proxy = select_proxy(url, get_environ_proxies(url))
    # Without the name and password a proxy's URL may have.
    where = urlsplit(proxy).netloc.rpartition("@")[2] if proxy else None
    return f"{cause}; " + (f"{variable} names the proxy {where}" if where else f"{variable} names no proxy")


def _checksum(path: Path, checksum: str) -> str | None:
    """The file's checksum by the same algorithm, None if there is no file; remembered until the file changes."""
    algorithm, _, digits = checksum.partition(":")
    if algorithm not in ALGORITHMS or len(digits) < 8 or not set(digits) <= set("0123456789abcdef"):
        raise ValueError(f"checksum: expected one of {ALGORITHMS}, a colon and 8 or more of 0-9a-f, got {checksum!r}")
    if not path.is_file():
        return None
    info = path.stat()
    return _hash_once(path.resolve(), algorithm, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


@lru_cache(maxsize=64)
def _hash_once(path: Path, algorithm: str, *state: int) -> str:
    return _hash(path, algorithm)


def _hash(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()}"


def _fits(found: str | None, checksum: str) -> bool:
    return found is not None and found.startswith(checksum)


def _unzip(archive: Path, name: str) -> Path:
    """Write one member beside the archive; of a damaged one only the readable part, which the checksum refuses."""
    whole = archive.with_name(f"{name}.unzipped.part")
    with whole.open("wb") as target:
        try:
            with zipfile.ZipFile(archive) as file, file.open(name) as source:
                shutil.copyfileobj(source, target)
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError):
            pass
    return whole


def _extract(archive: Path, folder: Path) -> None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for entry in zipped.infolist():
                kind = stat.S_IFMT(entry.external_attr >> 16)
                _check_member(archive, entry.orig_filename, plain=kind in (0, stat.S_IFREG, stat.S_IFDIR))
            return zipped.extractall(folder)

    def checked(member: tarfile.TarInfo, destination: str) -> tarfile.TarInfo | None:
        _check_member(archive, member.name, plain=member.isfile() or member.isdir())
        return tarfile.data_filter(member, destination)

    with tarfile.open(archive) as tarred:
        tarred.extractall(folder, filter=checked)


def _check_member(archive: Path, name: str, plain: bool) -> None:
    # Windows' rules know both slashes and drives, so that an archive is as safe there.
    parts = PureWindowsPath(name)
    if not plain or parts.anchor or ".." in parts.parts:
        raise ValueError(f"{archive}: expected files and folders inside it only, got the member {name!r}; nothing was unpacked")
