//! Structured reports → text: headings, values with units, indented as they are nested.

use dicom_object::{DefaultDicomObject, InMemDicomObject, Tag};

use super::CONTENT_SEQUENCE;
use crate::documents::page::MAX_TEXT_BYTES;

const VALUE_TYPE: Tag = Tag(0x0040, 0xa040);
const CONCEPT_NAME: Tag = Tag(0x0040, 0xa043);
const CONCEPT_CODE: Tag = Tag(0x0040, 0xa168);
const CODE_MEANING: Tag = Tag(0x0008, 0x0104);
const CODE_VALUE: Tag = Tag(0x0008, 0x0100);
const TEXT_VALUE: Tag = Tag(0x0040, 0xa160);
const DATE: Tag = Tag(0x0040, 0xa121);
const TIME: Tag = Tag(0x0040, 0xa122);
const DATE_TIME: Tag = Tag(0x0040, 0xa120);
const MEASURED_VALUE: Tag = Tag(0x0040, 0xa300);
const NUMERIC_VALUE: Tag = Tag(0x0040, 0xa30a);
const UNITS: Tag = Tag(0x0040, 0x08ea);
/// Deepest nesting.
const MAX_DEPTH: usize = 32;

/// The text of a report. Persons' names and identifiers are left out.
pub(super) fn text(object: &DefaultDicomObject) -> String {
    let mut text = String::new();
    if let Some(title) = coded(object, CONCEPT_NAME) {
        text.push_str(&title);
        text.push('\n');
    }
    add_items(object, 0, &mut text);
    text.truncate(text.trim_end().len());
    text
}

fn add_items(object: &InMemDicomObject, depth: usize, text: &mut String) {
    let items = object
        .element_opt(CONTENT_SEQUENCE)
        .ok()
        .flatten()
        .and_then(|items| items.items());
    for item in items.unwrap_or_default() {
        if depth >= MAX_DEPTH || text.len() > MAX_TEXT_BYTES {
            return;
        }
        let name = coded(item, CONCEPT_NAME);
        let value = value(item);
        if name.is_some() || value.is_some() {
            text.push_str(&"  ".repeat(depth));
            match (name, value) {
                (Some(name), Some(value)) => text.push_str(&format!("{name}: {value}")),
                (name, value) => text.push_str(&name.or(value).unwrap_or_default()),
            }
            text.push('\n');
        }
        add_items(item, depth + 1, text);
    }
}

fn value(item: &InMemDicomObject) -> Option<String> {
    match plain(item, VALUE_TYPE)?.as_str() {
        "TEXT" => plain(item, TEXT_VALUE),
        "CODE" => coded(item, CONCEPT_CODE),
        "DATE" => plain(item, DATE),
        "TIME" => plain(item, TIME),
        "DATETIME" => plain(item, DATE_TIME),
        "NUM" => {
            let measured = first_item(item, MEASURED_VALUE)?;
            let number = plain(measured, NUMERIC_VALUE)?;
            let unit = first_item(measured, UNITS)
                .and_then(|unit| plain(unit, CODE_VALUE).filter(|unit| unit != "1"));
            Some(match unit {
                Some(unit) => format!("{number} {unit}"),
                None => number,
            })
        }
        _ => None,
    }
}

/// The meaning of a code.
fn coded(item: &InMemDicomObject, tag: Tag) -> Option<String> {
    plain(first_item(item, tag)?, CODE_MEANING)
}

fn first_item(item: &InMemDicomObject, tag: Tag) -> Option<&InMemDicomObject> {
    item.element_opt(tag).ok()??.items()?.first()
}

fn plain(item: &InMemDicomObject, tag: Tag) -> Option<String> {
    let value = item.element_opt(tag).ok()??.to_str().ok()?;
    let value = value.trim_matches(|character: char| character.is_whitespace() || character == '\0');
    let value = value.replace("\r\n", "\n").replace('\r', "\n");
    let value: String = value
        .chars()
        .filter(|character| !character.is_control() || *character == '\n')
        .collect();
    (!value.is_empty()).then_some(value)
}
