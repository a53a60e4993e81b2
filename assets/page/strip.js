// The strip of pages with the state of each.

import { $, h, setText } from "./dom.js";
import { count, integer } from "./format.js";

/** What a page's state is called, with a kind for its colour. */
export function stateOf(page, task) {
	if (page.refusal) return { text: "failed", kind: "failed" };
	const reading = page.readings[task];
	if (!reading) return { text: "not read", kind: "new" };
	if (reading.state !== "read") return { text: reading.state, kind: reading.state };
	const unsure = reading.unsure.length;
	return unsure > 0 ? { text: `${integer(unsure)} to check`, kind: "check" } : { text: "read", kind: "read" };
}

export class Strip {
	#items = new Map();

	/** `choose` and `remove` get the page. */
	constructor(choose, remove) {
		this.choose = choose;
		this.remove = remove;
	}

	render(pages, current, task) {
		$("strip").hidden = pages.length < 2;
		for (const [page, item] of this.#items) {
			if (pages.includes(page)) continue;
			item.root.remove();
			this.#items.delete(page);
		}
		for (const page of pages) {
			const item = this.#items.get(page) ?? this.#add(page);
			const { text, kind } = stateOf(page, task);
			setText(item.state, text);
			item.root.dataset.kind = kind;
			if (page === current) item.button.setAttribute("aria-current", "true");
			else item.button.removeAttribute("aria-current");
		}
	}

	#add(page) {
		const state = h("span", { class: "thumb-state" });
		const button = h(
			"button",
			{ type: "button", class: "thumb", title: page.name, click: () => this.choose(page) },
			page.thumbnail,
			h("span", { class: "thumb-name" }, page.name),
			state,
		);
		page.thumbnail.setAttribute("aria-hidden", "true");
		const remove = h(
			"button",
			{ type: "button", class: "thumb-remove", "aria-label": `Remove ${page.name}`, click: () => this.remove(page) },
			"×",
		);
		const root = h("li", {}, button, remove);
		$("pages").append(root);
		const item = { root, button, state };
		this.#items.set(page, item);
		return item;
	}
}

/** "4 of 5 read, 1 failed, 9 places to check". */
export function summary(readings, refused) {
	const number = (state) => readings.filter((reading) => reading.state === state).length;
	const parts = [`${number("read")} of ${readings.length + refused} read`];
	if (number("failed") + refused > 0) parts.push(`${number("failed") + refused} failed`);
	if (number("stopped") > 0) parts.push(`${number("stopped")} stopped`);
	const unsure = readings.reduce((sum, reading) => sum + (reading.state === "read" ? reading.unsure.length : 0), 0);
	parts.push(unsure === 0 ? "nothing to check" : `${count(unsure, "place")} to check`);
	return parts.join(", ");
}
