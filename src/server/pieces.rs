//! Large answers piece by piece: what its reader has not taken yet stays where it is.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, MessageBody};
use actix_web::web::Bytes;
use tokio::sync::OwnedSemaphorePermit;

/// Bytes copied into a connection's buffer at once.
const PIECE: usize = 16 * 1024;

/// A body that is copied by the piece as the client takes it; the framework would copy it whole.
pub(super) struct Pieces {
    left: Bytes,
    _memory: Option<OwnedSemaphorePermit>,
}

impl Pieces {
    /// Bytes that are there anyway.
    pub(super) fn shared(bytes: Bytes) -> Self {
        Self {
            left: bytes,
            _memory: None,
        }
    }

    /// Bytes that hold `memory` until the last of them was taken.
    pub(super) fn accounted(bytes: Vec<u8>, memory: OwnedSemaphorePermit) -> Self {
        Self {
            left: bytes.into(),
            _memory: Some(memory),
        }
    }
}

impl MessageBody for Pieces {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.left.len() as u64)
    }

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let piece = self.left.len().min(PIECE);
        Poll::Ready((piece > 0).then(|| Ok(self.left.split_to(piece))))
    }
}
