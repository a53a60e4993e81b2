// The page as a picture: fit, zoom by wheel, pinch and keys, drag, rotation.

import { $, setText } from "./dom.js";

const MIN_SCALE = 0.05;
const MAX_SCALE = 8;
const MARGIN = 16;
const PAN_STEP = 60;

export class Viewer {
	#frame = $("viewer");
	#image = $("page-image");
	#scale = 1;
	#x = 0;
	#y = 0;
	#fit = true;
	#page = null;
	#pointers = new Map();

	/** `changed` is called when a page turns out not to be viewable, or has been loaded. */
	constructor(changed) {
		this.changed = changed;
		this.#image.addEventListener("load", () => {
			this.#frame.classList.add("loaded");
			this.fit();
			this.changed();
		});
		this.#image.addEventListener("error", () => {
			if (this.#page && this.#image.getAttribute("src") === this.#page.url) {
				this.#page.viewable = false;
				this.changed();
			}
		});
		this.#frame.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
		this.#frame.addEventListener("keydown", (event) => this.#key(event));
		this.#frame.addEventListener("dblclick", (event) => {
			if (this.#fit) this.#zoomAt(1 / this.#scale, event);
			else this.fit();
		});
		this.#frame.addEventListener("pointerdown", (event) => this.#down(event));
		this.#frame.addEventListener("pointermove", (event) => this.#move(event));
		for (const end of ["pointerup", "pointercancel"]) {
			this.#frame.addEventListener(end, (event) => this.#pointers.delete(event.pointerId));
		}
		new ResizeObserver(() => (this.#fit ? this.fit() : this.#place())).observe(this.#frame);
		$("zoom-in").addEventListener("click", () => this.#zoomAt(1.25));
		$("zoom-out").addEventListener("click", () => this.#zoomAt(0.8));
		$("zoom-fit").addEventListener("click", () => this.fit());
		$("zoom-full").addEventListener("click", () => this.#zoomAt(1 / this.#scale));
	}

	/** Shows a page, or nothing. */
	show(page) {
		if (page === this.#page) return;
		this.#page = page;
		this.#frame.classList.remove("loaded");
		if (page && page.viewable) this.#image.src = page.url;
		else this.#image.removeAttribute("src");
		this.#image.alt = page ? `Page ${page.name}` : "";
	}

	/** Scales the page so that all of it is visible. */
	fit() {
		const { width, height } = this.#size();
		if (width === 0 || this.#frame.clientWidth === 0) return;
		const [roomX, roomY] = [this.#frame.clientWidth - 2 * MARGIN, this.#frame.clientHeight - 2 * MARGIN];
		this.#scale = Math.max(MIN_SCALE, Math.min(roomX / width, roomY / height, 4));
		this.#fit = true;
		this.#place();
	}

	/** Shows the page with its current rotation. */
	rotated() {
		if (this.#fit) this.fit();
		else this.#place();
	}

	/** Width and height after rotation. */
	#size() {
		const [width, height] = [this.#image.naturalWidth, this.#image.naturalHeight];
		return (this.#page?.rotation ?? 0) % 180 === 0 ? { width, height } : { width: height, height: width };
	}

	#place() {
		const { width, height } = this.#size();
		const { clientWidth, clientHeight } = this.#frame;
		this.#x = bounded(this.#x, width * this.#scale, clientWidth);
		this.#y = bounded(this.#y, height * this.#scale, clientHeight);
		const rotation = this.#page?.rotation ?? 0;
		// The rotation turns the image about its upper left corner: moved back into view.
		const [backX, backY] = { 0: [0, 0], 90: [width, 0], 180: [width, height], 270: [0, height] }[rotation];
		this.#image.style.transform = `translate(${this.#x}px, ${this.#y}px) scale(${this.#scale}) translate(${backX}px, ${backY}px) rotate(${rotation}deg)`;
		this.#frame.classList.toggle("zoomed", !this.#fit);
		setText($("zoom"), `${Math.round(this.#scale * 100)} %`);
		$("zoom-fit").setAttribute("aria-pressed", String(this.#fit));
	}

	/** Zooms about a point of the frame; about its centre without one. */
	#zoomAt(factor, event) {
		const box = this.#frame.getBoundingClientRect();
		const [x, y] = event ? [event.clientX - box.left, event.clientY - box.top] : [box.width / 2, box.height / 2];
		const scale = Math.min(MAX_SCALE, Math.max(MIN_SCALE, this.#scale * factor));
		this.#x = x - ((x - this.#x) * scale) / this.#scale;
		this.#y = y - ((y - this.#y) * scale) / this.#scale;
		this.#scale = scale;
		this.#fit = false;
		this.#place();
	}

	#wheel(event) {
		if (!this.#page?.viewable) return;
		event.preventDefault();
		// A wheel reports lines or pixels; a pinch on a touchpad is a wheel with Ctrl and small steps.
		const step = event.deltaMode === 1 ? event.deltaY * 18 : event.deltaY;
		this.#zoomAt(Math.exp(-step * (event.ctrlKey ? 0.01 : 0.0015)), event);
	}

	#key(event) {
		if (event.ctrlKey || event.metaKey || event.altKey) return;
		const pan = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
		if (pan) {
			this.#x += pan[0] * PAN_STEP;
			this.#y += pan[1] * PAN_STEP;
			this.#place();
		} else if (event.key === "+" || event.key === "=") this.#zoomAt(1.25);
		else if (event.key === "-") this.#zoomAt(0.8);
		else if (event.key === "0") this.fit();
		else if (event.key === "1") this.#zoomAt(1 / this.#scale);
		else return;
		event.preventDefault();
	}

	#down(event) {
		if (event.button !== 0 || !this.#page?.viewable) return;
		this.#frame.setPointerCapture(event.pointerId);
		this.#pointers.set(event.pointerId, { clientX: event.clientX, clientY: event.clientY });
	}

	#move(event) {
		const before = this.#pointers.get(event.pointerId);
		if (!before) return;
		const now = { clientX: event.clientX, clientY: event.clientY };
		const other = [...this.#pointers].find(([id]) => id !== event.pointerId)?.[1];
		this.#pointers.set(event.pointerId, now);
		if (other) {
			const [old, distance] = [apart(before, other), apart(now, other)];
			if (old > 0) this.#zoomAt(distance / old, middle(now, other));
			return;
		}
		// A page that fits has nowhere to go; on a touch screen the finger scrolls the document.
		if (this.#fit) return;
		this.#x += now.clientX - before.clientX;
		this.#y += now.clientY - before.clientY;
		this.#place();
	}
}

/** Centres what is smaller than its frame, and leaves no gap beside what is larger. */
function bounded(offset, size, frame) {
	if (size + 2 * MARGIN <= frame) return (frame - size) / 2;
	return Math.min(MARGIN, Math.max(frame - size - MARGIN, offset));
}

const apart = (a, b) => Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
const middle = (a, b) => ({ clientX: (a.clientX + b.clientX) / 2, clientY: (a.clientY + b.clientY) / 2 });
