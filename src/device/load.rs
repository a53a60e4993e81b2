//! CPU load during a measurement: times are comparable only under similar load.

use std::fs;
use std::time::Duration;

/// Accumulated CPU time of the machine and of this process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProcessorTimes {
    /// Time of all CPUs since boot.
    all: Duration,
    /// Busy time, including steal.
    busy: Duration,
    /// Busy time of this process.
    own: Duration,
}

/// Shares of the CPU time, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProcessorShares {
    /// Share of this process.
    pub own: f64,
    /// Share of other processes.
    pub others: f64,
}

impl ProcessorTimes {
    /// The times until now; `None` without `/proc`.
    pub fn now() -> Option<Self> {
        let own = own_time()?;
        let (all, busy) = machine_times(&fs::read_to_string("/proc/stat").ok()?, ticks_per_second()?)?;
        Some(Self { all, busy, own })
    }

    /// Shares since `before`; `None` if the interval is too short for the system's clock.
    pub fn since(&self, before: &Self) -> Option<ProcessorShares> {
        let part = |of: fn(&Self) -> Duration| of(self).saturating_sub(of(before)).as_secs_f64();
        let (all, busy, own) = (part(|t| t.all), part(|t| t.busy), part(|t| t.own));
        (all >= 0.1).then(|| ProcessorShares {
            own: (own / all).clamp(0.0, 1.0),
            others: ((busy - own) / all).clamp(0.0, 1.0),
        })
    }
}

/// One-minute load average; `None` without `/proc`.
pub fn load_average() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

fn own_time() -> Option<Duration> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: the structure is the one that the call fills.
    let usage = unsafe {
        if libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) != 0 {
            return None;
        }
        usage.assume_init()
    };
    let time = |value: libc::timeval| {
        let seconds = Duration::from_secs(u64::try_from(value.tv_sec).unwrap_or(0));
        seconds + Duration::from_micros(u64::try_from(value.tv_usec).unwrap_or(0))
    };
    Some(time(usage.ru_utime) + time(usage.ru_stime))
}

fn ticks_per_second() -> Option<u64> {
    // SAFETY: returns a number.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks).ok().filter(|ticks| *ticks > 0)
}

/// Total and busy time of all CPUs, from the first line of `/proc/stat`.
fn machine_times(stat: &str, ticks_per_second: u64) -> Option<(Duration, Duration)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    // user, nice, system, idle, iowait, irq, softirq, steal; guests' time is in user's already.
    let ticks: Vec<u64> = line
        .split_whitespace()
        .take(8)
        .map(|field| field.parse().ok())
        .collect::<Option<_>>()?;
    let all: u64 = ticks.iter().sum();
    let idle = ticks.get(3)? + ticks.get(4).unwrap_or(&0);
    let time = |ticks: u64| Duration::from_secs_f64(ticks as f64 / ticks_per_second as f64);
    Some((time(all), time(all - idle)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_a_machine() {
        let stat = "cpu  100 5 45 800 20 10 5 15 7 7\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        let (all, busy) = machine_times(stat, 100).unwrap();
        assert_eq!(
            (all, busy),
            (Duration::from_secs(10), Duration::from_millis(1800))
        );
        assert_eq!(machine_times("cpu  1 x\n", 100), None);
        assert_eq!(machine_times("", 100), None);
    }

    #[test]
    fn shares_between_two_moments() {
        let at = |all, busy, own| ProcessorTimes {
            all: Duration::from_secs(all),
            busy: Duration::from_secs(busy),
            own: Duration::from_secs(own),
        };
        let shares = at(140, 75, 30).since(&at(100, 50, 10)).unwrap();
        assert_eq!((shares.own, shares.others), (0.5, 0.125));
        // The system's clock is coarser than the process's.
        let shares = at(140, 60, 31).since(&at(100, 50, 10)).unwrap();
        assert_eq!(shares.others, 0.0);
        assert_eq!(at(1, 1, 1).since(&at(1, 1, 1)), None);
    }

    #[test]
    fn this_machine_has_both() {
        let (one, average) = (ProcessorTimes::now().unwrap(), load_average().unwrap());
        assert!(one.all >= one.busy && average >= 0.0);
    }
}
