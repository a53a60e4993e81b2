"""Tests of what `make release` tells the compilers, and of its lists: `make test` runs them."""

import shlex
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import licences
import reproducible
import sbom


class EnvironmentTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.top = Path(folder.name)
        (self.top / "cargo home/registry/src/index-1").mkdir(parents=True)

    def variables(self, **base):
        base = {"CARGO_HOME": str(self.top / "cargo home"), "PATH": "/bin", **base}
        return reproducible.environment(base, self.top / "sources", self.top / "sources/target")

    def test_what_would_change_the_programs_is_left_out(self):
        variables = self.variables(RUSTFLAGS="-g", CARGO_PROFILE_RELEASE_DEBUG="true", CXXFLAGS="-g", MEDVISION_GIT_HASH="x")
        self.assertEqual(variables["PATH"], "/bin")
        self.assertNotIn("RUSTFLAGS", variables)
        self.assertNotIn("CARGO_PROFILE_RELEASE_DEBUG", variables)
        self.assertNotIn("-g", shlex.split(variables["CXXFLAGS"]))
        self.assertEqual(variables["MEDVISION_GIT_HASH"], "unknown")

    def test_every_folder_has_a_name_the_inner_one_last(self):
        variables = self.variables(LIBTORCH="/opt/torch")
        flags = variables["CARGO_ENCODED_RUSTFLAGS"].split("\x1f")
        for folder, name in (
            (self.top / "cargo home/registry/src/index-1", "/crates"),
            (self.top / "sources", "/medvision"),
            (self.top / "sources/target", "/target"),
            (Path("/opt/torch"), "/libtorch"),
        ):
            self.assertIn(f"--remap-path-prefix={folder}={name}", flags)
            # A folder with a space is one word.
            self.assertIn(f"-ffile-prefix-map={folder}={name}", shlex.split(variables["CXXFLAGS"]))
        place = [flag.rsplit("=", 1)[1] for flag in flags]
        self.assertLess(place.index("/cargo"), place.index("/crates"))
        self.assertLess(place.index("/medvision"), place.index("/target"))


class ListsTest(unittest.TestCase):
    def test_libraries_belong_to_their_wheels(self):
        cuda = ["nvidia_cuda_cupti-13.0.85", "nvidia_cuda_runtime-13.0.96", "nvidia_cusparse-12.6.3.3", "nvidia_cusparselt_cu13-0.8.0"]
        packages = ["nvidia_cublas-13.1.0.3", *cuda, "torch-2.11.0"]
        for library, package in (
            ("libtorch_cpu.so", "torch-2.11.0"),
            ("libc10.so", "torch-2.11.0"),
            ("libgomp.so.1", "torch-2.11.0"),
            ("libcudart.so.13", "nvidia_cuda_runtime-13.0.96"),
            ("libcupti.so.13", "nvidia_cuda_cupti-13.0.85"),
            ("libcublasLt.so.13", "nvidia_cublas-13.1.0.3"),
            ("libcusparse.so.12", "nvidia_cusparse-12.6.3.3"),
            ("libcusparseLt.so.0", "nvidia_cusparselt_cu13-0.8.0"),
            ("libcaffe2_nvrtc.so", "torch-2.11.0"),
            ("libunknown.so", None),
        ):
            self.assertEqual(sbom.wheel_of(library, packages), package, library)

    def test_a_crate_without_licence_files_gets_the_text_of_its_licence(self):
        with tempfile.TemporaryDirectory() as folder:
            package = {"name": "bare", "version": "1.0.0", "license": "MIT/Apache-2.0", "manifest_path": f"{folder}/Cargo.toml"}
            found = dict(licences.texts(package))
            self.assertEqual(set(found), {"LICENSE-MIT", "LICENSE-APACHE"})
            self.assertIn("the authors of bare", found["LICENSE-MIT"])
            with self.assertRaises(licences.LicenceError):
                licences.texts({**package, "license": "Other"})
            self.assertIn("public domain", licences.texts({**package, "license": "CC0-1.0"})[0][1])
            sibling = Path(folder, "sibling")
            sibling.mkdir()
            (sibling / "COPYING").write_text("of the family")
            family = {**package, "license": "BSD-3-Clause", "repository": "https://example.org/family"}
            other = {**family, "name": "other", "manifest_path": f"{sibling}/Cargo.toml"}
            self.assertEqual(licences.texts(family, [family, other]), [("COPYING", "of the family")])
            Path(folder, "LICENCE.md").write_text("own words")
            self.assertEqual(licences.texts(package), [("LICENCE.md", "own words")])

    def test_only_what_is_linked_counts(self):
        def node(name, *dependencies):
            deps = [{"pkg": other, "dep_kinds": [{"kind": kind}]} for other, kind in dependencies]
            return {"id": name, "deps": deps}

        found = {
            "packages": [{"id": name, "name": name, "version": "1"} for name in "abcd"],
            "resolve": {"root": "a", "nodes": [node("a", ("b", None), ("c", "dev")), node("b", ("d", "build")), node("c"), node("d")]},
        }
        self.assertEqual([package["name"] for package in licences.linked(found)], ["b"])

    def test_a_given_date_goes_before_the_commits(self):
        with mock.patch.dict("os.environ", {"SOURCE_DATE_EPOCH": "7"}):
            self.assertEqual(reproducible.commit_time(reproducible.ROOT), 7)


if __name__ == "__main__":
    unittest.main()
