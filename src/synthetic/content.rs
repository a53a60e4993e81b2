//! What a document says, before it has a look.

use serde::{Deserialize, Serialize};

/// What an item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ItemKind {
    /// Title or heading.
    Heading,
    /// Name, number, age, sex, weight.
    Patient,
    /// What the patient does not tolerate, with the reaction.
    Allergy,
    /// Drug, dose, route, frequency.
    Medication,
    /// Analyte, value, unit, flag, range.
    Laboratory,
    /// A vital sign, or a row of them.
    Vital,
    /// Another figure: score, diameter, setting.
    Measurement,
    /// A condition.
    Diagnosis,
    /// Something done.
    Procedure,
    /// What was seen or felt.
    Finding,
    /// What is to be done.
    Plan,
}

/// One answer line: the page's own words, runs of spaces made one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// What it is.
    pub kind: ItemKind,
    /// Its words.
    pub text: String,
}

impl Item {
    pub(super) fn new(kind: ItemKind, text: &str) -> Self {
        let text = collapsed(text);
        Self { kind, text }
    }
}

/// Runs of spaces made one, none at the ends.
pub(super) fn collapsed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What stays together on a page.
pub(super) enum Body {
    Title(String),
    /// A line of its own above what it heads.
    Heading(String),
    /// Broken into lines where it is too long.
    Text(String),
    /// Cells in columns, which all rows of one table share.
    Row {
        table: usize,
        cells: Vec<String>,
    },
}

impl Body {
    /// What cannot be broken.
    pub(super) fn words(&self) -> impl Iterator<Item = &str> {
        let texts = match self {
            Self::Title(text) | Self::Heading(text) | Self::Text(text) => std::slice::from_ref(text),
            Self::Row { cells, .. } => cells,
        };
        texts.iter().flat_map(|text| text.split(' '))
    }
}

/// A block and what it says.
pub(super) struct Block {
    pub(super) body: Body,
    pub(super) items: Vec<Item>,
}
