//! Requests without a right key, counted for each address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Requests of an address that are refused at once, within [`WINDOW`].
const FREE: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// Delay of a further refusal.
const DELAY: Duration = Duration::from_secs(1);
/// Addresses that are remembered. Beyond it all others share one count.
const MAX_ADDRESSES: usize = 4096;

/// Counts refused requests.
#[derive(Debug, Default)]
pub(super) struct Attempts(Mutex<HashMap<Option<IpAddr>, Count>>);

#[derive(Debug)]
struct Count {
    refused: u32,
    since: Instant,
}

impl Attempts {
    /// Counts a refused request from `address` at `now`; returns the delay of its answer, if there were too many.
    pub(super) fn refused(&self, address: Option<IpAddr>, now: Instant) -> Option<Duration> {
        // No critical section panics halfway through an update.
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut address = address.map(network);
        if counts.len() >= MAX_ADDRESSES && !counts.contains_key(&address) {
            counts.retain(|_, count| now.duration_since(count.since) < WINDOW);
            if counts.len() >= MAX_ADDRESSES {
                address = None;
            }
        }
        let count = counts.entry(address).or_insert(Count {
            refused: 0,
            since: now,
        });
        if now.duration_since(count.since) >= WINDOW {
            *count = Count {
                refused: 0,
                since: now,
            };
        }
        count.refused = count.refused.saturating_add(1);
        (count.refused > FREE).then_some(DELAY)
    }
}

/// What one client controls: an IPv4 address, or the /64 of an IPv6 address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_refusals_of_a_minute_wait() {
        let attempts = Attempts::default();
        let start = Instant::now();
        let at = |address: &str, seconds| {
            let address = address.parse().expect("an address");
            attempts.refused(Some(address), start + Duration::from_secs(seconds))
        };
        for second in 0..10 {
            assert_eq!(at("192.0.2.1", second), None);
        }
        assert_eq!(at("192.0.2.1", 10), Some(DELAY));
        assert_eq!(at("::ffff:192.0.2.1", 59), Some(DELAY), "the same address");
        assert_eq!(at("192.0.2.2", 10), None);
        assert_eq!(at("192.0.2.1", 60), None);
        for _ in 0..10 {
            at("2001:db8::1", 0);
        }
        assert_eq!(at("2001:db8::ffff:2", 0), Some(DELAY), "the same network");
        assert_eq!(at("2001:db8:0:1::1", 0), None);
    }

    #[test]
    fn many_addresses_take_bounded_memory() {
        let attempts = Attempts::default();
        let now = Instant::now();
        for address in 0..10_000u32 {
            attempts.refused(Some(IpAddr::from(address.to_be_bytes())), now);
        }
        assert!(attempts.0.lock().expect("counts").len() <= MAX_ADDRESSES + 1);
        let stranger = Some(IpAddr::from([203, 0, 113, 1]));
        assert_eq!(
            attempts.refused(stranger, now),
            Some(DELAY),
            "they share one count"
        );
        let later = now + WINDOW;
        assert_eq!(attempts.refused(stranger, later), None);
    }
}
