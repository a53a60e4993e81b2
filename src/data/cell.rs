//! One row of a published dataset, whatever the file's format.

use parquet::record::{Field, Row as ParquetRow};
use serde_json::Value;

/// A value in a row.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    /// Nothing.
    Null,
    /// Text.
    Text(String),
    /// Binary data: a picture.
    Bytes(Vec<u8>),
    /// Values in order.
    List(Vec<Cell>),
    /// Values by name.
    Struct(Row),
    /// A number, a date, a truth value: nothing that is read here.
    Other,
}

/// Values by column.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Row(pub Vec<(String, Cell)>);

/// A column holds something else than it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WrongType;

impl Row {
    /// The value of a column; [`Cell::Null`] where there is no such column.
    pub(super) fn get(&self, column: &str) -> &Cell {
        let found = self.0.iter().find(|(name, _)| name == column);
        found.map_or(&Cell::Null, |(_, cell)| cell)
    }

    /// The text of the first of `columns` that is there and not blank, trimmed.
    pub(super) fn text(&self, columns: &[&str]) -> Result<Option<&str>, WrongType> {
        for column in columns {
            match self.get(column) {
                Cell::Null => {}
                Cell::Text(text) if text.trim().is_empty() => {}
                Cell::Text(text) => return Ok(Some(text.trim())),
                _ => return Err(WrongType),
            }
        }
        Ok(None)
    }
}

/// Where a picture is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Picture<'a> {
    /// In the row.
    Bytes(&'a [u8]),
    /// In a file or archive beside the rows.
    Path(&'a str),
}

impl Cell {
    /// The (first) picture of an image column: bytes, a path, the hub's struct of both, or a list of them.
    pub(super) fn picture(&self) -> Result<Option<Picture<'_>>, WrongType> {
        match self {
            Self::Null => Ok(None),
            Self::Bytes(bytes) if bytes.is_empty() => Ok(None),
            Self::Bytes(bytes) => Ok(Some(Picture::Bytes(bytes))),
            Self::Text(path) if path.trim().is_empty() => Ok(None),
            Self::Text(path) => Ok(Some(Picture::Path(path.trim()))),
            Self::List(cells) => cells.first().map_or(Ok(None), Self::picture),
            Self::Struct(row) => match row.get("bytes").picture()? {
                Some(found) => Ok(Some(found)),
                None => row.get("path").picture(),
            },
            Self::Other => Err(WrongType),
        }
    }
}

impl From<Value> for Cell {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::String(text) => Self::Text(text),
            Value::Array(values) => Self::List(values.into_iter().map(Self::from).collect()),
            Value::Object(map) => {
                let cells = map.into_iter().map(|(name, value)| (name, Self::from(value)));
                Self::Struct(Row(cells.collect()))
            }
            Value::Bool(_) | Value::Number(_) => Self::Other,
        }
    }
}

impl From<&Field> for Cell {
    fn from(field: &Field) -> Self {
        match field {
            Field::Null => Self::Null,
            Field::Str(text) => Self::Text(text.clone()),
            Field::Bytes(bytes) => Self::Bytes(bytes.data().to_vec()),
            Field::Group(row) => Self::Struct(Row::from(row)),
            Field::ListInternal(list) => Self::List(list.elements().iter().map(Self::from).collect()),
            _ => Self::Other,
        }
    }
}

impl From<&ParquetRow> for Row {
    fn from(row: &ParquetRow) -> Self {
        let cells = row
            .get_column_iter()
            .map(|(name, field)| (name.clone(), Cell::from(field)));
        Self(cells.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(json: serde_json::Value) -> Cell {
        Cell::from(json)
    }

    #[test]
    fn pictures_are_found_in_every_form_that_is_published() {
        use serde_json::json;
        for form in [
            json!("a.png"),
            json!(["a.png", "b.png"]),
            json!({"path": "a.png"}),
            json!([{"path": "a.png"}]),
        ] {
            assert_eq!(
                cell(form.clone()).picture(),
                Ok(Some(Picture::Path("a.png"))),
                "{form}"
            );
        }
        for form in [
            json!(null),
            json!(""),
            json!([]),
            json!({"bytes": null, "path": null}),
            json!({}),
        ] {
            assert_eq!(cell(form.clone()).picture(), Ok(None), "{form}");
        }
        assert_eq!(cell(json!(7)).picture(), Err(WrongType));
        let both = Cell::Struct(Row(vec![
            ("path".to_owned(), Cell::Text("a.png".to_owned())),
            ("bytes".to_owned(), Cell::Bytes(vec![1])),
        ]));
        assert_eq!(both.picture(), Ok(Some(Picture::Bytes(&[1]))));
    }

    #[test]
    fn a_text_is_the_first_column_that_holds_one() {
        let Cell::Struct(row) = cell(serde_json::json!({"a": " ", "b": " x\n", "c": "y", "d": 1})) else {
            panic!("an object is a struct");
        };
        assert_eq!(row.text(&["missing", "a", "b", "c"]), Ok(Some("x")));
        assert_eq!(row.text(&["a"]), Ok(None));
        assert_eq!(row.text(&["a", "d"]), Err(WrongType));
    }
}
