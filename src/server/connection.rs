//! A client's socket between the operating system and the HTTP parser.
//!
//! It bounds what the parser must hold of a head, the time that a head and the taking of an answer may last, and it gives the
//! parser's own errors the body that all errors have.

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

use super::errors::parser_error;
use super::framing::{Framing, HeadTooLarge};
use super::logging::warn_of_refusal;
use super::places::{Line, Place};

/// How long a request's head may take to arrive.
pub(super) const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// How long an answer that nobody takes keeps its connection.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// Slower takers of a long answer are cut off: bytes a second.
const LEAST_WRITE_RATE: u64 = 1024;
/// Probes find out about a client that vanished without a word.
const PROBE_AFTER: Duration = Duration::from_secs(10);
/// A byte that no head may hold, wherever it stands: the parser refuses what it follows, after the answers due before.
const NEVER_IN_A_HEAD: &[u8] = b"\0";

/// A client's socket.
pub(super) struct Connection {
    stream: TcpStream,
    place: Place,
    framing: Framing,
    /// Why the present head is refused, where it was not the parser that refused it.
    refusal: Option<StatusCode>,
    head_timer: Option<Pin<Box<Sleep>>>,
    write_timer: Option<Pin<Box<Sleep>>>,
    answer: Option<Replacement>,
}

/// What is written in place of the parser's answer.
struct Replacement {
    bytes: Vec<u8>,
    written: usize,
    stands_for: usize,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, place: Place) -> Self {
        watch_over(&stream);
        Self {
            stream,
            place,
            framing: Framing::new(),
            refusal: None,
            head_timer: None,
            write_timer: None,
            answer: None,
        }
    }

    pub(super) fn line(&self) -> &Arc<Line> {
        self.place.line()
    }

    /// Follows the bytes that came after the first `before` of `buffer`, and takes back what no parser should see.
    fn follow(&mut self, before: usize, buffer: &mut ReadBuf<'_>) {
        let fed = self.framing.feed(&buffer.filled()[before..]);
        if self.framing.head_began() {
            self.line().head_begins();
        }
        if fed == Err(HeadTooLarge) {
            buffer.set_filled(before);
            self.refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, buffer);
        }
    }

    fn refuse(&mut self, status: StatusCode, buffer: &mut ReadBuf<'_>) {
        self.refusal = Some(status);
        buffer.put_slice(NEVER_IN_A_HEAD);
    }

    /// Whether the present head has taken too long.
    fn head_is_late(&mut self, context: &mut Context<'_>) -> bool {
        if !self.framing.in_head() {
            self.head_timer = None;
            return false;
        }
        let timer = self
            .head_timer
            .get_or_insert_with(|| Box::pin(sleep(HEAD_DEADLINE)));
        timer.as_mut().poll(context).is_ready()
    }

    fn write_through(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        match &result {
            Poll::Pending => {
                self.place.line().writing.store(true, Ordering::Release);
                let timer = self
                    .write_timer
                    .get_or_insert_with(|| Box::pin(sleep(WRITE_DEADLINE)));
                if timer.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
            Poll::Ready(Ok(written)) => {
                if let Some(timer) = &mut self.write_timer {
                    let more = Duration::from_millis(*written as u64 * 1000 / LEAST_WRITE_RATE);
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
        if this.line().has_ended(context.waker()) {
            // As if the client had left.
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut this.stream).poll_read(context, buffer);
        // After a refusal nothing is parsed.
        if this.refusal.is_none() {
            match result {
                Poll::Ready(Ok(())) => this.follow(before, buffer),
                Poll::Pending if buffer.remaining() > 0 && this.head_is_late(context) => {
                    this.refuse(StatusCode::REQUEST_TIMEOUT, buffer);
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
        if this.line().has_ended(context.waker()) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if this.answer.is_none()
            && let Some((start, status)) = parsers_own_error(bytes)
        {
            if start > 0 {
                // The answers before it.
                return this.write_through(context, &bytes[..start]);
            }
            let status = this.refusal.unwrap_or(status);
            warn_of_refusal(status);
            this.answer = Some(Replacement {
                bytes: parser_error(status),
                written: 0,
                stands_for: bytes.len(),
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
        Poll::Ready(Ok(answer.stands_for))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // It is asked for when everything was written.
        this.write_timer = None;
        this.line().writing.store(false, Ordering::Release);
        Pin::new(&mut this.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

/// Where in `bytes` an answer begins that the parser gave by itself: the last one of a connection, an error without a body and
/// without the id that every other answer has.
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

/// Has the kernel end connections whose other side no longer answers or no longer reads.
fn watch_over(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new()
        .with_time(PROBE_AFTER)
        .with_interval(PROBE_AFTER / 2);
    // Without these the server works, and a vanished client's reading runs to its end.
    let _ = socket.set_tcp_keepalive(&probes);
    let _ = socket.set_tcp_user_timeout(Some(WRITE_DEADLINE));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parsers_own_errors_are_told_from_all_other_answers() {
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
