// Numbers as text.

const INTEGER = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

/** 1419 → "1,419". */
export const integer = (value) => INTEGER.format(value);

/** A number with fixed decimals, "n/a" if there is none. */
export function decimal(value, places) {
	return Number.isFinite(value) ? value.toLocaleString("en-US", { minimumFractionDigits: places, maximumFractionDigits: places }) : "n/a";
}

/** 3 → "3 places", 1 → "1 place". */
export const count = (number, singular, plural = `${singular}s`) => `${integer(number)} ${number === 1 ? singular : plural}`;

/** A probability: "87 %", "0.4 %", "100 %". */
export function percent(probability) {
	const value = probability * 100;
	if (value >= 99.95) return "100 %";
	return value >= 10 ? `${value.toFixed(0)} %` : `${value.toFixed(1)} %`;
}

/** Mebibytes: "210 MB", "5.3 GB". */
export function memory(mebibytes) {
	if (!Number.isFinite(mebibytes)) return "n/a";
	return mebibytes >= 1024 ? `${decimal(mebibytes / 1024, 1)} GB` : `${integer(mebibytes)} MB`;
}

/** Seconds: "0.84 s", "12.3 s", "2 min 05 s". */
export function seconds(value) {
	if (!Number.isFinite(value)) return "n/a";
	if (value >= 119.95) {
		const whole = Math.round(value);
		return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
	}
	return `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

/** Characters as the server counts them: Unicode scalar values. */
export function characters(text) {
	let number = 0;
	for (const _ of text) number += 1;
	return number;
}
