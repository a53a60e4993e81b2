#!/usr/bin/env python3
"""Prepares all MTSamples pages with `prepare_training_data` and with Pillow, in turn on the same cores, and writes what it took.

    python3 benchmarks/compare_pil.py --source ../shared/data/mtsamples.jsonl.gz [--rounds 3] [--cores 2]

Needs Pillow (with Raqm), Debian's fonts-dejavu-core, and the release binaries in target/release. Ours does the whole preparation:
reads the raw dataset, hashes, draws each different page once, forces all to the disk, splits, writes the lists. Pillow only draws
and saves the same pages, in as many processes as there are cores, twice: as the original project did (RGB, default compression)
and at its fastest (grey, compression level 1). The pages of both are compared pixel by pixel before anything is written.
"""

import argparse
import gzip
import hashlib
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFont, features

sys.dont_write_bytecode = True
import record

FONT = "/usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf"
RENDERING_VERSION = 1
_font = None


def page_name(text: str) -> str:
    return "mt_" + hashlib.sha256(RENDERING_VERSION.to_bytes(4, "little") + text.encode()).hexdigest()[:16] + ".png"


def draw(job: tuple[str, str, str, dict]) -> None:
    global _font
    text, path, mode, options = job
    _font = _font or ImageFont.truetype(FONT, 12)
    lines: list[str] = []
    for paragraph in text.split("\n"):
        lines.extend(textwrap.wrap(paragraph, width=80) or [""])
    lines = lines[:50]
    page = Image.new(mode, (800, max(400, min(1200, 60 + 18 * len(lines)))), "white")
    pen = ImageDraw.Draw(page)
    for row, line in enumerate(lines):
        pen.text((30, 30 + 18 * row), line, font=_font, fill="black")
    page.save(path, "PNG", **options)


def with_pillow(texts: list[str], folder: Path, cores: int, mode: str, options: dict) -> float:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    start = time.monotonic()
    jobs = ((text, str(folder / page_name(text)), mode, options) for text in texts)
    with multiprocessing.Pool(cores) as pool:
        for _ in pool.imap_unordered(draw, jobs, chunksize=16):
            pass
    return time.monotonic() - start


def with_ours(root: Path, cores: int) -> float:
    shutil.rmtree(root / "datasets/formatted", ignore_errors=True)
    start = time.monotonic()
    command = [record.binary("prepare_training_data"), "--root", root, "--threads", str(cores), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def compare(ours: Path, pillow: Path) -> dict:
    names = {path.name for path in ours.iterdir()}
    if names != {path.name for path in pillow.iterdir()}:
        sys.exit("the two did not draw the same pages")
    worst = 0
    for name in names:
        with Image.open(ours / name) as a, Image.open(pillow / name) as b:
            if a.size != b.size:
                sys.exit(f"{name}: {a.size} and {b.size}")
            worst = max(worst, ImageChops.difference(a.convert("L"), b.convert("L")).getextrema()[1])
    return {"pages": len(names), "largest_difference_of_255": worst}


def megabytes(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.iterdir()) / 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=record.ROOT.parent / "shared/data/mtsamples.jsonl.gz", help="mtsamples.jsonl.gz")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    if not arguments.source.exists():
        sys.exit(f"{arguments.source} is not there: name a copy of mtsamples.jsonl.gz with --source")
    with gzip.open(arguments.source, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["transcription"] or "" for line in lines]
    texts = [text for text in dict.fromkeys(text[:2000] for text in texts if len(text.strip()) >= 50)]
    ways = {"rgb_default": ("RGB", {}), "grey_level_1": ("L", {"compress_level": 1})}
    seconds: dict[str, list[float]] = {"ours": [], **{way: [] for way in ways}}
    with tempfile.TemporaryDirectory(prefix="prepare-") as folder:
        root = Path(folder)
        download = [record.binary("download_datasets"), "--root", root, "--dataset", "mtsamples"]
        subprocess.run([*download, "--source", f"mtsamples={arguments.source}"], check=True)
        pages = {"ours": root / "datasets/formatted/images", **{way: root / way for way in ways}}
        for _ in range(arguments.rounds):
            seconds["ours"].append(with_ours(root, arguments.cores))
            for way, (mode, options) in ways.items():
                seconds[way].append(with_pillow(texts, pages[way], arguments.cores, mode, options))
        same = compare(pages["ours"], pages["rgb_default"])
        sizes = {way: megabytes(folder) for way, folder in pages.items()}
    median = {way: statistics.median(times) for way, times in seconds.items()}
    made = {
        "what": "all different MTSamples pages: prepare_training_data (everything it does) against Pillow (drawing and saving)",
        "cores_used": arguments.cores,
        "versions": {"pillow": features.version("pil"), "freetype": features.version("freetype2"),
                     "python": platform.python_version()},
        **same, "megabytes": sizes,
        "seconds": {way: [round(one, 2) for one in times] for way, times in seconds.items()},
        "median_seconds": {way: round(one, 2) for way, one in median.items()},
        "times_as_fast_as_pillow": round(median["rgb_default"] / median["ours"], 2),
        "times_as_fast_as_pillow_at_its_fastest": round(median["grey_level_1"] / median["ours"], 2),
    }
    print(json.dumps(made, indent=1))
    print(f"written: {record.save('prepare_vs_pillow', made)}")


if __name__ == "__main__":
    main()
