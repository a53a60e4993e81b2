// Beside the page: progress, errors, places to check, and what can be done with the text.

import { $, announce, copyText, download, h, setText } from "./dom.js";
import { count, decimal, integer, percent, seconds } from "./format.js";
import { requestDialog } from "./dialogs.js";
import { stem } from "./pages.js";

const MAX_LISTED = 500;

export class Results {
	#reading = null;
	#places = { list: () => [], go: () => {} };
	#at = -1;

	constructor() {
		$("next").addEventListener("click", () => this.step(1));
		$("previous").addEventListener("click", () => this.step(-1));
		for (const [id, act] of [
			["copy-text", () => this.#copy(this.#reading.text, "Text")],
			["copy-json", () => this.#copy(this.#json(), "JSON")],
			["save-text", () => download(`${this.#name()}.txt`, this.#reading.text, "text/plain")],
			["save-json", () => download(`${this.#name()}.json`, this.#json(), "application/json")],
			["show-request", () => requestDialog(this.#reading.sent)],
		]) {
			$(id).addEventListener("click", act);
		}
	}

	#json() {
		return `${JSON.stringify(this.#reading.json, null, 2)}\n`;
	}

	#name() {
		return stem(this.#reading.request.page.name)
			.replace(/[\\/:*?"<>|\u0000-\u001f]/g, "_")
			.slice(0, 100);
	}

	async #copy(text, what) {
		const copied = await copyText(text);
		setText($("copied"), copied ? `${what} copied` : "The browser refused to copy");
		announce(copied ? `${what} copied` : "The browser refused to copy");
	}

	/** Shows all but the text of a reading. `page` and `reading` may be null. */
	render(reading, page, task, comparing) {
		if (reading !== this.#reading) setText($("copied"), "");
		this.#reading = reading;
		setText($("figures"), figures(reading));
		this.#notice(reading, page);
		const empty = reading === null || reading.text === "";
		$("text-hint").hidden = !(reading === null && !page?.refusal);
		const started = reading?.sent != null;
		// Of two texts it would not be clear which one is meant.
		$("results-bar").hidden = reading === null || comparing;
		for (const id of ["copy-text", "copy-json", "save-text", "save-json"]) $(id).disabled = empty || !reading.done;
		$("show-request").disabled = !started;
		const prompt = task === "analyze" ? (reading?.answer?.prompt_used ?? reading?.request.fields.find(([name]) => name === "prompt")?.[1]) : null;
		$("asked").hidden = !prompt || prompt === $("prompt").value;
		setText($("asked"), prompt ?? "");
		setText($("read-as"), readAs(reading?.answer?.image));
	}

	#notice(reading, page) {
		const box = $("notice");
		const lines = [];
		let kind = "note";
		if (page?.refusal) {
			lines.push(page.refusal);
			kind = "error";
		} else if (reading?.state === "failed") {
			lines.push(reading.error.message);
			if (reading.text !== "") lines.push("What came before is kept.");
			kind = "error";
		} else if (reading?.state === "stopped") {
			lines.push(reading.text === "" ? "Stopped before any text came." : "Stopped. What came is kept.");
		}
		const answer = reading?.answer;
		if (answer?.finish_reason === "length") lines.push("The text ends at the length limit: it may go on.");
		if (answer?.finish_reason === "repetition") lines.push("The model repeated itself: the text was cut there.");
		for (const warning of answer?.warnings ?? []) lines.push(warningText(String(warning)));
		if (reading?.done && page && reading.sent && reading.sent.rotation !== page.rotation) {
			lines.push("The page was rotated after it was read. Read it again.");
		}
		box.hidden = lines.length === 0;
		box.className = `notice ${kind}`;
		const text = lines.join(" ");
		if (box.textContent !== text) box.replaceChildren(text);
	}

	/** Sets what n and p walk through: `list()` gives `{element, word?}`, `go(index)` moves there, `label` is the heading. */
	setPlaces(places, label) {
		this.#places = places;
		this.#at = -1;
		const list = places.list();
		$("places").hidden = label === "";
		setText($("places-count"), label);
		for (const id of ["next", "previous"]) $(id).hidden = list.length === 0;
		const all = list.filter((place) => place.word);
		const words = all.slice(0, MAX_LISTED);
		$("places-list").replaceChildren(
			...words.map((place, index) =>
				h(
					"li",
					{},
					h(
						"button",
						{ type: "button", click: () => this.goTo(index) },
						h("span", { class: "word" }, place.word.text.slice(0, 60)),
						h("span", { class: "number" }, percent(place.word.probability)),
					),
				),
			),
		);
		if (all.length > words.length) $("places-list").append(h("li", { class: "more" }, `and ${integer(all.length - words.length)} more`));
		$("places-list").hidden = words.length === 0;
		setText($("places-at"), "");
	}

	goTo(index) {
		this.#places.go(index);
		this.at(index);
	}

	/** Notes which place has the focus. */
	at(index) {
		this.#at = index;
		const total = this.#places.list().length;
		setText($("places-at"), total > 0 && index >= 0 ? `${integer(index + 1)} of ${integer(total)}` : "");
	}

	step(by) {
		const total = this.#places.list().length;
		if (total === 0) return;
		const from = this.#at < 0 && by < 0 ? 0 : this.#at;
		this.goTo((from + by + total) % total);
	}
}

/** One line: where a reading is, or how long it took. */
function figures(reading) {
	if (reading === null) return "";
	if (reading.retryIn !== null) return `${sentence(reading.retryWhy)}, sent again in ${reading.retryIn} s`;
	const parts = [];
	if (reading.state === "waiting") return "Waiting";
	if (reading.state === "reading") {
		if (reading.sentAt === null) return "Preparing the page";
		if (reading.before > 0) return `${count(reading.before, "request")} before this one · ${seconds(reading.elapsed)}`;
		parts.push(reading.firstAt === null ? (reading.before === 0 ? "Looking at the page" : "Sent") : "Reading");
	}
	if (reading.elapsed !== null) parts.push(reading.done ? seconds(reading.elapsed) : `${reading.elapsed.toFixed(1)} s`);
	if (reading.tokens > 0) parts.push(count(reading.tokens, "token"));
	if (reading.speed !== null) parts.push(`${decimal(reading.speed, 1)} tokens/s`);
	if (reading.answer?.queue_seconds > 0.1) parts.push(`${seconds(reading.answer.queue_seconds)} in the queue`);
	return parts.join(" · ");
}

/** What the API said, without its own seconds: those that are left are shown. */
const sentence = (text) => text[0].toUpperCase() + text.slice(1).replace(/(; try again in \d+ s)?\.?$/, "");

function readAs(image) {
	if (!image || !Number.isFinite(image.resized_width)) return "";
	return `read as ${image.resized_width}x${image.resized_height}, ${count(image.tokens, "token")}`;
}

function warningText(warning) {
	if (warning === "truncated") return "The file is damaged: a part of the page is missing.";
	const pages = /^first of (\d+) pages$/.exec(warning);
	if (pages) return `Only the first of ${pages[1]} pages in the file was read.`;
	return warning;
}
