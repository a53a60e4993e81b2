#!/usr/bin/env python3
"""Memory and speed of 7B shapes in NF4 on one GPU, with medvision and with transformers + bitsandbytes, in turn.

    python benchmarks/random_model.py FOLDER        # random weights: speed and memory only, no quality
    python benchmarks/gpu_nf4.py FOLDER

The same five pages, 64 tokens each. Needs torch, transformers, bitsandbytes and the built `benchmark_quantized`.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
import record

TOKENS = 64
PROMPT = "Extract all medical terms, diagnoses, and clinical findings from this image."


def peer(folder, pages):
    """In a process of its own: prints one line of JSON."""
    import bitsandbytes
    import torch
    import transformers
    from PIL import Image
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    start = time.perf_counter()
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, device_map="cuda", dtype=torch.bfloat16).eval()
    torch.cuda.synchronize()
    made = {"load_seconds": time.perf_counter() - start, "allocated_mib_after_loading": torch.cuda.memory_allocated() / 2**20,
            "versions": {m.__name__: m.__version__ for m in (torch, transformers, bitsandbytes)}}
    processor = AutoProcessor.from_pretrained(folder)
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
    text = processor.apply_chat_template(message, add_generation_prompt=True)

    def read(page, tokens):
        torch.cuda.synchronize()
        start = time.perf_counter()
        inputs = processor(text=[text], images=[Image.open(page).convert("RGB")], return_tensors="pt").to("cuda")
        with torch.inference_mode():
            model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    read(pages[0], 8)
    first = record.median(read(page, 1) for page in pages)
    whole = record.median(read(page, TOKENS) for page in pages)
    made |= {"time_to_first_token_seconds": first, "tokens_per_second": (TOKENS - 1) / (whole - first),
             "allocated_mib_peak": torch.cuda.max_memory_allocated() / 2**20}
    print(json.dumps(made))


def ours(folder, root):
    command = [record.binary("benchmark_quantized"), "--model", folder, "--root", root, "--device", "cuda",
               "--max-new-tokens", str(TOKENS)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return json.loads((root / "benchmarks" / "quantized_int4.json").read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peer", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        return peer(options.folder, options.peer)
    gpu = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
                         capture_output=True, text=True, check=True).stdout.strip()
    with tempfile.TemporaryDirectory() as root:
        made = ours(options.folder.resolve(), Path(root))
        pages = sorted(Path(root).glob("datasets/test_images/*.png"))
        theirs = subprocess.run([sys.executable, __file__, str(options.folder), "--peer", *map(str, pages)],
                                stdout=subprocess.PIPE, text=True)
    peer_figures = json.loads(theirs.stdout.splitlines()[-1]) if theirs.returncode == 0 else None
    print(json.dumps({"medvision": made, "transformers_bitsandbytes": peer_figures}, indent=1))
    print(f"written: {record.save('gpu_nf4_7b', {'gpu': gpu, 'tokens': TOKENS, 'medvision': made, 'transformers_bitsandbytes': peer_figures})}")


if __name__ == "__main__":
    main()
