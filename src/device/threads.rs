//! Number of CPU threads.

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZeroUsize;
use std::thread::available_parallelism;

/// Physical cores available to this process; `None` if unknown.
///
/// Hyper-threads share the arithmetic units of a core, so that more threads than cores slow down matrix products.
pub fn physical_cores() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let allowed = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let cores: Option<BTreeSet<String>> = cpu_list(allowed)?
        .into_iter()
        .map(|cpu| {
            let file = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            fs::read_to_string(file).ok()
        })
        .collect();
    cores.map(|cores| cores.len()).filter(|cores| *cores > 0)
}

/// Number of physical cores, or fewer if CPU affinity or a control group limits them.
pub fn default_threads() -> usize {
    let allowed = available_parallelism().map_or(1, NonZeroUsize::get);
    physical_cores().map_or(allowed, |cores| cores.min(allowed))
}

/// Sets the number of threads of libtorch's operations and of rayon's global pool.
///
/// Rayon's pool keeps its size once it has been used; set the threads before.
pub fn set_threads(threads: usize) {
    tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    if rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .is_err()
    {
        tracing::debug!("rayon's thread pool is in use already and keeps its size");
    }
}

/// CPU numbers of a list such as `0-3,8`; `None` if it cannot be parsed.
fn cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_read() {
        assert_eq!(cpu_list("\t0-2,5\n"), Some(vec![0, 1, 2, 5]));
        assert_eq!(cpu_list("7"), Some(vec![7]));
        assert_eq!(cpu_list("a-b"), None);
    }

    #[test]
    fn the_default_is_within_what_is_allowed() {
        assert!((1..=available_parallelism().unwrap().get()).contains(&default_threads()));
    }
}
