"""schemathesis: requests made from /openapi.json, valid and invalid ones. The server must answer none of them with 5xx."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

from common import Server

EXAMPLES = 40


class Schema(unittest.TestCase):
    def test_no_request_of_the_schema_is_a_server_error(self):
        server = Server("--max-new-tokens", "2")
        self.addCleanup(server.close)
        program = pathlib.Path(sys.executable).with_name("schemathesis")
        # Its database of examples stays out of the working tree.
        with tempfile.TemporaryDirectory() as folder:
            result = subprocess.run(
                [
                    program, "run", server.url + "/openapi.json",
                    "--checks", "not_a_server_error",
                    "--phases", "examples,coverage,fuzzing",
                    "--max-examples", str(EXAMPLES),
                    "--generation-deterministic",
                    "--suppress-health-check", "all",
                    "--request-timeout", "300",
                ],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )  # fmt: skip
        self.assertEqual(result.returncode, 0, result.stdout)
        self.assertIsNone(server.process.poll())
        self.assertEqual(server.health()["requests_admitted"], 0)
        self.assertEqual([line for line in server.log("request") if line["status"] >= 500], [])


if __name__ == "__main__":
    unittest.main()
