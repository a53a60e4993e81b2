"""One running server for all: the openai package, the original's clients, and the page's tests in Chromium, one after the other. The page
is that of a `demo_ui` in front of the server.

What needs a server of its own (an endless model, a traced one, one that is killed) starts it as ever. Arguments: the tests of this folder
to run, default: all.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

from common import BIN, PATIENCE, ROOT, Server, eventually, free_port

ADAPTER = ROOT / "models/qwen25-vl-nano-medical-lora"


class Page:
    """`demo_ui` in front of the API at `api`."""

    def __init__(self, api):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MVP_")}
        command = [BIN / "demo_ui", "--api-url", api, "--port", str(port)]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
        eventually("the page is served", self.is_served)

    def is_served(self):
        try:
            with urllib.request.urlopen(self.url + "api/health", timeout=PATIENCE) as answer:
                return answer.status == 200
        except OSError:
            return False

    def close(self):
        self.process.terminate()
        self.process.wait()


def main(tests):
    with tempfile.TemporaryDirectory() as root:
        # A project without records, of which the page says what is missing.
        (pathlib.Path(root) / "benchmarks").mkdir()
        server = Server("--root", root, "--adapter", f"medical-lora={ADAPTER}")
        page = None
        try:
            page = Page(server.url)
            environment = os.environ | {"MVP_BIN": str(BIN), "MVP_SERVER_URL": server.url, "PAGE_URL": page.url}
            here = pathlib.Path(__file__).parent
            words = tests or ["discover", "--start-directory", here]
            clients = [sys.executable, "-B", "-m", "unittest", *words]
            browser = ["node", ROOT / "tests/page/run.mjs"]
            results = [subprocess.run(command, env=environment, cwd=here).returncode for command in (clients, browser)]
            if server.process.poll() is not None:
                raise SystemExit("the server has ended: " + "".join(server.lines[-20:]))
            answered = server.log("request")
            faults = [line for line in answered if line["status"] >= 500]
            routes = {line["route"] for line in answered if line["status"] == 200}
            missing = set() if tests else {"/v1/chat/completions", "/extract", "/analyze"} - routes
            print(f"one server answered {len(answered)} requests of all clients")
            if faults or missing:
                raise SystemExit(f"faults: {faults}; routes without an answer: {sorted(missing)}")
        finally:
            if page:
                page.close()
            server.close()
    return max(results)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
