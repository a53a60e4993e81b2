//! Kind of document and words → blocks with their items.

use std::collections::HashSet;

use super::{
    content::{Block, Body, Item, ItemKind},
    entries::{Entry, capital},
    vocabulary::{DocumentKind, Form, Section, SectionPlan, Shared, Words},
};
use crate::random::SeededRng;

/// Formatting conventions of one document.
pub(super) struct TextStyle {
    pub(super) upper_headings: bool,
    pub(super) colon: bool,
    pub(super) bullet: &'static str,
    pub(super) number_end: &'static str,
    pub(super) capital_entries: bool,
    pub(super) date_form: usize,
    pub(super) range_form: usize,
    /// Factor on the number of sections and entries.
    pub(super) fullness: f64,
}

/// Writes one document.
pub(super) struct Writer<'a> {
    pub(super) rng: &'a mut SeededRng,
    pub(super) words: &'a Words,
    pub(super) shared: &'a Shared,
    pub(super) style: TextStyle,
    blocks: Vec<Block>,
    tables: usize,
}

/// Writes a document of this kind, title first.
pub(super) fn write(kind: &DocumentKind, rng: &mut SeededRng, words: &Words, shared: &Shared) -> Vec<Block> {
    let style = TextStyle {
        upper_headings: rng.chance(0.6),
        colon: rng.chance(0.7),
        bullet: rng.pick::<&str>(&["-", "•", "*", "—"]),
        number_end: rng.pick::<&str>(&[".", ".", ")"]),
        capital_entries: rng.chance(0.6),
        date_form: rng.below(3),
        range_form: rng.below(4),
        fullness: rng.range(0.8, 2.0),
    };
    let mut writer = Writer {
        rng,
        words,
        shared,
        style,
        blocks: Vec::new(),
        tables: 0,
    };
    let title = writer.rng.pick(&kind.titles).clone();
    let title = if writer.style.upper_headings {
        title.to_uppercase()
    } else {
        title
    };
    let item = Item::new(ItemKind::Heading, &title);
    writer.push(Body::Title(title), vec![item]);
    for plan in &kind.sections {
        if writer.rng.chance(plan.chance * writer.style.fullness) {
            writer.section(plan);
        }
    }
    writer.blocks
}

impl Writer<'_> {
    fn section(&mut self, plan: &SectionPlan) {
        let count = self.rng.between(plan.count[0], plan.count[1]);
        let count = (count as f64 * self.style.fullness).round() as usize;
        let form = if plan.forms.is_empty() {
            Form::Plain
        } else {
            *self.rng.pick(&plan.forms)
        };
        let heading = match plan.headings.is_empty() {
            true => String::new(),
            false => self.rng.pick(&plan.headings).clone(),
        };
        match plan.section {
            Section::Facility => self.facility(),
            Section::Patient => self.patient(),
            Section::Signature => self.signature(),
            Section::Allergies => self.allergies(&heading),
            Section::Complaint => self.complaint(&heading),
            Section::Narrative => self.narrative(&heading, count),
            Section::Medications if form == Form::Prescription => self.prescriptions(count),
            Section::Medications => {
                let entries = (0..count).map(|_| self.medication()).collect();
                self.list(
                    &heading,
                    form,
                    entries,
                    &["Medication", "Dose", "Route", "Frequency"],
                );
            }
            Section::Infusions => {
                let entries = (0..count).map(|_| self.infusion()).collect();
                self.list(&heading, form, entries, &["Infusion", "Rate", "Route"]);
            }
            Section::Laboratory => self.laboratory(&heading, form, count),
            Section::Vitals if form == Form::Sheet => self.sheet(&heading, count),
            Section::Vitals => self.vitals(&heading, form, count),
            Section::Measurements => {
                let chosen = self.rng.several(&self.words.measurements, count);
                let entries = chosen
                    .into_iter()
                    .map(|quantity| self.measurement(quantity))
                    .collect();
                self.list(&heading, form, entries, &[]);
            }
            Section::Diagnoses => {
                let entries = (0..count).map(|_| self.diagnosis()).collect();
                self.list(&heading, form, entries, &[]);
            }
            Section::Procedures => {
                let entries = (0..count).map(|_| self.procedure()).collect();
                self.list(&heading, form, entries, &[]);
            }
            Section::Findings => {
                let entries = self.findings(form, count);
                self.list(&heading, form, entries, &[]);
            }
            Section::Plan => {
                let entries = (0..count).map(|_| self.plan()).collect();
                self.list(&heading, form, entries, &[]);
            }
        }
    }

    fn push(&mut self, body: Body, items: Vec<Item>) {
        self.blocks.push(Block { body, items });
    }

    fn text(&mut self, text: String, items: Vec<Item>) {
        self.push(Body::Text(text), items);
    }

    /// In this document's heading case, without a colon.
    fn cased(&self, heading: &str) -> String {
        if self.style.upper_headings {
            heading.to_uppercase()
        } else {
            heading.to_owned()
        }
    }

    fn heading(&mut self, heading: &str) {
        let cased = self.cased(heading);
        let item = Item::new(ItemKind::Heading, &cased);
        let colon = if self.style.colon { ":" } else { "" };
        self.push(Body::Heading(format!("{cased}{colon}")), vec![item]);
    }

    /// "HEADING: text", with the items of both.
    fn behind_heading(&mut self, heading: &str, text: &str, items: Vec<Item>) {
        let cased = self.cased(heading);
        let mut all = vec![Item::new(ItemKind::Heading, &cased)];
        all.extend(items);
        self.text(format!("{cased}: {text}"), all);
    }

    /// Writes the entries without duplicates.
    fn list(&mut self, heading: &str, form: Form, mut entries: Vec<Entry>, columns: &[&str]) {
        let mut said = HashSet::new();
        entries.retain(|entry| said.insert(entry.item.text.clone()));
        if entries.is_empty() {
            return;
        }
        match form {
            Form::Commas | Form::Inline => {
                let texts: Vec<&str> = entries.iter().map(|entry| entry.item.text.as_str()).collect();
                let separator = if texts.iter().any(|text| text.contains(',')) {
                    "; "
                } else {
                    ", "
                };
                let text = texts.join(separator);
                let items = entries.into_iter().map(|entry| entry.item).collect();
                if form == Form::Inline {
                    self.behind_heading(heading, &text, items);
                } else {
                    self.heading(heading);
                    self.text(text, items);
                }
            }
            Form::Table if entries.iter().all(|entry| !entry.cells.is_empty()) => {
                self.heading(heading);
                self.table(columns, entries);
            }
            _ => {
                self.heading(heading);
                for (index, entry) in entries.into_iter().enumerate() {
                    let mark = match form {
                        Form::Numbered => format!("{}{} ", index + 1, self.style.number_end),
                        Form::Bulleted => format!("{} ", self.style.bullet),
                        _ => String::new(),
                    };
                    let tail = entry.tail.map(|tail| format!(" - {tail}")).unwrap_or_default();
                    self.text(format!("{mark}{}{tail}", entry.item.text), vec![entry.item]);
                }
            }
        }
    }

    /// Writes a table, with a header in half of the tables that have column names.
    fn table(&mut self, columns: &[&str], entries: Vec<Entry>) {
        self.tables += 1;
        let table = self.tables;
        if !columns.is_empty() && self.rng.chance(0.5) {
            let cells = columns.iter().map(|column| (*column).to_owned()).collect();
            self.push(Body::Row { table, cells }, Vec::new());
        }
        for entry in entries {
            self.push(
                Body::Row {
                    table,
                    cells: entry.cells,
                },
                vec![entry.item],
            );
        }
    }

    fn facility(&mut self) {
        let facility = self.rng.pick(&self.words.facilities).clone();
        let more = match self.rng.below(3) {
            0 => format!(
                ", {} {} Street",
                self.rng.between(2, 990),
                capital(&self.pseudoword(&[]))
            ),
            1 => format!(
                "    Tel {}-{:04}",
                self.rng.between(200, 989),
                self.rng.below(10_000)
            ),
            _ => String::new(),
        };
        self.text(format!("{facility}{more}"), Vec::new());
    }

    fn patient(&mut self) {
        let (surname, first) = (self.surname(), self.rng.pick(&self.words.first_names).clone());
        let initial = char::from(b'A' + self.rng.below(26) as u8);
        let name = match self.rng.below(3) {
            0 => format!("{surname}, {first} {initial}."),
            1 => format!("{first} {surname}"),
            _ => format!("{surname}, {first}"),
        };
        let (number, age) = (self.rng.between(100_000, 9_999_999), self.rng.between(18, 97));
        let sex = self.rng.pick(&["F", "M"]);
        let born = self.date([1930, 2008]);
        let line = match self.rng.below(4) {
            0 => format!("Patient: {name}    MRN: {number}    Age: {age}    Sex: {sex}"),
            1 => format!("Name: {name}    DOB: {born}    ID: {number}"),
            2 => format!("Patient {name}, {age} y, {sex}    MRN {number}"),
            _ => format!("Patient: {name}    Age: {age}    MRN: {number}"),
        };
        let item = Item::new(ItemKind::Patient, &line);
        self.text(line, vec![item]);
        if self.rng.chance(0.4) {
            let kilograms = self.decimal(38.0, 148.0, 1);
            let line = format!(
                "Weight: {kilograms} kg    Height: {} cm",
                self.rng.between(142, 204)
            );
            let item = Item::new(ItemKind::Patient, &line);
            self.text(line, vec![item]);
        }
        if self.rng.chance(0.7) {
            let (date, doctor) = (self.date([2017, 2027]), self.surname());
            let label = self
                .rng
                .pick(&["Date", "Admitted", "Collected", "Date of visit", "Seen"]);
            let who = self
                .rng
                .pick(&["Provider", "Physician", "Ordering", "Attending", "Consultant"]);
            self.text(format!("{label}: {date}    {who}: Dr. {doctor}"), Vec::new());
        }
    }

    fn signature(&mut self) {
        let (doctor, date) = (self.surname(), self.date([2017, 2027]));
        let who = self
            .rng
            .pick(&["Signed", "Prescriber", "Recorded by", "Verified by"]);
        self.text(format!("{who}: {doctor}    {date}"), Vec::new());
    }

    fn allergies(&mut self, heading: &str) {
        if self.rng.chance(0.15) {
            let none = *self.rng.pick(&["none known", "NKDA", "no known drug allergies"]);
            self.behind_heading(heading, none, Vec::new());
            return;
        }
        let count = self.rng.between(1, 3);
        let allergens = self.rng.several(&self.words.allergens, count);
        let entries: Vec<Entry> = allergens
            .into_iter()
            .map(|allergen| {
                let allergen = if self.rng.chance(0.25) {
                    self.pseudoword(&self.shared.drug_endings)
                } else {
                    allergen.clone()
                };
                let reaction = self.rng.chance(0.6).then(|| self.rng.pick(&self.words.reactions));
                let reaction = reaction
                    .map(|reaction| format!(" ({reaction})"))
                    .unwrap_or_default();
                Entry::new(ItemKind::Allergy, &format!("{allergen}{reaction}"))
            })
            .collect();
        self.list(heading, Form::Inline, entries, &[]);
    }

    fn complaint(&mut self, heading: &str) {
        let count = self.rng.between(1, 2);
        let chosen = self.rng.several(&self.words.complaints, count);
        let complaints: Vec<&str> = chosen.into_iter().map(String::as_str).collect();
        let (number, unit) = (
            self.rng.between(2, 30),
            self.rng.pick(&["days", "weeks", "hours", "months"]),
        );
        self.behind_heading(
            heading,
            &format!("{} for {number} {unit}", complaints.join(" and ")),
            Vec::new(),
        );
    }

    fn narrative(&mut self, heading: &str, count: usize) {
        let sentences = self.rng.several(&self.words.narrative, count);
        let sentences: Vec<String> = sentences
            .into_iter()
            .map(|sentence| format!("{}.", self.filled(sentence)))
            .collect();
        self.behind_heading(heading, &sentences.join(" "), Vec::new());
    }

    fn prescriptions(&mut self, count: usize) {
        let (words, shared) = (self.words, self.shared);
        let label = *self.rng.pick(&["Rx", "Rx", "Drug", "Item"]);
        for number in 1..=count {
            let drug = self.drug(&words.drugs_oral);
            let form = self.rng.pick(&shared.forms);
            let what = format!(
                "{drug} {} {} {form}",
                self.dose(),
                self.rng.pick(&shared.dose_units_oral)
            );
            let how = format!(
                "{} {}",
                self.rng.pick(&shared.routes_oral),
                self.rng.pick(&shared.frequencies)
            );
            let item = Item::new(ItemKind::Medication, &format!("{what} {how}"));
            let supply = format!(
                "Disp: {}. Refills: {}",
                self.rng.between(5, 180),
                self.rng.between(0, 11)
            );
            self.text(format!("{label} {number}: {what}"), vec![item]);
            self.text(format!("Sig: {how}. {supply}"), Vec::new());
        }
    }

    fn laboratory(&mut self, heading: &str, form: Form, count: usize) {
        let range_last = self.rng.chance(0.5);
        let chosen = self.rng.several(&self.words.analytes, count);
        let entries: Vec<Entry> = chosen
            .into_iter()
            .map(|analyte| self.result(analyte, form, range_last))
            .collect();
        let columns: &[&str] = match range_last {
            true => &["Test", "Result", "Flag", "Reference"],
            false => &["Test", "Result", "Reference", "Flag"],
        };
        let form = if form == Form::Colons { Form::Plain } else { form };
        self.list(heading, form, entries, columns);
    }

    fn vitals(&mut self, heading: &str, form: Form, count: usize) {
        let long = form != Form::Inline && self.rng.chance(0.6);
        let mut which = self.rng.several(&[0, 1, 2, 3, 4, 5, 6], count);
        which.sort_unstable();
        let entries = which
            .into_iter()
            .map(|which| Entry::new(ItemKind::Vital, &self.vital(*which, long)))
            .collect();
        self.list(heading, form, entries, &[]);
    }

    /// Flow sheet: a row of vital signs every few hours, names above the columns.
    fn sheet(&mut self, heading: &str, rows: usize) {
        let names = ["BP", "HR", "RR", "SpO2", "Temp", "MAP", "Pain"];
        let count = self.rng.between(3, 5);
        let mut which = self.rng.several(&[0, 1, 2, 3, 4, 5, 6], count);
        which.sort_unstable();
        self.heading(heading);
        self.tables += 1;
        let table = self.tables;
        let mut header = vec!["Time".to_owned()];
        header.extend(which.iter().map(|which| names[**which].to_owned()));
        self.push(Body::Row { table, cells: header }, Vec::new());
        let (mut hour, step) = (self.rng.below(8), self.rng.between(1, 3));
        for _ in 0..rows {
            let mut cells = vec![format!("{hour:02}:{}0", self.rng.below(6))];
            for which in &which {
                let vital = self.vital(**which, false);
                let figure = vital.split(' ').nth(1).unwrap_or_default();
                cells.push(figure.to_owned());
            }
            let item = Item::new(ItemKind::Vital, &cells.join(" "));
            self.push(Body::Row { table, cells }, vec![item]);
            hour = (hour + step) % 24;
        }
    }

    fn findings(&mut self, form: Form, count: usize) -> Vec<Entry> {
        let organs = self.rng.several(&self.words.organs, count);
        let titled = self.style.upper_headings;
        let labels: Vec<String> = organs
            .into_iter()
            .map(|organ| {
                if titled {
                    organ.clone()
                } else {
                    capital(&organ.to_lowercase())
                }
            })
            .collect();
        (0..count)
            .map(|index| {
                let finding = self.finding();
                let label = labels.get(index).filter(|_| form == Form::Organs);
                let label = label.map(|label| format!("{label}: ")).unwrap_or_default();
                Entry::new(ItemKind::Finding, &format!("{label}{finding}"))
            })
            .collect()
    }
}
