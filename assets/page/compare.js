// Two models on one page: both texts side by side, with their differences by word.

import { $, h } from "./dom.js";
import { count } from "./format.js";
import { diffWords, rows } from "./diff.js";

/** Shows a comparison `{names: [a, b], readings: [a, b]}`. */
export class Comparison {
	#box = $("comparison");
	#shown = null;
	#stamp = "";
	#frame = 0;
	/** Elements of the differences, in order. */
	places = [];
	summary = "";

	constructor(changed) {
		this.changed = changed;
		this.listener = (what) => {
			if (what !== "progress" && this.#frame === 0) this.#frame = requestAnimationFrame(() => this.#update());
		};
	}

	show(comparison) {
		if (comparison === this.#shown) return;
		for (const reading of this.#shown?.readings ?? []) reading.listeners.delete(this.listener);
		this.#shown = comparison;
		for (const reading of comparison?.readings ?? []) reading.listeners.add(this.listener);
		this.#stamp = "";
		this.#update();
	}

	#update() {
		this.#frame = 0;
		const shown = this.#shown;
		const texts = shown?.readings.map((reading) => reading.text) ?? [];
		const complete = shown?.readings.every((reading) => reading.done) ?? false;
		const stamp = shown ? `${complete} ${texts.map((text) => text.length)}` : "";
		if (shown && stamp === this.#stamp) return;
		this.#stamp = stamp;
		this.places = [];
		this.summary = "";
		this.#box.replaceChildren();
		if (shown) this.#fill(shown, texts, complete);
		this.changed();
	}

	#fill({ names, readings }, texts, complete) {
		this.#box.append(
			h(
				"div",
				{ class: "compare-row compare-head" },
				...names.map((name, side) =>
					h(
						"div",
						{},
						h("span", { class: "sign", "aria-hidden": "true" }, side === 0 ? "−" : "+"),
						name,
						h("small", {}, stateOf(readings[side])),
					),
				),
			),
		);
		// Until both are complete there is nothing to compare: each text grows by itself.
		if (!complete || readings.some((reading) => reading.state === "failed")) {
			this.#box.append(h("div", { class: "compare-row" }, ...texts.map((text) => h("div", { class: "cell" }, text))));
			return;
		}
		const edits = diffWords(texts[0], texts[1]);
		for (const row of rows(edits)) {
			const changed = [...row.a, ...row.b].some((part) => part.changed);
			const line = h("div", { class: changed ? "compare-row changed" : "compare-row" }, this.#cell(row.a, "del"), this.#cell(row.b, "ins"));
			if (changed) {
				line.tabIndex = -1;
				this.places.push({ element: line });
			}
			this.#box.append(line);
		}
		const inWords = edits.filter((edit) => (edit.a + edit.b).trim() !== "");
		const same = 2 * inWords.filter((edit) => edit.type === "same").length;
		const all = inWords.length + same / 2;
		const lines = count(this.places.length, "line differs", "lines differ");
		this.summary =
			this.places.length === 0
				? "Both texts are the same"
				: `${lines}, ${all === 0 ? 100 : Math.floor((same / all) * 100)} % of the words are the same`;
	}

	#cell(parts, tag) {
		return h("div", { class: "cell" }, ...parts.flatMap((part) => (part.changed ? marked(tag, part.text) : [part.text])));
	}

	go(index) {
		const place = this.places[index];
		if (!place) return;
		place.element.focus({ preventScroll: true });
		place.element.scrollIntoView({ block: "center" });
	}
}

/** A changed part: the spaces after it are not marked, a line break alone is made visible. */
function marked(tag, text) {
	const words = text.trimEnd();
	if (words === "") return [h(tag, {}, text.includes("\n") ? "⏎" : "␣"), text];
	return [h(tag, {}, words), text.slice(words.length)];
}

function stateOf(reading) {
	const words = {
		waiting: "waiting",
		reading: "reading",
		read: "",
		failed: `failed: ${reading.error?.message ?? ""}`,
		stopped: "stopped",
	};
	return words[reading.state];
}
