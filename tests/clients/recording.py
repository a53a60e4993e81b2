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
    """A proxy in front of the server at `target`; `name` is that of the exchanges to come."""

    def __init__(self, target):
        self.target = target
        self.name = None
        self.exchanges = []
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
        kind = {"content-type": handler.headers["content-type"]} if body else {}
        request = urllib.request.Request(self.target + handler.path, body, kind, method=handler.command)
        try:
            answer = urllib.request.urlopen(request, timeout=PATIENCE)
        except urllib.error.HTTPError as error:
            answer = error
        content = answer.read()
        kind = answer.headers["content-type"]
        handler.send_response(answer.status)
        handler.send_header("content-type", kind)
        handler.send_header("content-length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)
        if self.name:
            self.exchanges.append(
                {
                    "name": self.name,
                    "method": handler.command,
                    "path": handler.path,
                    "request": with_page_names(json.loads(body)) if body else None,
                    "status": answer.status,
                    "answer": steady(events(content) if kind == "text/event-stream" else json.loads(content)),
                }
            )

    def close(self, file):
        self.proxy.shutdown()
        self.proxy.server_close()
        kept = [exchange for exchange in self.exchanges if is_kept(exchange["request"] or {})]
        pathlib.Path(file).write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def is_kept(request):
    """Not prompts that only fill the context, nor sampled answers, which differ between processors."""
    return len(json.dumps(request)) < 10_000 and request.get("temperature") != 2


def with_page_names(value):
    """`value` with `page:NAME` for the pages in it."""
    text = json.dumps(value)
    for page in PAGES.glob("small_*.png"):
        text = text.replace(data_uri(page.name), f"page:{page.name}")
    return json.loads(text)


def events(content):
    """The chunks of a stream as one: how the text is split over them depends on the machine."""
    data = re.findall(r"^data: (.*)$", content.decode(), re.MULTILINE)
    if data[-1] != "[DONE]":
        raise AssertionError("the stream ended early")
    chunks = [json.loads(chunk) for chunk in data[:-1]]
    texts = [chunk for chunk in chunks if chunk["choices"] and chunk["choices"][0]["delta"].get("content")]
    others = [chunk for chunk in chunks if chunk not in texts]
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in texts)
    return {"chunks": others, "text": text}


def steady(value):
    """`value` without ids and times."""
    if isinstance(value, list):
        return [steady(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: None if key in VOLATILE or key.endswith("_seconds") else steady(item) for key, item in value.items()
    }
