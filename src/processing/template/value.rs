//! Values of templates.

use std::sync::Arc;

use super::evaluate::Budget;
use super::{Result, fails};

/// Maximum nesting of lists and maps; messages need less.
const MAX_DEPTH: usize = 32;

#[derive(Debug, Clone)]
pub(in crate::processing) enum Value {
    /// An undefined variable: prints as an empty text; access to its items is an error.
    Undefined,
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Arc<str>),
    List(Arc<List>),
    Map(Arc<Map>),
    /// A `namespace(...)`, by its index in the evaluation.
    Namespace(usize),
}

#[derive(Debug)]
pub(in crate::processing) struct List {
    pub(super) items: Vec<Value>,
    depth: usize,
}

#[derive(Debug)]
pub(in crate::processing) struct Map {
    /// In insertion order.
    pub(super) entries: Vec<(Arc<str>, Value)>,
    depth: usize,
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Str(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Str(text.into())
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl Value {
    /// A list; an error if nested too deeply.
    pub(in crate::processing) fn list(items: Vec<Value>) -> Result<Self> {
        let depth = deeper(items.iter())?;
        Ok(Self::List(Arc::new(List { items, depth })))
    }

    /// A map; an error if nested too deeply.
    pub(in crate::processing) fn map(entries: Vec<(Arc<str>, Value)>) -> Result<Self> {
        let depth = deeper(entries.iter().map(|(_, value)| value))?;
        Ok(Self::Map(Arc::new(Map { entries, depth })))
    }

    /// The `loop` variable, which holds items of the list and counts as no deeper than them.
    pub(super) fn loop_state(entries: Vec<(Arc<str>, Value)>) -> Self {
        let depth = entries.iter().map(|(_, value)| value.depth()).max().unwrap_or(0);
        Self::Map(Arc::new(Map { entries, depth }))
    }

    fn depth(&self) -> usize {
        match self {
            Self::List(list) => list.depth,
            Self::Map(map) => map.depth,
            _ => 0,
        }
    }

    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Undefined | Self::None => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Str(text) => !text.is_empty(),
            Self::List(list) => !list.items.is_empty(),
            Self::Map(map) => !map.entries.is_empty(),
            Self::Namespace(_) => true,
        }
    }

    /// Name of the type in errors.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Undefined => "an undefined value",
            Self::None => "none",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::Float(_) => "a number",
            Self::Str(_) => "a string",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
            Self::Namespace(_) => "a namespace",
        }
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    /// Booleans are integers, too, as in Python.
    pub(super) fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(value) => Some(*value),
            Self::Bool(value) => Some(i64::from(*value)),
            _ => None,
        }
    }

    pub(super) fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            other => other.as_int().map(|value| value as f64),
        }
    }

    /// Value of a map's key.
    pub(super) fn entry(&self, key: &str) -> Option<&Value> {
        match self {
            Self::Map(map) => map
                .entries
                .iter()
                .rev()
                .find(|(name, _)| &**name == key)
                .map(|(_, value)| value),
            _ => None,
        }
    }

    /// Python's `==`. Every comparison is charged, since lists may share items.
    pub(super) fn equals(&self, other: &Self, budget: &mut Budget) -> Result<bool> {
        budget.spend(1)?;
        Ok(match (self, other) {
            (Self::Undefined, Self::Undefined) | (Self::None, Self::None) => true,
            (Self::Str(a), Self::Str(b)) => {
                budget.spend_bytes(a.len().min(b.len()))?;
                a == b
            }
            (Self::List(a), Self::List(b)) => {
                if a.items.len() != b.items.len() {
                    return Ok(false);
                }
                for (a, b) in a.items.iter().zip(&b.items) {
                    if !a.equals(b, budget)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Self::Map(a), Self::Map(b)) => {
                if a.entries.len() != b.entries.len() {
                    return Ok(false);
                }
                for (key, value) in &a.entries {
                    budget.spend(b.entries.len() as u64)?;
                    match other.entry(key) {
                        Some(theirs) if value.equals(theirs, budget)? => {}
                        _ => return Ok(false),
                    }
                }
                true
            }
            (Self::Namespace(a), Self::Namespace(b)) => a == b,
            _ => match (self.as_int(), other.as_int()) {
                (Some(a), Some(b)) => a == b,
                _ => matches!((self.as_float(), other.as_float()), (Some(a), Some(b)) if a == b),
            },
        })
    }

    /// Appends it as by `str()`, nested strings as by `repr()`.
    pub(super) fn print(&self, out: &mut String, nested: bool, budget: &mut Budget) -> Result<()> {
        budget.spend(1)?;
        match self {
            Self::Undefined => {}
            Self::None => out.push_str("None"),
            Self::Bool(true) => out.push_str("True"),
            Self::Bool(false) => out.push_str("False"),
            Self::Int(value) => out.push_str(&value.to_string()),
            Self::Float(value) => out.push_str(&format!("{value:?}")),
            Self::Str(text) => {
                budget.spend_bytes(text.len())?;
                match nested {
                    true => print_quoted(text, out),
                    false => out.push_str(text),
                }
            }
            Self::List(list) => {
                out.push('[');
                for (i, item) in list.items.iter().enumerate() {
                    out.push_str(if i > 0 { ", " } else { "" });
                    item.print(out, true, budget)?;
                }
                out.push(']');
            }
            Self::Map(map) => {
                out.push('{');
                for (i, (key, value)) in map.entries.iter().enumerate() {
                    budget.spend_bytes(key.len())?;
                    out.push_str(if i > 0 { ", " } else { "" });
                    print_quoted(key, out);
                    out.push_str(": ");
                    value.print(out, true, budget)?;
                }
                out.push('}');
            }
            Self::Namespace(_) => return fails("a namespace cannot be printed"),
        }
        Ok(())
    }

    /// Its text.
    pub(super) fn text(&self, budget: &mut Budget) -> Result<String> {
        let mut text = String::new();
        self.print(&mut text, false, budget)?;
        Ok(text)
    }

    /// Appends Python's `json.dumps(value, ensure_ascii=False, indent=...)`.
    pub(super) fn to_json(
        &self,
        out: &mut String,
        indent: Option<usize>,
        level: usize,
        budget: &mut Budget,
    ) -> Result<()> {
        budget.spend(1 + (indent.unwrap_or(0) * level) as u64 / 8)?;
        let line = |out: &mut String, level: usize| {
            if let Some(indent) = indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent * level));
            }
        };
        let comma = if indent.is_some() { "," } else { ", " };
        match self {
            Self::None => out.push_str("null"),
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Str(text) => {
                budget.spend_bytes(text.len())?;
                out.push_str(&serde_json::Value::from(&**text).to_string());
            }
            Self::Int(_) | Self::Float(_) => self.print(out, false, budget)?,
            Self::List(list) => {
                out.push('[');
                for (i, item) in list.items.iter().enumerate() {
                    out.push_str(if i > 0 { comma } else { "" });
                    line(out, level + 1);
                    item.to_json(out, indent, level + 1, budget)?;
                }
                if !list.items.is_empty() {
                    line(out, level);
                }
                out.push(']');
            }
            Self::Map(map) => {
                out.push('{');
                for (i, (key, value)) in map.entries.iter().enumerate() {
                    budget.spend_bytes(key.len())?;
                    out.push_str(if i > 0 { comma } else { "" });
                    line(out, level + 1);
                    out.push_str(&serde_json::Value::from(&**key).to_string());
                    out.push_str(": ");
                    value.to_json(out, indent, level + 1, budget)?;
                }
                if !map.entries.is_empty() {
                    line(out, level);
                }
                out.push('}');
            }
            Self::Undefined | Self::Namespace(_) => {
                return fails(format!("tojson: {} is not representable as JSON", self.kind()));
            }
        }
        Ok(())
    }
}

fn deeper<'a>(values: impl Iterator<Item = &'a Value>) -> Result<usize> {
    let depth = 1 + values.map(Value::depth).max().unwrap_or(0);
    match depth <= MAX_DEPTH {
        true => Ok(depth),
        false => fails(format!("lists are nested more than {MAX_DEPTH} deep")),
    }
}

fn print_quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out.push(quote);
}
