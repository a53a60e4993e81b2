"""What the sources take in at compile time must reach the image's build: .dockerignore lets it through."""

import re
import unittest
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
# include_str!("../a"), include_bytes!(concat!("../a", ...)): up to the first thing that a macro fills in.
INCLUDED = re.compile(r'include_(?:str|bytes)!\(\s*(?:concat!\(\s*)?"([^"]+)"')


class DockerContext(unittest.TestCase):
    def test_every_file_that_the_sources_include_is_in_it(self):
        lines = (PROJECT / ".dockerignore").read_text().splitlines()
        kept = [PROJECT / line[1:] for line in lines if line.startswith("!") and "*" not in line]
        included = set()
        for source in (PROJECT / "src").rglob("*.rs"):
            for path in INCLUDED.findall(source.read_text()):
                included.add((source.parent / path).resolve())
        self.assertGreater(len(included), 10)
        left_out = [str(path) for path in included if not any(path.is_relative_to(one) for one in kept)]
        self.assertEqual(left_out, [])


if __name__ == "__main__":
    unittest.main()
