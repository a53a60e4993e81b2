// Runs the tests of the page. Each flow runs against the stub, and, where MVP_BIN names the folder of the built programs, against them.
// Where PAGE_URL is the address of a page of theirs that is served already, only the latter, and those on that page.
//
//   node run.mjs [FILE ...]      all *.test.mjs, or these

import { spawnSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const folder = dirname(fileURLToPath(import.meta.url));
const chosen = process.argv.slice(2);
const files =
	chosen.length > 0
		? chosen
		: readdirSync(folder)
				.filter((name) => name.endsWith(".test.mjs"))
				.sort();
const programs = process.env.MVP_BIN ? resolve(process.env.MVP_BIN) : null;

function run(backend, names) {
	console.log(`page tests, ${backend === "stub" ? "stub API" : `programs in ${programs}`}: ${names.join(", ")}`);
	const result = spawnSync(process.execPath, ["--test", "--test-reporter=spec", "--test-concurrency=1", ...names], {
		cwd: folder,
		stdio: "inherit",
		env: { ...process.env, PAGE_BACKEND: backend, ...(programs ? { MVP_BIN: programs } : {}) },
	});
	return result.status === 0;
}

const needsServer = (name) => name.startsWith("server");
const withStub = files.filter((name) => !needsServer(name));
let passed = process.env.PAGE_URL || withStub.length === 0 || run("stub", withStub);
if (programs) {
	if (!existsSync(join(programs, "demo_ui")) || !existsSync(join(programs, "server"))) {
		console.error(`${programs} has no demo_ui and server: build them, or unset MVP_BIN`);
		process.exit(1);
	}
	const flows = files.filter((name) => name.startsWith("flows") || needsServer(name));
	if (flows.length > 0) passed = run("programs", flows) && passed;
}
process.exit(passed ? 0 : 1);
