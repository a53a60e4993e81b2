"""nginx.conf in Debian's nginx: accepted, and in front of a stub and of the built server."""

import concurrent.futures
import http.client
import http.server
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import unittest
from pathlib import Path

from common import BIN, DEPLOY, PATIENCE, ROOT, compose, program_help, run, tool

CONFIGURATION = DEPLOY / "nginx.conf"
PAGE = ROOT / "tests/fixtures/pages/small_strip_rx.png"


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def eventually(what, condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited in vain: {what}")
        time.sleep(0.02)


class Proxy:
    """nginx with the shipped configuration: only addresses, ports and folders are this test's."""

    def __init__(self, api, page):
        self.folder = tempfile.TemporaryDirectory()
        folder = Path(self.folder.name)
        self.port, self.page_port = free_ports(2)
        self.certificate = folder / "tls.crt"
        self.certify()
        changes = {
            "medvision:8000": f"127.0.0.1:{api}",
            "medvision:7860": f"127.0.0.1:{page}",
            "8443": str(self.port),
            "7443": str(self.page_port),
            "/run/secrets": str(folder),
            "/tmp/": f"{folder}/",
            "/dev/stdout": f"{folder}/access.log",
        }
        shipped = CONFIGURATION.read_text()
        text = re.sub("|".join(map(re.escape, changes)), lambda found: changes[found[0]], shipped)
        if any(old not in shipped for old in changes):
            raise AssertionError(f"nginx.conf lacks one of {list(changes)}")
        self.configuration = folder / "nginx.conf"
        self.configuration.write_text(text)
        self.access_log = folder / "access.log"
        self.command = [tool("nginx"), "-p", f"{folder}/", "-c", str(self.configuration)]
        self.process = None

    def certify(self):
        """Writes a new key and certificate."""
        run(
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", self.certificate.with_suffix(".key"), "-out", self.certificate),
        )

    def check(self):
        done = subprocess.run([*self.command, "-t"], capture_output=True, text=True)
        return done.returncode, done.stderr

    def start(self):
        # As root, workers stay root: nobody could not enter the folder.
        more = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
        self.errors = open(Path(self.folder.name) / "error.log", "w+")
        self.process = subprocess.Popen([*self.command, "-g", more], stderr=self.errors)
        eventually("nginx listens", self.listens)

    def listens(self):
        if self.process.poll() is not None:
            raise AssertionError("nginx has ended: " + (Path(self.folder.name) / "error.log").read_text())
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", self.port)) == 0

    def connection(self, port=None):
        context = ssl.create_default_context(cafile=self.certificate)
        return http.client.HTTPSConnection("localhost", port or self.port, timeout=PATIENCE, context=context)

    def ask(self, method, path, body=None, headers=None, port=None):
        connection = self.connection(port)
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer, content

    def log(self):
        return [json.loads(line) for line in self.access_log.read_text().splitlines()]

    def close(self):
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait()
            self.errors.close()
        self.folder.cleanup()


class Stub(http.server.BaseHTTPRequestHandler):
    """A server that tells what reached it."""

    protocol_version = "HTTP/1.1"
    begun = None
    read = None
    cut = None

    def do_GET(self):
        if self.path == "/stream":
            self.stream()
        elif self.path == "/endless":
            self.endless()
        elif self.path == "/queue":
            Stub.begun.set()
            # The next thing to be read is the end of the connection.
            if self.connection.recv(1) == b"":
                Stub.cut.set()
            self.close_connection = True
        else:
            # self.path has no doubled slashes.
            self.answer({"path": self.requestline.split()[1], "headers": {name.lower(): value for name, value in self.headers.items()}})

    def do_POST(self):
        left = int(self.headers["content-length"])
        left -= len(self.rfile.read(1))
        Stub.begun.set()
        while left:
            left -= len(self.rfile.read(min(left, 65536)))
        self.answer({"bytes": int(self.headers["content-length"])})

    def begin_stream(self):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def endless(self):
        self.begin_stream()
        try:
            while True:
                self.chunk(b"data: 1\n\n")
                time.sleep(0.01)
        except OSError:
            Stub.cut.set()
        self.close_connection = True

    def stream(self):
        """The second event follows once the client has read the first."""
        self.begin_stream()
        self.chunk(b"data: 1\n\n")
        if Stub.read.wait(PATIENCE):
            self.chunk(b"data: 2\n\n")
        self.chunk(b"")

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class WithStub(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.stub = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stub)
        threading.Thread(target=cls.stub.serve_forever, daemon=True).start()
        # The page's server is not there.
        (nothing,) = free_ports(1)
        cls.proxy = Proxy(cls.stub.server_port, nothing)
        cls.proxy.start()

    @classmethod
    def tearDownClass(cls):
        cls.proxy.close()
        cls.stub.shutdown()
        cls.stub.server_close()

    def setUp(self):
        Stub.begun, Stub.read, Stub.cut = threading.Event(), threading.Event(), threading.Event()

    def seen(self, path="/", **headers):
        answer, content = self.proxy.ask("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        self.assertEqual(answer.status, 200)
        return json.loads(content)["headers"]

    def test_nginx_accepts_the_configuration(self):
        code, messages = self.proxy.check()
        self.assertEqual(code, 0, messages)
        self.assertNotIn("[warn]", messages)

    def test_nginx_refuses_a_misspelled_directive(self):
        (proxy := Proxy(1, 2)).configuration.write_text(CONFIGURATION.read_text().replace("proxy_buffering", "proxy_bufering"))
        self.assertNotEqual(proxy.check()[0], 0)
        proxy.close()

    def test_a_stream_arrives_as_it_is_generated(self):
        connection = self.proxy.connection()
        connection.request("GET", "/stream")
        answer = connection.getresponse()
        self.assertEqual(answer.readline(), b"data: 1\n")
        Stub.read.set()
        self.assertEqual(answer.read(), b"\ndata: 2\n\n")
        connection.close()

    def test_a_client_that_leaves_a_stream_is_gone_for_the_server(self):
        connection = self.proxy.connection()
        connection.request("GET", "/endless")
        answer = connection.getresponse()
        self.assertEqual(answer.readline(), b"data: 1\n")
        answer.close()
        connection.close()
        self.assertTrue(Stub.cut.wait(PATIENCE))

    def test_a_client_that_leaves_the_queue_is_gone_for_the_server(self):
        connection = self.proxy.connection()
        connection.request("GET", "/queue")
        self.assertTrue(Stub.begun.wait(PATIENCE))
        connection.close()
        self.assertTrue(Stub.cut.wait(PATIENCE))

    def test_a_stop_lets_streams_finish_and_a_reload_reads_the_certificate_again(self):
        proxy = Proxy(self.stub.server_port, 1)
        proxy.start()
        self.addCleanup(proxy.close)
        proxy.certify()
        with self.assertRaises(ssl.SSLCertVerificationError):
            proxy.ask("GET", "/")
        proxy.process.send_signal(signal.SIGHUP)

        def verified():
            try:
                return proxy.ask("GET", "/")[0].status == 200
            except ssl.SSLCertVerificationError:
                return False

        eventually("the new certificate is used", verified)
        connection = proxy.connection()
        connection.request("GET", "/stream")
        answer = connection.getresponse()
        self.assertEqual(answer.readline(), b"data: 1\n")
        self.assertEqual(compose()["services"]["proxy"]["stop_signal"], "SIGQUIT")
        proxy.process.send_signal(signal.SIGQUIT)
        eventually("nginx listens no longer", lambda: not self.accepts(proxy.port))
        Stub.read.set()
        self.assertEqual(answer.read(), b"\ndata: 2\n\n")
        connection.close()
        self.assertEqual(proxy.process.wait(PATIENCE), 0)

    @staticmethod
    def accepts(port):
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", port)) == 0

    def test_an_upload_reaches_the_server_before_its_end(self):
        connection = self.proxy.connection()
        connection.putrequest("POST", "/extract")
        connection.putheader("content-length", "1000")
        connection.endheaders(b"x" * 500)
        self.assertTrue(Stub.begun.wait(PATIENCE), "the first half is kept back")
        connection.send(b"x" * 500)
        self.assertEqual(json.load(connection.getresponse()), {"bytes": 1000})
        connection.close()

    def test_the_largest_body_of_the_server_passes_and_a_larger_one_does_not(self):
        most = int(re.search(r"client_max_body_size (\d+);", CONFIGURATION.read_text())[1])
        answer, content = self.proxy.ask("POST", "/extract", body=b"\0" * most)
        self.assertEqual((answer.status, json.loads(content)), (200, {"bytes": most}))
        connection = self.proxy.connection()
        connection.putrequest("POST", "/extract")
        connection.putheader("content-length", str(most + 1))
        connection.endheaders()
        answer = connection.getresponse()
        self.assertEqual(answer.status, 413)
        self.assertEqual(answer.getheader("content-type"), "application/json")
        self.assertEqual(set(json.load(answer)), {"detail", "timestamp"})
        connection.close()

    def test_the_limits_are_those_of_the_server(self):
        """Defaults of the server's --help; 4 MiB of text are JSON_OVERHEAD_BYTES of src/server/http/options.rs."""
        text = CONFIGURATION.read_text()
        help = program_help("server")

        def default(flag):
            return int(re.search(rf"--{flag} <.*?\[default: (\d+)\]", help, re.DOTALL)[1])

        (overhead,) = re.findall(r"JSON_OVERHEAD_BYTES: u64 = (\d+) \* 1024 \* 1024;", (ROOT / "src/server/http/options.rs").read_text())
        upload = default("max-upload-mib") * 1024 * 1024
        expected = -(-upload // 3) * 4 + int(overhead) * 1024 * 1024
        self.assertIn(f"client_max_body_size {expected};", text)
        longest = default("body-deadline-seconds") + default("queue-deadline-seconds") + default("generation-deadline-seconds")
        timeout = int(re.search(r"proxy_read_timeout (\d+)s;", text)[1])
        self.assertGreater(timeout, longest)
        self.assertIn(f"client_body_timeout {default('body-deadline-seconds')}s;", text)
        self.assertIn(f"send_timeout {default('stall-seconds')}s;", text)

    def test_a_request_id_is_passed_on_or_made(self):
        self.assertEqual(self.seen(x_request_id="ward-3.77")["x-request-id"], "ward-3.77")
        first, second = self.seen()["x-request-id"], self.seen()["x-request-id"]
        self.assertRegex(first, r"^[0-9a-f]{32}$")
        self.assertNotEqual(first, second)
        eventually("the log has both", lambda: {"ward-3.77", first} <= {line["request_id"] for line in self.proxy.log()})

    def test_headers_of_the_client_reach_the_server(self):
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        seen = self.seen(authorization="Bearer k", x_api_key="k", traceparent=trace)
        self.assertEqual((seen["authorization"], seen["x-api-key"], seen["traceparent"]), ("Bearer k", "k", trace))
        self.assertEqual(seen["host"], f"localhost:{self.proxy.port}")
        self.assertEqual(seen["x-forwarded-proto"], "https")

    def test_a_forged_address_is_replaced(self):
        self.assertEqual(self.seen(x_forwarded_for="10.9.9.9")["x-forwarded-for"], "127.0.0.1")

    def test_the_path_is_not_rewritten(self):
        for path in ("//extract", "/health/ready/../extract", "/%65xtract", "/v1/models/a%20b?x=1"):
            self.assertEqual(json.loads(self.proxy.ask("GET", path)[1])["path"], path)

    def test_a_server_that_is_away_is_a_503_with_retry_after(self):
        answer, content = self.proxy.ask("GET", "/", port=self.proxy.page_port)
        self.assertEqual((answer.status, answer.getheader("retry-after")), (503, "5"))
        self.assertEqual(set(json.loads(content)), {"detail", "timestamp"})

    def test_the_logs_hold_no_query_and_no_address(self):
        self.seen("/leak?key=canary-key")
        eventually("the request is in the log", lambda: any(line["path"] == "/leak" for line in self.proxy.log()))
        both = self.proxy.access_log.read_text() + (Path(self.proxy.folder.name) / "error.log").read_text()
        self.assertNotIn("canary", both)
        self.assertNotIn("127.0.0.1", both)

    def test_plain_http_on_the_tls_port_is_refused(self):
        connection = http.client.HTTPConnection("localhost", self.proxy.port, timeout=PATIENCE)
        connection.request("GET", "/")
        self.assertEqual(connection.getresponse().status, 400)
        connection.close()

    def test_tls_is_1_2_or_1_3(self):
        # OpenSSL refuses older ones by itself today: the text decides.
        self.assertIn("ssl_protocols TLSv1.2 TLSv1.3;", CONFIGURATION.read_text())
        for version, name in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")):
            context = ssl.create_default_context(cafile=self.proxy.certificate)
            context.minimum_version = context.maximum_version = version
            connection = http.client.HTTPSConnection("localhost", self.proxy.port, timeout=PATIENCE, context=context)
            connection.connect()
            self.assertEqual(connection.sock.version(), name)
            connection.close()

    def test_connections_of_one_address_are_bounded(self):
        most = int(re.search(r"limit_conn clients (\d+);", CONFIGURATION.read_text())[1])

        def held(_):
            connection = self.proxy.connection()
            connection.request("GET", "/stream")
            return connection, connection.getresponse()

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            open_ones = list(pool.map(held, range(most)))
        self.assertEqual({answer.status for _, answer in open_ones}, {200})
        answer, content = self.proxy.ask("GET", "/")
        self.assertEqual((answer.status, answer.getheader("retry-after")), (429, "1"))
        self.assertEqual(set(json.loads(content)), {"detail", "timestamp"})
        Stub.read.set()
        for connection, answer in open_ones:
            answer.read()
            connection.close()
        eventually("the address is free again", lambda: self.proxy.ask("GET", "/")[0].status == 200)


class WithServer(unittest.TestCase):
    """The built server behind the proxy, with the embedded model."""

    @classmethod
    def setUpClass(cls):
        api, page = free_ports(2)
        command = [BIN / "server", "--port", api, "--demo-port", page, "--model", ROOT / "models/qwen25-vl-nano", "--device", "cpu"]
        command += ["--trusted-proxy", "127.0.0.1", "--queue-deadline-seconds", "3600", "--generation-deadline-seconds", "3600"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MVP_")}
        cls.log = tempfile.TemporaryFile()
        cls.server = subprocess.Popen([str(word) for word in command], env=environment, stderr=cls.log, cwd=ROOT)
        cls.addClassCleanup(cls.end)
        cls.proxy = Proxy(api, page)
        cls.proxy.start()
        cls.addClassCleanup(cls.proxy.close)
        eventually("the model is loaded", lambda: cls.health().get("model_loaded"))

    @classmethod
    def end(cls):
        cls.server.send_signal(signal.SIGTERM)
        cls.server.wait()
        cls.log.close()

    @classmethod
    def health(cls):
        if cls.server.poll() is not None:
            cls.log.seek(0)
            raise AssertionError("the server has ended: " + cls.log.read().decode())
        answer, content = cls.proxy.ask("GET", "/health")
        return json.loads(content) if answer.status == 200 else {}

    def form(self, **fields):
        boundary = "boundary"
        parts = [f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
        parts.append(f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="page.png"\r\n\r\n'.encode())
        body = b"".join([*parts, PAGE.read_bytes(), f"\r\n--{boundary}--\r\n".encode()])
        return body, {"content-type": f"multipart/form-data; boundary={boundary}"}

    def test_a_page_is_read_through_the_proxy(self):
        body, headers = self.form()
        answer, content = self.proxy.ask("POST", "/extract", body, {**headers, "x-request-id": "ward-3.1"})
        self.assertEqual(answer.status, 200, content)
        self.assertIn("Amoxicillin 500 mg", json.loads(content)["extracted_content"])
        self.assertEqual(answer.getheader("x-request-id"), "ward-3.1")

    def test_a_stream_has_its_events(self):
        body, headers = self.form(stream="true")
        answer, content = self.proxy.ask("POST", "/extract", body, headers)
        self.assertEqual((answer.status, answer.getheader("content-type").split(";")[0]), (200, "text/event-stream"))
        self.assertRegex(content.decode(), r"(?s)event: queued.*event: delta.*event: done")

    def test_the_page_and_its_api_are_on_the_other_port(self):
        answer, content = self.proxy.ask("GET", "/", port=self.proxy.page_port)
        self.assertEqual(answer.status, 200, content)
        self.assertIn("text/html", answer.getheader("content-type"))
        body, headers = self.form()
        origin = f"https://localhost:{self.proxy.page_port}"
        answer, content = self.proxy.ask("POST", "/api/extract", body, {**headers, "origin": origin}, port=self.proxy.page_port)
        self.assertEqual(answer.status, 200, content)
        answer, _ = self.proxy.ask("POST", "/api/extract", body, {**headers, "origin": "https://elsewhere.example"}, port=self.proxy.page_port)
        self.assertEqual(answer.status, 403)

    def test_an_upload_that_the_server_refuses_keeps_its_status(self):
        body, headers = self.form()
        body = body.replace(b"\r\n--boundary--", b"\0" * (21 * 1024 * 1024) + b"\r\n--boundary--")
        answer, content = self.proxy.ask("POST", "/extract", body, headers)
        self.assertEqual(answer.status, 413, content)


class Compose(unittest.TestCase):
    def test_the_compose_file_has_what_the_configuration_names(self):
        text, proxy = CONFIGURATION.read_text(), compose()["services"]["proxy"]
        self.assertEqual(set(re.findall(r"/run/secrets/([\w.]+)", text)), set(proxy["secrets"]))
        listened = set(re.findall(r"listen (\d+) ssl;", text))
        self.assertEqual({port.split(":")[1] for port in proxy["ports"]}, listened)
        self.assertEqual(set(re.findall(r"^ +(\d+) \w+;$", text, re.MULTILINE)), listened)
        ports = set(re.findall(r"server medvision:(\d+);", text))
        server = compose()["services"]["server"]["environment"]
        self.assertEqual(ports, {server["MVP_PORT"], server["MVP_DEMO_PORT"]})
        self.assertIn("./nginx.conf:/etc/nginx/nginx.conf:ro", proxy["volumes"])
        grace = int(proxy["stop_grace_period"].removesuffix("s"))
        self.assertLess(int(re.search(r"worker_shutdown_timeout (\d+)s;", text)[1]), grace)
        # All that nginx writes is below the only writable folder.
        written = re.findall(r"(?:_temp_path|pid) (\S+);", text)
        self.assertEqual(len(written), 6)
        self.assertTrue(all(path.startswith("/tmp/") for path in written))


if __name__ == "__main__":
    unittest.main()
