// The API of the demo page without a model: serves assets/page and fakes /api, with the states that a real server seldom shows.
//
//   node stub.mjs [--port N] [KNOB=VALUE ...]      e.g. node stub.mjs --port 7860 delay=200 queueFull=2
//
// Knobs are listed in `DEFAULTS`; tests change them with `stub.set({...})`.

import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { dirname, extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

export const ROOT = join(dirname(fileURLToPath(import.meta.url)), "../..");
const PAGE = join(ROOT, "assets/page");
const SAMPLE = join(ROOT, "datasets/sample/discharge_note.png");

/** What the servers of the page send, too. */
export const POLICY =
	"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const TYPES = {
	".html": "text/html; charset=utf-8",
	".css": "text/css; charset=utf-8",
	".js": "text/javascript; charset=utf-8",
	".svg": "image/svg+xml",
	".png": "image/png",
};

export const DEFAULTS = {
	/** Milliseconds between two tokens. */
	delay: 3,
	/** How many requests are refused with 503 and Retry-After: 1. */
	queueFull: 0,
	/** Requests before this one in the queue: it waits until this is 0. */
	before: 0,
	/** The key without which everything but the page and /health answers 401; and one that is for other routes: 403. */
	key: null,
	metricsKey: null,
	/** How many requests are refused with 429 and Retry-After: 2. */
	keyLimit: 0,
	/** After this many tokens the stream ends with an error event. */
	errorAfter: null,
	/** After this many tokens the stream waits, of this file or of all of them: until `then` is "go", or "cut", which cuts the connection. */
	holdAfter: null,
	holdFile: null,
	then: "wait",
	/** The model is not loaded. */
	loading: false,
	/** Requests that /health reports. */
	admitted: 0,
	/** The text of every answer; null for the sample's. */
	text: null,
	/** Sends the text in one delta without log-probabilities. */
	plain: false,
	/** Answers JSON at once, as a server that does not know `stream`. */
	unstreamed: false,
	/** Texts by adapter, for comparisons. */
	texts: {},
	/** Answers of GET benchmark. */
	benchmarks: null,
	/** Requests for pages whose bytes begin with this are answered 400, as for a damaged file. */
	damaged: "DAMAGED",
	/** The base, the adapter that reads by default, and others. */
	models: ["qwen25-vl-nano", "medical-lora", "ward-lora"],
	/** Splits the stream into chunks of this many bytes; 0 sends events whole. */
	chunk: 0,
	gpu: false,
	warnings: [],
	/** The final text ends after this many characters, as where a repetition is cut. */
	finalLength: null,
	/** Where the page is served, as behind a proxy: begins and ends with a slash. */
	prefix: "/",
};

/** Tokens of a text in OpenAI's form: mostly sure, with places to check at the words in `doubts`. */
export function tokensOf(text, doubts = DOUBTS) {
	const pieces = text.match(/\s*[A-Za-z]{1,4}|\s*[0-9]+|\s*[^\sA-Za-z0-9]|\s+/gu) ?? [];
	return pieces.map((piece) => {
		const doubt = doubts[piece.trim()];
		const probability = doubt?.[0] ?? 0.998;
		const others = doubt?.[1] ?? [];
		const as = (token, share) => ({ token, bytes: [...Buffer.from(token)], logprob: Math.log(share) });
		const space = /^\s*/.exec(piece)[0];
		return {
			...as(piece, probability),
			top_logprobs: [as(piece, probability), ...others.map(([other, share]) => as(space + other, share))],
		};
	});
}

/** Probability of a token, and what it may be instead. */
const DOUBTS = {
	2085164: [
		0.83,
		[
			["2085154", 0.11],
			["2086164", 0.03],
		],
	],
	214: [
		0.46,
		[
			["274", 0.41],
			["244", 0.08],
		],
	],
	Tiot: [
		0.71,
		[
			["Thio", 0.14],
			["Titr", 0.09],
		],
	],
	17: [
		0.88,
		[
			["11", 0.07],
			["19", 0.02],
		],
	],
};

async function body(request) {
	const parts = [];
	let size = 0;
	for await (const part of request) {
		size += part.length;
		if (size > 64 * 1024 * 1024) throw new Error("too large");
		parts.push(part);
	}
	return Buffer.concat(parts);
}

/** Fields and the file of a multipart form. */
export function parseForm(request, bytes) {
	const boundary = /boundary=(.+)$/.exec(request.headers["content-type"] ?? "")?.[1];
	const fields = {};
	let file = null;
	if (!boundary) return { fields, file };
	let at = bytes.indexOf(`--${boundary}`);
	while (at >= 0) {
		const head = bytes.indexOf("\r\n\r\n", at);
		const next = bytes.indexOf(`\r\n--${boundary}`, head);
		if (head < 0 || next < 0) break;
		const headers = bytes.subarray(at, head).toString();
		const value = bytes.subarray(head + 4, next);
		const name = /name="([^"]*)"/.exec(headers)?.[1];
		const fileName = /filename="([^"]*)"/.exec(headers)?.[1];
		if (fileName !== undefined) file = { name: fileName, bytes: value };
		else if (name) fields[name] = value.toString();
		at = next + 2;
	}
	return { fields, file };
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const now = () => new Date().toISOString();

/** The sizes of a page that a request may ask for: from one token to the model's own maximum. */
const PIXELS = { least: 784, most: 1003520 };

/** What the server says of a key of scope `metrics`. */
const WRONG_SCOPE = "this key may not call this route: it is for /metrics only";

/** Starts the stub. `requests` collects what came to be read, `heads` each address and its headers; `set` changes knobs; `close` ends it. */
export async function startStub(knobs = {}, port = 0) {
	const state = { ...DEFAULTS, ...knobs };
	const requests = [];
	const heads = [];
	const sampleText = await readFile(join(ROOT, "datasets/sample/discharge_note.txt"), "utf8");
	let active = 0;

	const info = (adapter) => ({
		model_name: state.models[0],
		precision: "FP32",
		lora_adapter: adapter,
		device: state.gpu ? "cuda:0" : "cpu",
	});
	const adapterOf = (fields) => {
		const chosen = fields.adapter ?? "default";
		return chosen === "none" ? null : chosen === "default" ? (state.models[1] ?? null) : chosen;
	};

	async function api(route, request, response) {
		const json = (status, value, headers = {}) => {
			response.writeHead(status, { "Content-Type": "application/json", ...headers });
			response.end(JSON.stringify(value));
		};
		const error = (status, detail, headers) => json(status, { detail, timestamp: now() }, headers);
		const bearer = request.headers.authorization;
		if (state.key !== null && route !== "health" && bearer !== `Bearer ${state.key}`) {
			if (state.metricsKey !== null && bearer === `Bearer ${state.metricsKey}`) return error(403, WRONG_SCOPE);
			return error(401, "this route needs a key of this server: send it as `Authorization: Bearer KEY` or `X-Api-Key: KEY`");
		}
		if (route === "health") {
			return json(200, {
				model_loaded: !state.loading,
				gpu_available: state.gpu,
				gpu_name: state.gpu ? "Stub GPU" : null,
				current_vram_usage_mb: state.gpu ? 15800 : 0,
				total_vram_mb: state.gpu ? 24576 : 0,
				requests_admitted: state.admitted + active,
				resident_memory_mb: 212,
				total_memory_mb: 24020,
				timestamp: now(),
			});
		}
		if (route === "v1/models") {
			if (state.loading)
				return json(
					503,
					{ error: { message: "The model is loading.", type: "server_error", param: null, code: null } },
					{ "Retry-After": "1" },
				);
			const data = state.models.map((id, index) => ({
				id,
				object: "model",
				created: 1764400000,
				owned_by: "medvision",
				medvision: {
					...info(index === 0 ? null : id),
					default: index === Math.min(1, state.models.length - 1),
					min_pixels: 3136,
					max_pixels: PIXELS.most,
				},
			}));
			return json(200, { object: "list", data: data.toSorted((a, b) => Number(b.medvision.default) - Number(a.medvision.default)) });
		}
		if (route === "benchmark") {
			const benchmarks = state.benchmarks ?? {};
			return json(200, { benchmarks, files_loaded: Object.keys(benchmarks), files_skipped: [], timestamp: now() });
		}
		if (route !== "extract" && route !== "analyze") return error(404, "There is no such route.");
		const form = parseForm(request, await body(request));
		requests.push({ route, ...form, authorization: request.headers.authorization ?? null, aborted: false });
		const record = requests.at(-1);
		if (state.loading) return error(503, "The model is still loading.", { "Retry-After": "1" });
		if (state.queueFull > 0) {
			state.queueFull -= 1;
			return error(503, "The queue is full.", { "Retry-After": "1" });
		}
		if (state.keyLimit > 0) {
			state.keyLimit -= 1;
			return error(429, "this key has 4 requests in the queue, its limit; try again in 2 s", { "Retry-After": "2" });
		}
		if (!form.file) return error(422, 'The form has no field "file".');
		if (form.file.bytes.subarray(0, state.damaged.length).toString() === state.damaged) {
			return error(400, "The image could not be decoded: it is damaged, or not an image.");
		}
		for (const field of ["min_pixels", "max_pixels"]) {
			const pixels = Number(form.fields[field] ?? PIXELS.least);
			if (pixels < PIXELS.least || pixels > PIXELS.most) return error(422, `${field}: must be from ${PIXELS.least} to ${PIXELS.most}`);
		}
		const adapter = adapterOf(form.fields);
		const text =
			state.texts[form.fields.adapter ?? "default"] ??
			state.text ??
			(route === "extract" ? sampleText.trimEnd() : `Answer to: ${form.fields.prompt ?? "(extraction prompt)"}`);
		const tokens = state.plain ? [] : tokensOf(text);
		const final = text.slice(0, state.finalLength ?? text.length);
		const answer = (seconds) => ({
			...(route === "extract" ? { extracted_content: final } : { analysis: final, prompt_used: form.fields.prompt ?? "(extraction prompt)" }),
			warnings: state.warnings,
			inference_latency_seconds: seconds,
			time_to_first_token_seconds: 0.02,
			queue_seconds: 0,
			prompt_tokens: 1461,
			completion_tokens: Math.max(1, tokens.length),
			finish_reason: final === text ? "stop" : "repetition",
			model_info: info(adapter),
			timestamp: now(),
			image: { width: 900, height: 1100, resized_width: 896, resized_height: 1092, tokens: 1248 },
			...(tokens.length > 0 ? { logprobs: tokens } : {}),
		});
		if (form.fields.stream !== "true" || state.unstreamed) return json(200, answer(0.5));
		active += 1;
		response.on("close", () => {
			active -= 1;
			record.aborted = !response.writableFinished;
		});
		response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
		await stream(response, text, tokens, answer, form.file.name);
	}

	async function stream(response, text, tokens, answer, file) {
		const started = performance.now();
		const event = async (name, data) => {
			const bytes = Buffer.from(`event: ${name}\ndata: ${JSON.stringify(data)}\n\n`);
			if (state.chunk === 0) response.write(bytes);
			for (let at = 0; state.chunk > 0 && at < bytes.length; at += state.chunk) {
				response.write(bytes.subarray(at, at + state.chunk));
				await pause(0);
			}
		};
		for (let before = null; before !== 0; ) {
			if (response.destroyed) return;
			if (before === state.before) await pause(10);
			else await event("queued", { before: (before = state.before) });
		}
		response.write(": keep-alive\n\n");
		if (tokens.length === 0) await event("delta", { text });
		for (const [index, token] of tokens.entries()) {
			if (response.destroyed) return;
			const held = () => index === state.holdAfter && (state.holdFile ?? file) === file && state.then !== "go";
			while (held() && !response.destroyed) {
				if (state.then === "cut") response.destroy();
				else await pause(10);
			}
			if (response.destroyed) return;
			if (index === state.errorAfter) {
				await event("error", { detail: "The reading was ended: the server is shutting down.", timestamp: now(), status: 503 });
				return response.end();
			}
			await event("delta", { text: token.token, logprobs: [token] });
			if (state.delay > 0) await pause(state.delay);
		}
		await event("done", answer((performance.now() - started) / 1000));
		response.end();
	}

	async function serve(request, response) {
		heads.push({ url: request.url, headers: request.headers });
		const whole = new URL(request.url, "http://stub").pathname;
		const pathname = whole.startsWith(state.prefix) ? `/${whole.slice(state.prefix.length)}` : "/..";
		if (pathname.startsWith("/api/")) return api(pathname.slice(5), request, response);
		const name = normalize(decodeURIComponent(pathname)).replace(/^\/+/, "") || "index.html";
		const path = name === "sample.png" ? SAMPLE : join(PAGE, name);
		const bytes = name.includes("..") ? null : await readFile(path).catch(() => null);
		response.writeHead(bytes ? 200 : 404, {
			"Content-Type": TYPES[extname(path)] ?? "application/octet-stream",
			"Content-Security-Policy": POLICY,
			"X-Content-Type-Options": "nosniff",
			"Referrer-Policy": "no-referrer",
			"Cache-Control": "no-cache",
		});
		response.end(bytes ?? "Not found");
	}

	const server = createServer((request, response) => {
		serve(request, response).catch(() => response.destroy());
	});
	await new Promise((resolve, reject) => server.once("error", reject).listen(port, "127.0.0.1", resolve));
	const used = server.address().port;
	return {
		url: `http://127.0.0.1:${used}${state.prefix}`,
		port: used,
		requests,
		heads,
		set: (changes) => Object.assign(state, changes),
		close: () =>
			new Promise((resolve) => {
				server.close(resolve);
				server.closeAllConnections();
			}),
	};
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
	const words = process.argv.slice(2);
	const flag = words.indexOf("--port");
	const port = flag < 0 ? 7860 : Number(words.splice(flag, 2)[1]);
	const knobs = Object.fromEntries(
		words.map((word) => {
			const [name, value] = word.split(/=(.*)/s);
			if (!(name in DEFAULTS)) throw new Error(`unknown knob ${name}; known: ${Object.keys(DEFAULTS).join(", ")}`);
			try {
				return [name, JSON.parse(value)];
			} catch {
				return [name, value];
			}
		}),
	);
	console.log((await startStub(knobs, port)).url);
}
