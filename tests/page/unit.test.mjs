// The modules of the page that need no browser.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { ROOT, tokensOf } from "./stub.mjs";

const PAGE = join(ROOT, "assets/page");
const load = (name) => import(join(PAGE, name));
const { EventParser, events } = await load("sse.js");
const { Words, isUnsure, visible, wordsOf } = await load("words.js");
const { diffWords, rows, splitWords } = await load("diff.js");
const { asCurl, asPython, shellQuote } = await load("snippets.js");
const { compile, modelFigures } = await load("records.js");
const { form } = await load("api.js");
const { percent, seconds, memory, count, characters } = await load("format.js");

const files = readdirSync(PAGE);
const sources = files.map((name) => ({ name, text: readFileSync(join(PAGE, name), "utf8") }));

describe("files", () => {
	test("together have at most 150 KiB, each at most 600 lines", () => {
		assert.ok(files.reduce((sum, name) => sum + statSync(join(PAGE, name)).size, 0) <= 150 * 1024);
		for (const { name, text } of sources) assert.ok(text.split("\n").length <= 600, name);
	});

	test("text never becomes markup, and nothing is evaluated", () => {
		const forbidden =
			/innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|setHTML|srcdoc|\beval\b|new Function|javascript:/;
		for (const { name, text } of sources) assert.doesNotMatch(text, forbidden, name);
	});

	test("no inline style or script, which the policy would block", () => {
		const html = sources.find(({ name }) => name === "index.html").text;
		assert.doesNotMatch(html, /\sstyle=|<style|\son[a-z]+=|<script(?![^>]*\ssrc=)/);
		for (const { name, text } of sources) assert.doesNotMatch(text, /setAttribute\("style"|\bstyle: "/, name);
	});

	test("only the theme is stored", () => {
		for (const { name, text } of sources) {
			assert.doesNotMatch(text, /sessionStorage|indexedDB|document\.cookie|caches\.|serviceWorker/, name);
			for (const [, key] of text.matchAll(/localStorage\.\w+\(([^,)]*)/g)) assert.equal(key, '"theme"', name);
		}
	});

	test("nothing comes from elsewhere and all addresses are relative", () => {
		for (const { name, text } of sources) {
			assert.doesNotMatch(text.replaceAll("http://www.w3.org/2000/svg", ""), /https?:\/\//, name);
			assert.doesNotMatch(text, /(?:src|href)="\/|fetch\("\/|url\(\//, name);
		}
	});

	test("the ready prompts are those of the training data", async () => {
		const { PROMPTS } = await load("prompts.js");
		const rust = readFileSync(join(ROOT, "src/prompts.rs"), "utf8");
		const list = /PROMPTS: \[&str; 10\] = \[(.*?)\];/s.exec(rust)[1];
		assert.deepEqual(
			PROMPTS,
			[...list.matchAll(/"((?:[^"\\]|\\.)*)"/g)].map(([, prompt]) => prompt),
		);
	});

	test("the records are those that the server serves", async () => {
		const { RECORDS } = await load("records.js");
		const rust = readFileSync(join(ROOT, "src/records/mod.rs"), "utf8");
		const names = [.../IN_BENCHMARKS: \[&str; \d+\] = \[(.*?)\];/s.exec(rust)[1].matchAll(/[A-Z_0-9]+/g)].map(([name]) => name);
		const stems = names.map((name) => new RegExp(`const ${name}: &str = "benchmarks/(.*)\\.json"`).exec(rust)[1]);
		assert.deepEqual(RECORDS.map(({ key }) => key).sort(), stems.sort());
	});
});

describe("events", () => {
	const parse = (...chunks) => {
		const parser = new EventParser();
		return chunks.flatMap((chunk) => parser.push(chunk));
	};

	test("have a name and data, and end with an empty line", () => {
		assert.deepEqual(parse("event: delta\ndata: {}\n\n"), [{ event: "delta", data: "{}" }]);
		assert.deepEqual(parse("data: a\n\ndata: b\n\n"), [
			{ event: "message", data: "a" },
			{ event: "message", data: "b" },
		]);
		assert.deepEqual(parse("data: without end\n"), []);
	});

	test("may have several lines of data, no space after the colon, comments and unknown fields", () => {
		assert.deepEqual(parse(": keep-alive\n\ndata:one\ndata: two\nid: 7\nretry: 9\nother\n\n"), [{ event: "message", data: "one\ntwo" }]);
		assert.deepEqual(parse("data\n\n"), [{ event: "message", data: "" }]);
	});

	test("are the same with every kind of line end and wherever chunks are split", () => {
		const whole = '\ufeffevent: delta\ndata: {"text":"a: b"}\n\n: comment\n\nevent: done\ndata: x\ndata: y\n\n';
		const expected = [
			{ event: "delta", data: '{"text":"a: b"}' },
			{ event: "done", data: "x\ny" },
		];
		for (const end of ["\n", "\r\n", "\r"]) {
			const text = whole.replaceAll("\n", end);
			for (let at = 0; at <= text.length; at += 1) {
				// A lone \r at the very end may be half of a \r\n: the next byte decides.
				const found = parse(text.slice(0, at), text.slice(at), end === "\r" ? ":" : "");
				assert.deepEqual(found, expected, `${JSON.stringify(end)} ${at}`);
			}
			assert.deepEqual(parse(...text, end === "\r" ? ":" : ""), expected);
		}
	});

	test("join characters that are split between chunks", async () => {
		const bytes = new TextEncoder().encode("data: 37,5 °C — 🩺 über\n\n");
		for (let size = 1; size < 8; size += 1) {
			const body = new ReadableStream({
				start(controller) {
					for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
					controller.close();
				},
			});
			const found = [];
			for await (const event of events(body)) found.push(event.data);
			assert.deepEqual(found, ["37,5 °C — 🩺 über"]);
		}
	});

	test("that are left early cancel the body", async () => {
		let cancelled = false;
		const body = new ReadableStream({
			start: (controller) => controller.enqueue(new TextEncoder().encode("data: 1\n\n")),
			cancel: () => {
				cancelled = true;
			},
		});
		for await (const _ of events(body)) break;
		assert.ok(cancelled);
	});
});

const token = (text, probability = 1, others = []) => ({
	token: text,
	bytes: [...Buffer.from(text)],
	logprob: Math.log(probability),
	top_logprobs: others.map(([other, share]) => ({ token: other, bytes: [...Buffer.from(other)], logprob: Math.log(share) })),
});

describe("words", () => {
	test("join tokens, with the least probability of each", () => {
		const words = new Words();
		words.push([token("H", 0.99), token("gb", 0.6), token(" 9", 0.95), token("."), token("1", 0.4), token("\n"), token("g/dL", 0.9)]);
		words.finish();
		assert.deepEqual(
			words.closed.map(({ space, text }) => [space, text]),
			[
				["", "Hgb"],
				[" ", "9.1"],
				["\n", "g/dL"],
			],
		);
		assert.deepEqual(
			words.closed.map(({ probability }) => probability.toFixed(2)),
			["0.60", "0.40", "0.90"],
		);
		assert.deepEqual(
			words.unsure.map(({ text }) => text),
			["Hgb", "9.1"],
		);
		assert.equal(words.text, "Hgb 9.1\ng/dL");
	});

	test("of a token that ends one and begins the next get its probability both", () => {
		const words = new Words();
		words.push([token("a b", 0.5), token("c")]);
		words.finish();
		assert.deepEqual(
			words.closed.map(({ text, probability }) => [text, probability]),
			[
				["a", 0.5],
				["bc", 0.5],
			],
		);
		assert.deepEqual(
			words.closed[1].parts.map(({ text, before }) => [before, text]),
			[
				["", "b"],
				["b", "c"],
			],
		);
	});

	test("are not made of white space, however unsure it is", () => {
		const words = new Words();
		words.push([token("a"), token("  \n\n", 0.1), token("b"), token("\n", 0.1)]);
		words.finish();
		assert.deepEqual(words.unsure, []);
		assert.equal(words.text, "a  \n\nb\n");
	});

	test("take a character whose bytes are in several tokens, with the least probability of all of them", () => {
		const [first, second, third, fourth] = Buffer.from("🩺");
		const part = (bytes, probability) => ({ token: "\ufffd", bytes, logprob: Math.log(probability), top_logprobs: [] });
		const words = new Words();
		words.push([token("x"), part([first], 0.3), part([second, third], 0.9), part([fourth], 1), token("y"), token(" z")]);
		words.finish();
		assert.equal(words.text, "x🩺y z");
		assert.deepEqual(
			words.closed.map(({ probability }) => probability.toFixed(2)),
			["0.30", "1.00"],
		);
	});

	test("keep text with bytes that are no UTF-8", () => {
		const words = new Words();
		words.push([{ token: "", bytes: [0xff], logprob: -0.1, top_logprobs: [] }, token("a")]);
		words.finish();
		assert.equal(words.text, "\ufffda");
	});

	test("ignore tokens without bytes or with a logprob that is no number", () => {
		const words = new Words();
		words.push([
			{ token: "<|im_end|>", bytes: [], logprob: -3 },
			{ token: "a", bytes: [97], logprob: null },
			{ token: "b", bytes: [98] },
		]);
		words.finish();
		assert.deepEqual(
			words.closed.map(({ text, probability }) => [text, probability]),
			[["ab", 1]],
		);
	});

	test("are the same however the tokens arrive", () => {
		const tokens = tokensOf("WBC 17.4 -> 8.9 x10^3/uL CRP 214 µmol — 🩺\n\nTiotropium 18 mcg");
		const whole = new Words();
		whole.push(tokens);
		whole.finish();
		const single = new Words();
		for (const one of tokens) single.push([one]);
		single.finish();
		assert.deepEqual(single.closed, whole.closed);
		assert.ok(whole.unsure.length > 0);
	});

	test("of a final text that is shorter end where it does", () => {
		const tokens = [token("one"), token(" two", 0.5), token(" three", 0.5)];
		assert.deepEqual(
			wordsOf("one two", tokens).unsure.map(({ text }) => text),
			["two"],
		);
		assert.deepEqual(
			wordsOf("one tw", tokens).closed.map(({ text }) => text),
			["one", "tw"],
		);
		assert.equal(wordsOf("one tw", tokens).text, "one tw");
		assert.equal(wordsOf("another", tokens).text, "another");
		assert.equal(wordsOf("another", null).closed.some(isUnsure), false);
	});

	test("show white space in alternatives", () => {
		assert.equal(visible("  a\n"), "␣␣a⏎");
	});
});

describe("differences", () => {
	const sides = (edits) => [edits.map(({ a }) => a).join(""), edits.map(({ b }) => b).join("")];
	const changes = (edits) => edits.filter(({ type }) => type !== "same").map(({ type, a, b }) => `${type} ${(a + b).trim()}`);

	test("are by word and keep both texts", () => {
		const [a, b] = ["CRP 214 -> 38 mg/L\nHbA1c 7.2%", "CRP 274 -> 38 mg/L\n\nHbA1c  7.2% high"];
		const edits = diffWords(a, b);
		assert.deepEqual(sides(edits), [a, b]);
		assert.deepEqual(changes(edits), ["removed 214", "added 274", "added ", "added high"]);
	});

	test("of equal, empty and disjoint texts", () => {
		assert.deepEqual(changes(diffWords("a b\nc", "a b\nc")), []);
		assert.deepEqual(diffWords("", ""), []);
		assert.deepEqual(changes(diffWords("", "a")), ["added a"]);
		assert.deepEqual(changes(diffWords("a b", "")), ["removed a", "removed b"]);
		assert.deepEqual(sides(diffWords("a b c", "x y")), ["a b c", "x y"]);
	});

	test("are as few as possible", () => {
		// As the longest common subsequence says, for random texts of few words.
		let seed = 7;
		const random = (most) => {
			seed = (seed * 1103515245 + 12345) % 2147483648;
			return seed % most;
		};
		for (let round = 0; round < 200; round += 1) {
			const make = () => Array.from({ length: random(12) }, () => "abc"[random(3)]).join(" ");
			const [a, b] = [make(), make()];
			const edits = diffWords(a, b);
			assert.deepEqual(sides(edits), [a, b]);
			const [x, y] = [splitWords(a), splitWords(b)];
			const table = Array.from({ length: x.length + 1 }, () => new Array(y.length + 1).fill(0));
			for (let i = 1; i <= x.length; i += 1) {
				for (let j = 1; j <= y.length; j += 1) {
					table[i][j] = x[i - 1].key === y[j - 1].key ? table[i - 1][j - 1] + 1 : Math.max(table[i - 1][j], table[i][j - 1]);
				}
			}
			assert.equal(edits.filter(({ type }) => type === "same").length, table[x.length][y.length], `${a} | ${b}`);
		}
	});

	test("of huge texts keep both of them", () => {
		const words = (step) => Array.from({ length: 30_000 }, (_, index) => `w${(index * step) % 9973}`).join(" ");
		for (const [a, b] of [
			[words(7), words(11)],
			["x".repeat(200_000), "y".repeat(200_000)],
			[" ".repeat(200_000), "a"],
			["a\n".repeat(50_000), "b\n".repeat(50_000)],
		]) {
			assert.deepEqual(sides(diffWords(a, b)), [a, b]);
		}
	});

	test("in many lines are found line by line", () => {
		const lines = (other) =>
			Array.from({ length: 1500 }, (_, index) => `line ${index} has ${index % 2 === 0 ? other : "the same"} end`).join("\n");
		const edits = diffWords(lines("one"), lines("another"));
		assert.deepEqual(sides(edits), [lines("one"), lines("another")]);
		assert.equal(edits.filter(({ type }) => type === "removed").length, 750);
	});

	test("make rows that end where both texts have a line break", () => {
		const result = rows(diffWords("a b\nc\nd", "a x\nc\nd e"));
		assert.deepEqual(
			result.map(({ a, b }) => [a.map(({ text }) => text).join(""), b.map(({ text }) => text).join("")]),
			[
				["a b", "a x"],
				["c", "c"],
				["d", "d e"],
			],
		);
		assert.deepEqual(result[0].b, [
			{ text: "a ", changed: false },
			{ text: "x", changed: true },
		]);
	});
});

describe("requests as text", () => {
	const hostile = `it's "a"; $(touch x) \`id\` \\ %s !! ü\n-- @file <in`;
	const request = {
		url: "http://127.0.0.1:7860/api/analyze",
		fileName: `a'b"c;d,e.png`,
		rotation: 0,
		fields: [
			["prompt", hostile],
			["stream", "true"],
		],
		withKey: true,
	};

	test("a shell reads them back", () => {
		for (const text of ["plain", "", "a b", hostile, "'", "''", "$HOME", "~"]) {
			assert.equal(execFileSync("sh", ["-c", `printf %s ${shellQuote(text)}`], { encoding: "utf8" }), text);
		}
	});

	test("a shell gives curl the arguments that were meant", () => {
		const print = `curl() { for word; do printf '%s\\0' "$word"; done; }\n`;
		const output = execFileSync("sh", ["-c", print + asCurl(request)], {
			encoding: "utf8",
			env: { ...process.env, MVP_API_KEY: "secret" },
		});
		assert.deepEqual(output.split("\0").slice(0, -1), [
			"--no-buffer",
			request.url,
			"--header",
			"Authorization: Bearer secret",
			"--form",
			`file=@"a'b\\"c;d,e.png"`,
			"--form-string",
			`prompt=${hostile}`,
			"--form-string",
			"stream=true",
		]);
	});

	test("Python reads them back", () => {
		const program = `import ast, json, sys\ntree = ast.parse(sys.stdin.read())\nprint(json.dumps([node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]))`;
		const found = JSON.parse(execFileSync("python3", ["-c", program], { input: asPython(request), encoding: "utf8" }));
		for (const text of [hostile, request.fileName, request.url, "MVP_API_KEY"]) assert.ok(found.includes(text), text);
	});

	test("without a key name none, and a rotation is told", () => {
		const plain = { ...request, withKey: false, rotation: 90 };
		for (const text of [asCurl(plain), asPython(plain)]) {
			assert.doesNotMatch(text, /Authorization|MVP_API_KEY/);
			assert.match(text, /^# The page was sent rotated by 90 degrees/);
		}
	});
});

test("a form holds its fields and its file as they are", async () => {
	const prompt = 'a\nb\rc\r\nd "e" --f\r\n--g 🩺';
	const bytes = Uint8Array.from({ length: 300 }, (_, index) => index);
	for (const [name, type] of [
		["é ü;'.png", "image/png"],
		["plain", ""],
	]) {
		const sent = await new Response(
			form(
				[
					["prompt", prompt],
					["empty", ""],
				],
				new Blob([bytes], { type }),
				name,
			),
		).formData();
		assert.deepEqual([...sent.keys()], ["prompt", "empty", "file"]);
		assert.deepEqual([sent.get("prompt"), sent.get("empty")], [prompt, ""]);
		assert.deepEqual([sent.get("file").name, sent.get("file").type], [name, type || "application/octet-stream"]);
		assert.deepEqual(new Uint8Array(await sent.get("file").arrayBuffer()), bytes);
	}
	const body = form([], new Blob(["x"]), 'a"\r\nb.png');
	assert.match(await body.text(), /; filename="a%22%0D%0Ab\.png"\r\n/);
	assert.notEqual(form([], new Blob(), "a").type, form([], new Blob(), "a").type, "nobody can know the boundary");
});

describe("records", () => {
	const record = {
		model_name: "models/qwen25-vl-7b-base",
		precision: "FP16",
		load_time_seconds: 12,
		vram: {
			pre_load_mb: null,
			post_load_mb: { allocated_mb: 15800.5, reserved_mb: 16000, max_allocated_mb: 15800.5 },
			peak_mb: { allocated_mb: 1, reserved_mb: 1, max_allocated_mb: 17000 },
		},
		inference_results: [
			{ latency_seconds: 4, accuracy: { term_accuracy: 90, value_accuracy: 80, combined_accuracy: 85 } },
			{ latency_seconds: 6, accuracy: { term_accuracy: 100, value_accuracy: 90, combined_accuracy: 95 } },
		],
		latency_stats: { avg_seconds: 5, min_seconds: 4, max_seconds: 6, p50_seconds: 6 },
	};

	test("give memory, latency and accuracy", () => {
		const figures = modelFigures(record);
		assert.deepEqual(
			[figures.memory, figures.peak, figures.latency, figures.terms, figures.values, figures.accuracy, figures.resident],
			[15800.5, 17000, 5, 95, 85, 90, false],
		);
	});

	test("of the original project, and damaged ones, give what they have", () => {
		const figures = modelFigures({
			...record,
			vram: { post_load_mb: 15800.5 },
			latency_stats: null,
			inference_results: [{ latency_seconds: 4 }, { latency_seconds: "x" }, null],
		});
		assert.deepEqual([figures.memory, figures.peak, figures.latency, figures.accuracy], [15800.5, null, 4, null]);
		for (const damaged of [null, undefined, 3, "x"]) assert.equal(modelFigures(damaged), null);
		for (const damaged of [{}, [], { vram: 3, inference_results: {} }]) assert.equal(modelFigures(damaged).memory, null);
	});

	test("that are missing name the command that makes them", () => {
		const { models, missing } = compile({ baseline_fp16: record });
		assert.deepEqual(
			models.map(({ label, figures }) => [label, figures !== null]),
			[
				["Base", true],
				["4 bits, NF4", false],
				["Fine-tuned", false],
			],
		);
		assert.deepEqual(missing.find(({ key }) => key === "quantized_int4").commands, ["quantize_base", "benchmark_quantized"]);
		assert.equal(
			missing.some(({ key }) => key === "baseline_fp16" || key === "merge_info"),
			false,
		);
	});

	test("of other models or another kind of memory are not compared in silence", () => {
		const other = { ...record, model_name: "qwen25-vl-nano-bnb-nf4" };
		assert.match(compile({ baseline_fp16: record, quantized_int4: other }).notes.join(" "), /different models/);
		const resident = {
			...record,
			model_name: "qwen25-vl-7b-bnb-nf4",
			vram: { post_load_mb: { allocated_mb: 1, memory_kind: "resident" } },
		};
		assert.match(compile({ baseline_fp16: record, quantized_int4: resident }).notes.join(" "), /cannot be compared/);
		assert.deepEqual(compile({ baseline_fp16: record, quantized_int4: { ...record, model_name: "qwen25-vl-7b-bnb-nf4" } }).notes, []);
	});
});

test("numbers are written for people", () => {
	assert.deepEqual([percent(1), percent(0.9996), percent(0.874), percent(0.0042)], ["100 %", "100 %", "87 %", "0.4 %"]);
	assert.deepEqual([seconds(0.842), seconds(12.34), seconds(125), seconds(null)], ["0.84 s", "12.3 s", "2 min 05 s", "n/a"]);
	assert.deepEqual([memory(212), memory(24020), memory(undefined)], ["212 MB", "23.5 GB", "n/a"]);
	assert.deepEqual([count(1, "place"), count(1419, "token")], ["1 place", "1,419 tokens"]);
	assert.equal(characters("a🩺b"), 3);
});
