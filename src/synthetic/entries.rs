//! Single entries: what a drug, a result, a finding looks like in words.

use super::{
    content::{Item, ItemKind},
    sections::Writer,
    vocabulary::{Form, Quantity},
};

/// An entry of a list: the item, and what may follow it.
pub(super) struct Entry {
    pub(super) item: Item,
    /// The same in the columns of a table.
    pub(super) cells: Vec<String>,
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
        let drug = if self.dice.chance(0.3) {
            self.invented(&self.shared.drug_endings)
        } else {
            self.dice.pick(drugs).clone()
        };
        self.entry_case(&drug)
    }

    pub(super) fn medication(&mut self) -> Entry {
        let (words, shared) = (self.words, self.shared);
        let (drugs, units, routes) = match self.dice.below(20) {
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
        let dose = format!("{} {}", self.dose(), self.dice.pick(units));
        let (route, frequency) = (self.dice.pick(routes), self.dice.pick(&shared.frequencies));
        let mut entry = Entry::new(
            ItemKind::Medication,
            &format!("{drug} {dose} {route} {frequency}"),
        );
        entry.cells = vec![drug, dose, route.clone(), frequency.clone()];
        if self.dice.chance(0.35) {
            let tail = self.dice.pick(&shared.tails);
            entry.tail = Some(self.filled(tail));
        }
        entry
    }

    pub(super) fn infusion(&mut self) -> Entry {
        let (words, shared) = (self.words, self.shared);
        let drug = self.drug(&words.drugs_infused);
        let rate = match self.dice.chance(0.5) {
            true => self.decimal(0.01, 2.5, 2),
            false => self.dice.between(1, 90).to_string(),
        };
        let rate = format!("{rate} {}", self.dice.pick(&shared.infusion_units));
        let route = self.dice.pick(&shared.routes_infused);
        let mut entry = Entry::new(ItemKind::Medication, &format!("{drug} {rate} {route}"));
        entry.cells = vec![drug, rate, route.clone()];
        entry
    }

    pub(super) fn result(&mut self, analyte: &Quantity, form: Form, range_last: bool) -> Entry {
        let (low, high) = (analyte.low, analyte.high);
        let span = high - low;
        let (value, flag) = match self.dice.below(10) {
            0..=4 => (self.dice.range(low, high), None),
            5..=7 => (
                high + span * self.dice.range(0.05, 2.0),
                Some(self.dice.pick(&self.shared.flags_high).clone()),
            ),
            _ => (
                (low - span * self.dice.range(0.05, 0.6)).max(low * 0.3),
                Some(self.dice.pick(&self.shared.flags_low).clone()),
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
        let dice = &mut *self.dice;
        let (short, name, value) = match which {
            0 => {
                let systolic = dice.between(78, 204);
                let diastolic = systolic * dice.between(50, 72) / 100;
                ("BP", "Blood pressure", format!("{systolic}/{diastolic} mmHg"))
            }
            1 => ("HR", "Heart rate", format!("{} bpm", dice.between(38, 158))),
            2 => ("RR", "Respiratory rate", dice.between(8, 38).to_string()),
            3 => ("SpO2", "Oxygen saturation", format!("{}%", dice.between(78, 100))),
            4 => (
                "Temp",
                "Temperature",
                format!("{}.{} °C", dice.between(34, 40), dice.below(10)),
            ),
            5 => (
                "MAP",
                "Mean arterial pressure",
                format!("{} mmHg", dice.between(48, 112)),
            ),
            _ => ("Pain", "Pain score", format!("{}/10", dice.below(11))),
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
        let name = if self.dice.chance(0.25) {
            let (word, organ) = (self.invented(&self.shared.disease_endings), self.dice.below(3));
            match organ {
                0 => format!("acute {word}"),
                1 => format!("chronic {word}"),
                _ => word,
            }
        } else {
            self.dice.pick(&self.words.diagnoses).clone()
        };
        let code = if self.dice.chance(0.35) {
            let letter = char::from(b'A' + self.dice.below(26) as u8);
            format!(" ({letter}{:02}.{})", self.dice.below(100), self.dice.below(100))
        } else {
            String::new()
        };
        let name = self.entry_case(&name);
        Entry::new(ItemKind::Diagnosis, &format!("{name}{code}"))
    }

    pub(super) fn procedure(&mut self) -> Entry {
        let name = self.dice.pick(&self.words.procedures).clone();
        let name = self.entry_case(&name);
        let text = match self.dice.below(3) {
            0 => format!("{name} on {}", self.date([2017, 2027])),
            1 if self.dice.chance(0.3) => format!("{name}, {} side", self.dice.pick(&["left", "right"])),
            _ => name,
        };
        Entry::new(ItemKind::Procedure, &text)
    }

    pub(super) fn finding(&mut self) -> String {
        if self.dice.chance(0.3) {
            return self.dice.pick(&self.words.normals).clone();
        }
        let (lesion, site) = (
            self.dice.pick(&self.words.lesions).clone(),
            self.dice.pick(&self.words.sites),
        );
        let size = match self.dice.below(4) {
            0 => format!(", {} mm", self.dice.between(2, 98)),
            1 => format!(", {} x {} mm", self.dice.between(2, 98), self.dice.between(2, 98)),
            2 => format!(", {} cm", self.decimal(0.4, 9.8, 1)),
            _ => String::new(),
        };
        format!("{lesion} in {site}{size}")
    }

    pub(super) fn plan(&mut self) -> Entry {
        let plan = self.dice.pick(&self.words.plans).clone();
        let plan = self.filled(&plan);
        Entry::new(ItemKind::Plan, &plan)
    }

    /// A phrase with its places filled in.
    pub(super) fn filled(&mut self, phrase: &str) -> String {
        let mut text = phrase.to_owned();
        while let Some(start) = text.find('{') {
            let end = text[start..].find('}').map_or(text.len(), |end| start + end + 1);
            let piece = match text.get(start + 1..end - 1).unwrap_or_default() {
                "n" => self.dice.between(2, 48).to_string(),
                "d" => self.dice.between(2, 9).to_string(),
                "specialty" => self.dice.pick(&self.words.specialties).clone(),
                "analyte" => self.dice.pick(&self.words.analytes).name.clone(),
                "drug_oral" => self.dice.pick(&self.words.drugs_oral).clone(),
                "procedure" => self.dice.pick(&self.words.procedures).clone(),
                _ => self.dice.pick(&self.shared.weekdays).clone(),
            };
            text.replace_range(start..end, &piece);
        }
        text
    }

    pub(super) fn surname(&mut self) -> String {
        match self.dice.chance(0.3) {
            true => capital(&self.invented(&[])),
            false => self.dice.pick(&self.words.surnames).clone(),
        }
    }

    /// A word that nobody knows: only the page tells how it is spelt.
    pub(super) fn invented(&mut self, endings: &[String]) -> String {
        let count = self.dice.between(2, 3);
        let mut word: String = (0..count)
            .map(|_| self.dice.pick(&self.shared.syllables).as_str())
            .collect();
        if !endings.is_empty() {
            word.push_str(self.dice.pick(endings).as_str());
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
        const USUAL: [&str; 24] = [
            "0.5", "1", "2", "2.5", "5", "6.25", "7.5", "10", "12.5", "15", "20", "25", "30", "40", "50",
            "75", "80", "100", "150", "200", "250", "300", "400", "500",
        ];
        match self.dice.below(10) {
            0..=5 => (*self.dice.pick(&USUAL)).to_owned(),
            6..=7 => self.dice.between(1, 999).to_string(),
            8 => self.decimal(0.1, 99.0, 1),
            _ => format!("{},{:03}", self.dice.between(1, 9), self.dice.below(40) * 25),
        }
    }

    pub(super) fn decimal(&mut self, low: f64, high: f64, decimals: usize) -> String {
        format!("{:.decimals$}", self.dice.range(low, high))
    }

    pub(super) fn date(&mut self, years: [usize; 2]) -> String {
        const MONTHS: [&str; 12] = [
            "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
        ];
        let (day, month) = (self.dice.between(1, 28), self.dice.between(1, 12));
        let year = self.dice.between(years[0], years[1]);
        match self.style.date_form {
            0 => format!("{month:02}/{day:02}/{year}"),
            1 => format!("{year}-{month:02}-{day:02}"),
            _ => format!("{day} {} {year}", MONTHS[month - 1]),
        }
    }
}

/// The first letter large.
pub(super) fn capital(text: &str) -> String {
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => String::new(),
    }
}

/// What is not empty, a space between.
fn spaced(parts: &[&str]) -> String {
    let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    parts.join(" ")
}
