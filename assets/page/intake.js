// How pages come in: picked, pasted, dropped anywhere, or the sample.

import { $, setText } from "./dom.js";

/** `add` gets the files, in their order. */
export function takeFiles(add) {
	const input = $("files");
	for (const id of ["choose", "add"]) $(id).addEventListener("click", () => input.click());
	input.addEventListener("change", () => {
		add([...input.files]);
		// The same file can be picked again.
		input.value = "";
	});
	document.addEventListener("paste", (event) => {
		const files = [...(event.clipboardData?.files ?? [])];
		if (files.length === 0) return;
		event.preventDefault();
		add(files);
	});
	takeDrops(add);
	$("sample").addEventListener("click", () => readSample(add));
}

function takeDrops(add) {
	// Enter and leave are told for every element on the way: the pointer is outside when all were left.
	let depth = 0;
	const on = (name, act) =>
		document.addEventListener(name, (event) => {
			if (!event.dataTransfer?.types.includes("Files")) return;
			// Otherwise the browser would open the file in place of this page.
			event.preventDefault();
			act(event);
			$("drop").hidden = depth === 0;
		});
	on("dragenter", () => {
		depth += 1;
	});
	on("dragleave", () => {
		depth = Math.max(0, depth - 1);
	});
	on("dragover", () => {});
	on("drop", (event) => {
		depth = 0;
		add([...event.dataTransfer.files]);
	});
}

async function readSample(add) {
	setText($("sample-error"), "");
	try {
		const response = await fetch(new URL("sample.png", document.baseURI));
		if (!response.ok) throw new Error(response.statusText);
		add([new File([await response.blob()], "sample.png", { type: "image/png" })]);
	} catch {
		setText($("sample-error"), "The sample page could not be loaded.");
	}
}
