//! API keys: made, read from a file, looked up. Only their SHA-256 is kept.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::fs::{hex, read_bounded, readable_by_others};

/// Maximum size of a key file, bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Maximum number of keys.
const MAX_KEYS: usize = 10_000;
/// Maximum characters of a key's name.
const MAX_NAME_CHARACTERS: usize = 64;
/// Length of a key given in the environment, characters.
const KEY_CHARACTERS: std::ops::RangeInclusive<usize> = 16..=1024;
/// Random bytes of a new key.
const KEY_BYTES: usize = 32;
/// Start of a new key, by which scanners for leaked secrets find it.
const PREFIX: &str = "medvision-";

/// What a key may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyScope {
    /// Every route.
    All,
    /// Every route but `/metrics`.
    Inference,
    /// `/metrics` only.
    Metrics,
}

/// A key that was just made.
pub struct NewKey {
    /// The key itself: to be shown once.
    pub key: String,
    /// Its line in a key file.
    pub line: String,
}

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("--api-key-file {}: {error}", path.display())]
    File {
        /// The key file.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// A line of the file is invalid.
    #[error("{}, line {line}: {reason}", path.display())]
    Line {
        /// The key file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// The file has no key.
    #[error("{}: no keys in this file; `medvision key new NAME` makes one", path.display())]
    NoKeys {
        /// The key file.
        path: PathBuf,
    },
    /// `MVP_API_KEY` is invalid.
    #[error("MVP_API_KEY: {0}")]
    Variable(&'static str),
    /// A key's name is invalid.
    #[error("a key's name has 1 to {MAX_NAME_CHARACTERS} letters, digits, `.`, `-` or `_`")]
    Name,
    /// The operating system gives no random bytes.
    #[error("no random bytes from the operating system: {0}")]
    Random(getrandom::Error),
}

/// A key, by its digest.
#[derive(Clone)]
pub(super) struct ApiKey {
    pub(super) name: Arc<str>,
    pub(super) scope: KeyScope,
    digest: [u8; 32],
}

/// The keys that a server accepts.
pub struct ApiKeys {
    /// Of the environment, or made at the start.
    fixed: Vec<ApiKey>,
    file: Option<PathBuf>,
    current: RwLock<Arc<[ApiKey]>>,
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.current().len();
        f.debug_struct("ApiKeys")
            .field("file", &self.file)
            .field("keys", &count)
            .finish()
    }
}

impl ApiKeys {
    /// The keys of `file`, and `key` under the name `default`. Also returns warnings.
    ///
    /// # Errors
    /// The file cannot be read or has an invalid line; the key is too short, too long or not printable ASCII.
    pub fn load(file: Option<PathBuf>, key: Option<&str>) -> Result<(Self, Vec<String>), KeyError> {
        let fixed = key.map(|key| {
            if !KEY_CHARACTERS.contains(&key.len()) {
                return Err(KeyError::Variable("a key has 16 to 1024 characters"));
            }
            if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(KeyError::Variable(
                    "a key is of printable ASCII characters, without spaces",
                ));
            }
            Ok(ApiKey {
                name: "default".into(),
                scope: KeyScope::All,
                digest: Sha256::digest(key).into(),
            })
        });
        let keys = Self {
            fixed: fixed.transpose()?.into_iter().collect(),
            file,
            current: RwLock::new(Arc::new([])),
        };
        let warnings = keys.reload()?;
        Ok((keys, warnings))
    }

    /// Reads the file again and returns warnings. If that fails, the old keys stay.
    ///
    /// # Errors
    /// As of [`ApiKeys::load`].
    pub fn reload(&self) -> Result<Vec<String>, KeyError> {
        let mut keys = self.fixed.clone();
        let mut warnings = Vec::new();
        if let Some(path) = &self.file {
            let failed = |error| KeyError::File {
                path: path.clone(),
                error,
            };
            let text = read_bounded(path, MAX_FILE_BYTES).map_err(failed)?;
            keys.extend(parse(path, &text, &keys)?);
            warnings.extend(readable_by_others(path).map(|found| format!("{}: {found}", path.display())));
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = keys.into();
        Ok(warnings)
    }

    /// Finds the entry of `key`. Takes the same time for every key of a length.
    pub(super) fn find(&self, key: &[u8]) -> Option<ApiKey> {
        let digest: [u8; 32] = Sha256::digest(key).into();
        find_by(&self.current(), |known| known.ct_eq(&digest)).cloned()
    }

    fn current(&self) -> Arc<[ApiKey]> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl NewKey {
    /// Makes a key called `name`.
    ///
    /// # Errors
    /// An invalid name, or the operating system gives no random bytes.
    pub fn make(name: &str, scope: KeyScope) -> Result<Self, KeyError> {
        if !is_name(name) {
            return Err(KeyError::Name);
        }
        let mut bytes = [0; KEY_BYTES];
        getrandom::fill(&mut bytes).map_err(KeyError::Random)?;
        let key = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
        let digest = hex(&Sha256::digest(&key));
        let scope = match scope {
            KeyScope::All => "",
            KeyScope::Inference => ":inference",
            KeyScope::Metrics => ":metrics",
        };
        let line = format!("{name}:{digest}{scope}");
        Ok(Self { key, line })
    }
}

/// The entry whose digest `is_equal` accepts. It is asked for every one, wherever that is: the time must tell nothing.
fn find_by(keys: &[ApiKey], mut is_equal: impl FnMut(&[u8; 32]) -> Choice) -> Option<&ApiKey> {
    let mut found = 0u32;
    for (number, key) in (1u32..).zip(keys) {
        found.conditional_assign(&number, is_equal(&key.digest));
    }
    keys.get(usize::try_from(found).ok()?.checked_sub(1)?)
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME_CHARACTERS).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

/// Reads lines `NAME:SHA256[:SCOPE]`; empty lines and lines that begin with `#` are skipped.
fn parse(path: &Path, text: &[u8], others: &[ApiKey]) -> Result<Vec<ApiKey>, KeyError> {
    let mut keys: Vec<ApiKey> = Vec::new();
    for (line, bytes) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        let invalid = |reason| KeyError::Line {
            path: path.to_owned(),
            line,
            reason,
        };
        let text = std::str::from_utf8(bytes).map_err(|_| invalid("not UTF-8"))?;
        let text = text.trim_start_matches('\u{feff}').trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let key = parse_line(text).map_err(invalid)?;
        let mut all = others.iter().chain(&keys);
        if all.clone().any(|other| other.name == key.name) {
            return Err(invalid(
                "this name was given before (MVP_API_KEY has the name `default`)",
            ));
        }
        if all.any(|other| other.digest == key.digest) {
            return Err(invalid("this key was given before, under another name"));
        }
        if keys.len() == MAX_KEYS {
            return Err(invalid("too many keys: the limit is 10,000"));
        }
        keys.push(key);
    }
    if keys.is_empty() {
        return Err(KeyError::NoKeys {
            path: path.to_owned(),
        });
    }
    Ok(keys)
}

fn parse_line(text: &str) -> Result<ApiKey, &'static str> {
    let mut fields = text.split(':');
    let name = fields.next().unwrap_or_default();
    if !is_name(name) {
        return Err("a key's name has 1 to 64 letters, digits, `.`, `-` or `_`");
    }
    let digest = fields.next().and_then(digest).ok_or(
        "expected NAME:SHA256, the second in 64 hexadecimal digits, as `medvision key new NAME` prints it",
    )?;
    if ["", "\n"]
        .iter()
        .any(|nothing| digest == Sha256::digest(nothing).as_slice())
    {
        return Err("this is the digest of nothing: the key was empty where it was made");
    }
    let scope = match (fields.next(), fields.next()) {
        (None, _) => KeyScope::All,
        (Some("inference"), None) => KeyScope::Inference,
        (Some("metrics"), None) => KeyScope::Metrics,
        _ => return Err("the scope after the digest is `inference` or `metrics`"),
    };
    Ok(ApiKey {
        name: name.into(),
        scope,
        digest,
    })
}

fn digest(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    let mut digest = [0; 32];
    for (index, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Vec<ApiKey>, KeyError> {
        parse(Path::new("keys"), text.as_bytes(), &[])
    }

    fn line(name: &str, key: &str) -> String {
        let digest = Sha256::digest(key);
        format!(
            "{name}:{}",
            digest
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        )
    }

    #[test]
    fn a_key_file_is_read_as_any_editor_writes_it() {
        let (ward, lab, watch) = (
            line("ward-3", "a"),
            line("lab", "b").to_uppercase(),
            line("w", "c"),
        );
        let lab = lab.replacen("LAB", "lab", 1);
        let text = format!("\u{feff}# keys\r\n\r\n{ward}\r\n  {lab}:inference \r\n{watch}:metrics");
        let keys = parse_text(&text).expect("keys");
        let expected = [
            ("ward-3", KeyScope::All),
            ("lab", KeyScope::Inference),
            ("w", KeyScope::Metrics),
        ];
        let read: Vec<_> = keys.iter().map(|key| (&*key.name, key.scope)).collect();
        assert_eq!(read, expected);
    }

    #[test]
    fn invalid_lines_are_named() {
        let (a, b) = (line("a", "1"), line("b", "2"));
        for (text, expected) in [
            (String::new(), "keys: no keys in this file"),
            ("# none\n".to_owned(), "keys: no keys in this file"),
            (
                format!("{a}\n{}", line("a", "2")),
                "keys, line 2: this name was given before",
            ),
            (
                format!("{a}\n{}", line("b", "1")),
                "keys, line 2: this key was given before",
            ),
            (format!("{a}:all"), "keys, line 1: the scope"),
            (format!("{a}:metrics:x"), "keys, line 1: the scope"),
            (b[..b.len() - 1].to_owned(), "keys, line 1: expected NAME:SHA256"),
            (
                format!("{}ß", &b[..b.len() - 2]),
                "keys, line 1: expected NAME:SHA256",
            ),
            (
                "medvision-secret".to_owned(),
                "keys, line 1: expected NAME:SHA256",
            ),
            (format!("ward 3{}", &a[1..]), "keys, line 1: a key's name"),
            (
                format!("{}{}", "n".repeat(65), &a[1..]),
                "keys, line 1: a key's name",
            ),
            (line("a", ""), "keys, line 1: this is the digest of nothing"),
            (line("a", "\n"), "keys, line 1: this is the digest of nothing"),
            (a[1..].to_owned(), "keys, line 1: a key's name"),
        ] {
            let error = parse_text(&text).map(|_| ()).expect_err(&text).to_string();
            assert!(error.starts_with(expected), "{error}");
            assert!(
                !error.contains("secret"),
                "a key pasted by mistake came back: {error}"
            );
        }
    }

    #[test]
    fn a_new_key_is_found_by_its_line() {
        for scope in [KeyScope::All, KeyScope::Inference, KeyScope::Metrics] {
            let new = NewKey::make("ward-3", scope).expect("a key");
            assert_eq!(new.key.len(), PREFIX.len() + 43);
            let folder = tempfile::tempdir().expect("a folder");
            let file = folder.path().join("keys");
            std::fs::write(&file, &new.line).expect("a file");
            let (keys, _) = ApiKeys::load(Some(file), Some("a-key-of-the-environment")).expect("keys");
            let found = keys.find(new.key.as_bytes()).expect("the key");
            assert_eq!((&*found.name, found.scope), ("ward-3", scope));
            let found = keys.find(b"a-key-of-the-environment").expect("the key");
            assert_eq!((&*found.name, found.scope), ("default", KeyScope::All));
            for wrong in [&b""[..], b"x", &new.key.as_bytes()[1..], new.line.as_bytes()] {
                assert!(keys.find(wrong).is_none());
            }
        }
        for name in ["", "a b", "a:b", "é", &"n".repeat(65)] {
            assert!(matches!(NewKey::make(name, KeyScope::All), Err(KeyError::Name)));
        }
    }

    #[test]
    fn every_digest_is_compared_whether_the_key_is_known_or_not() {
        let lines: Vec<_> = (0..100)
            .map(|number| line(&format!("k{number}"), &number.to_string()))
            .collect();
        let keys = parse_text(&lines.join("\n")).expect("keys");
        for sent in ["0", "50", "99", "unknown", ""] {
            let digest: [u8; 32] = Sha256::digest(sent).into();
            let mut compared = 0;
            let found = find_by(&keys, |known| {
                compared += 1;
                known.ct_eq(&digest)
            });
            assert_eq!(compared, keys.len(), "{sent}");
            let name = found.map(|key| key.name.to_string());
            let is_known = sent.parse::<u32>().is_ok();
            assert_eq!(name, is_known.then(|| format!("k{sent}")));
        }
    }

    #[test]
    fn two_thousand_random_keys_are_told_apart() {
        let keys: Vec<_> = (0..2000)
            .map(|number| NewKey::make(&format!("k{number}"), KeyScope::All).expect("a key"))
            .collect();
        let lines: Vec<_> = keys.iter().step_by(2).map(|key| key.line.as_str()).collect();
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("keys");
        std::fs::write(&file, lines.join("\n")).expect("a file");
        let (store, _) = ApiKeys::load(Some(file), None).expect("keys");
        for (number, key) in keys.iter().enumerate() {
            let found = store.find(key.key.as_bytes()).map(|key| key.name.to_string());
            assert_eq!(found, (number % 2 == 0).then(|| format!("k{number}")));
        }
    }

    #[test]
    fn keys_of_the_environment_are_checked() {
        for (key, expected) in [
            ("", "MVP_API_KEY: a key has 16 to 1024 characters"),
            ("short", "MVP_API_KEY: a key has 16 to 1024 characters"),
            ("with a space in it", "MVP_API_KEY: a key is of printable ASCII"),
            ("sixteen or more ß", "MVP_API_KEY: a key is of printable ASCII"),
        ] {
            let error = ApiKeys::load(None, Some(key)).map(|_| ()).expect_err("an error");
            assert!(error.to_string().starts_with(expected), "{error}");
        }
        let long = "x".repeat(1 << 20);
        assert!(ApiKeys::load(None, Some(&long)).is_err());
    }
}
