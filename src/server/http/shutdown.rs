//! Draining on SIGTERM and Ctrl-C.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use actix_web::dev::ServerHandle;

use crate::console::StopSignals;

/// Tells when in-flight requests began to be drained.
#[derive(Clone, Default)]
pub(in crate::server) struct Draining(Arc<OnceLock<Instant>>);

impl Draining {
    /// Whether requests were aborted because draining them took longer than `grace`.
    pub(in crate::server) fn is_overdue(&self, grace: Duration) -> bool {
        self.0.get().is_some_and(|since| since.elapsed() >= grace)
    }
}

/// First SIGTERM or SIGINT: runs `prepare`, which gets the signal's number, then drains in-flight requests. Second: exits.
pub(in crate::server) fn drain_on_signal<F: Future<Output = ()> + 'static>(
    server: ServerHandle,
    prepare: impl FnOnce(i32) -> F + 'static,
) -> io::Result<Draining> {
    let mut signals = StopSignals::listen()?;
    let draining = Draining::default();
    let since = Arc::clone(&draining.0);
    actix_web::rt::spawn(async move {
        let signal = signals.next().await;
        tracing::info!("draining in-flight requests; a second signal stops immediately");
        actix_web::rt::spawn(async move {
            prepare(signal).await;
            since.get_or_init(Instant::now);
            server.stop(true).await;
        });
        exit_immediately(128 + signals.next().await);
    });
    Ok(draining)
}

/// Logs that requests were aborted.
pub(in crate::server) fn log_aborted() {
    tracing::error!("in-flight requests aborted: --shutdown-seconds exceeded");
}

/// Exits without running destructors; nothing is buffered.
pub(in crate::server) fn exit_immediately(code: i32) -> ! {
    // SAFETY: `_exit` takes any code, touches no memory of the process and does not return.
    unsafe { libc::_exit(code) }
}
