//! Who may call the API: keys (`keys.rs`), the check before every route (`guard.rs`), and the delay of those who have none (`attempts.rs`).

mod attempts;
mod guard;
mod in_address;
mod keys;

pub(super) use self::guard::{client, guard};
pub(super) use self::in_address::refuse_key_in_address;
pub use self::keys::{ApiKeys, KeyError, KeyScope, NewKey};

use std::sync::Arc;

use self::attempts::Attempts;

/// Keys of a server, and the addresses that asked without one.
#[derive(Debug, Default)]
pub struct Access {
    /// `None`: every route is open.
    keys: Option<Arc<ApiKeys>>,
    attempts: Attempts,
}

impl Access {
    /// Only requests with one of `keys` are answered.
    pub fn with(keys: Arc<ApiKeys>) -> Self {
        Self {
            keys: Some(keys),
            attempts: Attempts::default(),
        }
    }

    /// The keys; `None` if every route is open.
    pub fn keys(&self) -> Option<&ApiKeys> {
        self.keys.as_deref()
    }
}
