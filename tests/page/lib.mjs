// What the browser tests share: a backend, a browser, and pages that note everything they must not do.

import assert from "node:assert/strict";
import { execFile, spawn, spawnSync } from "node:child_process";
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { chromium } from "playwright-core";
import { ROOT, startStub } from "./stub.mjs";

export const SAMPLE = join(ROOT, "datasets/sample/discharge_note.png");
export const PROGRAMS = process.env.PAGE_BACKEND === "programs";
/** Address of a page of a server that runs already, for all tests that need no server of their own. */
export const RUNNING = process.env.PAGE_URL;
/** A real model on two busy cores needs its time. */
export const PATIENCE = PROGRAMS ? 180_000 : 10_000;

async function freePort() {
	const server = createServer();
	await new Promise((done) => server.listen(0, "127.0.0.1", done));
	const { port } = server.address();
	await new Promise((done) => server.close(done));
	return port;
}

/** `{url, kill, restart, close, stub}`: the page and its API. `kill` ends the API, `restart` brings it back at the same address. */
export async function startBackend(knobs = {}, { own = false } = {}) {
	if (RUNNING && !own) return { url: RUNNING, stub: null, close: () => {} };
	return PROGRAMS ? startPrograms() : startWithStub(knobs);
}

export async function startWithStub(knobs = {}) {
	let stub = await startStub(knobs);
	const { url, port } = stub;
	return {
		url,
		get stub() {
			return stub;
		},
		kill: () => stub.close(),
		restart: async () => {
			stub = await startStub(knobs, port);
		},
		close: () => stub.close(),
	};
}

async function startPrograms() {
	const [apiPort, pagePort] = [await freePort(), await freePort()];
	// A project of its own: without records, with the embedded model and its adapter, which the server attaches by itself.
	const root = mkdtempSync(join(tmpdir(), "page-project-"));
	mkdirSync(join(root, "benchmarks"));
	symlinkSync(join(ROOT, "models"), join(root, "models"));
	const log = join(root, "log");
	const start = (program, ...words) => {
		const output = openSync(log, "a");
		const child = spawn(join(process.env.MVP_BIN, program), words, { cwd: root, stdio: ["ignore", "ignore", output] });
		closeSync(output);
		child.ended = new Promise((done) => child.once("exit", done));
		return child;
	};
	const serve = () => start("server", "--root", root, "--host", "127.0.0.1", "--port", String(apiPort), "--device", "cpu");
	let server = serve();
	const page = start("demo_ui", "--api-url", `http://127.0.0.1:${apiPort}`, "--host", "127.0.0.1", "--port", String(pagePort));
	const end = async (child) => {
		child.kill("SIGKILL");
		await child.ended;
	};
	const url = `http://127.0.0.1:${pagePort}/`;
	const ready = async () => (await (await fetch(`${url}api/health`)).json()).model_loaded === true;
	await untilTrue(async () => server.exitCode !== null || page.exitCode !== null || (await ready()));
	if (server.exitCode !== null || page.exitCode !== null) throw new Error(`a program ended: ${readFileSync(log, "utf8").slice(-4000)}`);
	return {
		url,
		stub: null,
		kill: () => end(server),
		restart: async () => {
			server = serve();
		},
		close: async () => {
			await Promise.all([end(server), end(page)]);
			rmSync(root, { recursive: true });
		},
	};
}

/** The real server with its own page. `printed(pattern)` waits for a line on standard output or error, and returns the match. */
export async function startServer(...words) {
	const ports = ["--host", "127.0.0.1", "--port", "0", "--demo-port", "0"];
	const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("MVP_")));
	const child = spawn(join(process.env.MVP_BIN, "server"), [...ports, "--root", ROOT, "--device", "cpu", ...words], { env: environment });
	const text = { stdout: "", stderr: "" };
	for (const name of ["stdout", "stderr"]) child[name].on("data", (bytes) => (text[name] += bytes));
	const ended = new Promise((done) => child.once("exit", done));
	const printed = async (pattern, stream = "stderr") => {
		await untilTrue(() => pattern.test(text[stream]) || child.exitCode !== null);
		return pattern.exec(text[stream]) ?? assert.fail(`the server ended: ${text.stderr.slice(-4000)}`);
	};
	const close = async () => {
		child.kill("SIGKILL");
		await ended;
	};
	await printed(/^Ready: /m);
	return { printed, close };
}

/** Waits until a condition holds; errors of the condition count as "not yet". */
export async function untilTrue(condition, patience = PATIENCE) {
	const end = Date.now() + patience;
	for (;;) {
		if (await Promise.resolve(condition()).catch(() => false)) return;
		assert.ok(Date.now() < end, `not true in time: ${condition}`);
		await new Promise((done) => setTimeout(done, 50));
	}
}

/** A browser with an empty profile. */
export function startBrowser() {
	const words =
		"--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync";
	return chromium.launch({ executablePath: "/usr/bin/chromium", args: words.split(" ") });
}

/** Opens the page. `page.clean()` asserts that nothing happened that must not, and closes it. */
export async function openPage(browser, url, { width = 1440, height = 900, dark = false, ready = true, hash = "", ...options } = {}) {
	const context = await browser.newContext({
		viewport: { width, height },
		colorScheme: dark ? "dark" : "light",
		acceptDownloads: true,
		...options,
	});
	const page = await context.newPage();
	page.setDefaultTimeout(PATIENCE);
	const wrong = [];
	const origin = new URL(url).origin;
	page.on("request", (request) => {
		const address = request.url();
		if (!address.startsWith(origin) && !/^(blob|data):/.test(address)) wrong.push(`a request to ${address}`);
	});
	page.on("console", (message) => {
		// Answers of 4xx and 5xx, and refused connections, are logged by the browser itself; everything else is a defect.
		const expected = /^Failed to load resource/.test(message.text());
		if (["error", "warning"].includes(message.type()) && !expected) wrong.push(`console: ${message.text()}`);
	});
	page.on("pageerror", (error) => wrong.push(`error: ${error.stack}`));
	page.on("dialog", (dialog) => {
		wrong.push(`a dialog: ${dialog.message()}`);
		dialog.dismiss();
	});
	page.clean = async () => {
		const stored = await page.evaluate(() => [...Object.keys(localStorage), ...Object.keys(sessionStorage), document.cookie]);
		assert.deepEqual(
			stored.filter((name) => name !== "" && name !== "theme"),
			[],
		);
		await context.close();
		assert.deepEqual(wrong, []);
	};
	await page.goto(url + hash);
	if (ready) await page.waitForSelector('#status[data-state="ready"]');
	return page;
}

/** The texts that the live region said since `hear` was called. */
export async function hear(page) {
	await page.evaluate(() => {
		window.heard = [];
		const region = document.getElementById("live");
		new MutationObserver(() => window.heard.push(region.textContent.trim())).observe(region, {
			childList: true,
			characterData: true,
			subtree: true,
		});
	});
	return () => page.evaluate(() => window.heard);
}

/** Waits until the live region has said something. */
export async function heard(page, pattern) {
	try {
		await page.waitForFunction((source) => window.heard?.some((text) => new RegExp(source).test(text)), pattern.source);
	} catch (error) {
		throw new Error(`not heard: ${pattern}, but ${await page.evaluate(() => JSON.stringify(window.heard))}`, { cause: error });
	}
}

/** Waits until a visible element's text matches. */
export async function says(page, selector, pattern) {
	const matches = ([selector, source]) => {
		const element = document.querySelector(selector);
		return element !== null && !element.closest("[hidden]") && new RegExp(source, "s").test(element.textContent);
	};
	try {
		await page.waitForFunction(matches, [selector, pattern.source]);
	} catch (error) {
		const found = await page.evaluate((selector) => document.querySelector(selector)?.textContent, selector);
		throw new Error(`${selector} does not say ${pattern} but ${JSON.stringify(found)}`, { cause: error });
	}
}

/** Waits until the page that is shown has been read. */
export const isRead = (page) => says(page, "#read-label", /again$/);

/** Events of a drag, as a browser sends them. */
const DRAGS = { drag: ["dragenter", "dragover"], leave: ["dragleave"], drop: ["dragenter", "dragover", "drop"] };

/** Pastes or drops files, as a browser does it: `kind` is "paste", "drop", or a part of it, "drag" or "leave". */
export const give = (page, kind, files) =>
	page.evaluate(
		async ([kind, files, steps]) => {
			const transfer = new DataTransfer();
			for (const { name, type, base64 } of files) {
				const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
				transfer.items.add(new File([bytes], name, { type }));
			}
			if (kind === "paste") {
				document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true }));
				return;
			}
			for (const step of steps) {
				document.body.dispatchEvent(new DragEvent(step, { dataTransfer: transfer, bubbles: true, cancelable: true }));
				if (step === "dragover") window.dropShown = !document.getElementById("drop").hidden;
			}
		},
		[kind, files, DRAGS[kind]],
	);

/** A file for `give` or an input. */
export const file = (name, bytes, type = "image/png") => ({
	name,
	type,
	mimeType: type,
	buffer: Buffer.from(bytes),
	base64: Buffer.from(bytes).toString("base64"),
});

export const sampleBytes = readFileSync(SAMPLE);
export const sampleFile = (name = "note.png") => file(name, sampleBytes);

/** Saves a screenshot where SCREENSHOTS names a folder. */
export async function screenshot(page, name, options = {}) {
	if (!process.env.SCREENSHOTS) return;
	const folder = resolve(ROOT, process.env.SCREENSHOTS);
	mkdirSync(folder, { recursive: true });
	await page.screenshot({ path: join(folder, `${name}.png`), ...options });
}

/** Why programs shown as Python cannot be run here; false if they can. */
export const NO_REQUESTS =
	spawnSync("python3", ["-c", "import requests"]).status === 0 ? false : "python3 has no package requests (Debian: python3-requests)";

/** Runs a Python program in a folder, as a user with this key would. A proxy of the machine is not asked. */
export function runPython(program, folder, key) {
	const env = { ...process.env, PYTHONIOENCODING: "utf-8", NO_PROXY: "*", no_proxy: "*", ...(key === undefined ? {} : { MVP_API_KEY: key }) };
	return new Promise((done) => {
		execFile("python3", ["-B", "-c", program], { cwd: folder, env, maxBuffer: 64 * 1024 * 1024, timeout: PATIENCE }, (error, stdout, stderr) =>
			done({ code: error ? error.code : 0, stdout, stderr }),
		);
	});
}

/** Writes figures as JSON where RECORDS names a folder. */
export function record(name, figures) {
	if (!process.env.RECORDS) return;
	const folder = resolve(ROOT, process.env.RECORDS);
	mkdirSync(folder, { recursive: true });
	writeFileSync(join(folder, `${name}.json`), `${JSON.stringify(figures, null, 2)}\n`);
}

const axe = readFileSync(new URL(import.meta.resolve("axe-core/axe.min.js")), "utf8");

/** Asserts that axe-core finds nothing against WCAG 2.2 AA, nor against its best practices. */
export async function accessible(page, state) {
	// Not a script element: the page's policy would block it.
	await page.evaluate(axe);
	const found = await page.evaluate(() =>
		window.axe.run(document, {
			runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
			resultTypes: ["violations"],
		}),
	);
	const violations = found.violations.map(
		({ id, nodes }) => `${id}: ${nodes.map(({ target, failureSummary }) => `${target} ${failureSummary}`).join("; ")}`,
	);
	assert.deepEqual(violations, [], state);
}
