// Figures of the benchmark records (GET benchmark), for the charts and the table.

/** The models that are compared, in the pipeline's order. */
export const MODELS = [
	{ key: "baseline_fp16", label: "Base" },
	{ key: "quantized_int4", label: "4 bits, NF4" },
	{ key: "quantized_awq", label: "4 bits, AWQ", optional: true },
	{ key: "finetuned_standard_bench", label: "Fine-tuned" },
];

/** Each record, what it holds, and the commands that make it. */
export const RECORDS = [
	{ key: "environment", holds: "this machine", commands: ["validate_environment"] },
	{ key: "download_info", holds: "the downloaded model", commands: ["download_model"] },
	{ key: "baseline_fp16", holds: "the base model's memory, latency and accuracy", commands: ["benchmark_baseline"] },
	{ key: "quantization_info", holds: "the quantization to four bits", commands: ["quantize_base"] },
	{ key: "quantized_int4", holds: "the NF4 model's memory, latency and accuracy", commands: ["quantize_base", "benchmark_quantized"] },
	{
		key: "quantized_awq",
		holds: "the AWQ model's memory, latency and accuracy",
		commands: ["quantize_base", "benchmark_quantized --method awq"],
		optional: true,
	},
	{ key: "training_metrics", holds: "the training of the adapter", commands: ["finetune_lora"] },
	{
		key: "finetuned_standard_bench",
		holds: "the fine-tuned model's memory, latency and accuracy",
		commands: ["finetune_lora", "evaluate_finetuned"],
	},
	{
		key: "evaluation_finetuned",
		holds: "base and fine-tuned model on the evaluation cases",
		commands: ["finetune_lora", "evaluate_finetuned"],
	},
	{ key: "merge_info", holds: "the merged model", commands: ["medvision merge"], optional: true },
	{ key: "FINAL_REPORT", holds: "all figures in one report", commands: ["generate_report"] },
];

const number = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);

/** A field at a path of keys; null if any is missing or the value is no number. */
function at(record, ...keys) {
	let value = record;
	for (const key of keys) value = value !== null && typeof value === "object" ? value[key] : null;
	return number(value);
}

function mean(values) {
	const known = values.filter((value) => value !== null);
	return known.length === 0 ? null : known.reduce((sum, value) => sum + value, 0) / known.length;
}

const list = (value) => (Array.isArray(value) ? value : []);

/** Memory in a record is a number or an object: both were written by the original project. */
const memoryOf = (value, key) => number(value) ?? at(value, key);

/** Figures of one benchmark record. */
export function modelFigures(record) {
	if (record === null || typeof record !== "object") return null;
	const results = list(record.inference_results);
	const latencies = results.map((result) => at(result, "latency_seconds")).filter((value) => value !== null);
	const accuracy = (key) => mean(results.map((result) => at(result, "accuracy", key)));
	const loaded = record.vram?.post_load_mb;
	return {
		model: String(record.model_name ?? ""),
		precision: String(record.precision ?? ""),
		device: typeof record.run?.device_name === "string" ? record.run.device_name : null,
		resident: loaded?.memory_kind === "resident",
		memory: memoryOf(loaded, "allocated_mb"),
		peak: memoryOf(record.vram?.peak_mb, "max_allocated_mb"),
		load: at(record, "load_time_seconds"),
		latency: at(record, "latency_stats", "avg_seconds") ?? mean(latencies),
		fastest: at(record, "latency_stats", "min_seconds") ?? (latencies.length > 0 ? Math.min(...latencies) : null),
		slowest: at(record, "latency_stats", "max_seconds") ?? (latencies.length > 0 ? Math.max(...latencies) : null),
		firstToken: at(record, "run", "time_to_first_token_stats", "avg_seconds"),
		speed: at(record, "run", "avg_tokens_per_second"),
		terms: accuracy("term_accuracy"),
		values: accuracy("value_accuracy"),
		accuracy: at(record, "run", "avg_combined_accuracy_pct") ?? accuracy("combined_accuracy"),
		documents: results.length,
	};
}

/** `{models: [{label, figures}], evaluation: [{label, terms, values, accuracy}], missing: [record], notes: [text]}`. */
export function compile(records) {
	const models = MODELS.map(({ key, label, optional }) => ({ label, optional, figures: modelFigures(records[key] ?? null) })).filter(
		(model) => model.figures !== null || !model.optional,
	);
	const evaluated = records.evaluation_finetuned;
	const evaluation = [
		["Without adapter", evaluated?.base_model],
		["Fine-tuned", evaluated?.finetuned_model],
	]
		.filter(([, model]) => model)
		.map(([label, model]) => ({
			label,
			terms: at(model, "summary", "avg_term_accuracy_pct"),
			values: at(model, "summary", "avg_value_accuracy_pct"),
			accuracy: at(model, "summary", "avg_combined_accuracy_pct"),
			latency: at(model, "summary", "avg_latency_seconds"),
		}));
	const missing = RECORDS.filter(({ key, optional }) => !optional && records[key] === undefined);
	return { models, evaluation, missing, notes: notes(models) };
}

function notes(models) {
	const known = models.filter((model) => model.figures !== null);
	const result = [];
	if (new Set(known.map((model) => model.figures.resident)).size > 1) {
		result.push("Some models were measured on a GPU and some on a CPU: their figures cannot be compared.");
	} else if (known[0]?.figures.resident) {
		result.push("Measured on a CPU: memory is the process's resident memory.");
	}
	const names = new Set(known.map((model) => baseName(model.figures.model)).filter((name) => name !== ""));
	if (names.size > 1) result.push(`The records are of different models (${[...names].join(", ")}): their figures cannot be compared.`);
	return result;
}

/** Without folders and the pipeline's suffixes, as the report does it. */
function baseName(name) {
	return name
		.split("/")
		.at(-1)
		.replace(/(-base|-bnb-nf4|-awq-int4|-medical-lora)$/, "");
}
