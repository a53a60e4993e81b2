//! A loaded model folder: several adapters, log-probabilities, token masks, page sizes.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use medical_vision::engine::{Engine, EngineOptions, LoadOptions, Picture, ReadRequest, Reader, Reading};
use medical_vision::generation::{FinishReason, TokenMask};
use medical_vision::lora::{Adapter, LoraConfig};
use medical_vision::processing::{Content, DecodeLimits, Message, RgbPage, Role, decode};
use medical_vision::qwen2_5_vl::{Config, LogitsToKeep};
use medical_vision::random::StreamRng;
use tch::{Device, Kind, Tensor};

use super::program::{TRAINED_PROMPT, golden_page};

/// How long something that must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano")
}

/// Writes an adapter of rank 4 that changes every linear layer, B being within ±`size`; returns its folder.
fn adapter(root: &Path, name: &str, seed: u64, size: f64) -> PathBuf {
    let config = LoraConfig {
        r: 4,
        ..LoraConfig::default()
    };
    let modules = Config::from_dir(&nano()).unwrap().linear_modules();
    let mut adapter = Adapter::initial(config, &modules, seed).unwrap();
    for pair in adapter.pairs.values_mut() {
        let wave = Tensor::arange(pair.b.numel() as i64, (Kind::Float, Device::Cpu)) + seed as f64;
        pair.b = (wave.sin() * size).view_as(&pair.b);
    }
    let folder = root.join(name);
    adapter.write(&folder).unwrap();
    folder
}

fn load(adapter: Option<&Path>, named: &[(&str, &Path)]) -> medical_vision::Result<Reader> {
    let named = named
        .iter()
        .map(|(name, folder)| ((*name).to_owned(), folder.to_path_buf()));
    let options = LoadOptions {
        adapter: adapter.map(Path::to_owned),
        named_adapters: named.collect(),
        ..LoadOptions::default()
    };
    Reader::load(&nano(), &options)
}

fn read(reader: &Reader, request: &ReadRequest) -> Reading {
    reader.read(request, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// A question without a picture.
fn question(prompt: &str, tokens: usize) -> ReadRequest {
    let message = Message {
        role: Role::User,
        content: vec![Content::Text(prompt.to_owned())],
    };
    let mut request = ReadRequest::new(vec![message], Vec::new());
    request.overrides.max_new_tokens = Some(tokens);
    request
}

/// A small page of the goldens.
fn page(tokens: usize) -> ReadRequest {
    let bytes = std::fs::read(golden_page("small_strip_rx.png").path).unwrap();
    let page = decode(&bytes, &DecodeLimits::default()).unwrap();
    let mut request = ReadRequest::page(TRAINED_PROMPT, page);
    request.overrides.max_new_tokens = Some(tokens);
    request
}

#[test]
fn shuffled_requests_over_several_adapters_are_answered_as_by_each_alone() {
    let root = tempfile::tempdir().unwrap();
    let (first, second) = (
        adapter(root.path(), "first", 1, 0.2),
        adapter(root.path(), "second", 2, 0.2),
    );
    let mut requests: Vec<ReadRequest> = ["Hgb 9.8", "Amoxicillin 500 mg", "Read.", "Allergies: none"]
        .iter()
        .map(|prompt| question(prompt, 6))
        .collect();
    requests.push(page(6));
    // By variant: the default is the first adapter.
    let mut alone = [load(Some(&first), &[]), load(None, &[]), load(Some(&second), &[])].map(Result::unwrap);
    let expected: Vec<Vec<Vec<i64>>> = alone
        .iter_mut()
        .map(|reader| {
            requests
                .iter()
                .map(|request| read(reader, request).tokens)
                .collect()
        })
        .collect();
    assert!(
        expected[0] != expected[1] && expected[1] != expected[2],
        "the adapters change nothing"
    );
    drop(alone);

    let load = move || load(Some(&first), &[("second", &second)]);
    let options = EngineOptions {
        queue: 200,
        queue_deadline: Duration::from_secs(3600),
        generation_deadline: Duration::from_secs(3600),
        ..EngineOptions::default()
    };
    let engine = Engine::start(load, options).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(engine.loaded());
    let names: Vec<_> = engine
        .variants()
        .iter()
        .map(|variant| variant.info.lora_adapter.as_deref())
        .collect();
    assert_eq!(names, [Some("first"), None, Some("second")]);

    let mut random = StreamRng::new(19, 0);
    let order = random.permutation(200).into_iter();
    let order: Vec<(usize, usize)> = order.map(|i| (i % 3, i / 3 % requests.len())).collect();
    let tickets: Vec<_> = order
        .iter()
        .map(|&(variant, number)| {
            let mut request = requests[number].clone();
            request.variant = variant;
            request.logprobs = (random.unit() < 0.5).then_some(3);
            (
                request.logprobs,
                engine.reserve().unwrap().submit(request).unwrap(),
            )
        })
        .collect();
    for (&(variant, number), (logprobs, mut ticket)) in order.iter().zip(tickets) {
        let answer = runtime.block_on(ticket.answer()).unwrap();
        let reading = answer.reading;
        assert_eq!(
            reading.tokens, expected[variant][number],
            "variant {variant}, request {number}"
        );
        assert_eq!(answer.model_info.lora_adapter.as_deref(), names[variant]);
        let reported = logprobs.map_or(0, |_| reading.tokens.len());
        assert_eq!(reading.logprobs.len(), reported);
    }
    engine.join();
}

#[test]
fn adapters_that_requests_could_not_tell_apart_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let folder = adapter(root.path(), "first", 1, 0.02);
    for (named, part) in [
        (
            vec![("a", &*folder), ("a", &*folder)],
            "two adapters are named \"a\"",
        ),
        (vec![("first", &*folder)], "two adapters are named \"first\""),
        (vec![("qwen25-vl-nano", &*folder)], "is the model's name"),
    ] {
        let error = load(Some(&folder), &named).err().expect(part).to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn an_adapter_of_another_base_is_refused_by_key_and_shape() {
    let root = tempfile::tempdir().unwrap();
    let (fits, other) = (adapter(root.path(), "fits", 1, 0.02), root.path().join("other"));
    let mut changed = Adapter::read(&fits).unwrap();
    let (key, pair) = changed.pairs.iter_mut().next().unwrap();
    let (key, inputs) = (key.clone(), pair.a.size()[1]);
    pair.a = Tensor::zeros([pair.a.size()[0], inputs + 8], (Kind::Float, Device::Cpu));
    changed.write(&other).unwrap();
    let error = load(None, &[("fits", &fits), ("other", &other)])
        .err()
        .expect("refused")
        .to_string();
    for part in [
        key.as_str(),
        &inputs.to_string(),
        &(inputs + 8).to_string(),
        "other",
    ] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
}

#[test]
fn log_probabilities_are_those_of_a_teacher_forced_pass() {
    let root = tempfile::tempdir().unwrap();
    let first = adapter(root.path(), "first", 1, 0.02);
    let reader = load(Some(&first), &[]).unwrap();
    for variant in [0, 1] {
        let mut request = page(40);
        request.variant = variant;
        request.logprobs = Some(5);
        // The sampler's changes must not show.
        request.overrides.temperature = Some(1.5);
        request.overrides.repetition_penalty = Some(1.3);
        request.overrides.seed = Some(3);
        let reading = read(&reader, &request);
        assert!(reading.tokens.len() > 10);
        assert_eq!(reading.logprobs.len(), reading.tokens.len());
        let sum: f64 = reading
            .logprobs
            .iter()
            .map(|token| f64::from(token.token.logprob))
            .sum();

        let adapter = (variant == 0).then_some(0);
        let patches = reader.images().process(&request.images[0].page).unwrap();
        let mut ids = reader
            .text()
            .encode_chat(&request.messages, &[patches.grid])
            .unwrap();
        let prompt = ids.len() as i64;
        ids.extend(&reading.tokens);
        let model = reader.model();
        let grids = [patches.grid];
        let mut never = || ControlFlow::Continue(());
        let features = model
            .image_features_cancellable(&patches.pixel_values, &grids, adapter, &mut never)
            .unwrap();
        let mut cache = model.cache_with(ids.len(), adapter).unwrap();
        let prefill = model
            .prefill(&ids, Some(&features), &grids, &mut cache, LogitsToKeep::All)
            .unwrap();
        let rows = prefill.hidden.narrow(0, prompt - 1, reading.tokens.len() as i64);
        let logprobs = model
            .logits_with(&rows, adapter)
            .unwrap()
            .log_softmax(-1, Kind::Double);
        let chosen = logprobs.gather(1, &Tensor::from_slice(&reading.tokens).unsqueeze(1), false);
        let expected = chosen.sum(Kind::Double).double_value(&[]);
        assert!(
            (sum - expected).abs() < 1e-4,
            "variant {variant}: {sum}, teacher-forced {expected}"
        );

        let (best, ids) = logprobs.topk(5, -1, true, true);
        for (row, token) in reading.logprobs.iter().enumerate() {
            assert_eq!(token.top.len(), 5);
            for (rank, top) in token.top.iter().enumerate() {
                let at = [row as i64, rank as i64];
                assert!((f64::from(top.logprob) - best.double_value(&at)).abs() < 1e-4);
                assert_eq!(top.id, ids.int64_value(&at));
            }
        }
    }
}

#[test]
fn reported_tokens_spell_the_answer() {
    let reader = load(None, &[]).unwrap();
    let mut request = page(200);
    let plain = read(&reader, &request);
    request.logprobs = Some(0);
    let whole = read(&reader, &request);
    assert_eq!((&whole.text, &whole.tokens), (&plain.text, &plain.tokens));
    let spelled: Vec<u8> = whole
        .logprobs
        .iter()
        .flat_map(|token| token.token.bytes.clone())
        .collect();
    assert_eq!(String::from_utf8(spelled).unwrap(), whole.text);

    // A stop string in the middle of the answer: its own tokens are not reported, in the stream neither.
    let middle: String = whole.text.chars().skip(20).take(4).collect();
    request.overrides.stop = Some(vec![middle.clone()]);
    let (mut text, mut spelled) = (String::new(), Vec::new());
    let stopped = reader
        .read(&request, &mut |step| {
            text.push_str(step.text);
            spelled.extend(step.tokens.iter().flat_map(|token| token.token.bytes.clone()));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(stopped.finish_reason, FinishReason::Stop);
    assert_eq!(stopped.text, whole.text.split(&middle).next().unwrap());
    assert_eq!(text, stopped.text);
    let kept: Vec<u8> = stopped
        .logprobs
        .iter()
        .flat_map(|token| token.token.bytes.clone())
        .collect();
    assert_eq!(kept, spelled);
    let spelled = String::from_utf8(spelled).unwrap();
    assert!(
        spelled.starts_with(&stopped.text) && spelled.len() < stopped.text.len() + 20,
        "{spelled}"
    );
}

/// Allows even and odd ids in turn; not the special tokens at the end of the vocabulary, so that answers do not end.
struct Alternate {
    next: i64,
}

impl TokenMask for Alternate {
    fn allowed(&mut self, bitmask: &mut [u32]) {
        let ordinary = bitmask.len() - 4;
        bitmask[..ordinary].fill(if self.next == 0 { 0x5555_5555 } else { 0xAAAA_AAAA });
    }

    fn accept(&mut self, token: i64) {
        assert_eq!(token % 2, self.next);
        self.next = 1 - self.next;
    }
}

/// Tells when its first mask is begun, then waits until a forward pass has.
struct Beside {
    begun: Sender<()>,
    forward: Receiver<()>,
    is_first: bool,
}

impl TokenMask for Beside {
    fn allowed(&mut self, bitmask: &mut [u32]) {
        if std::mem::take(&mut self.is_first) {
            self.begun.send(()).expect("the reader waits");
            self.forward.recv_timeout(PATIENCE).expect("a forward pass");
        }
        bitmask.fill(u32::MAX);
    }

    fn accept(&mut self, _: i64) {}
}

/// Within the forward pass, between two of its layers, the reader waits for the mask to be begun; the mask waits for it to be there. One
/// after the other, neither would go on.
#[test]
fn a_mask_is_computed_beside_the_forward_pass() {
    let ((begins, begun), (enters, forward)) = (channel(), channel());
    let beside = Mutex::new(Some(Beside {
        begun: begins,
        forward,
        is_first: true,
    }));
    let reader = load(None, &[]).unwrap();
    let mut request = page(4);
    let free = read(&reader, &request);
    request.mask = Some(Arc::new(move || {
        Box::new(beside.lock().unwrap().take().expect("one generation"))
    }));
    let mut steps = 0;
    let masked = reader.read(&request, &mut |step| {
        if steps == 0 {
            assert!(step.generated.is_none(), "no token yet: the page is looked at");
            enters.send(()).expect("the mask waits");
            begun.recv_timeout(PATIENCE).expect("a mask");
        }
        steps += 1;
        ControlFlow::Continue(())
    });
    assert_eq!(masked.unwrap().tokens, free.tokens);
}

struct Faulty {
    panics: bool,
}

impl TokenMask for Faulty {
    fn allowed(&mut self, _: &mut [u32]) {
        assert!(!self.panics, "a mask with a bug");
    }

    fn accept(&mut self, _: i64) {}
}

#[test]
fn a_mask_restricts_tokens_but_not_log_probabilities() {
    let reader = load(None, &[]).unwrap();
    let mut request = page(12);
    request.logprobs = Some(1);
    let free = read(&reader, &request);
    request.mask = Some(Arc::new(|| Box::new(Alternate { next: 0 })));
    for temperature in [None, Some(1.0)] {
        request.overrides.temperature = temperature;
        let masked = read(&reader, &request);
        let parities: Vec<i64> = masked.tokens.iter().map(|id| id % 2).collect();
        assert!(
            parities
                .iter()
                .enumerate()
                .all(|(i, &parity)| parity == i as i64 % 2),
            "{parities:?}"
        );
        assert_eq!(masked.tokens.len(), 12);
        // The first token's most likely alternative is the free one, whether it is allowed or not.
        assert_eq!(masked.logprobs[0].top, free.logprobs[0].top);
    }
    for (panics, part) in [(false, "allows no token"), (true, "panicked")] {
        request.mask = Some(Arc::new(move || Box::new(Faulty { panics })));
        let error = reader
            .read(&request, &mut |_| ControlFlow::Continue(()))
            .unwrap_err()
            .to_string();
        assert!(error.contains(part), "{error}");
    }
    request.mask = None;
    request.overrides.temperature = None;
    assert_eq!(read(&reader, &request).tokens, free.tokens);
}

#[test]
fn each_picture_can_have_a_size_of_its_own() {
    let reader = load(None, &[]).unwrap();
    let bounds = reader.variants()[0].bounds.unwrap();
    let page = RgbPage::new(600, 800, vec![255; 600 * 800 * 3]);
    let small = bounds.overridden(None, Some(28 * 28 * 64)).unwrap();
    let content = vec![Content::Image, Content::Text("and".into()), Content::Image];
    let message = Message {
        role: Role::User,
        content,
    };
    let pictures = vec![
        page.clone().into(),
        Picture {
            page,
            bounds: Some(small),
        },
    ];
    let mut request = ReadRequest::new(vec![message], pictures);
    request.overrides.max_new_tokens = Some(1);
    let sizes = read(&reader, &request).images;
    for (size, bounds) in sizes.iter().zip([bounds, small]) {
        assert_eq!((size.width, size.height), (600, 800));
        let scaled = bounds.scaled(800, 600).unwrap();
        assert_eq!((size.resized_height, size.resized_width), scaled);
        let block = bounds.factor * bounds.factor;
        assert_eq!(
            size.tokens as u32,
            size.resized_width * size.resized_height / block
        );
    }
    assert!(sizes[1].tokens <= 64 && sizes[0].tokens > 64);

    for (min, max, part) in [
        (None, Some(bounds.max_pixels + 1), "max_pixels: must be from"),
        (Some(1), None, "min_pixels: must be from"),
        (
            Some(9000),
            Some(8000),
            "min_pixels: 9000 is more than max_pixels, 8000",
        ),
    ] {
        let error = bounds.overridden(min, max).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_text_that_cannot_fit_the_context_is_refused_with_both_numbers() {
    let reader = load(None, &[]).unwrap();
    let context = reader.model().config().text.max_position_embeddings;
    for length in [8 * context, 64 << 20] {
        let request = question(&"x ".repeat(length / 2), 5);
        let error = reader
            .read(&request, &mut |_| ControlFlow::Continue(()))
            .unwrap_err()
            .to_string();
        assert!(error.contains(&context.to_string()), "{error}");
    }
}
