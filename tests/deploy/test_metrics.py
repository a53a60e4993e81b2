"""What the built server says on /metrics: in order for promtool, and what the rules and the board ask for."""

import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.request

from common import BIN, DEPLOY, PATIENCE, ROOT, metrics, run, tool

PAGE = ROOT / "tests/fixtures/pages/small_strip_rx.png"
KEY = "a-key-of-the-test-alone"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class BuiltServer(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.port = free_port()
        command = [BIN / "server", "--port", cls.port, "--model", ROOT / "models/qwen25-vl-nano", "--device", "cpu"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MVP_")}
        environment["MVP_API_KEY"] = KEY
        cls.log = tempfile.TemporaryFile()
        cls.server = subprocess.Popen([str(word) for word in command], env=environment, stderr=cls.log, cwd=ROOT)
        cls.addClassCleanup(cls.end)
        end = time.monotonic() + PATIENCE
        while cls.ask("/health/ready")[0] != 200:
            if time.monotonic() > end or cls.server.poll() is not None:
                cls.log.seek(0)
                raise AssertionError("the server is not ready: " + cls.log.read().decode())
            time.sleep(0.05)
        boundary = "boundary"
        head = f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="canary.png"\r\n\r\n'.encode()
        body = head + PAGE.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        status, answer = cls.ask("/extract", body, {"content-type": f"multipart/form-data; boundary={boundary}"})
        assert status == 200, answer
        cls.answer = json.loads(answer)
        status, cls.text = cls.ask("/metrics")
        assert status == 200, cls.text

    @classmethod
    def end(cls):
        cls.server.send_signal(signal.SIGKILL)
        cls.server.wait()
        cls.log.close()

    @classmethod
    def ask(cls, path, body=None, headers=None):
        headers = {"authorization": f"Bearer {KEY}", **(headers or {})}
        request = urllib.request.Request(f"http://127.0.0.1:{cls.port}{path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except urllib.error.URLError:
            return 0, ""

    def value(self, series):
        (found,) = re.findall(rf"^{re.escape(series)} (\S+)$", self.text, re.MULTILINE)
        return float(found)

    def test_promtool_finds_nothing_to_improve(self):
        self.assertEqual(run(tool("promtool"), "check", "metrics", input=self.text), "")
        done = subprocess.run([tool("promtool"), "check", "metrics"], input="a_total 1\n", capture_output=True, text=True)
        self.assertNotEqual(done.returncode, 0, "promtool checks nothing")

    def test_it_has_the_metrics_of_the_list(self):
        types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", self.text, re.MULTILINE))
        listed = {name: kind for name, (kind, _) in metrics().items() if name != "medvision_gpu_memory_bytes"}
        self.assertEqual(types, listed)

    def test_the_labels_that_rules_and_board_match_exist(self):
        asked = set()
        for file in [DEPLOY / "prometheus/alerts.yaml", DEPLOY / "grafana/medvision.json"]:
            text = file.read_text().replace('\\"', '"')
            asked |= set(re.findall(r'\breason=~"([^"]*)"', text))
        self.assertTrue(asked)
        reasons = re.findall(r'^medvision_rejected_total\{reason="(\w+)"\}', self.text, re.MULTILINE)
        for pattern in asked:
            for alternative in pattern.split("|"):
                self.assertTrue(any(re.fullmatch(alternative, reason) for reason in reasons), alternative)

    def test_every_reason_is_documented(self):
        reasons = re.findall(r'^medvision_rejected_total\{reason="(\w+)"\}', self.text, re.MULTILINE)
        table = (ROOT / "docs/DEPLOYMENT.md").read_text().split("| `reason` | what")[1].split("\n\n")[0]
        documented = {word for line in table.splitlines() for word in re.findall(r"`(\w+)`", line.split("|")[1])}
        self.assertEqual(set(reasons), documented)

    def test_the_figures_are_those_of_the_answer(self):
        tokens = {kind: self.value(f'medvision_tokens_total{{kind="{kind}"}}') for kind in ("image", "text", "generated")}
        self.assertEqual(tokens["image"], self.answer["image"]["tokens"])
        self.assertEqual(tokens["image"] + tokens["text"], self.answer["prompt_tokens"])
        self.assertEqual(tokens["generated"], self.answer["completion_tokens"])
        self.assertEqual(self.value("medvision_inter_token_seconds_count"), tokens["generated"] - 1)
        self.assertEqual(self.value('medvision_pages_total{kind="png",status="read"}'), 1)
        self.assertEqual(self.value('medvision_requests_total{route="/extract",status="200"}'), 1)
        self.assertNotIn("canary", self.text)
        self.assertNotIn(KEY, self.text)


if __name__ == "__main__":
    unittest.main()
