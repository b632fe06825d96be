//! All models without a mutant, and each mutant with the model that has to notice it.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Arc;

use kernel_models::cpu::Cpu;
use kernel_models::memory::frame::in_use;
use kernel_models::mm::space::Space;
use kernel_models::mshare::{Part, Spaces};
use kernel_models::process;
use kernel_models::sched::{self, Sleep};
use kernel_models::sync::mutant::{self, ALL, Mutant};
use kernel_models::sync::primitive::{AtomicBool, AtomicUsize, Ordering, fence};
use kernel_models::sync::{RawRwLock, WaitError, WaitQueue};
use kernel_models::time::machine::{Machine, STEPS};
use loom::sync::Mutex;

fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(model);
}

/// A waiter and one who makes its condition true.
fn wait_against_wake() {
    check(3, || {
        let shared = Arc::new((WaitQueue::new(), AtomicBool::new(false)));
        let other = shared.clone();
        let waker = loom::thread::spawn(move || {
            // The queue's own fence orders it.
            other.1.store(true, Ordering::Relaxed);
            other.0.wake_all();
        });
        shared.0.wait_until(|| shared.1.load(Ordering::Relaxed).then_some(()));
        waker.join().unwrap();
    });
}

/// The bare sleep, without a queue: what futexes do.
fn sleep_against_wake() {
    check(3, || {
        let shared = Arc::new(AtomicBool::new(false));
        let thread = process::current().to_arc();
        let other = shared.clone();
        let waker = loom::thread::spawn(move || {
            other.store(true, Ordering::Relaxed);
            sched::wake(&thread);
        });
        sched::sleep_until(Sleep::Uninterruptible, || shared.load(Ordering::Relaxed));
        waker.join().unwrap();
    });
}

/// Two who wake one sleeper at once.
fn sleep_against_two_wakes() {
    check(2, || {
        let shared = Arc::new(AtomicUsize::new(0));
        let thread = process::current().to_arc();
        let wakers: Vec<_> = (0..2)
            .map(|_| {
                let (other, thread) = (shared.clone(), thread.clone());
                loom::thread::spawn(move || {
                    other.fetch_add(1, Ordering::Relaxed);
                    sched::wake(&thread);
                })
            })
            .collect();
        sched::sleep_until(Sleep::Uninterruptible, || shared.load(Ordering::Relaxed) == 2);
        wakers.into_iter().for_each(|waker| waker.join().unwrap());
    });
}

/// One wake and two waiters, one of whom a signal wakes at the same time: the other one must not wait for ever.
fn wake_of_one_against_a_signal() {
    check(1, || {
        let shared = Arc::new((WaitQueue::new(), AtomicUsize::new(0)));
        let take = |count: &AtomicUsize| {
            let taken = count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_sub(1));
            taken.ok().map(drop)
        };
        let first = process::current().to_arc();
        let second = {
            let shared = shared.clone();
            loom::thread::spawn(move || shared.0.wait_until(|| take(&shared.1)))
        };
        let waker = {
            let shared = shared.clone();
            loom::thread::spawn(move || {
                shared.1.fetch_add(1, Ordering::SeqCst);
                shared.0.wake_one();
                first.send_signal();
            })
        };
        // It may get what there is, or leave it to the other one.
        if shared.0.wait_event(None, || take(&shared.1)) == Ok(()) {
            shared.1.fetch_add(1, Ordering::SeqCst);
            shared.0.wake_one();
        }
        second.join().unwrap();
        waker.join().unwrap();
    });
}

/// One who finds what it waits for before it has slept, and wakes another meanwhile, as listeners for calls do: a wake for the other that
/// takes this one out of the queue must not stay with it.
fn wake_of_one_that_does_not_sleep() {
    check(3, || {
        let shared = Arc::new((WaitQueue::new(), AtomicUsize::new(0)));
        let other = shared.clone();
        let second = loom::thread::spawn(move || {
            other.0.wait_until(|| {
                let taken = other.1.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
                taken.ok().map(drop)
            });
        });
        let other = shared.clone();
        let waker = loom::thread::spawn(move || {
            other.1.fetch_add(1, Ordering::SeqCst);
            other.0.wake_one();
        });
        let mut looks = 0;
        shared.0.wait_until(|| {
            looks += 1;
            (looks == 2).then(|| shared.0.wake_one())
        });
        second.join().unwrap();
        waker.join().unwrap();
    });
}

/// A CPU that runs out of work while another queues threads for it.
fn idle_against_enqueue() {
    check(3, || {
        let cpu = Arc::new(Cpu::new());
        let other = cpu.clone();
        let queuer = loom::thread::spawn(move || {
            other.enqueue();
            other.enqueue();
        });
        cpu.run(2);
        queuer.join().unwrap();
    });
}

/// A sleeping mutex: two who want it.
fn mutex_against_mutex() {
    check(3, || {
        let shared = Arc::new((RawRwLock::new(), AtomicUsize::new(0)));
        let step = |shared: &(RawRwLock, AtomicUsize)| {
            shared.0.acquire(true);
            // Exclusion makes the two halves one.
            let count = shared.1.load(Ordering::Relaxed);
            shared.1.store(count + 1, Ordering::Relaxed);
            shared.0.release(WRITER);
        };
        let other = shared.clone();
        let thread = loom::thread::spawn(move || step(&other));
        step(&shared);
        thread.join().unwrap();
        assert_eq!(shared.1.load(Ordering::Relaxed), 2);
    });
}

/// A writer waits, and a reader behind it. A signal ends the writer's wait while the holder leaves: if the holder has told the writer that the
/// lock is free, the reader must hear of it.
fn lock_against_a_signal() {
    check(2, || {
        let lock = Arc::new(RawRwLock::new());
        let me = process::current().to_arc();
        lock.acquire(true);
        let other = lock.clone();
        let reader = loom::thread::spawn(move || {
            other.acquire(false);
            other.release(READER);
        });
        let held = lock.clone();
        let holder = loom::thread::spawn(move || {
            me.send_signal();
            held.release(WRITER);
        });
        if lock.acquire_unless(true, Sleep::Interruptible) {
            lock.release(WRITER);
        }
        reader.join().unwrap();
        holder.join().unwrap();
        assert!(!lock.is_held());
    });
}

/// All histories of arming, cancelling, ticking and passing time up to a length.
fn timers() {
    const LENGTH: u32 = 5;
    let count = STEPS.len().pow(LENGTH);
    // The atomics want a model around them, and a model's length is bounded.
    const AT_ONCE: usize = 500;
    for from in (0..count).step_by(AT_ONCE) {
        let mut builder = loom::model::Builder::new();
        builder.max_branches = 1_000_000;
        builder.check(move || {
            for number in from..count.min(from + AT_ONCE) {
                let mut machine = Machine::new();
                let mut rest = number;
                for _ in 0..LENGTH {
                    machine.step(STEPS[rest % STEPS.len()]);
                    rest /= STEPS.len();
                }
                machine.finish();
            }
        });
    }
}

/// A process's CPU, and a region of one page that the process attaches.
struct Attachment {
    spaces: Spaces<1>,
    /// The process's entry: whether it leads to the region's table.
    entry: AtomicBool,
    /// The region's own entry: whether the page is there.
    page: AtomicBool,
    /// What the CPU's TLB knows: the page, or nothing. An instruction and a shootdown's interrupt exclude each other.
    tlb: Mutex<bool>,
}

const SPACE: u64 = 7;
const REGION: u64 = 8;

impl Attachment {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            spaces: Spaces::new([Part::new(BTreeMap::new())]),
            entry: AtomicBool::new(false),
            page: AtomicBool::new(true),
            tlb: Mutex::new(false),
        })
    }

    fn attach(&self) {
        self.spaces.attach(SPACE, REGION, || self.entry.store(true, Ordering::Relaxed));
    }

    /// The process's thread reads the page, or would fault.
    fn access(&self) {
        let mut tlb = self.tlb.lock().unwrap();
        if self.entry.load(Ordering::Relaxed) {
            *tlb |= self.page.load(Ordering::Relaxed);
        }
    }

    fn flush(&self) {
        *self.tlb.lock().unwrap() = false;
    }

    /// Takes the page out of the region: afterwards it belongs to somebody else.
    fn remove_page(&self) {
        self.page.store(false, Ordering::Relaxed);
        // As in `gather`: the change is visible before the set of CPUs is read.
        fence(Ordering::SeqCst);
        if self.spaces.has_attached(SPACE, &|id| id == REGION) {
            self.flush();
        }
        assert!(!*self.tlb.lock().unwrap(), "a page is reused that a CPU still knows");
    }

    fn detach(&self) {
        self.spaces.detach(SPACE, REGION, || {
            self.entry.store(false, Ordering::Relaxed);
            self.flush();
        });
    }
}

/// A process attaches a region and reads, while a page goes from it.
fn attach_against_a_change() {
    check(3, || {
        let attachment = Attachment::new();
        let other = attachment.clone();
        let process = loom::thread::spawn(move || {
            other.attach();
            other.access();
        });
        attachment.remove_page();
        process.join().unwrap();
        assert!(!*attachment.tlb.lock().unwrap(), "a CPU knows a page that is gone");
    });
}

/// A process detaches a region while another thread of it reads and a page goes from it.
fn detach_against_a_change() {
    check(3, || {
        let attachment = Attachment::new();
        attachment.attach();
        let (leaving, reading) = (attachment.clone(), attachment.clone());
        let leaving = loom::thread::spawn(move || leaving.detach());
        let reading = loom::thread::spawn(move || reading.access());
        attachment.remove_page();
        leaving.join().unwrap();
        reading.join().unwrap();
    });
}

/// Of two attachments of one region one goes: shootdowns still find the other.
fn one_of_two_attachments() {
    check(2, || {
        let attachment = Attachment::new();
        attachment.attach();
        attachment.attach();
        let other = attachment.clone();
        let process = loom::thread::spawn(move || {
            other.spaces.detach(SPACE, REGION, || ());
            other.access();
        });
        attachment.remove_page();
        process.join().unwrap();
        assert!(
            attachment.spaces.has_attached(SPACE, &|id| id == REGION),
            "the other attachment is forgotten"
        );
    });
}

/// A process with a page of its own, and a child that shares its table.
fn family() -> (Arc<Space>, Arc<Space>) {
    family_of(Space::with(1))
}

fn family_of(parent: Space) -> (Arc<Space>, Arc<Space>) {
    let child = parent.fork();
    (Arc::new(parent), Arc::new(child))
}

/// The words of a process's page.
fn words(space: &Space) -> (u64, u64) {
    (space.load(0), space.load(1))
}

/// What a model says of a store that another process sees.
const LEAK: &str = "a store shows in another process";

/// All processes end.
fn end(spaces: &[&Space]) {
    spaces.iter().for_each(|space| space.exit());
    assert_eq!(in_use(), 0, "a frame is never freed");
}

/// Parent and child store at the same time: both copy the table, or the second takes it back.
fn copy_against_copy() {
    check(3, || {
        let (parent, child) = family();
        let other = child.clone();
        let thread = loom::thread::spawn(move || {
            other.store(1, 3);
            assert_eq!(words(&other), (1, 3), "{LEAK}");
        });
        parent.store(0, 2);
        assert_eq!(words(&parent), (2, 1), "{LEAK}");
        thread.join().unwrap();
        assert_eq!((words(&parent), words(&child)), ((2, 1), (1, 3)), "{LEAK}");
        end(&[&parent, &child]);
    });
}

/// The parent stores while the child ends.
fn copy_against_exit() {
    check(3, || {
        let (parent, child) = family();
        let thread = loom::thread::spawn(move || child.exit());
        parent.store(0, 2);
        thread.join().unwrap();
        assert_eq!(words(&parent), (2, 1));
        end(&[&parent]);
    });
}

/// The child stores while the parent forks once more.
fn copy_against_a_second_fork() {
    check(3, || {
        let (parent, child) = family();
        let other = child.clone();
        let thread = loom::thread::spawn(move || other.store(1, 3));
        let second = parent.fork();
        assert_eq!(words(&second), (1, 1), "{LEAK}");
        parent.store(0, 2);
        thread.join().unwrap();
        let found = (words(&parent), words(&child), words(&second));
        assert_eq!(found, ((2, 1), (1, 3), (1, 1)), "{LEAK}");
        end(&[&parent, &child, &second]);
    });
}

/// A file loses the page of which parent and child have a copy, while the child copies the table.
fn copy_against_a_truncation() {
    check(3, || {
        let (parent, child) = family_of(Space::with_copy(1));
        let other = child.clone();
        let thread = loom::thread::spawn(move || other.store(0, 3));
        Space::lose(&[&parent, &child]);
        thread.join().unwrap();
        assert_eq!(
            (parent.look(0), child.look(0)),
            (None, None),
            "a page that a file has lost is still there"
        );
        end(&[&parent, &child]);
    });
}

/// The same while the child ends.
fn exit_against_a_truncation() {
    check(3, || {
        let (parent, child) = family_of(Space::with_copy(1));
        let other = child.clone();
        let thread = loom::thread::spawn(move || other.exit());
        Space::lose(&[&parent, &child]);
        thread.join().unwrap();
        assert_eq!(parent.look(0), None, "a page that a file has lost is still there");
        end(&[&parent]);
    });
}

/// The same while the child, which the truncation comes to when the page is gone already, loads it again and again.
fn load_against_a_truncation() {
    check(3, || {
        let (parent, child) = family_of(Space::with_copy(1));
        let other = child.clone();
        let thread = loom::thread::spawn(move || {
            for _ in 0..2 {
                assert!(matches!(other.look(0), None | Some(1)), "{LEAK}");
            }
        });
        Space::lose(&[&parent, &child]);
        thread.join().unwrap();
        assert_eq!(child.look(0), None, "a page that a file has lost is still there");
        end(&[&parent, &child]);
    });
}

/// A thread of the parent stores on another CPU during the fork. The child has the page as it was before or after one of the stores, and keeps
/// it so.
fn store_during_a_fork() {
    check(3, || {
        let parent = Arc::new(Space::with(1));
        let other = parent.clone();
        let thread = loom::thread::spawn(move || {
            other.store(0, 2);
            other.store(0, 3);
            assert_eq!(other.load(0), 3);
        });
        let child = parent.fork();
        let first = child.load(0);
        thread.join().unwrap();
        assert_eq!(child.load(0), first, "{LEAK}");
        child.store(1, 4);
        assert_eq!((words(&parent), words(&child)), ((3, 1), (first, 4)), "{LEAK}");
        end(&[&parent, &child]);
    });
}

/// A thread of the parent reads on another CPU while the parent copies, and the child takes the table back and stores.
fn readers_leave_a_copied_table() {
    check(2, || {
        let (parent, child) = family();
        let (reader, storer) = (parent.clone(), child.clone());
        let reading =
            loom::thread::spawn(move || (0..2).for_each(|_| assert_eq!(reader.load(1), 1, "{LEAK}")));
        let storing = loom::thread::spawn(move || storer.store(1, 3));
        parent.store(0, 2);
        reading.join().unwrap();
        storing.join().unwrap();
        assert_eq!((words(&parent), words(&child)), ((2, 1), (1, 3)), "{LEAK}");
    });
}

/// The writer in the state of a lock, and a reader.
const WRITER: usize = 1;
const READER: usize = 8;

/// What a mutant's failure says when somebody waits for ever.
const FOR_EVER: &str = "deadlock";

/// A mutant, and what is seen.
type Broken = (Mutant, &'static str);

/// A model, and the mutants that it has to notice.
type Row = (&'static str, fn(), &'static [Broken]);

const MODELS: &[Row] = &[
    (
        "wait_against_wake",
        wait_against_wake,
        &[
            (Mutant::JoinedLate, FOR_EVER),
            (Mutant::CountedLate, FOR_EVER),
            (Mutant::UsersWithoutFence, FOR_EVER),
        ],
    ),
    (
        "sleep_against_wake",
        sleep_against_wake,
        &[
            (Mutant::AnnouncedLate, FOR_EVER),
            (Mutant::AnnouncedWithoutFence, FOR_EVER),
            (Mutant::WokenWithoutFence, FOR_EVER),
            (Mutant::ParkedAnyway, FOR_EVER),
            (Mutant::QueuedOnCpu, "a thread is queued while a CPU uses its stack"),
        ],
    ),
    ("sleep_against_two_wakes", sleep_against_two_wakes, &[]),
    ("wake_of_one_against_a_signal", wake_of_one_against_a_signal, &[]),
    ("wake_of_one_that_does_not_sleep", wake_of_one_that_does_not_sleep, &[(Mutant::WakeKept, FOR_EVER)]),
    (
        "idle_against_enqueue",
        idle_against_enqueue,
        &[
            (Mutant::HaltsWithoutALook, FOR_EVER),
            (Mutant::IdleLate, FOR_EVER),
            (Mutant::AskedWithoutFence, FOR_EVER),
        ],
    ),
    (
        "mutex_against_mutex",
        mutex_against_mutex,
        &[(Mutant::RetryClearedLate, FOR_EVER), (Mutant::ReleaseTellsNobody, FOR_EVER)],
    ),
    ("lock_against_a_signal", lock_against_a_signal, &[(Mutant::LeavesQuietly, FOR_EVER)]),
    (
        "timers",
        timers,
        &[
            (Mutant::EarlyIsForgotten, "the hardware is not set"),
            (Mutant::StaysArmed, "the hardware is not set"),
            (Mutant::EarlierNotSet, "the hardware is set to"),
        ],
    ),
    (
        "attach_against_a_change",
        attach_against_a_change,
        &[
            (Mutant::AttachedBeforeListed, "a page is reused that a CPU still knows"),
            (Mutant::ListedWithoutFence, "a page is reused that a CPU still knows"),
        ],
    ),
    (
        "detach_against_a_change",
        detach_against_a_change,
        &[(Mutant::UnlistedBeforeDetached, "a page is reused that a CPU still knows")],
    ),
    (
        "one_of_two_attachments",
        one_of_two_attachments,
        &[(Mutant::AllUnlisted, "the other attachment is forgotten")],
    ),
    (
        "copy_against_copy",
        copy_against_copy,
        &[
            (Mutant::WritableInTwoTables, LEAK),
            (Mutant::CopiesCountNoPages, "a frame is"),
            (Mutant::LetGoBeforeCopied, LEAK),
            (Mutant::AloneWithoutFence, LEAK),
        ],
    ),
    ("copy_against_exit", copy_against_exit, &[(Mutant::LetGoBeforeCopied, "a frame is")]),
    ("copy_against_a_second_fork", copy_against_a_second_fork, &[]),
    ("copy_against_a_truncation", copy_against_a_truncation, &[]),
    ("exit_against_a_truncation", exit_against_a_truncation, &[]),
    ("load_against_a_truncation", load_against_a_truncation, &[]),
    ("store_during_a_fork", store_during_a_fork, &[]),
    (
        "readers_leave_a_copied_table",
        readers_leave_a_copied_table,
        &[(Mutant::CopiedWithoutFlush, "a frame is used that was freed")],
    ),
];

/// The variable that tells a process of its own, which may abort, the mutant that it runs a model with.
const MUTANT: &str = "KERNEL_MUTANT";

fn holds(name: &str) {
    let (_, model, mutants) = MODELS.iter().find(|row| row.0 == name).expect("a model of this name");
    if let Ok(chosen) = std::env::var(MUTANT) {
        mutant::choose(ALL.iter().copied().find(|mutant| format!("{mutant:?}") == chosen));
        return model();
    }
    model();
    for (broken, sign) in *mutants {
        let output = Command::new(std::env::current_exe().expect("this program"))
            .args([&format!("holds::{name}"), "--exact", "--nocapture"])
            .env(MUTANT, format!("{broken:?}"))
            .stdin(Stdio::null())
            .output()
            .expect("this program once more");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{name} does not notice {broken:?}");
        assert!(text.contains(sign), "{name} with {broken:?} fails for another reason:\n{text}");
    }
}

macro_rules! models {
    ($($name:ident),* $(,)?) => {
        mod holds {
            $(#[test] fn $name() { super::holds(stringify!($name)) })*
        }

        #[test]
        fn every_model_is_a_test() {
            let tests = [$(stringify!($name)),*];
            assert!(MODELS.iter().all(|(name, ..)| tests.contains(name)));
        }
    };
}
models!(
    wait_against_wake,
    sleep_against_wake,
    sleep_against_two_wakes,
    wake_of_one_against_a_signal,
    wake_of_one_that_does_not_sleep,
    lock_against_a_signal,
    idle_against_enqueue,
    mutex_against_mutex,
    timers,
    attach_against_a_change,
    detach_against_a_change,
    one_of_two_attachments,
    copy_against_copy,
    copy_against_exit,
    copy_against_a_second_fork,
    copy_against_a_truncation,
    exit_against_a_truncation,
    load_against_a_truncation,
    store_during_a_fork,
    readers_leave_a_copied_table,
);

#[test]
fn every_mutant_has_a_model() {
    for mutant in ALL {
        assert!(
            MODELS.iter().any(|(_, _, mutants)| mutants.iter().any(|(broken, _)| broken == mutant)),
            "{mutant:?}"
        );
    }
}

#[test]
fn a_signal_ends_a_wait() {
    check(2, || {
        let queue = WaitQueue::new();
        let thread = process::current().to_arc();
        let sender = loom::thread::spawn(move || thread.send_signal());
        assert_eq!(queue.wait_event(None, || None::<()>), Err(WaitError::Interrupted));
        sender.join().unwrap();
    });
}
