"""The image under test, its layers, and containers of it.

Variables: ENGINE=docker|podman chooses the engine; BASES=emulated makes the base image here; MVP_IMAGE=name tests an image
that is there instead of building one.
"""

import ctypes
import fcntl
import json
import os
import pathlib
import re
import secrets
import socket
import struct
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = 300
API, PAGE = 8000, 7860
# As a hospital would: no writing, no capability, no new privileges, and the memory that the embedded model needs.
MEMORY = 512 << 20
STRICT = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "all", "--security-opt", "no-new-privileges", "--memory", MEMORY]
ENGINE = subprocess.run([ROOT / "scripts/container_engine.sh"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
LABEL = "medvision.test=" + secrets.token_hex(8)

if ENGINE != "docker" and not pathlib.Path("/run/systemd/system").exists():
    # As in most sandboxes; health checks are run by hand there.
    os.environ.setdefault("CONTAINERS_CONF", str(ROOT / "tests/image/containers.conf"))
    os.environ.setdefault("BUILDAH_ISOLATION", "chroot")
    STRICT += ["--health-interval", "disable"]


def engine(*command, check=True):
    """Runs the engine: what it printed, or without `check` the finished process."""
    words = [str(word) for word in [ENGINE, *command]]
    result = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    if not check:
        return result
    if result.returncode:
        raise AssertionError(f"{' '.join(words)}: {result.stderr}")
    return result.stdout


def build(image):
    """The last stage from target/dist; returns the seconds."""
    started = time.monotonic()
    subprocess.run([ROOT / "scripts/build_image.sh"], check=True, env={**os.environ, "IMAGE": image})
    return time.monotonic() - started


def eventually(what, condition):
    """Waits for a true value, and returns it."""
    end = time.monotonic() + PATIENCE
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"waited in vain: {what}")
        time.sleep(0.2)


class Archive:
    """An image as its engine saves it: configuration and layers."""

    def __init__(self, image):
        self.folder = tempfile.TemporaryDirectory()
        path = pathlib.Path(self.folder.name) / "image.tar"
        engine("save", "--output", path, image)
        self.archive = tarfile.open(path)
        manifest = json.load(self.archive.extractfile("manifest.json"))[0]
        self.image = json.load(self.archive.extractfile(manifest["Config"]))
        self.config = self.image["config"]
        self.names = manifest["Layers"]

    def close(self):
        self.archive.close()
        self.folder.cleanup()

    def layers(self):
        """What made each layer, its bytes, and itself."""
        made = [step["created_by"] for step in self.image["history"] if not step.get("empty_layer")]
        for step, name in zip(made, self.names):
            member = self.archive.getmember(name)
            if member.issym() or member.islnk():
                member = self.archive.getmember(os.path.normpath(os.path.join(os.path.dirname(name), member.linkname)))
            with tarfile.open(fileobj=self.archive.extractfile(member)) as layer:
                yield re.sub(r"^/bin/sh -c (#\(nop\) )?", "", step).strip(), member.size, layer

    def table(self):
        """Size by layer, MB."""
        rows = [(size / 1e6, step) for step, size, _ in self.layers()]
        return [*rows, (sum(size for size, _ in rows), "total")]


def own_loopback():
    """Moves this process into a network that has loopback alone, which containers then share; false where it may not."""
    CLONE_NEWNET = 0x40000000
    if ENGINE == "docker" or ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        return False
    SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(handle, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(handle, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))
    return True


class Container:
    """A running container, reachable on loopback only."""

    # Set by the module under test once it knows.
    shares_network = False

    def __init__(self, image, *flags, command=()):
        network = ["--network", "host"]
        if not self.shares_network:
            network = [word for port in (API, PAGE) for word in ("--publish", f"127.0.0.1:{port}:{port}")]
        self.id = engine("run", "--detach", "--label", LABEL, *network, *STRICT, *flags, image, *command).strip()
        eventually("the model is loaded", self.is_loaded)

    def is_loaded(self):
        if self.state()["Status"] == "exited":
            raise AssertionError("the container has ended: " + self.log())
        try:
            return json.loads(self.get("/health")[1])["model_loaded"]
        except (OSError, ValueError):
            return False

    def state(self):
        return json.loads(engine("inspect", "--format", "{{json .State}}", self.id))

    def log(self):
        result = engine("logs", self.id, check=False)
        return result.stdout + result.stderr

    def notices(self):
        """What the server told the person who started it."""
        return "\n".join(line for line in self.log().splitlines() if " INFO " not in line)

    def key(self):
        """The key that the server made and printed; empty if there is none."""
        found = re.search(r"#key=(\S+)", self.log())
        return found[1] if found else ""

    def get(self, path, port=API, key="", body=None, kind=None):
        """Status and body."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if kind:
            headers["Content-Type"] = kind
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def read(self, page, port=API, path="/extract"):
        """The answer for a page."""
        limit = secrets.token_hex(16)
        head = f'--{limit}\r\nContent-Disposition: form-data; name="file"; filename="page.png"\r\n\r\n'
        body = head.encode() + page.read_bytes() + f"\r\n--{limit}--\r\n".encode()
        status, text = self.get(path, port, self.key(), body, f"multipart/form-data; boundary={limit}")
        if status != 200:
            raise AssertionError(f"{path}: {status} {text}")
        return json.loads(text)

    def shell(self, script):
        """What a shell in the container prints."""
        return engine("exec", self.id, "sh", "-c", script)

    def processes(self):
        """Of each process name, state and CPU seconds."""
        found = re.findall(r"^\d+ \((.*)\) (\S) (.*)$", self.shell("cat /proc/[0-9]*/stat"), re.M)
        second = os.sysconf("SC_CLK_TCK")
        # User and system time are fields 14 and 15.
        return [(name, state, sum(map(int, rest.split()[10:12])) / second) for name, state, rest in found]

    def stop(self):
        """Exit code after SIGTERM."""
        engine("stop", "-t", PATIENCE // 2, self.id)
        return self.state()["ExitCode"]

    def remove(self):
        engine("rm", "--force", self.id)
