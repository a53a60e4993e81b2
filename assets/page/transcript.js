// The text of a reading as it is generated, with its places to check.

import { $, h } from "./dom.js";
import { VERY_UNSURE, isUnsure } from "./words.js";

/** Shows one reading at a time. */
export class Transcript {
	#box = $("transcript");
	#reading = null;
	#shown = 0;
	#words = null;
	#tail = document.createTextNode("");
	#frame = 0;
	#follows = true;
	#popover;
	/** Elements of the places to check, in order, each with its word. */
	places = [];

	/** `changed` is called when the places changed. */
	constructor(popover, changed) {
		this.#popover = popover;
		this.changed = changed;
		this.listener = (what) => this.#heard(what);
		const box = this.#box;
		box.addEventListener("pointerover", (event) => this.#over(event));
		box.addEventListener("pointerout", (event) => event.target.closest?.(".doubt") && popover.closeSoon());
		box.addEventListener("focusin", (event) => this.#focus(event.target));
		box.addEventListener("focusout", () => popover.closeSoon());
		box.addEventListener("click", (event) => this.#click(event));
		box.addEventListener("scroll", () => {
			this.#follows = box.scrollTop + box.clientHeight >= box.scrollHeight - 24;
		});
	}

	/** Shows a reading, or nothing. */
	show(reading) {
		if (reading === this.#reading) return;
		this.#reading?.listeners.delete(this.listener);
		this.#reading = reading;
		reading?.listeners.add(this.listener);
		this.#follows = true;
		this.#clear();
		if (reading) this.#update();
		this.#box.scrollTop = 0;
	}

	#clear() {
		this.#popover.close();
		this.#shown = 0;
		this.#words = this.#reading?.words ?? null;
		this.places = [];
		this.#tail = document.createTextNode("");
		this.#box.replaceChildren(this.#tail);
		this.changed();
	}

	#heard(what) {
		if (what === "progress") return;
		if (what === "state") {
			cancelAnimationFrame(this.#frame);
			this.#frame = 0;
			this.#update();
			return;
		}
		// Hidden pages get no frames: a timer would do the same work unseen.
		if (this.#frame === 0) {
			this.#frame = requestAnimationFrame(() => {
				this.#frame = 0;
				this.#update();
			});
		}
	}

	/** Appends what is new. Rebuilds all only where the final text differs from what was streamed. */
	#update() {
		const reading = this.#reading;
		if (!reading) return;
		if (this.#words !== reading.words) this.#clear();
		const words = this.#words;
		const before = this.places.length;
		const added = document.createDocumentFragment();
		let plain = "";
		for (; this.#shown < words.closed.length; this.#shown += 1) {
			const word = words.closed[this.#shown];
			plain += word.space;
			if (!isUnsure(word)) {
				plain += word.text;
				continue;
			}
			if (plain !== "") added.append(plain);
			plain = "";
			added.append(this.#place(word));
		}
		if (plain !== "") added.append(plain);
		this.#box.insertBefore(added, this.#tail);
		if (this.#tail.data !== words.tail) this.#tail.data = words.tail;
		this.#box.setAttribute("aria-busy", String(reading.state === "reading"));
		this.#box.classList.toggle("live", reading.state === "reading");
		if (this.#follows && reading.state === "reading") this.#box.scrollTop = this.#box.scrollHeight;
		if (this.places.length !== before) this.changed();
	}

	#place(word) {
		const element = h(
			"span",
			{
				class: word.probability < VERY_UNSURE ? "doubt very" : "doubt",
				role: "button",
				// One stop for the Tab key; n and p, or the buttons, go on from there.
				tabindex: this.places.length === 0 ? "0" : "-1",
			},
			word.text,
		);
		this.places.push({ element, word });
		return element;
	}

	#placeOf(target) {
		const element = target.closest?.(".doubt");
		return element ? this.places.find((place) => place.element === element) : undefined;
	}

	#over(event) {
		const place = event.pointerType === "touch" ? undefined : this.#placeOf(event.target);
		if (place) this.#popover.open(place.word, place.element);
	}

	#focus(target) {
		const place = this.#placeOf(target);
		if (!place) return;
		for (const other of this.places) other.element.tabIndex = other === place ? 0 : -1;
		this.#popover.open(place.word, place.element);
		this.changed(this.places.indexOf(place));
	}

	/** A tap on any word shows its alternatives, also where the model was sure. */
	#click(event) {
		const place = this.#placeOf(event.target);
		if (place) {
			place.element.focus();
			this.#popover.open(place.word, place.element);
			return;
		}
		if (getSelection()?.isCollapsed === false) return;
		const found = this.#wordAt(event.clientX, event.clientY);
		if (found && found.word.parts.length > 0) this.#popover.open(found.word, found.range);
		else this.#popover.close();
	}

	#wordAt(x, y) {
		const position = document.caretPositionFromPoint?.(x, y);
		const node = position?.offsetNode;
		if (!node || node.nodeType !== Node.TEXT_NODE || node.parentNode !== this.#box) return null;
		const range = document.createRange();
		range.setStart(this.#box, 0);
		range.setEnd(node, position.offset);
		const offset = range.toString().length;
		let start = 0;
		for (const word of this.#words.closed) {
			const begin = start + word.space.length;
			start = begin + word.text.length;
			if (offset > start) continue;
			if (offset < begin) return null;
			const from = position.offset - (offset - begin);
			range.setStart(node, Math.max(0, from));
			range.setEnd(node, Math.min(node.length, from + word.text.length));
			const box = range.getBoundingClientRect();
			const inside = x >= box.left - 2 && x <= box.right + 2 && y >= box.top - 2 && y <= box.bottom + 2;
			return inside ? { word, range } : null;
		}
		return null;
	}

	/** Moves the focus to a place. */
	go(index) {
		const place = this.places[index];
		if (!place) return;
		place.element.focus({ preventScroll: true });
		place.element.scrollIntoView({ block: "nearest" });
	}
}
