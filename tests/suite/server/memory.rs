//! Pages that wait take the memory of what the model sees of them, whatever their files claim.

use reqwest::blocking::multipart::{Form, Part};

use super::embedded::Shipped;
use crate::suite::processing::images::memory::{LOSSLESS_WEBP, lossy_webp, tiff};

/// Most memory that the process ever held beside the libraries that it shares with others, MiB.
pub fn peak_mib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let kibibytes = |name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    (kibibytes("VmHWM:") - kibibytes("RssFile:")) / 1024
}

#[test]
fn eight_concurrent_pages_of_forty_megapixels_fit_into_half_a_gibibyte() {
    let server = Shipped::start("models/qwen25-vl-nano", &["--threads", "2"]).loaded();
    let lossy = lossy_webp();
    let floats = tiff(32, 3);
    let mut largest = floats.clone();
    largest.resize(20 << 20, 0);
    for file in [LOSSLESS_WEBP, &lossy, &floats, &largest] {
        std::thread::scope(|scope| {
            let readings: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let part = Part::bytes(file.to_vec()).file_name("page");
                        let form = Form::new().part("file", part).text("max_new_tokens", "1");
                        server.post("/extract", form).status().as_u16()
                    })
                })
                .collect();
            for reading in readings {
                assert_eq!(reading.join().unwrap(), 200);
            }
        });
    }
    let peak = peak_mib(server.child.id());
    assert!(peak < 512, "{peak} MiB");
}

#[test]
fn an_image_beyond_the_whole_memory_budget_is_rejected_with_a_figure() {
    let server = Shipped::start("models/qwen25-vl-nano", &["--max-decoded-mib", "100"]).loaded();
    let part = Part::bytes(LOSSLESS_WEBP.to_vec()).file_name("page");
    let response = server.post("/extract", Form::new().part("file", part));
    assert_eq!(response.status(), 400);
    let body = response.text().unwrap();
    assert!(body.contains("the limit is 100 MiB"), "{body}");
}
