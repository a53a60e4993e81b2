//! Limits on the number of connections, in total and per client address, with spare slots for `/health`.
//!
//! A connection beyond the limits takes a spare slot, which serves `/health` only. Spare slots never run out: the newest connection
//! evicts the oldest spare one. Idle connections are evicted first.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::options::HttpOptions;

/// Number of spare slots.
pub(super) const SPARE_SLOTS: usize = 32;
/// Idle time after which a connection may be evicted.
const IDLE_GRACE: Duration = Duration::from_secs(1);

/// The slots of all connections.
pub(super) struct ConnectionSlots {
    max_connections: usize,
    max_per_address: usize,
    /// Proxies, exempt from the limit per address.
    trusted: Vec<IpAddr>,
    max_lifetime: Duration,
    open: Mutex<OpenConnections>,
}

#[derive(Default)]
struct OpenConnections {
    next: u64,
    /// By age, oldest first.
    connections: BTreeMap<u64, Arc<ConnectionState>>,
    /// Number of connections in regular slots.
    regular: usize,
    per_address: HashMap<IpAddr, usize>,
}

/// State of one connection.
pub(super) struct ConnectionState {
    id: u64,
    address: Option<IpAddr>,
    spare: bool,
    opened: Instant,
    max_lifetime: Duration,
    /// Number of requests whose response is incomplete.
    requests: AtomicUsize,
    /// Whether a response is waiting for the client to read.
    pub(super) writing: AtomicBool,
    evicted: AtomicBool,
    activity: Mutex<Activity>,
}

struct Activity {
    /// Start of the idle time.
    idle: Instant,
    /// Arrival time of the first byte of the current head.
    head: Option<Instant>,
    waker: Option<Waker>,
}

/// A connection's slot, released on drop.
pub(super) struct ConnectionSlot {
    slots: Arc<ConnectionSlots>,
    state: Arc<ConnectionState>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No critical section panics halfway through an update.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ConnectionSlots {
    pub(super) fn new(options: &HttpOptions) -> Arc<Self> {
        let number = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        Arc::new(Self {
            max_connections: number(options.max_connections),
            max_per_address: number(options.max_connections_per_address),
            trusted: options.trusted_proxy.clone(),
            max_lifetime: Duration::from_secs(options.connection_lifetime_seconds),
            open: Mutex::default(),
        })
    }

    /// Assigns a slot to a new connection, a spare one if the limits are reached.
    pub(super) fn enter(self: &Arc<Self>, address: Option<IpAddr>) -> ConnectionSlot {
        let address = address.map(|address| address.to_canonical());
        let counted = address.filter(|address| !self.trusted.contains(address));
        let mut open = lock(&self.open);
        let mut spare = false;
        if let Some(address) = counted
            && open.per_address.get(&address).copied().unwrap_or(0) >= self.max_per_address
        {
            spare |= !open.evict_idle(|state| state.address == counted);
        }
        if !spare && open.regular >= self.max_connections {
            spare |= !open.evict_idle(|_| true);
        }
        if spare {
            open.evict_oldest_spare();
        }
        let now = Instant::now();
        let state = Arc::new(ConnectionState {
            id: open.next,
            address: counted,
            spare,
            opened: now,
            max_lifetime: self.max_lifetime,
            requests: AtomicUsize::new(0),
            writing: AtomicBool::new(false),
            evicted: AtomicBool::new(false),
            activity: Mutex::new(Activity {
                idle: now,
                head: None,
                waker: None,
            }),
        });
        open.next += 1;
        open.count(&state);
        open.connections.insert(state.id, Arc::clone(&state));
        ConnectionSlot {
            slots: Arc::clone(self),
            state,
        }
    }
}

impl OpenConnections {
    fn count(&mut self, state: &ConnectionState) {
        if !state.spare {
            self.regular += 1;
            if let Some(address) = state.address {
                *self.per_address.entry(address).or_default() += 1;
            }
        }
    }

    /// Removes a connection; `None` if it is already removed.
    fn remove(&mut self, id: u64) -> Option<Arc<ConnectionState>> {
        let state = self.connections.remove(&id)?;
        if !state.spare {
            self.regular -= 1;
            if let Some(address) = state.address
                && let Some(count) = self.per_address.get_mut(&address)
            {
                *count -= 1;
                if *count == 0 {
                    self.per_address.remove(&address);
                }
            }
        }
        Some(state)
    }

    /// Evicts the connection that has been idle longest; false if none is idle.
    fn evict_idle(&mut self, fits: impl Fn(&ConnectionState) -> bool) -> bool {
        let idle = self
            .connections
            .values()
            .filter(|state| !state.spare && fits(state));
        let idle = idle.filter_map(|state| Some((state.idle_since()?, state.id)));
        match idle.min().filter(|(since, _)| since.elapsed() >= IDLE_GRACE) {
            Some((_, id)) => {
                self.evict(id);
                true
            }
            None => false,
        }
    }

    fn evict_oldest_spare(&mut self) {
        let mut spare = self
            .connections
            .values()
            .filter(|state| state.spare)
            .map(|state| state.id);
        let oldest = spare.next();
        if let Some(oldest) = oldest
            && spare.count() + 1 >= SPARE_SLOTS
        {
            self.evict(oldest);
        }
    }

    fn evict(&mut self, id: u64) {
        if let Some(state) = self.remove(id) {
            state.evicted.store(true, Ordering::Release);
            let waker = lock(&state.activity).waker.take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl ConnectionSlot {
    pub(super) fn state(&self) -> &Arc<ConnectionState> {
        &self.state
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        lock(&self.slots.open).remove(self.state.id);
    }
}

impl ConnectionState {
    /// Whether the slot is a spare one, for `/health` only.
    pub(super) fn is_spare(&self) -> bool {
        self.spare
    }

    /// Whether the connection must close after the current response.
    pub(super) fn is_old(&self) -> bool {
        self.opened.elapsed() >= self.max_lifetime
    }

    /// Whether the connection was evicted; `waker` is woken when that happens.
    pub(super) fn is_evicted(&self, waker: &Waker) -> bool {
        let mut activity = lock(&self.activity);
        if !activity
            .waker
            .as_ref()
            .is_some_and(|known| known.will_wake(waker))
        {
            activity.waker = Some(waker.clone());
        }
        drop(activity);
        self.evicted.load(Ordering::Acquire)
    }

    fn idle_since(&self) -> Option<Instant> {
        let busy = self.requests.load(Ordering::Acquire) > 0 || self.writing.load(Ordering::Acquire);
        (!busy).then(|| lock(&self.activity).idle)
    }

    /// Records the first byte of a head.
    pub(super) fn head_begins(&self) {
        lock(&self.activity).head.get_or_insert_with(Instant::now);
    }

    /// Begins a request; also returns the arrival time of its first byte, if known.
    pub(super) fn begin_request(self: &Arc<Self>) -> (ActiveRequest, Option<Instant>) {
        self.requests.fetch_add(1, Ordering::AcqRel);
        let began = lock(&self.activity).head.take();
        (ActiveRequest(Arc::clone(self)), began)
    }
}

/// A request whose response is incomplete.
pub(super) struct ActiveRequest(Arc<ConnectionState>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        lock(&self.0.activity).idle = Instant::now();
        self.0.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(most: u64, of_an_address: u64) -> Arc<ConnectionSlots> {
        ConnectionSlots::new(&HttpOptions {
            max_connections: most,
            max_connections_per_address: of_an_address,
            trusted_proxy: vec![address(9).expect("an address")],
            ..HttpOptions::default()
        })
    }

    fn address(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, last]))
    }

    fn age(slot: &ConnectionSlot) {
        let long_ago = Instant::now().checked_sub(2 * IDLE_GRACE).expect("a time");
        lock(&slot.state.activity).idle = long_ago;
    }

    fn evicted(slot: &ConnectionSlot) -> bool {
        slot.state.is_evicted(Waker::noop())
    }

    #[test]
    fn addresses_are_limited_and_trusted_proxies_are_not() {
        let slots = slots(100, 2);
        let mine: Vec<_> = (0..4).map(|_| slots.enter(address(1))).collect();
        let spare: Vec<_> = mine.iter().map(|slot| slot.state().is_spare()).collect();
        assert_eq!(spare, [false, false, true, true]);
        assert!(!slots.enter(address(2)).state().is_spare());
        let proxied: Vec<_> = (0..50).map(|_| slots.enter(address(9))).collect();
        assert!(proxied.iter().all(|slot| !slot.state().is_spare()));
        drop(mine);
        assert!(!slots.enter(address(1)).state().is_spare(), "slots come back");
        // The same address as an IPv4-mapped one.
        let mapped = Some("::ffff:192.0.2.3".parse().expect("an address"));
        let _two = [slots.enter(mapped), slots.enter(address(3))];
        assert!(slots.enter(mapped).state().is_spare());
    }

    #[test]
    fn idle_connections_are_evicted_and_busy_ones_are_not() {
        let slots = slots(2, 100);
        let (first, second) = (slots.enter(address(1)), slots.enter(address(2)));
        assert!(slots.enter(address(3)).state().is_spare(), "both have just come");
        age(&first);
        age(&second);
        let asking = first.state().begin_request();
        let third = slots.enter(address(3));
        assert!(!third.state().is_spare());
        assert!(!evicted(&first), "it is being answered");
        assert!(evicted(&second));
        drop(asking);
        assert!(
            slots.enter(address(4)).state().is_spare(),
            "it was answered just now"
        );
        drop(second);
        drop(third);
        assert!(
            !slots.enter(address(4)).state().is_spare(),
            "left once, not twice"
        );
    }

    #[test]
    fn the_oldest_spare_connection_is_evicted() {
        let slots = slots(1, 1);
        let _full = slots.enter(address(1));
        let spare: Vec<_> = (0..3 * SPARE_SLOTS).map(|_| slots.enter(address(1))).collect();
        assert!(spare.iter().all(|slot| slot.state().is_spare()));
        let alive = spare.iter().filter(|slot| !evicted(slot)).count();
        assert_eq!(alive, SPARE_SLOTS);
        assert!(!evicted(spare.last().expect("one")));
    }
}
