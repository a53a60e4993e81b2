"""The server opens no connection, whatever its clients ask for: in a network namespace that has only loopback, with every `connect` traced."""

import fcntl
import os
import pathlib
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import unittest

import requests
from common import PAGES, PATIENCE, ROOT, Server, free_port, golden, user

PAGE = "small_strip_rx.png"
TLS = ROOT / "tests/fixtures/tls"
ADDRESSES = [
    "http://example.org/page.png",
    "https://example.org/page.png",
    "http://127.0.0.1:9/page.png",
    "http://169.254.169.254/latest/meta-data/",
    "//example.org/page.png",
    "file:///etc/hostname",
]


def loopback_up():
    """Switches the namespace's loopback interface on."""
    SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(handle, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(handle, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def ask(session, url):
    """What the API's clients do at `url`: every route that reads, whole and as a stream."""

    def chat(content, **more):
        body = {"model": "default", "messages": [{"role": "user", "content": content}], "max_tokens": 16, **more}
        return session.post(url + "/v1/chat/completions", json=body, timeout=PATIENCE)

    for address in ADDRESSES:
        answer = chat([{"type": "image_url", "image_url": {"url": address}}])
        assert answer.status_code == 400, (address, answer.text)
    content = user(PAGE, golden(PAGE)["prompt"])["content"]
    assert chat(content).status_code == 200
    assert chat(content, stream=True).text.endswith("data: [DONE]\n\n")
    page = {"file": (PAGE, (PAGES / PAGE).read_bytes(), "image/png")}
    for path in ["/extract", "/analyze"]:
        form = {"max_new_tokens": "16", "prompt": "Read http://example.org/page.png", "url": ADDRESSES[0]}
        assert session.post(url + path, files=page, data=form, timeout=PATIENCE).status_code == 200
        stream = session.post(url + path, files=page, data=form | {"stream": "true"}, timeout=PATIENCE)
        assert "event: done" in stream.text, stream.text


def inside(folder):
    """Runs in the namespace: plainly and with TLS, each with the API's port and the page's."""
    loopback_up()
    for scheme, flags in {"http": [], "https": ["--tls-cert", TLS / "server.pem", "--tls-key", TLS / "server.key"]}.items():
        demo = free_port()
        context = ssl.create_default_context(cafile=TLS / "authority.pem") if scheme == "https" else None
        around = ["strace", "-f", "-qq", "-e", "trace=connect", "-o", pathlib.Path(folder) / scheme]
        server = Server("--demo-port", demo, *flags, around=around, context=context)
        try:
            with requests.Session() as session:
                session.trust_env = False
                session.verify = str(TLS / "authority.pem")
                assert server.url.startswith(scheme + "://"), server.url
                ask(session, server.url)
                page = f"{scheme}://127.0.0.1:{demo}"
                for path in ["/", "/main.js", "/api/health"]:
                    assert session.get(page + path, timeout=PATIENCE).status_code == 200, path
                ask(session, page + "/api")
        finally:
            server.close()


class Network(unittest.TestCase):
    def test_no_connection_is_opened(self):
        self.assertTrue(shutil.which("strace"), "install strace")
        with tempfile.TemporaryDirectory() as folder:
            own = ["unshare", "--net", *(["--map-root-user"] if os.geteuid() else [])]
            command = [*own, sys.executable, "-B", __file__, "--inside", folder]
            result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            self.assertEqual(result.returncode, 0, result.stdout)
            traces = {file.name: file.read_text().splitlines() for file in pathlib.Path(folder).iterdir()}
        self.assertEqual(sorted(traces), ["http", "https"])
        for scheme, trace in traces.items():
            # Lookups of users and hosts ask a local daemon, if there is one.
            opened = [line for line in trace if "connect(" in line and "AF_UNIX" not in line]
            self.assertEqual(opened, [], scheme)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2])
    else:
        unittest.main()
