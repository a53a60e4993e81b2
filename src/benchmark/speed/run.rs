//! Loads a model and measures it.

use std::path::PathBuf;
use std::time::Instant;

use tch::{Device, Tensor};

use super::answer::{AnswerTimes, Answers, Prompt, StageTimes};
use super::bandwidth::copy_bandwidth;
use super::random_weights::random_checkpoint;
use super::shapes::{Form, Shape};
use crate::checkpoint::{Checkpoint, JsonFile, ModelFolder};
use crate::device::synchronize;
use crate::device::{
    ModelMemory, Precision, Selected, cpu_name, device_name, host_memory, kind_name, load_average,
    model_memory, physical_cores,
};
use crate::lora::{Adapter, LoraConfig, Targets};
use crate::processing::{Grid, ImageProcessor, smart_resize};
use crate::project::model_folder_name;
use crate::quant::Quantization;
use crate::qwen2_5_vl::{AdapterIndex, Config, FIRST_ADAPTER, Model, ModelOptions, WeightBytes};
use crate::records::{
    Extra, SequenceSpeed, Speed, SpeedMachine, SpeedModel, SpeedSettings, Spread, StageSpeed, gib, mib,
    round_to, timestamp,
};
use crate::torch::reset_allocator_peak;
use crate::{Error, Result};

/// Text tokens beside the page by default: a page of 900x1100 makes a prompt of 1,313 tokens.
const TEXT_TOKENS: usize = 65;
/// New tokens of the warm-up: every kernel has run by then.
const WARM_UP_TOKENS: usize = 16;
/// Page sizes of the published models' processor, in pixels.
const PUBLISHED_PIXELS: [u64; 2] = [56 * 56, 28 * 28 * 16384];

/// The model to measure.
#[derive(Debug, Clone)]
pub enum Weights {
    /// A model folder.
    Folder(PathBuf),
    /// Random weights.
    Random(Shape, Form),
}

/// What to measure.
#[derive(Debug, Clone)]
pub struct SpeedOptions {
    /// Sequences to decode together.
    pub sequences: usize,
    /// Tokens of the prompt, the page's included; `None`: 65 beside the page.
    pub prompt_tokens: Option<usize>,
    /// Tokens of an answer, at least 2.
    pub answer_tokens: usize,
    /// Width and height of the page; `None`: only text.
    pub image: Option<(u32, u32)>,
    /// Measures a random adapter of this rank, too.
    pub adapter_rank: Option<usize>,
    /// Repetitions of every measurement.
    pub repeat: usize,
    /// Measures each stage, too.
    pub profile: bool,
}

impl Default for SpeedOptions {
    fn default() -> Self {
        Self {
            sequences: 1,
            prompt_tokens: None,
            answer_tokens: 512,
            image: Some((900, 1100)),
            adapter_rank: None,
            repeat: 5,
            profile: false,
        }
    }
}

/// Told about the stages of the work.
pub struct Steps<'a> {
    /// A stage begins: its name and its number of steps, 0 if they are not counted.
    pub begin: &'a dyn Fn(&str, usize),
    /// A step is done.
    pub done: &'a dyn Fn(),
}

/// One measurement.
pub struct SpeedRun<'a> {
    /// The model.
    pub weights: &'a Weights,
    /// The device.
    pub selected: &'a Selected,
    /// Dtype of the computation.
    pub precision: Precision,
    /// What to measure.
    pub options: &'a SpeedOptions,
    /// The command line, for the record.
    pub command: String,
    /// Operating system, for the record.
    pub system: String,
    /// Version of libtorch, for the record.
    pub libtorch: Option<String>,
    /// Receives the progress.
    pub steps: Steps<'a>,
}

/// The model's files, or what stands for them.
struct Source {
    config: Config,
    quantization: Quantization,
    /// `config.json`.
    file: JsonFile,
}

/// Loads the model and measures it.
///
/// # Errors
/// [`Error::Option`] for a prompt or an answer that does not fit.
pub fn speed_benchmark(run: &SpeedRun<'_>) -> Result<Speed> {
    let options = run.options;
    if options.sequences == 0 || options.repeat == 0 || options.answer_tokens < 2 {
        let reason = "sequences and repetitions must be at least 1, answer tokens at least 2";
        return Err(Error::option("bench", reason));
    }
    let device = run.selected.device;
    let kind = run.precision.checked_kind(device)?;
    let source = Source::open(run.weights)?;
    let grid = page_grid(run.weights, options, &source.config)?;
    let settings = settings(options, grid, &source.config)?;
    let prompt = Prompt::new(&source.config, grid, settings.prompt_tokens)?;
    let adapter = options
        .adapter_rank
        .map(|rank| random_adapter(rank, &source.config));
    let adapter = adapter.transpose()?;
    let load_average = load_average();

    (run.steps.begin)(run.weights.loading(), 0);
    let start = Instant::now();
    let checkpoint = source.checkpoint(run.weights)?;
    let adapters: Vec<&Adapter> = adapter.iter().collect();
    let model_options = ModelOptions {
        adapters: &adapters,
        ..ModelOptions::new(kind, device)
    };
    let model = Model::load(&checkpoint, &source.config, &source.quantization, &model_options)?;
    synchronize(device);
    let load_seconds = start.elapsed().as_secs_f64();
    let after_loading = memory(device);
    let stored = checkpoint.dtypes().join(", ");
    drop(checkpoint);
    reset_allocator_peak(device);

    let measured = measure(run, &model, &prompt)?;
    let peak = memory(device).map(|memory| memory.1);
    // Last: its tensors would be the peak of a small model.
    (run.steps.begin)("measuring the memory's bandwidth", 0);
    let bandwidth = copy_bandwidth(device)?;
    let speed = |alone: &Alone| sequence_speed(alone, options.answer_tokens, bandwidth);
    Ok(Speed {
        what: "speed".to_owned(),
        timestamp: timestamp(),
        commit: crate::version::commit().to_owned(),
        version: crate::version::package_version().to_owned(),
        command: run.command.clone(),
        machine: machine(run),
        load_average,
        model: SpeedModel {
            name: run.weights.name(),
            random_weights: matches!(run.weights, Weights::Random(..)),
            weights: source.quantization.precision().map_or(stored, str::to_owned),
            compute_dtype: kind_name(kind).to_owned(),
            device: device_name(device),
        },
        settings,
        copy_gb_per_second: round_to(bandwidth / 1e9, 2),
        load_seconds: round_to(load_seconds, 4),
        memory_after_loading_mib: after_loading.map(|memory| memory.0),
        memory_peak_mib: peak,
        base: speed(&measured.base)?,
        adapter: measured.adapter.as_ref().map(speed).transpose()?,
        sequences_tokens_per_second: measured.sequences,
        stall_seconds: measured.stalls,
        profile: measured
            .stages
            .map(|times| stage_speeds(&times, &measured.base, grid, bandwidth))
            .transpose()?,
        extra: Extra::new(),
    })
}

/// What the measurements gave.
struct Measured {
    base: Alone,
    adapter: Option<Alone>,
    /// Tokens per second of several sequences.
    sequences: Option<Spread>,
    /// Longest waits for a token beside a prefill, seconds.
    stalls: Option<Spread>,
    /// Seconds of each of [`STAGES`].
    stages: Option<[Vec<f64>; 4]>,
}

/// Answers of one sequence, and the weights that it reads.
struct Alone {
    times: Vec<AnswerTimes>,
    bytes: WeightBytes,
}

/// Stages of an answer. The first token is apart from the prompt: head, copy of the logits, choice.
const STAGES: [&str; 4] = ["vision tower", "prefill", "first token", "decode, one token"];

/// Repeats each measurement, after a warm-up.
fn measure(run: &SpeedRun<'_>, model: &Model, prompt: &Prompt) -> Result<Measured> {
    let (options, steps) = (run.options, &run.steps);
    let answers = |adapter: AdapterIndex| Answers {
        model,
        prompt,
        tokens: options.answer_tokens,
        adapter,
    };
    let alone = |name: &str, adapter: AdapterIndex| -> Result<Alone> {
        let answers = answers(adapter);
        (steps.begin)("warming up", 0);
        answers.warm_up(WARM_UP_TOKENS)?;
        Ok(Alone {
            times: repeated(run, name, || answers.one())?,
            bytes: model.weight_bytes(adapter),
        })
    };
    let base = alone("one sequence", None)?;
    let adapter = match options.adapter_rank {
        Some(_) => Some(alone("one sequence with the adapter", FIRST_ADAPTER)?),
        None => None,
    };
    let answers = answers(None);
    let sequences = match options.sequences {
        1 => None,
        count => {
            let tokens = (count * (options.answer_tokens - 1)) as f64;
            let speeds = repeated(run, "several sequences", || Ok(tokens / answers.together(count)?))?;
            Some(spread(&speeds, 2)?)
        }
    };
    let stalls = match options.sequences {
        1 => None,
        _ => {
            let waits = repeated(run, "a token beside a prefill", || answers.stall())?;
            Some(spread(&waits, 6)?)
        }
    };
    let stages = match options.profile {
        true => {
            let times = repeated(run, "by stage", || answers.by_stage())?;
            let of = |stage: fn(&StageTimes) -> f64| times.iter().map(stage).collect();
            let mut decode: Vec<f64> = of(|times| times.decode);
            for seconds in &mut decode {
                *seconds /= (options.answer_tokens - 1) as f64;
            }
            Some([
                of(|times| times.vision),
                of(|times| times.prefill),
                of(|times| times.first_token),
                decode,
            ])
        }
        false => None,
    };
    Ok(Measured {
        base,
        adapter,
        sequences,
        stalls,
        stages,
    })
}

/// Repeats `work` as often as asked for.
fn repeated<T>(run: &SpeedRun<'_>, name: &str, work: impl Fn() -> Result<T>) -> Result<Vec<T>> {
    (run.steps.begin)(name, run.options.repeat);
    (0..run.options.repeat)
        .map(|_| {
            let figure = work()?;
            (run.steps.done)();
            Ok(figure)
        })
        .collect()
}

fn sequence_speed(alone: &Alone, tokens: usize, bandwidth: f64) -> Result<SequenceSpeed> {
    let of = |figure: &dyn Fn(&AnswerTimes) -> f64| alone.times.iter().map(figure).collect::<Vec<f64>>();
    let speeds = of(&|times| (tokens - 1) as f64 / (times.total - times.first_token));
    let decode = spread(&speeds, 2)?;
    let step_bytes = alone.bytes.step();
    Ok(SequenceSpeed {
        first_token_seconds: spread(&of(&|times| times.first_token), 6)?,
        answer_seconds: spread(&of(&|times| times.total), 6)?,
        weight_bytes_per_token: step_bytes,
        bandwidth_share_pct: round_to(decode.median * step_bytes as f64 / bandwidth * 100.0, 2),
        decode_tokens_per_second: decode,
    })
}

fn stage_speeds(
    times: &[Vec<f64>; 4],
    base: &Alone,
    grid: Option<Grid>,
    bandwidth: f64,
) -> Result<Vec<StageSpeed>> {
    let WeightBytes { vision, layers, head } = base.bytes;
    let bytes = [vision, layers, head, base.bytes.step()];
    let stages = STAGES.into_iter().zip(bytes).zip(times);
    // Without a page there is no work for the vision tower.
    let stages = stages.skip(usize::from(grid.is_none()));
    stages
        .map(|((stage, weight_bytes), times)| {
            let seconds = spread(times, 9)?.median;
            let speed = weight_bytes as f64 / seconds.max(f64::MIN_POSITIVE);
            Ok(StageSpeed {
                stage: stage.to_owned(),
                seconds,
                weight_bytes,
                gb_per_second: round_to(speed / 1e9, 2),
                bandwidth_share_pct: round_to(speed / bandwidth * 100.0, 2),
            })
        })
        .collect()
}

fn spread(figures: &[f64], decimals: i32) -> Result<Spread> {
    let spread = Spread::of(figures).ok_or_else(|| Error::Internal("nothing was measured".to_owned()))?;
    Ok(Spread {
        min: round_to(spread.min, decimals),
        median: round_to(spread.median, decimals),
        max: round_to(spread.max, decimals),
    })
}

impl Weights {
    fn name(&self) -> String {
        match self {
            Self::Folder(dir) => model_folder_name(dir),
            Self::Random(Shape::Tiny, _) => "the embedded model's shapes".to_owned(),
            Self::Random(shape, _) => format!("Qwen2.5-VL-{} shapes", shape.to_string().to_uppercase()),
        }
    }

    fn loading(&self) -> &'static str {
        match self {
            Self::Folder(_) => "loading the model",
            Self::Random(..) => "making and loading random weights",
        }
    }
}

impl Source {
    fn open(weights: &Weights) -> Result<Self> {
        let file = match weights {
            Weights::Folder(dir) => ModelFolder::new(dir).config()?.clone(),
            Weights::Random(shape, form) => shape.config(*form)?,
        };
        Ok(Self {
            config: Config::from_json(&file)?,
            quantization: Quantization::from_json(&file)?,
            file,
        })
    }

    fn checkpoint(&self, weights: &Weights) -> Result<Checkpoint> {
        match weights {
            Weights::Folder(dir) => Checkpoint::open(dir),
            Weights::Random(_, form) => random_checkpoint(&self.file, *form),
        }
    }
}

/// The patches of the page, resized as the model's processor would.
fn page_grid(weights: &Weights, options: &SpeedOptions, config: &Config) -> Result<Option<Grid>> {
    let Some((width, height)) = options.image else {
        return Ok(None);
    };
    let processor = match weights {
        Weights::Folder(dir) => ImageProcessor::from_dir_if_any(dir)?,
        Weights::Random(..) => None,
    };
    if let Some(processor) = processor {
        return processor.grid(height, width).map(Some);
    }
    let vision = &config.vision;
    let [min, max] = PUBLISHED_PIXELS;
    let factor = (vision.patch_size * vision.spatial_merge_size) as u32;
    let (height, width) = smart_resize(height, width, factor, min, max)?;
    Ok(Some(Grid {
        t: 1,
        h: height as usize / vision.patch_size,
        w: width as usize / vision.patch_size,
    }))
}

/// The settings for the record; checks that prompt and answer fit.
fn settings(options: &SpeedOptions, grid: Option<Grid>, config: &Config) -> Result<SpeedSettings> {
    let image_tokens = grid.map_or(0, |grid| grid.tokens(config.vision.spatial_merge_size));
    let prompt_tokens = options.prompt_tokens.unwrap_or(image_tokens + TEXT_TOKENS);
    if prompt_tokens <= image_tokens {
        let reason = format!("{prompt_tokens} tokens, but the page alone has {image_tokens}: ask for more");
        return Err(Error::option("--prompt-tokens", reason));
    }
    let (all, context) = (
        prompt_tokens + options.answer_tokens,
        config.text.max_position_embeddings,
    );
    if all > context {
        let reason = format!(
            "prompt and answer have {all} tokens, but the model's context {context}: choose a smaller page, prompt or answer"
        );
        return Err(Error::option("--prompt-tokens", reason));
    }
    Ok(SpeedSettings {
        image: options.image.map(|(width, height)| format!("{width}x{height}")),
        image_tokens,
        prompt_tokens,
        answer_tokens: options.answer_tokens,
        sequences: options.sequences,
        adapter_rank: options.adapter_rank,
        repeat: options.repeat,
    })
}

/// An adapter of every linear layer but the output head, with random values: those of B are not zero.
fn random_adapter(rank: usize, config: &Config) -> Result<Adapter> {
    let lora = LoraConfig {
        r: rank,
        lora_alpha: 2.0 * rank as f64,
        target_modules: Targets::Pattern("all-linear".to_owned()),
        ..LoraConfig::default()
    };
    let mut adapter = Adapter::initial(lora, &config.linear_modules(), 42)?;
    for pair in adapter.pairs.values_mut() {
        let deviation = 0.01 / (rank as f64).sqrt();
        pair.b = Tensor::f_randn_like(&pair.b)?.f_mul_scalar(deviation)?;
    }
    Ok(adapter)
}

/// Memory of a model on `device` now and at its peak, MiB.
fn memory(device: Device) -> Option<(f64, f64)> {
    Some(match model_memory(device)? {
        ModelMemory::Gpu(stats) => (mib(stats.allocated_bytes), mib(stats.peak_bytes)),
        ModelMemory::Process(memory) => (mib(memory.resident_bytes), mib(memory.peak_resident_bytes)),
    })
}

fn machine(run: &SpeedRun<'_>) -> SpeedMachine {
    let gpu = run.selected.gpu.as_ref();
    let driver = gpu.and_then(|_| std::fs::read_to_string("/sys/module/nvidia/version").ok());
    SpeedMachine {
        system: run.system.clone(),
        processor: cpu_name(),
        cores: physical_cores(),
        threads: usize::try_from(tch::get_num_threads()).unwrap_or(0),
        memory_gib: host_memory().map(|memory| gib(memory.total_bytes)),
        gpu: gpu.map(|gpu| gpu.name.clone()),
        gpu_memory_mib: gpu.map(|gpu| mib(gpu.total_bytes)),
        gpu_driver: driver.map(|version| version.trim().to_owned()),
        libtorch: run.libtorch.clone(),
    }
}
