"""Builds the whole image from the sources, tests it, and records both: `make image-full`.

    python3 -B benchmarks/image_build.py [--tested NAME]    with --tested, an image that is there is recorded, not built

Compiles everything once more: 20 minutes of CPU, and twice that beside other work on two cores. ENGINE, BASES and CUDA are
those of scripts/build_image.sh.
"""
import argparse
import os
import resource
import subprocess
import sys
import time

import record

sys.path.insert(0, str(record.ROOT / "tests/image"))
import common  # noqa: E402


def cpu_seconds():
    """CPU time of all finished children; with docker, whose daemon builds, it says nothing."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tested", metavar="NAME", help="an image that is there already")
    options = parser.parse_args()
    image, built = options.tested, None
    if not image:
        image = os.environ.setdefault("IMAGE", "localhost/medvision:full")
        started, used = time.monotonic(), cpu_seconds()
        subprocess.run([record.ROOT / "scripts/build_image.sh", "full"], check=True)
        built = {"wall_seconds": round(time.monotonic() - started, 1),
                 "cpu_seconds": None if common.ENGINE == "docker" else round(cpu_seconds() - used, 1)}
    archive = common.Archive(image)
    layers = [{"made_by": step[:160], "megabytes": round(size, 1)} for size, step in archive.table()]
    archive.close()
    tests = subprocess.run([sys.executable, "-B", "-m", "unittest", "discover", "--verbose", "--start-directory",
                            record.ROOT / "tests/image"], env={**os.environ, "MVP_IMAGE": image}, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True)
    print(tests.stdout)
    version = subprocess.run([common.ENGINE, "--version"], stdout=subprocess.PIPE, text=True).stdout.strip()
    print(record.save("image-full" if built else "image", {
        "engine": version, "bases": os.environ.get("BASES", "registry"), "cuda": os.environ.get("CUDA", "no"),
        "build": built, "layers": layers, "tests_passed": tests.returncode == 0,
        "figures": [line for line in tests.stdout.splitlines() if "of CPU" in line or line.startswith("Ran ")]}))
    return tests.returncode


if __name__ == "__main__":
    sys.exit(main())
