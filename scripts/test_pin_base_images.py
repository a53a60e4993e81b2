"""Tests of pin_base_images.py against a small registry on this machine: `make test` runs them."""

import contextlib
import hashlib
import http.server
import io
import json
import tempfile
import threading
import unittest
from pathlib import Path
from unittest import mock

import pin_base_images as pin

LIST = b'{"manifests": []}'
DIGEST = "sha256:" + hashlib.sha256(LIST).hexdigest()
BEFORE = "ARG A_IMAGE=docker.io/library/a:1\nARG B_IMAGE=docker.io/library/b:2-slim@sha256:old\nARG CUDA=no\nFROM ${A_IMAGE}\n"
AFTER = f"ARG A_IMAGE=docker.io/library/a:1@{DIGEST}\nARG B_IMAGE=docker.io/library/b:2-slim@{DIGEST}\nARG CUDA=no\nFROM ${{A_IMAGE}}\n"


class Registry(http.server.BaseHTTPRequestHandler):
    """Asks for a token, as Docker's does, and tells the digest `told`."""

    told = DIGEST

    def do_GET(self):
        if self.path.startswith("/token?"):
            self.answer(200, json.dumps({"token": "t"}).encode())
        elif self.headers.get("Authorization") != "Bearer t":
            challenge = f'Bearer realm="http://127.0.0.1:{self.server.server_port}/token",service="s",scope="pull"'
            self.answer(401, b"{}", ("WWW-Authenticate", challenge))
        elif self.path in ("/v2/library/a/manifests/1", "/v2/library/b/manifests/2-slim"):
            self.answer(200, LIST, ("Docker-Content-Digest", self.told))
        else:
            self.answer(404, b"{}")

    def answer(self, status, body, *headers):
        self.send_response(status)
        for name, value in [*headers, ("Content-Length", str(len(body)))]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class PinTest(unittest.TestCase):
    def setUp(self):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.file = Path(folder.name) / "Dockerfile"
        self.file.write_text(BEFORE)
        local = lambda name: f"http://127.0.0.1:{server.server_port}/v2/{name.partition('/')[2]}/manifests"  # noqa: E731
        for patch in (mock.patch.object(pin, "DOCKERFILE", self.file), mock.patch.object(pin, "address_of", local)):
            patch.start()
            self.addCleanup(patch.stop)

    def run_it(self, *arguments):
        with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(said):
            return pin.main(list(arguments)), said.getvalue()

    def test_writes_the_digests_of_the_tags(self):
        code, said = self.run_it()
        self.assertEqual((code, said.count(DIGEST)), (0, 2))
        self.assertEqual(self.file.read_text(), AFTER)
        self.assertEqual(self.run_it("--check"), (0, ""))

    def test_a_check_changes_nothing(self):
        code, said = self.run_it("--check")
        self.assertEqual((code, said.count(DIGEST)), (1, 2))
        self.assertEqual(self.file.read_text(), BEFORE)

    def test_a_digest_that_does_not_fit_its_list_is_refused(self):
        with mock.patch.object(Registry, "told", "sha256:other"):
            code, said = self.run_it()
        self.assertEqual(code, 2)
        self.assertIn("says sha256:other", said)
        self.assertEqual(self.file.read_text(), BEFORE)

    def test_an_unknown_image_is_named(self):
        self.file.write_text("ARG A_IMAGE=docker.io/library/absent:1\n")
        code, said = self.run_it()
        self.assertEqual(code, 2)
        self.assertIn("/library/absent/manifests/1: HTTP Error 404", said)


class DockerfileTest(unittest.TestCase):
    def test_its_bases_are_recognised_and_named_in_full(self):
        bases = pin.BASE.findall(pin.DOCKERFILE.read_text())
        self.assertEqual([base[0] for base in bases], ["ARG RUST_IMAGE=", "ARG DEBIAN_IMAGE="])
        self.assertEqual(pin.address_of(bases[0][1]), "https://registry-1.docker.io/v2/library/rust/manifests")


if __name__ == "__main__":
    unittest.main()
