//! Thread teams with barriers, on the threads that libtorch's CPU operations use.
//!
//! libtorch uses OpenMP's team, whose threads spin for a while after each operation, so that a second thread pool would compete
//! with it for the cores. If libtorch was built with another runtime than GNU's, rayon's pool is used.

use std::ffi::{c_int, c_uint, c_void};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use libloading::os::unix::Library;

/// One thread of a running team.
pub struct Member<'a> {
    /// Index of the thread, from 0.
    pub index: usize,
    /// Number of threads.
    pub count: usize,
    barrier: &'a Barrier,
}

impl Member<'_> {
    /// This thread's share of `0..items` in multiples of `grain`; the shares of all threads cover it exactly once.
    pub fn share(&self, items: usize, grain: usize) -> Range<usize> {
        let steps = items.div_ceil(grain);
        let bound = |index: usize| (steps * index / self.count * grain).min(items);
        bound(self.index)..bound(self.index + 1)
    }

    /// Barrier: waits for all threads; their earlier writes are visible to all afterwards.
    pub fn wait(&self) {
        self.barrier.wait(self.count);
    }
}

/// Spins first, since the work between two barriers takes microseconds, then sleeps, so that a thread that waits for a
/// preempted one does not occupy a core.
#[derive(Default)]
struct Barrier {
    arrived: AtomicU32,
    round: AtomicU32,
    sleepers: AtomicU32,
    /// A thread panicked: the others must not wait for it.
    broken: AtomicBool,
}

/// About 20 µs.
const SPINS: u32 = 1_000;

impl Barrier {
    fn wait(&self, count: usize) {
        let round = self.round.load(Ordering::SeqCst);
        self.check();
        if self.arrived.fetch_add(1, Ordering::AcqRel) as usize + 1 == count {
            self.arrived.store(0, Ordering::Relaxed);
            self.next_round();
        } else if (0..SPINS).all(|_| {
            std::hint::spin_loop();
            self.round.load(Ordering::Acquire) == round
        }) {
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            while self.round.load(Ordering::SeqCst) == round {
                atomic_wait::wait(&self.round, round);
            }
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
        }
        self.check();
    }

    fn check(&self) {
        assert!(
            !self.broken.load(Ordering::SeqCst),
            "another thread of the team failed"
        );
    }

    fn next_round(&self) {
        self.round.fetch_add(1, Ordering::SeqCst);
        // A thread that counts itself after this check finds the new round and does not sleep.
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            atomic_wait::wake_all(&self.round);
        }
    }

    fn give_up(&self) {
        self.broken.store(true, Ordering::SeqCst);
        self.next_round();
    }
}

type Body = unsafe extern "C" fn(*mut c_void);

/// GNU OpenMP's entry points (<https://gcc.gnu.org/onlinedocs/libgomp/Implementing-PARALLEL-construct.html>).
struct OpenMp {
    parallel: unsafe extern "C" fn(Body, *mut c_void, c_uint, c_uint),
    thread: unsafe extern "C" fn() -> c_int,
    threads: unsafe extern "C" fn() -> c_int,
}

fn gnu_open_mp() -> Option<&'static OpenMp> {
    static OPEN_MP: OnceLock<Option<OpenMp>> = OnceLock::new();
    OPEN_MP
        .get_or_init(|| {
            // libtorch_cpu links to it, so its symbols are among this program's.
            let program = Library::this();
            // SAFETY: the types are the functions' C signatures, which GCC keeps stable.
            unsafe {
                Some(OpenMp {
                    parallel: *program.get(b"GOMP_parallel\0").ok()?,
                    thread: *program.get(b"omp_get_thread_num\0").ok()?,
                    threads: *program.get(b"omp_get_num_threads\0").ok()?,
                })
            }
        })
        .as_ref()
}

struct Job<'a> {
    work: &'a (dyn Fn(&Member<'_>) + Sync),
    barrier: Barrier,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

impl Job<'_> {
    fn take_part(&self, index: usize, count: usize) {
        let member = Member {
            index,
            count,
            barrier: &self.barrier,
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.work)(&member))) {
            let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(panic);
            drop(first);
            self.barrier.give_up();
        }
    }
}

/// Runs `work` once on each thread of a team of at most `threads`; returns when all are done.
///
/// Propagates a thread's panic. Teams do not nest: a team inside a team has one thread.
pub fn run(threads: usize, work: impl Fn(&Member<'_>) + Sync) {
    let job = Job {
        work: &work,
        barrier: Barrier::default(),
        panic: Mutex::new(None),
    };
    match gnu_open_mp() {
        _ if threads <= 1 => job.take_part(0, 1),
        Some(open_mp) => {
            unsafe extern "C" fn body(job: *mut c_void) {
                // SAFETY: the pointer is the `job` above, which outlives the parallel region.
                let job = unsafe { &*job.cast::<Job<'_>>() };
                if let Some(open_mp) = gnu_open_mp() {
                    // SAFETY: plain queries of the region this thread is in.
                    let (index, count) = unsafe { ((open_mp.thread)(), (open_mp.threads)()) };
                    job.take_part(index.max(0) as usize, count.max(1) as usize);
                }
            }
            let threads = c_uint::try_from(threads).unwrap_or(c_uint::MAX);
            let data = std::ptr::from_ref(&job).cast_mut().cast();
            // SAFETY: `body` has the expected signature and does not unwind; it uses the job by shared reference.
            unsafe { (open_mp.parallel)(body, data, threads, 0) }
        }
        // On the global pool; a caller outside of it waits for its threads.
        None => {
            rayon::broadcast(|context| job.take_part(context.index(), context.num_threads()));
        }
    }
    let panic = job.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, AtomicUsize};

    #[test]
    fn libtorchs_own_threads_are_found() {
        assert!(gnu_open_mp().is_some());
    }

    #[test]
    fn every_item_is_done_once() {
        for threads in [1, 2, 3, 5] {
            for (items, grain) in [(0, 4), (1, 4), (17, 4), (64, 1), (3, 16)] {
                let counts: Vec<AtomicU64> = (0..items).map(|_| AtomicU64::new(0)).collect();
                run(threads, |member| {
                    for item in member.share(items, grain) {
                        counts[item].fetch_add(1, Ordering::Relaxed);
                    }
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn members_meet() {
        let steps = 200;
        let counts: Vec<AtomicUsize> = (0..steps).map(|_| AtomicUsize::new(0)).collect();
        run(3, |member| {
            for count in &counts {
                count.fetch_add(1, Ordering::Relaxed);
                member.wait();
                assert_eq!(count.load(Ordering::Relaxed), member.count);
            }
        });
    }

    #[test]
    fn a_panic_comes_out_and_the_next_team_works() {
        let panic = catch_unwind(|| {
            run(3, |member| {
                assert!(member.index > 0, "the first fails");
                member.wait();
            });
        });
        assert!(panic.is_err());
        run(3, |member| member.wait());
    }
}
