#!/usr/bin/env python3
"""How much faster the NF4 quantizer is than bitsandbytes' CPU quantizer: a bf16 matrix of 3584 x 18944, the same cores,
the two alternately, the best of several rounds each; the bytes are compared too.

    python benchmarks/compare_bitsandbytes.py          # on an idle machine; needs torch, bitsandbytes and cargo

Writes benchmarks/runs/nf4-quantizer.json and exits with 1 where the ratio is below 3 or the bytes differ.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import torch
from bitsandbytes import functional

sys.dont_write_bytecode = True
import record

ROWS, COLUMNS = 3584, 18944
BAR = 3.0


def ours(program: str, file: str, threads: int) -> dict:
    """One round of two; the first one warms up."""
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    out = subprocess.run([program, "quantize", file, "2"], check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(out.stdout.splitlines()[-1])


def theirs(weight: torch.Tensor) -> dict:
    start = time.perf_counter()
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    seconds = time.perf_counter() - start
    digest = hashlib.sha256()
    for part in (packed, state.absmax, state.state2.absmax):
        digest.update(part.numpy().tobytes())
    return {"seconds": seconds, "sha256": digest.hexdigest()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--program", help="the built benchmark, instead of building it")
    arguments = parser.parse_args()
    program = arguments.program or record.bench_program("nf4")
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(42)
    weight = (torch.randn(ROWS, COLUMNS, generator=generator) * 0.02).to(torch.bfloat16)
    rounds = {"ours": [], "bitsandbytes": []}
    with tempfile.NamedTemporaryFile() as file:
        file.write(weight.view(torch.uint8).numpy().tobytes())
        file.flush()
        theirs(weight)
        for _ in range(arguments.rounds):
            rounds["bitsandbytes"].append(theirs(weight))
            rounds["ours"].append(ours(program, file.name, threads))
    best = {name: min(one["seconds"] for one in results) for name, results in rounds.items()}
    digests = {one["sha256"] for results in rounds.values() for one in results}
    made = {
        "what": "NF4 quantization with double quantization of a bf16 matrix",
        "matrix": [ROWS, COLUMNS],
        "ratio": round(best["bitsandbytes"] / best["ours"], 2),
        "bar": BAR,
        "same_bytes": len(digests) == 1,
        "best_seconds": {name: round(seconds, 4) for name, seconds in best.items()},
        "all_seconds": {name: [round(one["seconds"], 4) for one in results] for name, results in rounds.items()},
        "threads": threads,
        "versions": {name: version(name) for name in ("bitsandbytes", "torch")} | {"python": platform.python_version()},
    }
    print(json.dumps(made, indent=1))
    print(f"written: {record.save('nf4-quantizer', made)}")
    return 0 if made["ratio"] >= BAR and made["same_bytes"] else 1


if __name__ == "__main__":
    sys.exit(main())
