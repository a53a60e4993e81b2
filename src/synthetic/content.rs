//! Content of a document, before it has a style.

use serde::{Deserialize, Serialize};

use crate::rendering::collapse_whitespace;

/// Kind of item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ItemKind {
    /// Title or heading.
    Heading,
    /// Name, number, age, sex, weight.
    Patient,
    /// Allergen, with the reaction.
    Allergy,
    /// Drug, dose, route, frequency.
    Medication,
    /// Analyte, value, unit, flag, range.
    Laboratory,
    /// A vital sign, or a row of them.
    Vital,
    /// Another measurement: score, diameter, setting.
    Measurement,
    /// A condition.
    Diagnosis,
    /// A procedure that was performed.
    Procedure,
    /// An examination or imaging finding.
    Finding,
    /// A recommendation or plan.
    Plan,
}

/// One answer line: text as it is on the page, with runs of spaces collapsed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Its kind.
    pub kind: ItemKind,
    /// Its text.
    pub text: String,
}

impl Item {
    pub(super) fn new(kind: ItemKind, text: &str) -> Self {
        let text = collapse_whitespace(text);
        Self { kind, text }
    }
}

/// Text that is placed on a page as a unit.
pub(super) enum Body {
    Title(String),
    /// A line of its own above its section.
    Heading(String),
    /// Wrapped if it is too long.
    Text(String),
    /// Cells; all rows of one table share their columns.
    Row {
        table: usize,
        cells: Vec<String>,
    },
}

impl Body {
    /// Words, which cannot be wrapped.
    pub(super) fn words(&self) -> impl Iterator<Item = &str> {
        let texts = match self {
            Self::Title(text) | Self::Heading(text) | Self::Text(text) => std::slice::from_ref(text),
            Self::Row { cells, .. } => cells,
        };
        texts.iter().flat_map(|text| text.split(' '))
    }
}

/// A block and its items.
pub(super) struct Block {
    pub(super) body: Body,
    pub(super) items: Vec<Item>,
}
