//! Synthetic clinical documents: page images with their text and the exact answers to questions about them.
//!
//! A page is a function of split, seed and index, and is the same on every machine. The steps:
//!
//! - [`vocabulary`]: word lists, disjoint between training, validation and test, and kinds of document, from data files.
//! - [`sections`], [`entries`]: kind of document and words → blocks of text with their [`Item`]s.
//! - [`perturb`], [`token_words`]: training pages only: perturbs words so that the model must read rather than guess.
//! - [`style`], [`layout`]: font, size and paper → blocks placed on a page, or a few of them on a small crop.
//! - [`degrade`], [`marks`]: the rendered page is stamped, skewed, blurred, given sensor noise and compressed.
//! - [`tasks`]: prompts, and the items that answer each.
//!
//! `datasets/clinical/tasks.json` maps prompts to items: each task lists its prompts, the ten medical ones among them, and the
//! kinds of item that answer them. Prompts that enumerate four or more kinds, or name the document itself ("this
//! prescription"), ask for the whole page.

mod content;
mod degrade;
mod entries;
mod fonts;
mod layout;
mod marks;
mod page;
mod perturb;
mod sections;
mod style;
mod tasks;
mod token_words;
mod vocabulary;

pub use self::content::{Item, ItemKind};
pub use self::page::{Page, page};
pub use self::tasks::{Question, TRANSCRIBE, empty_answer, task_kinds, whole_page_prompt};
pub use self::vocabulary::Split;

/// Version of the generator: incremented when the same split, seed and index give another page or question.
pub const DOCUMENTS_VERSION: u32 = 8;
