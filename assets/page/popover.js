// What else a word may be: shown beside the word on hover, focus or tap.

import { $, h } from "./dom.js";
import { percent } from "./format.js";
import { UNSURE, visible } from "./words.js";

const GAP = 6;
const EDGE = 8;
const MAX_PARTS = 4;
/** Less than this would be shown as 0.0 %. */
const MIN_SHOWN = 0.0005;

/** A popover for the words of a transcript. Escape closes it; the pointer may rest on it. */
export class Popover {
	#box = $("alternatives");
	#anchor = null;
	#timer = null;

	constructor() {
		this.#box.addEventListener("pointerenter", () => clearTimeout(this.#timer));
		this.#box.addEventListener("pointerleave", () => this.closeSoon());
		window.addEventListener("resize", () => this.close());
		document.addEventListener("scroll", () => this.#follow(), { capture: true, passive: true });
		document.addEventListener("pointerdown", (event) => {
			if (this.isOpen && !this.#box.contains(event.target) && event.target !== this.#anchor) this.close();
		});
	}

	get isOpen() {
		return !this.#box.hidden;
	}

	/** Shows a word's alternatives at an element or a range of text. */
	open(word, anchor) {
		clearTimeout(this.#timer);
		if (this.#anchor === anchor && this.isOpen) return;
		this.close();
		this.#anchor = anchor;
		this.#box.replaceChildren(...content(word));
		this.#box.hidden = false;
		if (anchor instanceof Element) anchor.setAttribute("aria-describedby", "alternatives");
		this.#place();
	}

	/** Closes it a little later, so that the pointer can reach it. */
	closeSoon() {
		clearTimeout(this.#timer);
		this.#timer = setTimeout(() => {
			if (this.#anchor !== document.activeElement) this.close();
		}, 200);
	}

	close() {
		clearTimeout(this.#timer);
		this.#box.hidden = true;
		if (this.#anchor instanceof Element) this.#anchor.removeAttribute("aria-describedby");
		this.#anchor = null;
	}

	#follow() {
		if (!this.isOpen) return;
		const box = this.#anchor.getBoundingClientRect();
		if (box.bottom < 0 || box.top > innerHeight || box.width === 0) this.close();
		else this.#place();
	}

	#place() {
		const word = this.#anchor.getClientRects()[0] ?? this.#anchor.getBoundingClientRect();
		const { offsetWidth: width, offsetHeight: height } = this.#box;
		const below = word.bottom + GAP;
		// On a phone the bar with the buttons covers the lower edge.
		const bar = document.querySelector(".actions");
		const bottom = getComputedStyle(bar).position === "fixed" ? bar.getBoundingClientRect().top : innerHeight;
		const fits = below + height + EDGE <= bottom || word.top < height + GAP + EDGE;
		const left = Math.max(EDGE, Math.min(word.left, innerWidth - width - EDGE));
		this.#box.style.left = `${left}px`;
		this.#box.style.top = `${fits ? below : word.top - GAP - height}px`;
	}
}

function content(word) {
	const parts = word.parts.filter((part) => part.probability < UNSURE);
	const weakest = word.parts.filter((part) => part.probability === word.probability).slice(0, 1);
	const shown = (parts.length > 0 ? parts : weakest).slice(0, MAX_PARTS);
	const head = h(
		"p",
		{ class: "popover-head" },
		h("strong", {}, clip(word.text, 40)),
		h("span", {}, word.probability === null ? "probability unknown" : `${percent(word.probability)} sure`),
	);
	return [head, ...shown.flatMap((part) => partContent(word, part)), ...rest(parts.length - shown.length)];
}

const rest = (more) => (more > 0 ? [h("p", { class: "popover-note" }, `and ${more} more unsure parts of this word`)] : []);

function partContent(word, part) {
	const rows = [];
	const after = word.text.slice(part.before.length + part.text.length);
	const seen = part.alternatives.filter((alternative) => alternative.probability >= MIN_SHOWN);
	// What was read need not be the most likely: it may have been sampled, or fallen below the five best.
	const read = seen.find((alternative) => alternative.probability === part.probability && alternative.text.includes(part.text));
	if (!read) seen.unshift({ text: part.text, probability: part.probability });
	for (const alternative of seen) {
		const isRead = alternative === (read ?? seen[0]);
		const bar = h("span", { class: "popover-bar", "aria-hidden": "true" }, h("span", {}));
		bar.firstChild.style.width = `${Math.max(1, alternative.probability * 100)}%`;
		rows.push(
			h(
				"tr",
				isRead ? { class: "read" } : {},
				h(
					"th",
					{ scope: "row" },
					h("span", { class: "dim" }, clip(part.before, 16, true)),
					shownText(alternative.text, part.space),
					// What would have followed another token is not known.
					h("span", { class: "dim" }, isRead ? clip(after, 16) : after && "…"),
				),
				h("td", {}, bar),
				h("td", { class: "number" }, percent(alternative.probability)),
				h("td", {}, isRead ? "read" : ""),
			),
		);
	}
	return [h("table", {}, h("tbody", {}, ...rows))];
}

function shownText(token, space) {
	// The space before the word is the same in most alternatives: only a difference is shown.
	const text = space !== "" && token.startsWith(space) && token !== space ? token.slice(space.length) : token;
	if (text === "") return h("em", {}, "nothing");
	if (/^<\|.*\|>$/.test(text)) return h("em", {}, "end of the text");
	if (text.includes("\ufffd")) return h("em", {}, "part of a character");
	return clip(visible(text), 40);
}

/** The end of a text matters beside what follows it, else its begin. */
function clip(text, most, end = false) {
	if (text.length <= most) return text;
	return end ? `…${text.slice(1 - most)}` : `${text.slice(0, most - 1)}…`;
}
