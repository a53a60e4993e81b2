"""The files of deploy/ and the programs that check them."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
BIN = pathlib.Path(os.environ.get("MVP_BIN", ROOT / "target/release"))
# Programs of Debian's packages, unpacked by `make deploy-test`; without it those in PATH.
DEBIAN = ROOT / ".cache/deploy/debian"
# Programs of tests/deploy/requirements.txt.
PYTHON_BIN = pathlib.Path(sys.executable).parent
OVERLAYS = ["cpu", "gpu", "autoscale"]
PATIENCE = 60


def tool(name):
    """Path of a program."""
    for folder in (PYTHON_BIN, DEBIAN / "usr/bin", DEBIAN / "usr/sbin"):
        if (folder / name).exists():
            return str(folder / name)
    found = shutil.which(name)
    if found is None:
        raise AssertionError(f"{name} is missing: run make deploy-test")
    return found


def run(*command, **options):
    """Standard output of a program that must succeed."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise AssertionError(f"{command} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def kubectls():
    """Debian's kubectl, and the one in PATH where that is another."""
    found = [DEBIAN / "usr/bin/kubectl", shutil.which("kubectl")]
    return [str(path) for path in found if path and pathlib.Path(path).exists()]


def rendered(folder, kubectl=None):
    """The objects that kustomize makes of a folder below deploy/kubernetes."""
    text = run(kubectl or kubectls()[0], "kustomize", DEPLOY / "kubernetes" / folder)
    return [document for document in yaml.safe_load_all(text) if document]


def overlay(name):
    return rendered(f"overlays/{name}")


def one(objects, kind):
    """The only object of a kind."""
    found = [object for object in objects if object["kind"] == kind]
    if len(found) != 1:
        raise AssertionError(f"{len(found)} objects of kind {kind}")
    return found[0]


def server_container(deployment):
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return container


def variables(container):
    """Environment of a container, by name."""
    return {entry["name"]: entry["value"] for entry in container["env"]}


def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def seconds(text):
    """Seconds of `90s` or `2m`."""
    number, unit = re.fullmatch(r"(\d+)([sm])", text).groups()
    return int(number) * {"s": 1, "m": 60}[unit]


def program_help(*command):
    """The help of a program or subcommand of this project; empty where there is none."""
    program, *subcommand = command
    if not (BIN / program).exists():
        raise AssertionError(f"{BIN / program} is missing: run make build, or set MVP_BIN")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MVP_")}
    done = subprocess.run([str(BIN / program), *subcommand, "--help"], capture_output=True, text=True, env=environment)
    usage = " ".join(["Usage:", program, *subcommand])
    return done.stdout if done.returncode == 0 and usage in done.stdout else ""


def metrics():
    """deploy/metrics.txt: name to type and labels."""
    found = {}
    for line in (DEPLOY / "metrics.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, kind, *labels = line.split()
            found[name] = (kind, labels[0].split(",") if labels else [])
    return found


def files():
    """The text files of deploy/, without secrets that lie there."""
    found = [path for path in DEPLOY.rglob("*") if path.is_file() and path.relative_to(DEPLOY).parts[0] != "secrets"]
    return sorted(found)
