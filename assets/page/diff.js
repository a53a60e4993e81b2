// Differences of two texts by word: Myers' O(ND) algorithm, bounded so that no text can keep the page busy.

const MAX_EDITS = 1000;
const MAX_LINE_EDITS = 3000;
const MAX_STEPS = 20_000_000;

/** Words with the spaces after them, and every line break on its own. */
export function splitWords(text) {
	const words = text.match(/\n|[^\S\n]*[^\s]+[^\S\n]*|[^\S\n]+/g) ?? [];
	return words.map((whole) => ({ whole, key: whole === "\n" ? "\n" : whole.trim() }));
}

function splitLines(text) {
	return (text.match(/[^\n]*\n|[^\n]+/g) ?? []).map((whole) => ({ whole, key: whole.trim() }));
}

/**
 * Edits that turn `a` into `b`: `[{type: "same" | "removed" | "added", a, b}]`, in order, with the text of each side.
 * Two texts with more than a thousand differences are compared line by line first; lines that differ too much are replaced whole.
 */
export function diffWords(a, b) {
	const edits = diff(splitWords(a), splitWords(b));
	if (edits) return edits;
	const lines = diff(splitLines(a), splitLines(b), MAX_LINE_EDITS);
	if (!lines) return replaced(a, b);
	const result = [];
	for (let at = 0; at < lines.length; ) {
		if (lines[at].type === "same") {
			result.push(...lineWords(lines[at++]));
			continue;
		}
		let [before, after] = ["", ""];
		for (; at < lines.length && lines[at].type !== "same"; at += 1) {
			before += lines[at].a;
			after += lines[at].b;
		}
		result.push(...(diff(splitWords(before), splitWords(after), 200) ?? replaced(before, after)));
	}
	return result;
}

function lineWords(line) {
	const breaks = line.a.endsWith("\n") && line.b.endsWith("\n");
	if (!breaks) return [line];
	return [
		{ type: "same", a: line.a.slice(0, -1), b: line.b.slice(0, -1) },
		{ type: "same", a: "\n", b: "\n" },
	];
}

function replaced(a, b) {
	const edits = [];
	if (a !== "") edits.push({ type: "removed", a, b: "" });
	if (b !== "") edits.push({ type: "added", a: "", b });
	return edits;
}

/** Null where there are too many differences. */
function diff(a, b, most = MAX_EDITS) {
	let start = 0;
	while (start < a.length && start < b.length && a[start].key === b[start].key) start += 1;
	let end = 0;
	const shorter = Math.min(a.length, b.length) - start;
	while (end < shorter && a[a.length - 1 - end].key === b[b.length - 1 - end].key) end += 1;
	const middle = myers(a.slice(start, a.length - end), b.slice(start, b.length - end), most);
	if (!middle) return null;
	const same = (x, y) => ({ type: "same", a: x.whole, b: y.whole });
	return [
		...a.slice(0, start).map((word, index) => same(word, b[index])),
		...middle,
		...a.slice(a.length - end).map((word, index) => same(word, b[b.length - end + index])),
	];
}

function myers(a, b, most) {
	const total = a.length + b.length;
	const bound = Math.min(most, total, Math.max(16, Math.floor(MAX_STEPS / Math.max(1, total))));
	const offset = bound + 1;
	const reach = new Int32Array(2 * bound + 3);
	const trace = [];
	for (let edits = 0; edits <= bound; edits += 1) {
		// Only diagonals -edits to edits are read when the path is walked back.
		trace.push(reach.slice(offset - edits - 1, offset + edits + 2));
		for (let k = -edits; k <= edits; k += 2) {
			const down = k === -edits || (k !== edits && reach[offset + k - 1] < reach[offset + k + 1]);
			let x = down ? reach[offset + k + 1] : reach[offset + k - 1] + 1;
			let y = x - k;
			while (x < a.length && y < b.length && a[x].key === b[y].key) {
				x += 1;
				y += 1;
			}
			reach[offset + k] = x;
			if (x >= a.length && y >= b.length) return path(a, b, trace, edits);
		}
	}
	return null;
}

function path(a, b, trace, edits) {
	const result = [];
	let x = a.length;
	let y = b.length;
	for (let step = edits; step > 0; step -= 1) {
		const reach = trace[step];
		const at = (k) => reach[k + step + 1];
		const k = x - y;
		const down = k === -step || (k !== step && at(k - 1) < at(k + 1));
		const previous = down ? k + 1 : k - 1;
		// The snake after this edit began here.
		const begin = down ? at(previous) : at(previous) + 1;
		while (x > begin) result.push({ type: "same", a: a[--x].whole, b: b[--y].whole });
		if (down) result.push({ type: "added", a: "", b: b[--y].whole });
		else result.push({ type: "removed", a: a[--x].whole, b: "" });
	}
	while (x > 0) result.push({ type: "same", a: a[--x].whole, b: b[--y].whole });
	return result.reverse();
}

/** Rows of a table with both texts side by side: a row ends where both have a line break. Parts that touch are joined. */
export function rows(edits) {
	const result = [];
	let row = { a: [], b: [] };
	const add = (parts, text, changed) => {
		if (text === "") return;
		const last = parts.at(-1);
		if (last && last.changed === changed) last.text += text;
		else parts.push({ text, changed });
	};
	for (const edit of edits) {
		if (edit.type === "same" && edit.a === "\n") {
			result.push(row);
			row = { a: [], b: [] };
			continue;
		}
		add(row.a, edit.a, edit.type === "removed");
		add(row.b, edit.b, edit.type === "added");
	}
	if (row.a.length > 0 || row.b.length > 0) result.push(row);
	return result;
}
