"""Records what a client and the server say to each other, without what differs from run to run."""

import http.server
import json
import pathlib
import re
import threading
import urllib.error
import urllib.request

from common import PAGES, PATIENCE, data_uri

VOLATILE = {"id", "created", "system_fingerprint"}


class Recorder:
    """A proxy in front of the server at `target`; `name` is that of the exchanges to come, None for those that are not kept.

    `server` tells what is special about the server, for those who replay.
    """

    exchanges = []

    def __init__(self, target, server=None):
        self.target = target
        self.server = server
        self.name = None
        recorder = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                recorder.forward(self)

            do_POST = do_GET

            def log_message(self, *_):
                pass

        self.proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.proxy.server_port}"
        threading.Thread(target=self.proxy.serve_forever).start()

    def forward(self, handler):
        length = int(handler.headers.get("content-length") or 0)
        body = handler.rfile.read(length) if length else None
        exchange = {
            "name": self.name,
            "method": handler.command,
            "path": handler.path,
            "request": compact(json.loads(body)) if body else None,
        }
        if self.server:
            exchange["server"] = self.server
        if self.name:
            # In the order of the requests: a stream can end after what was asked meanwhile.
            self.exchanges.append(exchange)
        kind = {"content-type": handler.headers["content-type"]} if body else {}
        request = urllib.request.Request(self.target + handler.path, body, kind, method=handler.command)
        try:
            answer = urllib.request.urlopen(request, timeout=PATIENCE)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            kind = answer.headers["content-type"]
            exchange["status"] = answer.status
            handler.send_response(answer.status)
            handler.send_header("content-type", kind)
            if "retry-after" in answer.headers:
                exchange["retry_after"] = True
                handler.send_header("retry-after", answer.headers["retry-after"])
            handler.end_headers()
            if kind == "text/event-stream":
                content, cancelled = pass_on(answer, handler.wfile)
                if cancelled:
                    exchange["cancelled"] = True
                exchange["answer"] = steady(events(content, cancelled))
            else:
                content = answer.read()
                handler.wfile.write(content)
                exchange["answer"] = steady(json.loads(content))
                if answer.status == 200 and is_sampled(exchange["request"] or {}):
                    exchange["sampled"] = True
                    exchange["answer"] = unsampled(exchange["answer"])

    def close(self):
        self.proxy.shutdown()
        self.proxy.server_close()

    @classmethod
    def write(cls, file):
        pathlib.Path(file).write_text(json.dumps(cls.exchanges, indent=1, ensure_ascii=False) + "\n")


def pass_on(answer, client):
    """Sends a stream on as it comes; what came, and whether the client left before its end."""
    content = b""
    for line in answer:
        content += line
        try:
            client.write(line)
        except OSError:
            return content, True
    return content, False


def compact(value):
    """`value` with `page:NAME` for the pages in it, and `repeat:COUNT:TEXT` for texts that only fill the context."""
    if isinstance(value, list):
        return [compact(item) for item in value]
    if isinstance(value, dict):
        return {key: compact(item) for key, item in value.items()}
    if not isinstance(value, str) or len(value) < 1000:
        return value
    for page in PAGES.glob("small_*.png"):
        if value == data_uri(page.name):
            return f"page:{page.name}"
    piece = value[: value.index(" ") + 1]
    count = len(value) // len(piece)
    if piece * count != value:
        raise AssertionError("a long text that is no page")
    return f"repeat:{count}:{piece}"


def is_sampled(request):
    """Whether the answer differs between processors."""
    return request.get("temperature", 0) > 0 and request.get("top_k") != 1


def unsampled(answer):
    """`answer` without what was sampled."""
    answer["usage"] = answer["medvision"]["finish_reason"] = None
    for choice in answer["choices"]:
        choice["finish_reason"] = choice["message"]["content"] = None
    return answer


def events(content, cancelled):
    """The chunks of a stream as one: how the text is split over them depends on the machine. Without text if it was cancelled."""
    data = re.findall(r"^data: (.*)$", content.decode(), re.MULTILINE)
    if not cancelled and data.pop() != "[DONE]":
        raise AssertionError("the stream ended early")
    chunks = [json.loads(chunk) for chunk in data]
    texts = [chunk for chunk in chunks if chunk["choices"] and chunk["choices"][0]["delta"].get("content")]
    others = [chunk for chunk in chunks if chunk not in texts]
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in texts)
    return {"chunks": others, "text": None if cancelled else text}


def steady(value):
    """`value` without ids and times."""
    if isinstance(value, str):
        return re.sub(r"try again in \d+ s", "try again in N s", value)
    if isinstance(value, list):
        return [steady(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: None if key in VOLATILE or key.endswith("_seconds") else steady(item) for key, item in value.items()
    }
