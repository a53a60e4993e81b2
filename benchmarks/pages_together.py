#!/usr/bin/env python3
"""Pages that arrive together, against the same pages one after the other: both on the shipped server, with the embedded model.

    python3 benchmarks/pages_together.py [--pages 8] [--rounds 3] [--device cpu]

Starts `server` once, and asks it for the pages one at a time and all at once, in turns. Prints and records pages/s, and whether the texts
are the same.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
import uuid

sys.dont_write_bytecode = True
import record

PAGES = sorted((record.ROOT / "tests" / "fixtures" / "pages").glob("small_*.png"))


def post(url, page):
    """The answer to `/extract` of `page`, and its seconds."""
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="page.png"\r\n\r\n'
    body = head.encode() + page.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    request = urllib.request.Request(f"{url}/extract", body, {"content-type": f"multipart/form-data; boundary={boundary}"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def one_after_the_other(url, pages):
    return [post(url, page) for page in pages]


def together(url, pages):
    answers = [None] * len(pages)

    def ask(number):
        answers[number] = post(url, pages[number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(pages))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    pages = [PAGES[number % len(PAGES)] for number in range(arguments.pages)]
    command = [record.binary("server"), "--port", "0", "--device", arguments.device, "--queue", str(arguments.pages),
               "--max-batch", str(arguments.pages), "--no-prefix-cache"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=record.ROOT,
                              env={**os.environ, "NO_COLOR": "1"})
    try:
        url = next(found.group(1) for line in server.stderr if (found := re.search(r"listening on (http://\S+?);", line)))
        threading.Thread(target=server.stderr.read, daemon=True).start()
        while True:
            try:
                urllib.request.urlopen(f"{url}/health/ready")
                break
            except OSError:
                time.sleep(0.1)
        texts = [answer["extracted_content"] for answer in one_after_the_other(url, pages)]
        speeds = {"one_after_the_other": [], "together": []}
        same = True
        for _ in range(arguments.rounds):
            for way in (one_after_the_other, together):
                start = time.perf_counter()
                answers = way(url, pages)
                speeds[way.__name__].append(len(pages) / (time.perf_counter() - start))
                same &= [answer["extracted_content"] for answer in answers] == texts
    finally:
        server.terminate()
        server.wait()
    ratio = record.median(speeds["together"]) / record.median(speeds["one_after_the_other"])
    figures = {way: record.spread(found) for way, found in speeds.items()}
    for way, found in figures.items():
        print(f"{way.replace('_', ' '):24}{found['median']:8.2f} pages/s")
    print(f"{'ratio':24}{ratio:8.2f}    texts {'are the same' if same else 'DIFFER'}")
    name = "pages_together" if arguments.device == "cpu" else "gpu_pages_together"
    print("written:", record.save(name, {"pages": len(pages), "pages_per_second": figures, "ratio": round(ratio, 3), "same_texts": same}))


if __name__ == "__main__":
    main()
