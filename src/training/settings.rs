//! The macro that declares the training settings, and their descriptions for the command line.

use std::fmt::Display;
use std::ops::{Bound, RangeBounds};
use std::path::PathBuf;

use clap::ValueEnum;
use clap::builder::PossibleValue;

use super::options::{BaseKind, ScheduleKind};
use crate::{Error, Result};

/// One training setting, as a flag shows it.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Its key in config files and in records.
    pub name: &'static str,
    /// Help text.
    pub help: &'static str,
    /// Its flag; `None` where only a config file sets it.
    pub flag: Option<SettingFlag>,
    /// Type of its values.
    pub kind: SettingKind,
    /// Default value, or the rule that determines it, for the help text.
    pub default: Option<String>,
}

/// The flag of a setting.
#[derive(Debug, Clone, Copy)]
pub struct SettingFlag {
    /// Name, without the hyphens before it.
    pub long: &'static str,
    /// Placeholder of the value in the help text.
    pub value_name: &'static str,
    /// Environment variable.
    pub variable: &'static str,
}

impl SettingFlag {
    /// Splits a flag declared as `--name VALUE`.
    pub(super) fn new(declared: &'static str, variable: &'static str) -> Self {
        let declared = declared.trim_start_matches("--");
        let (long, value_name) = declared.split_once(' ').unwrap_or((declared, "VALUE"));
        Self {
            long,
            value_name,
            variable,
        }
    }
}

/// Type of a setting's values.
#[derive(Debug, Clone, Copy)]
pub enum SettingKind {
    /// `u64`.
    Integer,
    /// `f64`.
    Number,
    /// `bool`; the flag alone means true.
    Switch,
    /// A path.
    Path,
    /// Texts, separated by commas.
    List,
    /// One of these names.
    Choice(fn() -> Vec<PossibleValue>),
}

/// A type of settings.
pub(super) trait SettingType {
    const KIND: SettingKind;

    /// The value as a flag takes it, for `[default: ...]` in the help text; `None` where the help text shows no default.
    fn shown(&self) -> Option<String>;
}

impl SettingType for u64 {
    const KIND: SettingKind = SettingKind::Integer;

    fn shown(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl SettingType for f64 {
    const KIND: SettingKind = SettingKind::Number;

    /// The shorter one of decimal and scientific notation.
    fn shown(&self) -> Option<String> {
        let (decimal, scientific) = (self.to_string(), format!("{self:e}"));
        Some(if scientific.len() < decimal.len() {
            scientific
        } else {
            decimal
        })
    }
}

impl SettingType for bool {
    const KIND: SettingKind = SettingKind::Switch;

    fn shown(&self) -> Option<String> {
        self.then(|| "true".to_owned())
    }
}

impl SettingType for PathBuf {
    const KIND: SettingKind = SettingKind::Path;

    fn shown(&self) -> Option<String> {
        Some(self.display().to_string())
    }
}

impl SettingType for Vec<String> {
    const KIND: SettingKind = SettingKind::List;

    fn shown(&self) -> Option<String> {
        Some(self.join(","))
    }
}

impl<T: SettingType> SettingType for Option<T> {
    const KIND: SettingKind = T::KIND;

    fn shown(&self) -> Option<String> {
        self.as_ref().and_then(T::shown)
    }
}

impl SettingType for BaseKind {
    const KIND: SettingKind = SettingKind::Choice(possible_values::<Self>);

    fn shown(&self) -> Option<String> {
        name(self)
    }
}

impl SettingType for ScheduleKind {
    const KIND: SettingKind = SettingKind::Choice(possible_values::<Self>);

    fn shown(&self) -> Option<String> {
        name(self)
    }
}

fn possible_values<T: ValueEnum>() -> Vec<PossibleValue> {
    let variants = T::value_variants().iter();
    variants.filter_map(ValueEnum::to_possible_value).collect()
}

fn name(value: &impl ValueEnum) -> Option<String> {
    Some(value.to_possible_value()?.get_name().to_owned())
}

/// Range of positive numbers.
pub(super) const POSITIVE: (Bound<f64>, Bound<f64>) = (Bound::Excluded(0.0), Bound::Unbounded);

/// Checks that the setting `name`, if it has a value, lies in `range`.
pub(super) fn check_range<T: PartialOrd + Display>(
    name: &'static str,
    value: Option<T>,
    range: impl RangeBounds<T>,
) -> Result<()> {
    if value.is_none_or(|value| range.contains(&value)) {
        return Ok(());
    }
    let lower = match range.start_bound() {
        Bound::Included(low) => format!("{low}"),
        Bound::Excluded(low) => format!("above {low}"),
        Bound::Unbounded => String::new(),
    };
    let reason = match range.end_bound() {
        Bound::Included(high) => format!("must be from {lower} to {high}"),
        Bound::Excluded(high) => format!("must be from {lower} to below {high}"),
        Bound::Unbounded if matches!(range.start_bound(), Bound::Excluded(_)) => format!("must be {lower}"),
        Bound::Unbounded => format!("must be {lower} or more"),
    };
    Err(Error::option(name, reason))
}

/// Declares the struct of all settings from one table.
///
/// A row is `/// help`, then `name: type = default`, then optionally `flag "--name VALUE" "VARIABLE"`,
/// `unset "rule that determines the value of None"` and `range` (the allowed values), and a semicolon.
/// It yields the struct with serde, its `Default`, `check_ranges` and `settings`.
macro_rules! training_settings {
    (
        $(#[$meta:meta])*
        pub struct $options:ident;
        $(
            #[doc = $help:literal]
            $name:ident: $type:ty = $default:expr
            $(, flag $flag:literal $variable:literal)?
            $(, unset $unset:literal)?
            $(, range $range:expr)?;
        )*
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $options {
            $(#[doc = $help] pub $name: $type,)*
        }

        impl Default for $options {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        impl $options {
            /// Descriptions of all settings, in the order of the help text.
            pub fn settings() -> Vec<$crate::training::Setting> {
                use $crate::training::settings::{Setting, SettingFlag, SettingType};
                let default = Self::default();
                vec![$(Setting {
                    name: stringify!($name),
                    help: $help.trim(),
                    flag: None$(.or(Some(SettingFlag::new($flag, $variable))))?,
                    kind: <$type as SettingType>::KIND,
                    default: default.$name.shown()$(.or(Some($unset.to_owned())))?,
                },)*]
            }

            /// The error that names the first setting outside its range.
            fn check_ranges(&self) -> $crate::Result<()> {
                $($($crate::training::settings::check_range(stringify!($name), self.$name.into(), $range)?;)?)*
                Ok(())
            }
        }
    };
}
pub(super) use training_settings;
