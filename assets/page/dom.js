// Elements, made so that text from outside can only become text nodes.

const SVG = "http://www.w3.org/2000/svg";

/** The element with this id. */
export const $ = (id) => document.getElementById(id);

function make(element, attributes, children) {
	for (const [name, value] of Object.entries(attributes ?? {})) {
		if (value === null || value === undefined || value === false) continue;
		if (typeof value === "function") element.addEventListener(name, value);
		else element.setAttribute(name, value === true ? "" : value);
	}
	element.append(...children.filter((child) => child !== null && child !== undefined));
	return element;
}

/** An HTML element. A function among the attributes listens to the event of that name; strings among the children become text nodes. */
export const h = (tag, attributes, ...children) => make(document.createElement(tag), attributes, children);

/** An SVG element, as `h`. */
export const svg = (tag, attributes, ...children) => make(document.createElementNS(SVG, tag), attributes, children);

/** Sets the text of an element, if it differs: an unchanged text costs no layout. */
export function setText(element, text) {
	if (element.textContent !== text) element.textContent = text;
}

/** Whether keys pressed there are text. */
export function isEditable(target) {
	return target instanceof Element && target.closest("input, textarea, select, [contenteditable]") !== null;
}

/** Copies text; also where the page is not a secure context and `navigator.clipboard` is missing. */
export async function copyText(text) {
	if (navigator.clipboard) {
		try {
			await navigator.clipboard.writeText(text);
			return true;
		} catch {
			// Refused: the older way may still work.
		}
	}
	const area = h("textarea", { class: "visually-hidden", readonly: true, autocomplete: "off" });
	area.value = text;
	const before = document.activeElement;
	// Inside an open dialog, which makes everything outside of it inert.
	(document.querySelector("dialog[open]") ?? document.body).append(area);
	area.select();
	const copied = document.execCommand("copy");
	area.remove();
	before?.focus?.();
	return copied;
}

/** Offers text as a file. */
export function download(name, text, type) {
	const url = URL.createObjectURL(new Blob([text], { type }));
	const link = h("a", { href: url, download: name });
	link.click();
	setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Says something to screen readers, through the only live region of the page. */
export function announce(text) {
	const region = $("live");
	// The same sentence twice is two events.
	region.textContent = region.textContent === text ? `${text}\u00a0` : text;
}
