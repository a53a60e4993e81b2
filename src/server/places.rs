//! Who may be connected: bounds on connections, of all clients and of one, and places kept for `/health`.
//!
//! A connection beyond the bounds takes a spare place, where only `/health` is answered. Spare places never run out: the
//! oldest connection there gives way to the newest. Connections that ask for nothing give way first of all.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::options::ServerOptions;

/// Connections beyond the bounds that may ask for `/health` at the same time.
pub(super) const SPARE_PLACES: usize = 32;
/// A connection that has asked for nothing for so long gives way to a new one where places are few.
const PATIENCE: Duration = Duration::from_secs(1);

/// All connections.
pub(super) struct Places {
    most: usize,
    most_of_an_address: usize,
    /// Proxies, whose connections are other people's.
    trusted: Vec<IpAddr>,
    longest_life: Duration,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    next: u64,
    /// By age.
    lines: BTreeMap<u64, Arc<Line>>,
    full: usize,
    of_address: HashMap<IpAddr, usize>,
}

/// One connection as its bounds see it.
pub(super) struct Line {
    id: u64,
    address: Option<IpAddr>,
    spare: bool,
    opened: Instant,
    longest_life: Duration,
    /// Requests whose answer is not complete.
    requests: AtomicUsize,
    /// An answer waits until the client takes more of it.
    pub(super) writing: AtomicBool,
    ended: AtomicBool,
    marks: Mutex<Marks>,
}

struct Marks {
    /// Since when it has asked for nothing.
    idle: Instant,
    /// When the first byte of the present head came.
    head: Option<Instant>,
    waker: Option<Waker>,
}

/// A place, given back when dropped.
pub(super) struct Place {
    places: Arc<Places>,
    line: Arc<Line>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section leaves its data whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Places {
    pub(super) fn new(options: &ServerOptions) -> Arc<Self> {
        let number = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        Arc::new(Self {
            most: number(options.max_connections),
            most_of_an_address: number(options.max_connections_per_address),
            trusted: options.trusted_proxy.clone(),
            longest_life: Duration::from_secs(options.connection_lifetime_seconds),
            open: Mutex::default(),
        })
    }

    /// Takes a place for a new connection.
    pub(super) fn enter(self: &Arc<Self>, address: Option<IpAddr>) -> Place {
        let address = address.map(|address| address.to_canonical());
        let counted = address.filter(|address| !self.trusted.contains(address));
        let mut open = lock(&self.open);
        let mut spare = false;
        if let Some(address) = counted
            && open.of_address.get(&address).copied().unwrap_or(0) >= self.most_of_an_address
        {
            spare |= !open.end_idle(|line| line.address == counted);
        }
        if !spare && open.full >= self.most {
            spare |= !open.end_idle(|_| true);
        }
        if spare {
            open.end_oldest_spare();
        }
        let now = Instant::now();
        let line = Arc::new(Line {
            id: open.next,
            address: counted,
            spare,
            opened: now,
            longest_life: self.longest_life,
            requests: AtomicUsize::new(0),
            writing: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            marks: Mutex::new(Marks {
                idle: now,
                head: None,
                waker: None,
            }),
        });
        open.next += 1;
        open.count(&line);
        open.lines.insert(line.id, Arc::clone(&line));
        Place {
            places: Arc::clone(self),
            line,
        }
    }
}

impl Open {
    fn count(&mut self, line: &Line) {
        if !line.spare {
            self.full += 1;
            if let Some(address) = line.address {
                *self.of_address.entry(address).or_default() += 1;
            }
        }
    }

    /// Takes a line out; nothing where it is out already.
    fn leave(&mut self, id: u64) -> Option<Arc<Line>> {
        let line = self.lines.remove(&id)?;
        if !line.spare {
            self.full -= 1;
            if let Some(address) = line.address
                && let Some(count) = self.of_address.get_mut(&address)
            {
                *count -= 1;
                if *count == 0 {
                    self.of_address.remove(&address);
                }
            }
        }
        Some(line)
    }

    /// Ends the connection that has asked for nothing for longest; false where all are busy.
    fn end_idle(&mut self, fits: impl Fn(&Line) -> bool) -> bool {
        let idle = self.lines.values().filter(|line| !line.spare && fits(line));
        let idle = idle.filter_map(|line| Some((line.idle_since()?, line.id)));
        match idle.min().filter(|(since, _)| since.elapsed() >= PATIENCE) {
            Some((_, id)) => {
                self.end(id);
                true
            }
            None => false,
        }
    }

    fn end_oldest_spare(&mut self) {
        let mut spare = self.lines.values().filter(|line| line.spare).map(|line| line.id);
        let oldest = spare.next();
        if let Some(oldest) = oldest
            && spare.count() + 1 >= SPARE_PLACES
        {
            self.end(oldest);
        }
    }

    fn end(&mut self, id: u64) {
        if let Some(line) = self.leave(id) {
            line.ended.store(true, Ordering::Release);
            let waker = lock(&line.marks).waker.take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl Place {
    pub(super) fn line(&self) -> &Arc<Line> {
        &self.line
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.places.open).leave(self.line.id);
    }
}

impl Line {
    /// Whether only `/health` is answered here.
    pub(super) fn is_spare(&self) -> bool {
        self.spare
    }

    /// Whether it has to close after the present answer.
    pub(super) fn is_old(&self) -> bool {
        self.opened.elapsed() >= self.longest_life
    }

    /// Whether another connection has taken its place; `waker` is woken when that happens.
    pub(super) fn has_ended(&self, waker: &Waker) -> bool {
        let mut marks = lock(&self.marks);
        if !marks.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            marks.waker = Some(waker.clone());
        }
        drop(marks);
        self.ended.load(Ordering::Acquire)
    }

    fn idle_since(&self) -> Option<Instant> {
        let busy = self.requests.load(Ordering::Acquire) > 0 || self.writing.load(Ordering::Acquire);
        (!busy).then(|| lock(&self.marks).idle)
    }

    /// The first byte of a head has come.
    pub(super) fn head_begins(&self) {
        lock(&self.marks).head.get_or_insert_with(Instant::now);
    }

    /// A request begins; when its first byte came, where that is known.
    pub(super) fn begin_request(self: &Arc<Self>) -> (Asking, Option<Instant>) {
        self.requests.fetch_add(1, Ordering::AcqRel);
        let began = lock(&self.marks).head.take();
        (Asking(Arc::clone(self)), began)
    }
}

/// A request whose answer is not complete.
pub(super) struct Asking(Arc<Line>);

impl Drop for Asking {
    fn drop(&mut self) {
        lock(&self.0.marks).idle = Instant::now();
        self.0.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(most: u64, of_an_address: u64) -> Arc<Places> {
        Places::new(&ServerOptions {
            max_connections: most,
            max_connections_per_address: of_an_address,
            trusted_proxy: vec![address(9).expect("an address")],
            ..ServerOptions::default()
        })
    }

    fn address(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, last]))
    }

    fn age(place: &Place) {
        let long_ago = Instant::now().checked_sub(2 * PATIENCE).expect("a time");
        lock(&place.line.marks).idle = long_ago;
    }

    fn ended(place: &Place) -> bool {
        place.line.has_ended(Waker::noop())
    }

    #[test]
    fn an_address_has_its_bound_and_a_proxy_has_none() {
        let places = places(100, 2);
        let mine: Vec<_> = (0..4).map(|_| places.enter(address(1))).collect();
        let spare: Vec<_> = mine.iter().map(|place| place.line().is_spare()).collect();
        assert_eq!(spare, [false, false, true, true]);
        assert!(!places.enter(address(2)).line().is_spare());
        let proxied: Vec<_> = (0..50).map(|_| places.enter(address(9))).collect();
        assert!(proxied.iter().all(|place| !place.line().is_spare()));
        drop(mine);
        assert!(!places.enter(address(1)).line().is_spare(), "places come back");
        // The same address, written the other way.
        let mapped = Some("::ffff:192.0.2.3".parse().expect("an address"));
        let _two = [places.enter(mapped), places.enter(address(3))];
        assert!(places.enter(mapped).line().is_spare());
    }

    #[test]
    fn the_idle_give_way_and_the_busy_do_not() {
        let places = places(2, 100);
        let (first, second) = (places.enter(address(1)), places.enter(address(2)));
        assert!(places.enter(address(3)).line().is_spare(), "both have just come");
        age(&first);
        age(&second);
        let asking = first.line().begin_request();
        let third = places.enter(address(3));
        assert!(!third.line().is_spare());
        assert!(!ended(&first), "it is being answered");
        assert!(ended(&second));
        drop(asking);
        assert!(
            places.enter(address(4)).line().is_spare(),
            "it was answered just now"
        );
        drop(second);
        drop(third);
        assert!(
            !places.enter(address(4)).line().is_spare(),
            "left once, not twice"
        );
    }

    #[test]
    fn the_oldest_spare_connection_gives_way() {
        let places = places(1, 1);
        let _full = places.enter(address(1));
        let spare: Vec<_> = (0..3 * SPARE_PLACES).map(|_| places.enter(address(1))).collect();
        assert!(spare.iter().all(|place| place.line().is_spare()));
        let alive = spare.iter().filter(|place| !ended(place)).count();
        assert_eq!(alive, SPARE_PLACES);
        assert!(!ended(spare.last().expect("one")));
    }
}
