#!/usr/bin/env python3
"""How much of the machine's read bandwidth the NF4 matrix-vector product reaches, with each kind of instructions.

    python benchmarks/nf4_product.py          # on an idle machine; needs cargo

Runs benchmarks/nf4.rs, which measures both in the same run, some rounds for each kind, and writes the best product and the best bandwidth of all of them to
benchmarks/runs/nf4-product.json. Exits with 1 where AVX-512 or AVX2 stays below 60 %: without them arithmetic is the limit, not memory.
"""

import argparse
import json
import os
import subprocess
import sys

sys.dont_write_bytecode = True
import record

BAR = 0.6


def output(*command: str, **environment: str) -> str:
    return subprocess.run(command, cwd=record.ROOT, check=True, stdout=subprocess.PIPE, text=True,
                          env=os.environ | environment).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--program", help="the built benchmark, instead of building it")
    arguments = parser.parse_args()
    program = arguments.program or record.bench_program("nf4")
    lines = []
    for _ in range(arguments.rounds):
        for level in ("avx512", "avx2", "sse4.1", "portable"):
            lines.append(json.loads(output(program, MVP_CPU_LEVEL=level)))
    # The best of each apart: the ratio of one round flatters where a neighbour slowed only the reading.
    bandwidth = max(line["read_bandwidth_gb_per_second"] for line in lines)
    best = {}
    for line in lines:
        best.setdefault(line["instructions"], []).append(line["product_gb_per_second"])
    shares = {name: round(max(rates) / bandwidth, 3) for name, rates in best.items()}
    made = {
        "what": "NF4 matrix-vector product on the CPU beside the machine's read bandwidth, measured in the same run",
        "bar": BAR,
        "read_bandwidth_gb_per_second": round(bandwidth, 2),
        "product_gb_per_second": {name: round(max(rates), 2) for name, rates in best.items()},
        "share_of_read_bandwidth": shares,
        "rounds": lines,
        "rustc": output("rustc", "--version"),
    }
    print(json.dumps(made, indent=1))
    print(f"written: {record.save('nf4-product', made)}")
    return 0 if all(share >= BAR for name, share in shares.items() if name.startswith("avx")) else 1


if __name__ == "__main__":
    sys.exit(main())
