// axe-core on every tab and state, on a desk and on a phone, light and dark. Keyboard and focus are in states.test.mjs.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { accessible, file, give, isRead, openPage, sampleFile, says, screenshot, startBrowser, startWithStub } from "./lib.mjs";

let browser;
let backend;

const benchmark = (name, memory, latency, accuracy) => ({
	model_name: name,
	precision: "FP16",
	load_time_seconds: 11.2,
	vram: { post_load_mb: { allocated_mb: memory, reserved_mb: memory, max_allocated_mb: memory }, peak_mb: { max_allocated_mb: memory * 1.1 } },
	inference_results: [
		{ latency_seconds: latency, accuracy: { term_accuracy: accuracy, value_accuracy: accuracy + 1, combined_accuracy: accuracy + 0.5 } },
	],
	latency_stats: { avg_seconds: latency, min_seconds: latency * 0.8, max_seconds: latency * 1.3, p50_seconds: latency },
	run: { avg_tokens_per_second: 41.5, time_to_first_token_stats: { avg_seconds: 0.4 } },
});
const evaluated = (label, accuracy) => ({
	label,
	eval_results: [],
	summary: { avg_term_accuracy_pct: accuracy, avg_value_accuracy_pct: accuracy, avg_combined_accuracy_pct: accuracy, avg_latency_seconds: 5 },
});
const BENCHMARKS = {
	baseline_fp16: benchmark("qwen25-vl-7b-base", 15800, 4.2, 91.2),
	quantized_int4: benchmark("qwen25-vl-7b-bnb-nf4", 5900, 5.1, 90.4),
	evaluation_finetuned: { base_model: evaluated("NF4", 83.5), finetuned_model: evaluated("NF4 + LoRA", 92.1) },
};
const TEXTS = { none: "CRP 214 -> 38 mg/L\nHbA1c 7.2%\nsame line", "medical-lora": "CRP 274 -> 38 mg/L\nHbA1c 7.2% high\nsame line" };

before(async () => {
	backend = await startWithStub({ delay: 1 });
	browser = await startBrowser();
});
after(async () => {
	await browser?.close();
	await backend?.close();
});

for (const [width, height, dark] of [
	[1440, 900, false],
	[1440, 900, true],
	[390, 844, false],
	[390, 844, true],
]) {
	describe(`${width} px, ${dark ? "dark" : "light"}`, () => {
		const name = (state) => `${state}-${width}-${dark ? "dark" : "light"}`;
		const check = async (page, state) => {
			await screenshot(page, name(state));
			await accessible(page, name(state));
			assert.ok(
				await page.evaluate((most) => document.documentElement.scrollWidth <= most, width),
				`${state}: nothing is wider than the window`,
			);
		};
		const open = (knobs = {}) => {
			backend.stub.set({
				texts: {},
				benchmarks: null,
				key: null,
				errorAfter: null,
				holdAfter: null,
				then: "go",
				delay: 1,
				loading: false,
				before: 0,
				queueFull: 0,
				keyLimit: 0,
				finalLength: null,
				warnings: [],
				...knobs,
			});
			return openPage(browser, backend.url, { width, height, dark, ready: knobs.key === undefined && !knobs.loading });
		};

		test("Extraction", async () => {
			const page = await open();
			await check(page, "empty");
			backend.stub.set({ holdAfter: 100, then: "wait" });
			await page.click("#sample");
			await page.waitForFunction(() => document.getElementById("transcript").textContent.length > 200);
			await check(page, "reading");
			backend.stub.set({ then: "go" });
			await isRead(page);
			await page.click("#settings-button");
			await page.fill("#temperature", "7");
			await check(page, "settings");
			await page.click("#settings-reset");
			await page.click("#settings-button");
			await page.keyboard.press("n");
			await page.keyboard.press("n");
			await check(page, "alternatives");
			await page.keyboard.press("Escape");
			await page.click("#show-request");
			await check(page, "request");
			await page.clean();
		});

		test("several files", async () => {
			const page = await open();
			await give(page, "drop", [
				sampleFile("discharge note, first page.png"),
				file("damaged.png", "DAMAGED"),
				file("letter.pdf", "%PDF", "application/pdf"),
				file("scan.tiff", "II*", "image/tiff"),
			]);
			await says(page, "#summary", /read/);
			await page.click("#pages li:nth-child(2) .thumb");
			await check(page, "several");
			await page.click("#pages li:nth-child(4) .thumb");
			await check(page, "tiff");
			await page.clean();
		});

		test("Compare", async () => {
			const page = await open({ texts: TEXTS });
			await page.click("#sample");
			await isRead(page);
			await page.click("#compare");
			await check(page, "compare-choice");
			await page.click("#read");
			await says(page, "#places-count", /differ/);
			await page.click("#next");
			await check(page, "compare");
			await page.clean();
		});

		test("a reading that waits, is refused, or is interrupted", async () => {
			const page = await open({ before: 2 });
			await page.click("#sample");
			await says(page, "#figures", /^2 requests before this one/);
			await check(page, "queued");
			backend.stub.set({ before: 0, holdAfter: 20, then: "wait" });
			await says(page, "#transcript", /^DISCHARGE NOTE/);
			await page.click("#read");
			await says(page, "#notice", /^Stopped\./);
			await check(page, "stopped");

			backend.stub.set({ queueFull: Infinity });
			await page.click("#read");
			await says(page, "#figures", /^The queue is full/);
			await check(page, "queue-full");
			backend.stub.set({ queueFull: 0, keyLimit: Infinity });
			await says(page, "#figures", /^This key has 4 requests/);
			await check(page, "key-limit");
			backend.stub.set({ keyLimit: 0, holdAfter: null, errorAfter: 20 });
			await says(page, "#notice.error", /shutting down/);
			await check(page, "stream-error");

			backend.stub.set({ errorAfter: null, holdAfter: 20 });
			await page.click("#read");
			await page.waitForSelector("#transcript.live");
			await says(page, "#transcript", /^DISCHARGE NOTE/);
			backend.stub.set({ then: "cut" });
			await says(page, "#notice.error", /connection to the API/);
			await check(page, "connection-lost");

			backend.stub.set({ holdAfter: null, then: "go", finalLength: 70, warnings: ["truncated", "first of 3 pages"] });
			await page.click("#read");
			await says(page, "#notice", /repeated itself.*a part of the page is missing.*first of 3 pages/);
			await check(page, "notices");
			await page.click("#settings-button");
			await page.fill("#min_pixels", "700");
			await page.click("#read");
			await says(page, "#min_pixels-error", /^must be/);
			await check(page, "field-refused");
			await page.clean();
		});

		test("a comparison that runs or cannot, and a drop", async () => {
			const page = await open({ texts: TEXTS });
			await page.click("#sample");
			await isRead(page);
			await page.click("#compare");
			await page.selectOption("#compare-b", "none");
			await says(page, "#compare-same", /two different/);
			await check(page, "compare-same");
			await page.selectOption("#compare-b", "medical-lora");
			backend.stub.set({ holdAfter: 5, then: "wait" });
			await page.click("#read");
			await says(page, "#comparison", /CRP 214.*/);
			await check(page, "comparing");
			backend.stub.set({ then: "go" });
			await says(page, "#places-count", /differ/);
			await give(page, "drag", [sampleFile()]);
			assert.ok(await page.isVisible("#drop"));
			await check(page, "dropping");
			await give(page, "leave", [sampleFile()]);
			assert.ok(await page.isHidden("#drop"));
			await page.clean();
		});

		test("Custom analysis", async () => {
			const page = await open();
			await page.click("#sample");
			await isRead(page);
			await page.click("#tab-analyze");
			await page.fill("#prompt", "x".repeat(8193));
			await check(page, "prompt-too-long");
			await page.fill("#prompt", "List all medications on this page with their doses.");
			await page.click("#read");
			await isRead(page);
			await check(page, "analysis");
			await page.clean();
		});

		test("Benchmarks", async () => {
			const page = await open();
			await page.click("#tab-benchmarks");
			await says(page, "#benchmarks-body", /Nothing was measured yet/);
			await check(page, "benchmarks-missing");
			backend.stub.set({ benchmarks: BENCHMARKS });
			await page.click("#benchmarks-reload");
			await says(page, "#benchmarks-body", /Records/);
			await page.click(".record summary");
			await check(page, "benchmarks");
			await page.clean();
		});

		test("key, loading, unreachable", async () => {
			const page = await open({ key: "k" });
			await page.waitForSelector("#key-dialog[open]");
			await page.fill("#key", "wrong");
			await page.keyboard.press("Enter");
			await says(page, "#key-error", /refused/);
			await check(page, "key");
			backend.stub.set({ key: null, loading: true });
			await page.click("#key-dialog [data-close]");
			await page.click("#retry");
			await says(page, "#status-text", /^Loading/);
			await check(page, "loading");
			await backend.kill();
			await page.clean();
			await backend.restart();
			const other = await open();
			await backend.kill();
			await says(other, "#status-text", /^Unreachable/);
			await check(other, "unreachable");
			await backend.restart();
			await other.clean();
		});
	});
}
