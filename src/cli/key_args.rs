//! Who may use the server: keys, or everybody.

use std::net::{IpAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;

use clap::builder::FalseyValueParser;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory};

use super::server::Arguments;
use crate::console::{Level, say};
use crate::server::{Access, ApiKeys, KeyScope, NewKey, Reloads, loopback};

/// Variable of a single key. There is no flag: arguments are visible to every user of the machine.
const KEY_VARIABLE: &str = "MVP_API_KEY";

/// Who may use the server.
#[derive(Debug, clap::Args)]
pub struct KeyArgs {
    /// File of API keys, a line NAME:SHA256[:inference|metrics] each, as `medvision key new` prints it. A single key can be
    /// in MVP_API_KEY instead. Read again on SIGHUP. Without a key the server listens on a loopback address only.
    #[arg(long, value_name = "FILE", env = "MVP_API_KEY_FILE", hide_env_values = true)]
    api_key_file: Option<PathBuf>,

    /// Without a key, make one, and print it once.
    #[arg(long, env = "MVP_GENERATE_API_KEY", hide_env_values = true, value_parser = FalseyValueParser::new())]
    generate_api_key: bool,

    /// Ask for no key on any address, as the original Python project did: whoever reaches the server can use it.
    #[arg(long, env = "MVP_COMPAT", hide_env_values = true, value_parser = FalseyValueParser::new())]
    compat: bool,
}

/// Who may use the server, and where it listens.
pub struct Admission {
    /// Keys, or everybody.
    pub access: Access,
    /// Address to listen on.
    pub host: String,
    /// Whether nobody but this machine may reach the server.
    pub only_loopback: bool,
    /// A key that was made now.
    pub new_key: Option<String>,
}

impl KeyArgs {
    /// Ends the program where the user asks for a key and for none. The image sets the variable of the first, which gives way.
    pub fn check(&self, matches: &ArgMatches) {
        let is_flag = matches.value_source("generate_api_key") == Some(ValueSource::CommandLine);
        if self.compat && self.generate_api_key && is_flag {
            usage_error(
                "--compat (MVP_COMPAT) asks for no key, but --generate-api-key makes one: leave out one of the two",
            );
        }
    }

    /// Reads the keys. Without one, `host` becomes a loopback address. Prints warnings, and has
    /// `reloads` read the file anew.
    ///
    /// # Errors
    /// [`crate::server::KeyError`].
    pub fn admission(self, host: String, reloads: &mut Reloads) -> anyhow::Result<Admission> {
        let key = match std::env::var(KEY_VARIABLE) {
            Ok(key) => Some(key),
            Err(std::env::VarError::NotPresent) => None,
            Err(std::env::VarError::NotUnicode(_)) => anyhow::bail!("{KEY_VARIABLE}: not UTF-8"),
        };
        let has_keys = key.is_some() || self.api_key_file.is_some();
        if has_keys && self.compat {
            let reason = format!(
                "--compat (MVP_COMPAT) asks for no key, but --api-key-file or {KEY_VARIABLE} gives one: unset one of the two"
            );
            usage_error(&reason);
        }
        if has_keys {
            let (keys, warnings) = ApiKeys::load(self.api_key_file, key.as_deref())?;
            for warning in warnings {
                say(Level::WARN, &warning);
            }
            let keys = Arc::new(keys);
            let reloaded = Arc::clone(&keys);
            reloads.add("API keys", move || reloaded.reload());
            return Ok(Admission {
                access: Access::with(keys),
                host,
                only_loopback: false,
                new_key: None,
            });
        }
        if self.compat {
            let warning =
                "no key is asked for (--compat): whoever reaches this server can read documents with it";
            say(Level::WARN, warning);
            return Ok(Admission {
                access: Access::default(),
                host,
                only_loopback: false,
                new_key: None,
            });
        }
        if self.generate_api_key {
            let new = NewKey::make("default", KeyScope::All)?;
            let (keys, _) = ApiKeys::load(None, Some(&new.key))?;
            return Ok(Admission {
                access: Access::with(Arc::new(keys)),
                host,
                only_loopback: false,
                new_key: Some(new.key),
            });
        }
        let loopback = loopback_instead_of(&host);
        if let Some(loopback) = &loopback {
            let warning = format!(
                "there is no key, so the server listens on {loopback}, not on {host}: `medvision key new NAME` makes one for \
                 --api-key-file; --generate-api-key makes one now; --compat asks for none"
            );
            say(Level::WARN, &warning);
        }
        Ok(Admission {
            access: Access::default(),
            host: loopback.unwrap_or(host),
            only_loopback: true,
            new_key: None,
        })
    }
}

/// Ends the program as clap does.
fn usage_error(reason: &str) -> ! {
    Arguments::command()
        .error(ErrorKind::ArgumentConflict, reason)
        .exit()
}

/// A loopback address, if `host` is another one.
fn loopback_instead_of(host: &str) -> Option<String> {
    let addresses: Vec<IpAddr> = match (host, 0).to_socket_addrs() {
        Ok(addresses) => addresses.map(|address| address.ip()).collect(),
        // Binding reports it.
        Err(_) => return None,
    };
    if addresses.iter().all(IpAddr::is_loopback) {
        return None;
    }
    let is_v6 = addresses.iter().all(IpAddr::is_ipv6);
    Some(loopback(is_v6).to_string())
}

/// Prints a key that was made now, and the address of the page that carries it.
pub fn print_new_key(key: &str, page: Option<String>) -> anyhow::Result<()> {
    let mut text = format!("API key, made now and valid until the server stops: {key}");
    if let Some(page) = page {
        // In the fragment, which no browser sends and no log has.
        text.push_str(&format!("\n  page  {page}/#key={key}"));
    }
    super::print(&format!("{text}\n"))
}
