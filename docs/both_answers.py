"""Draws a page, what the base model answers and what the fine-tuned one answers, side by side:

    python3 docs/both_answers.py PAGE OUT.png [PROMPT] [ROWS]

Runs target/release/medvision twice, with `--adapter none` and with the model's own adapter; MVP_MODEL and MVP_ADAPTER name others.
Needs Pillow (13.0 drew the picture of the README) and DejaVu Sans Mono among the system's fonts.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT = "DejaVuSansMono.ttf"
BAR, MARGIN, LINE, COLUMNS, ANSWER = 64, 20, 20, 62, 660
MEDVISION = Path(__file__).parent.parent / "target/release/medvision"


def answer(page: str, prompt: str | None, adapter: str | None) -> str:
    command = [MEDVISION, "extract", page, "--quiet"]
    command += ["--prompt", prompt] if prompt else []
    command += ["--adapter", adapter] if adapter else []
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def lines(text: str) -> list[str]:
    # A line that does not fit goes on below, indented.
    return [
        part
        for line in text.splitlines()
        for part in textwrap.wrap(line, COLUMNS, subsequent_indent="    ") or [""]
    ]


def main() -> None:
    page_file, out = sys.argv[1:3]
    prompt = sys.argv[3] if len(sys.argv) > 3 else None
    answers = [
        ("base", lines(answer(page_file, prompt, "none"))),
        ("fine-tuned", lines(answer(page_file, prompt, os.environ.get("MVP_ADAPTER")))),
    ]
    page = Image.open(page_file).convert("L")
    rows = int(sys.argv[4]) if len(sys.argv) > 4 else page.height
    page = page.crop((0, 0, page.width, rows))
    width = page.width + len(answers) * ANSWER
    picture = Image.new("L", (width, rows + BAR), 255)
    draw = ImageDraw.Draw(picture)
    title, body = ImageFont.truetype(FONT, 20), ImageFont.truetype(FONT, 16)
    draw.rectangle((0, 0, width, BAR), fill=40)
    draw.text((MARGIN, 8), prompt or "the extraction prompt", font=body, fill=255)
    picture.paste(page, (0, BAR))
    for index, (name, text) in enumerate(answers):
        left = page.width + index * ANSWER
        draw.line((left, BAR, left, rows + BAR), fill=128, width=2)
        draw.text((left + MARGIN, 34), name, font=title, fill=255)
        for row, line in enumerate(text):
            draw.text((left + MARGIN, BAR + MARGIN + row * LINE), line, font=body, fill=0)
    picture.quantize(16).save(out, optimize=True)


main()
