#!/usr/bin/env python3
"""Pack a folder of `make dist` into the archives of a release (Python 3.8+, standard library only).

    scripts/make_release.py --dist target/dist target/release-files        `make release` runs it

    medvision-VERSION-x86_64-linux.tar.gz            one folder that runs where it is unpacked:
        bin/ lib/ licences/ share/medvision/models/      as scripts/make_dist.py made them
        share/man/man1/                                  manual pages; `man server` finds them once bin/ is in PATH
        completions/                                     medvision.bash, medvision.zsh, medvision.fish: source one
        sbom.cdx.json                                    bill of materials, CycloneDX
        README.md CHANGELOG.md SHA256SUMS
    medvision-VERSION-x86_64-linux-symbols.tar.gz    symbols of its programs, for gdb and addr2line
    SHA256SUMS                                       of both

The same programs give the same bytes: names are sorted, owner and rights fixed, dates those of the commit.
"""

import argparse
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import List

import reproducible
import sbom

ROOT = Path(__file__).resolve().parent.parent
SHELLS = ("bash", "zsh", "fish")
DOCUMENTS = ("README.md", "CHANGELOG.md")


class ReleaseError(Exception):
    """What is missing and what to do, in one line."""


def version() -> str:
    return re.search(r'(?m)^version = "(.+)"', (ROOT / "Cargo.toml").read_text("utf-8"))[1]


def ask(dist: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Runs the medvision that is packed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MVP_", "LD_"))}
    command = [str(dist / "bin/medvision"), *arguments]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)


def printed(dist: Path, *arguments: str) -> str:
    result = ask(dist, *arguments)
    if result.returncode or not result.stdout:
        raise ReleaseError(f"medvision {' '.join(arguments)}: {result.stderr.strip()}")
    return result.stdout


def manual_pages(dist: Path) -> List[str]:
    """Names of all pages: the program tells them where it is asked for one that it does not have."""
    choices = ask(dist, "man", "?").stderr.rpartition("choose one of: ")[2]
    if not choices.strip():
        raise ReleaseError("medvision man tells no names of pages: this is a build that only reads pages")
    return sorted(choices.strip().split(", "))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def digest(file: Path) -> str:
    found = hashlib.sha256()
    with open(file, "rb") as opened:
        for chunk in iter(lambda: opened.read(1 << 20), b""):
            found.update(chunk)
    return found.hexdigest()


def write_sums(folder: Path) -> None:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "SHA256SUMS")
    write(folder / "SHA256SUMS", "".join(f"{digest(file)}  {file.relative_to(folder).as_posix()}\n" for file in files))


def complete(dist: Path, folder: Path, with_sbom: bool) -> None:
    """Links what `dist` has into `folder` and adds the rest."""
    shutil.copytree(dist, folder, copy_function=os.link)
    for page in manual_pages(dist):
        write(folder / f"share/man/man1/{page}.1", printed(dist, "man", page))
    for shell in SHELLS:
        write(folder / f"completions/medvision.{shell}", printed(dist, "completions", shell))
    for name in DOCUMENTS:
        write(folder / name, (ROOT / name).read_text("utf-8"))
    if with_sbom:
        write(folder / "sbom.cdx.json", sbom.document(dist))
    write_sums(folder)


def pack(folder: Path, archive: Path, epoch: int, level: int) -> None:
    """A tar archive of a folder under its own name, through gzip, which every system has; appears complete or not at all."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mtime = epoch
        runs = member.isdir() or re.search(r"(^|/)bin/[^/]+$", member.name)
        member.mode = 0o755 if runs else 0o644
        return member

    part = archive.with_name(archive.name + ".part")
    with open(part, "wb") as raw, gzip.GzipFile("", "wb", level, raw, mtime=epoch) as compressed:
        with tarfile.open(fileobj=compressed, mode="w", format=tarfile.GNU_FORMAT) as out:
            for path in [folder, *sorted(folder.rglob("*"))]:
                # Links of one file would be links in the archive, too.
                out.inodes.clear()
                out.add(str(path), str(path.relative_to(folder.parent)), recursive=False, filter=plain)
    os.replace(part, archive)


def make(dist: Path, out: Path, with_sbom: bool, level: int) -> List[Path]:
    symbols = dist.with_name(dist.name + "-symbols")
    for folder in (dist / "bin", symbols):
        if not folder.is_dir():
            raise ReleaseError(f"{folder} is missing: run `make dist`")
    name = f"medvision-{version()}-x86_64-linux"
    epoch = reproducible.commit_time(ROOT)
    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob("medvision-*.tar.gz*"), out / "SHA256SUMS"]:
        if old.exists():
            old.unlink()
    # On one file system with `dist`, whose files are linked.
    with tempfile.TemporaryDirectory(prefix="release-", dir=dist.parent) as work:
        folder, apart = Path(work, name), Path(work, name + "-symbols")
        complete(dist, folder, with_sbom)
        shutil.copytree(symbols, apart, copy_function=os.link)
        archives = [out / f"{name}.tar.gz", out / f"{name}-symbols.tar.gz"]
        pack(folder, archives[0], epoch, level)
        pack(apart, archives[1], epoch, level)
    write_sums(out)
    return archives


def main() -> int:
    parser = argparse.ArgumentParser(description="Pack a folder of `make dist` into the archives of a release.")
    parser.add_argument("out", type=Path, help="folder of the archives")
    parser.add_argument("--dist", type=Path, default=ROOT / "target/dist", help="folder that scripts/make_dist.py made")
    parser.add_argument("--level", type=int, default=9, help="gzip's level; a release has 9")
    parser.add_argument("--without-sbom", action="store_true", help="for a quick test")
    options = parser.parse_args()
    try:
        archives = make(options.dist.absolute(), options.out.absolute(), not options.without_sbom, options.level)
    except (ReleaseError, sbom.SbomError, OSError) as error:
        print(f"make_release: {error}", file=sys.stderr)
        return 1
    for archive in archives:
        print(f"{archive}: {archive.stat().st_size / 1e6:.0f} MB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
