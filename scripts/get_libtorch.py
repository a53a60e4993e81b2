#!/usr/bin/env python3
"""Install the pinned libtorch into .libtorch/ (Python 3.8+, standard library only).

libtorch comes from the wheels that scripts/libtorch.lock pins by SHA-256: three of them on a
machine without an NVIDIA GPU, all of them with one. Only shared libraries, headers and licences
are unpacked. A second run finds the stamp of the first and returns without touching the network.

    scripts/get_libtorch.py                     what `make setup` runs
    scripts/get_libtorch.py --cuda yes          the CUDA libraries too, whatever this machine has
    scripts/get_libtorch.py --wheels DIR        take wheels from DIR (no network needed if all are there)
    scripts/get_libtorch.py --lock              regenerate scripts/libtorch.lock from VERSIONS below

Honoured from the environment: LIBTORCH (an installation of your own: nothing is done),
PIP_INDEX_URL (or index-url in pip.conf), PIP_FIND_LINKS (folders), PIP_CERT, SSL_CERT_FILE,
REQUESTS_CA_BUNDLE and the usual proxy variables.
"""

import argparse
import base64
import configparser
import contextlib
import ctypes
import errno
import fcntl
import hashlib
import html.parser
import http.client
import json
import os
import platform
import re
import shutil
import ssl
import stat
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

ROOT = Path(__file__).resolve().parent.parent
LOCK_FILE = ROOT / "scripts" / "libtorch.lock"

# What --lock pins. "cpu" is what libtorch_cpu.so itself loads; "cuda" is the rest of what torch
# 2.11.0 requires on Linux (its own metadata, and cuda-toolkit 13.0.2's for the extras it names).
VERSIONS = {
    "cpu": {
        "torch": "2.11.0",
        "nvidia-cuda-runtime": "13.0.96",
        "nvidia-cuda-cupti": "13.0.85",
    },
    "cuda": {
        "nvidia-cublas": "13.1.0.3",
        "nvidia-cuda-nvrtc": "13.0.88",
        "nvidia-cudnn-cu13": "9.19.0.56",
        "nvidia-cufft": "12.0.0.61",
        "nvidia-cufile": "1.15.1.6",
        "nvidia-curand": "10.4.0.35",
        "nvidia-cusolver": "12.0.4.66",
        "nvidia-cusparse": "12.6.3.3",
        "nvidia-cusparselt-cu13": "0.8.0",
        "nvidia-nccl-cu13": "2.28.9",
        "nvidia-nvjitlink": "13.0.88",
        "nvidia-nvshmem-cu13": "3.4.5",
        "nvidia-nvtx": "13.0.85",
    },
}
ARCHITECTURES = ("x86_64", "aarch64")
PYTHON_TAG = "cp311"  # any would do: the C++ libraries are the same in each

KEEP = re.compile(r"(torch|nvidia/[^/]+)/(lib|include)/|[^/]+\.dist-info/(.*/)?(licen[cs]e|notice|copying)", re.I)
SKIP = re.compile(
    r"\.(py|pyc|a|bc|cmake)$"
    r"|/lib/(libtorch_python|libshm|libnvperf_|libpcsamplingutil|libcheckpoint|libcusolverMg)"
    r"|/lib/libnvrtc[^/]*\.alt\."
)
SKIP_WITHOUT_GPU = re.compile(r"torch/lib/(libtorch_cuda|libtorch_nvshmem|libc10_cuda|libcaffe2_nvrtc)")
# libtorch.so holds nothing that is needed but pulls in libtorch_cuda.so. GNU ld would keep it as a dependency
# of our programs (lld does not), so a linker script that names libtorch_cpu.so takes its place.
REPLACE = {"torch/lib/libtorch.so": b"/* GNU ld script */ INPUT(AS_NEEDED(-ltorch_cpu))\n"}
LAYOUT = 2  # raise it when the rules above change: installations are then renewed

ATTEMPTS = 5
TIMEOUT_SECONDS = 60
CHUNK = 1 << 20


class SetupError(Exception):
    """What went wrong and what to do about it, in one line."""


class Wheel(NamedTuple):
    kind: str  # "cpu": always needed, "cuda": with an NVIDIA GPU only
    arch: str
    name: str
    size: int
    sha256: str

    @property
    def project(self) -> str:
        return self.name.split("-")[0].replace("_", "-").lower()


# --------------------------------------------------------------------------------------- lock file


def read_lock(path: Path) -> List[Wheel]:
    """The wheels of a lock file: one a line, `kind arch name bytes sha256`, # for comments."""
    wheels = []
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            kind, arch, name, size, sha256 = line.split()
            wheels.append(Wheel(kind, arch, name, int(size), sha256))
    return wheels


def write_lock(path: Path, index: "Index") -> None:
    """Look VERSIONS up in the index and pin what it offers."""
    lines = ["# The wheels that carry libtorch: kind, architecture, file, bytes, SHA-256.",
             "# Written by `scripts/get_libtorch.py --lock`; change VERSIONS there, not this file."]
    for arch in ARCHITECTURES:
        for kind, versions in VERSIONS.items():
            for project, version in versions.items():
                prefix = f"{project.replace('-', '_')}-{version}-"
                found = [
                    f for f in index.files(project)
                    if f.name.startswith(prefix) and f.name.endswith(f"{arch}.whl") and "linux" in f.name
                    and (project != "torch" or f"-{PYTHON_TAG}-{PYTHON_TAG}-" in f.name)
                ]
                if len(found) != 1 or not found[0].sha256 or not found[0].size:
                    raise SetupError(f"{index.base} offers {len(found)} wheels {prefix}*{arch}.whl with hash and size; one is needed")
                lines.append(f"{kind:4} {arch:7} {found[0].name} {found[0].size} {found[0].sha256}")
    path.write_text("\n".join(lines) + "\n")


# ------------------------------------------------------------------------------------------- index


class IndexFile(NamedTuple):
    name: str
    url: str
    size: Optional[int] = None
    sha256: Optional[str] = None


class LinkParser(html.parser.HTMLParser):
    """The targets of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.links: List[str] = []

    def handle_starttag(self, tag, attrs):
        self.links.extend(value for key, value in attrs if tag == "a" and key == "href" and value)


def pip_setting(name: str) -> Optional[str]:
    """A setting as pip sees it: its environment variable, else its configuration files."""
    if os.environ.get("PIP_" + name.upper()):
        return os.environ["PIP_" + name.upper()]
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    files = [os.environ.get("PIP_CONFIG_FILE"), home / "pip/pip.conf", Path.home() / ".pip/pip.conf", "/etc/pip.conf"]
    for file in filter(None, files):
        config = configparser.RawConfigParser()
        try:
            config.read(file)
        except (OSError, UnicodeError, configparser.Error):
            continue
        for option in (name, name.replace("_", "-")):
            if config.has_option("global", option):
                return config.get("global", option).strip()
    return None


def certificates() -> ssl.SSLContext:
    context = ssl.create_default_context()  # honours SSL_CERT_FILE and SSL_CERT_DIR
    extra = pip_setting("cert") or os.environ.get("REQUESTS_CA_BUNDLE")
    if extra:
        try:
            is_folder = os.path.isdir(extra)
            context.load_verify_locations(None if is_folder else extra, extra if is_folder else None)
        except (OSError, ssl.SSLError) as error:
            raise SetupError(f"cannot read the certificates {extra} named by PIP_CERT, REQUESTS_CA_BUNDLE or pip.conf: {error}")
    return context


class Index:
    """A Python package index, by the simple API (PEP 503 HTML or PEP 691 JSON)."""

    def __init__(self, base: str) -> None:
        parts = urllib.parse.urlsplit(base)
        host = parts.netloc.rpartition("@")[2]
        self.base = parts._replace(netloc=host).geturl().rstrip("/")  # printable: without a password
        self._host = host
        self._authorization = None
        if parts.username is not None:
            secret = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
            self._authorization = "Basic " + base64.b64encode(secret.encode()).decode()
        self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=certificates()))
        self._projects: Dict[str, List[IndexFile]] = {}

    def open(self, url: str, **headers: str):
        request = urllib.request.Request(url, headers={"User-Agent": "get_libtorch/1", **headers})
        if self._authorization and urllib.parse.urlsplit(url).netloc == self._host:
            request.add_unredirected_header("Authorization", self._authorization)
        return self._opener.open(request, timeout=TIMEOUT_SECONDS)

    def files(self, project: str) -> List[IndexFile]:
        if project not in self._projects:
            url = f"{self.base}/{project}/"
            self._projects[project] = retried(lambda: self._fetch(url), url)
        return self._projects[project]

    def _fetch(self, url: str) -> List[IndexFile]:
        accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
        with contextlib.closing(self.open(url, Accept=accept)) as response:
            here, kind, body = response.geturl(), response.headers.get("Content-Type", ""), response.read()
        if "json" in kind:
            return [
                IndexFile(f["filename"], urllib.parse.urljoin(here, f["url"]), f.get("size"), f.get("hashes", {}).get("sha256"))
                for f in json.loads(body.decode())["files"]
            ]
        parser = LinkParser()
        parser.feed(body.decode("utf-8", "replace"))
        urls = [urllib.parse.urljoin(here, link).partition("#")[0] for link in parser.links]
        return [IndexFile(urllib.parse.unquote(url.rpartition("/")[2]), url) for url in urls]

    def url_of(self, wheel: Wheel) -> str:
        for file in self.files(wheel.project):
            if file.name == wheel.name:
                return file.url
        raise SetupError(f"{self.base}/{wheel.project}/ does not offer {wheel.name}; {WITHOUT_INDEX}")


WITHOUT_INDEX = (
    "name another index with PIP_INDEX_URL, or fetch the files named in scripts/libtorch.lock elsewhere "
    "and run `make setup WHEELS=folder`"
)


def retried(action, url: str):
    """Run `action`, again after a pause when the network failed in a way that may pass."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except (OSError, http.client.HTTPException, ValueError) as error:
            status = getattr(error, "code", None)
            reason = getattr(error, "reason", None) or error
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            lasting = isinstance(reason, ssl.SSLCertVerificationError) or status in (401, 403, 404)
            if lasting or attempt == ATTEMPTS:
                what = f"HTTP {status} {reason}" if status else f"{reason}"
                raise SetupError(f"cannot get {url}: {what}; {WITHOUT_INDEX}")
            time.sleep(min(2 ** (attempt - 1), 8) * BACKOFF_SECONDS)


BACKOFF_SECONDS = 1.0


# --------------------------------------------------------------------------------------- downloads


class Progress:
    """One line a file on stderr; on a terminal it moves while the bytes come."""

    def __init__(self, wheel: Wheel, had: int) -> None:
        self.wheel, self.had, self.start, self.shown = wheel, had, time.monotonic(), 0.0
        self.live = sys.stderr.isatty()
        if not self.live:
            say(f"downloading {wheel.name} ({megabytes(wheel.size)})")

    def update(self, done: int, last: bool = False) -> None:
        now = time.monotonic()
        if self.live and (last or now - self.shown > 0.2):
            self.shown = now
            rate = (done - self.had) / 1e6 / max(now - self.start, 1e-3)
            line = f"  {self.wheel.project:24} {done / 1e6:6.0f} / {megabytes(self.wheel.size)} {rate:6.1f} MB/s"
            print("\r" + line, end="\n" if last else "", file=sys.stderr, flush=True)
        elif last:
            seconds = now - self.start
            say(f"  {megabytes(done - self.had)} in {seconds:.1f} s ({(done - self.had) / 1e6 / max(seconds, 1e-3):.1f} MB/s)")


def fetch(index: Index, wheel: Wheel, folder: Path) -> Path:
    """The wheel in `folder`, complete and verified: downloaded, going on where an earlier run broke off."""
    path, part = folder / wheel.name, folder / (wheel.name + ".part")
    if path.exists():
        return path  # only a verified file ever gets this name
    url = index.url_of(wheel)
    for fresh in (False, True):
        had = part.stat().st_size if part.exists() else 0
        progress = Progress(wheel, had)
        received = had
        while received < wheel.size:
            retried(lambda: receive(index, url, part, wheel.size, progress), url)
            received = part.stat().st_size
        progress.update(received, last=True)
        digest = sha256_of(part)
        if digest == wheel.sha256:
            part.rename(path)
            return path
        part.unlink()
        if had and not fresh:
            say(f"{wheel.name}: the part kept from an earlier run does not fit, starting over")
            continue
        raise SetupError(f"{wheel.name} from {index.base} has SHA-256 {digest}, but {wheel.sha256} is pinned: not used; {WITHOUT_INDEX}")
    raise AssertionError("unreachable")


def receive(index: Index, url: str, part: Path, size: int, progress: Progress) -> None:
    """Append to `part` what the server still has to give; fails if that was nothing."""
    had = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={had}-"} if had else {}
    with contextlib.closing(index.open(url, **headers)) as response:
        if had and response.status != 206:
            had = 0  # the server does not know ranges: from the start
        done = had
        with open(part, "ab" if had else "wb") as out:
            while done < size:
                chunk = response.read(min(CHUNK, size - done))
                if not chunk:
                    break
                out.write(chunk)
                done += len(chunk)
                progress.update(done)
    if done == had:
        raise OSError("the server closed the connection")


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def local_copy(wheel: Wheel, folders: List[Path]) -> Optional[Path]:
    for folder in folders:
        path = folder / wheel.name
        if path.is_file() and path.stat().st_size == wheel.size and sha256_of(path) == wheel.sha256:
            return path
        if path.is_file():
            say(f"{path} is not the pinned file, passed over")
    return None


# ------------------------------------------------------------------------------------ installation


def unpack(wheel: Path, into: Path, cuda: bool) -> None:
    """Unpack libraries, headers and licences of a wheel; no entry can land outside `into`."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            parts = entry.filename.split("/")
            if entry.filename.startswith("/") or "\\" in entry.filename or ".." in parts or stat.S_ISLNK(entry.external_attr >> 16):
                raise SetupError(f"{wheel.name} holds the unsafe entry {entry.filename!r}: not used")
            if entry.is_dir() or not KEEP.match(entry.filename) or SKIP.search(entry.filename):
                continue
            if not cuda and SKIP_WITHOUT_GPU.match(entry.filename):
                continue
            target = into / entry.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            if entry.filename in REPLACE:
                target.write_bytes(REPLACE[entry.filename])
                continue
            with archive.open(entry) as source, open(target, "wb") as out:
                shutil.copyfileobj(source, out, CHUNK)


def has_nvidia_driver() -> bool:
    if os.path.exists("/proc/driver/nvidia/version"):
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
        return True
    except OSError:
        return False


def check_platform() -> str:
    arch = platform.machine()
    if sys.platform != "linux" or arch not in ARCHITECTURES or platform.libc_ver()[0] != "glibc":
        raise SetupError(
            f"no libtorch is pinned for {sys.platform} on {arch} (only glibc Linux on {' and '.join(ARCHITECTURES)}); "
            f"set LIBTORCH to a libtorch {VERSIONS['cpu']['torch']} of your own"
        )
    return arch


def check_disk(folder: Path, wheels: List[Wheel]) -> None:
    """The wheels lie beside their contents for a while, which are up to twice their size."""
    need, free = 3 * sum(wheel.size for wheel in wheels), shutil.disk_usage(folder).free
    if free < need:
        raise SetupError(f"{folder} has {megabytes(free)} free, {megabytes(need)} are needed for a while: free some, or set LIBTORCH to an installation elsewhere")


def installed(home: Path, lock: str) -> Optional[str]:
    """The kind ("cpu" or "cuda") of a finished installation of this lock file."""
    try:
        made_from, kind = (home / "stamp").read_text().split()
    except (OSError, ValueError):
        return None
    return kind if made_from == lock and (home / "torch/lib/libtorch_cpu.so").exists() else None


def install(home: Path, lock_file: Path, cuda: bool, folders: List[Path], index_url: str) -> None:
    """Make `home` hold the libtorch of the lock file; nothing is there by halves when it fails."""
    lock = f"{hashlib.sha256(lock_file.read_bytes()).hexdigest()[:32]}-{LAYOUT}"
    kind = installed(home, lock)
    if kind == "cuda" or (kind == "cpu" and not cuda):
        say(f"libtorch is in {shown(home)} ({kind})")
        return
    arch = check_platform()
    home.mkdir(parents=True, exist_ok=True)
    with open(home / ".lock", "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if installed(home, lock) == ("cuda" if cuda else "cpu"):
            return  # another run did it while this one waited
        wheels = [w for w in read_lock(lock_file) if w.arch == arch and (cuda or w.kind == "cpu")]
        downloads, fresh = home / ".wheels", home / ".new"
        shutil.rmtree(fresh, ignore_errors=True)
        downloads.mkdir(exist_ok=True)
        fresh.mkdir()
        check_disk(home, wheels)
        say(f"installing libtorch into {shown(home)}: {len(wheels)} wheels, {megabytes(sum(w.size for w in wheels))}"
            + ("" if cuda else " (no NVIDIA driver here: without the CUDA libraries)"))
        index = Index(index_url)
        files = [local_copy(wheel, folders) or fetch(index, wheel, downloads) for wheel in wheels]
        for file in files:
            unpack(file, fresh, cuda)
        with contextlib.suppress(FileNotFoundError):
            (home / "stamp").unlink()
        for item in fresh.iterdir():
            old = home / item.name
            shutil.rmtree(old, ignore_errors=True)
            item.rename(old)
        write_stamp(home, f"{lock} {'cuda' if cuda else 'cpu'}\n")
        shutil.rmtree(downloads, ignore_errors=True)
        shutil.rmtree(fresh, ignore_errors=True)
    size = sum(f.stat().st_size for f in home.rglob("*") if f.is_file())
    say(f"libtorch {VERSIONS['cpu']['torch']} is ready in {shown(home)} ({megabytes(size)})")


def write_stamp(home: Path, text: str) -> None:
    temporary = home / "stamp.tmp"
    with open(temporary, "w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    temporary.rename(home / "stamp")


# --------------------------------------------------------------------------------------------- main


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count < 10e9 else f"{count / 1e9:.0f} GB"


def shown(path: Path) -> str:
    return os.path.relpath(path) if ROOT in path.parents else str(path)


def own_libtorch(home: Path) -> Optional[Path]:
    """The user's own libtorch, when LIBTORCH names one elsewhere than `home`."""
    named = os.environ.get("LIBTORCH")
    if not named or Path(named).resolve() == (home / "torch").resolve():
        return None
    if not (Path(named) / "lib/libtorch_cpu.so").exists():
        raise SetupError(f"LIBTORCH={named} has no lib/libtorch_cpu.so: correct it, or unset it to have libtorch installed here")
    return Path(named)


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(description="Install the pinned libtorch into .libtorch/.")
    parser.add_argument("--cuda", choices=("auto", "yes", "no"), default="auto", help="the CUDA libraries too; auto: when there is an NVIDIA driver")
    parser.add_argument("--wheels", metavar="DIR", type=Path, action="append", default=[], help="a folder to look for wheels in before the network")
    parser.add_argument("--into", metavar="DIR", type=Path, default=ROOT / ".libtorch", help="where to install (default: .libtorch of the project)")
    parser.add_argument("--lock", action="store_true", help="regenerate scripts/libtorch.lock and stop")
    options = parser.parse_args(arguments)
    try:
        index_url = pip_setting("index_url") or "https://pypi.org/simple"
        if options.lock:
            write_lock(LOCK_FILE, Index(index_url))
            return 0
        home = options.into.resolve()
        own = own_libtorch(home)
        if own:
            say(f"using LIBTORCH={own}: nothing to install")
            return 0
        for folder in options.wheels:
            if not folder.is_dir():
                raise SetupError(f"--wheels {folder}: no such folder")
        links = [Path(link) for link in (pip_setting("find_links") or "").split()]
        cuda = options.cuda == "yes" or (options.cuda == "auto" and has_nvidia_driver())
        install(home, LOCK_FILE, cuda, options.wheels + [link for link in links if link.is_dir()], index_url)
        return 0
    except SetupError as error:
        say(f"get_libtorch: {error}")
    except (OSError, zipfile.BadZipFile) as error:
        say(f"get_libtorch: {error}")
    except KeyboardInterrupt:
        say("\nget_libtorch: interrupted; run it again to go on where it stopped")
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
