// One reading of one page by one model: the request, its progress and its result.

import { ApiError, address, form, hasKey, send } from "./api.js";
import { events } from "./sse.js";
import { Words, wordsOf } from "./words.js";

/** How often a page is sent again where the queue is full, or has as many requests of this key as it may have. */
const MAX_TRIES = 60;

/** The field of an answer that holds its text. */
const TEXT = { extract: "extracted_content", analyze: "analysis" };

/** States: waiting, reading, read, failed, stopped. Listeners get "state", "text" or "progress". */
export class Reading {
	#own = new AbortController();

	/** `request`: `{task, page, fields}` with `fields` as `[[name, value], …]`. */
	constructor(request) {
		this.request = request;
		this.state = "waiting";
		this.words = new Words();
		this.tokens = 0;
		/** The whole answer, once it is complete. */
		this.answer = null;
		this.error = null;
		/** Requests before this one in the server's queue; null if unknown. */
		this.before = null;
		/** Seconds until it is sent again, where the queue is full; and what the API said. */
		this.retryIn = null;
		this.retryWhy = "";
		this.sentAt = null;
		this.firstAt = null;
		this.endedAt = null;
		this.listeners = new Set();
		this.sent = null;
	}

	#tell(what) {
		for (const listener of this.listeners) listener(what, this);
	}

	#enter(state) {
		this.state = state;
		this.#tell("state");
	}

	get text() {
		return this.answer?.[TEXT[this.request.task]] ?? this.words.text;
	}

	get unsure() {
		return this.words.unsure;
	}

	get done() {
		return this.state !== "waiting" && this.state !== "reading";
	}

	/** Seconds from sending to the end, or until now. */
	get elapsed() {
		return this.sentAt === null ? null : ((this.endedAt ?? performance.now()) - this.sentAt) / 1000;
	}

	/** Tokens per second after the first one; null before there are two. */
	get speed() {
		const [first, most] = [this.answer?.time_to_first_token_seconds, this.answer?.inference_latency_seconds];
		if (Number.isFinite(first) && most > first && this.answer.completion_tokens > 1) {
			return (this.answer.completion_tokens - 1) / (most - first);
		}
		const duration = this.firstAt === null ? 0 : ((this.endedAt ?? performance.now()) - this.firstAt) / 1000;
		return this.tokens > 1 && duration > 0.05 ? (this.tokens - 1) / duration : null;
	}

	/** For "Save as JSON": the answer, or what came of it. */
	get json() {
		if (this.answer) return this.answer;
		return { [TEXT[this.request.task]]: this.text, complete: false, state: this.state, detail: this.error?.message };
	}

	/** Ends this reading alone. */
	cancel() {
		this.#own.abort();
	}

	/** Reads the page; never throws. Aborting `all` keeps what came. */
	async run(all) {
		const signal = AbortSignal.any([all, this.#own.signal]);
		try {
			const response = await this.#send(signal);
			await this.#receive(response, signal);
			this.endedAt = performance.now();
			this.#enter("read");
		} catch (error) {
			this.endedAt = performance.now();
			this.words.finish();
			if (signal.aborted) {
				this.#enter("stopped");
				return;
			}
			this.error = error instanceof ApiError ? error : new ApiError(error.message);
			this.#enter("failed");
		}
	}

	async #send(signal) {
		const { task, page, fields } = this.request;
		this.#enter("reading");
		const { blob, name, rotation } = await page.encoded();
		const all = [...fields, ["stream", "true"], ["logprobs", "true"]];
		for (let attempt = 1; ; attempt += 1) {
			signal.throwIfAborted();
			const body = form(all, blob, name);
			this.sentAt = performance.now();
			try {
				const response = await send(task, { body, signal });
				this.sent = { url: address(task), fileName: name, rotation, fields: all, withKey: hasKey() };
				return response;
			} catch (error) {
				this.sent = { url: address(task), fileName: name, rotation, fields: all, withKey: hasKey() };
				if (![429, 503].includes(error.status) || error.retryAfter === null || attempt === MAX_TRIES) throw error;
				this.retryWhy = error.message;
				await this.#wait(error.retryAfter, signal);
			}
		}
	}

	/** Waits where the queue is full, with a countdown. */
	async #wait(seconds, signal) {
		for (let left = seconds; left > 0; left -= 1) {
			this.retryIn = left;
			this.#tell("progress");
			await pause(1000, signal);
		}
		this.retryIn = null;
		this.#tell("progress");
	}

	async #receive(response, signal) {
		const streamed = (response.headers.get("Content-Type") ?? "").startsWith("text/event-stream");
		if (!streamed) {
			// A server that does not know `stream` answers at once.
			this.#finish(await response.json());
			return;
		}
		try {
			for await (const { event, data } of events(response.body)) {
				signal.throwIfAborted();
				if (this.#take(event, parse(data))) return;
			}
		} catch (error) {
			if (signal.aborted || error instanceof ApiError) throw error;
			throw new ApiError("The connection to the API was lost while the page was read.");
		}
		throw new ApiError("The connection to the API ended before the answer was complete.");
	}

	/** Returns whether the answer is complete. */
	#take(event, data) {
		if (event === "queued") {
			this.before = Number.isFinite(data.before) ? data.before : null;
			this.#tell("progress");
		} else if (event === "delta") {
			this.before = 0;
			this.firstAt ??= performance.now();
			if (Array.isArray(data.logprobs) && data.logprobs.length > 0) {
				this.words.push(data.logprobs);
				this.tokens += data.logprobs.length;
			} else {
				this.words.pushText(String(data.text ?? ""));
				this.tokens += 1;
			}
			this.#tell("text");
		} else if (event === "error") {
			throw new ApiError(String(data.detail ?? "The server ended the reading with an error."), data.status ?? 500);
		} else if (event === "done") {
			this.#finish(data);
			return true;
		}
		return false;
	}

	#finish(answer) {
		const text = answer?.[TEXT[this.request.task]];
		if (typeof text !== "string") throw new ApiError("The server's answer has no text.");
		this.answer = answer;
		this.words.finish();
		if (this.words.text !== text || !this.words.closed.some((word) => word.probability !== null)) {
			this.words = wordsOf(text, answer.logprobs);
		}
		this.tokens = answer.completion_tokens ?? this.tokens;
	}
}

function parse(data) {
	try {
		return JSON.parse(data) ?? {};
	} catch {
		throw new ApiError("The server sent an event that is not JSON.");
	}
}

/** Resolves after some milliseconds; rejects as soon as the signal is aborted. */
export function pause(milliseconds, signal) {
	return new Promise((resolve, reject) => {
		const abort = () => {
			clearTimeout(timer);
			reject(signal.reason);
		};
		const timer = setTimeout(() => {
			signal?.removeEventListener("abort", abort);
			resolve();
		}, milliseconds);
		signal?.addEventListener("abort", abort, { once: true });
		if (signal?.aborted) abort();
	});
}
