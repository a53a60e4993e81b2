//! Word lists of each split and kinds of document, from `datasets/clinical`.

use std::collections::HashSet;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::Value;

const VOCABULARY: &str = include_str!("../../datasets/clinical/vocabulary.json");
const KINDS: &str = include_str!("../../datasets/clinical/kinds.json");

/// Data split; each has its own words and random streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Training.
    Train,
    /// Validation during training.
    Validation,
    /// Final evaluation.
    Test,
}

impl Split {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

/// Words of one split only. Entries with bars are fields: name, unit, low, high, decimals.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Words {
    pub(super) drugs_oral: Vec<String>,
    pub(super) drugs_injected: Vec<String>,
    pub(super) drugs_infused: Vec<String>,
    pub(super) drugs_inhaled: Vec<String>,
    pub(super) diagnoses: Vec<String>,
    pub(super) procedures: Vec<String>,
    pub(super) analytes: Vec<Quantity>,
    pub(super) measurements: Vec<Quantity>,
    pub(super) organs: Vec<String>,
    pub(super) sites: Vec<String>,
    pub(super) lesions: Vec<String>,
    pub(super) normals: Vec<String>,
    pub(super) plans: Vec<String>,
    pub(super) complaints: Vec<String>,
    pub(super) narrative: Vec<String>,
    pub(super) allergens: Vec<String>,
    pub(super) reactions: Vec<String>,
    pub(super) surnames: Vec<String>,
    pub(super) first_names: Vec<String>,
    pub(super) facilities: Vec<String>,
    pub(super) specialties: Vec<String>,
}

/// Words of all splits: routes, units, common terms.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Shared {
    pub(super) syllables: Vec<String>,
    pub(super) drug_endings: Vec<String>,
    pub(super) disease_endings: Vec<String>,
    pub(super) routes_oral: Vec<String>,
    pub(super) routes_injected: Vec<String>,
    pub(super) routes_infused: Vec<String>,
    pub(super) routes_inhaled: Vec<String>,
    pub(super) frequencies: Vec<String>,
    pub(super) infusion_units: Vec<String>,
    pub(super) dose_units_oral: Vec<String>,
    pub(super) dose_units_injected: Vec<String>,
    pub(super) dose_units_inhaled: Vec<String>,
    pub(super) forms: Vec<String>,
    pub(super) tails: Vec<String>,
    pub(super) weekdays: Vec<String>,
    pub(super) flags_high: Vec<String>,
    pub(super) flags_low: Vec<String>,
    pub(super) stamps: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vocabulary {
    train: Words,
    validation: Words,
    test: Words,
    shared: Shared,
}

/// A quantity with its range, written "Sodium|mmol/L|136|145|0".
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Quantity {
    pub(super) name: String,
    pub(super) unit: String,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) decimals: usize,
}

impl TryFrom<String> for Quantity {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let invalid = || format!("{text:?} is not name|unit|low|high|decimals");
        let fields: Vec<&str> = text.split('|').collect();
        let [name, unit, low, high, decimals] = fields[..] else {
            return Err(invalid());
        };
        Ok(Self {
            name: name.to_owned(),
            unit: unit.to_owned(),
            low: low.parse().map_err(|_| invalid())?,
            high: high.parse().map_err(|_| invalid())?,
            decimals: decimals.parse().map_err(|_| invalid())?,
        })
    }
}

/// A kind of document and its sections in order.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DocumentKind {
    pub(super) id: String,
    pub(super) titles: Vec<String>,
    pub(super) sections: Vec<SectionPlan>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SectionPlan {
    pub(super) section: Section,
    #[serde(default)]
    pub(super) headings: Vec<String>,
    /// Minimum and maximum number of entries.
    #[serde(default)]
    pub(super) count: [usize; 2],
    #[serde(default)]
    pub(super) forms: Vec<Form>,
    #[serde(default = "always")]
    pub(super) chance: f64,
}

fn always() -> f64 {
    1.0
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Section {
    Facility,
    Patient,
    Allergies,
    Complaint,
    Narrative,
    Medications,
    Infusions,
    Laboratory,
    Vitals,
    Measurements,
    Diagnoses,
    Procedures,
    Findings,
    Plan,
    Signature,
}

/// Format of a list of entries.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Form {
    /// One line per entry, after "1." or "1)".
    Numbered,
    /// One line per entry, after a dash or bullet.
    Bulleted,
    /// One line per entry.
    Plain,
    /// A running list below the heading.
    Commas,
    /// A running list after the heading, on its line.
    Inline,
    Table,
    /// "Sodium: 140 mmol/L (136 - 145)".
    Colons,
    /// "Rx 1:" and "Sig:".
    Prescription,
    /// A row per time of day.
    Sheet,
    /// "LIVER: ...".
    Organs,
}

/// Words that occur only in validation and test lists, in lower case.
pub(super) static HELD_OUT_WORDS: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let data: Value = serde_json::from_str(VOCABULARY).expect("the shipped words are parsed by the tests");
    let words = |text: &str| -> HashSet<String> {
        let words = text.split(|c: char| !c.is_alphabetic());
        words.map(str::to_lowercase).collect()
    };
    let text = |list: &str| data[list].to_string();
    let trained_on = words(&(text("train") + &text("shared") + KINDS));
    let others = words(&(text("validation") + &text("test")));
    others.difference(&trained_on).cloned().collect()
});

static DATA: LazyLock<Vocabulary> =
    LazyLock::new(|| serde_json::from_str(VOCABULARY).expect("the shipped words are parsed by the tests"));

static ALL_KINDS: LazyLock<Vec<DocumentKind>> = LazyLock::new(|| {
    #[derive(Deserialize)]
    struct File {
        kinds: Vec<DocumentKind>,
    }
    let file: File = serde_json::from_str(KINDS).expect("the shipped kinds are parsed by the tests");
    file.kinds
});

pub(super) fn words(split: Split) -> &'static Words {
    match split {
        Split::Train => &DATA.train,
        Split::Validation => &DATA.validation,
        Split::Test => &DATA.test,
    }
}

pub(super) fn shared() -> &'static Shared {
    &DATA.shared
}

pub(super) fn kinds() -> &'static [DocumentKind] {
    &ALL_KINDS
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists whose names begin alike share their words within a split: a drug is the same drug by any route.
    fn lists(split: &str) -> Vec<(String, HashSet<String>)> {
        let data: Value = serde_json::from_str(VOCABULARY).unwrap();
        let lists = data[split].as_object().unwrap().iter();
        lists
            .map(|(name, words)| {
                let words = words.as_array().unwrap().iter();
                let words = words.map(|word| word.as_str().unwrap().to_lowercase());
                (name.split('_').next().unwrap().to_owned(), words.collect())
            })
            .collect()
    }

    #[test]
    fn splits_share_no_words() {
        let splits = ["train", "validation", "test"].map(lists);
        for (one, others) in [(0, [1, 2]), (1, [0, 2])] {
            for (name, words) in &splits[one] {
                for (other, found) in others.iter().flat_map(|other| &splits[*other]) {
                    if name == other {
                        let both: Vec<_> = words.intersection(found).collect();
                        assert!(both.is_empty(), "{name}: {both:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn words_use_the_fonts_alphabet_and_lists_are_not_empty() {
        for text in [VOCABULARY, KINDS] {
            let foreign: HashSet<char> = text.chars().filter(|c| !is_known(*c) && *c != '\n').collect();
            assert!(foreign.is_empty(), "{foreign:?}");
        }
        for split in ["train", "validation", "test", "shared"] {
            for (name, words) in lists(split) {
                assert!(words.len() >= 2, "{split}: {name}");
            }
        }
        assert_eq!(kinds().len(), 10);
        for quantity in [Split::Train, Split::Validation, Split::Test]
            .iter()
            .flat_map(|split| words(*split).analytes.iter().chain(&words(*split).measurements))
        {
            assert!(quantity.low < quantity.high, "{quantity:?}");
        }
    }

    fn is_known(character: char) -> bool {
        matches!(character, ' '..='~') || "—–°µ±≤≥×•→²éü’".contains(character)
    }
}
