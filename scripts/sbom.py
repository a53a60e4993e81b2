#!/usr/bin/env python3
"""Write the bill of materials of a folder of `make dist`, in CycloneDX 1.5 (Python 3.8+, standard library only).

    scripts/sbom.py target/dist FILE

cargo-cyclonedx lists the crates, from Cargo.lock; this adds what is not cargo's (libtorch, the libraries beside it, the embedded
model and its adapter, with the SHA-256 of each file) and takes out the paths of this machine. The same commit gives the same file.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

import licences
import reproducible

ROOT = licences.ROOT
OWN = "medical-vision-pipeline"
LICENCES = {"torch": "BSD-3-Clause"}
# Of the GNU compiler: libtorch's wheel brings it.
SYSTEM = {"libgomp": ("libgomp", "GPL-3.0-or-later WITH GCC-exception-3.1")}


class SbomError(Exception):
    """What is missing, in one line."""


def tool() -> str:
    """cargo-cyclonedx: `make release` installs the pinned one."""
    own = ROOT / ".cache/tools/bin/cargo-cyclonedx"
    return str(own) if own.exists() else os.environ.get("CARGO_CYCLONEDX", "cargo-cyclonedx")


def crates(epoch: int) -> Dict[str, Any]:
    """What cargo-cyclonedx writes, which is always into the package's folder."""
    name = f"sbom-{os.getpid()}"
    command = [tool(), "cyclonedx", "-qq", "--format", "json", "--spec-version", "1.5", "--no-build-deps"]
    command += ["--target", licences.TARGET, "--override-filename", name]
    made = ROOT / f"{name}.json"
    try:
        # With a date it leaves out the random serial number, too.
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}
        result = subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, universal_newlines=True)
        if result.returncode:
            raise SbomError(f"cargo cyclonedx: {result.stderr.strip()}")
        text = made.read_text("utf-8")
    except FileNotFoundError as error:
        raise SbomError(f"{command[0]} is missing: `make release` installs it") from error
    finally:
        if made.exists():
            made.unlink()
    # Of our own package, whose identity would be the path of the checkout.
    text = re.sub(r"path\+file://[^\"# ]*#(?:[\w-]+@)?([\d.]+)", rf"{OWN}@\1", text)
    return json.loads(text.replace("?download_url=file://.", ""))


def file_component(file: Path, name: str) -> Dict[str, Any]:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": [{"alg": "SHA-256", "content": digest}]}


def wheel_of(library: str, packages: List[str]) -> Optional[str]:
    """The wheel that a library comes from, as "NAME-VERSION"."""
    own = dict.fromkeys(("libtorch", "libc10", "libcaffe2", "libgomp"), "torch")
    stems = {"libcudart": "nvidia_cuda_runtime", "libcupti": "nvidia_cuda_cupti", **own}
    for start, stem in stems.items():
        if library.startswith(start):
            return next((package for package in packages if package.startswith(f"{stem}-")), None)
    # libcublas.so.13 of nvidia_cublas-13.1.0.3, and the like.
    core = re.sub(r"^lib|[-_.].*$", "", library).lower()
    fit = [package for part in (core, core[:5]) for package in packages if part and part in package.lower()]
    return fit[0] if fit else None


def libraries(dist: Path) -> List[Dict[str, Any]]:
    """A component for each wheel that libtorch was installed from, with its files."""
    packages = sorted(folder.name[: -len(".dist-info")] for folder in (dist / "licences").glob("*.dist-info"))
    found: Dict[str, Dict[str, Any]] = {}
    for package in packages:
        name, version = package.rsplit("-", 1)
        name = name.replace("_", "-")
        purl = f"pkg:pypi/{name}@{version}"
        component: Dict[str, Any] = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl, "components": []}
        licence = {"id": LICENCES[name]} if name in LICENCES else {"name": f"licences/{package}.dist-info"}
        component["licenses"] = [{"license": licence}]
        found[package] = component
    for file in sorted((dist / "lib").iterdir()):
        part = file_component(file, f"lib/{file.name}")
        for start, (_, licence) in SYSTEM.items():
            if file.name.startswith(start):
                part["licenses"] = [{"expression": licence}]
        wheel = wheel_of(file.name, packages)
        if wheel is None:
            raise SbomError(f"{file}: of which wheel is it? wheel_of in scripts/sbom.py does not know")
        found[wheel]["components"].append(part)
    return list(found.values())


def models(dist: Path) -> List[Dict[str, Any]]:
    folder = dist / "share/medvision/models"
    found = []
    for model in sorted(folder.iterdir()):
        files = [file_component(file, f"share/medvision/models/{model.name}/{file.name}") for file in sorted(model.iterdir())]
        licence = [{"expression": "MIT OR Apache-2.0"}]
        found.append({"type": "machine-learning-model", "bom-ref": f"model:{model.name}", "name": model.name, "licenses": licence, "components": files})
    return found


def document(dist: Path) -> str:
    bom = crates(reproducible.commit_time(ROOT))
    others = libraries(dist) + models(dist)
    own = bom["metadata"]["component"]["bom-ref"]
    bom["components"] += others
    for dependency in bom["dependencies"]:
        if dependency["ref"] == own:
            dependency["dependsOn"] = sorted(dependency.get("dependsOn", []) + [other["bom-ref"] for other in others])
    bom["metadata"]["properties"] = [{"name": "medvision:commit", "value": reproducible.commit(ROOT)}]
    return json.dumps(bom, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        Path(sys.argv[2]).write_text(document(Path(sys.argv[1])), "utf-8")
    except (SbomError, OSError) as error:
        print(f"sbom: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
