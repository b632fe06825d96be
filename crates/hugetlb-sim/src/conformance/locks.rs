//! The lock types.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread;

use hugetlb::lock_api::{RawMutex, RawRwLock};

use super::{Check, Host, Sentence, require};

const THREADS: usize = 3;
const ROUNDS: usize = 2000;
/// How often readers may follow each other before a waiting writer has starved.
const PATIENCE: usize = 1_000_000;

pub(super) fn sentences<M: Host>() -> Vec<Sentence<M>> {
    vec![
        ("RawSpinLock: one holder at a time", |_| excludes::<M::RawSpinLock>()),
        ("RawMutex: one holder at a time", |_| excludes::<M::RawMutex>()),
        ("RawRwLock: a writer is alone", |_| writers_are_alone::<M::RawRwLock>()),
        ("RawRwLock: readers are together", |_| readers_are_together::<M::RawRwLock>()),
        ("RawRwLock: writers do not starve", |_| writers_do_not_starve::<M::RawRwLock>()),
    ]
}

/// Nobody else is in a section at the same time.
struct Section(AtomicBool);

impl Section {
    fn is_alone(&self) -> bool {
        let alone = !self.0.swap(true, Ordering::SeqCst);
        thread::yield_now();
        self.0.store(false, Ordering::SeqCst);
        alone
    }
}

fn in_threads(work: impl Fn() -> bool + Sync) -> bool {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| (0..ROUNDS).all(|_| work()))).collect();
        threads.into_iter().all(|thread| thread.join().unwrap_or(false))
    })
}

/// The guards of `lock_api` on nothing: the kit has no unsafe code.
type Mutex<R> = hugetlb::lock_api::Mutex<R, ()>;
type RwLock<R> = hugetlb::lock_api::RwLock<R, ()>;

fn excludes<R: RawMutex + Send + Sync>() -> Check {
    let lock = Mutex::<R>::new(());
    let section = Section(AtomicBool::new(false));
    let guard = lock.lock();
    let other = thread::scope(|scope| scope.spawn(|| lock.try_lock().is_some()).join());
    require(other.is_ok_and(|taken| !taken), || "try_lock took what was held".to_string())?;
    drop(guard);
    let alone = in_threads(|| {
        let _guard = lock.lock();
        section.is_alone()
    });
    require(alone, || "two held it at once".to_string())?;
    require(lock.try_lock().is_some(), || "it is held by nobody, and not free".to_string())
}

fn writers_are_alone<R: RawRwLock + Send + Sync>() -> Check {
    let lock = RwLock::<R>::new(());
    let section = Section(AtomicBool::new(false));
    let readers = AtomicU32::new(0);
    let alone = in_threads(|| {
        {
            let _guard = lock.read();
            readers.fetch_add(1, Ordering::SeqCst);
            thread::yield_now();
            readers.fetch_sub(1, Ordering::SeqCst);
        }
        let _guard = lock.write();
        section.is_alone() && readers.load(Ordering::SeqCst) == 0
    });
    require(alone, || "a writer met another holder".to_string())
}

fn readers_are_together<R: RawRwLock + Send + Sync>() -> Check {
    let lock = RwLock::<R>::new(());
    let _guard = lock.read();
    let (read, written) = thread::scope(|scope| {
        let other = scope.spawn(|| (lock.try_read().is_some(), lock.try_write().is_some()));
        other.join().unwrap_or((false, true))
    });
    require(read, || "a reader kept another one out".to_string())?;
    require(!written, || "a writer came to a reader".to_string())
}

/// Two readers hold the lock in turn, so that it is never free. A writer gets it all the same.
fn writers_do_not_starve<R: RawRwLock + Send + Sync>() -> Check {
    let lock = RwLock::<R>::new(());
    let (waits, written) = (AtomicBool::new(false), AtomicBool::new(false));
    let (held, rounds) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let goes_on = || !written.load(Ordering::SeqCst) && rounds.load(Ordering::SeqCst) < PATIENCE;
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while goes_on() {
                    let _guard = lock.read();
                    held.fetch_add(1, Ordering::SeqCst);
                    // Until the other one has it too, or a writer waits and it cannot have it.
                    for _ in 0..100 {
                        if held.load(Ordering::SeqCst) > 1 || written.load(Ordering::SeqCst) {
                            break;
                        }
                        thread::yield_now();
                    }
                    // Only rounds that a writer waits for count, and it is given the CPU in each: how soon the host starts a thread
                    // says nothing about the lock.
                    if waits.load(Ordering::SeqCst) {
                        rounds.fetch_add(1, Ordering::SeqCst);
                    }
                    thread::yield_now();
                    held.fetch_sub(1, Ordering::SeqCst);
                }
            });
        }
        scope.spawn(|| {
            while held.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            waits.store(true, Ordering::SeqCst);
            let _guard = lock.write();
            written.store(true, Ordering::SeqCst);
        });
    });
    // The writer got it in the end, for the readers have gone; the question is whether they had to.
    let rounds = rounds.into_inner();
    require(rounds < PATIENCE, || format!("a writer waited for {rounds} readers"))
}
