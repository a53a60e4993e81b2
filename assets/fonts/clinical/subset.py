"""Makes the fonts in this folder from Debian's packages: python3 subset.py FOLDER_OF_UNPACKED_PACKAGES (needs fonttools 4.60.1).

    apt-get download fonts-dejavu-core fonts-dejavu-extra fonts-liberation2 fonts-courier-prime fonts-jetbrains-mono \\
        fonts-anonymous-pro fonts-roboto-unhinted fonts-open-sans fonts-lato fonts-crosextra-carlito \\
        fonts-crosextra-caladea fonts-sil-gentium-basic
    for package in *.deb; do dpkg-deb -x "$package" unpacked; done

Each font keeps the glyphs of the alphabet that documents are written in, its hinting and its copyright notices, and gets a
neutral name, as the licences ask of changed fonts with a reserved one.
"""

import sys
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

ALPHABET = "".join(map(chr, range(0x20, 0x7F))) + "—–°µ±≤≥×•→²éü’"
FONTS = {
    "mono-1": ("liberation2/LiberationMono-Regular.ttf", "liberation2/LiberationMono-Bold.ttf"),
    "mono-2": ("courier-prime/Courier Prime.otf", "courier-prime/Courier Prime Bold.otf"),
    "mono-3": ("jetbrains-mono/JetBrainsMono-Regular.ttf", "jetbrains-mono/JetBrainsMono-Bold.ttf"),
    "mono-4": ("anonymous-pro/Anonymous Pro.ttf", "anonymous-pro/Anonymous Pro B.ttf"),
    "sans-1": ("dejavu/DejaVuSans.ttf", "dejavu/DejaVuSans-Bold.ttf"),
    "sans-2": ("liberation2/LiberationSans-Regular.ttf", "liberation2/LiberationSans-Bold.ttf"),
    "sans-3": ("roboto/unhinted/RobotoTTF/Roboto-Regular.ttf", "roboto/unhinted/RobotoTTF/Roboto-Bold.ttf"),
    "sans-4": ("open-sans/OpenSans-Regular.ttf", "open-sans/OpenSans-Bold.ttf"),
    "sans-5": ("lato/Lato-Regular.ttf", "lato/Lato-Bold.ttf"),
    "sans-6": ("crosextra/Carlito-Regular.ttf", "crosextra/Carlito-Bold.ttf"),
    "sans-7": ("dejavu/DejaVuSansCondensed.ttf", "dejavu/DejaVuSansCondensed-Bold.ttf"),
    "serif-1": ("dejavu/DejaVuSerif.ttf", "dejavu/DejaVuSerif-Bold.ttf"),
    "serif-2": ("liberation2/LiberationSerif-Regular.ttf", "liberation2/LiberationSerif-Bold.ttf"),
    "serif-3": ("crosextra/Caladea-Regular.ttf", "crosextra/Caladea-Bold.ttf"),
    "serif-4": ("gentium-basic/GenBasR.ttf", "gentium-basic/GenBasB.ttf"),
}
FAMILY, COPYRIGHTS = (1, 3, 4, 6, 16), (0, 7, 13, 14)


def main(unpacked: Path) -> None:
    fonts = {"/".join(path.parts[-2:]): path for path in unpacked.rglob("*.?tf")}
    for name, files in FONTS.items():
        for file, suffix in zip(files, ("", "-bold")):
            source = fonts.get("/".join(file.split("/")[-2:]))
            if source is None:
                sys.exit(f"{file} is not below {unpacked}")
            write(source, f"{name}{suffix}")


def write(source: Path, name: str) -> None:
    font = TTFont(source)
    missing = [letter for letter in ALPHABET if ord(letter) not in font.getBestCmap()]
    if missing:
        print(f"{source.name} lacks {missing}")
    options = subset.Options(hinting=True, layout_features=[], name_IDs=[*COPYRIGHTS, *FAMILY], notdef_outline=True)
    options.drop_tables += ["GPOS", "GSUB", "GDEF", "kern", "DSIG", "FFTM", "STAT", "LTSH", "VDMX", "hdmx", "gasp"]
    subsetter = subset.Subsetter(options)
    subsetter.populate(text=ALPHABET)
    subsetter.subset(font)
    table = font["name"]
    table.names = [record for record in table.names if record.nameID in (*COPYRIGHTS, *FAMILY)]
    for record in table.names:
        if record.nameID in FAMILY:
            record.string = f"Page-{name}"
    font["head"].modified = font["head"].created
    font.recalcTimestamp = False
    font.save(Path(__file__).parent / f"{name}.{source.suffix[1:]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
