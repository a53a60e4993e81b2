"""The server opens no connection: in a network namespace that has only loopback, with every `connect` traced."""

import fcntl
import json
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import unittest
import urllib.error
import urllib.request

from common import PATIENCE, Server, golden, user

PAGE = "small_strip_rx.png"
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


def chat(server, message):
    body = json.dumps({"model": "default", "messages": [message], "max_tokens": 16}).encode()
    request = urllib.request.Request(
        server.url + "/v1/chat/completions", body, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def inside(trace):
    """Runs in the namespace."""
    loopback_up()
    server = Server(around=["strace", "-f", "-qq", "-e", "trace=connect", "-o", trace])
    try:
        for address in ADDRESSES:
            image = {"type": "image_url", "image_url": {"url": address}}
            status = chat(server, {"role": "user", "content": [image]})
            assert status == 400, (address, status)
        assert chat(server, user(PAGE, golden(PAGE)["prompt"])) == 200
    finally:
        server.close()


class Network(unittest.TestCase):
    def test_no_connection_is_opened(self):
        self.assertTrue(shutil.which("strace"), "install strace")
        with tempfile.TemporaryDirectory() as folder:
            trace = pathlib.Path(folder) / "trace"
            own = ["unshare", "--net", *(["--map-root-user"] if os.geteuid() else [])]
            command = [*own, sys.executable, "-B", __file__, "--inside", trace]
            result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            self.assertEqual(result.returncode, 0, result.stdout)
            traced = trace.read_text().splitlines()
        # Lookups of users and hosts ask a local daemon, if there is one.
        opened = [line for line in traced if "connect(" in line and "AF_UNIX" not in line]
        self.assertEqual(opened, [])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2])
    else:
        unittest.main()
