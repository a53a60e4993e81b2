"""What a release holds, and that it runs where it is unpacked. `make release-test` runs this.

RELEASE=folder tests the archives there (`make release` made them); otherwise target/dist is packed quickly, without a bill of
materials where cargo-cyclonedx is not installed. Where this is root and a container engine has the image's base (`make release-test
BASES=emulated` makes it), the programs also run in that bare Debian.
"""

import gzip
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import licences  # noqa: E402
import make_release  # noqa: E402
import reproducible  # noqa: E402
import sbom  # noqa: E402

SAMPLE = ROOT / "datasets/sample/discharge_note.png"
BASE = re.search(r"(?m)^ARG DEBIAN_IMAGE=([^@\s]+)", (ROOT / "Dockerfile").read_text("utf-8"))[1]
READ = "DISCHARGE NOTE"
PROGRAMS = re.findall(r'(?m)^\[\[bin\]\]\nname = "(\w+)"', (ROOT / "Cargo.toml").read_text("utf-8"))
# Of this machine. Strings in libtorch are its maker's.
PATHS = re.compile(rb"/(?:root|home/[\w.-]+)/\.(?:cargo|rustup)/|" + re.escape(str(ROOT).encode()) + rb"/")


def setUpModule():
    global ARCHIVES, TOP
    work = tempfile.TemporaryDirectory(dir=ROOT / "target")
    unittest.addModuleCleanup(work.cleanup)
    ARCHIVES = pathlib.Path(os.environ.get("RELEASE") or work.name)
    if "RELEASE" not in os.environ:
        quick = [] if shutil.which(sbom.tool()) else ["--without-sbom"]
        command = [sys.executable, "-B", ROOT / "scripts/make_release.py", "--level", "1", *quick, ARCHIVES]
        subprocess.run(command, check=True)
    # A name that shells and programs stumble over.
    place = pathlib.Path(work.name, "any folder")
    place.mkdir()
    with tarfile.open(archive()) as opened:
        opened.extractall(place)
    [TOP] = place.iterdir()


def archive(suffix=""):
    [found] = ARCHIVES.glob(f"medvision-*-x86_64-linux{suffix}.tar.gz")
    return found


def sums(folder):
    lines = (folder / "SHA256SUMS").read_text("utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def run(*command, **options):
    words = [str(word) for word in command]
    options = {"env": {}, "cwd": "/", **options}
    return subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=600, **options)


def export_base(to):
    """Writes the base's file system; false where there is no engine that has it."""
    engine = run(ROOT / "scripts/container_engine.sh", env=os.environ)
    podman = ["--cgroup-manager", "cgroupfs", "--runtime", "runc"] if engine.stdout.strip() == "podman" else []
    command = [engine.stdout.strip(), *podman]
    if engine.returncode or run(*command, "image", "inspect", BASE, env=os.environ).returncode:
        return False
    made = run(*command, "create", BASE, "sh", env=os.environ)
    exported = run(*command, "export", "--output", to, made.stdout.strip(), env=os.environ)
    run(*command, "rm", made.stdout.strip(), env=os.environ)
    if exported.returncode:
        raise AssertionError(made.stderr + exported.stderr)
    return True


class Archive(unittest.TestCase):
    def test_depends_on_the_commit_alone(self):
        epoch = reproducible.commit_time(ROOT)
        for suffix in ("", "-symbols"):
            with tarfile.open(archive(suffix)) as opened:
                members = opened.getmembers()
            names = [member.name.split("/") for member in members]
            self.assertEqual(names, sorted(names))
            self.assertEqual(len({parts[0] for parts in names}), 1)
            for member in members:
                self.assertTrue(member.isfile() or member.isdir(), member.name)
                self.assertEqual((member.uid, member.gid, member.uname, member.gname), (0, 0, "root", "root"))
                runs = member.isdir() or "/bin/" in member.name
                self.assertEqual(member.mode, 0o755 if runs else 0o644, member.name)
                self.assertEqual(member.mtime, epoch, member.name)
            with open(archive(suffix), "rb") as raw:
                # gzip's header: no name, the same date.
                head = raw.read(10)
            self.assertEqual((head[3], int.from_bytes(head[4:8], "little")), (0, epoch))

    def test_the_same_files_give_the_same_bytes(self):
        found = set()
        with tempfile.TemporaryDirectory() as work:
            for i in range(2):
                folder = pathlib.Path(work, str(i), "top")
                (folder / "bin").mkdir(parents=True)
                for name in ("bin/b", "a", "c")[:: 1 - 2 * i]:
                    (folder / name).write_text(name)
                    (folder / name).chmod(0o700 - 0o100 * i)
                    os.utime(folder / name, (i, i))
                packed = pathlib.Path(work, f"{i}.tar.gz")
                make_release.pack(folder, packed, 1000, 9)
                found.add(packed.read_bytes())
        self.assertEqual(len(found), 1)
        self.assertIn(b"top/bin/b", gzip.decompress(found.pop()))

    def test_every_sum_is_right(self):
        for folder in (TOP, ARCHIVES):
            listed = sums(folder)
            files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
            if folder == ARCHIVES:
                files = {name: file for name, file in files.items() if "/" not in name}
            del files["SHA256SUMS"]
            self.assertEqual(set(listed), set(files))
            for name, file in files.items():
                self.assertEqual(hashlib.sha256(file.read_bytes()).hexdigest(), listed[name], name)


class Contents(unittest.TestCase):
    def test_all_programs_with_pages_completions_and_symbols(self):
        self.assertEqual(sorted(file.name for file in (TOP / "bin").iterdir()), sorted(PROGRAMS))
        pages = {file.stem for file in (TOP / "share/man/man1").iterdir()}
        self.assertLessEqual({*PROGRAMS, "medvision-extract", "medvision-load-offline"}, pages)
        for shell in ("bash", "zsh", "fish"):
            text = (TOP / f"completions/medvision.{shell}").read_text("utf-8")
            for program in PROGRAMS:
                self.assertIn(program, text)
            if shutil.which(shell):
                checked = run(shutil.which(shell), "-n", TOP / f"completions/medvision.{shell}")
                self.assertEqual(checked.returncode, 0, checked.stderr)
        with tarfile.open(archive("-symbols")) as opened:
            names = {member.name.split("/")[-1] for member in opened if member.isfile()}
        self.assertEqual(names, {f"{program}.debug" for program in PROGRAMS})

    def test_models_are_those_of_the_commit(self):
        for model in ("qwen25-vl-nano", "qwen25-vl-nano-medical-lora"):
            files = list((TOP / "share/medvision/models" / model).iterdir())
            self.assertTrue(files)
            for file in files:
                self.assertEqual(file.read_bytes(), (ROOT / "models" / model / file.name).read_bytes())

    def test_licences_of_everything(self):
        folder = TOP / "licences"
        text = (folder / "CRATES.txt").read_text("utf-8")
        for package in licences.linked(licences.metadata()):
            self.assertIn(f"\n{package['name']} {package['version']}: ", text)
        for words in ("Permission is hereby granted", "Apache License", "Mozilla Public License", "Unicode"):
            self.assertIn(words, text)
        for name in ("LICENSE-MIT", "LICENSE-APACHE", "RUST-LIBRARY.html", "fonts/LICENSE"):
            self.assertTrue((folder / name).is_file(), name)
        self.assertTrue(list(folder.glob("torch-*.dist-info/licenses/*")))

    def test_no_path_of_this_machine(self):
        # Release programs alone are compiled without them.
        if "RELEASE" not in os.environ:
            self.skipTest("target/dist is a developer's build")
        for file in (TOP / "bin").iterdir():
            self.assertEqual(PATHS.findall(file.read_bytes()), [], file.name)

    def test_bill_of_materials(self):
        file = TOP / "sbom.cdx.json"
        if not file.exists() and "RELEASE" not in os.environ:
            self.skipTest("cargo-cyclonedx is not installed")
        bom = json.loads(file.read_text("utf-8"))
        self.assertEqual((bom["bomFormat"], bom["specVersion"]), ("CycloneDX", "1.5"))
        self.assertNotIn("serialNumber", bom)
        self.assertNotRegex(file.read_text("utf-8"), r"file://|" + re.escape(str(ROOT)))
        crates = {f"pkg:cargo/{package['name']}@{package['version']}" for package in licences.linked(licences.metadata())}
        found = {component.get("purl", "").split("?")[0] for component in bom["components"]}
        self.assertLessEqual({name.replace("+", "%2B") for name in crates}, {name.replace("+", "%2B") for name in found})
        listed = sums(TOP)
        parts = {part["name"]: part["hashes"][0]["content"] for one in bom["components"] for part in one.get("components", [])}
        for name in listed:
            if name.startswith(("lib/", "share/medvision/models/")):
                self.assertEqual(parts[name], listed[name], name)
        references = [component["bom-ref"] for component in bom["components"]]
        self.assertEqual(len(references), len(set(references)))
        for dependency in bom["dependencies"]:
            self.assertLessEqual(set(dependency.get("dependsOn", [])), set(references))


class Installed(unittest.TestCase):
    def test_cargo_install_makes_programs_that_run_elsewhere(self):
        if "RELEASE" in os.environ:
            self.skipTest("cargo's own folder has a developer's build: make release-test")
        with tempfile.TemporaryDirectory() as root:
            # Installs what is built in the target folder already. From the checkout, whose .cargo/config.toml names libtorch.
            command = [os.environ.get("CARGO", "cargo"), "install", "--quiet", "--locked", "--offline", "--path", ".", "--root", root]
            installed = run(*command, cwd=ROOT, env=os.environ)
            self.assertEqual(installed.returncode, 0, installed.stderr)
            programs = pathlib.Path(root, "bin")
            self.assertEqual(sorted(file.name for file in programs.iterdir()), sorted(PROGRAMS))
            read = run(programs / "medvision", "extract", SAMPLE, cwd=root)
            self.assertIn(READ, read.stdout, read.stderr)
            shown = run(programs / "server", "--version", cwd=root)
            self.assertEqual(shown.returncode, 0, shown.stderr)


class Running(unittest.TestCase):
    def test_reads_the_sample_page_from_any_folder(self):
        for program in ("medvision", "server"):
            shown = run(TOP / "bin" / program, "--version")
            self.assertEqual(shown.returncode, 0, shown.stderr)
        read = run(TOP / "bin/medvision", "extract", SAMPLE)
        self.assertIn(READ, read.stdout, read.stderr)
        self.assertIn(str(TOP / "share/medvision/models/qwen25-vl-nano"), read.stderr)

    def test_saves_its_licences_and_bill_of_materials(self):
        with tempfile.TemporaryDirectory() as work:
            folder = pathlib.Path(work, "offline")
            saved = run(TOP / "bin/medvision", "save-offline", folder, "--no-image")
            self.assertEqual(saved.returncode, 0, saved.stderr)
            self.assertTrue((folder / "licences/CRATES.txt").is_file())
            self.assertEqual((folder / "sbom.cdx.json").exists(), (TOP / "sbom.cdx.json").exists())
            loaded = run(TOP / "bin/medvision", "load-offline", folder, "--into", pathlib.Path(work, "models"), "--no-image")
            self.assertEqual(loaded.returncode, 0, loaded.stderr)

    def test_runs_on_a_bare_debian(self):
        with tempfile.TemporaryDirectory(dir=ROOT / "target") as work:
            exported = pathlib.Path(work, "base.tar")
            if os.geteuid() or not export_base(exported):
                self.skipTest("not root, or no base: make release-test BASES=emulated")
            base = pathlib.Path(work, "root")
            base.mkdir()
            subprocess.run(["tar", "-C", base, "-xf", exported], check=True)
            place = base / "srv/any folder"
            place.mkdir(parents=True)
            # With that system's own tar and gzip.
            shutil.copy(archive(), place)
            shutil.copy(SAMPLE, base / "page.png")
            script = 'mount -t proc proc "$1/proc" && exec chroot "$1" sh -c "$2"'
            unpack = f"cd '/srv/any folder' && tar -xf {archive().name} && cd {TOP.name} && sha256sum --check --quiet SHA256SUMS"
            for command, expected in (
                (unpack, "^$"),
                (f"cd / && '/srv/any folder/{TOP.name}/bin/medvision' extract /page.png", READ),
                (f"cd /tmp && PATH='/srv/any folder/{TOP.name}/bin':$PATH && server --version", "medvision|server"),
            ):
                result = run("unshare", "--mount", "sh", "-c", script, "sh", base, command, env={"PATH": os.defpath + ":/usr/sbin:/sbin"})
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertRegex(result.stdout, expected)


if __name__ == "__main__":
    unittest.main()
