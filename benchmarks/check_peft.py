#!/usr/bin/env python3
"""Loads an adapter folder with PEFT on top of transformers' model, and compares the logits of a page with those of
`medvision trace --adapter` on the same folders: a folder that fine-tuning wrote here, or one that PEFT wrote.

    python benchmarks/check_peft.py models/qwen25-vl-nano-medical-lora --model models/qwen25-vl-nano

Needs tests/fixtures/requirements.txt and requirements-adapters.txt. Writes benchmarks/runs/peft-adapter.json and exits with
1 where the two differ by more than 2e-4, where the adapter changes nothing, or where PEFT finds tensors missing or unknown.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

os.environ |= {"TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

import record
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

PAGE = record.ROOT / "datasets" / "sample" / "discharge_note.png"
TOLERANCE = 2e-4


def trace(medvision: str, model: Path, adapter: Path) -> dict:
    with tempfile.TemporaryDirectory() as home:
        out = f"{home}/trace.safetensors"
        subprocess.run([medvision, "trace", "--device", "cpu", "--precision", "f32", "--model", model,
                        "--adapter", adapter, "--image", PAGE, "--out", out], check=True)
        return load_file(out)


@torch.no_grad()
def logits(model, stages: dict) -> torch.Tensor:
    ids = stages["input_ids"][None]
    return model(input_ids=ids, pixel_values=stages["pixel_values"], use_cache=False,
                 mm_token_type_ids=(ids == model.config.image_token_id).int(),
                 image_grid_thw=stages["image_grid_thw"]).logits[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--medvision", help="[default: target/release/medvision]")
    arguments = parser.parse_args()
    medvision = arguments.medvision or str(record.binary("medvision"))
    stages = trace(medvision, arguments.model, arguments.adapter)
    base = Qwen2_5_VLForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32).eval()
    bare = logits(base, stages)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, arguments.adapter).float().eval()
    complaints = [str(warning.message) for warning in said if "adapter keys" in str(warning.message)]
    stored = load_file(arguments.adapter / "adapter_model.safetensors")
    loaded = {key.replace(".default", "") for key in model.state_dict() if "lora_" in key}
    theirs = logits(model, stages)
    made = {
        "what": "logits of a page with an adapter: ours against PEFT's",
        "model": arguments.model.name,
        "adapter": arguments.adapter.name,
        "page": PAGE.name,
        "logits": list(theirs.shape),
        "adapter_tensors": len(stored),
        "tensors_unknown_to_peft": sorted(stored.keys() - loaded),
        "tensors_that_peft_misses": sorted(loaded - stored.keys()),
        "complaints": complaints,
        "largest_difference": (stages["logits"] - theirs).abs().max().item(),
        "the_adapter_moves_logits_by": (theirs - bare).abs().max().item(),
        "versions": {name: version(name) for name in ("peft", "torch", "transformers")}
        | {"python": platform.python_version()},
    }
    print(json.dumps(made, indent=1))
    print(f"written: {record.save('peft-adapter', made)}")
    agrees = (made["largest_difference"] <= TOLERANCE < made["the_adapter_moves_logits_by"]
              and stored.keys() == loaded and not complaints)
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
