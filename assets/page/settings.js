// The prompt and the settings of a request. They are kept in the page's memory only.

import { $, h, setText } from "./dom.js";
import { characters, integer } from "./format.js";
import { PROMPTS } from "./prompts.js";
import { adapterOf, modelLabel } from "./status.js";

export const MAX_PROMPT = 8192;
const MAX_REMEMBERED = 20;

/** A number in a field: null if blank, an error message if out of range. */
function numberOf(id, { least, most, whole }) {
	const text = $(id).value.trim();
	if (text === "" && !$(id).validity.badInput) return { value: null };
	const value = Number(text);
	const wrong = text === "" || !Number.isFinite(value) || value < least || value > most || (whole && !Number.isInteger(value));
	if (!wrong) return { value: text };
	const kind = whole ? "A whole number" : "A number";
	return { error: most === Infinity ? `${kind} from ${integer(least)}.` : `${kind} from ${integer(least)} to ${integer(most)}.` };
}

export class Settings {
	#used = [];
	#mostPixels = Infinity;
	/** `{field, reason}`: what the API said of a field. */
	#refused = null;

	constructor(changed) {
		this.changed = changed;
		const button = $("settings-button");
		button.addEventListener("click", () => {
			this.#open($("settings").hidden);
			if (!$("settings").hidden) $("settings").querySelector("input, select").focus();
		});
		$("settings").addEventListener("input", () => this.refuse(null));
		$("settings").addEventListener("submit", (event) => event.preventDefault());
		$("settings-reset").addEventListener("click", () => {
			$("settings").reset();
			this.refuse(null);
		});
		$("prompt").addEventListener("input", () => this.#check());
		$("prompts").addEventListener("change", () => {
			// The focus stays: an arrow key chooses each prompt on its way.
			if ($("prompts").value !== "") $("prompt").value = [...PROMPTS, ...this.#used][Number($("prompts").value)];
			this.#check();
		});
		// The same one can be chosen again.
		$("prompts").addEventListener("blur", () => ($("prompts").selectedIndex = 0));
		this.#fillPrompts();
		this.#check();
	}

	#open(open) {
		$("settings-button").setAttribute("aria-expanded", String(open));
		$("settings").hidden = !open;
	}

	/** Shows at its field what the API said of it, until settings are changed. `reading`: the one that failed, or null. */
	refuse(reading) {
		const { status, message } = reading?.error ?? {};
		const [, field, reason] = (status === 422 && /^(\w+): (.+)/s.exec(message)) || [];
		// The field may have been changed since it was sent.
		const isShown = reading?.request.fields.some(([name, value]) => name === field && $(`${name}-error`) && value === $(name).value.trim());
		this.#refused = isShown ? { field, reason } : null;
		if (isShown) this.#open(true);
		this.#check();
	}

	#fillPrompts() {
		const option = (prompt, index) => h("option", { value: String(index) }, prompt.length > 90 ? `${prompt.slice(0, 89)}…` : prompt);
		const groups = [h("optgroup", { label: "Ready" }, ...PROMPTS.map(option))];
		if (this.#used.length > 0) {
			groups.push(h("optgroup", { label: "Used on this page" }, ...this.#used.map((prompt, index) => option(prompt, PROMPTS.length + index))));
		}
		$("prompts").replaceChildren(h("option", { value: "" }, "Choose a prompt…"), ...groups);
	}

	/** Remembers a prompt until the page is closed. */
	remember(prompt) {
		if (prompt.trim() === "" || PROMPTS.includes(prompt)) return;
		this.#used = [prompt, ...this.#used.filter((other) => other !== prompt)].slice(0, MAX_REMEMBERED);
		this.#fillPrompts();
	}

	/** Whether single letters are shortcuts. */
	get shortcuts() {
		return $("shortcuts").checked;
	}

	/** Fields of a request. `adapter` overrides the chosen one. */
	fields(task, adapter = $("adapter").value) {
		const fields = [];
		if (task === "analyze" && $("prompt").value.trim() !== "") fields.push(["prompt", $("prompt").value]);
		if (adapter && adapter !== "default") fields.push(["adapter", adapter]);
		for (const [field, { value }] of Object.entries(this.#values())) if (value) fields.push([field, value]);
		return fields;
	}

	#values() {
		// The API alone knows the smallest size that it accepts, which is below a model's own minimum.
		const pixels = { least: 1, most: this.#mostPixels, whole: true };
		const seed = $("seed").value.trim();
		const values = {
			temperature: numberOf("temperature", { least: 0, most: 2 }),
			// Up to 64 bits: more than a JavaScript number holds.
			seed: /^\d{0,19}$/.test(seed) ? { value: seed || null } : { error: "A whole number of up to 19 digits." },
			max_new_tokens: numberOf("max_new_tokens", { least: 1, most: Infinity, whole: true }),
			min_pixels: numberOf("min_pixels", pixels),
			max_pixels: numberOf("max_pixels", pixels),
		};
		const [least, most] = [values.min_pixels.value, values.max_pixels.value];
		if (least && most && Number(least) > Number(most)) values.max_pixels = { error: "Below the least pixels." };
		return values;
	}

	/** Whether a request of this task can be sent. */
	valid(task) {
		const fit = task !== "analyze" || characters($("prompt").value) <= MAX_PROMPT;
		return fit && Object.values(this.#values()).every((value) => !value.error);
	}

	#check() {
		const length = characters($("prompt").value);
		setText($("prompt-count"), `${integer(length)} / ${integer(MAX_PROMPT)}`);
		$("prompt-count").classList.toggle("over", length > MAX_PROMPT);
		if (length > MAX_PROMPT) $("prompt").setAttribute("aria-invalid", "true");
		else $("prompt").removeAttribute("aria-invalid");
		let set = $("adapter").value && $("adapter").value !== "default" ? 1 : 0;
		for (const [field, { value, error }] of Object.entries(this.#values())) {
			if (value) set += 1;
			const wrong = error ?? (this.#refused?.field === field ? this.#refused.reason : "");
			setText($(`${field}-error`), wrong);
			if (wrong) $(field).setAttribute("aria-invalid", "true");
			else $(field).removeAttribute("aria-invalid");
		}
		setText($("settings-count"), set === 0 ? "" : String(set));
		$("settings-button").setAttribute("aria-label", set === 0 ? "Settings" : `Settings, ${set} changed`);
		this.changed();
	}

	/** Offers these models, keeping what is chosen. */
	offer(list) {
		// The base first: what an adapter changes is read from left to right.
		const models = list.toSorted((a, b) => Boolean(a.medvision.lora_adapter) - Boolean(b.medvision.lora_adapter));
		const standard = models.find((model) => model.medvision.default);
		fill("adapter", [
			["default", standard ? `default (${modelLabel(standard)})` : "default"],
			...models.map((model) => [adapterOf(model), modelLabel(model)]),
		]);
		const pairs = models.map((model) => [adapterOf(model), modelLabel(model)]);
		fill("compare-a", pairs, 0);
		fill("compare-b", pairs, 1);
		const pixels = models.map((model) => model.medvision).filter((info) => info.max_pixels > 0);
		if (pixels.length > 0) {
			this.#mostPixels = Math.max(...pixels.map((info) => info.max_pixels));
			const usual = standard?.medvision ?? pixels[0];
			$("min_pixels").placeholder = integer(usual.min_pixels ?? 1);
			$("max_pixels").placeholder = integer(usual.max_pixels ?? 1);
		}
		this.#check();
	}
}

function fill(id, pairs, initial = 0) {
	const select = $(id);
	const chosen = select.value;
	select.replaceChildren(...pairs.map(([value, label]) => h("option", { value }, label)));
	if (pairs.some(([value]) => value === chosen)) select.value = chosen;
	else select.selectedIndex = Math.min(initial, pairs.length - 1);
}
