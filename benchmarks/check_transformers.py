#!/usr/bin/env python3
"""Loads a folder that `quantize_base` wrote with transformers and bitsandbytes, as it stands, and compares the logits of a
page with those of `medvision trace` on the same folder.

    python benchmarks/check_transformers.py models/qwen25-vl-nano-bnb-nf4 [--medvision target/release/medvision]

Needs torch, transformers and bitsandbytes. Writes benchmarks/runs/nf4-transformers.json and exits with 1 where the two
differ by more than rounding to bfloat16 does, or where transformers calls anything missing, unexpected or mismatched.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ |= {"TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

import bitsandbytes
import torch
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

sys.dont_write_bytecode = True
import record

PAGE = record.ROOT / "datasets" / "sample" / "discharge_note.png"


def load(folder: Path):
    model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    return model.eval(), {key: sorted(map(str, value)) for key, value in report.items() if value}


def logits(model, stages: dict, dtype: torch.dtype) -> torch.Tensor:
    """Of the whole prompt, everything in `dtype` but the weights, which are dequantized to it."""
    for value in [*model.parameters(), *model.buffers()]:
        if value.dtype.is_floating_point:
            value.data = value.data.to(dtype)
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.compute_dtype = module.weight.quant_state.dtype = dtype
            module.support_avx512bf16_for_cpu = False
    ids = stages["input_ids"][None]
    with torch.no_grad():
        result = model(input_ids=ids, pixel_values=stages["pixel_values"].to(dtype), use_cache=False,
                       mm_token_type_ids=(ids == model.config.image_token_id).int(),
                       image_grid_thw=stages["image_grid_thw"])
    return result.logits[0].float()


def trace(medvision: str, folder: Path, precision: str) -> dict:
    with tempfile.TemporaryDirectory() as home:
        out = f"{home}/trace.safetensors"
        command = [medvision, "trace", "--device", "cpu", "--precision", precision, "--model", folder, "--image", PAGE]
        subprocess.run([*command, "--out", out], check=True)
        return load_file(out)


def compare(a: torch.Tensor, b: torch.Tensor) -> dict:
    a, b = a.double(), b.double()
    difference = (a - b).abs()
    return {
        "largest_difference": round(difference.max().item(), 5),
        "mean_difference": round(difference.mean().item(), 6),
        "cosine": round(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item(), 8),
        "same_next_token": round((a.argmax(-1) == b.argmax(-1)).float().mean().item(), 5),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--medvision", default=str(record.ROOT / "target" / "release" / "medvision"))
    arguments = parser.parse_args()
    f32, bf16 = (trace(arguments.medvision, arguments.folder, name) for name in ("f32", "bf16"))
    model, report = load(arguments.folder)
    quantized = sum(isinstance(module, bitsandbytes.nn.Linear4bit) for module in model.modules())
    rounded = logits(model, f32, torch.bfloat16)
    exact = logits(load(arguments.folder)[0], f32, torch.float32)
    made = {
        "what": "logits of a page: ours against transformers with bitsandbytes, on a folder of quantize_base's",
        "folder": arguments.folder.name,
        "page": PAGE.name,
        "logits": list(exact.shape),
        "linear4bit_modules": quantized,
        "loading_report": report,
        "ours_f32_against_theirs_f32": compare(f32["logits"], exact),
        "ours_bf16_against_theirs_bf16": compare(bf16["logits"], rounded),
        "theirs_bf16_against_theirs_f32": compare(rounded, exact),
        "ours_bf16_against_theirs_f32": compare(bf16["logits"], exact),
        "versions": {name: version(name) for name in ("bitsandbytes", "torch", "transformers")}
        | {"python": platform.python_version()},
    }
    print(json.dumps(made, indent=1))
    print(f"written: {record.save('nf4-transformers', made)}")
    rounding = made["theirs_bf16_against_theirs_f32"]["largest_difference"]
    agrees = (made["ours_f32_against_theirs_f32"]["largest_difference"] <= rounding / 4
              and made["ours_bf16_against_theirs_bf16"]["largest_difference"] <= 2 * rounding)
    return 0 if agrees and quantized and not report else 1


if __name__ == "__main__":
    sys.exit(main())
