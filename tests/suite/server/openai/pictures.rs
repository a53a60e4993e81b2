//! Pictures in messages: formats, sizes, limits; nothing is ever fetched.

use std::net::TcpListener;

use medical_vision::server::{HttpOptions, ServerOptions};
use serde_json::{Value, json};

use super::super::support::{file_form, png};
use super::stub::{
    assert_refused, completion, data_uri, page_uri, picture, post, refusal, start, with_parts,
};
use crate::suite::processing::images::memory::LOSSLESS_WEBP;

const PLACE: &str = "messages[0].content[0].image_url.url";

fn encoded(format: image::ImageFormat) -> Vec<u8> {
    let page = image::RgbImage::from_pixel(56, 84, image::Rgb([200, 200, 200]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    page.write_to(&mut bytes, format).expect("an encoder");
    bytes.into_inner()
}

fn images(server: &super::super::support::TestServer, body: &Value) -> Value {
    completion(server, body)["medvision"]["images"].clone()
}

#[test]
fn the_content_decides_the_format() {
    let server = start(ServerOptions::default());
    let size = json!([{"width": 56, "height": 84, "resized_width": 56, "resized_height": 84, "tokens": 6}]);
    let formats = [
        image::ImageFormat::Png,
        image::ImageFormat::Jpeg,
        image::ImageFormat::Bmp,
        image::ImageFormat::WebP,
    ];
    for format in formats {
        let bytes = encoded(format);
        for media_type in [
            "image/png",
            "image/jpeg",
            "application/octet-stream",
            "",
            "IMAGE/PNG;charset=utf-8",
        ] {
            let body = with_parts(json!([picture(&data_uri(media_type, &bytes))]));
            assert_eq!(images(&server, &body), size, "{format:?} as {media_type}");
        }
    }
    for (file, kind) in [("transparent.gif", "GIF"), ("grey-deflate.tiff", "TIFF")] {
        let bytes = std::fs::read(format!("tests/fixtures/images/{file}")).expect("a fixture");
        let extracted = server.post("/extract", file_form(bytes.clone()));
        let extracted: Value = extracted.json().expect("JSON");
        let body = with_parts(json!([picture(&data_uri("image/png", &bytes))]));
        assert_eq!(images(&server, &body), json!([extracted["image"]]), "{kind}");
    }
    // Padding may be missing, the scheme in capitals, and slashes escaped.
    let uri = page_uri();
    for variant in [
        uri.trim_end_matches('=').to_owned(),
        uri.replacen("data:", "DATA:", 1),
    ] {
        assert_eq!(images(&server, &with_parts(json!([picture(&variant)]))), size);
    }
    let escaped = with_parts(json!([picture(&uri)])).to_string().replace('/', "\\/");
    let response = super::stub::post_text(&server, escaped);
    let body: Value = response.json().expect("JSON");
    assert_eq!(body["medvision"]["images"], size);
}

#[test]
fn what_is_not_a_picture_is_refused_by_place() {
    let server = start(ServerOptions::default());
    let html = data_uri("image/png", b"<!DOCTYPE html><html><body>not found</body></html>");
    let mut torn = png(56, 84);
    torn.truncate(30);
    let cases = [
        ("", "invalid_image_url", "is empty"),
        ("page.png", "invalid_image_url", "not a data URI"),
        ("file:///etc/passwd", "invalid_image_url", "not a data URI"),
        (
            "ftp://example.org/page.png",
            "invalid_image_url",
            "not a data URI",
        ),
        ("iVBORw0KGgo=", "invalid_image_url", "not a data URI"),
        ("data:", "invalid_image_url", "without data"),
        ("data:image/png;base64,", "invalid_image_url", "without data"),
        ("data:image/png,iVBORw0KGgo=", "invalid_image_url", "base64"),
        ("data:image/png;base64,====", "invalid_base64", "not valid base64"),
        (
            "data:image/png;base64,not base64!",
            "invalid_base64",
            "not valid base64",
        ),
        (
            "data:image/png;base64,iVBORw0K\nGgo=",
            "invalid_base64",
            "not valid base64",
        ),
        (
            "data:image/png;base64,iVBO=Rw0KGgo",
            "invalid_base64",
            "not valid base64",
        ),
        (&html, "invalid_image", "not a supported image"),
        (&data_uri("image/png", &torn), "invalid_image", "damaged"),
    ];
    for (url, code, reason) in cases {
        let message = refusal(&server, &with_parts(json!([picture(url)])), code, PLACE);
        assert!(message.contains(reason), "{url}: {message}");
        assert!(
            !message.contains("html") && !message.contains("passwd"),
            "{message}"
        );
    }
    // The second of two.
    let parts = json!([picture(&page_uri()), {"type": "text", "text": "a"}, picture(&html)]);
    refusal(
        &server,
        &with_parts(parts),
        "invalid_image",
        "messages[0].content[2].image_url.url",
    );
    server.is_well();
}

#[test]
fn web_addresses_are_never_fetched() {
    let server = start(ServerOptions::default());
    let site = TcpListener::bind("127.0.0.1:0").expect("a port");
    site.set_nonblocking(true).expect("a socket");
    let address = site.local_addr().expect("an address");
    for url in [
        format!("http://{address}/page.png"),
        format!("HTTPS://{address}/page.png"),
    ] {
        let message = refusal(
            &server,
            &with_parts(json!([picture(&url)])),
            "invalid_image_url",
            PLACE,
        );
        assert!(
            message.contains("data URI") && message.contains("fetches nothing"),
            "{message}"
        );
    }
    server.is_well();
    let visit = site.accept().map(|_| ()).map_err(|error| error.kind());
    assert_eq!(
        visit,
        Err(std::io::ErrorKind::WouldBlock),
        "the address was visited"
    );
}

#[test]
fn the_number_of_pictures_is_limited() {
    let server = start(ServerOptions::default());
    let pages = |count: usize| with_parts(Value::Array(vec![picture(&page_uri()); count]));
    assert_eq!(images(&server, &pages(16)).as_array().expect("a list").len(), 16);
    let message = refusal(&server, &pages(17), "invalid_value", "messages[0].content[16]");
    assert!(message.contains("16"), "{message}");
    let two = start(ServerOptions {
        max_pictures: 2,
        ..ServerOptions::default()
    });
    refusal(&two, &pages(3), "invalid_value", "messages[0].content[2]");
    // Of all messages together.
    let user = |pages: usize| json!({"role": "user", "content": vec![picture(&page_uri()); pages]});
    let body = json!({"model": "default", "messages": [user(2), user(1)]});
    refusal(&two, &body, "invalid_value", "messages[1].content[0]");
}

#[test]
fn pictures_share_the_upload_limit() {
    let http = HttpOptions {
        max_upload_mib: 1,
        ..HttpOptions::default()
    };
    let server = start(ServerOptions {
        http,
        ..ServerOptions::default()
    });
    let file = |bytes: usize| {
        let mut file = png(56, 84);
        file.resize(bytes, 0);
        picture(&data_uri("image/png", &file))
    };
    const HALF: usize = 1 << 19;
    assert_eq!(
        images(&server, &with_parts(json!([file(HALF), file(HALF)])))
            .as_array()
            .expect("a list")
            .len(),
        2
    );
    let error = assert_refused(
        post(&server, &with_parts(json!([file(HALF), file(HALF + 1)]))),
        413,
    );
    assert_eq!(error["param"], "messages[0].content[1].image_url.url");
    assert!(
        error["message"].as_str().expect("a text").contains("1 MiB"),
        "{error}"
    );
    server.is_well();
}

#[test]
fn sizes_for_the_model_follow_the_request() {
    let server = start(ServerOptions::default());
    let page = data_uri("image/png", &png(1240, 1754));
    let seen = |detail: Value, kwargs: Value| {
        let part = json!({"type": "image_url", "image_url": {"url": page, "detail": detail}});
        let mut body = with_parts(json!([part]));
        body["mm_processor_kwargs"] = kwargs;
        let image = &images(&server, &body)[0];
        let size = |key: &str| image[key].as_u64().expect("a size");
        assert_eq!((size("width"), size("height")), (1240, 1754));
        assert_eq!(
            size("tokens"),
            size("resized_width") * size("resized_height") / 784
        );
        size("tokens")
    };
    let whole = seen(Value::Null, Value::Null);
    assert!(whole > 1000, "{whole}");
    for detail in ["auto", "high"] {
        assert_eq!(seen(json!(detail), Value::Null), whole);
    }
    let low = seen(json!("low"), Value::Null);
    assert!((256..=512).contains(&low), "{low}");
    let hundred = 100 * 784;
    let few = seen(Value::Null, json!({"max_pixels": hundred}));
    assert!((50..=100).contains(&few), "{few}");
    assert_eq!(
        seen(json!("low"), json!({"max_pixels": hundred})),
        few,
        "the smaller one"
    );
    assert_eq!(seen(json!("low"), json!({"min_pixels": 1_000_000})), low);
    assert_eq!(seen(Value::Null, json!({"max_pixels": 1_003_520})), whole);

    for (kwargs, param) in [
        (json!({"max_pixels": 1_003_521}), "max_pixels"),
        (json!({"max_pixels": 783}), "max_pixels"),
        (json!({"min_pixels": 1_003_521}), "min_pixels"),
    ] {
        let body = super::stub::request("hello", json!({"mm_processor_kwargs": kwargs}));
        let message = refusal(
            &server,
            &body,
            "invalid_value",
            &format!("mm_processor_kwargs.{param}"),
        );
        assert!(message.contains("from 784 to 1003520"), "{message}");
    }
    let body = super::stub::request(
        "hello",
        json!({"mm_processor_kwargs": {"min_pixels": 2000, "max_pixels": 1000}}),
    );
    refusal(&server, &body, "invalid_value", "mm_processor_kwargs.min_pixels");
}

#[test]
fn warnings_name_the_picture() {
    let server = start(ServerOptions::default());
    let page = image::RgbImage::from_fn(560, 840, |x, y| image::Rgb([x as u8, y as u8, (x * y) as u8]));
    let mut torn = std::io::Cursor::new(Vec::new());
    page.write_to(&mut torn, image::ImageFormat::Jpeg)
        .expect("an encoder");
    let mut torn = torn.into_inner();
    torn.truncate(torn.len() / 2);
    let answer = completion(
        &server,
        &with_parts(json!([picture(&page_uri()), picture(&data_uri("", &torn))])),
    );
    assert_eq!(
        answer["medvision"]["warnings"],
        json!(["messages[0].content[1].image_url.url: truncated"])
    );
}

#[test]
fn a_picture_beyond_the_memory_budget_is_refused_with_a_figure() {
    let server = start(ServerOptions {
        max_decoded_mib: 64,
        ..ServerOptions::default()
    });
    let body = with_parts(json!([
        picture(&page_uri()),
        picture(&data_uri("image/webp", LOSSLESS_WEBP))
    ]));
    let message = refusal(
        &server,
        &body,
        "invalid_image",
        "messages[0].content[1].image_url.url",
    );
    assert!(message.contains("the limit is 64 MiB"), "{message}");
    server.is_well();
}

/// Each request holds pages of 3 MiB while it waits for the memory of its next one, 54 MiB: without turns, four of them wait for ever.
#[test]
fn requests_with_several_pictures_do_not_wait_for_each_other() {
    let server = start(ServerOptions {
        max_decoded_mib: 64,
        // A busy machine must not let them wait too long for their turn.
        queue_deadline_seconds: 3600,
        ..ServerOptions::default()
    });
    let page = picture(&data_uri("image/png", &png(2000, 2000)));
    let body = with_parts(Value::Array(vec![page; 4]));
    std::thread::scope(|scope| {
        let answers: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| post(&server, &body).status()))
            .collect();
        for answer in answers {
            assert_eq!(answer.join().expect("no panic"), 200);
        }
    });
}
