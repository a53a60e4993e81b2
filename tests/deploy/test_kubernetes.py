"""The manifests render, are valid, and say what they must."""

import copy
import unittest

import kubernetes_validate
import yaml
from common import DEPLOY, OVERLAYS, kubectls, metrics, one, overlay, rendered, seconds, server_container, variables

KUBERNETES = DEPLOY / "kubernetes"
# The oldest that has every object (Pod Security Admission, autoscaling/v2) and the package's newest.
VERSIONS = ["1.25", "1.29", "1.33", "1.37"]
# No package has a schema of these: they are checked by hand below.
WITHOUT_SCHEMA = {"ServiceMonitor"}
# What kustomize of kubectl 1.20 knows and that of today still reads.
FIELDS = {"bases", "resources", "patchesStrategicMerge", "images", "namespace"}


def sources():
    """All objects of the folder, and those of the overlays as rendered."""
    objects = [document for name in OVERLAYS for document in overlay(name)]
    objects += rendered("base")
    objects += list(yaml.safe_load_all((KUBERNETES / "load-models.yaml").read_text()))
    return objects


def pod_specs(objects):
    for object in objects:
        if object["kind"] == "Pod":
            yield object["spec"]
        elif object["kind"] == "Deployment":
            yield object["spec"]["template"]["spec"]


class Rendering(unittest.TestCase):
    def test_every_kubectl_renders_the_same_objects(self):
        self.assertTrue(kubectls(), "no kubectl")
        for folder in ["base", *(f"overlays/{name}" for name in OVERLAYS)]:
            with self.subTest(folder):
                first, *others = [
                    sorted(rendered(folder, kubectl), key=lambda object: object["kind"]) for kubectl in kubectls()
                ]
                self.assertGreater(len(first), 5)
                for other in others:
                    self.assertEqual(first, other)

    def test_only_fields_that_old_and_new_kustomize_know_are_used(self):
        for file in KUBERNETES.rglob("kustomization.yaml"):
            self.assertLessEqual(set(yaml.safe_load(file.read_text())), FIELDS, file)

    def test_every_file_is_used(self):
        used = {KUBERNETES / "load-models.yaml", KUBERNETES / "overlays/autoscale/adapter.yaml"}
        for file in KUBERNETES.rglob("kustomization.yaml"):
            used.add(file)
            fields = yaml.safe_load(file.read_text())
            for name in [*fields.get("resources", []), *fields.get("patchesStrategicMerge", [])]:
                used.add(file.parent / name)
        self.assertEqual(used, set(KUBERNETES.rglob("*.yaml")))


class Validation(unittest.TestCase):
    def test_every_object_is_valid_in_strict_mode(self):
        checked = 0
        for object in sources():
            if object["kind"] in WITHOUT_SCHEMA:
                continue
            for version in VERSIONS:
                with self.subTest(object["kind"], version=version):
                    kubernetes_validate.validate(object, version, strict=True)
                    checked += 1
        self.assertGreater(checked, 20)

    def test_a_misspelled_key_is_found(self):
        deployment = copy.deepcopy(one(overlay("gpu"), "Deployment"))
        deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 1
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)

    def test_the_service_monitor_by_hand(self):
        objects = overlay("autoscale")
        monitor, service = one(objects, "ServiceMonitor"), one(objects, "Service")
        self.assertEqual(monitor["apiVersion"], "monitoring.coreos.com/v1")
        self.assertEqual(set(monitor["spec"]), {"selector", "endpoints"})
        self.assertLessEqual(
            monitor["spec"]["selector"]["matchLabels"].items(), service["metadata"]["labels"].items()
        )
        (endpoint,) = monitor["spec"]["endpoints"]
        self.assertEqual(set(endpoint), {"port", "path", "interval", "scrapeTimeout", "authorization"})
        self.assertIn(endpoint["port"], [port["name"] for port in service["spec"]["ports"]])
        self.assertEqual(endpoint["path"], "/metrics")
        self.assertLess(seconds(endpoint["scrapeTimeout"]), seconds(endpoint["interval"]))
        self.assertEqual(set(endpoint["authorization"]), {"type", "credentials"})
        self.assertEqual(set(endpoint["authorization"]["credentials"]), {"name", "key"})


class Pods(unittest.TestCase):
    def test_every_pod_is_restricted(self):
        specs = list(pod_specs(sources()))
        self.assertEqual(len(specs), len(OVERLAYS) + 2)
        for spec in specs:
            context = spec["securityContext"]
            self.assertIs(context["runAsNonRoot"], True)
            self.assertEqual(context["runAsUser"], 10001)
            self.assertEqual(context["seccompProfile"], {"type": "RuntimeDefault"})
            self.assertIs(spec["automountServiceAccountToken"], False)
            for key in ("hostNetwork", "hostPID", "hostIPC"):
                self.assertNotIn(key, spec)
            for container in spec["containers"]:
                expected = {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }
                self.assertEqual(container["securityContext"], expected)
        for name in OVERLAYS:
            labels = one(overlay(name), "Namespace")["metadata"]["labels"]
            self.assertEqual(labels["pod-security.kubernetes.io/enforce"], "restricted")

    def test_memory_is_limited_and_reserved_in_every_overlay(self):
        for name in OVERLAYS:
            resources = server_container(one(overlay(name), "Deployment"))["resources"]
            self.assertEqual(resources["requests"]["memory"], resources["limits"]["memory"])

    def test_a_pod_has_a_gpu_where_it_needs_one(self):
        for name in OVERLAYS:
            container = server_container(one(overlay(name), "Deployment"))
            gpus = container["resources"]["limits"].get("nvidia.com/gpu", 0)
            self.assertEqual((gpus, variables(container)["MVP_DEVICE"]), (0, "cpu") if name == "cpu" else (1, "cuda"))

    def test_threads_are_as_many_as_cpus(self):
        container = server_container(one(overlay("cpu"), "Deployment"))
        self.assertEqual(variables(container)["MVP_THREADS"], container["resources"]["limits"]["cpu"])

    def test_the_grace_period_fits_pre_stop_drain_and_shutdown(self):
        for name in OVERLAYS:
            spec = one(overlay(name), "Deployment")["spec"]["template"]["spec"]
            (container,) = spec["containers"]
            command, waits = container["lifecycle"]["preStop"]["exec"]["command"]
            self.assertEqual(command, "sleep")
            values = variables(container)
            needed = int(waits) + int(values["MVP_DRAIN_DELAY"]) + int(values["MVP_SHUTDOWN_SECONDS"])
            self.assertGreaterEqual(spec["terminationGracePeriodSeconds"], needed + 10)

    def test_probes_ask_open_routes_of_the_api_port(self):
        for name in OVERLAYS:
            container = server_container(one(overlay(name), "Deployment"))
            paths = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
            self.assertEqual({get["port"] for get in paths.values()}, {"api"})
            self.assertEqual(
                {kind: get["path"] for kind, get in paths.items()},
                {"startup": "/health/ready", "liveness": "/health/live", "readiness": "/health/ready"},
            )
            startup = container["startupProbe"]
            self.assertGreaterEqual(startup["periodSeconds"] * startup["failureThreshold"], 600)

    def test_the_image_has_a_version(self):
        for spec in pod_specs(object for object in sources() if object["metadata"]["name"] != "medvision"):
            self.assertRegex(spec["containers"][0]["image"], r"^medvision:\d")
        for name in OVERLAYS:
            self.assertRegex(server_container(one(overlay(name), "Deployment"))["image"], r"^medvision:\d")


class References(unittest.TestCase):
    def test_no_secret_is_in_the_repository(self):
        kinds = {object["kind"] for object in sources()}
        self.assertNotIn("Secret", kinds)
        for object in sources():
            for spec in pod_specs([object]):
                names = [name for container in spec["containers"] for name in variables({"env": container.get("env", [])})]
                self.assertNotIn("MVP_API_KEY", names)

    def test_the_key_file_comes_from_the_secret(self):
        for name in OVERLAYS:
            spec = one(overlay(name), "Deployment")["spec"]["template"]["spec"]
            (container,) = spec["containers"]
            mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
            self.assertEqual(variables(container)["MVP_API_KEY_FILE"], mounts["keys"]["mountPath"] + "/keys")
            volumes = {volume["name"]: volume for volume in spec["volumes"]}
            self.assertEqual(set(volumes), set(mounts))
            self.assertNotIn("optional", volumes["keys"]["secret"])
            # Secrets belong to root: user 10001 reads them as the group of fsGroup, others not at all.
            self.assertEqual(volumes["keys"]["secret"]["defaultMode"], 0o440)
            self.assertEqual(spec["securityContext"]["fsGroup"], 10001)

    def test_selectors_select_the_pods(self):
        for name in OVERLAYS:
            objects = overlay(name)
            deployment = one(objects, "Deployment")
            labels = deployment["spec"]["template"]["metadata"]["labels"]
            spread = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
            self.assertEqual([constraint["topologyKey"] for constraint in spread], ["kubernetes.io/hostname"])
            for selector in (
                deployment["spec"]["selector"]["matchLabels"],
                one(objects, "Service")["spec"]["selector"],
                one(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
                spread[0]["labelSelector"]["matchLabels"],
            ):
                self.assertEqual(selector, labels)

    def test_ports_agree(self):
        for name in OVERLAYS:
            objects = overlay(name)
            container = server_container(one(objects, "Deployment"))
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            values = variables(container)
            self.assertEqual(ports, {"api": int(values["MVP_PORT"]), "page": int(values["MVP_DEMO_PORT"])})
            service = {port["targetPort"]: port["port"] for port in one(objects, "Service")["spec"]["ports"]}
            self.assertEqual(service, ports)
            (rule,) = one(objects, "NetworkPolicy")["spec"]["ingress"]
            self.assertEqual({port["port"] for port in rule["ports"]}, set(ports.values()))

    def test_the_claim_exists(self):
        for name in OVERLAYS:
            objects = overlay(name)
            volumes = one(objects, "Deployment")["spec"]["template"]["spec"]["volumes"]
            claims = [volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume]
            self.assertEqual(claims, [one(objects, "PersistentVolumeClaim")["metadata"]["name"]])

    def test_nothing_leaves_the_pods(self):
        for name in OVERLAYS:
            policy = one(overlay(name), "NetworkPolicy")["spec"]
            self.assertEqual(policy["egress"], [])
            self.assertEqual(policy["policyTypes"], ["Ingress", "Egress"])
            self.assertEqual(policy["podSelector"], {})

    def test_everything_is_in_one_namespace(self):
        for object in sources():
            if object["kind"] != "Namespace":
                self.assertEqual(object["metadata"]["namespace"], "medvision", object["kind"])


class Replicas(unittest.TestCase):
    def test_a_node_can_be_emptied(self):
        for name in OVERLAYS:
            objects = overlay(name)
            least = one(objects, "PodDisruptionBudget")["spec"]["minAvailable"]
            if name == "autoscale":
                replicas = one(objects, "HorizontalPodAutoscaler")["spec"]["minReplicas"]
            else:
                replicas = one(objects, "Deployment")["spec"]["replicas"]
            self.assertGreater(replicas, least)

    def test_the_scaler_owns_the_number_of_pods(self):
        objects = overlay("autoscale")
        deployment, scaler = one(objects, "Deployment"), one(objects, "HorizontalPodAutoscaler")
        self.assertNotIn("replicas", deployment["spec"])
        target = scaler["spec"]["scaleTargetRef"]
        self.assertEqual(
            (target["apiVersion"], target["kind"], target["name"]),
            (deployment["apiVersion"], "Deployment", deployment["metadata"]["name"]),
        )
        (metric,) = scaler["spec"]["metrics"]
        name = metric["pods"]["metric"]["name"]
        self.assertIn(name, metrics())
        (rule,) = yaml.safe_load((KUBERNETES / "overlays/autoscale/adapter.yaml").read_text())["rules"]
        self.assertEqual(rule["name"]["matches"], name)
        self.assertTrue(rule["seriesQuery"].startswith(name + "{"))


if __name__ == "__main__":
    unittest.main()
