"""deploy/, docs/DEPLOYMENT.md, the Dockerfile and the programs' --help say the same."""

import re
import tomllib
import unittest

import yaml
from common import DEPLOY, OVERLAYS, ROOT, compose, files, metrics, one, overlay, program_help, run, server_container, tool, variables

DOCUMENT = ROOT / "docs/DEPLOYMENT.md"
SUBCOMMANDS = [("health",), ("key", "new"), ("save-offline",), ("load-offline",)]
# Flags of docker, kubectl, curl and others that these files name.
FOREIGN = {
    *("--profile", "--rm", "--build-arg", "--force-recreate"),
    *("--from-file",),
    *("--fail", "--silent", "--insecure", "--output", "--cacert"),
    "--help",
}


def texts():
    """Text of every file with flags and variables for the people who run the server."""
    readme = (ROOT / "README.md").read_text()
    (section,) = re.findall(r"^### Keys and TLS$.*?(?=^#)", readme, re.MULTILINE | re.DOTALL)
    return {**{str(file.relative_to(ROOT)): file.read_text() for file in [*files(), DOCUMENT]}, "README.md": section}


def known_help():
    return "\n".join([program_help("server"), *(program_help("medvision", *words) for words in SUBCOMMANDS)])


def table(heading):
    """Rows of the first table below a heading of the document, without its head."""
    _, _, rest = DOCUMENT.read_text().partition(f"\n## {heading}\n")
    lines = rest.split("\n## ")[0].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| ---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def final_stage():
    return re.split(r"(?m)^FROM ", (ROOT / "Dockerfile").read_text())[-1]


class Help(unittest.TestCase):
    def test_every_flag_exists(self):
        known = set(re.findall(r"--[a-z][a-z-]+", known_help()))
        for name, text in texts().items():
            flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - FOREIGN
            with self.subTest(name):
                self.assertEqual(sorted(flags - known), [])

    def test_every_variable_exists(self):
        known = set(re.findall(r"\bMVP_[A-Z_]+\b", known_help()))
        for name, text in texts().items():
            with self.subTest(name):
                self.assertEqual(sorted(set(re.findall(r"\bMVP_[A-Z_]+\b", text)) - known), [])

    def test_every_subcommand_exists(self):
        for words in SUBCOMMANDS:
            with self.subTest(words):
                self.assertNotEqual(program_help("medvision", *words), "")

    def test_only_these_subcommands_are_named(self):
        first = {words[0] for words in SUBCOMMANDS}
        for name, text in texts().items():
            called = re.findall(r"`medvision ([a-z][a-z-]+)|medvision:\S+ medvision ([a-z-]+)|CMD, medvision, ([a-z-]+)", text)
            with self.subTest(name):
                self.assertLessEqual({word for words in called for word in words if word}, first)

    def test_the_defaults_of_the_limits(self):
        help = program_help("server")
        rows = table("Limits")
        self.assertGreater(len(rows), 10)
        for limit, default, flag in rows:
            if not default.isdigit():
                continue
            with self.subTest(limit):
                (name,) = re.findall(r"^`(--[a-z-]+)`$", flag)
                found = re.search(rf"^ +{name} <.*?\[default: (\d+)\]", help, re.MULTILINE | re.DOTALL)
                self.assertIsNotNone(found, f"{name} is not in --help")
                # Not the default of a later flag.
                self.assertEqual(found[0].count("\n      --"), 0, name)
                self.assertEqual(found[1], default)


class Image(unittest.TestCase):
    def ports(self):
        environment = compose()["services"]["server"]["environment"]
        return {environment["MVP_PORT"], environment["MVP_DEMO_PORT"]}

    def test_ports(self):
        for name in OVERLAYS:
            container = server_container(one(overlay(name), "Deployment"))
            self.assertEqual({str(port["containerPort"]) for port in container["ports"]}, self.ports())
        for service in ("server", "server-gpu"):
            self.assertEqual({port.split(":")[-1] for port in compose()["services"][service]["ports"]}, self.ports())
        exposed = re.findall(r"(?m)^EXPOSE (.*)$", final_stage())
        self.assertEqual(set(" ".join(exposed).split()), self.ports())
        documented = {row[0] for row in table("Ports") if row[0].isdigit()}
        self.assertEqual(documented, self.ports())

    def test_user(self):
        users = {service["user"].split(":")[0] for service in compose()["services"].values()}
        for name in OVERLAYS:
            context = one(overlay(name), "Deployment")["spec"]["template"]["spec"]["securityContext"]
            users |= {str(context["runAsUser"]), str(context["runAsGroup"]), str(context["fsGroup"])}
        self.assertEqual(users, {"10001"})
        self.assertIn("user and group 10001", DOCUMENT.read_text())
        self.assertRegex(final_stage(), r"(?m)^USER 10001(:10001)?$")

    def test_volumes(self):
        expected = {"/models", "/tmp", "/run/secrets/"}
        self.assertEqual({row[0].strip("`") for row in table("Volumes")} - {"/audit"}, expected)
        for name in OVERLAYS:
            mounts = server_container(one(overlay(name), "Deployment"))["volumeMounts"]
            mounted = {mount["mountPath"]: mount.get("readOnly", False) for mount in mounts}
            self.assertEqual(mounted, {"/models": True, "/tmp": False, "/run/secrets/medvision": True})
        for service in ("server", "server-gpu"):
            service = compose()["services"][service]
            self.assertEqual([volume.rsplit(":", 2)[-2:] for volume in service["volumes"]], [["/models", "ro"]])
            self.assertTrue(all(mount.startswith("/tmp:") for mount in service["tmpfs"]))
        self.assertRegex(final_stage(), r"(?<![\w.])/models\b", "the image has no /models")

    def test_health(self):
        expected = ["CMD", "medvision", "health"]
        for service in ("server", "server-gpu"):
            self.assertEqual(compose()["services"][service]["healthcheck"]["test"], expected)
        check = re.search(r"HEALTHCHECK(?:[^\n]*\\\n)*[^\n]*", final_stage())[0]
        self.assertRegex(check, r'CMD \["(?:\S*/)?medvision", "health"')

    def test_signal(self):
        self.assertRegex(final_stage(), r"(?m)^STOPSIGNAL SIGTERM$")

    def test_tags_are_the_version_of_the_project(self):
        version = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
        named = {}
        for name, text in texts().items():
            for tag in re.findall(r"\bmedvision:(\d{1,2}\.\d+\.\d+[\w-]*)|newTag: (\S+)", text):
                named.setdefault("".join(tag), name)
        self.assertEqual(set(named), {version, f"{version}-cuda"}, named)


class Seconds(unittest.TestCase):
    def test_compose_and_kubernetes_drain_alike(self):
        environments = [compose()["services"][name]["environment"] for name in ("server", "server-gpu")]
        environments += [variables(server_container(one(overlay(name), "Deployment"))) for name in OVERLAYS]
        found = {(values["MVP_DRAIN_DELAY"], values["MVP_SHUTDOWN_SECONDS"]) for values in environments}
        self.assertEqual(len(found), 1, found)
        ((_, shutdown),) = found
        pod = one(overlay("gpu"), "Deployment")["spec"]["template"]["spec"]
        text = DOCUMENT.read_text()
        self.assertIn(f"| finishing, `MVP_SHUTDOWN_SECONDS` | {shutdown} s | {shutdown} s |", text)
        grace = compose()["services"]["server"]["stop_grace_period"].removesuffix("s")
        waits = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1]
        self.assertIn(f"| {grace} s | {pod['terminationGracePeriodSeconds']} s, {waits} of them `preStop` |", text)


class Document(unittest.TestCase):
    def test_its_metrics_are_the_list(self):
        documented = {}
        for name, kind, labels, _ in table("Metrics"):
            documented[name.strip("`")] = (kind, re.findall(r"`(\w+)`", labels))
        self.assertEqual(documented, metrics())

    def test_its_alerts_are_the_rules(self):
        (group,) = yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())["groups"]
        documented = re.findall(r"(?m)^\| `(Medvision\w+)` \|", DOCUMENT.read_text())
        self.assertEqual(documented, [rule["alert"] for rule in group["rules"]])

    def test_its_routes_have_those_of_the_sources(self):
        routes = set()
        for source in (ROOT / "src/server").rglob("*.rs"):
            if "demo" not in source.parts:
                routes |= set(re.findall(r'(?:Route::new\(|ROUTE: &str =)\s*"(/[^"]*)"', source.read_text()))
        documented = set(re.findall(r"`(?:GET|POST) (/[^`]*)`", " ".join(row[0] for row in table("Routes"))))
        self.assertGreater(len(routes), 8)
        self.assertLessEqual({re.sub(r"/\{file:.*\}", "", route) for route in routes}, documented)

    def test_the_memory_is_the_one_of_the_files(self):
        text, services = DOCUMENT.read_text(), compose()["services"]
        for name, overlay_name, label in (("server", "cpu", "CPU"), ("server-gpu", "gpu", "GPU")):
            (limit,) = re.findall(r":-(\d+)g", services[name]["mem_limit"])
            resources = server_container(one(overlay(overlay_name), "Deployment"))["resources"]
            self.assertEqual(resources["limits"]["memory"], f"{limit}Gi")
            self.assertRegex(text, rf"\| memory, {label} \| {limit} GiB \(`MEDVISION_\w+`\) \| {limit} GiB \|")


class Scraping(unittest.TestCase):
    def test_prometheus_accepts_the_configuration(self):
        run(tool("promtool"), "check", "config", "--syntax-only", DEPLOY / "prometheus/prometheus.yaml")


if __name__ == "__main__":
    unittest.main()
