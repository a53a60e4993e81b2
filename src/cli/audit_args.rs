//! The audit log of `server`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::builder::FalseyValueParser;

use crate::console::{Level, say};
use crate::server::{AuditError, AuditLog, AuditOptions, Reloads};

/// The audit log.
#[derive(Debug, clap::Args)]
pub struct AuditArgs {
    /// File to which one JSON line a request is appended before the answer is sent: time, key's name, route, request id, digests of
    /// documents, pages, model, adapter, version, status, seconds; no text, prompt or file name. If it cannot be written, the answer is
    /// 503. Opened anew on SIGHUP.
    #[arg(long, value_name = "FILE", env = "MVP_AUDIT_LOG", hide_env_values = true)]
    audit_log: Option<PathBuf>,

    /// File with a secret of 16 bytes or more that keys the digests, so that they do not tell whether a known document was read.
    #[arg(
        long,
        value_name = "FILE",
        env = "MVP_AUDIT_SALT_FILE",
        hide_env_values = true,
        requires = "audit_log"
    )]
    audit_salt_file: Option<PathBuf>,

    /// Log the client's address, too; behind a proxy it is the proxy's.
    #[arg(
        long,
        env = "MVP_AUDIT_ADDRESS",
        hide_env_values = true,
        value_parser = FalseyValueParser::new(),
        requires_if("true", "audit_log")
    )]
    audit_address: bool,
}

impl AuditArgs {
    /// Opens the log, if one is asked for, and has `reloads` open it anew. Prints warnings.
    pub fn open(self, reloads: &mut Reloads) -> Result<Option<Arc<AuditLog>>, AuditError> {
        let Some(file) = self.audit_log else {
            return Ok(None);
        };
        let (log, warnings) = AuditLog::open(AuditOptions {
            file,
            salt_file: self.audit_salt_file,
            address: self.audit_address,
        })?;
        for warning in warnings {
            say(Level::WARN, &warning);
        }
        let log = Arc::new(log);
        let reopened = Arc::clone(&log);
        reloads.add("audit log", move || reopened.reopen());
        Ok(Some(log))
    }
}
