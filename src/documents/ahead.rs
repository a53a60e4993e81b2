//! Decodes pages ahead of their use.

use std::sync::mpsc::{Receiver, sync_channel};

use super::{Document, DocumentPage};
use crate::error::DocumentError;
use crate::processing::PixelBounds;

/// Pages of a document in the order asked for, each with its number. At most two are decoded ahead: one waits in the channel, one for
/// its place there. Dropping it ends the thread after the page that it decodes.
pub struct PagesAhead(Source);

enum Source {
    /// Decoded when they are asked for: a single page, or where no thread can be started.
    Asked(Document, std::vec::IntoIter<u32>, Option<PixelBounds>),
    Thread(Receiver<(u32, Result<DocumentPage, DocumentError>)>),
}

impl PagesAhead {
    pub(super) fn start(document: Document, numbers: Vec<u32>, bounds: Option<PixelBounds>) -> Self {
        if numbers.len() < 2 {
            return Self(Source::Asked(document, numbers.into_iter(), bounds));
        }
        let (sender, receiver) = sync_channel(1);
        let decode = {
            let (document, numbers) = (document.clone(), numbers.clone());
            move || {
                for number in numbers {
                    let page = document.page(number, bounds.as_ref());
                    if sender.send((number, page)).is_err() {
                        break;
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("pages".into()).spawn(decode);
        Self(match thread {
            Ok(_) => Source::Thread(receiver),
            Err(_) => Source::Asked(document, numbers.into_iter(), bounds),
        })
    }
}

impl Iterator for PagesAhead {
    type Item = (u32, Result<DocumentPage, DocumentError>);

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Source::Asked(document, numbers, bounds) => {
                let number = numbers.next()?;
                Some((number, document.page(number, bounds.as_ref())))
            }
            Source::Thread(pages) => pages.recv().ok(),
        }
    }
}
