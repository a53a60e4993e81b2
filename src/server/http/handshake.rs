//! The beginning of a TLS connection.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::rt::net::TcpStream;
use rustls::{CertificateError, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::connection_slots::ConnectionState;
use crate::console::RateLimit;

/// A client's socket: what HTTP is spoken over.
pub(super) enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// The client speaks plain HTTP, the port TLS: to be refused.
    Mistaken(TcpStream),
}

/// Why there is no connection. The client's own words are in none of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// Without a byte, as a probe of a port does: not logged.
    Silent,
    Late,
    Left,
    NoCertificate,
    CertificateExpired,
    CertificateUnknown,
    CertificateRefused,
    Incompatible,
    Distrusted,
    Malformed,
}

impl Failure {
    const COUNT: usize = 1 + Self::Malformed as usize;

    fn of(error: &io::Error) -> Self {
        let source = error.get_ref();
        let Some(error) = source.and_then(|source| source.downcast_ref::<rustls::Error>()) else {
            return Self::Left;
        };
        match error {
            rustls::Error::NoCertificatesPresented => Self::NoCertificate,
            rustls::Error::InvalidCertificate(
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. },
            ) => Self::CertificateExpired,
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => Self::CertificateUnknown,
            rustls::Error::InvalidCertificate(_) => Self::CertificateRefused,
            rustls::Error::PeerIncompatible(_) | rustls::Error::NoApplicationProtocol => Self::Incompatible,
            rustls::Error::AlertReceived(_) => Self::Distrusted,
            _ => Self::Malformed,
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Silent | Self::Left => "the client left",
            Self::Late => "not finished in time",
            Self::NoCertificate => "the client has no certificate",
            Self::CertificateExpired => "the client's certificate has expired, or is not valid yet",
            Self::CertificateUnknown => {
                "the client's certificate is not from an authority of --tls-client-ca"
            }
            Self::CertificateRefused => "the client's certificate is not valid",
            Self::Incompatible => "the client has no TLS 1.2 or 1.3, or no algorithm or protocol in common",
            Self::Distrusted => "the client refused, for example this server's certificate",
            Self::Malformed => "not a valid handshake",
        }
    }

    fn log(self) {
        static LIMITS: [RateLimit; Failure::COUNT] = [const { RateLimit::new() }; Failure::COUNT];
        if self == Self::Silent {
            return;
        }
        if let Some(connections) = LIMITS[self as usize].due() {
            tracing::warn!(reason = self.reason(), connections, "TLS handshakes failed");
        }
    }
}

/// Waits for the handshake of a new connection, whose slot is `state`'s. `None` if there is no connection: the handshake fails or
/// takes longer than `limit`, the slot is needed for another connection, or `stopping` is ready.
pub(super) async fn accept(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    limit: Duration,
    state: &ConnectionState,
    stopping: impl Future<Output = ()>,
) -> Option<Socket> {
    let mut handshake = pin!(timeout(limit, shake_hands(stream, config)));
    let mut stopping = pin!(stopping);
    let outcome = poll_fn(|context| {
        if state.is_evicted(context.waker()) || stopping.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        handshake.as_mut().poll(context).map(Some)
    });
    match outcome.await?.unwrap_or(Err(Failure::Late)) {
        Ok(socket) => Some(socket),
        Err(failure) => {
            failure.log();
            None
        }
    }
}

async fn shake_hands(stream: TcpStream, config: Arc<ServerConfig>) -> Result<Socket, Failure> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(1..) => {}
        Ok(0) | Err(_) => return Err(Failure::Silent),
    }
    // A TLS record begins with 22, a request with its method, before which there may be empty lines.
    if first[0].is_ascii_alphabetic() || matches!(first[0], b'\r' | b'\n') {
        return Ok(Socket::Mistaken(stream));
    }
    // The end of the handshake and the answer are small writes, which would wait for each other's acknowledgement.
    let _ = stream.set_nodelay(true);
    let accepted = TlsAcceptor::from(config).accept(stream).await;
    let stream = accepted.map_err(|error| Failure::of(&error))?;
    Ok(Socket::Tls(Box::new(stream)))
}

/// What every socket can do.
trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

impl Socket {
    /// Has the next flush tell a TLS client that nothing follows.
    pub(super) fn say_farewell(&mut self) {
        if let Self::Tls(stream) = self {
            stream.get_mut().1.send_close_notify();
        }
    }

    fn stream(self: Pin<&mut Self>) -> Pin<&mut dyn Stream> {
        match self.get_mut() {
            Self::Plain(stream) | Self::Mistaken(stream) => Pin::new(stream),
            Self::Tls(stream) => Pin::new(stream),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream().poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(context)
    }
}
