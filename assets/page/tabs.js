// Tabs, by the pattern of the ARIA Authoring Practices: arrows move and select, Home and End go to the ends.

import { $ } from "./dom.js";

/** `chosen` gets the id of the tab. */
export function tabs(chosen) {
	const all = [...document.querySelectorAll('[role="tab"]')];
	const select = (tab, focus) => {
		for (const other of all) {
			const selected = other === tab;
			other.setAttribute("aria-selected", String(selected));
			other.tabIndex = selected ? 0 : -1;
		}
		const panel = $(tab.getAttribute("aria-controls"));
		for (const other of document.querySelectorAll('[role="tabpanel"]')) other.hidden = other !== panel;
		// Two tabs share the panel of the reader.
		panel.setAttribute("aria-labelledby", tab.id);
		if (focus) tab.focus();
		chosen(tab.id);
	};
	for (const [index, tab] of all.entries()) {
		tab.addEventListener("click", () => select(tab, false));
		tab.addEventListener("keydown", (event) => {
			const to = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: all.length - 1 }[event.key];
			if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
			event.preventDefault();
			select(all[(to + all.length) % all.length], true);
		});
	}
}
