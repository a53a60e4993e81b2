// Starts the page.

import { $ } from "./dom.js";
import { onKeyNeeded, takeKey } from "./api.js";
import { keyDialog } from "./dialogs.js";
import { Benchmarks } from "./benchmarks.js";
import { Reader } from "./reader.js";
import { Status } from "./status.js";
import { tabs } from "./tabs.js";

// Before the first request, and before anything else can fail.
takeKey();
onKeyNeeded(keyDialog);

let reader = null;
const status = new Status(() => reader?.render());
reader = new Reader(status);
const benchmarks = new Benchmarks();

tabs((id) => {
	if (id === "tab-benchmarks") benchmarks.show();
	else reader.setTask(id === "tab-analyze" ? "analyze" : "extract");
});

const dark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
const showTheme = () => $("theme").setAttribute("aria-pressed", String(isDark()));
$("theme").addEventListener("click", () => {
	document.documentElement.dataset.theme = isDark() ? "light" : "dark";
	showTheme();
	try {
		localStorage.setItem("theme", document.documentElement.dataset.theme);
	} catch {
		// Storage is disabled: the theme lasts until the page is closed.
	}
});
dark.addEventListener("change", showTheme);
showTheme();

addEventListener("hashchange", () => {
	if (!takeKey()) return;
	if ($("key-dialog").open) $("key-dialog").close();
	status.tryKey();
});

// The first question may ask for a key; later ones wait until the user does something.
status.poll(true);
