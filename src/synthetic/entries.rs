//! Single entries: drugs, laboratory results, findings in words.

use super::{
    content::{Item, ItemKind},
    sections::Writer,
    vocabulary::{Form, Quantity},
};

/// An entry of a list.
pub(super) struct Entry {
    pub(super) item: Item,
    /// The same as table cells.
    pub(super) cells: Vec<String>,
    /// Remark after it.
    pub(super) tail: Option<String>,
}

impl Entry {
    pub(super) fn new(kind: ItemKind, text: &str) -> Self {
        Self {
            item: Item::new(kind, text),
            cells: Vec::new(),
            tail: None,
        }
    }
}

impl Writer<'_> {
    pub(super) fn drug(&mut self, drugs: &[String]) -> String {
        let drug = if self.rng.chance(0.3) {
            self.pseudoword(&self.shared.drug_endings)
        } else {
            self.rng.pick(drugs).clone()
        };
        self.entry_case(&drug)
    }

    pub(super) fn medication(&mut self) -> Entry {
        let (words, shared) = (self.words, self.shared);
        let (drugs, units, routes) = match self.rng.below(20) {
            0..=12 => (&words.drugs_oral, &shared.dose_units_oral, &shared.routes_oral),
            13..=18 => (
                &words.drugs_injected,
                &shared.dose_units_injected,
                &shared.routes_injected,
            ),
            _ => (
                &words.drugs_inhaled,
                &shared.dose_units_inhaled,
                &shared.routes_inhaled,
            ),
        };
        let drug = self.drug(drugs);
        let dose = format!("{} {}", self.dose(), self.rng.pick(units));
        let (route, frequency) = (self.rng.pick(routes), self.rng.pick(&shared.frequencies));
        let mut entry = Entry::new(
            ItemKind::Medication,
            &format!("{drug} {dose} {route} {frequency}"),
        );
        entry.cells = vec![drug, dose, route.clone(), frequency.clone()];
        if self.rng.chance(0.35) {
            let tail = self.rng.pick(&shared.tails);
            entry.tail = Some(self.filled(tail));
        }
        entry
    }

    pub(super) fn infusion(&mut self) -> Entry {
        let (words, shared) = (self.words, self.shared);
        let drug = self.drug(&words.drugs_infused);
        let rate = match self.rng.chance(0.5) {
            true => self.decimal(0.01, 2.5, 2),
            false => self.rng.between(1, 90).to_string(),
        };
        let rate = format!("{rate} {}", self.rng.pick(&shared.infusion_units));
        let route = self.rng.pick(&shared.routes_infused);
        let mut entry = Entry::new(ItemKind::Medication, &format!("{drug} {rate} {route}"));
        entry.cells = vec![drug, rate, route.clone()];
        entry
    }

    pub(super) fn result(&mut self, analyte: &Quantity, form: Form, range_last: bool) -> Entry {
        let (low, high) = (analyte.low, analyte.high);
        let span = high - low;
        let (value, flag) = match self.rng.below(10) {
            0..=4 => (self.rng.range(low, high), None),
            5..=7 => (
                high + span * self.rng.range(0.05, 2.0),
                Some(self.rng.pick(&self.shared.flags_high).clone()),
            ),
            _ => (
                (low - span * self.rng.range(0.05, 0.6)).max(low * 0.3),
                Some(self.rng.pick(&self.shared.flags_low).clone()),
            ),
        };
        let value = format!("{value:.*}", analyte.decimals);
        let value = spaced(&[&value, &analyte.unit]);
        let (low, high) = (
            format!("{low:.*}", analyte.decimals),
            format!("{high:.*}", analyte.decimals),
        );
        let range = match self.style.range_form {
            0 => format!("({low} - {high})"),
            1 => format!("{low}-{high}"),
            2 => format!("[{low}–{high}]"),
            _ => format!("({low}-{high})"),
        };
        let name = analyte.name.clone();
        let flag = flag.unwrap_or_default();
        match form {
            Form::Inline | Form::Commas => Entry::new(ItemKind::Laboratory, &spaced(&[&name, &value])),
            Form::Colons => {
                let text = spaced(&[&format!("{name}:"), &value, &range, &flag]);
                Entry::new(ItemKind::Laboratory, &text)
            }
            _ => {
                let cells = match range_last {
                    true => vec![name, value, flag, range],
                    false => vec![name, value, range, flag],
                };
                let mut entry = Entry::new(ItemKind::Laboratory, &cells.join(" "));
                entry.cells = cells;
                entry
            }
        }
    }

    /// A vital sign: its short and long name, value and unit.
    pub(super) fn vital(&mut self, which: usize, long: bool) -> String {
        let rng = &mut *self.rng;
        let (short, name, value) = match which {
            0 => {
                let systolic = rng.between(78, 204);
                let diastolic = systolic * rng.between(50, 72) / 100;
                ("BP", "Blood pressure", format!("{systolic}/{diastolic} mmHg"))
            }
            1 => ("HR", "Heart rate", format!("{} bpm", rng.between(38, 158))),
            2 => ("RR", "Respiratory rate", rng.between(8, 38).to_string()),
            3 => ("SpO2", "Oxygen saturation", format!("{}%", rng.between(78, 100))),
            4 => (
                "Temp",
                "Temperature",
                format!("{}.{} °C", rng.between(34, 40), rng.below(10)),
            ),
            5 => (
                "MAP",
                "Mean arterial pressure",
                format!("{} mmHg", rng.between(48, 112)),
            ),
            _ => ("Pain", "Pain score", format!("{}/10", rng.below(11))),
        };
        format!("{} {value}", if long { name } else { short })
    }

    pub(super) fn measurement(&mut self, quantity: &Quantity) -> Entry {
        let value = self.decimal(quantity.low, quantity.high, quantity.decimals);
        let value = match quantity.unit.as_str() {
            "%" => format!("{value}%"),
            unit => spaced(&[&value, unit]),
        };
        Entry::new(ItemKind::Measurement, &format!("{} {value}", quantity.name))
    }

    pub(super) fn diagnosis(&mut self) -> Entry {
        let name = if self.rng.chance(0.25) {
            let (word, organ) = (self.pseudoword(&self.shared.disease_endings), self.rng.below(3));
            match organ {
                0 => format!("acute {word}"),
                1 => format!("chronic {word}"),
                _ => word,
            }
        } else {
            self.rng.pick(&self.words.diagnoses).clone()
        };
        let code = if self.rng.chance(0.35) {
            let letter = char::from(b'A' + self.rng.below(26) as u8);
            format!(" ({letter}{:02}.{})", self.rng.below(100), self.rng.below(100))
        } else {
            String::new()
        };
        let name = self.entry_case(&name);
        Entry::new(ItemKind::Diagnosis, &format!("{name}{code}"))
    }

    pub(super) fn procedure(&mut self) -> Entry {
        let name = self.rng.pick(&self.words.procedures).clone();
        let name = self.entry_case(&name);
        let text = match self.rng.below(3) {
            0 => format!("{name} on {}", self.date([2017, 2027])),
            1 if self.rng.chance(0.3) => format!("{name}, {} side", self.rng.pick(&["left", "right"])),
            _ => name,
        };
        Entry::new(ItemKind::Procedure, &text)
    }

    pub(super) fn finding(&mut self) -> String {
        if self.rng.chance(0.3) {
            return self.rng.pick(&self.words.normals).clone();
        }
        let (lesion, site) = (
            self.rng.pick(&self.words.lesions).clone(),
            self.rng.pick(&self.words.sites),
        );
        let size = match self.rng.below(4) {
            0 => format!(", {} mm", self.rng.between(2, 98)),
            1 => format!(", {} x {} mm", self.rng.between(2, 98), self.rng.between(2, 98)),
            2 => format!(", {} cm", self.decimal(0.4, 9.8, 1)),
            _ => String::new(),
        };
        format!("{lesion} in {site}{size}")
    }

    pub(super) fn plan(&mut self) -> Entry {
        let plan = self.rng.pick(&self.words.plans).clone();
        let plan = self.filled(&plan);
        Entry::new(ItemKind::Plan, &plan)
    }

    /// A phrase with its placeholders (`{n}`, `{specialty}`, ...) filled in.
    pub(super) fn filled(&mut self, phrase: &str) -> String {
        let mut text = phrase.to_owned();
        while let Some(start) = text.find('{') {
            let end = text[start..].find('}').map_or(text.len(), |end| start + end + 1);
            let piece = match text.get(start + 1..end - 1).unwrap_or_default() {
                "n" => self.rng.between(2, 48).to_string(),
                "d" => self.rng.between(2, 9).to_string(),
                "specialty" => self.rng.pick(&self.words.specialties).clone(),
                "analyte" => self.rng.pick(&self.words.analytes).name.clone(),
                "drug_oral" => self.rng.pick(&self.words.drugs_oral).clone(),
                "procedure" => self.rng.pick(&self.words.procedures).clone(),
                _ => self.rng.pick(&self.shared.weekdays).clone(),
            };
            text.replace_range(start..end, &piece);
        }
        text
    }

    pub(super) fn surname(&mut self) -> String {
        match self.rng.chance(0.3) {
            true => capital(&self.pseudoword(&[])),
            false => self.rng.pick(&self.words.surnames).clone(),
        }
    }

    /// A pseudoword, which can be read but not guessed.
    pub(super) fn pseudoword(&mut self, endings: &[String]) -> String {
        let count = self.rng.between(2, 3);
        let mut word: String = (0..count)
            .map(|_| self.rng.pick(&self.shared.syllables).as_str())
            .collect();
        if !endings.is_empty() {
            word.push_str(self.rng.pick(endings).as_str());
        }
        word
    }

    pub(super) fn entry_case(&self, text: &str) -> String {
        if self.style.capital_entries {
            capital(text)
        } else {
            text.to_owned()
        }
    }

    pub(super) fn dose(&mut self) -> String {
        const COMMON: [&str; 24] = [
            "0.5", "1", "2", "2.5", "5", "6.25", "7.5", "10", "12.5", "15", "20", "25", "30", "40", "50",
            "75", "80", "100", "150", "200", "250", "300", "400", "500",
        ];
        match self.rng.below(10) {
            0..=5 => (*self.rng.pick(&COMMON)).to_owned(),
            6..=7 => self.rng.between(1, 999).to_string(),
            8 => self.decimal(0.1, 99.0, 1),
            _ => format!("{},{:03}", self.rng.between(1, 9), self.rng.below(40) * 25),
        }
    }

    pub(super) fn decimal(&mut self, low: f64, high: f64, decimals: usize) -> String {
        format!("{:.decimals$}", self.rng.range(low, high))
    }

    pub(super) fn date(&mut self, years: [usize; 2]) -> String {
        const MONTHS: [&str; 12] = [
            "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
        ];
        let (day, month) = (self.rng.between(1, 28), self.rng.between(1, 12));
        let year = self.rng.between(years[0], years[1]);
        match self.style.date_form {
            0 => format!("{month:02}/{day:02}/{year}"),
            1 => format!("{year}-{month:02}-{day:02}"),
            _ => format!("{day} {} {year}", MONTHS[month - 1]),
        }
    }
}

/// With a capital first letter.
pub(super) fn capital(text: &str) -> String {
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => String::new(),
    }
}

/// Joins the non-empty parts with spaces.
fn spaced(parts: &[&str]) -> String {
    let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    parts.join(" ")
}
