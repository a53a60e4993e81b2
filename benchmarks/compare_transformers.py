#!/usr/bin/env python3
"""Reads the same pages with `medvision extract` and with transformers, in turn, on the same cores; prints the ratios.

Both run the embedded model in float32 on the CPU, greedily. Latency is measured inside each process, after one page to
warm up; memory is the process's peak resident size; "whole command" is a fresh process from its start to the text.
transformers runs in an environment of its own under .cache/, or in the Python that --python names.
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True
import record

PROMPT = "Extract all medical terms, diagnoses, and clinical findings from this image."


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def worker(model_folder, threads, new_tokens, once):
    """In the peer's Python: reads a page for each line of stdin, answers with a line of JSON."""
    import torch
    import transformers
    from PIL import Image
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
    from transformers.generation.streamers import BaseStreamer

    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    processor = AutoProcessor.from_pretrained(model_folder)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(model_folder, dtype=torch.float32).eval()
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
    text = processor.apply_chat_template(message, add_generation_prompt=True)

    class Clock(BaseStreamer):
        def __init__(self):
            self.times = []

        def put(self, value):
            self.times.append(time.perf_counter())

        def end(self):
            pass

    def read(path):
        start, clock = time.perf_counter(), Clock()
        inputs = processor(text=[text], images=[Image.open(path).convert("RGB")], return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, streamer=clock)
        new = ids[0, inputs["input_ids"].shape[1]:]
        answer = processor.decode(new, skip_special_tokens=True)
        end = time.perf_counter()
        # The streamer is given the prompt first.
        return {"text": answer, "latency_seconds": end - start, "time_to_first_token_seconds": clock.times[1] - start,
                "completion_tokens": len(new), "peak_mib": peak_mib()}

    if once:
        return print(read(once)["text"])
    versions = {name: sys.modules[name].__version__ for name in ("torch", "transformers")}
    print(json.dumps({"python": sys.version.split()[0], **versions}), flush=True)
    for line in sys.stdin:
        print(json.dumps(read(line.strip())), flush=True)


class Transformers:
    name = "transformers"

    def __init__(self, options):
        self.command = [record.environment(options.python), "-B", __file__, "--worker", "--model", str(options.model),
                        "--threads", str(options.threads), "--max-new-tokens", str(options.max_new_tokens)]
        self.process = subprocess.Popen(self.command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.versions = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit("transformers ended early; its error is above")
        return json.loads(line)

    def read(self, pages):
        for page in pages:
            self.process.stdin.write(f"{page}\n")
            self.process.stdin.flush()
            yield self.answer()

    def once(self, page):
        return [*self.command, "--once", str(page)]


class Ours:
    name = "medvision"

    def __init__(self, options):
        self.command = [str(record.binary("medvision")), "extract", "--model", str(options.model), "--device", "cpu",
                        "--prompt", PROMPT, "--max-new-tokens", str(options.max_new_tokens)]
        self.versions = subprocess.run([self.command[0], "--version"], capture_output=True, text=True).stdout.strip()

    def read(self, pages):
        """A process a call, since it reads many files; its first page is there to warm up."""
        process = subprocess.Popen([*self.command, "--json", str(pages[0]), *map(str, pages)], text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        lines = process.stdout.read().splitlines()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"medvision ended with status {status}: {' '.join(self.command)}")
        for line in lines[1:]:
            page = json.loads(line)
            yield {"text": page["extracted_content"], "latency_seconds": page["inference_latency_seconds"],
                   "time_to_first_token_seconds": page["time_to_first_token_seconds"],
                   "completion_tokens": page["completion_tokens"], "peak_mib": usage.ru_maxrss / 1024}

    def once(self, page):
        return [*self.command, str(page)]


def whole_command(reader, page):
    start = time.perf_counter()
    subprocess.run(reader.once(page), check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def summary(readings):
    """Medians over all rounds and pages of one side."""
    def rate(page):
        seconds = page["latency_seconds"] - page["time_to_first_token_seconds"]
        return (page["completion_tokens"] - 1) / seconds

    return {"latency_seconds": record.spread(page["latency_seconds"] for page in readings),
            "time_to_first_token_seconds": record.spread(page["time_to_first_token_seconds"] for page in readings),
            "decode_tokens_per_second": record.spread(map(rate, readings)),
            "completion_tokens": record.spread(page["completion_tokens"] for page in readings),
            "peak_resident_mib": max(page["peak_mib"] for page in readings)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, help="pages to read (default: six full pages of the tests)")
    parser.add_argument("--model", type=Path, default=record.ROOT / "models" / "qwen25-vl-nano")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--max-new-tokens", type=int, default=560)
    parser.add_argument("--python", help="a Python that has transformers")
    parser.add_argument("--no-record", action="store_true", help="leave benchmarks/runs/ as it is")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--once", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options.model, options.threads, options.max_new_tokens, options.once)

    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    pages = options.pages or sorted((record.ROOT / "tests" / "fixtures" / "pages").glob("full_*.png"))
    sides = [Ours(options), Transformers(options)]
    for side in sides:
        list(side.read(pages[:1]))  # file caches and first allocations
    readings = {side.name: [] for side in sides}
    whole = {side.name: [] for side in sides}
    for turn in range(options.rounds):
        for side in sides if turn % 2 == 0 else reversed(sides):
            readings[side.name] += side.read(pages)
            whole[side.name].append(whole_command(side, pages[0]))
        print(f"round {turn + 1} of {options.rounds}", file=sys.stderr)

    ours, theirs = (summary(readings[side.name]) | {"whole_command_seconds": record.spread(whole[side.name])}
                    for side in sides)
    rows = [("latency of a page, s", "latency_seconds", False), ("time to the first token, s", "time_to_first_token_seconds", False),
            ("decoding, tokens/s", "decode_tokens_per_second", True), ("whole command, s", "whole_command_seconds", False),
            ("peak resident memory, MiB", "peak_resident_mib", False)]
    ratios = {}
    print(f"\n{'':27} {'medvision':>10} {'transformers':>13} {'ratio':>7}")
    for label, key, more_is_better in rows:
        a, b = (side[key] if key == "peak_resident_mib" else side[key]["median"] for side in (ours, theirs))
        ratios[key] = a / b if more_is_better else b / a
        print(f"{label:27} {a:10.3f} {b:13.3f} {ratios[key]:6.2f}x")
    same = sum(a["text"].strip() == b["text"].strip() for a, b in zip(*(readings[side.name] for side in sides)))
    total = len(readings[sides[0].name])
    print(f"\n{same} of {total} readings have the same text; {options.threads} threads, {options.rounds} rounds of {len(pages)} pages")
    if not options.no_record:
        path = record.save("cpu_extract_vs_transformers", {
            "threads": options.threads, "rounds": options.rounds, "model": options.model.name, "precision": "float32",
            "pages": [page.name for page in pages], "versions": {side.name: side.versions for side in sides},
            "medvision": ours, "transformers": theirs, "ratios": ratios, "same_text": same, "readings": total})
        print(f"written: {path}")


if __name__ == "__main__":
    main()
