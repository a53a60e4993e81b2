//! The end of the shipped server under load: nothing that was admitted is lost.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::Value;

use super::embedded::Shipped;
use super::support::{eventually, page_form};

/// What clients saw.
#[derive(Default)]
struct Seen {
    answers: AtomicUsize,
    refusals: AtomicUsize,
}

/// Starts a server, stops it in the middle of its work, and returns what its clients saw and how many pages it read.
fn drain(delay: &str, pages_before: usize) -> (Seen, usize) {
    let server = Shipped::launch(
        "models/qwen25-vl-nano",
        &["--queue", "2", "--max-batch", "2"],
        |command| {
            command.env("MVP_DRAIN_DELAY", delay);
        },
    );
    let mut server = server.loaded();
    let extract = server.url("/extract");
    let (seen, stopped) = (Seen::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while !stopped.load(Ordering::SeqCst) {
                    // A new connection each time, as of many clients: an old one may end with the server, unused.
                    let client = reqwest::blocking::Client::builder().pool_max_idle_per_host(0);
                    let client = client.build().expect("a client");
                    let form = page_form().text("max_new_tokens", "2");
                    match client.post(&extract).multipart(form).send() {
                        Ok(response) => {
                            let counted = match response.status().as_u16() {
                                200 => &seen.answers,
                                503 => &seen.refusals,
                                status => panic!("{status}: {:?}", response.text()),
                            };
                            // A whole answer.
                            response.json::<Value>().expect("JSON");
                            counted.fetch_add(1, Ordering::SeqCst);
                        }
                        // Nobody listens any more.
                        Err(_) => return,
                    }
                }
            });
        }
        eventually("pages are read", || {
            seen.answers.load(Ordering::SeqCst) > pages_before
        });
        server.terminate();
        if delay != "0" {
            let ready = || {
                let answer = server.client.get(server.url("/health/ready")).send();
                answer.map(|answer| (answer.status().as_u16(), answer.text().unwrap_or_default()))
            };
            eventually("it is not ready", || {
                ready().is_ok_and(|(status, text)| status == 503 && text.contains("draining"))
            });
            let told = server
                .client
                .get(server.url("/health"))
                .send()
                .expect("an answer");
            assert_eq!(told.headers()["connection"], "close", "clients go elsewhere");
            let before = seen.answers.load(Ordering::SeqCst);
            eventually("it still admits", || {
                seen.answers.load(Ordering::SeqCst) > before + 1
            });
        }
        let (code, log) = server.wait();
        stopped.store(true, Ordering::SeqCst);
        assert_eq!(code, Some(0), "{log}");
    });
    let read = server.log().matches("\"message\":\"page read\"").count();
    (seen, read)
}

#[test]
fn fifty_drains_lose_no_admitted_request() {
    for round in 0..50 {
        let (seen, read) = drain("0", round % 4);
        assert_eq!(seen.answers.into_inner(), read, "round {round}");
    }
}

#[test]
fn requests_are_admitted_while_load_balancers_are_told() {
    let (seen, read) = drain("3", 1);
    assert_eq!(seen.answers.into_inner(), read);
}

#[test]
fn the_second_signal_ends_the_delay() {
    let server = Shipped::launch("models/qwen25-vl-nano", &[], |command| {
        command.env("MVP_DRAIN_DELAY", "3600");
    });
    let server = server.loaded();
    server.terminate();
    eventually("it drains", || {
        server.log().contains("draining in-flight requests")
    });
    server.terminate();
    assert_eq!(server.ended().0, Some(143));
}

#[test]
fn ctrl_c_waits_for_no_load_balancer() {
    let server = Shipped::launch("models/qwen25-vl-nano", &[], |command| {
        command.env("MVP_DRAIN_DELAY", "3600");
    });
    let server = server.loaded();
    server.signal(libc::SIGINT);
    assert_eq!(server.ended().0, Some(0));
}
