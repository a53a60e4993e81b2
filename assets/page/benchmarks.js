// The tab Benchmarks: what each step of the pipeline costs and gains.

import { $, announce, download, h } from "./dom.js";
import { getJson } from "./api.js";
import { barChart } from "./charts.js";
import { count, decimal, memory, seconds } from "./format.js";
import { RECORDS, compile } from "./records.js";

const MAX_SHOWN_CHARACTERS = 200_000;

const accuracyText = (value) => (value === null ? "n/a" : `${decimal(value, 1)} %`);
const orNone = (format) => (value) => (value === null ? "n/a" : format(value));

/** Rows of the table. */
const ROWS = [
	["Model", (figures) => figures.model || "n/a"],
	["Precision", (figures) => figures.precision || "n/a"],
	["Memory, loaded", (figures) => orNone(memory)(figures.memory), true],
	["Memory, peak", (figures) => orNone(memory)(figures.peak), true],
	["Time to load", (figures) => orNone(seconds)(figures.load), true],
	["Latency of a page, mean", (figures) => orNone(seconds)(figures.latency), true],
	["Latency, fastest", (figures) => orNone(seconds)(figures.fastest), true],
	["Latency, slowest", (figures) => orNone(seconds)(figures.slowest), true],
	["Time to the first token", (figures) => orNone(seconds)(figures.firstToken), true],
	["Tokens per second", (figures) => orNone((value) => decimal(value, 1))(figures.speed), true],
	["Terms found", (figures) => accuracyText(figures.terms), true],
	["Values found", (figures) => accuracyText(figures.values), true],
	["Both", (figures) => accuracyText(figures.accuracy), true],
];

export class Benchmarks {
	#loading = false;

	constructor() {
		$("benchmarks-reload").addEventListener("click", () => this.#load());
	}

	/** Called when the tab is chosen. */
	show() {
		this.#load();
	}

	async #load() {
		if (this.#loading) return;
		this.#loading = true;
		$("benchmarks-reload").disabled = true;
		try {
			this.#fill(await getJson("benchmark"));
		} catch (error) {
			$("benchmarks-body").replaceChildren(h("p", { class: "notice error" }, error.message));
			announce(error.message);
		} finally {
			this.#loading = false;
			$("benchmarks-reload").disabled = false;
		}
	}

	#fill(answer) {
		const records = answer.benchmarks ?? {};
		const { models, evaluation, missing, notes } = compile(records);
		const measured = models.some((model) => model.figures !== null);
		$("benchmarks-body").replaceChildren(
			...(measured || evaluation.length > 0
				? [
						charts(models, evaluation),
						...notes.map((note) => h("p", { class: "note" }, note)),
						table(models),
						...(evaluation.length > 0 ? [evaluationTable(evaluation)] : []),
					]
				: []),
			...missingSection(missing, measured),
			...recordsSection(records, answer.files_skipped ?? []),
		);
	}
}

function charts(models, evaluation) {
	const bars = (key, text) =>
		models.map(({ label, figures }) => ({
			label,
			value: figures?.[key] ?? null,
			text: figures?.[key] == null ? "" : text(figures[key]),
		}));
	const documents = Math.max(0, ...models.map((model) => model.figures?.documents ?? 0));
	const figures = [
		barChart("Memory", "model loaded, less is better", bars("memory", memory)),
		barChart("Latency", "mean of a page, less is better", bars("latency", seconds)),
		barChart("Accuracy", `terms and values found on ${count(documents, "test document")}, more is better`, bars("accuracy", accuracyText), 100),
	];
	if (evaluation.length > 0) {
		const evaluated = evaluation.map(({ label, accuracy }) => ({ label, value: accuracy, text: accuracyText(accuracy) }));
		figures.push(barChart("Accuracy on the evaluation cases", "terms and values found, more is better", evaluated, 100));
	}
	return h("div", { class: "charts" }, ...figures);
}

function table(models) {
	const head = h("tr", {}, h("th", { scope: "col" }, "Test documents"), ...models.map(({ label }) => h("th", { scope: "col" }, label)));
	const body = ROWS.map(([name, value, isNumber]) =>
		h(
			"tr",
			{},
			h("th", { scope: "row" }, name),
			...models.map(({ figures }) => h("td", isNumber ? { class: "number" } : {}, figures === null ? "n/a" : value(figures))),
		),
	);
	return scrolling("Figures of the models", h("table", { class: "figures-table" }, h("thead", {}, head), h("tbody", {}, ...body)));
}

function evaluationTable(evaluation) {
	const head = h(
		"tr",
		{},
		...["Evaluation cases", "Terms found", "Values found", "Both", "Latency, mean"].map((name) => h("th", { scope: "col" }, name)),
	);
	const body = evaluation.map((model) =>
		h(
			"tr",
			{},
			h("th", { scope: "row" }, model.label),
			...[accuracyText(model.terms), accuracyText(model.values), accuracyText(model.accuracy), orNone(seconds)(model.latency)].map((text) =>
				h("td", { class: "number" }, text),
			),
		),
	);
	return scrolling("Evaluation", h("table", { class: "figures-table" }, h("thead", {}, head), h("tbody", {}, ...body)));
}

/** A table that is wider than a phone scrolls by itself, also by keyboard. */
const scrolling = (label, content) => h("div", { class: "scrolling", tabindex: "0", role: "region", "aria-label": label }, content);

function missingSection(missing, measured) {
	if (missing.length === 0) return [];
	return [
		h("h2", {}, measured ? "Not measured yet" : "Nothing was measured yet"),
		h(
			"ul",
			{ class: "missing-list" },
			...missing.map(({ holds, commands }) =>
				h(
					"li",
					{},
					h("span", {}, `${holds[0].toUpperCase()}${holds.slice(1)}`),
					h(
						"span",
						{},
						...commands.flatMap((command, index) => (index === 0 ? [h("code", {}, command)] : [" then ", h("code", {}, command)])),
					),
				),
			),
		),
	];
}

function recordsSection(records, skipped) {
	const known = new Map(RECORDS.map((record) => [record.key, record]));
	const folded = Object.entries(records).map(([key, record]) => {
		const body = h("div", {});
		const details = h("details", { class: "record" }, h("summary", {}, h("code", {}, `${key}.json`), ` ${known.get(key)?.holds ?? ""}`), body);
		// Records can have megabytes: their text is made when one is unfolded.
		details.addEventListener("toggle", () => details.open && body.childElementCount === 0 && body.append(...recordText(key, record)));
		return details;
	});
	if (folded.length + skipped.length === 0) return [];
	return [
		h("h2", {}, "Records"),
		...folded,
		...skipped.map(({ file, reason }) => h("p", { class: "notice error" }, `benchmarks/${file}.json could not be read: ${reason}.`)),
	];
}

function recordText(key, record) {
	const text = JSON.stringify(record, null, 2);
	const save = h("button", { type: "button", class: "small", click: () => download(`${key}.json`, `${text}\n`, "application/json") }, "Download");
	const shown = text.length > MAX_SHOWN_CHARACTERS ? `${text.slice(0, MAX_SHOWN_CHARACTERS)}\n… the rest is in the downloaded file` : text;
	return [save, h("pre", { tabindex: "0", "aria-label": `${key}.json` }, shown)];
}
