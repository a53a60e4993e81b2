// The page of the real server itself (`server --demo-port`), in states that it must be started for.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { accessible, isRead, openPage, sampleBytes, says, startBrowser, startServer } from "./lib.mjs";

let browser;

before(async () => {
	browser = await startBrowser();
});
after(() => browser?.close());

const text = (page) => page.textContent("#transcript");
const SIZES = [
	{ width: 1440, height: 900, dark: false },
	{ width: 1440, height: 900, dark: true },
	{ width: 390, height: 844, dark: false },
	{ width: 390, height: 844, dark: true },
];

/** Begins a reading beside the page's; returns what ends it. */
async function occupy(address, headers = {}) {
	const other = new AbortController();
	const form = new FormData();
	form.append("file", new Blob([sampleBytes]), "other.png");
	form.append("stream", "true");
	const answer = await fetch(`${address}/api/extract`, { method: "POST", body: form, headers, signal: other.signal });
	assert.equal(answer.status, 200);
	return () => other.abort();
}

async function check(page, state) {
	await accessible(page, state);
	assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= window.innerWidth), `${state}: nothing is wider than the window`);
}

test("is opened at the address that the server prints with the key it made", async () => {
	const server = await startServer("--generate-api-key");
	try {
		const [, url, hash] = await server.printed(/^ {2}page {2}(http:\/\/\S+\/)(#key=medvision-\S+)$/m, "stdout");
		const page = await openPage(browser, url, { hash });
		assert.equal(page.url(), url);
		await says(page, "#model", /qwen25-vl-nano/);
		await page.click("#sample");
		await isRead(page);
		assert.match(await text(page), /DISCHARGE NOTE/);
		assert.ok(await page.isHidden("#key-dialog"));
		await page.clean();
	} finally {
		await server.close();
	}
});

test("says what the server says of a key: of another scope, and at its limit", async () => {
	const folder = mkdtempSync(join(tmpdir(), "page-keys-"));
	const [metrics, right] = ["medvision-for-metrics", "medvision-for-pages"];
	const line = (name, key, scope) => `${name}:${createHash("sha256").update(key).digest("hex")}:${scope}\n`;
	writeFileSync(join(folder, "keys"), line("m", metrics, "metrics") + line("r", right, "inference"), { mode: 0o600 });
	const server = await startServer("--api-key-file", join(folder, "keys"), "--max-per-key", "1");
	try {
		const [, address] = await server.printed(/^ {2}page {2}(http:\S+)$/m);
		const page = await openPage(browser, `${address}/`, { hash: `#key=${metrics}`, ready: false });
		await says(page, "#key-error", /^this key may not call this route: it is for \/metrics only$/);
		await page.fill("#key", right);
		await page.keyboard.press("Enter");
		await page.waitForSelector('#status[data-state="ready"]');
		// Another reading with the same key, until the page was told of it.
		const end = await occupy(address, { Authorization: `Bearer ${right}` });
		await page.click("#sample");
		await says(page, "#figures", /^This key has 1 requests? in the queue, its limit, sent again in \d+ s$/);
		end();
		await isRead(page);
		assert.match(await text(page), /DISCHARGE NOTE/);
		await page.clean();
	} finally {
		await server.close();
		rmSync(folder, { recursive: true });
	}
});

test("asks for a key, refuses a wrong one and takes the right one, on every size and theme", async () => {
	const folder = mkdtempSync(join(tmpdir(), "page-keys-"));
	const key = "medvision-for-pages";
	writeFileSync(join(folder, "keys"), `r:${createHash("sha256").update(key).digest("hex")}:inference\n`, { mode: 0o600 });
	const server = await startServer("--api-key-file", join(folder, "keys"));
	try {
		const [, address] = await server.printed(/^ {2}page {2}(http:\S+)$/m);
		for (const size of SIZES) {
			const page = await openPage(browser, `${address}/`, { ...size, ready: false });
			await page.waitForSelector("#key-dialog[open]");
			await page.fill("#key", "wrong");
			await page.keyboard.press("Enter");
			await says(page, "#key-error", /^The API refused this key\.$/);
			await check(page, `key ${JSON.stringify(size)}`);
			await page.fill("#key", key);
			await page.keyboard.press("Enter");
			await page.waitForSelector('#status[data-state="ready"]');
			assert.ok(await page.isHidden("#key-dialog"));
			await page.clean();
		}
	} finally {
		await server.close();
		rmSync(folder, { recursive: true });
	}
});

test("waits where the queue is full, and says where a text ends at the length limit, on every size and theme", async () => {
	const server = await startServer("--queue", "0", "--max-batch", "1");
	try {
		const [, address] = await server.printed(/^ {2}page {2}(http:\S+)$/m);
		for (const size of SIZES) {
			const state = (name) => `${name} ${JSON.stringify(size)}`;
			const page = await openPage(browser, `${address}/`, size);
			await page.click("#settings-button");
			await page.fill("#max_new_tokens", "8");
			await page.click("#settings-button");
			const end = await occupy(address);
			await page.click("#sample");
			await says(page, "#figures", /^The queue is full, sent again in \d+ s$/);
			await check(page, state("full queue"));
			end();
			await isRead(page);
			assert.match(await text(page), /^DISCHARGE/);
			await says(page, "#notice", /^The text ends at the length limit: it may go on\.$/);
			await check(page, state("length limit"));
			const [image, words] = [await page.locator("#viewer").boundingBox(), await page.locator("#transcript").boundingBox()];
			if (size.width === 390) assert.ok(image.y + image.height <= words.y, "the page is above the text");
			else assert.ok(image.x + image.width <= words.x, "the page is beside the text");
			const background = await page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
			const light = background
				.match(/\d+/g)
				.slice(0, 3)
				.every((value) => Number(value) > 127);
			assert.equal(light, !size.dark, background);
			await page.clean();
		}
	} finally {
		await server.close();
	}
});
