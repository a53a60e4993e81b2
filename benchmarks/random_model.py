#!/usr/bin/env python3
"""Writes a Qwen2.5-VL folder with random weights, to measure memory and speed of shapes whose weights are not at hand.

    python benchmarks/random_model.py models/random-7b-bnb-nf4              # 7B in NF4: 5.6 GB
    python benchmarks/random_model.py models/random-7b --form bf16          # 7B in bf16: 16.6 GB
    python benchmarks/random_model.py models/random --shapes tiny
    python benchmarks/random_model.py --plan                                # only says how large it would be

Needs torch and safetensors alone, no network. NF4 weights are random codes and scales in bitsandbytes' layout with double
quantization (blocks of 64), as `quantize_base` writes them; they are made at once, not from numbers. Tokenizer, chat
template and processor are those of models/qwen25-vl-nano.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

NANO = Path(__file__).resolve().parent.parent / "models" / "qwen25-vl-nano"
SIDE_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.json", "preprocessor_config.json",
              "generation_config.json")
SHARD_BYTES = 2 << 30

SHAPES = {
    "7b": {"hidden": 3584, "intermediate": 18944, "layers": 28, "heads": 28, "kv_heads": 4, "vocab": 152064,
           "tied": False, "mrope": [16, 24, 24], "depth": 32, "vision": 1280, "vision_intermediate": 3420,
           "vision_heads": 16, "full": [7, 15, 23, 31]},
    "3b": {"hidden": 2048, "intermediate": 11008, "layers": 36, "heads": 16, "kv_heads": 2, "vocab": 151936,
           "tied": True, "mrope": [16, 24, 24], "depth": 32, "vision": 1280, "vision_intermediate": 3420,
           "vision_heads": 16, "full": [7, 15, 23, 31]},
    "tiny": {"hidden": 256, "intermediate": 512, "layers": 2, "heads": 4, "kv_heads": 2, "vocab": 8192,
             "tied": False, "mrope": [8, 12, 12], "depth": 2, "vision": 128, "vision_intermediate": 180,
             "vision_heads": 4, "full": [1]},
}
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]


def dynamic_map() -> torch.Tensor:
    """bitsandbytes' signed 8-bit dynamic code."""
    values = [0.0, 1.0]
    for decade in range(7):
        bounds = torch.linspace(0.1, 1, (1 << decade) + 1, dtype=torch.float32)
        for mean in ((bounds[:-1] + bounds[1:]) / 2).tolist():
            values += [10 ** (decade - 6) * mean, -(10 ** (decade - 6)) * mean]
    return torch.tensor(sorted(values), dtype=torch.float32)


class Writer:
    """Shards of at most 2 GiB, one in memory at a time."""

    def __init__(self, folder: Path, form: str) -> None:
        self.folder, self.form = folder, form
        self.shard, self.bytes, self.shards = {}, 0, []
        self.generator = torch.Generator().manual_seed(42)
        self.map = dynamic_map()

    def put(self, name: str, tensor: torch.Tensor) -> None:
        if self.bytes + tensor.nbytes > SHARD_BYTES and self.shard:
            self.flush()
        self.shard[name] = tensor
        self.bytes += tensor.nbytes

    def flush(self) -> None:
        path = self.folder / f"shard-{len(self.shards)}.safetensors"
        save_file(self.shard, path, metadata={"format": "pt"})
        self.shards.append((path, list(self.shard), self.bytes))
        self.shard, self.bytes = {}, 0

    def dense(self, name: str, *shape: int, value: float | None = None) -> None:
        """A tensor in bf16: `value`, or noise that keeps activations as they are."""
        if value is not None:
            tensor = torch.full(shape, value, dtype=torch.bfloat16)
        else:
            tensor = torch.empty(shape, dtype=torch.bfloat16)
            tensor.normal_(0, 1 / math.sqrt(math.prod(shape[1:])), generator=self.generator)
        self.put(name, tensor)

    def linear(self, name: str, out: int, inputs: int, bias: bool) -> None:
        if self.form == "nf4":
            self.quantized(f"{name}.weight", out, inputs)
        else:
            self.dense(f"{name}.weight", out, inputs)
        if bias:
            self.dense(f"{name}.bias", out, value=0.0)

    def quantized(self, name: str, out: int, inputs: int) -> None:
        blocks = -(-out * inputs // 64)
        random = lambda n: torch.randint(0, 256, (n,), dtype=torch.uint8, generator=self.generator)
        # A block's largest value is some 2.5 standard deviations.
        scale = 2.5 / math.sqrt(inputs)
        self.put(name, random(out * inputs // 2)[:, None])
        self.put(f"{name}.absmax", random(blocks))
        self.put(f"{name}.quant_map", torch.tensor(NF4))
        self.put(f"{name}.nested_absmax", torch.full((-(-blocks // 256),), scale / 4))
        self.put(f"{name}.nested_quant_map", self.map.clone())
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [out, inputs],
                 "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": scale}
        text = json.dumps(state).encode()
        self.put(f"{name}.quant_state.bitsandbytes__nf4", torch.tensor(list(text), dtype=torch.uint8))

    def finish(self) -> None:
        self.flush()
        names, count = {}, len(self.shards)
        for number, (path, tensors, _) in enumerate(self.shards, 1):
            final = f"model-{number:05}-of-{count:05}.safetensors"
            path.rename(self.folder / final)
            names |= dict.fromkeys(tensors, final)
        index = {"metadata": {"total_size": sum(size for *_, size in self.shards)}, "weight_map": names}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


class Plan(Writer):
    """Adds up sizes instead of writing."""

    def __init__(self, form: str) -> None:
        self.form, self.parts = form, {}

    def add(self, name: str, size: int) -> None:
        part = "embedding" if "embed_tokens" in name else "head" if "lm_head" in name else name.split(".")[0]
        self.parts[part] = self.parts.get(part, 0) + size

    def dense(self, name: str, *shape: int, value: float | None = None) -> None:
        self.add(name, 2 * math.prod(shape))

    def quantized(self, name: str, out: int, inputs: int) -> None:
        blocks = -(-out * inputs // 64)
        # Codes, their scales, the scales of these, and the two tables that are kept beside each weight.
        self.add(name, out * inputs // 2 + blocks + 4 * -(-blocks // 256) + 4 * (512 + 256))


def print_plan(shapes: dict, form: str) -> None:
    plan = Plan(form)
    write_weights(plan, shapes)
    mib = lambda size: round(size / 2**20, 1)
    total = sum(plan.parts.values())
    # Beside a quantized model the embedding table stays with the host, unless it is the head too.
    on_gpu = total if shapes["tied"] or form != "nf4" else total - plan.parts["embedding"]
    print(json.dumps({"parts_mib": {name: mib(size) for name, size in plan.parts.items()}, "total_mib": mib(total),
                      "on_gpu_mib": mib(on_gpu)}, indent=2))


def write_weights(writer: Writer, s: dict) -> None:
    kv = s["hidden"] // s["heads"] * s["kv_heads"]
    writer.dense("model.embed_tokens.weight", s["vocab"], s["hidden"])
    for i in range(s["layers"]):
        layer = f"model.layers.{i}"
        writer.dense(f"{layer}.input_layernorm.weight", s["hidden"], value=1.0)
        writer.linear(f"{layer}.self_attn.q_proj", s["hidden"], s["hidden"], True)
        writer.linear(f"{layer}.self_attn.k_proj", kv, s["hidden"], True)
        writer.linear(f"{layer}.self_attn.v_proj", kv, s["hidden"], True)
        writer.linear(f"{layer}.self_attn.o_proj", s["hidden"], s["hidden"], False)
        writer.dense(f"{layer}.post_attention_layernorm.weight", s["hidden"], value=1.0)
        writer.linear(f"{layer}.mlp.gate_proj", s["intermediate"], s["hidden"], False)
        writer.linear(f"{layer}.mlp.up_proj", s["intermediate"], s["hidden"], False)
        writer.linear(f"{layer}.mlp.down_proj", s["hidden"], s["intermediate"], False)
    writer.dense("model.norm.weight", s["hidden"], value=1.0)
    if not s["tied"]:
        writer.dense("lm_head.weight", s["vocab"], s["hidden"])
    writer.dense("visual.patch_embed.proj.weight", s["vision"], 3, 2, 14, 14)
    for i in range(s["depth"]):
        block = f"visual.blocks.{i}"
        writer.dense(f"{block}.norm1.weight", s["vision"], value=1.0)
        writer.dense(f"{block}.norm2.weight", s["vision"], value=1.0)
        writer.linear(f"{block}.attn.qkv", 3 * s["vision"], s["vision"], True)
        writer.linear(f"{block}.attn.proj", s["vision"], s["vision"], True)
        for name in ("gate_proj", "up_proj"):
            writer.linear(f"{block}.mlp.{name}", s["vision_intermediate"], s["vision"], True)
        writer.linear(f"{block}.mlp.down_proj", s["vision"], s["vision_intermediate"], True)
    merged = 4 * s["vision"]
    writer.dense("visual.merger.ln_q.weight", s["vision"], value=1.0)
    writer.linear("visual.merger.mlp.0", merged, merged, True)
    writer.linear("visual.merger.mlp.2", s["hidden"], merged, True)


def config(s: dict, form: str) -> dict:
    made = json.loads((NANO / "config.json").read_text())
    made |= {"hidden_size": s["hidden"], "intermediate_size": s["intermediate"], "num_hidden_layers": s["layers"],
             "max_window_layers": s["layers"], "num_attention_heads": s["heads"], "num_key_value_heads": s["kv_heads"],
             "vocab_size": s["vocab"], "tie_word_embeddings": s["tied"], "max_position_embeddings": 32768}
    made["rope_scaling"] = {"type": "mrope", "mrope_section": s["mrope"]}
    made["vision_config"] |= {"depth": s["depth"], "hidden_size": s["vision"], "num_heads": s["vision_heads"],
                              "intermediate_size": s["vision_intermediate"], "out_hidden_size": s["hidden"],
                              "fullatt_block_indexes": s["full"]}
    if form == "nf4":
        made["quantization_config"] = {
            "_load_in_4bit": True, "_load_in_8bit": False, "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8", "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
            "llm_int8_enable_fp32_cpu_offload": False, "llm_int8_has_fp16_weight": False,
            "llm_int8_skip_modules": None, "llm_int8_threshold": 6.0, "load_in_4bit": True, "load_in_8bit": False,
            "quant_method": "bitsandbytes"}
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--plan", action="store_true", help="say how large the weights are in memory, and write nothing")
    parser.add_argument("--shapes", choices=SHAPES, default="7b")
    parser.add_argument("--form", choices=("nf4", "bf16"), default="nf4")
    arguments = parser.parse_args()
    shapes = SHAPES[arguments.shapes]
    if arguments.plan:
        print_plan(shapes, arguments.form)
        return
    if arguments.folder is None:
        parser.error("name the folder to write")
    arguments.folder.mkdir(parents=True)
    writer = Writer(arguments.folder, arguments.form)
    write_weights(writer, shapes)
    writer.finish()
    (arguments.folder / "config.json").write_text(json.dumps(config(shapes, arguments.form), indent=2) + "\n")
    for name in SIDE_FILES:
        shutil.copy(NANO / name, arguments.folder / name)


if __name__ == "__main__":
    main()
