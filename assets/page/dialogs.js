// The two dialogs: the key, and the request as a command.

import { $, copyText, h, setText } from "./dom.js";
import { isKey } from "./api.js";
import { asCurl, asPython } from "./snippets.js";

/** Asks for the API's key; null if declined. `reason`: why the last one was refused, or null. */
export function keyDialog(reason) {
	const dialog = $("key-dialog");
	setText($("key-error"), reason ?? "");
	$("key").value = "";
	dialog.returnValue = "";
	dialog.showModal();
	return new Promise((resolve) => {
		const form = $("key-form");
		const submit = (event) => {
			event.preventDefault();
			if (isKey($("key").value.trim())) dialog.close("key");
			else setText($("key-error"), "A key consists of letters, digits and signs, without spaces.");
		};
		form.addEventListener("submit", submit);
		dialog.addEventListener(
			"close",
			() => {
				form.removeEventListener("submit", submit);
				const key = dialog.returnValue === "key" ? $("key").value.trim() : null;
				$("key").value = "";
				resolve(key);
			},
			{ once: true },
		);
	});
}

/** Shows a request as a command or a program. */
export function requestDialog(request) {
	const show = (make, button) => {
		for (const other of [$("as-curl"), $("as-python")]) other.setAttribute("aria-pressed", String(other === button));
		setText($("request-text"), make(request));
		setText($("request-copied"), "");
	};
	$("as-curl").onclick = () => show(asCurl, $("as-curl"));
	$("as-python").onclick = () => show(asPython, $("as-python"));
	$("request-copy").onclick = async () => {
		const copied = await copyText($("request-text").textContent);
		setText($("request-copied"), copied ? "Copied" : "Select the text and copy it");
	};
	$("request-note").replaceChildren(
		request.withKey ? "The key is not shown: put it into the environment variable " : "",
		request.withKey ? h("code", {}, "MVP_API_KEY") : "",
		request.withKey ? "." : "",
	);
	show(asCurl, $("as-curl"));
	$("request-dialog").showModal();
}

for (const button of document.querySelectorAll("dialog [data-close]")) {
	button.addEventListener("click", () => button.closest("dialog").close());
}
