//! The flags of `finetune_lora`, built from the training settings.

use std::path::PathBuf;

use clap::builder::{FalseyValueParser, PossibleValuesParser};
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, value_parser};
use serde_json::{Map, Value};

use crate::Result;
use crate::training::{Preset, Setting, SettingFlag, SettingKind, TrainingOptions};

/// Flags that are not settings, and those of all settings.
#[derive(Debug, clap::Args)]
pub(super) struct TrainingArgs {
    /// YAML or TOML file with any of these settings; flags override it
    #[arg(long, value_name = "FILE", env = "MVP_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,

    /// Base settings
    #[arg(long, value_name = "NAME", env = "MVP_PRESET", hide_env_values = true)]
    preset: Option<Preset>,

    /// Resume from the latest checkpoint; settings must match
    #[arg(long, env = "MVP_RESUME", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    pub(super) resume: bool,

    #[command(flatten)]
    settings: GivenSettings,
}

impl TrainingArgs {
    /// The settings: the preset's, then the file's, then the flags'.
    pub(super) fn options(&self) -> Result<TrainingOptions> {
        TrainingOptions::resolve(self.preset, self.config.as_deref(), &self.settings.0)
    }
}

/// The settings that flags or variables give, by name.
#[derive(Debug)]
struct GivenSettings(Map<String, Value>);

impl clap::Args for GivenSettings {
    fn augment_args(command: Command) -> Command {
        let settings = TrainingOptions::settings().into_iter();
        command.args(settings.filter_map(|setting| Some(argument(setting.flag?, &setting))))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for GivenSettings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let settings = TrainingOptions::settings().into_iter();
        let flags = settings.filter(|setting| setting.flag.is_some());
        Ok(Self(
            flags
                .filter_map(|setting| Some((setting.name.to_owned(), value(matches, &setting)?)))
                .collect(),
        ))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.extend(Self::from_arg_matches(matches)?.0);
        Ok(())
    }
}

/// The flag of one setting.
fn argument(flag: SettingFlag, setting: &Setting) -> Arg {
    let help = match &setting.default {
        Some(default) => format!("{} [default: {default}]", setting.help),
        None => setting.help.to_owned(),
    };
    let argument = Arg::new(setting.name)
        .long(flag.long)
        .value_name(flag.value_name)
        .env(flag.variable)
        .hide_env_values(true)
        .help(help)
        .action(ArgAction::Set);
    match setting.kind {
        SettingKind::Integer => argument.value_parser(value_parser!(u64)),
        SettingKind::Number => argument.value_parser(value_parser!(f64)),
        SettingKind::Switch => argument
            .value_parser(value_parser!(bool))
            .num_args(0..=1)
            .default_missing_value("true"),
        SettingKind::Path => argument.value_parser(value_parser!(PathBuf)),
        SettingKind::List => argument.action(ArgAction::Append).value_delimiter(','),
        SettingKind::Choice(values) => argument.value_parser(PossibleValuesParser::new(values())),
    }
}

/// The value that `matches` has for a setting.
fn value(matches: &ArgMatches, setting: &Setting) -> Option<Value> {
    let name = setting.name;
    match setting.kind {
        SettingKind::Integer => matches.get_one::<u64>(name).copied().map(Value::from),
        SettingKind::Number => matches.get_one::<f64>(name).copied().map(Value::from),
        SettingKind::Switch => matches.get_one::<bool>(name).copied().map(Value::from),
        SettingKind::Path => matches
            .get_one::<PathBuf>(name)
            .map(|path| Value::from(path.to_string_lossy())),
        SettingKind::List => matches
            .get_many::<String>(name)
            .map(|texts| texts.map(String::as_str).collect()),
        SettingKind::Choice(_) => matches
            .get_one::<String>(name)
            .map(|text| Value::from(text.as_str())),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::training::ScheduleKind;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        train: TrainingArgs,
    }

    fn resolve(flags: &[&str]) -> Result<TrainingOptions> {
        Program::try_parse_from(std::iter::once("program").chain(flags.iter().copied()))
            .unwrap_or_else(|error| panic!("{error}"))
            .train
            .options()
    }

    #[test]
    fn every_flag_is_named_like_its_setting_and_has_a_variable() {
        Program::command().debug_assert();
        let variables: BTreeMap<&str, &str> = [
            ("min_pixels", "MVP_TRAIN_MIN_PIXELS"),
            ("max_pixels", "MVP_TRAIN_MAX_PIXELS"),
        ]
        .into();
        for flag in Program::command().get_arguments() {
            let name = flag.get_id().as_str();
            if name == "help" {
                continue;
            }
            assert_eq!(flag.get_long().unwrap(), name.replace('_', "-"));
            let usual = format!("MVP_{}", name.to_uppercase());
            let expected = variables.get(name).copied().unwrap_or(usual.as_str());
            assert_eq!(flag.get_env().unwrap(), expected);
        }
    }

    #[test]
    fn every_setting_has_a_flag_but_adamws_and_the_number_of_checkpoints() {
        let without: Vec<&str> = TrainingOptions::settings()
            .iter()
            .filter(|setting| setting.flag.is_none())
            .map(|setting| setting.name)
            .collect();
        assert_eq!(
            without,
            ["adam_beta1", "adam_beta2", "adam_epsilon", "keep_checkpoints"]
        );
    }

    #[test]
    fn the_help_shows_the_defaults() {
        let help = Program::command().render_long_help().to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for text in [
            "Peak learning rate [default: 2e-4]",
            "LoRA rank r [default: 64]",
            "LoRA alpha [default: 128]",
            "Warm-up ratio (fraction of total steps) [default: 0.05]",
            "Final learning rate [default: 0]",
            "Learning-rate schedule after warm-up [default: linear]",
            "[default: q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj]",
            "Truncate answers to this many characters [default: no limit]",
        ] {
            assert!(help.contains(text), "{text}\n{help}");
        }
        assert!(!help.contains("no adapter there [default"), "{help}");
    }

    #[test]
    fn flags_of_every_kind_are_read() {
        let options = resolve(&[
            "--base=bf16",
            "--rslora",
            "--freeze-vision=false",
            "--target-modules",
            "q_proj,v_proj",
            "--init-adapter",
            "first",
            "--learning-rate",
            "1e-3",
        ])
        .unwrap();
        assert!(options.rslora && !options.freeze_vision);
        assert_eq!(options.target_modules, ["q_proj", "v_proj"]);
        assert_eq!(options.init_adapter, Some("first".into()));
        assert_eq!(
            (options.base, options.learning_rate),
            (crate::training::BaseKind::Bf16, 1e-3)
        );
        for flags in [
            ["--epochs", "two"],
            ["--schedule", "round"],
            ["--rslora=maybe", "--resume"],
        ] {
            assert!(Program::try_parse_from(std::iter::once("program").chain(flags)).is_err());
        }
    }

    #[test]
    fn the_defaults_are_the_contract_s() {
        let options = resolve(&[]).unwrap();
        assert_eq!(
            (options.lora_rank, options.lora_alpha, options.lora_dropout),
            (64, 128.0, 0.05)
        );
        assert_eq!(
            (options.batch_size, options.grad_accum_steps, options.epochs),
            (4, 4, 2)
        );
        assert_eq!((options.learning_rate, options.weight_decay), (2e-4, 0.01));
        assert_eq!(
            (options.max_seq_length, options.max_response_characters),
            (None, None)
        );
        let original = resolve(&["--preset", "original"]).unwrap();
        assert_eq!(original.max_seq_length, Some(512));
        assert_eq!(original.max_response_characters, Some(600));
        assert_eq!(original.max_pixels, Some(65536));
    }

    #[test]
    fn flags_go_before_the_file_and_the_file_before_the_preset() {
        let folder = tempfile::tempdir().unwrap();
        let (yaml, toml) = (folder.path().join("a.yaml"), folder.path().join("a.toml"));
        std::fs::write(
            &yaml,
            "preset: original\nlora_rank: 8\nepochs: 3\nschedule: cosine\ntarget_modules: [q_proj, v_proj]\n",
        )
        .unwrap();
        std::fs::write(
            &toml,
            "preset = \"original\"\nlora_rank = 8\nepochs = 3\nschedule = \"cosine\"\ntarget_modules = [\"q_proj\", \"v_proj\"]\n",
        )
        .unwrap();
        for path in [yaml, toml] {
            let path = path.to_str().unwrap();
            let options = resolve(&["--config", path, "--epochs", "5", "--freeze-vision"]).unwrap();
            assert_eq!((options.lora_rank, options.epochs), (8, 5));
            assert_eq!(options.max_seq_length, Some(512));
            assert_eq!(options.schedule, ScheduleKind::Cosine);
            assert_eq!(options.target_modules, ["q_proj", "v_proj"]);
            assert!(options.freeze_vision);
        }
    }

    #[test]
    fn wrong_settings_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("settings.yaml");
        let name = path.to_str().unwrap();
        for (text, word) in [
            ("lora_rnak: 8", "lora_rnak"),
            ("lora_rank: many", "lora_rank"),
            ("lora_rank: [", "YAML"),
            ("- 8", "settings.yaml"),
            ("lora_dropout: 1.5", "lora_dropout"),
            ("learning_rate: .nan", "learning_rate"),
            ("batch_size: 0", "batch_size"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = resolve(&["--config", name]).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        let error = resolve(&["--config", "absent.yaml"]).unwrap_err().to_string();
        assert!(error.contains("absent.yaml"), "{error}");
        for (flag, word) in [
            ("--warmup-ratio", "warmup_ratio"),
            ("--final-learning-rate", "final_learning_rate"),
        ] {
            let error = resolve(&[flag, "1"]).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
