"""Tests of get_libtorch.py against a small package index on this machine: `make test` runs them."""

import contextlib
import hashlib
import http.server
import io
import json
import os
import platform
import tempfile
import threading
import unittest
import zipfile
from pathlib import Path
from unittest import mock

import get_libtorch as setup

TORCH = "torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl"
CUBLAS = "nvidia_cublas-13.1.0.3-py3-none-manylinux_2_27_x86_64.whl"
TORCH_FILES = {
    "torch/lib/libtorch_cpu.so": os.urandom(300_000),
    "torch/lib/libtorch_cuda.so": b"cuda",
    "torch/lib/libtorch.so": b"needs libtorch_cuda.so",
    "torch/lib/libtorch_python.so": b"not needed",
    "torch/include/torch/torch.h": b"// header",
    "torch/__init__.py": b"not needed",
    "torch-2.11.0.dist-info/licenses/LICENSE": b"BSD",
}


def wheel(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    """A simple index (JSON or HTML) and its files, with ranges; `cut` breaks the next download off."""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        index = self.server.index
        index.requests.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        name = self.path.rpartition("/")[2]
        if name:
            self.send_file(index, index.served[name])
        else:
            names = [n for n in index.served if setup.Wheel("", "", n, 0, "").project == self.path.split("/")[2]]
            kind = "application/vnd.pypi.simple.v1+json" if index.json else "text/html"
            body = (json.dumps({"files": [{"filename": n, "url": f"../../files/{n}"} for n in names]}) if index.json
                    else "".join(f'<a href="../../files/{n}#sha256=0">{n}</a>' for n in names))
            self.reply(200 if names else 404, body.encode(), {"Content-Type": kind})

    def send_file(self, index, data):
        start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if index.ranges else 0
        body, cut = data[start:], index.cut
        index.cut = None
        self.reply(206 if start else 200, body[:cut], length=len(body))
        self.close_connection = True

    def reply(self, status, body, headers=None, length=None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)


class FakeIndex:
    def __init__(self, served):
        self.served, self.requests, self.json, self.ranges, self.cut = served, [], True, True, None
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.index = self
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class InstallTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.top = Path(folder.name)
        self.home = self.top / ".libtorch"
        self.wheels = {TORCH: wheel(TORCH_FILES), CUBLAS: wheel({"nvidia/cu13/lib/libcublas.so.13": b"blas"})}
        self.index = FakeIndex(dict(self.wheels))
        self.addCleanup(self.index.close)
        self.pin()
        quiet = {"PATH": os.environ["PATH"], "HOME": str(self.top)}
        for patch in (mock.patch.object(setup, "BACKOFF_SECONDS", 0.0), mock.patch.dict(os.environ, quiet, clear=True)):
            patch.start()
            self.addCleanup(patch.stop)

    def pin(self):
        """Write the lock file for the wheels as they are now."""
        lines = [
            f"{kind} {platform.machine()} {name} {len(self.wheels[name])} {hashlib.sha256(self.wheels[name]).hexdigest()}\n"
            for kind, name in (("cpu", TORCH), ("cuda", CUBLAS))
        ]
        (self.top / "lock").write_text("# comment\n" + "".join(lines))

    def install(self, cuda=False, folders=(), url=None):
        with contextlib.redirect_stderr(io.StringIO()) as said:
            setup.install(self.home, self.top / "lock", cuda, list(folders), url or self.index.url)
        return said.getvalue()

    def installed(self):
        return {str(p.relative_to(self.home)) for p in self.home.rglob("*") if p.is_file()} - {".lock", "stamp"}

    CPU = {"torch/lib/libtorch_cpu.so", "torch/lib/libtorch.so", "torch/include/torch/torch.h", "torch-2.11.0.dist-info/licenses/LICENSE"}
    CUDA = CPU | {"torch/lib/libtorch_cuda.so", "nvidia/cu13/lib/libcublas.so.13"}

    def test_installs_what_is_needed_once(self):
        self.install()
        self.assertEqual(self.installed(), self.CPU)
        self.assertEqual((self.home / "torch/lib/libtorch_cpu.so").read_bytes(), TORCH_FILES["torch/lib/libtorch_cpu.so"])
        self.assertIn("INPUT(AS_NEEDED(-ltorch_cpu))", (self.home / "torch/lib/libtorch.so").read_text())
        asked = len(self.index.requests)
        self.assertIn("(cpu)", self.install())
        self.assertEqual(len(self.index.requests), asked, "a second run does no network")

    def test_adds_cuda_when_a_gpu_appears_and_keeps_it(self):
        self.install()
        self.install(cuda=True)
        self.assertEqual(self.installed(), self.CUDA)
        self.assertIn("(cuda)", self.install(cuda=False))

    def test_a_new_lock_file_renews_the_installation(self):
        self.install()
        self.wheels[TORCH] = self.index.served[TORCH] = wheel({"torch/lib/libtorch_cpu.so": b"newer"})
        self.pin()
        self.install()
        self.assertEqual((self.home / "torch/lib/libtorch_cpu.so").read_bytes(), b"newer")
        self.assertNotIn("torch/include/torch/torch.h", self.installed())

    def test_resumes_a_broken_download(self):
        self.index.cut = 100_000
        self.install()
        ranges = [r for path, r, _ in self.index.requests if path.endswith(TORCH)]
        self.assertEqual(ranges, [None, "bytes=100000-"])

    def test_starts_over_without_ranges(self):
        self.index.cut, self.index.ranges = 100_000, False
        self.install()
        self.assertEqual(self.installed(), self.CPU)

    def test_replaces_a_stale_part(self):
        (self.home / ".wheels").mkdir(parents=True)
        (self.home / ".wheels" / (TORCH + ".part")).write_bytes(b"x" * 1000)
        self.assertIn("starting over", self.install())
        self.assertEqual(self.installed(), self.CPU)

    def test_refuses_another_file_than_the_pinned(self):
        data = bytearray(self.wheels[TORCH])
        data[200] ^= 1
        self.index.served[TORCH] = bytes(data)
        with self.assertRaisesRegex(setup.SetupError, "SHA-256 .* is pinned"):
            self.install()
        self.assertEqual(self.installed(), set())
        self.assertFalse((self.home / "stamp").exists())

    def test_a_truncated_file_is_an_error(self):
        self.index.served[TORCH] = self.wheels[TORCH][:5000]
        with self.assertRaisesRegex(setup.SetupError, "closed the connection|416"):
            self.install()

    def test_refuses_unsafe_entries(self):
        for name in ("../evil.so", "torch/lib/../../../evil.so", "/torch/lib/evil.so", "torch\\lib\\..\\evil.so"):
            self.wheels[TORCH] = self.index.served[TORCH] = wheel({name: b"evil"})
            self.pin()
            with self.assertRaisesRegex(setup.SetupError, "unsafe entry"):
                self.install()
        self.assertEqual([p for p in self.top.rglob("*evil*")], [])

    def test_reads_an_html_index(self):
        self.index.json = False
        self.install()
        self.assertEqual(self.installed(), self.CPU)

    def test_sends_the_password_of_the_index_and_does_not_print_it(self):
        url = self.index.url.replace("//", "//me:s3cret@")
        self.index.served.clear()
        with self.assertRaises(setup.SetupError) as caught:
            self.install(url=url)
        self.assertNotIn("s3cret", str(caught.exception))
        self.assertEqual(self.index.requests[0][2], "Basic bWU6czNjcmV0")

    def test_takes_wheels_from_a_folder_without_network(self):
        (self.top / TORCH).write_bytes(self.wheels[TORCH])
        self.install(folders=[self.top], url="http://127.0.0.1:9/simple")
        self.assertEqual(self.installed(), self.CPU)
        self.assertTrue((self.top / TORCH).exists())

    def test_says_what_to_do_without_network(self):
        with self.assertRaisesRegex(setup.SetupError, "PIP_INDEX_URL.*WHEELS"):
            self.install(url="http://127.0.0.1:9/simple")

    def test_says_how_much_disk_is_missing(self):
        with mock.patch.object(setup.shutil, "disk_usage", return_value=mock.Mock(free=10)):
            with self.assertRaisesRegex(setup.SetupError, "free"):
                self.install()

    def test_leaves_a_libtorch_of_the_user_alone(self):
        own = self.top / "own"
        os.environ["LIBTORCH"] = str(own)
        with self.assertRaisesRegex(setup.SetupError, "has no lib/libtorch_cpu.so"):
            setup.own_libtorch(self.home)
        (own / "lib").mkdir(parents=True)
        (own / "lib/libtorch_cpu.so").touch()
        self.assertEqual(setup.own_libtorch(self.home), own)

    def test_reads_pip_settings(self):
        config = self.top / ".config/pip/pip.conf"
        config.parent.mkdir(parents=True)
        config.write_text("[global]\nindex-url = http://mirror/simple\n")
        self.assertEqual(setup.pip_setting("index_url"), "http://mirror/simple")
        os.environ["PIP_INDEX_URL"] = "http://other/simple"
        self.assertEqual(setup.pip_setting("index_url"), "http://other/simple")


class LockTest(unittest.TestCase):
    def test_pins_every_version_for_every_architecture(self):
        pinned = {(w.kind, w.arch, w.project) for w in setup.read_lock(setup.LOCK_FILE)}
        expected = {(k, a, p) for a in setup.ARCHITECTURES for k, versions in setup.VERSIONS.items() for p in versions}
        self.assertEqual(pinned, expected)
        for w in setup.read_lock(setup.LOCK_FILE):
            self.assertRegex(w.sha256, r"^[0-9a-f]{64}$")
            self.assertIn("-%s-" % setup.VERSIONS[w.kind][w.project], w.name)


if __name__ == "__main__":
    unittest.main()
