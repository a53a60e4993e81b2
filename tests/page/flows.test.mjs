// What a user does, in a browser: against the stub, or against the real programs (run.mjs).

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { copyFileSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { promisify } from "node:util";
import {
	NO_REQUESTS,
	PROGRAMS,
	RUNNING,
	SAMPLE,
	file,
	give,
	hear,
	heard,
	isRead,
	openPage,
	record,
	runPython,
	sampleBytes,
	sampleFile,
	says,
	screenshot,
	startBackend,
	startBrowser,
	untilTrue,
} from "./lib.mjs";

let backend;
let browser;

before(async () => {
	backend = await startBackend({ delay: 4 });
	browser = await startBrowser();
});
after(async () => {
	await browser?.close();
	await backend?.close();
});

const text = (page) => page.textContent("#transcript");
const pixels = (bytes) => [bytes.readUInt32BE(16), bytes.readUInt32BE(20)];

describe("Extraction", () => {
	test("the header says what is loaded", async () => {
		const page = await openPage(browser, backend.url);
		await says(page, "#status-text", /^Ready$/);
		await says(
			page,
			"#model",
			RUNNING ? /Model.*qwen25-vl-nano.*Precision.*FP32.*Device.*cpu/ : /Model.*qwen25-vl-nano.*Precision.*FP32.*Adapter.*medical.*Device.*cpu/,
		);
		await says(page, "#memory-text", /^\d.* of \d.*(MB|GB)$/);
		const paint = await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0]?.startTime);
		assert.ok(paint > 0);
		console.log(`first contentful paint: ${paint.toFixed(0)} ms`);
		record(`first-paint-${PROGRAMS ? "programs" : "stub"}`, {
			first_contentful_paint_ms: Math.round(paint * 10) / 10,
			browser: browser.version(),
		});
		await page.clean();
	});

	test("the sample page is read: text before the answer is complete, then its places to check", async () => {
		const page = await openPage(browser, backend.url);
		await hear(page);
		backend.stub?.set({ holdAfter: 60 });
		await page.click("#sample");
		await page.waitForFunction(() => {
			const box = document.getElementById("transcript");
			return (
				box.getAttribute("aria-busy") === "true" && box.textContent.length > 3 && document.getElementById("read-label").textContent === "Stop"
			);
		});
		backend.stub?.set({ then: "go" });
		await isRead(page);
		assert.match(await text(page), /DISCHARGE NOTE/);
		assert.match(await page.textContent("#figures"), /^[\d.]+ s · \d+ tokens · [\d.,]+ tokens\/s/);
		assert.match(await page.textContent("#read-as"), /^read as \d+x\d+, [\d,]+ tokens$/);
		const said = await page.evaluate(() => window.heard);
		assert.equal(said.length, 1, `one event, never single tokens: ${said}`);
		assert.match(said[0], /^Page read, (\d+ places? to check|nothing to check)$/);
		const places = await page.locator(".doubt").count();
		await says(page, "#places-count", places === 0 ? /^Nothing to check$/ : new RegExp(`^${places} places? to check$`));
		if (places > 0) {
			await page.keyboard.press("n");
			await says(page, "#alternatives", /\d %/);
		}
		await screenshot(page, "demo");
		await page.clean();
	});

	test(
		"n and p walk through the places to check and show alternatives",
		{ skip: PROGRAMS && "depends on what the model is unsure of" },
		async () => {
			const page = await openPage(browser, backend.url);
			await page.click("#sample");
			await isRead(page);
			await page.keyboard.press("n");
			await says(page, "#places-at", /^1 of 4$/);
			await page.keyboard.press("n");
			await page.keyboard.press("n");
			assert.equal(await page.evaluate(() => document.activeElement.textContent), "214");
			await says(page, "#alternatives", /214.*46 % sure.*214.*read.*274.*41 %.*244.*8\.0 %/);
			const decoration = await page.evaluate(() => getComputedStyle(document.activeElement).textDecorationStyle);
			assert.equal(decoration, "solid");
			assert.equal(await page.evaluate(() => getComputedStyle(document.querySelector(".doubt")).textDecorationStyle), "dotted");
			await screenshot(page, "demo");
			await page.keyboard.press("Escape");
			assert.ok(await page.isHidden("#alternatives"));
			await page.keyboard.press("p");
			await says(page, "#places-at", /^2 of 4$/);
			await page.click("#next");
			await says(page, "#places-at", /^3 of 4$/);
			await page.click("#places-list li:first-child button");
			await says(page, "#alternatives", /2085164.*83 % sure/);
			// Hover, and a tap on a word that is no place to check.
			await page.keyboard.press("Escape");
			await page.hover(".doubt:has-text('Tiotropium')");
			await says(page, "#alternatives", /Tiotropium.*71 % sure.*Thio…/);
			const point = await page.evaluate(() => {
				const node = document.getElementById("transcript").firstChild;
				const range = document.createRange();
				range.setStart(node, 2);
				range.setEnd(node, 6);
				const { x, y, width, height } = range.getBoundingClientRect();
				return { x: x + width / 2, y: y + height / 2 };
			});
			await page.mouse.click(point.x, point.y);
			await says(page, "#alternatives", /^DISCHARGE.*100 % sure|^DISCHARGE99/);
			// The letters can be turned off (WCAG 2.1.4).
			await page.click("#settings-button");
			await page.uncheck("#shortcuts");
			await page.focus("#transcript");
			await page.keyboard.press("n");
			await says(page, "#places-at", /^1 of 4$/);
			await page.clean();
		},
	);

	test("files are picked, pasted and dropped", async () => {
		const page = await openPage(browser, backend.url);
		const chooser = page.waitForEvent("filechooser");
		await page.click("#choose");
		await (await chooser).setFiles([sampleFile("picked.png")]);
		await isRead(page);
		assert.match(await text(page), /DISCHARGE NOTE/);
		await give(page, "paste", [sampleFile("pasted.png")]);
		await says(page, "#page-name", /pasted/);
		await isRead(page);
		await give(page, "drop", [sampleFile("dropped.png")]);
		assert.ok(await page.evaluate(() => window.dropShown));
		assert.ok(await page.isHidden("#drop"));
		await says(page, "#page-name", /dropped/);
		await isRead(page);
		assert.equal(await page.locator("#pages li").count(), 3);
		await page.clean();
	});

	test("Esc stops a reading and keeps what came", async () => {
		const page = await openPage(browser, backend.url);
		backend.stub?.set({ holdAfter: 60, then: "wait" });
		await page.click("#sample");
		await page.waitForFunction(() => document.getElementById("transcript").textContent.length > 3);
		await page.keyboard.press("Escape");
		await says(page, "#notice", /^Stopped\. What came is kept\.$/);
		const kept = await text(page);
		assert.ok(kept.length > 3 && kept.length < 1200);
		assert.ok(await page.isEnabled("#copy-text"));
		await untilTrue(async () => (await (await fetch(`${backend.url}api/health`)).json()).requests_admitted === 0);
		if (backend.stub) assert.ok(backend.stub.requests.at(-1).aborted);
		backend.stub?.set({ holdAfter: null });
		await page.click("#read");
		await isRead(page);
		assert.ok((await text(page)).length > kept.length);
		await page.clean();
	});

	test("of several files one fails and the others go on", async () => {
		const page = await openPage(browser, backend.url);
		await hear(page);
		await give(page, "drop", [
			sampleFile("one.png"),
			file("damaged.png", "DAMAGED \u0000\u0001"),
			file("letter.pdf", "%PDF-1.7", "application/pdf"),
			sampleFile("two.png"),
		]);
		await says(page, "#summary", /^2 of 4 read, 2 failed, /);
		await heard(page, /^Page 2 of 3 failed: /);
		await heard(page, /^Page 3 of 3 read, .*\. 2 of 4 read, 2 failed/);
		await page.click("#pages li:nth-child(2) .thumb");
		await says(page, "#pages li:nth-child(2) .thumb-state", /^failed$/);
		await says(page, "#notice.error", /image|not a supported file/);
		await page.click("#pages li:nth-child(3) .thumb");
		await says(page, "#notice.error", /Not an image/);
		await page.click("#pages li:nth-child(4) .thumb");
		assert.match(await text(page), /DISCHARGE NOTE/);
		const saved = page.waitForEvent("download");
		await page.click("#save-all");
		const lines = readFileSync(await (await saved).path(), "utf8")
			.trim()
			.split("\n")
			.map(JSON.parse);
		assert.deepEqual(
			lines.map((line) => [line.file, typeof line.extracted_content]),
			[
				["one.png", "string"],
				["damaged.png", "string"],
				["two.png", "string"],
			],
		);
		await page.click("#pages li:nth-child(3) .thumb-remove");
		assert.equal(await page.locator("#pages li").count(), 3);
		await page.clean();
	});

	test("a rotated page is sent rotated", async () => {
		const page = await openPage(browser, backend.url);
		await page.click("#sample");
		await isRead(page);
		await page.click("#rotate-right");
		await says(page, "#notice", /rotated after it was read/);
		await page.click("#read");
		await isRead(page);
		assert.ok(await page.isHidden("#notice"));
		const saved = page.waitForEvent("download");
		await page.click("#save-json");
		const answer = JSON.parse(readFileSync(await (await saved).path(), "utf8"));
		if (backend.stub) assert.deepEqual(pixels(backend.stub.requests.at(-1).file.bytes), pixels(sampleBytes).reverse());
		else assert.deepEqual([answer.image.width, answer.image.height], pixels(sampleBytes).reverse());
		await page.click("#show-request");
		await says(page, "#request-text", /rotated by 90 degrees/);
		await page.clean();
	});

	test("the page is zoomed by buttons, wheel and keys, and moved", async () => {
		const page = await openPage(browser, backend.url);
		await page.click("#sample");
		await isRead(page);
		const fitted = await page.textContent("#zoom");
		assert.equal(await page.getAttribute("#zoom-fit", "aria-pressed"), "true");
		await page.click("#zoom-full");
		await says(page, "#zoom", /^100 %$/);
		const box = await page.locator("#viewer").boundingBox();
		await page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
		const place = () => page.evaluate(() => document.getElementById("page-image").style.transform);
		const start = await place();
		await page.mouse.down();
		await page.mouse.move(box.x + box.width / 2, box.y + 20, { steps: 4 });
		await page.mouse.up();
		assert.notEqual(await place(), start);
		await page.mouse.wheel(0, -400);
		await untilTrue(async () => Number.parseInt(await page.textContent("#zoom"), 10) > 150);
		await page.focus("#viewer");
		await page.keyboard.press("0");
		await says(page, "#zoom", new RegExp(`^${fitted}$`));
		await page.keyboard.press("+");
		assert.equal(await page.getAttribute("#zoom-fit", "aria-pressed"), "false");
		await page.clean();
	});

	test("text and JSON are copied and downloaded, and the request is shown and works", async (context) => {
		const page = await openPage(browser, backend.url, { permissions: ["clipboard-read", "clipboard-write"] });
		await page.click("#sample");
		await isRead(page);
		const shown = await text(page);
		await page.click("#copy-text");
		await says(page, "#copied", /^Text copied$/);
		assert.equal(await page.evaluate(() => navigator.clipboard.readText()), shown);
		await page.click("#copy-json");
		await says(page, "#copied", /^JSON copied$/);
		assert.equal(JSON.parse(await page.evaluate(() => navigator.clipboard.readText())).extracted_content, shown);
		const saved = page.waitForEvent("download");
		await page.click("#save-text");
		assert.equal((await saved).suggestedFilename(), "sample.txt");
		assert.equal(readFileSync(await (await saved).path(), "utf8"), shown);

		await page.click("#show-request");
		const command = await page.textContent("#request-text");
		await page.click("#as-python");
		await says(page, "#request-text", /requests\.post/);
		const program = await page.textContent("#request-text");
		await page.click("#request-copy");
		await says(page, "#request-copied", /^Copied$/);
		await page.keyboard.press("Escape");
		const folder = mkdtempSync(join(tmpdir(), "page-curl-"));
		copyFileSync(SAMPLE, join(folder, "sample.png"));
		const { stdout } = await promisify(execFile)("sh", ["-c", command], { cwd: folder, maxBuffer: 64 * 1024 * 1024 });
		const printed = NO_REQUESTS ? null : await runPython(program, folder);
		rmSync(folder, { recursive: true });
		if (printed === null) context.diagnostic(`the Python program was not run: ${NO_REQUESTS}`);
		else assert.deepEqual(printed, { code: 0, stdout: shown, stderr: "" });
		const done = stdout.split("\n\n").find((event) => event.startsWith("event: done"));
		assert.equal(JSON.parse(done.split("data: ")[1]).extracted_content, shown);
		await page.clean();
	});

	test("two models are compared word by word", async () => {
		backend.stub?.set({ texts: { none: "CRP 214 -> 38 mg/L\nHbA1c 7.2%", "medical-lora": "CRP 274 -> 38 mg/L\nHbA1c 7.2% high" } });
		const page = await openPage(browser, backend.url);
		await page.click("#sample");
		await isRead(page);
		await page.click("#compare");
		assert.equal(await page.locator("#compare-a option").count(), backend.stub ? 3 : 2);
		await page.click("#read");
		await page.waitForFunction(() => document.getElementById("read-label").textContent === "Compare both");
		await says(page, "#places-count", /differ|the same/);
		await says(page, "#comparison .compare-head", /base.*medical/);
		if (backend.stub) {
			await says(page, "#places-count", /^2 lines differ, 80 % of the words are the same$/);
			assert.deepEqual(await page.locator("#comparison del").allTextContents(), ["214"]);
			assert.deepEqual(await page.locator("#comparison ins").allTextContents(), ["274", "high"]);
			assert.deepEqual(
				backend.stub.requests.slice(-2).map(({ fields }) => fields.adapter),
				["none", "medical-lora"],
			);
			const sign = await page.evaluate(() => getComputedStyle(document.querySelector("del"), "::before").content);
			assert.equal(sign, '"−"');
		}
		await page.click("#compare");
		assert.ok(await page.isVisible("#transcript"));
		backend.stub?.set({ texts: {} });
		await page.clean();
	});
});

describe("Custom analysis", () => {
	test("asks a prompt of the same page, with settings, and remembers the prompt", async () => {
		const page = await openPage(browser, backend.url);
		await page.click("#sample");
		await isRead(page);
		await page.focus("#tab-extract");
		await page.keyboard.press("ArrowRight");
		assert.equal(await page.getAttribute("#tab-analyze", "aria-selected"), "true");
		assert.ok(await page.isVisible("#viewer"));
		assert.equal(await page.locator("#prompts optgroup[label=Ready] option").count(), 10);
		await page.selectOption("#prompts", { label: "List all medications on this page with their doses." });
		assert.equal(await page.inputValue("#prompt"), "List all medications on this page with their doses.");
		await page.fill("#prompt", "Which doses?");
		await says(page, "#prompt-count", /^12 \/ 8,192$/);
		await page.click("#settings-button");
		await page.fill("#temperature", "3");
		await says(page, "#temperature-error", /0 to 2/);
		assert.ok(await page.isDisabled("#read"));
		await page.fill("#temperature", "0.5");
		await page.fill("#seed", "7");
		await page.fill("#max_new_tokens", "20");
		await page.fill("#max_pixels", "500000");
		await page.selectOption("#adapter", "none");
		await says(page, "#settings-count", /^5$/);
		await page.focus("#prompt");
		await page.keyboard.press("Control+Enter");
		await isRead(page);
		assert.ok(await page.isHidden("#asked"), "the prompt is still in its field");
		assert.equal(await page.locator('#prompts optgroup[label="Used on this page"] option').textContent(), "Which doses?");
		if (backend.stub) {
			const { route, fields } = backend.stub.requests.at(-1);
			assert.equal(route, "analyze");
			const sent = { prompt: "Which doses?", adapter: "none", temperature: "0.5", seed: "7", max_new_tokens: "20", max_pixels: "500000" };
			assert.deepEqual({ ...fields }, { ...sent, stream: "true", logprobs: "true" });
			await says(page, "#transcript", /^Answer to: Which doses\?$/);
		} else await says(page, "#figures", / \d+ tokens?/);
		await page.fill("#prompt", "And which routes?");
		await says(page, "#asked", /^Which doses\?$/);
		// The extraction is still there.
		await page.click("#tab-extract");
		await says(page, "#transcript", /DISCHARGE NOTE/);
		await page.clean();
	});

	test("a prompt that is too long is counted in characters and not sent", async () => {
		const page = await openPage(browser, backend.url);
		await page.click("#tab-analyze");
		await page.setInputFiles("#files", [sampleFile()]);
		await page.fill("#prompt", "🩺".repeat(8192));
		await says(page, "#prompt-count", /^8,192 \/ 8,192$/);
		assert.ok(await page.isEnabled("#read"));
		await page.fill("#prompt", "🩺".repeat(8193));
		assert.ok(await page.isDisabled("#read"));
		assert.equal(await page.getAttribute("#prompt", "aria-invalid"), "true");
		await page.clean();
	});
});

describe("Benchmarks", () => {
	test("say which command makes what is missing", async () => {
		const page = await openPage(browser, backend.url);
		await page.click("#tab-benchmarks");
		await says(
			page,
			"#benchmarks-body",
			/Nothing was measured yet.*benchmark_baseline.*quantize_base.*benchmark_quantized.*evaluate_finetuned.*generate_report/,
		);
		await page.clean();
	});
});

test("the API is killed and comes back", async (context) => {
	// Others use the one that runs already.
	const backend = await startBackend({ delay: 4 }, { own: true });
	context.after(() => backend.close());
	const page = await openPage(browser, backend.url);
	await hear(page);
	backend.stub?.set({ holdAfter: 60, then: "wait" });
	await give(page, "drop", [sampleFile("one.png"), sampleFile("two.png")]);
	await page.waitForFunction(() => document.getElementById("transcript").textContent.length > 3);
	const kept = await text(page);
	await backend.kill();
	await says(page, "#pages li:nth-child(1) .thumb-state", /^failed$/);
	await says(page, "#notice.error", /connection|reached|lost|API/);
	assert.ok((await text(page)).startsWith(kept));
	await says(page, "#status-text", /^Unreachable, next try in \d+ s$/);
	await heard(page, /cannot be reached/);
	await says(page, "#pages li:nth-child(2) .thumb-state", /^(waiting|failed)$/);
	await backend.restart();
	await heard(page, /answers again/);
	await page.waitForSelector('#status[data-state="ready"], #status[data-state="busy"]');
	await says(page, "#summary", /^1 of 2 read, 1 failed/);
	await page.click("#read");
	await says(page, "#pages li:nth-child(1) .thumb-state", /read|check/);
	await page.clean();
});
