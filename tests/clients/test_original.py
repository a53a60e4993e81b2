"""What clients of the original Python project do: its README's curl commands and its API's contract, key for key.

The original's own tests are not part of this repository; these check what they can rely on.
"""

import datetime
import json
import subprocess
import unittest

import requests
from common import PAGES, PATIENCE, golden, server_for_all

PAGE = "small_strip_rx.png"
MODEL_INFO = ["device", "lora_adapter", "model_name", "precision"]
ANSWER = {"inference_latency_seconds", "model_info", "timestamp"}


class Original(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = server_for_all()
        cls.addClassCleanup(cls.server.close)

    def check_timestamp(self, answer):
        time = datetime.datetime.fromisoformat(answer["timestamp"])
        self.assertEqual(time.utcoffset(), datetime.timedelta(0))

    def check_answer(self, answer, *keys):
        self.assertLessEqual(ANSWER | set(keys), answer.keys())
        self.assertEqual(sorted(answer["model_info"]), MODEL_INFO)
        self.assertEqual(answer["model_info"]["model_name"], "qwen25-vl-nano")
        self.assertGreater(answer["inference_latency_seconds"], 0)
        self.check_timestamp(answer)

    def get(self, path):
        return requests.get(self.server.url + path, timeout=PATIENCE)

    def post(self, path, files=None, **data):
        return requests.post(self.server.url + path, files=files, data=data, timeout=PATIENCE)

    def page(self):
        return {"file": (PAGE, (PAGES / PAGE).read_bytes(), "image/png")}

    def check_error(self, response, status):
        self.assertEqual(response.status_code, status)
        error = response.json()
        self.assertEqual(sorted(error), ["detail", "timestamp"])
        self.assertTrue(error["detail"])
        self.check_timestamp(error)

    def test_health(self):
        health = self.get("/health").json()
        self.assertIs(health["model_loaded"], True)
        self.assertIsInstance(health["gpu_available"], bool)
        self.assertIsInstance(health["current_vram_usage_mb"], float)
        self.assertIsInstance(health["total_vram_mb"], float)
        self.assertIn("gpu_name", health)
        self.check_timestamp(health)

    def test_extract(self):
        response = self.post("/extract", self.page())
        self.assertEqual(response.status_code, 200)
        self.check_answer(response.json(), "extracted_content")
        self.assertIsInstance(response.json()["extracted_content"], str)

    def test_analyze(self):
        page = golden(PAGE)
        answer = self.post("/analyze", self.page(), prompt=page["prompt"]).json()
        self.check_answer(answer, "analysis", "prompt_used")
        self.assertEqual((answer["analysis"], answer["prompt_used"]), (page["text"], page["prompt"]))
        default = self.post("/analyze", self.page(), prompt=" ", max_new_tokens="4").json()
        self.assertGreater(len(default["prompt_used"]), 100)

    def test_benchmark(self):
        records = self.get("/benchmark").json()
        self.assertLessEqual({"benchmarks", "files_loaded", "timestamp"}, records.keys())
        self.assertEqual(sorted(records["benchmarks"]), sorted(records["files_loaded"]))
        self.check_timestamp(records)

    def test_errors(self):
        for path in ["/extract", "/analyze"]:
            self.check_error(self.post(path), 422)
            self.check_error(self.post(path, prompt="no page"), 422)
            self.check_error(self.post(path, {"file": ("empty.png", b"", "image/png")}), 400)
            self.check_error(self.post(path, {"file": ("text.png", b"not a picture", "image/png")}), 400)
        self.check_error(self.get("/nothing"), 404)

    def test_documentation(self):
        self.assertEqual(self.get("/docs").status_code, 200)
        self.assertIn("/extract", self.get("/openapi.json").json()["paths"])

    def test_curl(self):
        """The commands of the original's README."""
        url, file = self.server.url, f"file=@{PAGES / PAGE}"
        commands = {
            "model_loaded": [f"{url}/health"],
            "extracted_content": ["-X", "POST", f"{url}/extract", "-F", file],
            "analysis": ["-X", "POST", f"{url}/analyze", "-F", file, "-F", "prompt=List all medications with dosages"],
            "files_loaded": [f"{url}/benchmark"],
        }
        for key, words in commands.items():
            command = ["curl", "--silent", "--show-error", "--fail", "--max-time", str(PATIENCE), *words]
            output = subprocess.run(command, check=True, capture_output=True).stdout
            self.assertIn(key, json.loads(output))
