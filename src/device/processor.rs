//! CPU name and features, from `/proc/cpuinfo`.

use std::fs;

/// The processor's name.
pub fn cpu_name() -> String {
    cpu_info("model name").unwrap_or_else(|| "unknown".to_owned())
}

/// The first value of `key` in `/proc/cpuinfo`.
pub fn cpu_info(key: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let value = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim() == key)?
        .1;
    Some(value.trim().to_owned())
}
