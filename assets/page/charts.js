// Bars in SVG, with the figures beside them.

import { h, svg } from "./dom.js";

const WIDTH = 460;
const LABEL = 112;
const VALUE = 84;
const ROW = 30;
const BAR = 16;

/**
 * A chart of horizontal bars. `bars`: `[{label, value, text}]`, a value of null draws "not measured". `most` is the end of the scale,
 * the largest value if absent.
 */
export function barChart(title, hint, bars, most) {
	const room = WIDTH - LABEL - VALUE;
	const scale = most ?? Math.max(...bars.map((bar) => bar.value ?? 0));
	const height = bars.length * ROW;
	const chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, class: "chart", role: "img", "aria-label": describe(title, bars) });
	for (const [index, bar] of bars.entries()) {
		const middle = index * ROW + ROW / 2;
		chart.append(svg("text", { x: LABEL - 10, y: middle, class: "chart-label" }, bar.label));
		const known = bar.value !== null;
		const length = known && scale > 0 ? Math.max(2, (bar.value / scale) * room) : 0;
		chart.append(svg("rect", { x: LABEL, y: middle - BAR / 2, width: room, height: BAR, rx: 2, class: "chart-ground" }));
		if (known) chart.append(svg("rect", { x: LABEL, y: middle - BAR / 2, width: length, height: BAR, rx: 2, class: `chart-bar bar-${index}` }));
		chart.append(svg("text", { x: WIDTH, y: middle, class: known ? "chart-value" : "chart-value missing" }, known ? bar.text : "not measured"));
	}
	return h("figure", { class: "figure" }, h("figcaption", {}, h("strong", {}, title), h("span", {}, hint)), chart);
}

const describe = (title, bars) => `${title}: ${bars.map((bar) => `${bar.label} ${bar.value === null ? "not measured" : bar.text}`).join(", ")}`;
