//! A client's socket between the operating system and the HTTP parser.
//!
//! Bounds the size of a request head and the time for a head and for sending a response, and replaces the parser's own error
//! responses with the usual error body.
//! The socket may speak TLS (`handshake.rs`): everything here is about the bytes inside.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::rt::net::TcpStream;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::connection_slots::{ConnectionSlot, ConnectionState};
use super::framing::{Framing, HeadTooLarge};
use super::handshake::Socket;
use super::http_metrics::HttpMetrics;
use super::logging::warn_of_rejected_request;
use crate::server::errors::{parser_error, plain_http_error};

/// Timeout for a request head.
pub(in crate::server) const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Minimum rate at which a client must read a long response, bytes/s.
const MIN_WRITE_RATE: u64 = 1024;
/// TCP keep-alive detects clients that vanished.
const PROBE_AFTER: Duration = Duration::from_secs(10);
/// A byte that is invalid anywhere in a head: the parser rejects the request that contains it, after the responses before it.
const NEVER_IN_A_HEAD: &[u8] = b"\0";

/// A client's socket.
pub(super) struct Connection {
    socket: Socket,
    slot: ConnectionSlot,
    /// Timeout for a response of which the client reads nothing.
    stall: Duration,
    framing: Framing,
    /// Why the current head is rejected, if not by the parser.
    rejection: Option<StatusCode>,
    head_timer: Option<Pin<Box<Sleep>>>,
    write_timer: Option<Pin<Box<Sleep>>>,
    answer: Option<Replacement>,
    metrics: Arc<dyn HttpMetrics>,
}

/// Replaces the parser's own response.
struct Replacement {
    bytes: Vec<u8>,
    written: usize,
    replaces: usize,
}

impl Connection {
    pub(super) fn new(
        socket: Socket,
        slot: ConnectionSlot,
        stall: Duration,
        metrics: Arc<dyn HttpMetrics>,
    ) -> Self {
        Self {
            socket,
            slot,
            stall,
            framing: Framing::new(),
            rejection: None,
            head_timer: None,
            write_timer: None,
            answer: None,
            metrics,
        }
    }

    pub(super) fn state(&self) -> &Arc<ConnectionState> {
        self.slot.state()
    }

    /// Tracks the bytes of `buffer` after the first `before`, and removes what the parser must not see.
    fn follow(&mut self, before: usize, buffer: &mut ReadBuf<'_>) {
        if let Socket::Mistaken(_) = self.socket {
            return self.follow_mistaken(before, buffer);
        }
        let fed = self.framing.feed(&buffer.filled()[before..]);
        if self.framing.head_began() {
            self.state().head_begins();
        }
        if fed == Err(HeadTooLarge) {
            buffer.set_filled(before);
            self.reject(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, buffer);
        }
    }

    /// As [`Self::follow`]: rejects the first bytes that come, of which only the first line is of use.
    fn follow_mistaken(&mut self, before: usize, buffer: &mut ReadBuf<'_>) {
        let bytes = buffer.filled()[before..].trim_ascii_start();
        let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
        // Whether it is too long makes no difference.
        let _ = self.framing.feed(line);
        if buffer.filled().len() > before {
            buffer.set_filled(before);
            self.reject(StatusCode::BAD_REQUEST, buffer);
        }
    }

    fn reject(&mut self, status: StatusCode, buffer: &mut ReadBuf<'_>) {
        self.rejection = Some(status);
        buffer.put_slice(NEVER_IN_A_HEAD);
    }

    /// Whether the current head has timed out.
    fn head_is_late(&mut self, context: &mut Context<'_>) -> bool {
        if !self.framing.in_head() {
            self.head_timer = None;
            return false;
        }
        let timer = self
            .head_timer
            .get_or_insert_with(|| Box::pin(sleep(HEAD_TIMEOUT)));
        timer.as_mut().poll(context).is_ready()
    }

    /// Called while a response waits for the client to read: whether that has taken too long.
    fn client_stalls(&mut self, context: &mut Context<'_>) -> bool {
        self.slot.state().writing.store(true, Ordering::Release);
        let timer = self
            .write_timer
            .get_or_insert_with(|| Box::pin(sleep(self.stall)));
        timer.as_mut().poll(context).is_ready()
    }

    fn write_through(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket).poll_write(context, bytes);
        match &result {
            Poll::Pending => {
                if self.client_stalls(context) {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
            Poll::Ready(Ok(written)) => {
                if let Some(timer) = &mut self.write_timer {
                    let more = Duration::from_millis(*written as u64 * 1000 / MIN_WRITE_RATE);
                    let deadline = timer.deadline() + more;
                    timer.as_mut().reset(deadline);
                }
            }
            Poll::Ready(Err(_)) => {}
        }
        result
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.state().is_evicted(context.waker()) {
            // Treated like a disconnect.
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut this.socket).poll_read(context, buffer);
        // After a rejection nothing is parsed.
        if this.rejection.is_none() {
            match result {
                Poll::Ready(Ok(())) => this.follow(before, buffer),
                Poll::Pending if buffer.remaining() > 0 && this.head_is_late(context) => {
                    this.reject(StatusCode::REQUEST_TIMEOUT, buffer);
                    return Poll::Ready(Ok(()));
                }
                _ => {}
            }
        }
        result
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.state().is_evicted(context.waker()) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if this.answer.is_none()
            && let Some((start, status)) = parsers_own_error(bytes)
        {
            if start > 0 {
                // The responses before it.
                return this.write_through(context, &bytes[..start]);
            }
            let status = this.rejection.unwrap_or(status);
            warn_of_rejected_request(status);
            this.metrics.refused(status);
            this.answer = Some(Replacement {
                bytes: match this.socket {
                    Socket::Mistaken(_) => plain_http_error(this.framing.path()),
                    Socket::Plain(_) | Socket::Tls(_) => parser_error(status, this.framing.path()),
                },
                written: 0,
                replaces: bytes.len(),
            });
        }
        let Some(mut answer) = this.answer.take() else {
            return this.write_through(context, bytes);
        };
        while answer.written < answer.bytes.len() {
            match this.write_through(context, &answer.bytes[answer.written..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(0)),
                Poll::Ready(Ok(written)) => answer.written += written,
                other => {
                    this.answer = Some(answer);
                    return other;
                }
            }
        }
        // The parser may drop the connection instead of ending it.
        this.socket.say_farewell();
        Poll::Ready(Ok(answer.replaces))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Called when everything is written, though TLS may hold the end of it back.
        let result = Pin::new(&mut this.socket).poll_flush(context);
        if result.is_pending() {
            if this.state().is_evicted(context.waker()) {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            if this.client_stalls(context) {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            return Poll::Pending;
        }
        this.write_timer = None;
        this.state().writing.store(false, Ordering::Release);
        result
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(context)
    }
}

/// Offset in `bytes` of a response by the parser itself: the last one of a connection, an error without a body and without the
/// request id that all other responses have.
fn parsers_own_error(bytes: &[u8]) -> Option<(usize, StatusCode)> {
    const START: &[u8] = b"HTTP/1.1 4";
    if !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let start = bytes.windows(START.len()).rposition(|window| window == START)?;
    let head = std::str::from_utf8(&bytes[start..]).ok()?.to_ascii_lowercase();
    let bare = head.contains("\r\ncontent-length: 0\r\n") && !head.contains("\r\nx-request-id:");
    let status = head.get(9..12)?.parse().ok()?;
    let status = StatusCode::from_u16(status).ok()?;
    bare.then_some((start, status))
}

/// Lets the kernel close connections whose peer no longer answers or reads.
pub(super) fn enable_keep_alive(stream: &TcpStream, stall: Duration) {
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new()
        .with_time(PROBE_AFTER)
        .with_interval(PROBE_AFTER / 2);
    // Without these options the server works, but generation for a vanished client runs to its end.
    let _ = socket.set_tcp_keepalive(&probes);
    let _ = socket.set_tcp_user_timeout(Some(stall));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parsers_own_errors_are_recognized() {
        let own = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\ndate: x\r\n\r\n";
        let ours = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nx-request-id: 1\r\n\r\n";
        let good = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-request-id: 1\r\n\r\n{}";
        let found = |text: &str| parsers_own_error(text.as_bytes());
        assert_eq!(found(own), Some((0, StatusCode::BAD_REQUEST)));
        assert_eq!(
            found(&format!("{good}{own}")),
            Some((good.len(), StatusCode::BAD_REQUEST))
        );
        assert_eq!(
            found(&format!("{ours}{own}")),
            Some((ours.len(), StatusCode::BAD_REQUEST))
        );
        for other in [
            ours,
            good,
            "",
            "\r\n\r\n",
            "body HTTP/1.1 400\r\n\r\n",
            &own[..own.len() - 2],
        ] {
            assert_eq!(found(other), None, "{other:?}");
        }
    }
}
