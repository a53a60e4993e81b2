//! Version of this build.

use std::sync::LazyLock;

/// "VERSION (COMMIT)", for `--version`.
pub fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| format!("{} ({})", package_version(), commit()));
    &VERSION
}

/// The package's version.
pub fn package_version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// The commit whose sources were compiled, or `unknown`.
pub fn commit() -> &'static str {
    option_env!("MEDVISION_GIT_HASH").unwrap_or("unknown")
}
