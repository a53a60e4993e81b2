"""Draws docs/report.png, the first page of a report: pip install weasyprint==70.0 pypdfium2==5.15.2 pillow==13.0.0

Usage: report_page.py docs/BENCHMARK_REPORT.html docs/report.png
"""

import sys

import pypdfium2
import weasyprint

PAGE = weasyprint.CSS(
    string="@page { size: 230mm 330mm; margin: 10mm } body { font-size: 10px !important; margin: 0 !important; padding: 0 !important; max-width: none !important }"
    "th, td { padding: 1px 6px !important } figure { margin: 4px 0 !important } figure svg { height: 190px !important } ul, p { margin: 4px 0 !important } h2 { margin-top: 10px !important }"
)

page, picture = sys.argv[1:]
document = weasyprint.HTML(page).write_pdf(stylesheets=[PAGE])
image = pypdfium2.PdfDocument(document)[0].render(scale=1.4).to_pil()
image.quantize(64).save(picture, optimize=True)
