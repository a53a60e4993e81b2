//! Matching of module names against `target_modules` and similar settings.

use std::path::Path;

use fancy_regex::Regex;
use serde::{Deserialize, Serialize};

use super::config::LoraConfig;
use crate::{Error, Result};

/// Keyword for every Linear except the output head.
const ALL_LINEAR: &str = "all-linear";
/// Modules that are not Linears, by transformers' names.
pub(super) const NOT_LINEAR: [&str; 2] = [
    "model.visual.patch_embed.proj",
    "model.language_model.embed_tokens",
];
/// Maximum length of a pattern.
const MAX_PATTERN: usize = 4096;

/// Whether a module matches.
pub(super) type Matcher<'a> = Box<dyn Fn(&str) -> Result<bool> + 'a>;

/// Modules by name suffixes or by a pattern, as in `target_modules`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    /// A regular expression for the whole name, or "all-linear".
    Pattern(String),
    /// Whole names, or suffixes after a dot.
    Suffixes(Vec<String>),
}

impl Targets {
    /// The seven projections of a decoder layer; vision blocks have three of them too.
    pub fn decoder_projections() -> Self {
        let names = [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ];
        Self::Suffixes(names.map(str::to_owned).to_vec())
    }

    /// Returns a matcher of transformers' module names; `file` and `key` are for errors.
    pub(super) fn matcher(&self, file: &Path, key: &str) -> Result<Matcher<'_>> {
        match self {
            Self::Suffixes(suffixes) => Ok(Box::new(|name| {
                Ok(suffixes.iter().any(|suffix| {
                    let before = name.strip_suffix(suffix.as_str());
                    before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
                }))
            })),
            Self::Pattern(word) if word == ALL_LINEAR => Ok(Box::new(|name| {
                Ok(name != "lm_head" && !NOT_LINEAR.contains(&name))
            })),
            Self::Pattern(pattern) => {
                let regex = whole(file, key, pattern)?;
                let (file, key) = (file.to_owned(), key.to_owned());
                Ok(Box::new(move |name| is_match(&regex, &file, &key, name)))
            }
        }
    }
}

/// A pattern for whole strings, as Python's `re.fullmatch`.
pub(super) fn whole(file: &Path, key: &str, pattern: &str) -> Result<Regex> {
    if pattern.len() > MAX_PATTERN {
        return Err(Error::invalid_file(
            file,
            format!("\"{key}\": a pattern of {} bytes", pattern.len()),
        ));
    }
    Regex::new(&format!("^(?:{pattern})$")).map_err(|error| {
        Error::invalid_file(
            file,
            format!("\"{key}\": not a valid regular expression: {error}"),
        )
    })
}

/// Whether `regex` matches; a pattern that takes too long is an error.
pub(super) fn is_match(regex: &Regex, file: &Path, key: &str, name: &str) -> Result<bool> {
    regex
        .is_match(name)
        .map_err(|error| unmatched(file, key, name, &error))
}

impl LoraConfig {
    /// Whether `target_modules` matches a module.
    ///
    /// Reference: [`check_target_module_exists`](https://github.com/huggingface/peft/blob/a5526d27a9d47d1e8264d5e1b1f96c0fdc79464e/src/peft/tuners/tuners_utils.py#L1894-L1965).
    pub(super) fn matcher<'a>(&'a self, file: &Path) -> Result<Matcher<'a>> {
        let meant = self.target_modules.matcher(file, "target_modules")?;
        let excluded = match &self.exclude_modules {
            Some(excluded) => excluded.matcher(file, "exclude_modules")?,
            None => Box::new(|_: &str| Ok(false)),
        };
        let layers = self.layers(file)?;
        Ok(Box::new(move |name| {
            Ok(meant(name)? && !excluded(name)? && layers(name)?)
        }))
    }

    /// Returns a matcher of modules in `layers_to_transform`, which a pattern in `target_modules` ignores.
    fn layers<'a>(&'a self, file: &Path) -> Result<Matcher<'a>> {
        let (Some(layers), Targets::Suffixes(names)) = (&self.layers_to_transform, &self.target_modules)
        else {
            return Ok(Box::new(|_| Ok(true)));
        };
        let key = "layers_pattern";
        let numbered = match self.layers_pattern.as_slice() {
            [] => vec![whole(file, key, r".*?\.[^.]*\.(?<layer>\d+)\..*")?],
            patterns => patterns
                .iter()
                .map(|pattern| whole(file, key, &format!(r"(?:|.*?\.){pattern}\.(?<layer>\d+)\..*")))
                .collect::<Result<Vec<_>>>()?,
        };
        let file = file.to_owned();
        Ok(Box::new(move |name| {
            if names.iter().any(|whole| whole == name) {
                return Ok(true);
            }
            for regex in &numbered {
                let found = regex
                    .captures(name)
                    .map_err(|error| unmatched(&file, key, name, &error))?;
                if let Some(number) = found.as_ref().and_then(|found| found.name("layer")) {
                    return Ok(number
                        .as_str()
                        .parse()
                        .is_ok_and(|layer: usize| layers.contains(&layer)));
                }
            }
            Ok(false)
        }))
    }
}

fn unmatched(file: &Path, key: &str, name: &str, error: &fancy_regex::Error) -> Error {
    Error::invalid_file(
        file,
        format!("\"{key}\": the pattern cannot be matched with \"{name}\": {error}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn means(targets: &Targets, name: &str) -> bool {
        let matcher = targets
            .matcher(Path::new("adapter_config.json"), "target_modules")
            .unwrap();
        matcher(name).unwrap()
    }

    #[test]
    fn suffixes_start_at_a_dot() {
        let targets = Targets::Suffixes(vec!["proj".to_owned(), "mlp.0".to_owned()]);
        assert!(means(&targets, "model.visual.blocks.0.attn.proj"));
        assert!(means(&targets, "proj") && means(&targets, "model.visual.merger.mlp.0"));
        assert!(!means(&targets, "model.language_model.layers.0.self_attn.q_proj"));
        assert!(!means(&targets, "model.visual.blocks.0.attn.proj.x"));
    }

    #[test]
    fn patterns_match_whole_names_and_may_look_ahead() {
        let targets = Targets::Pattern(r"^(?!.*visual).*(?:q_proj|gate_proj)".to_owned());
        assert!(means(&targets, "model.language_model.layers.0.self_attn.q_proj"));
        assert!(!means(&targets, "model.visual.blocks.0.mlp.gate_proj"));
        assert!(!means(
            &targets,
            "model.language_model.layers.0.self_attn.q_proj.x"
        ));
        let all = Targets::Pattern("all-linear".to_owned());
        assert!(means(&all, "model.visual.merger.mlp.0") && !means(&all, "lm_head"));
    }

    #[test]
    fn layers_are_counted_by_the_first_number() {
        let mut config = LoraConfig {
            target_modules: Targets::Suffixes(vec!["q_proj".to_owned(), "mlp.0".to_owned()]),
            layers_to_transform: Some(vec![1, 3]),
            ..LoraConfig::default()
        };
        let means = |config: &LoraConfig, name: &str| config.matcher(Path::new("f")).unwrap()(name).unwrap();
        let q = |layer| format!("model.language_model.layers.{layer}.self_attn.q_proj");
        assert!(means(&config, &q(1)) && means(&config, &q(3)));
        assert!(!means(&config, &q(0)) && !means(&config, &q(11)));
        // Without a layer number.
        assert!(!means(&config, "model.visual.merger.mlp.0"));
        config.layers_pattern = vec!["blocks".to_owned(), "layers".to_owned()];
        assert!(means(&config, &q(1)) && !means(&config, &q(2)));
        config.layers_pattern = vec!["blocks".to_owned()];
        assert!(!means(&config, &q(1)));
        // A pattern ignores the layers, and a whole name matches in any layer.
        config.target_modules = Targets::Pattern(".*q_proj".to_owned());
        assert!(means(&config, &q(0)));
        config.target_modules = Targets::Suffixes(vec![q(0)]);
        assert!(means(&config, &q(0)) && !means(&config, &format!("a.{}", q(0))));
    }

    #[test]
    fn broken_patterns_are_named() {
        for pattern in ["(".to_owned(), "x".repeat(MAX_PATTERN + 1)] {
            let targets = Targets::Pattern(pattern);
            let error = targets.matcher(Path::new("adapter_config.json"), "target_modules");
            let error = error.err().unwrap().to_string();
            assert!(
                error.contains("adapter_config.json") && error.contains("target_modules"),
                "{error}"
            );
        }
    }
}
