"""What every comparison here shares: what ran where, and a record of it under benchmarks/runs/.

As a program: prints the Python that has the peers (transformers, bitsandbytes, Pillow), and installs it at first.
"""
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "benchmarks" / "runs"


def binary(name):
    """A release binary of this checkout."""
    path = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / name
    if not path.exists():
        sys.exit(f"{path} is not built: run `make build`")
    return path


def bench_program(name):
    """Builds the bench `name`; its path."""
    command = ["cargo", "bench", "--locked", "--bench", name, "--no-run", "--message-format", "json"]
    built = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("target", {}).get("name") == name and message.get("executable"):
            return message["executable"]
    sys.exit(f"cargo built no bench {name}")


def environment(python=None):
    """A virtual environment with tests/fixtures/requirements.txt: `python` if it is given, or one made under .cache/."""
    if python:
        return python
    folder = ROOT / ".cache" / "peers"
    found = folder / "bin" / "python"
    wanted = (ROOT / "tests" / "fixtures" / "requirements.txt").read_text()
    stamp = folder / "requirements.txt"
    if not (found.exists() and stamp.exists() and stamp.read_text() == wanted):
        print(f"installing transformers and what it needs into {folder} (3 GB, once)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([found, "-m", "pip", "install", "--quiet", "--no-deps", "--requirement",
                        ROOT / "tests" / "fixtures" / "requirements.txt"], check=True)
        stamp.write_text(wanted)
    return str(found)


def machine():
    """The processor, its usable cores, and the memory."""
    fields = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"processor": fields.get("model name", platform.machine()), "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(pages / 2**30, 1), "system": platform.platform()}


def git(*command):
    return subprocess.run(["git", "-C", ROOT, *command], capture_output=True, text=True).stdout.strip()


def median(values):
    return statistics.median(list(values))


def spread(values):
    """Minimum, median and maximum."""
    values = list(values)
    return {"min": min(values), "median": median(values), "max": max(values)}


def save(name, record):
    """Writes benchmarks/runs/NAME.json whole; returns its path."""
    changed = [line for line in git("status", "--porcelain", "--untracked-files=no").splitlines()
               if not line.endswith(".json")]
    record = {"what": name, "date": time.strftime("%Y-%m-%d"), "commit": git("rev-parse", "HEAD"),
              "uncommitted_changes": bool(changed),
              "command": "python3 benchmarks/" + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
              "machine": machine(), "load_average": os.getloadavg()[0], **record}
    RUNS.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=RUNS, suffix=".json", delete=False) as file:
        json.dump(record, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.chmod(file.name, 0o644)
    path = RUNS / f"{name}.json"
    os.replace(file.name, path)
    return path.relative_to(ROOT)


if __name__ == "__main__":
    print(environment())
