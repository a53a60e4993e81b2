//! Documents of several pages over HTTP.

use medical_vision::documents::Decoder;
use medical_vision::server::ServerOptions;
use reqwest::blocking::Response;
use reqwest::blocking::multipart::Form;
use serde_json::{Value, json};

use super::streaming::{events, joined, timeless};
use super::support::{TestServer, assert_error, eventually, file_form};
use crate::suite::documents::bytes;
use crate::suite::documents::pdf_file::PdfFile;
use crate::suite::documents::tiff_file::{TiffFile, grey_page};

fn start(options: ServerOptions) -> TestServer {
    let decoder = Decoder::worker(env!("CARGO_BIN_EXE_medvision"));
    TestServer::start_with(options, |state| state.with_decoder(decoder))
}

fn pdf() -> Form {
    file_form(bytes("text.pdf"))
}

fn analyze(server: &TestServer, form: Form) -> Response {
    server.post("/analyze", form)
}

/// A file whose first page has a picture above the limit; `harmless` pages follow.
fn with_a_bad_page(harmless: usize) -> Form {
    let mut file = PdfFile::new();
    let image = "/Type /XObject /Subtype /Image /BitsPerComponent 8 /ColorSpace /DeviceGray /Width 60000 /Height 60000";
    let image = file.stream(image, &[0]);
    file.picture_page(image);
    for _ in 0..harmless {
        file.page("0 0 50 50 re f", "/MediaBox [0 0 72 72]");
    }
    file_form(file.finish())
}

#[test]
fn each_page_has_its_entry_and_the_text_is_that_of_all() {
    let server = start(ServerOptions::default());
    let form = pdf().text("prompt", "words").text("max_new_tokens", "7");
    let response = analyze(&server, form);
    assert_eq!(response.status(), 200);
    let answer: Value = response.json().expect("JSON");
    let sizes = ["800x556", "556x800", "1000x542"];
    let texts = sizes.map(|size| format!("words|{size}|Some(7)|None|None"));
    assert_eq!(answer["analysis"], texts.join("\n\n"));
    let pages = answer["pages"].as_array().expect("pages");
    for ((page, number), (text, size)) in pages.iter().zip(1..).zip(texts.iter().zip(sizes)) {
        let (width, height) = size.split_once('x').expect("a size");
        let expected = json!({
            "page": number, "status": "ok", "text": text, "finish_reason": "stop",
            "width": width.parse::<u32>().expect("a number"), "height": height.parse::<u32>().expect("a number"),
        });
        for (key, value) in expected.as_object().expect("an object") {
            assert_eq!(page[key], *value, "{key} of page {number}");
        }
        assert!(page["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
        assert_eq!(page["resized_width"], page["width"], "the stub does not scale");
        assert!(page["image_tokens"].is_u64() && page.get("error").is_none());
    }
    assert_eq!(pages.len(), 3);
    assert_eq!(
        (&answer["prompt_tokens"], &answer["completion_tokens"]),
        (&json!(300), &json!(12))
    );
    assert_eq!(answer["finish_reason"], "stop");
    server.is_well();
}

#[test]
fn pages_are_chosen_by_number() {
    let server = start(ServerOptions::default());
    for (pages, numbers) in [
        ("2", vec![2]),
        ("-1,1", vec![3, 1]),
        (" 2- ", vec![2, 3]),
        ("", vec![1, 2, 3]),
    ] {
        let answer: Value = server
            .post("/extract", pdf().text("pages", pages))
            .json()
            .expect("JSON");
        let found: Vec<_> = answer["pages"]
            .as_array()
            .expect("pages")
            .iter()
            .map(|page| page["page"].as_u64())
            .collect();
        assert_eq!(
            found,
            numbers.into_iter().map(Some).collect::<Vec<_>>(),
            "{pages}"
        );
    }
    let beyond = assert_error(server.post("/extract", pdf().text("pages", "4")), 422);
    assert!(
        beyond.contains("there is no page 4; the document has 3"),
        "{beyond}"
    );
    let malformed = assert_error(server.post("/extract", pdf().text("pages", "3-1")), 422);
    assert!(
        malformed.starts_with("pages: must be page numbers"),
        "{malformed}"
    );
}

#[test]
fn more_pages_than_the_limit_are_413() {
    let server = start(ServerOptions {
        max_pages: 2,
        ..ServerOptions::default()
    });
    let refused = assert_error(server.post("/extract", pdf()), 413);
    assert!(
        refused.contains("3 pages") && refused.contains("may have 2"),
        "{refused}"
    );
    assert_eq!(server.post("/extract", pdf().text("pages", "2-3")).status(), 200);
    let mut file = PdfFile::new();
    for _ in 0..5000 {
        file.page("", "/MediaBox [0 0 72 72]");
    }
    let refused = assert_error(server.post("/extract", file_form(file.finish())), 413);
    assert!(refused.contains("5000 pages"), "{refused}");
}

#[test]
fn passwords_open_files() {
    let server = start(ServerOptions::default());
    let form = || file_form(bytes("aes.pdf"));
    let missing = assert_error(server.post("/extract", form()), 400);
    assert!(missing.contains("`password`"), "{missing}");
    let wrong = assert_error(server.post("/extract", form().text("password", "CANARY")), 400);
    assert_eq!(wrong, "the password does not open the file");
    assert_eq!(
        server.post("/extract", form().text("password", "wärd")).status(),
        200
    );
    // Not needed, and ignored.
    assert_eq!(
        server.post("/extract", pdf().text("password", "wärd")).status(),
        200
    );
}

#[test]
fn a_page_that_fails_costs_itself_alone() {
    let server = start(ServerOptions::default());
    let answer: Value = analyze(&server, with_a_bad_page(1).text("prompt", "say here"))
        .json()
        .expect("JSON");
    assert_eq!(answer["analysis"], "here");
    let (first, second) = (&answer["pages"][0], &answer["pages"][1]);
    assert_eq!(
        (&first["status"], &first["text"], &first["width"]),
        (&json!("failed"), &json!(""), &Value::Null)
    );
    assert!(
        first["error"]
            .as_str()
            .is_some_and(|error| error.contains("60000x60000")),
        "{first}"
    );
    assert_eq!(
        (&second["status"], &second["text"]),
        (&json!("ok"), &json!("here"))
    );
    // Alone, and where all fail, it is the answer's error.
    let refused = assert_error(analyze(&server, with_a_bad_page(0)), 400);
    assert!(refused.contains("60000x60000"), "{refused}");
    let failed = assert_error(analyze(&server, with_a_bad_page(1).text("prompt", "error")), 400);
    assert!(failed.contains("60000x60000"), "{failed}");
    let panicked: Value = analyze(&server, pdf().text("prompt", "say a|PANIC"))
        .json()
        .expect("JSON");
    assert_eq!(
        panicked["detail"],
        "internal error; the server's log holds the cause under this answer's x-request-id"
    );
    server.is_well();
}

#[test]
fn a_stream_tells_where_pages_begin_and_end() {
    let server = start(ServerOptions::default());
    let form = || with_a_bad_page(2).text("prompt", "say one|two");
    let whole = timeless(analyze(&server, form()).json().expect("JSON"));
    let mut stream = events(analyze(&server, form().text("stream", "true")));
    let all = stream.rest();
    let names: Vec<&str> = all
        .iter()
        .map(|(name, _)| name.as_str())
        .filter(|name| *name != "delta")
        .collect();
    assert_eq!(
        names,
        [
            "page_start",
            "page_done",
            "page_start",
            "queued",
            "page_done",
            "page_start",
            "queued",
            "page_done",
            "done"
        ]
    );
    assert_eq!(joined(&all), "onetwoonetwo");
    assert_eq!(all[0].1, json!({"page": 1}));
    assert_eq!(all[1].1["status"], "failed");
    let done = all.last().expect("an event").1.clone();
    assert_eq!(timeless(done), whole);
    // All pages failed: the stream ends with the error.
    let mut stream = events(analyze(
        &server,
        pdf().text("prompt", "error").text("stream", "true"),
    ));
    let last = stream.rest().pop().expect("an event");
    assert_eq!((last.0.as_str(), &last.1["status"]), ("error", &json!(500)));
}

#[test]
fn a_client_that_leaves_stops_the_document() {
    let server = start(ServerOptions::default());
    let form = pdf().text("prompt", "sleep 60000").text("stream", "true");
    let mut stream = events(analyze(&server, form));
    stream.expect("page_start");
    stream.expect("queued");
    stream.expect("delta");
    drop(stream);
    eventually("it is cancelled", || {
        server.counts.cancelled.load(std::sync::atomic::Ordering::SeqCst) == 1
    });
    eventually("its slot is free", || server.engine.admitted() == 0);
    assert_eq!(
        server.counts.started.load(std::sync::atomic::Ordering::SeqCst),
        1,
        "no further page"
    );
    server.is_well();
}

#[test]
fn a_document_keeps_its_place_in_a_full_queue() {
    let server = start(ServerOptions {
        queue: 1,
        ..ServerOptions::default()
    });
    let form = pdf().text("prompt", "sleep 300").text("stream", "true");
    let mut document = events(analyze(&server, form));
    document.expect("page_start");
    document.expect("queued");
    document.expect("delta");
    // The queue is full from here on, also between the pages.
    let mut other = events(analyze(
        &server,
        pdf()
            .text("pages", "1")
            .text("prompt", "sleep 1500")
            .text("stream", "true"),
    ));
    other.expect("queued");
    assert_error(server.analyze("hello"), 503);
    let all = document.rest();
    let done = &all.last().expect("an event").1;
    let statuses: Vec<_> = done["pages"]
        .as_array()
        .expect("pages")
        .iter()
        .map(|page| &page["status"])
        .collect();
    assert_eq!(statuses, ["ok", "ok", "ok"]);
    // In turn: the other request ran before the second page.
    assert!(
        all.iter()
            .any(|(name, data)| name == "queued" && data["before"] == 1),
        "{all:?}"
    );
    other.rest();
    assert_eq!(server.engine.admitted(), 0);
}

#[test]
fn every_page_of_a_tiff_is_read() {
    let server = start(ServerOptions::default());
    let mut file = TiffFile::new();
    for (width, height) in [(40, 30), (30, 50)] {
        file.page(&grey_page(width, height, 200));
    }
    let answer: Value = analyze(&server, file_form(file.finish()).text("prompt", "p"))
        .json()
        .expect("JSON");
    assert_eq!(
        answer["analysis"],
        "p|40x30|Some(1024)|None|None\n\np|30x50|Some(1024)|None|None"
    );
    assert_eq!(answer["warnings"], json!([]));
}
