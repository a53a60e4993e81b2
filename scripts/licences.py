#!/usr/bin/env python3
"""Collect the licences of all crates that the programs are made of (Python 3.8+, standard library only).

    scripts/licences.py FILE        scripts/make_dist.py calls it, too

One file: which crate has which licence, then each distinct text once, with the crates that bring it. The texts are those that the
crates ship; a crate that ships none gets the text of its licence from one that does. Crates that only tests, benches or build
scripts use are not part of the programs. Rust's own library is: its notices come from the toolchain.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

ROOT = Path(__file__).resolve().parent.parent
TARGET = "x86_64-unknown-linux-gnu"
TEXTS = re.compile(r"(?i)(licen[cs]e|copying|notice|unlicense|copyright|authors)([-._].*)?$")
NOT_TEXT = (".rs", ".html", ".tmpl", ".json", ".toml")
RULE = "=" * 100
# Whose text stands for those who ship none.
STANDARD = {"MIT": "LICENSE-MIT", "Apache-2.0": "LICENSE-APACHE"}
# Asks for no notice.
PUBLIC_DOMAIN = {"CC0-1.0": "Dedicated to the public domain by CC0 1.0 Universal, https://creativecommons.org/publicdomain/zero/1.0/legalcode"}


class LicenceError(Exception):
    """What is missing, in one line."""


def metadata() -> Dict[str, Any]:
    cargo = os.environ.get("CARGO", "cargo")
    command = [cargo, "metadata", "--locked", "--format-version", "1", "--filter-platform", TARGET]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    if result.returncode:
        raise LicenceError(f"cargo metadata: {result.stderr.strip()}")
    return json.loads(result.stdout)


def linked(found: Dict[str, Any]) -> List[Dict[str, Any]]:
    """The packages that the programs are made of, but our own, by name and version."""
    nodes = {node["id"]: node for node in found["resolve"]["nodes"]}
    root = found["resolve"]["root"]
    seen, todo = {root}, [root]
    while todo:
        for dependency in nodes[todo.pop()]["deps"]:
            # Neither for tests ("dev") nor for build scripts ("build").
            normal = any(kind["kind"] is None for kind in dependency["dep_kinds"])
            if normal and dependency["pkg"] not in seen:
                seen.add(dependency["pkg"])
                todo.append(dependency["pkg"])
    packages = [package for package in found["packages"] if package["id"] in seen and package["id"] != root]
    return sorted(packages, key=lambda package: (package["name"], package["version"]))


def shipped(package: Dict[str, Any]) -> List[Tuple[str, str]]:
    """Name and text of each licence file that a crate ships."""
    folder = Path(package["manifest_path"]).parent
    files = {file for file in folder.iterdir() if TEXTS.match(file.name) and file.suffix not in NOT_TEXT}
    for name in ("LICENSES", "LICENSE", "licenses", "license"):
        files.update((folder / name).glob("*"))
    if package.get("license_file"):
        files.add(folder / package["license_file"])
    return [(file.name, file.read_text("utf-8", "replace")) for file in sorted(files) if file.is_file()]


def texts(package: Dict[str, Any], packages: Sequence[Dict[str, Any]] = ()) -> List[Tuple[str, str]]:
    """Name and text of each licence file of a crate: its own, else those of another crate of its repository, else the standard text."""
    found = shipped(package)
    for other in packages:
        same = package.get("repository") and other.get("repository") == package["repository"]
        if not found and same and other.get("license") == package.get("license"):
            found = shipped(other)
    if not found:
        for licence in re.split(r"\s*(?:/|\bOR\b|\bAND\b)\s*", package.get("license") or ""):
            if licence.strip("() ") in STANDARD:
                name = STANDARD[licence.strip("() ")]
                text = (ROOT / name).read_text("utf-8")
                found.append((name, re.sub(r"(?m)^Copyright .*\n", f"Copyright the authors of {package['name']}\n", text, 1)))
    if not found and package.get("license") in PUBLIC_DOMAIN:
        found.append((package["license"], PUBLIC_DOMAIN[package["license"]]))
    if not found:
        raise LicenceError(f"{package['name']} {package['version']} ships no licence, and {package.get('license')} has no text here")
    return found


def normalised(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def document(packages: List[Dict[str, Any]]) -> str:
    lines = ["The programs contain these crates, from https://crates.io, where the source of each is:", ""]
    by_text: Dict[str, List[str]] = {}
    for package in packages:
        name = f"{package['name']} {package['version']}"
        lines.append(f"{name}: {package['license']}" + (f", {package['repository']}" if package.get("repository") else ""))
        for _, text in texts(package, packages):
            crates = by_text.setdefault(normalised(text), [])
            if name not in crates:
                crates.append(name)
    lines += ["", "Their licences:"]
    for text, crates in sorted(by_text.items(), key=lambda entry: entry[1]):
        lines += ["", RULE, ", ".join(crates), RULE, "", text]
    return "\n".join(lines) + "\n"


def rust_notices(folder: Path) -> None:
    """The notices of Rust's library, where the toolchain has them; rustup's minimal profile does."""
    rustc = os.environ.get("RUSTC", "rustc")
    sysroot = subprocess.run([rustc, "--print", "sysroot"], cwd=ROOT, stdout=subprocess.PIPE, universal_newlines=True)
    notices = Path(sysroot.stdout.strip()) / "share/doc/rust/COPYRIGHT-library.html"
    if sysroot.returncode == 0 and notices.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "RUST-LIBRARY.html").write_bytes(notices.read_bytes())


def collect(folder: Path) -> None:
    """Write CRATES.txt, and RUST-LIBRARY.html, into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "CRATES.txt").write_text(document(linked(metadata())), "utf-8")
    rust_notices(folder)


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        Path(sys.argv[1]).write_text(document(linked(metadata())), "utf-8")
    except (LicenceError, OSError) as error:
        print(f"licences: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
