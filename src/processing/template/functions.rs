//! Filters, tests, functions and methods that chat templates use and whose results are bounded by their arguments.

use std::fmt::Write;
use std::sync::Arc;

use super::evaluate::Budget;
use super::{Result, Value, fails};
use crate::error::excerpt;

/// Declares an enum of names that templates use.
macro_rules! names {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $($text:literal)|+),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum $name { $($variant),+ }

        impl $name {
            pub(super) fn named(name: &str) -> Option<Self> {
                match name {
                    $($($text)|+ => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
}

names!(Filter {
    Capitalize = "capitalize",
    Default = "default" | "d",
    Escape = "escape" | "e",
    First = "first",
    Int = "int",
    Items = "items",
    Join = "join",
    Last = "last",
    Length = "length" | "count",
    List = "list",
    Lower = "lower",
    Replace = "replace",
    Reverse = "reverse",
    Safe = "safe",
    String = "string",
    Title = "title",
    ToJson = "tojson",
    Trim = "trim",
    Upper = "upper",
});

names!(Test {
    Boolean = "boolean",
    Defined = "defined",
    Divisible = "divisibleby",
    Equal = "eq" | "equalto" | "==",
    Even = "even",
    False = "false",
    Float = "float",
    In = "in",
    Integer = "integer",
    Iterable = "iterable",
    Mapping = "mapping",
    None = "none",
    Number = "number",
    Odd = "odd",
    Sequence = "sequence",
    String = "string",
    True = "true",
    Undefined = "undefined",
});

names!(Function {
    Namespace = "namespace",
    RaiseException = "raise_exception",
    Range = "range",
    StrftimeNow = "strftime_now",
});

names!(Method {
    Capitalize = "capitalize",
    EndsWith = "endswith",
    Get = "get",
    Items = "items",
    Join = "join",
    Keys = "keys",
    LeftStrip = "lstrip",
    Lower = "lower",
    Replace = "replace",
    RightStrip = "rstrip",
    Split = "split",
    StartsWith = "startswith",
    Strip = "strip",
    Title = "title",
    Upper = "upper",
    Values = "values",
});

/// Evaluated arguments.
pub(super) struct ArgumentValues {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(String, Value)>,
}

impl ArgumentValues {
    /// Takes the argument at position `place` or with the name `name`.
    fn take(&mut self, place: usize, name: &str) -> Option<Value> {
        if let Some(at) = self.named.iter().position(|(named, _)| named == name) {
            return Some(self.named.swap_remove(at).1);
        }
        self.positional
            .get_mut(place)
            .map(|value| std::mem::replace(value, Value::Undefined))
    }

    fn expect_no_more(&self, what: &str, most: usize) -> Result<()> {
        match self.named.first() {
            Some((name, _)) => fails(format!("{what} has no argument `{}`", excerpt(name))),
            None if self.positional.len() > most => fails(format!("{what} takes {most} arguments at most")),
            None => Ok(()),
        }
    }

    fn text(&mut self, place: usize, name: &str, what: &str) -> Result<Option<Arc<str>>> {
        match self.take(place, name) {
            None | Some(Value::Undefined | Value::None) => Ok(None),
            Some(Value::Str(text)) => Ok(Some(text)),
            Some(other) => fails(format!("{what} takes a string, not {}", other.kind())),
        }
    }
}

pub(super) fn filter(
    filter: Filter,
    value: Value,
    mut arguments: ArgumentValues,
    budget: &mut Budget,
) -> Result<Value> {
    let most = match filter {
        Filter::Default | Filter::Replace => 2,
        Filter::Join | Filter::ToJson | Filter::Trim | Filter::Int => 1,
        _ => 0,
    };
    let result = match filter {
        Filter::Default => {
            let fallback = arguments.take(0, "default_value").unwrap_or_else(|| "".into());
            let empty_too = arguments.take(1, "boolean").is_some_and(|value| value.is_true());
            match matches!(value, Value::Undefined) || (empty_too && !value.is_true()) {
                true => fallback,
                false => value,
            }
        }
        Filter::ToJson => {
            let indent = arguments.take(0, "indent").and_then(|indent| indent.as_int());
            let indent = indent.map(|indent| indent.clamp(0, 16) as usize);
            let mut text = String::new();
            value.to_json(&mut text, indent, 0, budget)?;
            text.into()
        }
        Filter::Length => match &value {
            Value::Str(text) => {
                budget.spend_bytes(text.len())?;
                text.chars().count().into()
            }
            Value::List(list) => list.items.len().into(),
            Value::Map(map) => map.entries.len().into(),
            Value::Undefined => 0.into(),
            other => return fails(format!("{} has no length", other.kind())),
        },
        Filter::First | Filter::Last => {
            let items = iterate(&value, budget)?;
            let item = if filter == Filter::First {
                items.into_iter().next()
            } else {
                items.into_iter().last()
            };
            item.unwrap_or(Value::Undefined)
        }
        Filter::List => Value::list(iterate(&value, budget)?)?,
        Filter::Reverse => {
            let mut items = iterate(&value, budget)?;
            items.reverse();
            match value {
                Value::Str(_) => join(&items, "", budget)?,
                _ => Value::list(items)?,
            }
        }
        Filter::Join => {
            let between = arguments.text(0, "d", "join")?.unwrap_or_else(|| "".into());
            join(&iterate(&value, budget)?, &between, budget)?
        }
        Filter::Items => return method(Method::Items, value, arguments, budget),
        Filter::Safe => value,
        Filter::Int => match &value {
            Value::Float(number) => Value::Int(*number as i64),
            Value::Str(text) => Value::Int(text.trim().parse().unwrap_or(0)),
            other => Value::Int(other.as_int().unwrap_or(0)),
        },
        Filter::String => value.text(budget)?.into(),
        Filter::Capitalize
        | Filter::Escape
        | Filter::Lower
        | Filter::Replace
        | Filter::Title
        | Filter::Trim
        | Filter::Upper => {
            let text = value.text(budget)?;
            match filter {
                Filter::Capitalize => return text_method(Method::Capitalize, &text, arguments, budget),
                Filter::Lower => return text_method(Method::Lower, &text, arguments, budget),
                Filter::Replace => return text_method(Method::Replace, &text, arguments, budget),
                Filter::Title => {
                    budget.spend_bytes(3 * text.len())?;
                    titled(&text, |before| {
                        !(before.is_whitespace() || "-({[<".contains(before))
                    })
                    .into()
                }
                Filter::Trim => return text_method(Method::Strip, &text, arguments, budget),
                Filter::Upper => return text_method(Method::Upper, &text, arguments, budget),
                _ => escaped(&text, budget)?,
            }
        }
    };
    arguments.expect_no_more("the filter", most)?;
    Ok(result)
}

pub(super) fn test(test: Test, value: &Value, arguments: &[Value], budget: &mut Budget) -> Result<bool> {
    let argument = arguments.first().unwrap_or(&Value::Undefined);
    let number = |value: &Value| match value.as_int() {
        Some(number) => Ok(number),
        None => fails(format!("a test of a whole number was given {}", value.kind())),
    };
    Ok(match test {
        Test::Boolean => matches!(value, Value::Bool(_)),
        Test::Defined => !matches!(value, Value::Undefined),
        Test::Undefined => matches!(value, Value::Undefined),
        Test::None => matches!(value, Value::None),
        Test::True => matches!(value, Value::Bool(true)),
        Test::False => matches!(value, Value::Bool(false)),
        Test::String => matches!(value, Value::Str(_)),
        Test::Mapping => matches!(value, Value::Map(_)),
        Test::Integer => matches!(value, Value::Int(_)),
        Test::Float => matches!(value, Value::Float(_)),
        // Booleans are numbers in Python.
        Test::Number => matches!(value, Value::Bool(_) | Value::Int(_) | Value::Float(_)),
        Test::Sequence | Test::Iterable => {
            matches!(value, Value::Str(_) | Value::List(_) | Value::Map(_))
                || (test == Test::Iterable && matches!(value, Value::Undefined))
        }
        Test::Odd => number(value)?.rem_euclid(2) == 1,
        Test::Even => number(value)?.rem_euclid(2) == 0,
        Test::Divisible => match number(argument)? {
            0 => return fails("divisibleby: division by zero"),
            divisor => number(value)?.checked_rem(divisor) == Some(0),
        },
        Test::Equal => value.equals(argument, budget)?,
        Test::In => contains(argument, value, budget)?,
    })
}

/// Python's `item in container`.
pub(super) fn contains(container: &Value, item: &Value, budget: &mut Budget) -> Result<bool> {
    match container {
        Value::Str(text) => match item.as_str() {
            Some(part) => {
                budget.spend_bytes(text.len())?;
                Ok(text.contains(part))
            }
            None => fails(format!("a string cannot hold {}", item.kind())),
        },
        Value::List(list) => {
            for candidate in &list.items {
                if candidate.equals(item, budget)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Value::Map(map) => {
            budget.spend(map.entries.len() as u64)?;
            Ok(item.as_str().is_some_and(|key| container.entry(key).is_some()))
        }
        Value::Undefined => Ok(false),
        other => fails(format!("`in` cannot search {}", other.kind())),
    }
}

/// Returns the items that a loop iterates over.
pub(super) fn iterate(value: &Value, budget: &mut Budget) -> Result<Vec<Value>> {
    match value {
        Value::List(list) => {
            budget.spend_items(list.items.len())?;
            Ok(list.items.clone())
        }
        Value::Map(map) => {
            budget.spend_items(map.entries.len())?;
            Ok(map
                .entries
                .iter()
                .map(|(key, _)| Value::Str(key.clone()))
                .collect())
        }
        Value::Str(text) => {
            budget.spend_items(2 * text.len())?;
            Ok(text
                .chars()
                .map(|character| character.to_string().into())
                .collect())
        }
        Value::Undefined => Ok(Vec::new()),
        other => fails(format!("{} cannot be iterated over", other.kind())),
    }
}

fn join(items: &[Value], between: &str, budget: &mut Budget) -> Result<Value> {
    let mut text = String::new();
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            budget.spend_bytes(between.len())?;
            text.push_str(between);
        }
        item.print(&mut text, false, budget)?;
    }
    Ok(text.into())
}

fn escaped(text: &str, budget: &mut Budget) -> Result<Value> {
    budget.spend_bytes(6 * text.len())?;
    let mut safe = String::new();
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '\'' => safe.push_str("&#39;"),
            '"' => safe.push_str("&#34;"),
            other => safe.push(other),
        }
    }
    Ok(safe.into())
}

pub(super) fn method(
    method: Method,
    value: Value,
    mut arguments: ArgumentValues,
    budget: &mut Budget,
) -> Result<Value> {
    if let Value::Str(text) = &value {
        return text_method(method, text, arguments, budget);
    }
    let Value::Map(map) = &value else {
        return fails(format!("{} has no such method", value.kind()));
    };
    let (result, most) = match method {
        Method::Get => {
            let key = arguments.text(0, "key", "get")?.unwrap_or_else(|| "".into());
            let fallback = arguments.take(1, "default").unwrap_or(Value::None);
            budget.spend(map.entries.len() as u64)?;
            (value.entry(&key).cloned().unwrap_or(fallback), 2)
        }
        Method::Keys => (Value::list(iterate(&value, budget)?)?, 0),
        Method::Values => {
            budget.spend_items(map.entries.len())?;
            (
                Value::list(map.entries.iter().map(|(_, value)| value.clone()).collect())?,
                0,
            )
        }
        Method::Items => {
            budget.spend_items(3 * map.entries.len())?;
            let pairs = map.entries.iter();
            let pairs = pairs.map(|(key, value)| Value::list(vec![Value::Str(key.clone()), value.clone()]));
            (Value::list(pairs.collect::<Result<_>>()?)?, 0)
        }
        _ => return fails("a mapping has no such method"),
    };
    arguments.expect_no_more("the method", most)?;
    Ok(result)
}

fn text_method(
    method: Method,
    text: &str,
    mut arguments: ArgumentValues,
    budget: &mut Budget,
) -> Result<Value> {
    // The other case of a letter may have three letters.
    budget.spend_bytes(3 * text.len())?;
    let (result, most): (Value, _) = match method {
        Method::Upper => (text.to_uppercase().into(), 0),
        Method::Lower => (text.to_lowercase().into(), 0),
        Method::Capitalize => (capitalized(text).into(), 0),
        Method::Title => (titled(text, char::is_alphabetic).into(), 0),
        Method::Strip | Method::LeftStrip | Method::RightStrip => {
            let characters = arguments.text(0, "chars", "strip")?;
            budget.spend(text.len() as u64 / 8 * characters.as_ref().map_or(0, |c| c.len() as u64))?;
            let cut = |character: char| match &characters {
                Some(characters) => characters.contains(character),
                None => character.is_whitespace(),
            };
            let stripped = match method {
                Method::Strip => text.trim_matches(cut),
                Method::LeftStrip => text.trim_start_matches(cut),
                _ => text.trim_end_matches(cut),
            };
            (stripped.into(), 1)
        }
        Method::StartsWith | Method::EndsWith => {
            let Some(part) = arguments.text(0, "prefix", "startswith")? else {
                return fails("startswith and endswith take a string");
            };
            let found = match method {
                Method::StartsWith => text.starts_with(&*part),
                _ => text.ends_with(&*part),
            };
            (Value::Bool(found), 1)
        }
        Method::Split => {
            let separator = arguments.text(0, "sep", "split")?;
            let most = arguments
                .take(1, "maxsplit")
                .and_then(|most| most.as_int())
                .unwrap_or(-1);
            let parts = match &separator {
                Some(separator) => text.matches(&**separator).count(),
                None => text.split_whitespace().count(),
            };
            budget.spend_items(2 * (parts + 1))?;
            (Value::list(split(text, separator.as_deref(), most)?)?, 2)
        }
        Method::Replace => {
            let (old, new) = (
                arguments.text(0, "old", "replace")?,
                arguments.text(1, "new", "replace")?,
            );
            let (Some(old), Some(new)) = (old.filter(|old| !old.is_empty()), new) else {
                return fails("replace takes two strings, of which the first is not empty");
            };
            // Charged before it is allocated.
            budget.spend_bytes(text.matches(&*old).count().saturating_mul(new.len()))?;
            (text.replace(&*old, &new).into(), 2)
        }
        Method::Join => {
            let items = arguments.take(0, "iterable").unwrap_or(Value::Undefined);
            (join(&iterate(&items, budget)?, text, budget)?, 1)
        }
        Method::Get | Method::Items | Method::Keys | Method::Values => {
            return fails("a string has no such method");
        }
    };
    arguments.expect_no_more("the method", most)?;
    Ok(result)
}

fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    match characters.next() {
        Some(first) => first
            .to_uppercase()
            .chain(characters.as_str().to_lowercase().chars())
            .collect(),
        None => String::new(),
    }
}

/// Title case; `is_word_interior` returns whether the character after the given one is inside a word.
fn titled(text: &str, is_word_interior: impl Fn(char) -> bool) -> String {
    let mut inside = false;
    let mut titled = String::new();
    for character in text.chars() {
        match inside {
            true => titled.extend(character.to_lowercase()),
            false => titled.extend(character.to_uppercase()),
        }
        inside = is_word_interior(character);
    }
    titled
}

fn split(text: &str, separator: Option<&str>, most: i64) -> Result<Vec<Value>> {
    let most = usize::try_from(most).map_or(usize::MAX, |most| most.saturating_add(1));
    let owned = |part: &str| Value::from(part);
    match separator {
        Some("") => fails("split: the separator is empty"),
        Some(separator) => Ok(text.splitn(most, separator).map(owned).collect()),
        None if most == usize::MAX => Ok(text.split_whitespace().map(owned).collect()),
        None => fails("split: a number of parts without a separator"),
    }
}

/// `range(...)`.
pub(super) fn range(mut arguments: ArgumentValues, budget: &mut Budget) -> Result<Value> {
    let mut numbers = Vec::new();
    for place in 0..arguments.positional.len() {
        match arguments.take(place, "").and_then(|value| value.as_int()) {
            Some(number) => numbers.push(number),
            None => return fails("range takes whole numbers"),
        }
    }
    let (start, stop, step) = match numbers.as_slice() {
        [stop] => (0, *stop, 1),
        [start, stop] => (*start, *stop, 1),
        [start, stop, step] if *step != 0 => (*start, *stop, *step),
        _ => return fails("range takes one to three whole numbers, of which the last is not 0"),
    };
    arguments.expect_no_more("range", 3)?;
    let distance = (i128::from(stop) - i128::from(start)) * i128::from(step.signum());
    let count = (distance.max(0) as u128).div_ceil(u128::from(step.unsigned_abs()));
    budget.spend_items(usize::try_from(count).unwrap_or(usize::MAX))?;
    let numbers = (0..count as i64).map(|i| Value::Int(start.saturating_add(step.saturating_mul(i))));
    Value::list(numbers.collect())
}

/// `raise_exception(...)`.
pub(super) fn raise_exception(mut arguments: ArgumentValues) -> Result<Value> {
    let message = arguments
        .text(0, "message", "raise_exception")?
        .unwrap_or_else(|| "".into());
    fails(excerpt(&message))
}

/// `strftime_now(...)`.
pub(super) fn strftime_now(mut arguments: ArgumentValues, budget: &mut Budget) -> Result<Value> {
    let format = arguments
        .text(0, "format", "strftime_now")?
        .unwrap_or_else(|| "".into());
    // A directive of two characters expands to about 40 at most.
    budget.spend_bytes(24 * format.len())?;
    let mut text = String::new();
    match write!(text, "{}", chrono::Local::now().format(&format)) {
        Ok(()) => Ok(text.into()),
        Err(_) => fails("strftime_now: unknown format"),
    }
}
