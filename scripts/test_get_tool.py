"""Tests of get_tool.py against a small package index on this machine: `make test` runs them."""

import contextlib
import hashlib
import io
import os
import platform
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import get_libtorch
import get_tool
from test_get_libtorch import FakeIndex, wheel

NAME = "typos-1.0.0-py3-none-any.whl"
WHEEL = wheel({"typos-1.0.0.data/scripts/typos": b"#!/bin/sh\n", "typos-1.0.0.dist-info/METADATA": b""})


class ToolTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.top = Path(folder.name)
        self.program = self.top / "bin" / "typos"
        self.index = FakeIndex({NAME: WHEEL})
        self.addCleanup(self.index.close)
        quiet = {"PATH": os.environ["PATH"], "HOME": str(self.top)}
        for patch in (mock.patch.object(get_libtorch, "BACKOFF_SECONDS", 0.0), mock.patch.dict(os.environ, quiet, clear=True)):
            patch.start()
            self.addCleanup(patch.stop)

    def install(self, tool="typos", data=WHEEL):
        lock = self.top / "lock"
        lock.write_text(f"typos {platform.machine()} {NAME} {len(WHEEL)} {hashlib.sha256(data).hexdigest()}\n")
        with contextlib.redirect_stderr(io.StringIO()):
            get_tool.install(tool, self.program, lock, self.index.url)

    def test_installs_the_program_alone(self):
        self.install()
        self.assertEqual(self.program.read_bytes(), b"#!/bin/sh\n")
        self.assertTrue(os.access(self.program, os.X_OK))
        self.assertEqual(list(self.program.parent.iterdir()), [self.program])

    def test_another_file_than_the_pinned_one_is_refused(self):
        with self.assertRaisesRegex(get_libtorch.SetupError, "is pinned"):
            self.install(data=b"another")
        self.assertFalse(self.program.exists())

    def test_a_tool_that_is_not_pinned_is_named(self):
        with self.assertRaisesRegex(get_libtorch.SetupError, "no ruff is pinned"):
            self.install(tool="ruff")


if __name__ == "__main__":
    unittest.main()
