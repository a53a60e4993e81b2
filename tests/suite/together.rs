//! Continuous batching: answers that are generated together, memory for keys and values, pages that were read before.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use medical_vision::checkpoint::{Checkpoint, ModelFolder};
use medical_vision::engine::{
    Engine, EngineError, EngineOptions, LoadOptions, QueueSlot, ReadRequest, Reader, Reading, Step, Ticket,
    kv_bytes_per_token,
};
use medical_vision::error::PromptError;
use medical_vision::generation::TokenMask;
use medical_vision::lora::{Adapter, LoraConfig};
use medical_vision::processing::{Content, DecodeLimits, Message, RgbPage, Role, decode};
use medical_vision::quant::Quantization;
use medical_vision::qwen2_5_vl::{AdapterIndex, Config, KvCache, LogitsToKeep, Model, ModelOptions};
use medical_vision::{Error, Result};
use tch::{Device, Kind, Tensor};

use super::program::golden_page;

const PATIENCE: Duration = Duration::from_secs(300);

fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano")
}

fn page(file: &str) -> RgbPage {
    decode(
        &std::fs::read(golden_page(file).path).unwrap(),
        &DecodeLimits::default(),
    )
    .unwrap()
}

/// Any token but the special ones, so that no answer ends by itself.
struct Ordinary;

impl TokenMask for Ordinary {
    fn allowed(&mut self, bitmask: &mut [u32]) {
        bitmask[..100].fill(u32::MAX);
    }

    fn accept(&mut self, _: i64) {}
}

/// Text that goes on to the end: drawn by lot with a seed.
fn ramble(words: &str, seed: u64, tokens: usize) -> ReadRequest {
    let content = vec![Content::Text(words.to_owned())];
    let mut request = ReadRequest::new(
        vec![Message {
            role: Role::User,
            content,
        }],
        Vec::new(),
    );
    request.overrides.max_new_tokens = Some(tokens);
    request.overrides.temperature = Some(2.0);
    request.overrides.seed = Some(seed);
    request.mask = Some(Arc::new(|| Box::new(Ordinary)));
    request
}

fn about(prompt: &str, page: &RgbPage) -> ReadRequest {
    let mut request = ReadRequest::page(prompt, page.clone());
    request.overrides.max_new_tokens = Some(24);
    request
}

fn alone(reader: &Reader, request: &ReadRequest) -> Reading {
    reader.read(request, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// An engine, and what waits for its answers.
struct Running {
    engine: Engine,
    runtime: tokio::runtime::Runtime,
}

impl Running {
    fn new(load: impl FnOnce() -> Result<Reader> + Send + 'static, max_batch: usize) -> Self {
        let options = EngineOptions {
            queue: 20,
            max_batch: Some(max_batch),
            queue_deadline: PATIENCE,
            generation_deadline: PATIENCE,
            ..EngineOptions::default()
        };
        let engine = Engine::start(load, options).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(engine.loaded());
        Self { engine, runtime }
    }

    fn slot(&self) -> QueueSlot {
        self.engine.reserve().unwrap()
    }

    fn answer(&self, ticket: &mut Ticket) -> std::result::Result<Reading, EngineError> {
        self.runtime
            .block_on(ticket.answer())
            .map(|answer| answer.reading)
    }
}

/// Tells `number` of every token, and goes on when it may.
fn told(number: usize, sender: &Sender<usize>) -> Box<dyn FnMut(Step<'_>) -> ControlFlow<()> + Send> {
    let sender = sender.clone();
    Box::new(move |step| {
        if step.generated.is_some() {
            let _ = sender.send(number);
        }
        ControlFlow::Continue(())
    })
}

#[test]
fn sequences_together_get_the_bits_that_each_gets_alone() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let quantized = ["models/awq", "nf4/nested-bf16-nf4"].map(|name| fixtures.join(name));
    for dir in [nano()].into_iter().chain(quantized) {
        let folder = ModelFolder::new(&dir);
        let config = Config::from_json(folder.config().unwrap()).unwrap();
        let adapter = |rank: usize, seed: u64| {
            let lora = LoraConfig {
                r: rank,
                ..LoraConfig::default()
            };
            let mut adapter = Adapter::initial(lora, &config.linear_modules(), seed).unwrap();
            for pair in adapter.pairs.values_mut() {
                let wave = Tensor::arange(pair.b.numel() as i64, (Kind::Float, Device::Cpu)).sin();
                pair.b = (wave * 0.1).view_as(&pair.b);
            }
            adapter
        };
        let adapters = [adapter(3, 1), adapter(8, 2)];
        let adapters: Vec<&Adapter> = adapters.iter().collect();
        let options = ModelOptions {
            adapters: &adapters,
            ..ModelOptions::new(Kind::Float, Device::Cpu)
        };
        let quantization = Quantization::from_json(folder.config().unwrap()).unwrap();
        let model = Model::load(&Checkpoint::open(&dir).unwrap(), &config, &quantization, &options).unwrap();
        let vocab = config.text.vocab_size as i64;
        // Of different lengths and adapters.
        let start = |length: i64, adapter: AdapterIndex| -> (KvCache, i64) {
            let ids: Vec<i64> = (0..length).map(|i| (i * 37 + length) % (vocab / 2)).collect();
            let mut cache = model.cache_with(ids.len() + 8, adapter).unwrap();
            model
                .prefill(&ids, None, &[], &mut cache, LogitsToKeep::Last)
                .unwrap();
            (cache, length % (vocab / 2))
        };
        let make = || {
            vec![
                start(1, None),
                start(70, Some(0)),
                start(9, Some(1)),
                start(33, Some(0)),
                start(300, None),
            ]
        };
        let (mut each, mut all) = (make(), make());
        for step in 0..6 {
            let mut together: Vec<(i64, &mut KvCache)> = all
                .iter_mut()
                .map(|(cache, id)| (*id + step, &mut *cache))
                .collect();
            let logits = model.decode_together(&mut together).unwrap();
            assert_eq!(logits.size()[0], 5);
            for (row, (cache, id)) in each.iter_mut().enumerate() {
                let expected = model.decode(*id + step, cache).unwrap();
                let found = logits.narrow(0, row as i64, 1);
                assert!(found.equal(&expected), "{} step {step} row {row}", dir.display());
            }
        }
    }
}

#[test]
fn requests_join_and_leave_between_tokens() {
    let running = Running::new(|| Reader::load(&nano(), &LoadOptions::default()), 3);
    let (tokens, told_of) = channel();
    let mut long = running
        .slot()
        .submit_with(ramble("a long one", 1, 400), told(0, &tokens))
        .unwrap();
    let mut seen = Vec::new();
    let until = |seen: &mut Vec<usize>, count: usize| {
        while seen.iter().filter(|&&number| number == 0).count() < count {
            seen.push(told_of.recv_timeout(PATIENCE).unwrap());
        }
    };
    until(&mut seen, 5);
    let mut short = running
        .slot()
        .submit_with(ramble("a short one", 2, 4), told(1, &tokens))
        .unwrap();
    assert_eq!(running.answer(&mut short).unwrap().completion_tokens, 4);
    let mut other = running
        .slot()
        .submit_with(ramble("another", 3, 4), told(2, &tokens))
        .unwrap();
    assert_eq!(running.answer(&mut other).unwrap().completion_tokens, 4);
    assert_eq!(running.engine.load().running, 1, "the long one goes on");
    let reading = running.answer(&mut long).unwrap();
    assert_eq!(reading.completion_tokens, 400);
    drop(tokens);
    seen.extend(told_of);
    let of = |number: usize| seen.iter().filter(|&&other| other == number).count();
    assert_eq!((of(0), of(1), of(2)), (400, 4, 4));
    // Between two tokens of the short ones is one of the long one, at least.
    let places: Vec<usize> = (0..seen.len()).filter(|&place| seen[place] == 1).collect();
    for pair in places.windows(2) {
        assert_eq!(pair[1] - pair[0], 2, "{seen:?}");
    }
}

#[test]
fn what_happens_to_one_does_not_touch_the_others() {
    let reader = Reader::load(&nano(), &LoadOptions::default()).unwrap();
    let wanted = ramble("goes on", 5, 120);
    let expected = alone(&reader, &wanted).tokens;
    let running = Running::new(move || Ok(reader), 4);
    let (tokens, told_of) = channel();
    let mut good = running.slot().submit_with(wanted, told(0, &tokens)).unwrap();
    told_of.recv_timeout(PATIENCE).unwrap();
    // One that panics, one that is left, one that ends itself.
    let mut count = 0;
    let panics = Box::new(move |step: Step<'_>| {
        count += usize::from(step.generated.is_some());
        assert!(count < 3, "a client's fault");
        ControlFlow::Continue(())
    });
    let mut panicking = running
        .slot()
        .submit_with(ramble("panics", 6, 60), panics)
        .unwrap();
    let left = running
        .slot()
        .submit_with(ramble("left", 7, 3000), told(1, &tokens))
        .unwrap();
    let mut stopped = running
        .slot()
        .submit_with(
            ramble("stops", 8, 60),
            Box::new(|step| match step.generated {
                Some(_) => ControlFlow::Break(()),
                None => ControlFlow::Continue(()),
            }),
        )
        .unwrap();
    while told_of.recv_timeout(PATIENCE).unwrap() != 1 {}
    drop(left);
    assert!(matches!(
        running.answer(&mut panicking),
        Err(EngineError::Panicked)
    ));
    assert_eq!(running.answer(&mut stopped).unwrap().completion_tokens, 1);
    assert_eq!(running.answer(&mut good).unwrap().tokens, expected);
    running.engine.join();
    assert_eq!(running.engine.admitted(), 0, "all places are free");
}

/// A reader with memory for keys and values of `tokens`.
fn with_memory(tokens: u64) -> Result<Reader> {
    let per_token = kv_bytes_per_token(&Config::from_dir(&nano()).unwrap().text, Kind::Float);
    let options = LoadOptions {
        kv_cache_bytes: Some(tokens * per_token),
        ..LoadOptions::default()
    };
    Reader::load(&nano(), &options)
}

#[test]
fn a_request_waits_for_memory_and_one_that_never_fits_is_refused() {
    let running = Running::new(|| with_memory(300), 4);
    let mut never = running.slot().submit(ramble("too much", 1, 600)).unwrap();
    match running.answer(&mut never) {
        Err(EngineError::Read(Error::Prompt(PromptError::MemoryOverflow {
            needed,
            prompt_tokens,
            new_tokens: 600,
            memory: 300,
        }))) => assert_eq!(needed, prompt_tokens + 600),
        other => panic!("{other:?}"),
    }
    let mut fitting = ramble("as much as there is", 1, 600);
    fitting.fit_context = true;
    let mut fitting = running.slot().submit(fitting).unwrap();
    let reading = running.answer(&mut fitting).unwrap();
    assert_eq!(reading.prompt_tokens + reading.completion_tokens, 300);
    // Two that do not fit together: the second begins when the first has ended.
    let (tokens, told_of): (_, Receiver<usize>) = channel();
    let mut first = running
        .slot()
        .submit_with(ramble("first", 2, 200), told(0, &tokens))
        .unwrap();
    let mut second = running
        .slot()
        .submit_with(ramble("second", 3, 200), told(1, &tokens))
        .unwrap();
    assert_eq!(running.answer(&mut first).unwrap().completion_tokens, 200);
    assert_eq!(running.answer(&mut second).unwrap().completion_tokens, 200);
    let seen: Vec<usize> = told_of.try_iter().collect();
    assert_eq!(seen, [[0; 200], [1; 200]].concat());
}

#[test]
fn a_request_that_waits_for_memory_can_be_left() {
    let running = Running::new(|| with_memory(300), 4);
    let (tokens, told_of): (_, Receiver<usize>) = channel();
    let mut first = running
        .slot()
        .submit_with(ramble("first", 2, 200), told(0, &tokens))
        .unwrap();
    told_of.recv_timeout(PATIENCE).unwrap();
    let second = running
        .slot()
        .submit_with(ramble("second", 3, 200), told(1, &tokens))
        .unwrap();
    drop(second);
    let mut third = running.slot().submit(ramble("third", 4, 20)).unwrap();
    assert_eq!(running.answer(&mut first).unwrap().completion_tokens, 200);
    assert_eq!(running.answer(&mut third).unwrap().completion_tokens, 20);
    // At most the token that was chosen with the prompt.
    assert!(told_of.try_iter().filter(|&number| number == 1).count() <= 1);
}

#[test]
fn a_page_is_read_once_for_several_questions() {
    let cached = |bytes: Option<u64>| LoadOptions {
        prefix_cache: true,
        kv_cache_bytes: bytes,
        ..LoadOptions::default()
    };
    let plain = Reader::load(&nano(), &LoadOptions::default()).unwrap();
    let reader = Reader::load(&nano(), &cached(None)).unwrap();
    let (strip, codes) = (page("small_strip_rx.png"), page("small_strip_codes.png"));
    let prompts = [
        "Extract the text.",
        "Which drugs are named? List them, one a line.",
        "Extract the text.",
    ];
    for (number, prompt) in prompts.into_iter().enumerate() {
        let request = about(prompt, &strip);
        let (expected, found) = (alone(&plain, &request), alone(&reader, &request));
        assert_eq!(found.text, expected.text, "{prompt}");
        assert_eq!(found.prompt_tokens, expected.prompt_tokens);
        assert_eq!(found.images, expected.images);
        assert_eq!(expected.cached_tokens, 0);
        match number {
            0 => assert_eq!(found.cached_tokens, 0),
            _ => assert!(
                found.cached_tokens > found.images[0].tokens,
                "{}",
                found.cached_tokens
            ),
        }
    }
    // Another page, and the page with one pixel changed, are other pages.
    let mut touched = strip.clone();
    touched.pixels[0] ^= 1;
    for page in [&codes, &touched] {
        let found = alone(&reader, &about(prompts[0], page));
        assert_eq!(found.cached_tokens, 0);
        assert_eq!(found.text, alone(&plain, &about(prompts[0], page)).text);
    }
    // Another size of the same page is another prefix.
    let mut sized = about(prompts[0], &strip);
    sized.images[0].bounds = Some(
        reader
            .images()
            .bounds()
            .overridden(Some(28 * 28 * 4), Some(28 * 28 * 16))
            .unwrap(),
    );
    assert_eq!(alone(&reader, &sized).cached_tokens, 0);
    // Text alone is not kept.
    assert_eq!(alone(&reader, &ramble("text", 1, 4)).cached_tokens, 0);
    assert_eq!(alone(&reader, &ramble("text", 1, 4)).cached_tokens, 0);
    // Without room nothing is kept.
    let per_token = kv_bytes_per_token(&Config::from_dir(&nano()).unwrap().text, Kind::Float);
    let small = Reader::load(&nano(), &cached(Some(400 * per_token))).unwrap();
    for _ in 0..2 {
        assert_eq!(alone(&small, &about(prompts[0], &strip)).cached_tokens, 0);
    }
}

#[test]
fn the_page_that_was_asked_about_longest_ago_is_forgotten_first() {
    let per_token = kv_bytes_per_token(&Config::from_dir(&nano()).unwrap().text, Kind::Float);
    let strips = [
        "small_strip_rx.png",
        "small_strip_codes.png",
        "small_strip_labs.png",
    ]
    .map(page);
    let probe = Reader::load(&nano(), &LoadOptions::default()).unwrap();
    let tokens = strips
        .each_ref()
        .map(|page| alone(&probe, &about("?", page)).prompt_tokens as u64);
    // Room for the two largest.
    let room = tokens.iter().sum::<u64>() - tokens.iter().min().unwrap() + 1;
    let options = LoadOptions {
        prefix_cache: true,
        kv_cache_bytes: Some(8 * room * per_token),
        ..LoadOptions::default()
    };
    let reader = Reader::load(&nano(), &options).unwrap();
    let is_kept = |index: usize| alone(&reader, &about("?", &strips[index])).cached_tokens > 0;
    assert!(!is_kept(0) && !is_kept(1), "read for the first time");
    assert!(is_kept(0) && is_kept(1) && is_kept(0));
    assert!(!is_kept(2), "takes the place of 1");
    assert!(is_kept(0) && !is_kept(1));
}
