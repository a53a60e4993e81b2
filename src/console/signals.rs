//! The signals that ask a program to stop.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT (Ctrl-C) and SIGTERM, which systemd, Docker, Kubernetes and Slurm send before they end a process.
pub struct StopSignals([(SignalKind, Signal); 2]);

impl StopSignals {
    /// From now on neither ends the process by itself. Needs tokio's runtime around it.
    pub fn listen() -> io::Result<Self> {
        let heard = |kind| Ok::<_, io::Error>((kind, signal(kind)?));
        Ok(Self([
            heard(SignalKind::interrupt())?,
            heard(SignalKind::terminate())?,
        ]))
    }

    /// Waits for the next of them; its number.
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
