//! A request body as a JSON tree, within bounds, and typed access to its keys.
//!
//! Strings without escapes are slices of the body, so that a picture is not copied. Duplicate keys are refused: which of the two a
//! program takes depends on the program.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::Number;

use super::errors::{RequestError, shortened};

/// Maximum number of values in a body: a value takes up to 40 times the memory of its text.
pub(super) const MAX_VALUES: usize = 65_536;
/// Maximum depth of arrays and objects.
pub(super) const MAX_DEPTH: usize = 64;

/// A JSON value.
#[derive(Debug)]
pub(super) enum Json<'a> {
    Null,
    Bool(bool),
    Number(Number),
    Text(Cow<'a, str>),
    List(Vec<Json<'a>>),
    Object(BTreeMap<Cow<'a, str>, Json<'a>>),
}

/// Place of a value in the body.
#[derive(Debug, Clone, Copy)]
pub(super) enum Path<'p> {
    Root,
    Key(&'p Path<'p>, &'p str),
    Index(&'p Path<'p>, usize),
}

impl Path<'_> {
    fn depth(&self) -> usize {
        match self {
            Self::Root => 0,
            Self::Key(parent, _) | Self::Index(parent, _) => parent.depth() + 1,
        }
    }
}

impl fmt::Display for Path<'_> {
    /// As OpenAI names parameters: `messages[0].content`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(Self::Root, key) => f.write_str(&shortened(key)),
            Self::Key(parent, key) => write!(f, "{parent}.{}", shortened(key)),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// Parses a body.
///
/// # Errors
/// Malformed JSON, with line and column; a duplicate key; more than [`MAX_VALUES`] or [`MAX_DEPTH`].
pub(super) fn parse(body: &[u8]) -> Result<Json<'_>, RequestError> {
    let (left, refusal) = (Cell::new(MAX_VALUES), RefCell::new(None));
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let seed = Seed {
        path: &Path::Root,
        left: &left,
        refusal: &refusal,
    };
    let parsed = seed.deserialize(&mut deserializer);
    let parsed = parsed.and_then(|value| deserializer.end().map(|()| value));
    parsed.map_err(|error| {
        refusal.take().unwrap_or_else(|| {
            let (line, column) = (error.line(), error.column());
            let message = format!("the body is not valid JSON: see line {line}, column {column}");
            RequestError::body("invalid_json", message)
        })
    })
}

struct Seed<'s> {
    path: &'s Path<'s>,
    left: &'s Cell<usize>,
    /// The error, which serde would reduce to a text.
    refusal: &'s RefCell<Option<RequestError>>,
}

impl Seed<'_> {
    fn at<'s>(&'s self, path: &'s Path<'s>) -> Seed<'s> {
        Seed { path, ..*self }
    }

    fn refuse<E: serde::de::Error>(&self, error: RequestError) -> E {
        self.refusal.replace(Some(error));
        E::custom("refused")
    }

    /// Counts a value.
    fn count<E: serde::de::Error>(&self) -> Result<(), E> {
        match self.left.get().checked_sub(1) {
            Some(left) => self.left.set(left),
            None => {
                let message = format!("the body has more than {MAX_VALUES} values");
                return Err(self.refuse(RequestError::new(
                    "too_many_values",
                    self.path.to_string(),
                    message,
                )));
            }
        }
        Ok(())
    }

    /// Checks the depth of an array or object.
    fn enter<E: serde::de::Error>(&self) -> Result<(), E> {
        if self.path.depth() < MAX_DEPTH {
            return Ok(());
        }
        let message = format!("arrays and objects are nested more than {MAX_DEPTH} levels deep");
        // The path would be as deep.
        let mut top = self.path;
        while let Path::Key(parent, _) | Path::Index(parent, _) = top
            && !matches!(parent, Path::Root)
        {
            top = parent;
        }
        Err(self.refuse(RequestError::new("too_deep", top.to_string(), message)))
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Json<'de>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Json<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Json<'de>, E> {
        self.count()?;
        Ok(Json::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Json<'de>, E> {
        self.count()?;
        Ok(Json::Bool(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Json<'de>, E> {
        self.count()?;
        Ok(Json::Number(value.into()))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Json<'de>, E> {
        self.count()?;
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Json<'de>, E> {
        self.count()?;
        let number = Number::from_f64(value).ok_or_else(|| E::custom("not finite"))?;
        Ok(Json::Number(number))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Json<'de>, E> {
        self.count()?;
        Ok(Json::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, value: &'de str) -> Result<Json<'de>, E> {
        self.count()?;
        Ok(Json::Text(Cow::Borrowed(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json<'de>, A::Error> {
        self.count()?;
        self.enter()?;
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self.at(&Path::Index(self.path, values.len())))? {
            values.push(value);
        }
        Ok(Json::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json<'de>, A::Error> {
        self.count()?;
        self.enter()?;
        let mut values = BTreeMap::new();
        while let Some(Key(key)) = map.next_key()? {
            let path = Path::Key(self.path, &key);
            if values.contains_key(&key) {
                let path = path.to_string();
                let message = format!("the key `{path}` is given twice");
                return Err(self.refuse(RequestError::new("duplicate_key", path, message)));
            }
            let value = map.next_value_seed(self.at(&path))?;
            values.insert(key, value);
        }
        Ok(Json::Object(values))
    }
}

/// A key of an object; borrowed where it has no escapes, which `Cow`'s own implementation never is.
struct Key<'a>(Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for Key<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(value.to_owned())))
            }

            fn visit_borrowed_str<E: serde::de::Error>(self, value: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(value)))
            }
        }
        deserializer.deserialize_str(KeyVisitor)
    }
}

/// An object of the body, with its place for errors.
#[derive(Clone, Copy)]
pub(super) struct Object<'j, 'p> {
    keys: &'j BTreeMap<Cow<'j, str>, Json<'j>>,
    path: &'p Path<'p>,
}

impl<'j, 'p> Object<'j, 'p> {
    /// `value` at `path` as an object.
    pub(super) fn of(value: &'j Json<'j>, path: &'p Path<'p>) -> Result<Self, RequestError> {
        match value {
            Json::Object(keys) => Ok(Self { keys, path }),
            _ => Err(wrong_type(path, "an object")),
        }
    }

    /// Refuses keys that are not among `known`.
    pub(super) fn only(&self, known: &[&[&str]]) -> Result<(), RequestError> {
        let unknown = self
            .keys
            .keys()
            .find(|key| !known.iter().any(|names| names.contains(&key.as_ref())));
        let Some(unknown) = unknown else {
            return Ok(());
        };
        let name = Path::Key(self.path, unknown).to_string();
        let message = format!("the parameter `{name}` is not known");
        Err(RequestError::new("unknown_parameter", name, message))
    }

    /// Place of `key`.
    pub(super) fn place(&self, key: &'p str) -> Path<'p> {
        Path::Key(self.path, key)
    }

    /// Value of `key`; `None` if it is absent or null.
    pub(super) fn get(&self, key: &str) -> Option<&'j Json<'j>> {
        self.keys.get(key).filter(|value| !matches!(value, Json::Null))
    }

    /// Value of `key`, which must be there.
    pub(super) fn required(&self, key: &'p str) -> Result<&'j Json<'j>, RequestError> {
        self.get(key).ok_or_else(|| {
            let name = self.place(key).to_string();
            let message = format!("`{name}` is missing");
            RequestError::new("missing_required_parameter", name, message)
        })
    }

    /// Text of `key`.
    pub(super) fn text(&self, key: &'p str) -> Result<Option<&'j str>, RequestError> {
        match self.get(key) {
            None => Ok(None),
            Some(Json::Text(text)) => Ok(Some(text)),
            Some(_) => Err(wrong_type(&self.place(key), "a string")),
        }
    }

    /// Truth value of `key`; absent: false.
    pub(super) fn flag(&self, key: &'p str) -> Result<bool, RequestError> {
        match self.get(key) {
            None => Ok(false),
            Some(Json::Bool(value)) => Ok(*value),
            Some(_) => Err(wrong_type(&self.place(key), "true or false")),
        }
    }

    /// Number at `key` that `fits`, which `range` puts in words.
    pub(super) fn number(
        &self,
        key: &'p str,
        range: &str,
        fits: impl Fn(f64) -> bool,
    ) -> Result<Option<f64>, RequestError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let Json::Number(number) = value else {
            return Err(wrong_type(&self.place(key), &format!("a number {range}")));
        };
        let number = number.as_f64().filter(|&number| fits(number));
        number
            .map(Some)
            .ok_or_else(|| invalid(&self.place(key), &format!("must be {range}")))
    }

    /// Whole number at `key` within `range`.
    pub(super) fn integer(
        &self,
        key: &'p str,
        range: RangeInclusive<i128>,
    ) -> Result<Option<i128>, RequestError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        let Json::Number(number) = value else {
            return Err(wrong_type(&self.place(key), &expected));
        };
        let integer = number.as_i128().or_else(|| {
            // 16.0 is whole, as in JSON Schema; beyond 2^53 a float does not tell which number was meant.
            let float = number.as_f64()?;
            (float.fract() == 0.0 && float.abs() <= 9_007_199_254_740_992.0).then_some(float as i128)
        });
        integer
            .filter(|integer| range.contains(integer))
            .map(Some)
            .ok_or_else(|| invalid(&self.place(key), &format!("must be {expected}")))
    }
}

/// The error of a value of another type.
pub(super) fn wrong_type(path: &Path<'_>, expected: &str) -> RequestError {
    let name = path.to_string();
    let subject = match path {
        Path::Root => "the body".to_owned(),
        _ => format!("`{name}`"),
    };
    let param = (!name.is_empty()).then_some(name);
    RequestError {
        param,
        ..RequestError::body("invalid_type", format!("{subject} must be {expected}"))
    }
}

/// The error of a value that does not fit.
pub(super) fn invalid(path: &Path<'_>, reason: &str) -> RequestError {
    let name = path.to_string();
    let message = format!("`{name}` {reason}");
    RequestError::new("invalid_value", name, message)
}

/// The error of a value that is valid in OpenAI's API, but not supported here.
pub(super) fn unsupported(path: &Path<'_>, reason: &str) -> RequestError {
    RequestError {
        code: Some("unsupported_value"),
        ..invalid(path, reason)
    }
}
