//! The signals that ask a program to stop.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// A stream of SIGINT (Ctrl-C) and SIGTERM.
pub struct StopSignals([(SignalKind, Signal); 2]);

impl StopSignals {
    /// Replaces the default action of both signals. Call inside a tokio runtime.
    ///
    /// # Errors
    /// The operating system's, if a handler cannot be installed.
    pub fn listen() -> io::Result<Self> {
        let listener = |kind| Ok::<_, io::Error>((kind, signal(kind)?));
        Ok(Self([
            listener(SignalKind::interrupt())?,
            listener(SignalKind::terminate())?,
        ]))
    }

    /// Waits for the next signal and returns its number.
    pub async fn next(&mut self) -> i32 {
        poll_fn(|context| {
            let mut signals = self.0.iter_mut();
            match signals.find_map(|(kind, signal)| signal.poll_recv(context).is_ready().then_some(*kind)) {
                Some(kind) => Poll::Ready(kind.as_raw_value()),
                None => Poll::Pending,
            }
        })
        .await
    }
}
