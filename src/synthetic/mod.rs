//! Synthetic clinical documents: structured content → a page's image, its text and the exact answers to questions about it.
//!
//! A page is made in this order, from one number on, so that it is the same on every machine:
//!
//! - [`vocabulary`]: the words, other ones for training, validation and test; kinds of document; all from data files.
//! - [`sections`], [`entries`]: a kind of document and the words → blocks of text, and what each says: [`Item`]s.
//! - [`spelling`], [`pieces`]: on pages to train on, words as nobody expects them.
//! - [`look`], [`layout`]: font, size, paper, faults → blocks placed on a page, or some of them on a slip no larger than they are.
//! - [`wear`]: the page drawn, then skewed, blurred, stamped, scanned, compressed.
//! - [`tasks`]: prompts, and which items answer each.
//!
//! The mapping from prompts to items is `datasets/clinical/tasks.json`: each task names its prompts, the project's ten medical
//! ones among them, and the kinds of item that answer them. Prompts that enumerate four or more kinds, or name the document
//! itself ("this prescription"), ask for the whole page.

mod content;
mod dice;
mod entries;
mod fonts;
mod layout;
mod look;
mod page;
mod pieces;
mod sections;
mod spelling;
mod strokes;
mod tasks;
mod vocabulary;
mod wear;

pub use self::content::{Item, ItemKind};
pub use self::page::{Page, page};
pub use self::tasks::{Question, TRANSCRIBE, nothing, task_kinds, whole_page_prompt};
pub use self::vocabulary::Split;

/// Changes whenever the same number would give another page or question.
pub const DOCUMENTS_VERSION: u32 = 8;
