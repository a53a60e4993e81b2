"""The image: what it is made of, and how it behaves under a hospital's restrictions. `make image-test` runs this."""

import os
import pathlib
import re
import secrets
import shutil
import subprocess
import tempfile
import unittest

import common
from common import API, MEMORY, PAGE, ROOT, Archive, Container, engine, eventually

SAMPLE = ROOT / "datasets/sample/discharge_note.png"
LARGEST_MB = 650
LONGEST_CPU_SECONDS = 5
COMPILERS = re.compile(
    r"(.*/)?s?bin/([\w-]*gcc|[\w-]*g\+\+|cc|c\+\+|cpp|clang.*|ld(\.(bfd|gold|lld))?|as|make|cmake|rustc|cargo|rustup|go|nvcc|python[\d.]*)(-[\d.]+)?"
)
SOURCES = re.compile(r".*\.(rs|c|cc|cpp|h|hpp|cu|cuh)|(.*/)?(Cargo\.(toml|lock)|\.git|\.cargo)(/.*)?")
PACKAGE_LISTS = re.compile(r"var/lib/apt/lists/.*(Packages|Release).*|var/cache/apt/.*\.(bin|deb)|var/log/.*")
SECRETS = re.compile(r"(.*/)?(id_(rsa|dsa|ecdsa|ed25519)|\.netrc|\.npmrc|\.pypirc|\.env|\.git-credentials|\.docker/config\.json)")
PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{16}")
SECRET_TEXT = re.compile(r"(?i)passw|secret|token|bearer|credential|_key\b|://[^/\s]*@")
# A switch.
NO_SECRET = "MVP_GENERATE_API_KEY=1"


def setUpModule():
    global IMAGE
    IMAGE = os.environ.get("MVP_IMAGE")
    if not IMAGE:
        IMAGE = "localhost/medvision:test-" + secrets.token_hex(4)
        unittest.addModuleCleanup(lambda: engine("rmi", "--force", IMAGE, check=False))
        print(f"the last stage took {common.build(IMAGE):.0f} s", flush=True)
    # After building, which needs the package mirror.
    Container.shares_network = common.own_loopback()
    unittest.addModuleCleanup(remove_containers)


def remove_containers():
    left = engine("ps", "--all", "--quiet", "--filter", f"label={common.LABEL}").split()
    if left:
        engine("rm", "--force", *left)


class Contents(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.archive = Archive(IMAGE)
        cls.addClassCleanup(cls.archive.close)

    def files(self):
        """Name and content (of files up to 1 MB) of everything in every layer, also of what a later layer hides."""
        for _, _, layer in self.archive.layers():
            for member in layer:
                small = member.isfile() and member.size < 1 << 20
                yield member.name.lstrip("./"), layer.extractfile(member).read() if small else b""

    def test_size_by_layer(self):
        table = self.archive.table()
        print("", *(f"{size:7.1f} MB  {step[:100]}" for size, step in table), sep="\n", flush=True)
        libraries = next(size for size, step in table if step.startswith("COPY"))
        if libraries < 1000:  # the CPU image: CUDA's libraries are 2.7 GB
            self.assertLessEqual(table[-1][0], LARGEST_MB)

    def test_no_layer_holds_a_secret_a_compiler_a_source_or_a_package_list(self):
        found = []
        for name, content in self.files():
            for what in (COMPILERS, SOURCES, PACKAGE_LISTS, SECRETS):
                if what.fullmatch(name):
                    found.append(name)
            if PRIVATE_KEY.search(content):
                found.append(f"a private key in {name}")
        self.assertEqual(found, [])

    def test_the_history_holds_no_secret(self):
        history = [step.get("created_by", "") for step in self.archive.image["history"]]
        for text in [*history, *self.archive.config["Env"]]:
            self.assertNotRegex(text.replace(NO_SECRET, ""), SECRET_TEXT)

    def test_programs_are_stripped_and_find_libraries_beside_themselves_alone(self):
        with tempfile.TemporaryDirectory() as folder:
            for _, _, layer in self.archive.layers():
                for member in layer:
                    if re.match(r"(\./)?opt/medvision/(bin|lib)/.", member.name):
                        layer.extract(member, folder)
            programs = list(pathlib.Path(folder, "opt/medvision/bin").iterdir())
            libraries = list(pathlib.Path(folder, "opt/medvision/lib").iterdir())
            self.assertTrue(programs and libraries)
            for file in programs + libraries:
                text = subprocess.run(["readelf", "-dSW", file], stdout=subprocess.PIPE, text=True, check=True).stdout
                places = [place for found in re.findall(r"\(R(?:UN)?PATH\).*\[(.*)\]", text) for place in found.split(":")]
                if file in programs:
                    self.assertEqual(places, ["$ORIGIN/../lib"], file)
                    self.assertNotRegex(text, r"\.(symtab|debug_)", file)
                for place in places:
                    self.assertRegex(place, r"^\$(ORIGIN|\{ORIGIN\})(/|$)", file)

    def test_configuration(self):
        config = self.archive.config
        self.assertRegex(config["User"], r"^[1-9]\d*:[1-9]\d*$")
        self.assertEqual(config["StopSignal"], "SIGTERM")
        self.assertEqual(config["WorkingDir"], "/app")
        self.assertEqual(config["Healthcheck"]["Test"], ["CMD", "medvision", "health"])
        self.assertEqual(set(config["ExposedPorts"]), {f"{API}/tcp", f"{PAGE}/tcp"})
        self.assertFalse(config.get("Volumes"))
        for variable in ("MVP_ROOT=/app", "MVP_GENERATE_API_KEY=1"):
            self.assertIn(variable, config["Env"])


class Running(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.container = Container(IMAGE)
        cls.addClassCleanup(cls.container.remove)
        cls.cpu = sum(seconds for name, _, seconds in cls.container.processes() if name in ("tini", "server", "medvision"))

    def test_ready_within_seconds_of_cpu(self):
        print(f"ready after {self.cpu:.2f} s of CPU", flush=True)
        self.assertGreater(self.cpu, 0)
        self.assertLess(self.cpu, LONGEST_CPU_SECONDS)

    def test_reads_the_sample_page_within_its_memory(self):
        text = self.container.read(SAMPLE)["extracted_content"]
        self.assertTrue(text.startswith("DISCHARGE NOTE\n"), text)
        self.assertIn("Amoxicillin 1 g by mouth every 8 h", text)
        state = self.container.state()
        self.assertEqual((state["Status"], state["OOMKilled"]), ("running", False))

    def test_answers_on_both_ports(self):
        status, page = self.container.get("/", PAGE)
        self.assertEqual(status, 200)
        self.assertIn("<!doctype html>", page)
        self.assertEqual(self.container.get("/health")[0], 200)
        answer = self.container.read(ROOT / "tests/fixtures/pages/small_strip_rx.png", PAGE, "/api/extract")
        self.assertIn("Amoxicillin 500 mg capsules", answer["extracted_content"])

    def test_a_key_is_made_printed_once_and_needed(self):
        key = self.container.key()
        self.assertTrue(key, self.container.notices())
        # By itself and in the page's address.
        self.assertEqual(self.container.log().count("#key="), 1)
        self.assertLessEqual(self.container.log().count(key), 2)
        for path in ("/v1/models", "/metrics"):
            self.assertEqual(self.container.get(path)[0], 401, path)
            self.assertEqual(self.container.get(path, key=key)[0], 200, path)

    def test_is_ready_and_healthy(self):
        self.assertEqual(self.container.get("/health/ready")[0], 200)
        health = engine("exec", self.container.id, "medvision", "health", check=False)
        self.assertEqual(health.returncode, 0, health.stderr)
        elsewhere = engine("exec", self.container.id, "medvision", "health", "--url", "http://127.0.0.1:9", check=False)
        self.assertEqual(elsewhere.returncode, 1, elsewhere.stderr)

    def test_without_models_it_says_what_to_mount(self):
        self.assertRegex(self.container.notices(), r"(?i)\bmount\b.* /models\b")

    def test_has_no_rights(self):
        status = self.container.shell("cat /proc/1/status")
        for line in (r"CapEff:\s0+$", r"CapBnd:\s0+$", r"NoNewPrivs:\s1$", r"Uid:(\s10001){4}$", r"Gid:(\s10001){4}$"):
            self.assertRegex(status, re.compile("^" + line, re.M))
        for folder in ("/", "/app", "/models", "/opt/medvision", "/opt/medvision/bin", "/var/lib"):
            writing = engine("exec", self.container.id, "touch", f"{folder}/new", check=False)
            self.assertNotEqual(writing.returncode, 0, folder)

    def test_memory_is_limited(self):
        groups = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"
        limits = self.container.shell(f"cat {' '.join(groups)} 2>/dev/null || true").split()
        if not limits:
            self.skipTest("no memory control group is shown in containers here")
        self.assertEqual(limits, [str(MEMORY)])

    def test_killed_children_are_reaped(self):
        # Their parent, the shell, has ended: they are process 1's.
        self.container.shell("for i in 1 2 3; do sleep 1000 >/dev/null 2>&1 & done")
        sleeping = lambda: [state for name, state, _ in self.container.processes() if name == "sleep"]  # noqa: E731
        self.assertEqual(len(sleeping()), 3)
        self.container.shell("kill -KILL $(grep -l '(sleep)' /proc/[0-9]*/stat | cut -d/ -f3)")
        eventually("no process and no zombie is left", lambda: not sleeping())


class Starting(unittest.TestCase):
    """Each test has a container of its own."""

    def start(self, *flags, command=()):
        container = Container(IMAGE, "--env", "MVP_DRAIN_DELAY=0", *flags, command=command)
        self.addCleanup(container.remove)
        return container

    def test_sigterm_ends_process_1_with_0(self):
        self.assertEqual(self.start().stop(), 0)

    def test_sigterm_ends_the_server_as_process_1_with_0(self):
        container = self.start("--entrypoint", "server", command=["--host", "0.0.0.0"])
        self.assertEqual(container.stop(), 0)

    def test_compat_asks_for_no_key(self):
        container = self.start("--env", "MVP_COMPAT=1")
        self.assertEqual(container.key(), "")
        self.assertIn("no key is asked for", container.notices())
        for path in ("/v1/models", "/metrics", "/benchmark"):
            self.assertEqual(container.get(path)[0], 200, path)
        self.assertEqual(container.get("/api/v1/models", PAGE)[0], 200)

    def test_a_mounted_model_is_used(self):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(ROOT / "models/qwen25-vl-nano", pathlib.Path(folder, "mine"))
            pathlib.Path(folder).chmod(0o755)
            # The second is where the original program's image has its models.
            for place in ("/models", "/app/models"):
                container = self.start("--volume", f"{folder}:{place}:ro", "--env", "MVP_MODEL=mine")
                answer = container.read(ROOT / "tests/fixtures/pages/small_strip_rx.png")
                self.assertEqual(answer["model_info"]["model_name"], "mine", place)
                container.remove()

    def test_a_new_volume_can_be_written(self):
        volume = "medvision-test-" + secrets.token_hex(4)
        self.addCleanup(engine, "volume", "rm", "--force", volume, check=False)
        container = self.start("--volume", f"{volume}:/models")
        container.shell("mkdir /app/models/new && rmdir /models/new")


class Offline(unittest.TestCase):
    """What `medvision save-offline` carries to a machine without a registry."""

    def test_the_image_goes_into_a_folder_and_back(self):
        medvision = pathlib.Path(os.environ.get("DIST", ROOT / "target/dist"), "bin/medvision")
        if not medvision.exists():
            self.skipTest(f"{medvision} is not built: make dist")
        run = lambda *words: subprocess.run([medvision, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: E731
        name = "localhost/medvision:offline-" + secrets.token_hex(4)
        engine("tag", IMAGE, name)
        self.addCleanup(engine, "rmi", name, check=False)
        with tempfile.TemporaryDirectory() as work:
            folder, models = pathlib.Path(work, "offline"), pathlib.Path(work, "models")
            saved = run("save-offline", folder, "--image", name, "--engine", common.ENGINE)
            self.assertEqual(saved.returncode, 0, saved.stderr)
            engine("rmi", name)
            image = folder / "image.tar"
            with open(image, "r+b") as file:
                file.seek(image.stat().st_size // 2)
                byte = file.read(1)
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte[0] ^ 1]))
            damaged = run("load-offline", folder, "--into", models, "--engine", common.ENGINE)
            self.assertEqual(damaged.returncode, 1)
            self.assertIn("image.tar: its SHA-256 is another", damaged.stderr)
            self.assertNotEqual(engine("image", "inspect", name, check=False).returncode, 0)
            with open(image, "r+b") as file:
                file.seek(image.stat().st_size // 2)
                file.write(byte)
            loaded = run("load-offline", folder, "--into", models, "--engine", common.ENGINE)
            self.assertEqual(loaded.returncode, 0, loaded.stderr)
            self.assertIn(name, loaded.stdout)
            self.assertTrue((models / "qwen25-vl-nano/model.safetensors").exists())
        engine("image", "inspect", name)


if __name__ == "__main__":
    unittest.main()
