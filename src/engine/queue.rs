//! The requests that wait for the engine: bounded, for each client and for all, and served in turn.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

/// Whom a request is for; requests without a client count as one client.
pub type Client = Option<Arc<str>>;

/// Why no slot is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// All slots are in use.
    Full,
    /// The client has as many slots as it may have.
    ClientLimit,
    /// The queue is closed.
    Closed,
}

/// Entry of a queue.
pub(super) trait Waiting {
    fn client(&self) -> &Client;
    fn id(&self) -> u64;
}

/// Waiting entries and the slots in use.
///
/// Clients take turns: the next entry is the first of the client that was served longest ago, so that many requests of one client do
/// not delay another's few. Entries of one client are served in order.
pub(super) struct Queue<T> {
    waiting: VecDeque<T>,
    slots: usize,
    slots_per_client: usize,
    /// Slots in use, waiting and running.
    admitted: usize,
    clients: HashMap<Client, ClientState>,
    turn: u64,
    next_id: u64,
    /// From when on nothing more is admitted.
    closed: Option<Instant>,
}

/// A client since the queue was last empty.
#[derive(Default)]
struct ClientState {
    admitted: usize,
    /// When it was last served; 0: not yet.
    last_turn: u64,
}

impl<T: Waiting> Queue<T> {
    pub(super) fn new(slots: usize, slots_per_client: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            slots,
            slots_per_client,
            admitted: 0,
            clients: HashMap::new(),
            turn: 0,
            next_id: 0,
            closed: None,
        }
    }

    /// Changes the number of slots; those in use stay.
    pub(super) fn set_slots(&mut self, slots: usize) {
        self.slots = slots;
    }

    /// Takes a slot for a request that began to arrive at `began`.
    pub(super) fn admit(&mut self, client: &Client, began: Instant) -> Result<(), Refusal> {
        if self.closed.is_some_and(|closed| began >= closed) {
            return Err(Refusal::Closed);
        }
        if self.is_full() {
            return Err(Refusal::Full);
        }
        if client.is_some() && self.admitted_of(client) >= self.slots_per_client {
            return Err(Refusal::ClientLimit);
        }
        self.admitted += 1;
        self.clients.entry(client.clone()).or_default().admitted += 1;
        Ok(())
    }

    /// Gives a slot back.
    pub(super) fn release(&mut self, client: &Client) {
        self.admitted = self.admitted.saturating_sub(1);
        if let Some(state) = self.clients.get_mut(client) {
            state.admitted = state.admitted.saturating_sub(1);
        }
        if self.admitted == 0 {
            // While others wait, a client that left and came back has not lost its place behind them.
            self.clients.clear();
        }
    }

    /// Whether all slots are in use.
    pub(super) fn is_full(&self) -> bool {
        self.admitted >= self.slots
    }

    /// Slots in use.
    pub(super) fn admitted(&self) -> usize {
        self.admitted
    }

    /// Slots in use by `client`.
    pub(super) fn admitted_of(&self, client: &Client) -> usize {
        self.clients.get(client).map_or(0, |state| state.admitted)
    }

    /// Number of waiting entries.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// An id for an entry.
    pub(super) fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Adds an entry, whose slot was taken before.
    pub(super) fn push(&mut self, entry: T) {
        self.waiting.push_back(entry);
    }

    /// Removes the entry whose turn it is.
    pub(super) fn pop(&mut self) -> Option<T> {
        let turns = self.turns();
        let first = (0..self.waiting.len()).min_by_key(|&index| turns[index])?;
        let entry = self.waiting.remove(first)?;
        self.turn += 1;
        if let Some(state) = self.clients.get_mut(entry.client()) {
            state.last_turn = self.turn;
        }
        Some(entry)
    }

    /// Removes the entry with `id`.
    pub(super) fn remove(&mut self, id: u64) -> Option<T> {
        let index = self.waiting.iter().position(|entry| entry.id() == id)?;
        self.waiting.remove(index)
    }

    /// Number of entries that are served before the one with `id`, unless more come.
    pub(super) fn before(&self, id: u64) -> Option<usize> {
        let turns = self.turns();
        let index = self.waiting.iter().position(|entry| entry.id() == id)?;
        Some(turns.iter().filter(|turn| **turn < turns[index]).count())
    }

    /// Admits nothing that begins to arrive from now on.
    pub(super) fn close(&mut self) {
        self.closed.get_or_insert_with(Instant::now);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    /// Removes all entries.
    pub(super) fn drain(&mut self) -> VecDeque<T> {
        std::mem::take(&mut self.waiting)
    }

    /// The order of service, for each entry: the round in which its client is served again, then how long ago that client was served, then
    /// which of two new clients came first.
    fn turns(&self) -> Vec<(usize, u64, u64)> {
        // Entries of a client so far, and the id of its first.
        let mut seen: HashMap<&Client, (usize, u64)> = HashMap::new();
        let turn = |entry| {
            let client = T::client(entry);
            let last_turn = self.clients.get(client).map_or(0, |state| state.last_turn);
            let (round, first) = seen.entry(client).or_insert((0, entry.id()));
            let turn = (*round, last_turn, *first);
            *round += 1;
            turn
        };
        self.waiting.iter().map(turn).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Entry(u64, Client);

    impl Waiting for Entry {
        fn client(&self) -> &Client {
            &self.1
        }

        fn id(&self) -> u64 {
            self.0
        }
    }

    fn push(queue: &mut Queue<Entry>, name: &str) -> Result<u64, Refusal> {
        let client: Client = (!name.is_empty()).then(|| name.into());
        queue.admit(&client, Instant::now())?;
        let id = queue.fresh_id();
        queue.push(Entry(id, client));
        Ok(id)
    }

    /// Names in the order of service.
    fn served(queue: &mut Queue<Entry>) -> String {
        let mut names = String::new();
        while let Some(Entry(_, client)) = queue.pop() {
            names.push_str(client.as_deref().unwrap_or("-"));
            queue.release(&client);
        }
        names
    }

    #[test]
    fn one_client_is_served_in_order() {
        let mut queue = Queue::new(3, 1);
        let ids: Vec<_> = (0..3).map(|_| push(&mut queue, "").expect("a slot")).collect();
        assert_eq!(push(&mut queue, ""), Err(Refusal::Full));
        assert_eq!(
            ids.iter().map(|id| queue.before(*id)).collect::<Vec<_>>(),
            [0, 1, 2].map(Some)
        );
        for id in ids {
            assert_eq!(queue.pop().map(|entry| entry.0), Some(id));
            queue.release(&None);
        }
        assert_eq!((queue.admitted(), queue.len()), (0, 0));
    }

    #[test]
    fn a_client_with_one_request_does_not_wait_for_anothers_fifty() {
        let mut queue = Queue::new(60, 50);
        for _ in 0..50 {
            push(&mut queue, "a").expect("a slot");
        }
        let running = queue.pop().expect("the first");
        let one = push(&mut queue, "b").expect("a slot");
        assert_eq!(queue.before(one), Some(0));
        let next = queue.pop().expect("the second");
        assert_eq!(next.1.as_deref(), Some("b"));
        queue.release(&running.1);
        queue.release(&next.1);
        assert_eq!(served(&mut queue), "a".repeat(49));
    }

    #[test]
    fn clients_take_turns() {
        let mut queue = Queue::new(60, 50);
        for name in "aaabbc-".chars() {
            let name = name.to_string();
            push(&mut queue, name.trim_matches('-')).expect("a slot");
        }
        assert_eq!(served(&mut queue), "abc-aba");
    }

    #[test]
    fn clients_with_one_request_at_a_time_do_not_overtake_one_with_several() {
        let mut queue = Queue::new(60, 50);
        for name in ["b", "c", "a", "a", "a"] {
            push(&mut queue, name).expect("a slot");
        }
        let mut order = String::new();
        for _ in 0..9 {
            let Entry(_, client) = queue.pop().expect("an entry");
            queue.release(&client);
            let name = client.as_deref().expect("a name").to_owned();
            if name != "a" {
                push(&mut queue, &name).expect("a slot");
            }
            order.push_str(&name);
        }
        assert_eq!(order, "bcabcabca");
    }

    #[test]
    fn a_client_has_no_more_slots_than_its_limit() {
        let mut queue = Queue::new(9, 2);
        for _ in 0..2 {
            push(&mut queue, "a").expect("a slot");
        }
        assert_eq!(push(&mut queue, "a"), Err(Refusal::ClientLimit));
        push(&mut queue, "b").expect("another client");
        let first = queue.pop().expect("an entry");
        assert_eq!(push(&mut queue, "a"), Err(Refusal::ClientLimit), "it is running");
        queue.release(&first.1);
        push(&mut queue, "a").expect("a free slot");
        queue.close();
        assert_eq!(push(&mut queue, "c"), Err(Refusal::Closed));
        let earlier = Instant::now() - std::time::Duration::from_secs(60);
        assert_eq!(queue.admit(&None, earlier), Ok(()), "it began before");
        assert_eq!(queue.len(), 3, "admitted ones are still served");
    }

    #[test]
    fn the_place_in_the_queue_is_the_order_of_service() {
        // Any mix of arrivals and services.
        for seed in 0..200u64 {
            let mut state = seed;
            let mut random = |below: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) % below
            };
            let mut queue: Queue<Entry> = Queue::new(100, 100);
            for _ in 0..30 {
                if random(3) == 0 {
                    if let Some(entry) = queue.pop() {
                        queue.release(&entry.1);
                    }
                } else {
                    push(&mut queue, ["a", "b", "c", "d", ""][random(5) as usize]).expect("a slot");
                }
            }
            let ids: Vec<u64> = queue.waiting.iter().map(|entry| entry.0).collect();
            let mut places: Vec<_> = ids.iter().map(|id| (queue.before(*id), *id)).collect();
            places.sort_unstable();
            let expected: Vec<_> = places.iter().map(|(_, id)| *id).collect();
            // Slots are kept, as of requests that go on.
            let order: Vec<_> = std::iter::from_fn(|| queue.pop().map(|entry| entry.0)).collect();
            assert_eq!(order, expected, "seed {seed}");
        }
    }
}
