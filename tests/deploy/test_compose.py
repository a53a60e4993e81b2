"""The compose file is valid and hardens what it starts."""

import os
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

import yaml
from common import DEPLOY, compose, run, seconds, tool

SERVERS = ["server", "server-gpu"]


def configured(*profiles, **environment):
    """The file as podman-compose reads it: variables and anchors resolved."""
    flags = [word for profile in profiles for word in ("--profile", profile)]
    base = {name: value for name, value in os.environ.items() if not name.startswith(("MEDVISION_", "COMPOSE_"))}
    with tempfile.TemporaryDirectory() as folder:
        # `config` starts no container; podman-compose asks for podman's version all the same.
        podman = Path(folder) / "podman"
        podman.write_text("#!/bin/sh\necho podman version 4.3.1\n")
        podman.chmod(0o755)
        base["PATH"] = f"{base['PATH']}{os.pathsep}{folder}"
        text = run(tool("podman-compose"), "-f", DEPLOY / "compose.yaml", *flags, "config", env={**base, **environment})
    return yaml.safe_load(text)


def schema_errors(file):
    done = subprocess.run(
        [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(file)], capture_output=True, text=True
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


class Validity(unittest.TestCase):
    def test_it_follows_the_schema_of_the_compose_specification(self):
        self.assertEqual(schema_errors(DEPLOY / "compose.yaml"), "")

    def test_the_compose_of_debian_12_can_read_it(self):
        """docker-compose 1.29 knows neither of these."""
        self.assertEqual(set(compose()) & {"name", "include", "models"}, set())

    def test_a_misspelled_key_is_found(self):
        text = (DEPLOY / "compose.yaml").read_text()
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(text.replace("stop_grace_period", "stop_grace_periods"))
            file.flush()
            self.assertIn("stop_grace_periods", schema_errors(file.name))

    def test_each_profile_starts_its_services(self):
        for profiles, services in (
            (["cpu"], {"server"}),
            (["gpu"], {"server-gpu"}),
            (["cpu", "proxy"], {"server", "proxy"}),
            (["gpu", "proxy"], {"server-gpu", "proxy"}),
        ):
            defined = configured(*profiles)["services"]
            started = {name for name, service in defined.items() if set(service["profiles"]) & set(profiles)}
            self.assertEqual(started, services)

    def test_variables_replace_the_defaults(self):
        with_defaults = configured("cpu")["services"]["server"]
        self.assertEqual(with_defaults["ports"], ["127.0.0.1:8000:8000", "127.0.0.1:7860:7860"])
        self.assertEqual(with_defaults["volumes"], ["models:/models:ro"])
        changed = configured("cpu", MEDVISION_LISTEN="10.0.0.1", MEDVISION_MODELS="/srv/models", MEDVISION_MEMORY="9g")
        server = changed["services"]["server"]
        self.assertEqual(server["ports"], ["10.0.0.1:8000:8000", "10.0.0.1:7860:7860"])
        self.assertEqual(server["volumes"], ["/srv/models:/models:ro"])
        self.assertEqual((server["mem_limit"], server["memswap_limit"]), ("9g", "9g"))

    def test_the_head_of_the_file_names_every_variable(self):
        head, _, rest = (DEPLOY / "compose.yaml").read_text().partition("\nx-hardening")
        self.assertEqual(set(re.findall(r"MEDVISION_\w+", head)), set(re.findall(r"\$\{(MEDVISION_\w+)", rest)))


class Hardening(unittest.TestCase):
    def test_every_service_has_it(self):
        for name, service in compose()["services"].items():
            with self.subTest(name):
                self.assertEqual(service["user"], "10001:10001")
                self.assertIs(service["read_only"], True)
                self.assertEqual(service["cap_drop"], ["ALL"])
                self.assertEqual(service["security_opt"], ["no-new-privileges:true"])
                self.assertNotIn("privileged", service)
                self.assertNotIn("cap_add", service)
                (tmpfs,) = service["tmpfs"]
                self.assertTrue(tmpfs.startswith("/tmp:size="))
                self.assertTrue({"noexec", "nosuid", "nodev"} <= set(tmpfs.split(":")[1].split(",")))
                self.assertTrue(service["mem_limit"])
                self.assertEqual(service["mem_limit"], service["memswap_limit"])
                self.assertGreater(service["pids_limit"], 0)
                self.assertEqual(service["restart"], "unless-stopped")
                self.assertIn("test", service["healthcheck"])
                self.assertTrue(all(volume.endswith(":ro") for volume in service["volumes"]))

    def test_keys_are_secrets_in_files(self):
        file = compose()
        for secret in file["secrets"].values():
            self.assertTrue(secret["file"].startswith("./secrets/"))
        self.assertNotRegex((DEPLOY / "compose.yaml").read_text(), r"(?m)^ *MVP_API_KEY:")
        for name in SERVERS:
            service = file["services"][name]
            self.assertEqual(service["secrets"], ["keys"])
            self.assertEqual(service["environment"]["MVP_API_KEY_FILE"], "/run/secrets/keys")
        ignored = run("git", "check-ignore", "deploy/secrets/keys", cwd=DEPLOY.parent)
        self.assertEqual(ignored.strip(), "deploy/secrets/keys")

    def test_the_plain_ports_are_on_the_machine_itself(self):
        for name in SERVERS:
            for port in compose()["services"][name]["ports"]:
                self.assertTrue(port.startswith("${MEDVISION_LISTEN:-127.0.0.1}:"), port)

    def test_the_gpu_is_reserved_and_required(self):
        file = compose()["services"]
        (device,) = file["server-gpu"]["deploy"]["resources"]["reservations"]["devices"]
        self.assertEqual(device, {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]})
        self.assertEqual(file["server-gpu"]["environment"]["MVP_DEVICE"], "cuda")
        self.assertNotIn("deploy", file["server"])
        # Everything else is the same.
        environment = {name: value for name, value in file["server-gpu"]["environment"].items() if name != "MVP_DEVICE"}
        self.assertEqual(environment, file["server"]["environment"])

    def test_the_grace_period_fits_drain_and_shutdown(self):
        for name, service in compose()["services"].items():
            if name in SERVERS:
                values = service["environment"]
                needed = int(values["MVP_DRAIN_DELAY"]) + int(values["MVP_SHUTDOWN_SECONDS"])
                self.assertGreaterEqual(seconds(service["stop_grace_period"]), needed + 10)


class Network(unittest.TestCase):
    def test_the_proxy_is_the_trusted_one_and_finds_the_server(self):
        services = compose()["services"]
        address = {name: service["networks"]["inside"]["ipv4_address"] for name, service in services.items()}
        self.assertEqual(services["proxy"]["extra_hosts"], ["medvision:" + address["server"]])
        self.assertEqual(address["server"], address["server-gpu"])
        for name in SERVERS:
            self.assertEqual(services[name]["environment"]["MVP_TRUSTED_PROXY"], address["proxy"])


if __name__ == "__main__":
    unittest.main()
