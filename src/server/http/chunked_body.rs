//! Bodies of large responses, copied chunk by chunk.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, MessageBody};
use actix_web::web::Bytes;
use tokio::sync::OwnedSemaphorePermit;

/// Bytes copied into the connection's buffer at a time.
const CHUNK_BYTES: usize = 16 * 1024;

/// A body that is copied in chunks as the client reads it; the framework would copy it at once.
pub(in crate::server) struct ChunkedBody {
    left: Bytes,
    _memory: Option<OwnedSemaphorePermit>,
}

impl ChunkedBody {
    /// Bytes that are in memory anyway.
    pub(in crate::server) fn shared(bytes: Bytes) -> Self {
        Self {
            left: bytes,
            _memory: None,
        }
    }

    /// Bytes that hold the permit `memory` until the last of them is sent.
    pub(in crate::server) fn accounted(bytes: Vec<u8>, memory: OwnedSemaphorePermit) -> Self {
        Self {
            left: bytes.into(),
            _memory: Some(memory),
        }
    }
}

impl MessageBody for ChunkedBody {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.left.len() as u64)
    }

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let chunk = self.left.len().min(CHUNK_BYTES);
        Poll::Ready((chunk > 0).then(|| Ok(self.left.split_to(chunk))))
    }
}
