"""Draws a page, or its upper ROWS pixels, beside the text that was read from it:

    medvision extract PAGE | python3 docs/page_beside_text.py PAGE OUT.png [ROWS]

Needs Pillow (13.0 drew the picture of the README) and DejaVu Sans Mono among the system's fonts.
"""

import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT = "DejaVuSansMono.ttf"
BAR, MARGIN, LINE, COLUMNS = 44, 20, 20, 88


def main() -> None:
    page_file, out = sys.argv[1:3]
    text = sys.stdin.read()
    page = Image.open(page_file).convert("L")
    width, height = page.size
    if len(sys.argv) > 3:
        height = int(sys.argv[3])
        page = page.crop((0, 0, width, height))
    picture = Image.new("L", (2 * width, height + BAR), 255)
    draw = ImageDraw.Draw(picture)
    title = ImageFont.truetype(FONT, 20)
    body = ImageFont.truetype(FONT, 16)
    draw.rectangle((0, 0, 2 * width, BAR), fill=40)
    draw.text((MARGIN, 10), Path(page_file).name, font=title, fill=255)
    draw.text((width + MARGIN, 10), "medvision extract", font=title, fill=255)
    picture.paste(page, (0, BAR))
    draw.line((width, BAR, width, height + BAR), fill=128, width=2)
    top = BAR + MARGIN
    for line in text.splitlines():
        # A line that does not fit goes on below, indented.
        for part in textwrap.wrap(line, COLUMNS, subsequent_indent="    ") or [""]:
            draw.text((width + MARGIN, top), part, font=body, fill=0)
            top += LINE
    picture.quantize(16).save(out, optimize=True)


main()
