"""The alert rules and the board use metrics that exist, and the rules fire."""

import json
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import yaml
from common import DEPLOY, metrics, run, tool

RULES = DEPLOY / "prometheus/alerts.yaml"
TESTS = DEPLOY / "prometheus/alerts_test.yaml"
BOARD = DEPLOY / "grafana/medvision.json"
# Prometheus's own.
OWN = {"up"}


def series():
    """Names of all series, of histograms too."""
    names = set()
    for name, (kind, _) in metrics().items():
        names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return names


def named(expression):
    """Names of metrics in an expression."""
    return set(re.findall(r"\bmedvision_\w+", expression))


def selectors(expression):
    """Name and matched labels of each selector."""
    found = re.findall(r"\b(medvision_\w+)\{([^}]*)\}", expression)
    return [(name, re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels)) for name, labels in found]


def grouped(expression):
    return {label for labels in re.findall(r"\b(?:by|ignoring) \(([^)]*)\)", expression) for label in re.split(r",\s*", labels)}


def rules():
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return group["rules"]


def expressions():
    """Every expression of the rules, the board and the scaler's comments."""
    found = [(rule["alert"], rule["expr"]) for rule in rules()]
    board = json.loads(BOARD.read_text())
    for panel in board["panels"]:
        found += [(panel["title"], target["expr"]) for target in panel["targets"]]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            found.append((variable["name"], variable["query"]["query"]))
    return found


def check_as_rules(expressions):
    """promtool's opinion of expressions, with Grafana's variables filled in."""
    filled = [expression.replace("$__rate_interval", "5m").replace("$job", ".*").replace("$instance", ".*") for expression in expressions]
    rules = [{"record": f"expression:{number}", "expr": text} for number, text in enumerate(filled)]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}, file)
        file.flush()
        return run(tool("promtool"), "check", "rules", file.name)


class Names(unittest.TestCase):
    def test_the_list_is_well_formed(self):
        for name, (kind, labels) in metrics().items():
            self.assertRegex(name, r"^medvision_[a-z_]+$")
            self.assertIn(kind, {"counter", "gauge", "histogram"})
            self.assertEqual(name.endswith("_total"), kind == "counter", name)
            self.assertEqual(len(labels), len(set(labels)))

    def test_every_metric_in_an_expression_exists(self):
        known = series() | OWN
        for where, expression in expressions():
            self.assertTrue(named(expression) or "up{" in expression, where)
            self.assertLessEqual(named(expression), known, where)

    def test_every_label_in_an_expression_exists(self):
        target = {"job", "instance", "namespace", "pod", "le"}
        for where, expression in expressions():
            for name, labels in selectors(expression):
                base = re.sub(r"_(bucket|sum|count)$", "", name)
                allowed = set(metrics().get(name, metrics().get(base))[1]) | target
                self.assertLessEqual(set(labels), allowed, f"{where}: {name}")
            every = {label for name in named(expression) for label in metrics().get(name, ("", []))[1]}
            self.assertLessEqual(grouped(expression), every | target, where)

    def test_every_metric_is_on_the_board(self):
        board = json.loads(BOARD.read_text())
        shown = {name for panel in board["panels"] for target in panel["targets"] for name in named(target["expr"])}
        shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
        self.assertEqual(shown, set(metrics()))

    def test_an_unknown_metric_is_noticed(self):
        self.assertFalse(named("rate(medvision_request_total[5m])") <= series())
        self.assertFalse(named("medvision_queue_seconds") <= series())


class Rules(unittest.TestCase):
    def test_promtool_accepts_them(self):
        self.assertIn("5 rules found", run(tool("promtool"), "check", "rules", RULES))

    def test_each_has_severity_summary_and_action(self):
        for rule in rules():
            self.assertEqual(set(rule), {"alert", "expr", "for", "labels", "annotations"})
            self.assertIn(rule["labels"]["severity"], {"warning", "critical"})
            self.assertEqual(set(rule["annotations"]), {"summary", "action"})

    def test_they_fire_and_are_silent(self):
        run(tool("promtool"), "test", "rules", TESTS)

    def test_a_changed_threshold_fails_the_tests(self):
        """In both directions, for each alert: one that never fires and one that always does."""
        text = RULES.read_text()
        thresholds = list(re.finditer(r"(> [\d.]+|== 0)$", text, re.MULTILINE))
        self.assertEqual(len(thresholds), len(rules()))
        for found in thresholds:
            for other in ("> 1e9", ">= 0"):
                with self.subTest(text[: found.start()].rsplit("alert: ")[-1].split("\n")[0], threshold=other):
                    with tempfile.TemporaryDirectory() as folder:
                        changed = text[: found.start()] + other + text[found.end() :]
                        (Path(folder) / RULES.name).write_text(changed)
                        shutil.copy(TESTS, folder)
                        command = [tool("promtool"), "test", "rules", str(Path(folder) / TESTS.name)]
                        done = subprocess.run(command, capture_output=True, text=True)
                        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
                        self.assertIn("FAILED", done.stdout + done.stderr)


class Board(unittest.TestCase):
    def test_prometheus_parses_every_expression(self):
        board = json.loads(BOARD.read_text())
        texts = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
        self.assertIn(f"{len(texts)} rules found", check_as_rules(texts))
        with self.assertRaises(AssertionError):
            check_as_rules(["sum by (rate(medvision_requests_total[5m]))"])

    def test_panels_have_ids_of_their_own_and_do_not_overlap(self):
        panels = json.loads(BOARD.read_text())["panels"]
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        cells = set()
        for panel in panels:
            place = panel["gridPos"]
            self.assertLessEqual(place["x"] + place["w"], 24)
            mine = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
            self.assertFalse(cells & mine, panel["title"])
            cells |= mine

    def test_every_panel_takes_the_data_source_that_the_user_chose(self):
        board = json.loads(BOARD.read_text())
        for panel in board["panels"]:
            for one in [panel, *panel["targets"]]:
                self.assertEqual(one["datasource"], {"type": "prometheus", "uid": "${datasource}"})


if __name__ == "__main__":
    unittest.main()
