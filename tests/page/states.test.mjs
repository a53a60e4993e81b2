// States that a real server seldom shows, against the stub.

import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, describe, test } from "node:test";
import {
	NO_REQUESTS,
	PROGRAMS,
	file,
	give,
	hear,
	heard,
	isRead,
	openPage,
	runPython,
	sampleBytes,
	sampleFile,
	says,
	screenshot,
	startBrowser,
	startWithStub,
	untilTrue,
} from "./lib.mjs";
import { ROOT } from "./stub.mjs";

assert.ok(!PROGRAMS, "these tests are of the stub");

let browser;
let backend;
let page;

before(async () => {
	browser = await startBrowser();
});
after(() => browser?.close());
beforeEach(async () => {
	backend = await startWithStub({ delay: 1 });
});
afterEach(async () => {
	await page.clean();
	await backend.close();
});

const set = (knobs) => backend.stub.set(knobs);
const open = async (options) => {
	page = await openPage(browser, backend.url, options);
};
const text = () => page.textContent("#transcript");
const readSample = async () => {
	await page.click("#sample");
	await isRead(page);
};

describe("the queue", () => {
	test("is shown with the requests before this one", async () => {
		set({ before: 2 });
		await open();
		await page.click("#sample");
		await says(page, "#figures", /^2 requests before this one/);
		set({ before: 1 });
		await says(page, "#figures", /^1 request before this one/);
		set({ before: 0 });
		await isRead(page);
	});

	test("that is full is waited for as long as the server says", async () => {
		set({ queueFull: 1000 });
		await open();
		await page.click("#sample");
		await says(page, "#figures", /^The queue is full, sent again in 1 s$/);
		set({ queueFull: 0 });
		await isRead(page);
		assert.ok(backend.stub.requests.length > 1);
	});

	test("that is full can be left", async () => {
		set({ queueFull: 1000 });
		await open();
		await page.click("#sample");
		await says(page, "#figures", /^The queue is full/);
		await page.keyboard.press("Escape");
		await says(page, "#notice", /^Stopped before any text came\.$/);
	});

	test("others wait in is told by the header", async () => {
		set({ admitted: 3 });
		await open({ ready: false });
		await says(page, "#status-text", /^2 waiting$/);
	});
});

describe("the key", () => {
	test("is asked for, sent, kept in memory only and shown nowhere", async () => {
		set({ key: "s3cret-key" });
		await open({ ready: false });
		await page.waitForSelector("#key-dialog[open]");
		await page.fill("#key", "wrong");
		await page.keyboard.press("Enter");
		await says(page, "#key-error", /^The API refused this key\.$/);
		await page.fill("#key", "with space");
		await page.keyboard.press("Enter");
		await says(page, "#key-error", /without spaces/);
		await page.fill("#key", "s3cret-key");
		await page.keyboard.press("Enter");
		await page.waitForSelector('#status[data-state="ready"]');
		assert.equal(await page.inputValue("#key"), "");
		await readSample();
		assert.equal(backend.stub.requests.at(-1).authorization, "Bearer s3cret-key");
		await page.click("#show-request");
		for (const language of ["#as-curl", "#as-python"]) {
			await page.click(language);
			await says(page, "#request-text", /MVP_API_KEY/);
		}
		assert.ok(!(await page.content()).includes("s3cret-key"));
		await page.reload();
		await page.waitForSelector("#key-dialog[open]");
	});

	test("in the address is used before it is asked for, and kept nowhere", async () => {
		const key = 'medvision-aB3_-9"<~';
		set({ key });
		// The strange characters as they are, and as browsers write them.
		for (const written of [key, encodeURIComponent(key)]) {
			if (written !== key) await page.clean();
			backend.stub.heads.length = 0;
			await open({ hash: `#key=${written}` });
			assert.ok(await page.isHidden("#key-dialog"));
			assert.equal(page.url(), backend.url);
			await readSample();
			assert.equal(backend.stub.requests.at(-1).authorization, `Bearer ${key}`);
			const api = backend.stub.heads.filter(({ url }) => url.startsWith("/api/"));
			assert.ok(api.length >= 3 && api.every(({ headers }) => headers.authorization === `Bearer ${key}`), "no try without it");
			for (const { url, headers } of backend.stub.heads) {
				assert.doesNotMatch(url, /key|aB3/);
				assert.equal(headers.referer, undefined);
			}
			const client = await page.context().newCDPSession(page);
			const { entries } = await client.send("Page.getNavigationHistory");
			assert.ok(entries.every(({ url }) => [backend.url, "about:blank"].includes(url)));
			assert.equal(await page.evaluate(() => history.state), null);
			assert.ok(!(await page.content()).includes("aB3"));
		}
		// In memory only; `page.clean` looks at what is stored.
		await page.reload();
		await page.waitForSelector("#key-dialog[open]");
	});

	test("in the address that is wrong leads to the dialog", async () => {
		set({ key: "medvision-right" });
		await open({ ready: false, hash: "#key=medvision-wrong" });
		await page.waitForSelector("#key-dialog[open]");
		await says(page, "#key-error", /^The API refused this key\.$/);
		assert.equal(page.url(), backend.url);
		await page.fill("#key", "medvision-right");
		await page.keyboard.press("Enter");
		await page.waitForSelector('#status[data-state="ready"]');
	});

	test("in the address that cannot be one is removed from there and not used", async () => {
		set({ key: "medvision-right" });
		for (const wrong of ["", "a b", "%20", "%00", "sch%C3%B6n", "%", "x".repeat(1025)]) {
			await open({ ready: false, hash: `#key=${wrong}` });
			await page.waitForSelector("#key-dialog[open]");
			await says(page, "#key-error", /^$/);
			assert.equal(page.url(), backend.url);
			await page.clean();
		}
		assert.ok(backend.stub.heads.every(({ headers }) => headers.authorization === undefined));
		set({ key: "x".repeat(1024) });
		await open({ hash: `#key=${"x".repeat(1024)}` });
	});

	test("in the address is taken while the page is open, also instead of the dialog", async () => {
		set({ key: "medvision-first" });
		await open({ ready: false });
		await page.waitForSelector("#key-dialog[open]");
		await page.goto(`${backend.url}#key=medvision-first`);
		await page.waitForSelector('#status[data-state="ready"]');
		assert.ok(await page.isHidden("#key-dialog"));
		assert.equal(page.url(), backend.url);
		await readSample();
		// A new one, at once; and one that is wrong.
		set({ key: "medvision-second" });
		await page.evaluate(() => (location.hash = "key=medvision-second"));
		await page.waitForFunction(() => location.hash === "");
		await page.click("#read");
		await isRead(page);
		assert.equal(backend.stub.requests.at(-1).authorization, "Bearer medvision-second");
		await page.evaluate(() => (location.hash = "key=medvision-third"));
		await says(page, "#key-error", /^The API refused this key\.$/);
		assert.equal(page.url(), backend.url);
		await page.goBack();
		assert.ok(!page.url().includes("key="));
	});

	test("of another scope is refused in the API's words, and another one is asked for", async () => {
		set({ key: "medvision-right", metricsKey: "medvision-metrics" });
		await open({ ready: false, hash: "#key=medvision-metrics" });
		await says(page, "#key-error", /^this key may not call this route: it is for \/metrics only$/);
		await page.keyboard.press("Escape");
		await says(page, "#status-text", /^Needs another key$/);
		await page.click("#sample");
		await page.waitForSelector("#key-dialog[open]");
		await page.keyboard.press("Escape");
		await says(page, "#notice.error", /^this key may not call this route: it is for \/metrics only$/);
		await page.click("#retry");
		await page.fill("#key", "medvision-right");
		await page.keyboard.press("Enter");
		await page.waitForSelector('#status[data-state="ready"]');
		await page.click("#read");
		await isRead(page);
	});

	test("that has as many requests as it may have is waited for, and can be left", async () => {
		set({ key: "medvision-right", keyLimit: 1000 });
		await open({ hash: "#key=medvision-right" });
		await page.click("#sample");
		await says(page, "#figures", /^This key has 4 requests in the queue, its limit, sent again in 2 s$/);
		await says(page, "#figures", /sent again in 1 s$/);
		await screenshot(page, "key-limit");
		await page.keyboard.press("Escape");
		await says(page, "#notice", /^Stopped before any text came\.$/);
		set({ keyLimit: 1 });
		await page.click("#read");
		await isRead(page);
		assert.equal(backend.stub.requests.length, 3);
	});

	test("can be declined, and given later", async () => {
		set({ key: "s3cret-key" });
		await open({ ready: false });
		await page.waitForSelector("#key-dialog[open]");
		await page.click("#key-dialog [data-close]");
		await says(page, "#status-text", /^Needs a key$/);
		await page.click("#sample");
		await page.waitForSelector("#key-dialog[open]");
		await page.keyboard.press("Escape");
		await says(page, "#notice.error", /key/);
		await page.click("#retry");
		await page.fill("#key", "s3cret-key");
		await page.click("#key-form .primary");
		await page.waitForSelector('#status[data-state="ready"]');
		await page.click("#read");
		await isRead(page);
	});
});

describe("a reading", () => {
	test("that ends with an error keeps what came and says why", async () => {
		set({ errorAfter: 20 });
		await open();
		await page.click("#sample");
		await says(page, "#notice.error", /shutting down\. What came before is kept\.$/);
		assert.match(await text(), /^DISCHARGE NOTE/);
		set({ errorAfter: null });
		await page.click("#read");
		await isRead(page);
		assert.ok(await page.isHidden("#notice"));
	});

	for (const [where, options] of [
		["a desk", {}],
		["a phone", { width: 390, height: 844, hasTouch: true, isMobile: true }],
	]) {
		test(`on ${where} is stopped by the button that began it, and keeps what came`, async () => {
			set({ holdAfter: 20 });
			await open(options);
			await page.click("#sample");
			await says(page, "#read-label", /^Stop$/);
			await says(page, "#transcript", /^DISCHARGE NOTE/);
			// By its place: whatever covers the button would be hit instead.
			const button = await page.locator("#read").boundingBox();
			const [x, y] = [button.x + button.width / 2, button.y + button.height / 2];
			await (options.hasTouch ? page.touchscreen.tap(x, y) : page.mouse.click(x, y));
			await says(page, "#notice", /^Stopped\. What came is kept\.$/);
			await says(page, "#read-label", /^Read again$/);
			const kept = await text();
			assert.match(kept, /^DISCHARGE NOTE/);
			assert.ok(await page.isEnabled("#copy-text"));
			await untilTrue(() => backend.stub.requests.at(-1).aborted);
			assert.equal(backend.stub.requests.length, 1, "the same click does not read it again");
			set({ then: "go" });
			await page.click("#read");
			await isRead(page);
			assert.ok((await text()).length > kept.length);
		});
	}

	test("whose connection is lost keeps what came and says so", async () => {
		set({ holdAfter: 20 });
		await open();
		await page.click("#sample");
		await says(page, "#transcript", /^DISCHARGE NOTE/);
		set({ then: "cut" });
		await says(page, "#notice.error", /connection to the API/);
		assert.match(await text(), /^DISCHARGE NOTE/);
	});

	test("whose final text is shorter shows that one, with its places to check", async () => {
		set({ finalLength: 70 });
		await open();
		await readSample();
		assert.equal((await text()).length, 70);
		await says(page, "#places-count", /^1 place to check$/);
		await says(page, "#notice", /repeated itself/);
	});

	test("arrives whole in chunks of three bytes", async () => {
		set({ text: "37,5 °C — µmol/L 🩺\r\n\r\nevent: done", chunk: 3, delay: 0 });
		await open();
		await readSample();
		assert.equal(await text(), "37,5 °C — µmol/L 🩺\r\n\r\nevent: done");
	});

	test("by a server that cannot stream is shown all the same", async () => {
		set({ unstreamed: true });
		await open();
		await readSample();
		assert.match(await text(), /^DISCHARGE NOTE/);
		await says(page, "#places-count", /^4 places to check$/);
	});

	test("of a damaged file says what is missing", async () => {
		set({ warnings: ["truncated", "first of 3 pages"] });
		await open();
		await readSample();
		await says(page, "#notice", /a part of the page is missing\. Only the first of 3 pages/);
	});

	test("of a TIFF file is done although the browser cannot show it", async () => {
		await open();
		await page.setInputFiles("#files", [file("scan.tiff", "II*\u0000 not shown", "image/tiff")]);
		await says(page, "#not-viewable-text", /cannot show TIFF/);
		await isRead(page);
		assert.equal(backend.stub.requests.at(-1).file.name, "scan.tiff");
		assert.ok(await page.isDisabled("#rotate-left"));
	});

	test("goes on when its neighbour in the strip is removed", async () => {
		set({ holdAfter: 20, holdFile: "one.png" });
		await open();
		await give(page, "drop", [sampleFile("one.png"), sampleFile("two.png"), sampleFile("three.png")]);
		await says(page, "#pages li:nth-child(1) .thumb-state", /^reading$/);
		await page.click("#pages li:nth-child(2) .thumb-remove");
		await page.click("#pages li:nth-child(1) .thumb-remove");
		await says(page, "#page-name", /^three\.png$/);
		await isRead(page);
		assert.deepEqual(
			backend.stub.requests.map((request) => [request.file.name, request.aborted]),
			[
				["one.png", true],
				["three.png", false],
			],
		);
	});

	test("of many files is stopped as a whole, and goes on with those that were not read", async () => {
		set({ holdAfter: 20, holdFile: "two.png" });
		await open();
		await give(page, "paste", [sampleFile("one.png"), sampleFile("two.png"), sampleFile("three.png")]);
		await says(page, "#pages li:nth-child(1) .thumb-state", /check|read$/);
		await says(page, "#pages li:nth-child(2) .thumb-state", /^reading$/);
		await page.keyboard.press("Escape");
		await says(page, "#pages li:nth-child(2) .thumb-state", /^stopped$/);
		await says(page, "#pages li:nth-child(3) .thumb-state", /^not read$/);
		set({ then: "go" });
		await says(page, "#read-label", /^Read 2 pages$/);
		await page.click("#read");
		await says(page, "#summary", /^2 of 2 read, 8 places to check$/);
	});
});

describe("the model", () => {
	test("that loads is waited for", async () => {
		set({ loading: true });
		await open({ ready: false });
		await says(page, "#status-text", /^Loading the model$/);
		await page.click("#sample");
		await says(page, "#figures", /^The model is still loading, sent again in 1 s$/);
		set({ loading: false });
		await isRead(page);
		await says(page, "#model", /qwen25-vl-nano/);
	});

	test("on a GPU has its memory shown", async () => {
		set({ gpu: true });
		await open();
		await says(page, "#memory-name", /^GPU memory$/);
		await says(page, "#memory-text", /^15\.4 GB of 24\.0 GB$/);
		assert.equal(await page.getAttribute("#memory-bar", "aria-valuenow"), "64");
	});

	test("without a second one cannot be compared", async () => {
		set({ models: ["qwen25-vl-nano"] });
		await open();
		await readSample();
		await page.click("#compare");
		await says(page, "#compare-missing", /Only one model is loaded.*--adapter NAME=DIR/);
		assert.ok(await page.isDisabled("#read"));
	});
});

test("a prompt of several lines is sent as it was written", async () => {
	await open();
	await page.click("#tab-analyze");
	await page.setInputFiles("#files", [sampleFile()]);
	await page.focus("#prompt");
	await page.keyboard.type("Which doses?");
	await page.keyboard.press("Enter");
	await page.keyboard.type("Which routes?");
	await page.click("#read");
	await isRead(page);
	assert.equal(backend.stub.requests.at(-1).fields.prompt, "Which doses?\nWhich routes?");
	assert.ok(await page.isHidden("#asked"), "the prompt is still in its field");
});

describe("the least pixels", () => {
	test("are sent, also below the model's own minimum", async () => {
		await open();
		await readSample();
		await page.click("#settings-button");
		assert.equal(await page.getAttribute("#min_pixels", "placeholder"), "3,136");
		for (const pixels of ["200000", "784"]) {
			await page.fill("#min_pixels", pixels);
			await says(page, "#settings-count", /^1$/);
			await page.click("#read");
			await isRead(page);
			assert.deepEqual({ ...backend.stub.requests.at(-1).fields }, { min_pixels: pixels, stream: "true", logprobs: "true" });
		}
	});

	test("out of range are told at the field: what the page knows before, the rest in the API's words", async () => {
		await open();
		await page.click("#settings-button");
		await page.fill("#min_pixels", "1003521");
		await says(page, "#min_pixels-error", /^A whole number from 1 to 1,003,520\.$/);
		await page.fill("#min_pixels", "5000");
		await page.fill("#max_pixels", "4000");
		await says(page, "#max_pixels-error", /^Below the least pixels\.$/);
		await page.fill("#max_pixels", "");
		await page.fill("#min_pixels", "783");
		await says(page, "#min_pixels-error", /^$/);
		// Out of sight while the page is read.
		await page.click("#settings-button");
		await page.click("#sample");
		await says(page, "#min_pixels-error", /^must be from 784 to 1003520$/);
		assert.equal(await page.getAttribute("#min_pixels", "aria-invalid"), "true");
		assert.equal(await page.getAttribute("#settings-button", "aria-expanded"), "true");
		await says(page, "#notice.error", /^min_pixels: must be from 784 to 1003520$/);
		await page.fill("#min_pixels", "784");
		await says(page, "#min_pixels-error", /^$/);
		assert.equal(await page.getAttribute("#min_pixels", "aria-invalid"), null);
		await page.click("#read");
		await says(page, "#transcript", /^DISCHARGE NOTE/);
		await page.waitForSelector("#notice", { state: "hidden" });
	});

	test("that were changed while they were refused are not blamed", async () => {
		set({ queueFull: 1 });
		await open();
		await page.click("#settings-button");
		await page.fill("#min_pixels", "700");
		await page.click("#sample");
		await says(page, "#figures", /^The queue is full/);
		await page.fill("#min_pixels", "900");
		await says(page, "#notice.error", /^min_pixels: must be/);
		await says(page, "#min_pixels-error", /^$/);
	});
});

describe("a comparison", () => {
	const COMPARED = { none: "CRP 214 mg/L", "medical-lora": "CRP 274 mg/L", "ward-lora": "CRP 274 g/L" };
	const sentAdapters = () => backend.stub.requests.slice(-2).map(({ fields }) => fields.adapter);

	test("is of the two models that were chosen, in their order", async () => {
		set({ texts: COMPARED });
		await open();
		await readSample();
		await page.click("#compare");
		const values = await page.locator("#compare-b option").evaluateAll((options) => options.map(({ value }) => value));
		assert.deepEqual(values, ["none", "medical-lora", "ward-lora"]);
		await page.selectOption("#compare-a", "ward-lora");
		await page.click("#read");
		await says(page, "#places-count", /^1 line differs, 66 % of the words are the same$/);
		await says(page, ".compare-head > :nth-child(1)", /^−ward-lora$/);
		await says(page, ".compare-head > :nth-child(2)", /^\+medical-lora$/);
		assert.deepEqual(sentAdapters(), ["ward-lora", "medical-lora"]);
		assert.deepEqual(await page.locator("#comparison del").allTextContents(), ["g/L"]);
		assert.deepEqual(await page.locator("#comparison ins").allTextContents(), ["mg/L"]);
		// What is chosen next belongs to the next comparison.
		await page.selectOption("#compare-a", "medical-lora");
		await page.selectOption("#compare-b", "none");
		await says(page, ".compare-head > :nth-child(1)", /^−ward-lora$/);
		await page.click("#read");
		await says(page, ".compare-head > :nth-child(2)", /^\+qwen25-vl-nano \(base\)$/);
		await says(page, "#places-count", /differs/);
		assert.deepEqual(sentAdapters(), ["medical-lora", "none"]);
		assert.deepEqual(await page.locator("#comparison del").allTextContents(), ["274"]);
		assert.deepEqual(await page.locator("#comparison ins").allTextContents(), ["214"]);
	});

	test("of a model with itself cannot be asked for, and the page says why", async () => {
		await open();
		await readSample();
		await page.click("#compare");
		assert.ok(await page.isHidden("#compare-same"));
		await hear(page);
		await page.selectOption("#compare-b", "none");
		await says(page, "#compare-same", /^Choose two different models to compare them\.$/);
		await heard(page, /^Choose two different models/);
		assert.ok(await page.isDisabled("#read"));
		await page.click("#compare");
		assert.ok(await page.isHidden("#compare-same"));
		assert.ok(await page.isEnabled("#read"));
		await page.click("#compare");
		await page.selectOption("#compare-b", "ward-lora");
		assert.ok(await page.isHidden("#compare-same"));
		assert.ok(await page.isEnabled("#read"));
		assert.equal(backend.stub.requests.length, 1);
	});
});

describe("the request as a Python program", { skip: NO_REQUESTS }, () => {
	/** The program that the page shows, run beside the file that it reads. */
	const shownAndRun = async (key) => {
		await page.click("#show-request");
		await page.click("#as-python");
		const program = await page.textContent("#request-text");
		await page.click("#request-dialog [data-close]");
		const folder = mkdtempSync(join(tmpdir(), "page-python-"));
		writeFileSync(join(folder, NAME), sampleBytes);
		try {
			return await runPython(program, folder, key);
		} finally {
			rmSync(folder, { recursive: true });
		}
	};
	const NAME = `it's "1"; ü,é.png`;
	const PROMPT = 'Is "CRP" > 5? \\n {x} %s \u2028 🩺\n@page';

	test("sends what the page sent, with the key from the environment, and prints the answer", async () => {
		set({ key: "s3cret-key" });
		await open({ hash: "#key=s3cret-key" });
		await page.click("#tab-analyze");
		await page.setInputFiles("#files", [sampleFile(NAME)]);
		await page.fill("#prompt", PROMPT);
		await page.click("#settings-button");
		await page.fill("#temperature", "0.5");
		await page.fill("#min_pixels", "200000");
		await page.selectOption("#adapter", "ward-lora");
		set({ text: "37,5 °C, µmol/L 🩺\r\n\r\nevent: done", chunk: 7 });
		await page.click("#read");
		await isRead(page);
		const result = await shownAndRun("s3cret-key");
		assert.deepEqual(result, { code: 0, stdout: await text(), stderr: "" });
		const [byPage, byProgram] = backend.stub.requests;
		assert.equal(backend.stub.requests.length, 2);
		assert.deepEqual([byProgram.route, byProgram.authorization], ["analyze", "Bearer s3cret-key"]);
		assert.deepEqual({ ...byProgram.fields }, { ...byPage.fields });
		assert.equal(byProgram.fields.adapter, "ward-lora");
		assert.ok(byProgram.file.bytes.equals(sampleBytes));
		// Without its key it fails by the variable's name.
		const { code, stderr } = await shownAndRun();
		assert.equal(code, 1);
		assert.match(stderr, /KeyError: 'MVP_API_KEY'/);
	});

	test("says why where the answer ends with an error, and fails", async () => {
		set({ errorAfter: 20 });
		await open();
		await page.setInputFiles("#files", [sampleFile(NAME)]);
		await says(page, "#notice.error", /shutting down/);
		const { code, stdout, stderr } = await shownAndRun();
		assert.equal(code, 1);
		assert.match(stdout, /^DISCHARGE NOTE/);
		assert.match(stderr, /^The reading was ended: the server is shutting down\.$/m);
	});

	test("fails where the request is refused", async () => {
		set({ damaged: "\ufffdPNG" });
		await open();
		await page.setInputFiles("#files", [sampleFile(NAME)]);
		await says(page, "#notice.error", /damaged/);
		const { code, stdout, stderr } = await shownAndRun();
		assert.deepEqual([code, stdout], [1, ""]);
		assert.match(stderr, /400|damaged/);
	});
});

const HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script><svg onload=alert(3)>${alert(4)}';

describe("hostile text", () => {
	// Everything that can hold text of others, counted before and after.
	const elements = () =>
		page.evaluate(() => document.querySelectorAll("img, script, iframe, object, a[href^='javascript'], [onerror], [onload]").length);

	test("of a model, a file, a prompt, a record and an error stays text", async () => {
		const record = { model_name: HOSTILE, precision: HOSTILE, vram: {}, inference_results: [{ response: HOSTILE, latency_seconds: 1 }] };
		set({ text: HOSTILE, models: [HOSTILE, `${HOSTILE}2`], benchmarks: { baseline_fp16: record, [HOSTILE]: record }, warnings: [HOSTILE] });
		await open();
		const before = await elements();
		await page.setInputFiles("#files", [sampleFile(`${HOSTILE.replaceAll("/", "")}.png`)]);
		await isRead(page);
		assert.equal(await text(), HOSTILE);
		await page.click("#compare");
		await page.click("#read");
		await says(page, "#places-count", /the same/);
		await page.click("#compare");
		await page.click("#show-request");
		await page.click("#as-python");
		await page.keyboard.press("Escape");
		await page.click("#tab-analyze");
		await page.fill("#prompt", HOSTILE);
		await page.click("#read");
		await isRead(page);
		await page.fill("#prompt", "another");
		await says(page, "#asked", /onerror/);
		set({ damaged: "\ufffdPNG" });
		await page.click("#read");
		await says(page, "#notice.error", /damaged/);
		await page.click("#tab-benchmarks");
		await says(page, "#benchmarks-body", /onerror/);
		for (const summary of await page.locator(".record summary").all()) await summary.click();
		await says(page, ".record pre", /onerror/);
		assert.equal(await elements(), before);
	});

	test("of 200 KB on one line leaves the page responsive", async () => {
		const long = HOSTILE.repeat(Math.ceil(200_000 / HOSTILE.length));
		const spaced = "a <b> ".repeat(34_000);
		for (const answer of [long, spaced]) {
			set({ text: answer, plain: true, texts: { none: answer.toUpperCase() } });
			await open();
			const before = await elements();
			await readSample();
			assert.equal(await text(), answer);
			const width = await page.evaluate(
				() => document.getElementById("transcript").scrollWidth <= document.getElementById("transcript").clientWidth,
			);
			assert.ok(width, "the line is broken");
			await page.click("#compare");
			await page.click("#read");
			await says(page, "#places-count", /differ/);
			await page.click("#compare");
			await page.click("#tab-benchmarks");
			await says(page, "#benchmarks-body", /Nothing was measured yet/);
			assert.equal(await elements(), before);
			if (answer === long) await page.clean();
		}
	});

	test("has as many places to check listed as fit, and the rest counted", async () => {
		await open();
		for (const [places, last, buttons] of [
			[500, /^214/, 500],
			[512, /^and 12 more$/, 500],
		]) {
			set({ text: Array.from({ length: places }, () => "214").join(" "), delay: 0 });
			if (buttons === places) await readSample();
			else {
				await page.click("#read");
				await says(page, "#places-count", new RegExp(`^${places} `));
				await isRead(page);
			}
			assert.equal(await page.locator("#places-list button").count(), buttons);
			await says(page, "#places-list li:last-child", last);
		}
		await page.locator("#places-list li:last-child").scrollIntoViewIfNeeded();
		await screenshot(page, "places-more");
	});

	test("with 5,000 places to check is walked through all the same", async () => {
		set({ text: Array.from({ length: 5000 }, () => "214").join(" "), delay: 0 });
		await open();
		await readSample();
		await says(page, "#places-count", /^5,000 places to check$/);
		assert.equal(await page.locator("#places-list button").count(), 500);
		await says(page, "#places-list li:last-child", /^and 4,500 more$/);
		await page.keyboard.press("p");
		await says(page, "#places-at", /^5,000 of 5,000$/);
		await page.keyboard.press("n");
		await says(page, "#places-at", /^1 of 5,000$/);
	});
});

describe("benchmarks", () => {
	/** Labels, lengths and texts of a chart's bars; a bar that is not drawn has no length. */
	const bars = (title) =>
		page.evaluate((title) => {
			const figure = [...document.querySelectorAll(".charts figure")].find((figure) => figure.querySelector("strong").textContent === title);
			const middle = (element) => Number(element.getAttribute("y")) + Number(element.getAttribute("height") ?? 0) / 2;
			const at = (selector, y) => [...figure.querySelectorAll(selector)].find((element) => Math.abs(middle(element) - y) < 1);
			return [...figure.querySelectorAll(".chart-label")].map((label) => {
				const length = (selector) => Number(at(selector, middle(label))?.getAttribute("width") ?? 0);
				return {
					label: label.textContent,
					share: length(".chart-bar") / length(".chart-ground"),
					text: at(".chart-value", middle(label)).textContent,
				};
			});
		}, title);
	const assertBars = async (title, expected) => {
		const found = await bars(title);
		assert.deepEqual(
			found.map(({ label, text }) => [label, text]),
			expected.map(([label, text]) => [label, text]),
		);
		for (const [index, [label, , share]] of expected.entries()) {
			assert.ok(Math.abs(found[index].share - share) < 0.005, `${title}, ${label}: ${found[index].share}, not ${share}`);
		}
		const told = await page
			.locator("figure", { has: page.locator(`strong:text-is("${title}")`) })
			.locator("svg")
			.getAttribute("aria-label");
		assert.equal(told, `${title}: ${expected.map(([label, text]) => `${label} ${text}`).join(", ")}`);
	};

	test("of the original project's records draw the fine-tuned model, also where accuracy was measured apart", async () => {
		const folder = join(ROOT, "tests/fixtures/records/original/benchmarks");
		const names = ["baseline_fp16", "quantized_int4", "finetuned_standard_bench", "evaluation_finetuned"];
		const benchmarks = Object.fromEntries(names.map((name) => [name, JSON.parse(readFileSync(join(folder, `${name}.json`), "utf8"))]));
		set({ benchmarks });
		await open();
		await page.click("#tab-benchmarks");
		await says(page, "#benchmarks-body", /Records/);
		await assertBars("Memory", [
			["Base", "15.4 GB", 1],
			["4 bits, NF4", "5.5 GB", 5664.02 / 15820.1],
			["Fine-tuned", "11.1 GB", 11318.44 / 15820.1],
		]);
		await assertBars("Latency", [
			["Base", "31.1 s", 1],
			["4 bits, NF4", "15.2 s", 15.24 / 31.1],
			["Fine-tuned", "24.8 s", 24.8 / 31.1],
		]);
		await assertBars("Accuracy", [
			["Base", "not measured", 0],
			["4 bits, NF4", "not measured", 0],
			["Fine-tuned", "not measured", 0],
		]);
		await assertBars("Accuracy on the evaluation cases", [
			["Without adapter", "83.5 %", 0.8349],
			["Fine-tuned", "73.7 %", 0.737],
		]);
		const cells = (table, row) => page.locator(`.figures-table >> nth=${table}`).locator(`tbody tr:nth-child(${row}) > *`).allTextContents();
		assert.deepEqual(await cells(1, 1), ["Without adapter", "86.0 %", "81.6 %", "83.5 %", "25.1 s"]);
		assert.deepEqual(await cells(1, 2), ["Fine-tuned", "75.0 %", "72.0 %", "73.7 %", "32.9 s"]);
		assert.equal((await cells(0, 4)).at(-1), "11.8 GB", "peak memory");
	});

	test("of all models draw each one's memory, latency and accuracy", async () => {
		set({
			benchmarks: {
				baseline_fp16: benchmark("qwen25-vl-7b-base", 16000, 4, 90),
				quantized_int4: benchmark("qwen25-vl-7b-bnb-nf4", 6000, 5, 85),
				quantized_awq: benchmark("qwen25-vl-7b-awq-int4", 7000, 3, 86),
				finetuned_standard_bench: { ...benchmark("qwen25-vl-7b-bnb-nf4", 6400, 6, 94), run: { avg_combined_accuracy_pct: 95.5 } },
			},
		});
		await open();
		await page.click("#tab-benchmarks");
		await says(page, "#benchmarks-body", /Records/);
		const labels = ["Base", "4 bits, NF4", "4 bits, AWQ", "Fine-tuned"];
		const expected = (texts, shares) => labels.map((label, index) => [label, texts[index], shares[index]]);
		await assertBars("Memory", expected(["15.6 GB", "5.9 GB", "6.8 GB", "6.3 GB"], [1, 6 / 16, 7 / 16, 6.4 / 16]));
		await assertBars("Latency", expected(["4.00 s", "5.00 s", "3.00 s", "6.00 s"], [4 / 6, 5 / 6, 3 / 6, 1]));
		// Per cent: the scale ends at 100, whatever the best one has.
		await assertBars("Accuracy", expected(["90.0 %", "85.0 %", "86.0 %", "95.5 %"], [0.9, 0.85, 0.86, 0.955]));
		assert.equal(await page.locator(".charts figure").count(), 3, "nothing was evaluated");
	});

	const benchmark = (name, memory, latency, accuracy) => ({
		model_name: name,
		precision: "FP16",
		load_time_seconds: 11.2,
		vram: { post_load_mb: { allocated_mb: memory, reserved_mb: memory, max_allocated_mb: memory }, peak_mb: { max_allocated_mb: memory * 1.1 } },
		inference_results: [
			{ latency_seconds: latency, accuracy: { term_accuracy: accuracy, value_accuracy: accuracy, combined_accuracy: accuracy } },
		],
		latency_stats: { avg_seconds: latency, min_seconds: latency, max_seconds: latency, p50_seconds: latency },
	});

	test("are drawn as bars with their figures, and folded records", async () => {
		set({
			benchmarks: {
				baseline_fp16: benchmark("qwen25-vl-7b-base", 15800, 4.2, 91.2),
				quantized_int4: benchmark("qwen25-vl-7b-bnb-nf4", 5900, 5.1, 90.4),
			},
		});
		await open();
		await page.click("#tab-benchmarks");
		const label = await page.getAttribute(".chart", "aria-label");
		assert.equal(label, "Memory: Base 15.4 GB, 4 bits, NF4 5.8 GB, Fine-tuned not measured");
		const widths = await page
			.locator(".chart >> nth=0")
			.locator(".chart-bar")
			.evaluateAll((bars) => bars.map((bar) => Number(bar.getAttribute("width"))));
		assert.ok(Math.abs(widths[1] / widths[0] - 5900 / 15800) < 0.01);
		await says(page, ".figures-table", /Latency of a page, mean4\.20 s5\.10 sn\/a.*Both91\.2 %90\.4 %n\/a/);
		await says(page, ".missing-list", /finetune_lora then evaluate_finetuned/);
		assert.ok(!(await page.textContent(".missing-list")).includes("benchmark_baseline"));
		await page.click(".record summary");
		await says(page, ".record pre", /"model_name": "qwen25-vl-7b-base"/);
	});
});

describe("with the keyboard alone", () => {
	const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.className || document.activeElement.tagName);

	/** Asserts that what has the focus is outlined: visibly, by its computed style. */
	const assertOutlined = async () => {
		const { name, style, width, color, apart } = await page.evaluate(() => {
			const computed = getComputedStyle(document.activeElement);
			const [style, width, color] = [computed.outlineStyle, Number.parseFloat(computed.outlineWidth), computed.outlineColor];
			const name = document.activeElement.id || document.activeElement.className || document.activeElement.tagName;
			const apart = color !== computed.backgroundColor || Number.parseFloat(computed.outlineOffset) > 0;
			return { name, style, width, color, apart };
		});
		assert.ok(style === "solid" && width >= 2, `${name} shows its focus: ${style} ${width}`);
		assert.doesNotMatch(color, /transparent|, 0\)$/, name);
		assert.ok(apart, `${name} has an outline that differs from its ground`);
	};

	/** Presses Tab until this has the focus. Each stop on the way shows that it has it. */
	const tabTo = async (selector, key = "Tab") => {
		const passed = [];
		for (let step = 0; step < 40; step += 1) {
			await page.keyboard.press(key);
			passed.push(await focused());
			if (passed.at(-1) === "BODY") continue;
			await assertOutlined();
			if (await page.evaluate((selector) => document.activeElement.matches(selector), selector)) return;
		}
		assert.fail(`${key} does not reach ${selector} but ${passed.join(", ")}`);
	};

	/** Reads the sample; the focus stays in the page. */
	const readByKeys = async () => {
		await tabTo("#sample");
		await page.keyboard.press("Enter");
		await isRead(page);
		assert.equal(await focused(), "viewer", "its button is gone");
	};

	test("a page is chosen in the strip, and removed", async () => {
		await open();
		await give(page, "paste", ["one.png", "two.png", "three.png"].map(sampleFile));
		await says(page, "#summary", /^3 of 3 read/);
		await tabTo("#pages li:nth-child(2) .thumb");
		await page.keyboard.press("Enter");
		await says(page, "#page-name", /^two\.png$/);
		assert.equal(await page.getAttribute("#pages li:nth-child(2) .thumb", "aria-current"), "true");
		assert.equal(await focused(), "thumb");
		await tabTo("#pages li:nth-child(3) .thumb");
		await page.keyboard.press("Space");
		await says(page, "#page-name", /^three\.png$/);
		await tabTo("#pages li:nth-child(3) .thumb-remove");
		await page.keyboard.press("Enter");
		assert.equal(await page.locator("#pages li").count(), 2);
		await says(page, "#page-name", /^two\.png$/);
		assert.equal(await focused(), "viewer");
		await assertOutlined();
	});

	test("a file that cannot be shown leaves the focus at what adds others", async () => {
		await open();
		await give(page, "paste", [file("letter.pdf", "%PDF", "application/pdf"), file("other.pdf", "%PDF", "application/pdf")]);
		await tabTo("#remove");
		await page.keyboard.press("Enter");
		assert.equal(await focused(), "add");
		await page.focus("#remove");
		await page.keyboard.press("Enter");
		assert.equal(await focused(), "choose");
		await page.keyboard.press("Tab");
		assert.equal(await focused(), "sample");
	});

	test("the request is shown and closed, and the focus returns", async () => {
		await open();
		await readByKeys();
		await tabTo("#show-request");
		await page.keyboard.press("Enter");
		await page.waitForSelector("#request-dialog[open]");
		assert.ok(await page.evaluate(() => document.activeElement.closest("#request-dialog") !== null));
		await tabTo("#as-python");
		await page.keyboard.press("Enter");
		await says(page, "#request-text", /requests\.post/);
		await tabTo("#request-text");
		// What is behind the dialog is not reached.
		for (let step = 0; step < 8; step += 1) {
			await page.keyboard.press("Tab");
			assert.ok(await page.evaluate(() => document.activeElement === document.body || document.activeElement.closest("dialog") !== null));
		}
		await page.keyboard.press("Escape");
		await page.waitForSelector("#request-dialog", { state: "hidden" });
		assert.equal(await focused(), "show-request");
		await assertOutlined();
		await page.keyboard.press("Space");
		await tabTo("#request-dialog [data-close]");
		await page.keyboard.press("Enter");
		assert.equal(await focused(), "show-request");
	});

	test("the key is asked for, declined and given", async () => {
		set({ key: "s3cret-key" });
		await open({ ready: false });
		await page.waitForSelector("#key-dialog[open]");
		assert.equal(await focused(), "key");
		await assertOutlined();
		await page.keyboard.press("Escape");
		await says(page, "#status-text", /^Needs a key$/);
		await tabTo("#retry");
		await page.keyboard.press("Enter");
		await page.waitForSelector("#key-dialog[open]");
		assert.equal(await focused(), "key");
		await page.keyboard.press("Escape");
		await page.waitForSelector("#key-dialog", { state: "hidden" });
		assert.equal(await focused(), "retry");
		await page.keyboard.press("Enter");
		await page.waitForSelector("#key-dialog[open]");
		await page.keyboard.type("s3cret-key");
		await page.keyboard.press("Enter");
		await page.waitForSelector('#status[data-state="ready"]');
	});

	test("the settings are opened, changed, sent and closed", async () => {
		await open();
		await readByKeys();
		await tabTo("#settings-button");
		await page.keyboard.press("Enter");
		assert.equal(await focused(), "adapter");
		await page.keyboard.press("End");
		for (const [field, value] of [
			["temperature", "0.5"],
			["seed", "7"],
			["max_new_tokens", "20"],
			["min_pixels", "200000"],
			["max_pixels", "500000"],
		]) {
			await page.keyboard.press("Tab");
			assert.equal(await focused(), field);
			await assertOutlined();
			await page.keyboard.type(value);
		}
		await says(page, "#settings-count", /^6$/);
		await page.keyboard.press("Tab");
		assert.equal(await focused(), "shortcuts");
		await page.keyboard.press("Space");
		assert.equal(await page.isChecked("#shortcuts"), false);
		await tabTo("#settings-button", "Shift+Tab");
		await page.keyboard.press("Space");
		assert.ok(await page.isHidden("#settings"));
		assert.equal(await focused(), "settings-button");
		await tabTo("#read", "Shift+Tab");
		await page.keyboard.press("Enter");
		await says(page, "#read-label", /again$/);
		const expected = { adapter: "ward-lora", temperature: "0.5", seed: "7", max_new_tokens: "20", min_pixels: "200000", max_pixels: "500000" };
		await untilTrue(() => backend.stub.requests.length === 2);
		assert.deepEqual({ ...backend.stub.requests[1].fields }, { ...expected, stream: "true", logprobs: "true" });
	});

	test("each ready prompt is reached in its list, and the chosen one is asked", async () => {
		await open();
		await readByKeys();
		await page.focus("#tab-extract");
		await page.keyboard.press("ArrowRight");
		await tabTo("#prompts");
		for (let step = 0; step < 3; step += 1) await page.keyboard.press("ArrowDown");
		assert.equal(await focused(), "prompts", "an arrow does not lead away");
		assert.equal(await page.inputValue("#prompt"), "List all medications on this page with their doses.");
		await page.keyboard.press("Control+Enter");
		await says(page, "#transcript", /^Answer to: List all medications/);
		await page.keyboard.press("Home");
		assert.equal(await page.inputValue("#prompts"), "");
		assert.equal(await page.inputValue("#prompt"), "List all medications on this page with their doses.", "no choice changes nothing");
		await page.keyboard.press("ArrowDown");
		await page.keyboard.press("Tab");
		assert.equal(await focused(), "prompt");
		await assertOutlined();
		assert.equal(await page.inputValue("#prompts"), "", "the same one can be chosen again");
		await page.keyboard.press("Control+Enter");
		await says(page, "#transcript", /^Answer to: List every medical term/);
		assert.equal(await focused(), "prompt");
	});

	test("two models are compared, and the lines that differ are walked through", async () => {
		set({ texts: { none: "CRP 214\nsame\nHbA1c 7", "ward-lora": "CRP 274\nsame\nHbA1c 8" } });
		await open();
		await readByKeys();
		await tabTo("#compare");
		await page.keyboard.press("Enter");
		assert.equal(await page.getAttribute("#compare", "aria-pressed"), "true");
		assert.equal(await focused(), "compare");
		await tabTo("#compare-b");
		await page.keyboard.press("ArrowDown");
		assert.equal(await page.inputValue("#compare-b"), "ward-lora");
		await tabTo("#read", "Shift+Tab");
		await page.keyboard.press("Enter");
		await says(page, "#places-count", /^2 lines differ/);
		for (const [key, at, line] of [
			["n", /^1 of 2$/, /CRP/],
			["n", /^2 of 2$/, /HbA1c/],
			["p", /^1 of 2$/, /CRP/],
		]) {
			await page.keyboard.press(key);
			await says(page, "#places-at", at);
			assert.match(await page.evaluate(() => document.activeElement.textContent), line);
			await assertOutlined();
		}
		await tabTo("#comparison", "Shift+Tab");
		await tabTo("#compare", "Shift+Tab");
		await page.keyboard.press("Space");
		assert.ok(await page.isVisible("#transcript"));
	});

	test("arrows move the page, not the document, and no further than its edges", async () => {
		await open();
		await readByKeys();
		const place = () =>
			page.evaluate(() => {
				const [, x, y] = /translate\((.+?)px, (.+?)px\)/.exec(document.getElementById("page-image").style.transform);
				return [Number(x), Number(y)];
			});
		const fitted = await place();
		for (const key of ["ArrowLeft", "ArrowUp", "ArrowRight", "ArrowDown"]) await page.keyboard.press(key);
		assert.deepEqual(await place(), fitted, "a page that fits has nowhere to go");
		await page.keyboard.press("1");
		for (let step = 0; step < 3; step += 1) await page.keyboard.press("+");
		const [x, y] = await place();
		for (const [key, toX, toY] of [
			["ArrowRight", x - 60, y],
			["ArrowDown", x - 60, y - 60],
			["ArrowLeft", x, y - 60],
			["ArrowUp", x, y],
		]) {
			await page.keyboard.press(key);
			const [atX, atY] = await place();
			assert.ok(Math.abs(atX - toX) < 0.01 && Math.abs(atY - toY) < 0.01, `${key}: ${atX}, ${atY}`);
		}
		for (let step = 0; step < 40; step += 1) await page.keyboard.press("ArrowUp");
		assert.equal((await place())[1], 16, "its upper edge");
		assert.equal(await page.evaluate(() => scrollY), 0);
		await page.keyboard.press("Control+ArrowDown");
		assert.equal((await place())[1], 16, "the browser's own keys are its own");
	});
});

describe("the page", () => {
	test("works below a prefix", async () => {
		await backend.close();
		backend = await startWithStub({ prefix: "/tools/reading/", delay: 0 });
		await open();
		await readSample();
		await page.click("#show-request");
		await says(page, "#request-text", /\/tools\/reading\/api\/extract/);
	});

	test("follows the system's theme until one is chosen, and stores that alone", async () => {
		const ground = () => page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
		await open({ dark: true });
		const dark = await ground();
		assert.equal(await page.getAttribute("#theme", "aria-pressed"), "true");
		await page.click("#theme");
		assert.notEqual(await ground(), dark);
		await readSample();
		await page.reload();
		assert.notEqual(await ground(), dark);
		assert.deepEqual(await page.evaluate(() => ({ ...localStorage })), { theme: "light" });
	});

	test("on a phone has the page above the text, a bar with Read and Stop, and pinch zoom", async () => {
		set({ holdAfter: 20 });
		await open({ width: 390, height: 844, hasTouch: true, isMobile: true });
		await page.tap("#sample");
		await says(page, "#read-label", /^Stop$/);
		const bar = await page.locator(".actions").boundingBox();
		assert.ok(Math.abs(bar.y + bar.height - 844) <= 1, "at the lower edge");
		set({ then: "go" });
		await isRead(page);
		const [image, words] = [await page.locator("#viewer").boundingBox(), await page.locator("#transcript").boundingBox()];
		assert.ok(image.y + image.height <= words.y);
		const before = Number.parseInt(await page.textContent("#zoom"), 10);
		const { x, y } = { x: image.x + image.width / 2, y: image.y + image.height / 2 };
		const client = await page.context().newCDPSession(page);
		const touch = (type, distance) =>
			client.send("Input.dispatchTouchEvent", {
				type,
				touchPoints: type === "touchEnd" ? [] : [-1, 1].map((side) => ({ x: x + side * distance, y, id: side + 1 })),
			});
		await touch("touchStart", 30);
		for (const distance of [45, 60, 75, 90]) await touch("touchMove", distance);
		await touch("touchEnd", 0);
		assert.ok(Number.parseInt(await page.textContent("#zoom"), 10) > before * 2);
		await page.tap(".doubt");
		await says(page, "#alternatives", /2085164/);
		const box = await page.locator("#alternatives").boundingBox();
		assert.ok(box.x >= 0 && box.x + box.width <= 390);
		assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= 390), "nothing is wider than the phone");
	});

	test("is used with the keyboard alone", async () => {
		await open();
		const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.className || document.activeElement.tagName);
		await page.keyboard.press("Tab");
		assert.equal(await focused(), "skip");
		const seen = [];
		for (let step = 0; step < 12 && seen.at(-1) !== "settings-button"; step += 1) {
			await page.keyboard.press("Tab");
			seen.push(await focused());
			const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
			assert.notEqual(outline, "none", `${seen.at(-1)} shows its focus`);
		}
		assert.deepEqual(seen, ["tab-extract", "theme", "choose", "sample", "settings-button"]);
		await page.focus("#sample");
		await page.keyboard.press("Enter");
		await isRead(page);
		await page.focus("#tab-extract");
		for (const [key, tab] of [
			["ArrowLeft", "tab-benchmarks"],
			["ArrowRight", "tab-extract"],
			["End", "tab-benchmarks"],
			["Home", "tab-extract"],
		]) {
			await page.keyboard.press(key);
			assert.equal(await focused(), tab);
			assert.equal(await page.getAttribute(`#${tab}`, "aria-selected"), "true");
		}
		await page.focus("#transcript");
		await page.keyboard.press("Tab");
		await says(page, "#alternatives", /2085164/);
		assert.equal(await page.getAttribute(".doubt >> nth=0", "aria-describedby"), "alternatives");
	});

	test("moves nothing where reduced motion is wished", async () => {
		set({ holdAfter: 20 });
		await open({ reducedMotion: "reduce" });
		await page.click("#sample");
		await page.waitForSelector("#transcript.live");
		const moving = await page.evaluate(() => document.getAnimations().filter((animation) => animation.playState === "running").length);
		assert.equal(moving, 0);
	});

	test("says what happens in one live region, once for each page", async () => {
		await open();
		assert.equal(await page.locator("[aria-live], [role=status], [role=alert], [role=log]").count(), 1);
		await hear(page);
		await give(page, "drop", [sampleFile("one.png"), sampleFile("two.png")]);
		await heard(page, /2 of 2 read, 8 places to check$/);
		assert.deepEqual(await page.evaluate(() => window.heard), [
			"Page 1 of 2 read, 4 places to check",
			"Page 2 of 2 read, 4 places to check. 2 of 2 read, 8 places to check",
		]);
	});
});
