//! Version of this build.

use std::sync::LazyLock;

/// "VERSION (COMMIT)", for `--version`.
pub fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| {
        let commit = option_env!("MEDVISION_GIT_HASH").unwrap_or("unknown");
        format!("{} ({commit})", env!("CARGO_PKG_VERSION"))
    });
    &VERSION
}
