#!/usr/bin/env python3
"""Lay out what a user gets: programs, the libraries they load, the embedded model, licences (Python 3.8+, standard library only).

    scripts/make_dist.py target/dist        after `make build`; `make dist` runs it

    bin/        programs without symbols; their only library path is $ORIGIN/../lib, so that the folder runs from anywhere
    lib/        libtorch's libraries that the programs load, and no others; with libtorch's CUDA part those that it loads
    licences/   of the program, of the crates that it is made of (scripts/licences.py), and of the libraries
    share/medvision/models/     the embedded model and its adapter, where the programs find them

Symbols go into target/dist-symbols beside it, one file a program: `gdb` and `addr2line` find them by the name that the
program carries. objcopy, readelf and strip (Debian's binutils) are needed; patchelf is the pinned one of
scripts/tools.lock unless PATH has one.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterable, List, Optional

import licences

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("qwen25-vl-nano", "qwen25-vl-nano-medical-lora")
# Loaded by name while the programs run, so that no library lists them: libtorch's CUDA part (src/device/cuda.rs), NVIDIA's
# compiler and what it loads itself (src/kernels/cuda/compiler.rs), libtorch's door to that compiler. What is left out: the
# parts of cuDNN (convolutions, recurrent networks) and cuSOLVER with libtorch's linear algebra, none of which a model
# here computes; other transports of NVSHMEM; profilers. 0.7 GB of 3.5.
LOADED_BY_NAME = ("libtorch_cuda.so", "libcaffe2_nvrtc.so", "libnvrtc.so.", "libnvrtc-builtins.so.")


class DistError(Exception):
    """What is missing and what to do, in one line."""


def run(*command: object) -> str:
    words = [str(word) for word in command]
    result = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    if result.returncode:
        raise DistError(f"{' '.join(words)}: {result.stderr.strip()}")
    return result.stdout


def patchelf() -> Path:
    found = shutil.which("patchelf")
    own = ROOT / ".cache/tools/bin/patchelf"
    if not found and not own.exists():
        run(sys.executable, "-B", ROOT / "scripts/get_tool.py", "patchelf", own)
    return Path(found) if found else own


def libraries(libtorch: Path) -> Dict[str, Path]:
    """All shared libraries of the installation, by name."""
    folders = [libtorch / "lib", *sorted(libtorch.parent.glob("nvidia/*/lib"))]
    return {file.name: file for folder in reversed(folders) for file in sorted(folder.glob("*.so*"))}


def needed(elf: Path) -> List[str]:
    return re.findall(r"\(NEEDED\).*\[(.+)\]", run("readelf", "--dynamic", elf))


def closure(roots: Iterable[Path], there: Dict[str, Path]) -> List[Path]:
    """The libraries of `there` that `roots` load, directly or not; what is not there is the system's."""
    found: Dict[str, Path] = {}
    todo = list(roots)
    while todo:
        for name in needed(todo.pop()):
            if name in there and name not in found:
                found[name] = there[name]
                todo.append(there[name])
    return sorted(found.values())


def programs(folder: Path) -> List[Path]:
    if not (folder / "medvision").is_file():
        raise DistError(f"{folder}/medvision is not built: run `make build`")
    return sorted(file for file in folder.iterdir() if file.is_file() and not file.is_symlink() and os.access(file, os.X_OK))


def install_program(source: Path, folder: Path, symbols: Path) -> None:
    """Symbols apart, then the library path: patchelf goes last, since strip may undo what it moves."""
    target, apart = folder / source.name, symbols / f"{source.name}.debug"
    run("objcopy", "--only-keep-debug", "--compress-debug-sections", source, apart)
    run("strip", "--strip-all", "-o", target, source)
    run("objcopy", f"--add-gnu-debuglink={apart}", target)
    run(patchelf(), "--set-rpath", "$ORIGIN/../lib", target)
    target.chmod(0o755)
    apart.chmod(0o644)


def install_library(source: Path, target: Path) -> None:
    """As its maker built it, unless it also searches elsewhere than around itself (an empty entry is the current folder)."""
    copy(source, target)
    found = re.search(r"\(R(?:UN)?PATH\).*\[(.*)\]", run("readelf", "--dynamic", source))
    if found and not all(re.match(r"\$(ORIGIN|\{ORIGIN\})(/|$)", place) for place in found[1].split(":")):
        run(patchelf(), "--set-rpath", "$ORIGIN", target)


def copy(source: Path, target: Path) -> None:
    """A plain copy with the usual rights, whatever the umask of the checkout was."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o644)


def make(out: Path, built: Path, libtorch: Path) -> None:
    there = libraries(libtorch)
    if "libtorch_cpu.so" not in there:
        raise DistError(f"no libtorch in {libtorch}: run `make setup`")
    symbols = out.with_name(out.name + "-symbols")
    for folder in (out, symbols):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in (out / "bin", out / "lib", symbols):
        folder.mkdir(parents=True)
    for program in programs(built):
        install_program(program, out / "bin", symbols)
    by_name = [file for name, file in there.items() if name.startswith(LOADED_BY_NAME)] if "libtorch_cuda.so" in there else []
    for library in {*closure([built / "medvision", *by_name], there), *by_name}:
        install_library(library, out / "lib" / library.name)
    for licence in sorted(libtorch.parent.glob("*.dist-info/**/*")):
        if licence.is_file():
            copy(licence, out / "licences" / licence.relative_to(libtorch.parent))
    for licence in ROOT.glob("LICENSE-*"):
        copy(licence, out / "licences" / licence.name)
    fonts = ROOT / "assets/fonts"
    for licence in (fonts / "LICENSE", *sorted((fonts / "clinical/licences").iterdir())):
        copy(licence, out / "licences/fonts" / licence.name)
    licences.collect(out / "licences")
    for model in MODELS:
        for file in sorted((ROOT / "models" / model).iterdir()):
            # The record of an evaluation on this machine is not part of the adapter.
            if file.name != "medvision_evaluation.json":
                copy(file, out / "share/medvision/models" / model / file.name)
    for folder in [out, *(path for path in out.rglob("*") if path.is_dir())]:
        folder.chmod(0o755)


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(description="Lay out programs, libraries, model and licences in a folder.")
    parser.add_argument("out", type=Path, help="folder to make; it is replaced")
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    parser.add_argument("--bin", type=Path, default=target / "release", help="folder of the built programs")
    libtorch = Path(os.environ.get("LIBTORCH", ROOT / ".libtorch/torch"))
    parser.add_argument("--libtorch", type=Path, default=libtorch, help="libtorch's folder")
    options = parser.parse_args(arguments)
    try:
        make(options.out.absolute(), options.bin, options.libtorch)
    except (DistError, licences.LicenceError, OSError) as error:
        print(f"make_dist: {error}", file=sys.stderr)
        return 1
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    print(f"{options.out}: {size / 1e6:.0f} MB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
