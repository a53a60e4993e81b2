//! What is read anew on SIGHUP.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;

use actix_web::web;
use tokio::signal::unix::{SignalKind, signal};

use crate::console::Level;

/// Reads something anew and returns warnings. If it fails, the old state must have stayed.
type Reload = Box<dyn Fn() -> Result<Vec<String>, Box<dyn Error + Send + Sync>> + Send + Sync>;

/// Tells the user what happened, in texts that may name files.
type Tell = Box<dyn Fn(Level, &str) + Send + Sync>;

/// Parts of a server that are read anew on SIGHUP, in the order in which they were added.
pub struct Reloads {
    parts: Vec<(&'static str, Reload)>,
    tell: Tell,
}

impl fmt::Debug for Reloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.parts.iter().map(|(name, _)| name);
        f.debug_list().entries(names).finish()
    }
}

impl Reloads {
    /// None yet. `tell` gets what happens, in texts that may name the user's files.
    pub fn new(tell: impl Fn(Level, &str) + Send + Sync + 'static) -> Self {
        Self {
            parts: Vec::new(),
            tell: Box::new(tell),
        }
    }

    /// Adds a part called `name`. `reload` may block; it returns warnings, and keeps the old state if it fails.
    pub fn add<E: Error + Send + Sync + 'static>(
        &mut self,
        name: &'static str,
        reload: impl Fn() -> Result<Vec<String>, E> + Send + Sync + 'static,
    ) {
        self.parts.push((name, Box::new(move || Ok(reload()?))));
    }

    /// From now on SIGHUP reloads all parts instead of ending the process; without parts it does nothing. Call inside an actix
    /// runtime.
    ///
    /// # Errors
    /// The operating system's, if no handler can be installed.
    pub fn listen(self) -> io::Result<()> {
        let mut hangups = signal(SignalKind::hangup())?;
        let reloads = Arc::new(self);
        actix_web::rt::spawn(async move {
            while hangups.recv().await.is_some() {
                let reloads = Arc::clone(&reloads);
                // A panic has been reported by the hook.
                let _ = web::block(move || reloads.all()).await;
            }
        });
        Ok(())
    }

    fn all(&self) {
        if self.parts.is_empty() {
            (self.tell)(Level::INFO, "SIGHUP: nothing to reload");
        }
        for (name, reload) in &self.parts {
            match reload() {
                Ok(warnings) => {
                    for warning in warnings {
                        (self.tell)(Level::WARN, &warning);
                    }
                    (self.tell)(Level::INFO, &format!("reloaded: {name}"));
                }
                Err(error) => {
                    (self.tell)(
                        Level::ERROR,
                        &format!("not reloaded, the old one stays: {name}: {error}"),
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn parts_are_reloaded_in_order_and_a_failure_stops_none() {
        let said = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&said);
        let mut reloads = Reloads::new(move |level, text| {
            log.lock().expect("a log").push(format!("{level} {text}"));
        });
        reloads.add("keys", || Err(io::Error::other("no such file")));
        reloads.add("certificate", || {
            Ok::<_, io::Error>(vec!["it has expired".to_owned()])
        });
        reloads.all();
        let said = said.lock().expect("a log");
        assert_eq!(
            *said,
            [
                "ERROR not reloaded, the old one stays: keys: no such file",
                "WARN it has expired",
                "INFO reloaded: certificate",
            ]
        );
    }
}
