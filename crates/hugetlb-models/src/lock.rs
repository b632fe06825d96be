//! The machine's locks, made of the checker's: loom's or shuttle's.
//!
//! A checker's lock gives a guard that borrows it, and `lock_api` wants a lock without one, so the guard waits in the lock
//! until it is unlocked. A lock that goes away while somebody holds it or waits for it is a failure.

use std::cell::{Cell, UnsafeCell};
use std::mem;
use std::sync::OnceLock;

use hugetlb::sync::model::Checker;

/// Who holds a guard: shuttle's read guards know it, loom's are all alike.
type Holder = Option<shuttle::thread::ThreadId>;

fn holder() -> Holder {
    (Checker::current() == Checker::Shuttle).then(|| shuttle::thread::current().id())
}

/// What the checkers have in common. Created at the first use: `lock_api` makes locks in constants.
#[derive(Default)]
struct Lock<L, G> {
    // Boxed: the guards point at it.
    checked: OnceLock<Box<L>>,
    guards: UnsafeCell<Vec<(Holder, G)>>,
    /// Who holds it or waits for it.
    users: Cell<usize>,
}

// SAFETY: both checkers run all threads of a model on one thread of the operating system and switch only inside their
// own primitives, never while `guards` or `users` is borrowed here.
unsafe impl<L, G> Send for Lock<L, G> {}
// SAFETY: as above.
unsafe impl<L, G> Sync for Lock<L, G> {}

impl<L: 'static, G> Lock<L, G> {
    const fn new() -> Lock<L, G> {
        Lock { checked: OnceLock::new(), guards: UnsafeCell::new(Vec::new()), users: Cell::new(0) }
    }

    /// The checker's lock, for as long as a guard is kept here.
    fn checked(&self, make: impl FnOnce() -> L) -> &'static L {
        let checked: &L = self.checked.get_or_init(|| Box::new(make()));
        // SAFETY: the box stays where it is until `self` is dropped; the guards made of this reference are dropped
        // before, or the program fails (see `drop`).
        unsafe { mem::transmute::<&L, &'static L>(checked) }
    }

    fn lock(&self, make: impl FnOnce() -> L, lock: impl FnOnce(&'static L) -> Option<G>) -> bool {
        let checked = self.checked(make);
        self.users.set(self.users.get() + 1);
        match lock(checked) {
            // SAFETY: nothing else borrows the guards now: see `Sync`.
            Some(guard) => unsafe { (*self.guards.get()).push((holder(), guard)) },
            None => {
                self.users.set(self.users.get() - 1);
                return false;
            }
        }
        true
    }

    fn unlock(&self) {
        // SAFETY: as above; the guard, whose drop may switch, is taken out first.
        let guard = unsafe {
            let guards = &mut *self.guards.get();
            let place = guards.iter().position(|(other, _)| *other == holder()).expect("the lock is held");
            guards.swap_remove(place)
        };
        self.users.set(self.users.get() - 1);
        drop(guard);
    }
}

impl<L, G> Drop for Lock<L, G> {
    fn drop(&mut self) {
        if self.users.get() != 0 {
            // The guards must not outlive their lock, and unlocking now would hide the failure.
            mem::forget(mem::take(self.guards.get_mut()));
            mem::forget(self.checked.take());
            assert!(std::thread::panicking(), "a lock is freed that somebody holds or waits for");
        }
    }
}

/// What the checker has, by its name.
enum Either<A, B> {
    Loom(A),
    Shuttle(B),
}

fn either<A, B>(loom: impl FnOnce() -> A, shuttle: impl FnOnce() -> B) -> Either<A, B> {
    match Checker::current() {
        Checker::Loom => Either::Loom(loom()),
        Checker::Shuttle => Either::Shuttle(shuttle()),
        Checker::Nobody => panic!("a lock of a model is used outside of it"),
    }
}

type AnyMutex = Either<loom::sync::Mutex<()>, shuttle::sync::Mutex<()>>;
type AnyMutexGuard = Either<loom::sync::MutexGuard<'static, ()>, shuttle::sync::MutexGuard<'static, ()>>;

/// A mutex that the checker schedules.
pub struct RawMutex(Lock<AnyMutex, AnyMutexGuard>);

impl RawMutex {
    fn make() -> AnyMutex {
        either(|| loom::sync::Mutex::new(()), || shuttle::sync::Mutex::new(()))
    }
}

// SAFETY: the checker's mutex excludes.
unsafe impl lock_api::RawMutex for RawMutex {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: RawMutex = RawMutex(Lock::new());
    type GuardMarker = lock_api::GuardSend;

    fn lock(&self) {
        self.0.lock(Self::make, |mutex| {
            Some(match mutex {
                Either::Loom(mutex) => Either::Loom(mutex.lock().ok()?),
                Either::Shuttle(mutex) => Either::Shuttle(mutex.lock().ok()?),
            })
        });
    }

    fn try_lock(&self) -> bool {
        self.0.lock(Self::make, |mutex| {
            Some(match mutex {
                Either::Loom(mutex) => Either::Loom(mutex.try_lock().ok()?),
                Either::Shuttle(mutex) => Either::Shuttle(mutex.try_lock().ok()?),
            })
        })
    }

    unsafe fn unlock(&self) {
        self.0.unlock();
    }
}

type AnyRwLock = Either<loom::sync::RwLock<()>, shuttle::sync::RwLock<()>>;

enum AnyRwGuard {
    LoomRead(#[allow(dead_code)] loom::sync::RwLockReadGuard<'static, ()>),
    LoomWrite(#[allow(dead_code)] loom::sync::RwLockWriteGuard<'static, ()>),
    ShuttleRead(#[allow(dead_code)] shuttle::sync::RwLockReadGuard<'static, ()>),
    ShuttleWrite(#[allow(dead_code)] shuttle::sync::RwLockWriteGuard<'static, ()>),
}

/// A reader/writer lock that the checker schedules.
pub struct RawRwLock(Lock<AnyRwLock, AnyRwGuard>);

impl RawRwLock {
    fn make() -> AnyRwLock {
        either(|| loom::sync::RwLock::new(()), || shuttle::sync::RwLock::new(()))
    }
}

// SAFETY: the checker's lock excludes writers from all others; a thread drops its own guard.
unsafe impl lock_api::RawRwLock for RawRwLock {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: RawRwLock = RawRwLock(Lock::new());
    type GuardMarker = lock_api::GuardSend;

    fn lock_shared(&self) {
        self.0.lock(Self::make, |lock| {
            Some(match lock {
                Either::Loom(lock) => AnyRwGuard::LoomRead(lock.read().ok()?),
                Either::Shuttle(lock) => AnyRwGuard::ShuttleRead(lock.read().ok()?),
            })
        });
    }

    fn try_lock_shared(&self) -> bool {
        self.0.lock(Self::make, |lock| {
            Some(match lock {
                Either::Loom(lock) => AnyRwGuard::LoomRead(lock.try_read().ok()?),
                Either::Shuttle(lock) => AnyRwGuard::ShuttleRead(lock.try_read().ok()?),
            })
        })
    }

    unsafe fn unlock_shared(&self) {
        self.0.unlock();
    }

    fn lock_exclusive(&self) {
        self.0.lock(Self::make, |lock| {
            Some(match lock {
                Either::Loom(lock) => AnyRwGuard::LoomWrite(lock.write().ok()?),
                Either::Shuttle(lock) => AnyRwGuard::ShuttleWrite(lock.write().ok()?),
            })
        });
    }

    fn try_lock_exclusive(&self) -> bool {
        self.0.lock(Self::make, |lock| {
            Some(match lock {
                Either::Loom(lock) => AnyRwGuard::LoomWrite(lock.try_write().ok()?),
                Either::Shuttle(lock) => AnyRwGuard::ShuttleWrite(lock.try_write().ok()?),
            })
        })
    }

    unsafe fn unlock_exclusive(&self) {
        self.0.unlock();
    }
}
