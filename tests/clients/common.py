"""The shipped server with the embedded model, and pages to send to it."""

import base64
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("MVP_BIN", ROOT / "target/release"))
MODEL = ROOT / "models/qwen25-vl-nano"
PAGES = ROOT / "tests/fixtures/pages"
PATIENCE = 300
# A busy machine must not let a request or the end come too late.
PATIENT = ["--queue-deadline-seconds", "3600", "--generation-deadline-seconds", "3600"]


def golden(file):
    """The entry of a page in tests/fixtures/pages.json: its prompt and its text."""
    pages = json.loads((ROOT / "tests/fixtures/pages.json").read_text())["pages"]
    return next(page for page in pages if page["file"] == file)


def data_uri(file):
    return "data:image/png;base64," + base64.b64encode((PAGES / file).read_bytes()).decode()


def user(*parts):
    """A message of the user: names of pages, and texts."""
    content = []
    for part in parts:
        if part.endswith(".png"):
            content.append({"type": "image_url", "image_url": {"url": data_uri(part)}})
        else:
            content.append({"type": "text", "text": part})
    return {"role": "user", "content": content}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def eventually(what, condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited in vain: {what}")
        time.sleep(0.01)


class Server:
    """A server process on a free port. `context`: for TLS, whom to trust."""

    def __init__(self, *flags, model=MODEL, around=(), context=None):
        command = [*around, BIN / "server", "--port", "0", "--model", model, "--adapter", "none", "--log-format", "json"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MVP_")}
        self.process = subprocess.Popen(
            [str(word) for word in [*command, *PATIENT, *flags]], stderr=subprocess.PIPE, text=True, env=environment
        )
        self.around = around
        self.context = context
        self.lines = []
        self.url = None
        listening = threading.Event()
        self.reader = threading.Thread(target=self._read, args=(listening,))
        self.reader.start()
        if not listening.wait(PATIENCE):
            raise AssertionError("the server does not listen")
        if self.url is None:
            self.reader.join()
            raise AssertionError("the server has ended: " + "".join(self.lines))
        eventually("the model is loaded", lambda: self.health()["model_loaded"])

    def _read(self, listening):
        for line in self.process.stderr:
            self.lines.append(line)
            found = re.search(r"listening on (https?://[^;]+);", line)
            if found:
                self.url = found[1]
                listening.set()
        listening.set()

    def log(self, message):
        """Lines of the log with `message`."""
        lines = [json.loads(line) for line in self.lines if line.startswith("{")]
        return [line for line in lines if line.get("message") == message]

    def health(self):
        with urllib.request.urlopen(self.url + "/health", timeout=PATIENCE, context=self.context) as answer:
            return json.load(answer)

    def close(self):
        pid = self.process.pid
        if self.around:
            # strace blocks the signal while it has a program to trace.
            pid = int(pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        os.kill(pid, signal.SIGTERM)
        self.process.wait()
        self.reader.join()
        self.process.stderr.close()


class Running:
    """A server that somebody else started and ends."""

    def __init__(self, url):
        self.url = url

    def close(self):
        pass


def server_for_all():
    """The server at MVP_SERVER_URL, or a new one: for tests that need nothing special of it."""
    url = os.environ.get("MVP_SERVER_URL")
    return Running(url) if url else Server()


class EndlessModel:
    """The embedded model, no token of which ends an answer."""

    def __enter__(self):
        self.root = tempfile.TemporaryDirectory()
        folder = pathlib.Path(self.root.name) / MODEL.name
        folder.mkdir()
        for file in MODEL.iterdir():
            (folder / file.name).symlink_to(file)
        config = folder / "generation_config.json"
        settings = json.loads(config.read_text())
        config.unlink()
        config.write_text(json.dumps(settings | {"eos_token_id": [8189]}))
        return folder

    def __exit__(self, *_):
        self.root.cleanup()
