#!/usr/bin/env python3
"""Memory and speed of Qwen2.5-VL shapes in NF4 on one GPU: `medvision bench`, then transformers with bitsandbytes.

    python benchmarks/gpu_nf4.py                    # 7B shapes
    python benchmarks/gpu_nf4.py --shape 3b --answer-tokens 128
    python benchmarks/gpu_nf4.py --shape tiny --device cpu --ours-only

Both have random weights of the same shapes, a page of 900x1100, a prompt of 1,313 tokens, and answers of 512 tokens: speed and
memory only, no quality. Needs torch, transformers, bitsandbytes and the built `medvision`.
"""
import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
import record

SHAPES = record.ROOT / "src" / "benchmark" / "speed" / "shapes"
TINY = record.ROOT / "models" / "qwen25-vl-nano" / "config.json"
WIDTH, HEIGHT = 900, 1100
TEXT_TOKENS = 65


def config(shape):
    """The shapes' config.json, which `medvision bench` has, too."""
    from transformers import Qwen2_5_VLConfig

    path = TINY if shape == "tiny" else SHAPES / f"{shape}.json"
    return Qwen2_5_VLConfig.from_dict(json.loads(path.read_text()))


def inputs(settings, device):
    """A prompt of the page's tokens and TEXT_TOKENS others."""
    import torch

    height, width = round(HEIGHT / 28) * 2, round(WIDTH / 28) * 2
    image = settings.image_token_id
    ids = [1, 2, 3, settings.vision_start_token_id, *[image] * (height * width // 4), settings.vision_end_token_id]
    ids += range(100, 100 + TEXT_TOKENS - 5)
    ids = torch.tensor([ids], device=device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == image).long(),
            "pixel_values": torch.randn(height * width, 1176, device=device),
            "image_grid_thw": torch.tensor([[1, height, width]], device=device)}


def write_weights(shape, folder, device):
    """Random weights in bf16."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration(config(shape))
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02) if parameter.dim() > 1 else parameter.fill_(1.0)
    model.save_pretrained(folder)


def peer(options):
    """In a process of its own: prints one line of JSON."""
    import bitsandbytes
    import torch
    import transformers
    from transformers import BitsAndBytesConfig, Qwen2_5_VLForConditionalGeneration

    device = options.device
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16,
                                      bnb_4bit_use_double_quant=True)
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        write_weights(options.shape, folder, device)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, quantization_config=quantization, device_map=device, dtype=torch.bfloat16).eval()
        torch.cuda.synchronize()
        load = time.perf_counter() - start
    allocated = torch.cuda.memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
    prompt = inputs(model.config, device)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    def answer(tokens):
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(**prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    answer(16)
    first = record.spread(answer(1) for _ in range(options.repeat))
    whole = record.spread(answer(options.answer_tokens) for _ in range(options.repeat))
    decode = (options.answer_tokens - 1) / (whole["median"] - first["median"])
    print(json.dumps({
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, bitsandbytes)},
        "prompt_tokens": prompt["input_ids"].shape[1], "load_and_quantize_seconds": load,
        "memory_after_loading_mib": allocated, "memory_peak_mib": torch.cuda.max_memory_allocated() / 2**20,
        "first_token_seconds": first, "decode_tokens_per_second": decode, "answer_seconds": whole}))


def ours(options):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speed.json"
        command = [record.binary("medvision"), "bench", "--shape", options.shape, "--form", "nf4", "--device", options.device,
                   "--image", f"{WIDTH}x{HEIGHT}", "--answer-tokens", str(options.answer_tokens),
                   "--repeat", str(options.repeat), "--profile", "--json", path]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return json.loads(path.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="7b", choices=["tiny", "3b", "7b", "32b", "72b"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--answer-tokens", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--scratch", help="folder with space for the peer's weights in bf16 (7B: 16.6 GB)")
    parser.add_argument("--ours-only", action="store_true", help="print our figures; no peer, no record")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        return peer(options)
    made = ours(options)
    if options.ours_only:
        return print(json.dumps(made, indent=1))
    theirs = subprocess.run([sys.executable, __file__, "--peer", *sys.argv[1:]], stdout=subprocess.PIPE, text=True)
    figures = json.loads(theirs.stdout.splitlines()[-1]) if theirs.returncode == 0 else None
    print(json.dumps({"medvision": made, "transformers_bitsandbytes": figures}, indent=1))
    path = record.save(f"gpu_nf4_{options.shape}", {"medvision": made, "transformers_bitsandbytes": figures})
    print(f"written: {path}")


if __name__ == "__main__":
    main()
