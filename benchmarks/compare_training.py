#!/usr/bin/env python3
"""Trains LoRA on the same pages with `finetune_lora` and with transformers + peft, in turn; prints tokens/s and their ratio.

    python3 benchmarks/compare_training.py                      # the embedded model on the CPU, all cores
    python3 benchmarks/compare_training.py --questions 1        # the same, pages that one sample alone has
    python3 benchmarks/compare_training.py --gpu FOLDER         # a base in NF4 on a GPU: 16 samples x 512 tokens a step

Rank 64 on the contract's seven modules, AdamW, batches of 4. On the CPU: ours on the base in four bits, the peer in float32
(bitsandbytes' CPU path is slower), vision blocks adapted as the contract has it; two samples ask about each page (of those that
prepare_training_data generates, four), and ours looks at it once.
On a GPU: bfloat16, vision tower frozen, pages of 256 pixels, as design papers of the peer do; FOLDER is what
benchmarks/random_model.py writes. Tokens are those of pages, prompts and answers; padding is none. peft is needed beside
tests/fixtures/requirements.txt (requirements-adapters.txt).
"""
import argparse
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

sys.dont_write_bytecode = True
import record

PROMPT = "List the medications."
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BATCH = 4


def noise(width, height, draw):
    """A grey PNG of random pixels."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + draw.randbytes(width) for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def project(root, samples, questions, size, digits):
    """A prepared project: pages of noise, as many samples to each, and answers of digits, each of which is one token."""
    draw = random.Random(7)
    images = root / "datasets" / "formatted" / "images"
    images.mkdir(parents=True)
    split = []
    for i in range(samples):
        name = f"datasets/formatted/images/{i // questions}.png"
        if i % questions == 0:
            (root / name).write_bytes(noise(*size, draw))
        answer = "".join(draw.choice("0123456789") for _ in range(digits))
        split.append({"image_path": name, "prompt": PROMPT, "response": answer, "source": "MTSamples"})
    (images.parent / "train.json").write_text(json.dumps(split))
    (images.parent / "val.json").write_text("[]")


def ours(root, options):
    """A run of `finetune_lora`; its record."""
    command = [str(record.binary("finetune_lora")), "--root", str(root), "--model", str(options.model), "--max-val-samples", "0",
               "--epochs", str(options.steps), "--checkpoint-steps", "1000000", "--batch-size", str(options.batch_size),
               "--grad-accum-steps", str(options.samples // options.batch_size), "--quiet",
               *(["--device", "cuda", "--freeze-vision"] if options.gpu else ["--device", "cpu", "--threads", str(options.threads)])]
    if options.gradient_checkpointing:
        command.append("--gradient-checkpointing")
    subprocess.run(command, check=True, stdout=sys.stderr)
    made = json.loads((root / "benchmarks" / "training_metrics.json").read_text())
    tokens = made["tokens"] / made["steps"]
    return {"step_seconds": made["median_step_seconds"], "tokens_a_step": tokens,
            "tokens_per_second": tokens / made["median_step_seconds"], "trainable": made["trainable_params"],
            "peak_mib": made["gpu_memory"]["max_allocated_mb"] if options.gpu else None,
            "losses": [point["loss"] for point in made["loss_history"]], "base": made["base_model_dir"]}


def peer(root, options):
    """In the peer's Python: prints one line of JSON."""
    import peft
    import torch
    import transformers
    from PIL import Image
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    torch.set_num_threads(options.threads)
    device = "cuda" if options.gpu else "cpu"
    dtype = torch.bfloat16 if options.gpu else torch.float32
    transformers.logging.disable_progress_bar()
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(options.model, dtype=dtype, device_map=device)
    if options.gpu:
        model = peft.prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})
    excluded = r".*visual.*" if options.gpu else None
    model = peft.get_peft_model(model, peft.LoraConfig(
        r=64, lora_alpha=128, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM", target_modules=SEVEN, exclude_modules=excluded))
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    processor = AutoProcessor.from_pretrained(options.model)
    split = json.loads((root / "datasets" / "formatted" / "train.json").read_text())
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
    text = processor.apply_chat_template(message, add_generation_prompt=True)
    optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.01)
    wait = torch.cuda.synchronize if options.gpu else lambda: None
    seconds, losses, tokens = [], [], 0
    for _ in range(options.steps):
        wait()
        start, tokens, total = time.perf_counter(), 0, 0.0
        for first in range(0, options.samples, BATCH):
            part = split[first:first + BATCH]
            inputs = processor(text=[f"{text}{sample['response']}<|im_end|>" for sample in part],
                               images=[Image.open(root / sample["image_path"]).convert("RGB") for sample in part],
                               padding=True, return_tensors="pt").to(device)
            ids = inputs["input_ids"]
            labels = ids.clone()
            for row, sample in enumerate(part):
                labels[row, : ids.shape[1] - len(sample["response"]) - 1] = -100
            tokens += int(inputs["attention_mask"].sum())
            with torch.autocast(device, torch.bfloat16, enabled=bool(options.gpu)):
                loss = model(**inputs, labels=labels).loss / (options.samples // BATCH)
            loss.backward()
            total += float(loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        wait()
        seconds.append(time.perf_counter() - start)
        losses.append(total)
    middle = record.median(seconds)
    print(json.dumps({
        "step_seconds": middle, "tokens_a_step": tokens, "tokens_per_second": tokens / middle, "losses": losses,
        "trainable": sum(p.numel() for p in trained),
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20 if options.gpu else None,
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft)}}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", type=Path, metavar="FOLDER", help="a base in NF4, to be trained on the GPU")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--samples", type=int, help="samples a step (default: 4 on the CPU, 16 on a GPU)")
    parser.add_argument("--questions", type=int, help="samples to a page (default: 2 on the CPU, 1 on a GPU)")
    parser.add_argument("--batch-size", type=int, default=BATCH, help="ours; the peer's is 4")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="ours; the peer has it on a GPU")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--python", help="a Python that has transformers and peft")
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("--no-record", action="store_true", help="leave benchmarks/runs/ as it is")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.samples = options.samples or (16 if options.gpu else BATCH)
    options.questions = options.questions or (1 if options.gpu else 2)
    options.model = options.model or (options.gpu or record.ROOT / "models" / "qwen25-vl-nano").resolve()
    if options.worker:
        return peer(options.worker, options)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        # 81 image tokens of a page of 252 pixels, and 512 tokens in all; on the CPU a page as it is read.
        project(root, options.samples, options.questions, *(((252, 252), 396) if options.gpu else ((800, 600), 300)))
        if not options.gpu:
            subprocess.run([record.binary("quantize_base"), "--root", root, "--model", options.model, "--device", "cpu",
                            "--method", "nf4", "--quiet"], check=True, stdout=sys.stderr)
        made, theirs = ours(root, options), None
        if not options.only_ours:
            worker = [record.environment(options.python), "-B", __file__, "--worker", str(root), *sys.argv[1:]]
            done = subprocess.run(worker, stdout=subprocess.PIPE, text=True, check=True)
            theirs = json.loads(done.stdout.splitlines()[-1])
    for name, side in (("finetune_lora", made), ("transformers + peft", theirs)):
        if side:
            print(f"{name:20} {side['step_seconds']:8.3f} s a step of {side['tokens_a_step']:.0f} tokens, "
                  f"{side['tokens_per_second']:9.1f} tokens/s, peak {side['peak_mib'] or float('nan'):.0f} MiB")
    ratio = theirs and made["tokens_per_second"] / theirs["tokens_per_second"]
    if theirs:
        print(f"ratio {ratio:.2f}x")
    if not options.no_record:
        name = "gpu_training_vs_peft" if options.gpu else "cpu_training_vs_peft"
        if not options.gpu and options.questions != 2:
            name += {1: "-one-question", 4: "-four-questions"}.get(options.questions, f"-{options.questions}-questions")
        path = record.save(name, {"threads": options.threads, "steps": options.steps, "samples_a_step": options.samples,
                                  "questions_a_page": options.questions,
                                  "model": options.model.name, "finetune_lora": made, "peft": theirs, "ratio": ratio})
        print(f"written: {path}")


if __name__ == "__main__":
    main()
