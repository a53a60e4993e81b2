//! Several requests at once, of different sizes and kinds: each answer is the one that it gets alone, and to a page the
//! one that transformers gives.
//!
//! Prompts are prefilled one by one with a cache of their own, so a batch is what waits in the engine's queue, or the
//! files of one command line.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use medical_vision::engine::{Engine, EngineOptions, EngineState, LoadOptions, Picture, ReadRequest, Reader};
use medical_vision::generation::GenerationOverrides;
use medical_vision::processing::{Content, DecodeLimits, Message, RgbPage, Role, decode};
use serde_json::Value;

use super::program::{GoldenPage, TRAINED_PROMPT, code, golden_page, run, stderr, stdout, text};
use super::trace::Golden;

/// From 204x84 pixels to 658x392.
const PAGES: [&str; 5] = [
    "small_strip_labs.png",
    "small_cbc.png",
    "small_strip_codes.png",
    "small_derm.png",
    "small_strip_rx.png",
];

fn picture(path: &PathBuf) -> RgbPage {
    decode(&std::fs::read(path).unwrap(), &DecodeLimits::default()).unwrap()
}

fn page_request(page: &GoldenPage) -> ReadRequest {
    let mut request = ReadRequest::page(TRAINED_PROMPT, picture(&page.path));
    request.overrides.max_new_tokens = Some(640);
    request
}

/// The goldens' conversation; drawn by lot with a seed, since the likeliest answer to some ends at once.
fn conversation(golden: &Golden) -> ReadRequest {
    let images: Vec<Picture> = golden.pictures.iter().map(picture).map(Picture::from).collect();
    let mut content = vec![Content::Image; images.len()];
    content.push(Content::Text(golden.prompt.clone()));
    let message = Message {
        role: Role::User,
        content,
    };
    let mut request = ReadRequest::new(vec![message], images);
    request.overrides = GenerationOverrides {
        max_new_tokens: Some(24),
        temperature: Some(2.0),
        seed: Some(7),
        ..GenerationOverrides::default()
    };
    request
}

#[test]
fn requests_that_wait_together_are_answered_as_if_alone() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano");
    let alone = Reader::load(&folder, &LoadOptions::default()).unwrap();
    let mut batch: Vec<(ReadRequest, Vec<i64>)> = Vec::new();
    let mut add = |request: ReadRequest, text: Option<&str>| {
        let reading = alone.read(&request, &mut |_| ControlFlow::Continue(())).unwrap();
        assert!(reading.completion_tokens > 1);
        if let Some(text) = text {
            assert_eq!(reading.text, text);
        }
        batch.push((request, reading.tokens));
    };
    // Text alone, one image and two images stand between the pages.
    for (file, case) in PAGES.into_iter().zip(["text", "several", "ragged"]) {
        let page = golden_page(file);
        add(page_request(&page), Some(&page.text));
        add(conversation(&Golden::of_nano(case)), None);
    }
    let options = EngineOptions {
        queue: 2 * batch.len(),
        queue_deadline: Duration::from_secs(3600),
        generation_deadline: Duration::from_secs(3600),
        ..EngineOptions::default()
    };
    let engine = Engine::start(move || Ok(alone), options).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let state = runtime.block_on(engine.loaded());
    assert!(matches!(state, EngineState::Ready(_)), "{state:?}");
    // In order and in reverse, all of them waiting before the first is answered.
    let order: Vec<usize> = (0..batch.len()).chain((0..batch.len()).rev()).collect();
    let tickets: Vec<_> = order
        .iter()
        .map(|&number| engine.reserve().unwrap().submit(batch[number].0.clone()).unwrap())
        .collect();
    for (number, mut ticket) in order.into_iter().zip(tickets) {
        let reading = runtime.block_on(ticket.answer()).unwrap().reading;
        assert_eq!(reading.tokens, batch[number].1, "request {number}");
    }
    engine.join();
}

#[test]
fn files_of_one_command_are_read_as_if_alone_in_any_order() {
    let pages: Vec<GoldenPage> = PAGES.into_iter().map(golden_page).collect();
    let mut orders = [[0, 1, 2, 3, 4], [3, 0, 4, 2, 1]].into_iter();
    for order in orders.by_ref() {
        let mut arguments = vec!["extract", "--json", "--device", "cpu", "--prompt", TRAINED_PROMPT];
        arguments.extend(order.iter().map(|&number: &usize| text(&pages[number].path)));
        let output = run(&arguments);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        let printed = stdout(&output);
        assert_eq!(printed.lines().count(), pages.len());
        for (number, line) in order.iter().zip(printed.lines()) {
            let (page, record): (_, Value) = (&pages[*number], serde_json::from_str(line).unwrap());
            assert_eq!(record["file"], text(&page.path));
            assert_eq!(record["extracted_content"], page.text);
            assert_eq!(record["prompt_tokens"], page.prompt_tokens);
            assert_eq!(record["completion_tokens"], page.completion_tokens);
            assert_eq!(record["finish_reason"], "stop");
            assert_eq!(record["model_info"]["model_name"], "qwen25-vl-nano");
        }
    }
}
