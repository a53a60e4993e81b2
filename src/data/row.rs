//! One row of a published data set, independent of the file format.

use parquet::record::{Field, Row as ParquetRow};
use serde_json::Value;

/// A value in a row.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    /// Null, or a column that does not exist.
    Null,
    /// A string.
    Text(String),
    /// Binary data: an encoded image.
    Bytes(Vec<u8>),
    /// A list.
    List(Vec<Cell>),
    /// A nested row.
    Struct(Row),
    /// A number, a date or a Boolean; not used.
    Other,
}

/// Cells by column name.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Row(pub Vec<(String, Cell)>);

/// A column has an unexpected type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WrongType;

impl Row {
    /// Returns the cell of a column; [`Cell::Null`] if there is no such column.
    pub(super) fn get(&self, column: &str) -> &Cell {
        let found = self.0.iter().find(|(name, _)| name == column);
        found.map_or(&Cell::Null, |(_, cell)| cell)
    }

    /// Returns the trimmed text of the first of `columns` that exists and is not blank.
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

/// Location of an image.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ImageRef<'a> {
    /// Encoded in the row.
    Bytes(&'a [u8]),
    /// Path of a file beside the rows, or of an archive's entry.
    Path(&'a str),
}

impl Cell {
    /// Returns the first image of an image column: bytes, a path, a struct of both, or a list of these.
    pub(super) fn image(&self) -> Result<Option<ImageRef<'_>>, WrongType> {
        match self {
            Self::Null => Ok(None),
            Self::Bytes(bytes) if bytes.is_empty() => Ok(None),
            Self::Bytes(bytes) => Ok(Some(ImageRef::Bytes(bytes))),
            Self::Text(path) if path.trim().is_empty() => Ok(None),
            Self::Text(path) => Ok(Some(ImageRef::Path(path.trim()))),
            Self::List(cells) => cells.first().map_or(Ok(None), Self::image),
            Self::Struct(row) => match row.get("bytes").image()? {
                Some(found) => Ok(Some(found)),
                None => row.get("path").image(),
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
    fn images_are_read_in_every_published_form() {
        use serde_json::json;
        for form in [
            json!("a.png"),
            json!(["a.png", "b.png"]),
            json!({"path": "a.png"}),
            json!([{"path": "a.png"}]),
        ] {
            assert_eq!(
                cell(form.clone()).image(),
                Ok(Some(ImageRef::Path("a.png"))),
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
            assert_eq!(cell(form.clone()).image(), Ok(None), "{form}");
        }
        assert_eq!(cell(json!(7)).image(), Err(WrongType));
        let both = Cell::Struct(Row(vec![
            ("path".to_owned(), Cell::Text("a.png".to_owned())),
            ("bytes".to_owned(), Cell::Bytes(vec![1])),
        ]));
        assert_eq!(both.image(), Ok(Some(ImageRef::Bytes(&[1]))));
    }

    #[test]
    fn text_comes_from_the_first_column_that_is_not_blank() {
        let Cell::Struct(row) = cell(serde_json::json!({"a": " ", "b": " x\n", "c": "y", "d": 1})) else {
            panic!("an object is a struct");
        };
        assert_eq!(row.text(&["missing", "a", "b", "c"]), Ok(Some("x")));
        assert_eq!(row.text(&["a"]), Ok(None));
        assert_eq!(row.text(&["a", "d"]), Err(WrongType));
    }
}
