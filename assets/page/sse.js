// Server-sent events over fetch: EventSource can neither POST nor send a header.

const MAX_EVENT_CHARACTERS = 64 * 1024 * 1024;

/** Splits a text/event-stream into events, whatever the chunks. Lines end with \n, \r\n or \r; comments are dropped. */
export class EventParser {
	#rest = "";
	#event = "";
	#data = [];
	#size = 0;
	#started = false;

	/** Returns the events that this text completes: `{event, data}`. */
	push(text) {
		const events = [];
		let buffer = this.#rest + text;
		if (!this.#started && buffer !== "") {
			this.#started = true;
			if (buffer.startsWith("\ufeff")) buffer = buffer.slice(1);
		}
		let start = 0;
		// Only the new text can hold an end of line, but for a \r at the end of the old one.
		const ends = /\r\n|\n|\r/g;
		ends.lastIndex = Math.max(0, this.#rest.length - 1);
		for (let end = ends.exec(buffer); end !== null; end = ends.exec(buffer)) {
			// A \r at the very end may be the first half of a \r\n.
			if (end[0] === "\r" && ends.lastIndex === buffer.length) break;
			this.#line(buffer.slice(start, end.index), events);
			start = ends.lastIndex;
		}
		this.#rest = buffer.slice(start);
		if (this.#rest.length + this.#size > MAX_EVENT_CHARACTERS) {
			throw new Error("The server sent an event of more than 64 million characters.");
		}
		return events;
	}

	#line(line, events) {
		if (line === "") {
			if (this.#data.length > 0) events.push({ event: this.#event || "message", data: this.#data.join("\n") });
			this.#event = "";
			this.#data = [];
			this.#size = 0;
			return;
		}
		const colon = line.indexOf(":");
		if (colon === 0) return;
		const field = colon < 0 ? line : line.slice(0, colon);
		const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
		if (field === "event") this.#event = value;
		if (field === "data") {
			this.#data.push(value);
			this.#size += value.length;
		}
	}
}

/** The events of a response's body. Characters that are split between chunks are joined. */
export async function* events(body) {
	const reader = body.getReader();
	const decoder = new TextDecoder();
	const parser = new EventParser();
	try {
		for (;;) {
			const { done, value } = await reader.read();
			// An event that its empty line does not end is incomplete: it is dropped.
			if (done) return;
			yield* parser.push(decoder.decode(value, { stream: true }));
		}
	} finally {
		// Left early: closes the connection, so that the server stops reading the page.
		reader.cancel().catch(() => {});
	}
}
