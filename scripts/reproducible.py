#!/usr/bin/env python3
"""Build programs whose bytes depend on the commit alone, not on the folders of this machine (Python 3.8+, standard library only).

    scripts/reproducible.py build       into target/reproducible; `make release` runs it (everything is compiled once more)
    scripts/reproducible.py check       builds HEAD in two clones and compares the programs; `make release-check` runs it

Paths of the sources, of cargo's home, of libtorch and of the target folder are replaced by names. Clocks play no part: what asks for
the time while it is compiled gets a fixed one. The programs find their libraries in ../lib alone, so that they run from an
installation (scripts/make_dist.py), not from where they were built. Rust's version is that of rust-toolchain.toml, libtorch's that of
scripts/libtorch.lock; the C++ compiler's is this machine's and decides, too: compare builds of one Debian release.
"""

import argparse
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Tuple

ROOT = Path(__file__).resolve().parent.parent
# 1980-01-01, the first day that every archive format knows. The commit's date would leave stale dates in what cargo does not compile again.
COMPILED_AT = "315532800"
# What would change the programs; CARGO_PROFILE_* does, too.
CLEARED = ("RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS", "CARGO_INCREMENTAL", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "LIBRARY_PATH", "CPATH")
CLEARED_PREFIXES = ("CARGO_PROFILE_", "CARGO_TARGET_X86_64", "MEDVISION_")


def commit(root: Path) -> str:
    """The name of the commit, as build.rs asks for it."""
    describe = ["git", "-C", str(root), "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    found = subprocess.run(describe, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True)
    return found.stdout.strip() if found.returncode == 0 else "unknown"


def commit_time(root: Path) -> int:
    """Seconds since 1970, of $SOURCE_DATE_EPOCH, else of the commit."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given:
        return int(given)
    show = ["git", "-C", str(root), "log", "-1", "--format=%ct"]
    found = subprocess.run(show, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True)
    return int(found.stdout) if found.returncode == 0 else int(COMPILED_AT)


def names(root: Path, target: Path, cargo_home: Path, libtorch: Path) -> List[Tuple[Path, str]]:
    """Folders of this machine and what the programs call them; of several that fit, the last one counts, with rustc as with GCC."""
    # What cargo calls the registry's folder depends on where it got the crates from.
    crates = [(folder, "/crates") for folder in sorted((cargo_home / "registry/src").glob("*"))]
    torch = [(path, "/libtorch") for path in (root / ".libtorch/torch", libtorch, libtorch.resolve())]
    return [(cargo_home, "/cargo"), *crates, (root, "/medvision"), (target, "/target"), *torch]


def environment(base: Mapping[str, str], root: Path, target: Path) -> Dict[str, str]:
    """`base` as the compilers need it."""
    variables = {
        name: value for name, value in base.items() if name not in CLEARED and not name.startswith(CLEARED_PREFIXES)
    }
    cargo_home = Path(base.get("CARGO_HOME") or Path.home() / ".cargo")
    libtorch = Path(base.get("LIBTORCH") or root / ".libtorch/torch")
    renamed = names(root, target, cargo_home, libtorch)
    prefixes = [shlex.quote(f"-ffile-prefix-map={folder}={name}") for folder, name in renamed]
    variables.update(
        CARGO_ENCODED_RUSTFLAGS="\x1f".join(f"--remap-path-prefix={folder}={name}" for folder, name in renamed),
        CARGO_INCREMENTAL="0",
        CARGO_TARGET_DIR=str(target),
        CC_SHELL_ESCAPED_FLAGS="1",
        CFLAGS=" ".join(prefixes),
        CXXFLAGS=" ".join(prefixes),
        LC_ALL="C",
        LIBTORCH=str(libtorch),
        MEDVISION_GIT_HASH=commit(root),
        MEDVISION_RELOCATABLE="1",
        SOURCE_DATE_EPOCH=COMPILED_AT,
        TZ="UTC",
        ZERO_AR_DATE="1",
    )
    return variables


def build(root: Path, target: Path, cargo: str) -> None:
    # The registry's folder exists once the crates are there.
    subprocess.run([cargo, "fetch", "--locked", "--quiet"], cwd=root, check=True)
    subprocess.run([cargo, "build", "--release", "--locked"], cwd=root, env=environment(os.environ, root, target), check=True)


def programs(target: Path) -> Dict[str, str]:
    """SHA-256 by name."""
    files = [file for file in (target / "release").iterdir() if file.is_file() and os.access(file, os.X_OK)]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def check(cargo: str, libtorch: Path, work: Optional[Path]) -> bool:
    """Builds HEAD twice, in folders whose names differ in length, too."""
    top = Path(tempfile.mkdtemp(prefix="release-check.", dir=work))
    os.environ["LIBTORCH"] = str(libtorch.absolute())
    found = []
    try:
        for place in ("one", "another/place"):
            clone = top / place
            subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)], check=True)
            build(clone, clone / "target", cargo)
            found.append(programs(clone / "target"))
    finally:
        shutil.rmtree(top, ignore_errors=True)
    one, other = found
    differ = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    for name in sorted({*one, *other}):
        print(f"{'differs' if name in differ else 'same'}  {one.get(name)}  {name}")
    return not differ


def main() -> int:
    parser = argparse.ArgumentParser(description="Build programs whose bytes depend on the commit alone.")
    parser.add_argument("what", choices=["build", "check"])
    parser.add_argument("--target", type=Path, default=ROOT / "target/reproducible", help="folder to build in")
    parser.add_argument("--work", type=Path, help="folder for the clones of `check` (4 GB) [default: the system's temporary one]")
    options = parser.parse_args()
    cargo = os.environ.get("CARGO", "cargo")
    try:
        if options.what == "build":
            build(ROOT, options.target.absolute(), cargo)
        elif not check(cargo, Path(os.environ.get("LIBTORCH", ROOT / ".libtorch/torch")), options.work):
            print("reproducible: two builds of one commit differ", file=sys.stderr)
            return 1
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"reproducible: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
