//! The real-time clock is set: what waits for a time of it that has come is due, whatever it waits by; relative times do not change.

use std::ptr::{null, null_mut};
use std::sync::atomic::AtomicU32;

use roundtable_programs::file::Fd;
use roundtable_programs::procfs::{wait_for_sleep, wait_for_sleepers};
use roundtable_programs::signals::mask;
use roundtable_programs::timers::{Kind, Timer, take};
use roundtable_programs::{Errno, child, sys, tests};

tests! { sleeps_end, waits_for_words_end, waits_for_messages_end, timers_go_off, periods_that_were_skipped_are_overruns,
descriptors_go_off, descriptors_are_cancelled, a_wait_for_a_descriptor_is_cancelled, relative_times_stay, set_back }

const SECOND: u64 = 1_000_000_000;
/// How far the clock is set, and the time that is waited for, in the middle.
const JUMP: u64 = 2_000 * SECOND;
const WAIT: u64 = JUMP / 2;

fn timespec(time: u64) -> libc::timespec {
    libc::timespec { tv_sec: (time / SECOND) as i64, tv_nsec: (time % SECOND) as i64 }
}

fn real_time() -> u64 {
    let mut time = timespec(0);
    // SAFETY: the time lives through the call.
    sys::check(unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &mut time) }).expect("clock_gettime");
    time.tv_sec as u64 * SECOND + time.tv_nsec as u64
}

fn set_by(jump: i64) {
    let time = timespec(real_time().saturating_add_signed(jump));
    // SAFETY: the time lives through the call.
    sys::check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &time) }).expect("clock_settime");
}

/// The clock is ahead as long as this lives.
struct Ahead;

impl Ahead {
    fn new() -> Ahead {
        set_by(JUMP as i64);
        Ahead
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        set_by(-(JUMP as i64));
    }
}

/// Has `wait` wait in a process of its own for a time of the clock, sets the clock past that, and sees that the wait ends.
fn ends(wait: impl FnOnce(&libc::timespec)) {
    let time = timespec(real_time() + WAIT);
    let waiter = child::fork(|| wait(&time));
    wait_for_sleep(waiter.pid);
    let ahead = Ahead::new();
    waiter.ok();
    drop(ahead);
}

fn sleeps_end() {
    ends(|time| {
        // SAFETY: the time lives through the call.
        let result =
            unsafe { libc::clock_nanosleep(libc::CLOCK_REALTIME, libc::TIMER_ABSTIME, time, null_mut()) };
        assert_eq!(result, 0);
    });
    // By the other call.
    let time = timespec(real_time() + WAIT);
    let waiter = child::fork(|| {
        // SAFETY: the time lives through the call.
        let result =
            unsafe { libc::clock_nanosleep(libc::CLOCK_REALTIME, libc::TIMER_ABSTIME, &time, null_mut()) };
        assert_eq!(result, 0);
    });
    wait_for_sleep(waiter.pid);
    let ahead = real_time() + JUMP;
    let ahead = libc::timeval { tv_sec: (ahead / SECOND) as i64, tv_usec: (ahead % SECOND / 1000) as i64 };
    // SAFETY: the time lives through the call.
    sys::check(unsafe { libc::settimeofday(&ahead, null()) }).expect("settimeofday");
    let ahead = Ahead;
    waiter.ok();
    drop(ahead);
}

fn futex(word: &AtomicU32, operation: i32, value: u32, time: &libc::timespec) -> Result<usize, Errno> {
    // SAFETY: word and time live through the call.
    sys::check(unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, time, null::<u32>(), u32::MAX)
    })
}

fn waits_for_words_end() {
    ends(|time| {
        let operation = libc::FUTEX_WAIT_BITSET | libc::FUTEX_CLOCK_REALTIME;
        assert_eq!(futex(&AtomicU32::new(0), operation, 0, time), Err(Errno::ETIMEDOUT));
    });
    ends(|time| {
        // The first process has it.
        let word = AtomicU32::new(1);
        assert_eq!(futex(&word, libc::FUTEX_LOCK_PI, 0, time), Err(Errno::ETIMEDOUT));
    });
    ends(|time| {
        const SYS_FUTEX_WAITV: libc::c_long = 449;
        const SIZE_U32: u64 = 2;
        let word = 0u32;
        // Value, address, flags.
        let waiters = [0u64, (&raw const word).addr() as u64, SIZE_U32];
        // SAFETY: all lives through the call.
        let result = sys::check(unsafe {
            libc::syscall(SYS_FUTEX_WAITV, waiters.as_ptr(), 1, 0, time, libc::CLOCK_REALTIME)
        });
        assert_eq!(result, Err(Errno::ETIMEDOUT));
    });
    ends(|time| {
        let (condition, lock) = (AtomicU32::new(0), AtomicU32::new(0));
        let operation = libc::FUTEX_WAIT_REQUEUE_PI | libc::FUTEX_CLOCK_REALTIME;
        // SAFETY: words and time live through the call.
        let result = sys::check(unsafe {
            libc::syscall(libc::SYS_futex, condition.as_ptr(), operation, 0, time, lock.as_ptr(), 0)
        });
        assert_eq!(result, Err(Errno::ETIMEDOUT));
    });
    // sem_timedwait(3) and the like are made of these.
    ends(|time| {
        // SAFETY: a semaphore may be all zero before it is made; all lives through the calls.
        unsafe {
            let mut semaphore: libc::sem_t = std::mem::zeroed();
            sys::check(libc::sem_init(&mut semaphore, 0, 0)).expect("sem_init");
            assert_eq!(sys::check(libc::sem_timedwait(&mut semaphore, time)), Err(Errno::ETIMEDOUT));
        }
    });
}

fn waits_for_messages_end() {
    ends(|time| {
        let name = c"clock-set";
        // SAFETY: name, buffers and time live through the calls.
        unsafe {
            let mut attributes: libc::mq_attr = std::mem::zeroed();
            attributes.mq_maxmsg = 1;
            attributes.mq_msgsize = 8;
            let flags = libc::O_CREAT | libc::O_RDWR;
            let open = libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, 0o600, &attributes);
            let queue = Fd::own(sys::check(open).expect("mq_open"));
            sys::check(libc::syscall(libc::SYS_mq_unlink, name.as_ptr())).expect("mq_unlink");
            let mut buffer = [0u8; 8];
            let receive = libc::SYS_mq_timedreceive;
            let got = libc::syscall(receive, queue.raw(), buffer.as_mut_ptr(), 8, null::<u32>(), time);
            assert_eq!(sys::check(got), Err(Errno::ETIMEDOUT));
        }
    });
}

fn timers_go_off() {
    mask(libc::SIG_BLOCK, &[libc::SIGUSR1]);
    let timer = Timer::new(Kind::Signal(libc::CLOCK_REALTIME), libc::SIGUSR1, 7).unwrap();
    timer.set_absolute(real_time() + WAIT, 0).unwrap();
    let ahead = Ahead::new();
    let came = take(&[libc::SIGUSR1], 10 * SECOND).expect("the timer's signal");
    assert_eq!((came.value, came.overruns), (7, 0));
    drop(ahead);
}

fn periods_that_were_skipped_are_overruns() {
    mask(libc::SIG_BLOCK, &[libc::SIGUSR1]);
    let timer = Timer::new(Kind::Signal(libc::CLOCK_REALTIME), libc::SIGUSR1, 0).unwrap();
    timer.set_absolute(real_time() + WAIT, 100 * SECOND).unwrap();
    let ahead = Ahead::new();
    let came = take(&[libc::SIGUSR1], 10 * SECOND).expect("the timer's signal");
    let periods = ((JUMP - WAIT) / (100 * SECOND)) as i32;
    assert!((periods - 1..=periods).contains(&came.overruns), "{} of {periods} periods", came.overruns);
    drop(ahead);
}

/// A timer of the real-time clock behind a descriptor, set to a time of that.
fn descriptor(after: u64, flags: i32) -> Fd {
    // SAFETY: takes integers.
    let fd = sys::check(unsafe { libc::timerfd_create(libc::CLOCK_REALTIME, libc::TFD_NONBLOCK) });
    let fd = Fd::own(fd.expect("timerfd_create"));
    set(&fd, after, flags).expect("timerfd_settime");
    fd
}

fn set(fd: &Fd, after: u64, flags: i32) -> Result<usize, Errno> {
    let setting = libc::itimerspec { it_interval: timespec(0), it_value: timespec(real_time() + after) };
    // SAFETY: the setting lives through the call.
    sys::check(unsafe {
        libc::timerfd_settime(fd.raw(), libc::TFD_TIMER_ABSTIME | flags, &setting, null_mut())
    })
}

fn read(fd: &Fd) -> Result<u64, Errno> {
    let mut count = [0; 8];
    fd.read(&mut count).map(|_| u64::from_ne_bytes(count))
}

/// Waits until the descriptor can be read.
fn poll(fd: &Fd) -> bool {
    let mut wanted = libc::pollfd { fd: fd.raw(), events: libc::POLLIN, revents: 0 };
    // SAFETY: the structure lives through the call.
    sys::check(unsafe { libc::poll(&mut wanted, 1, 10_000) }) == Ok(1)
}

fn descriptors_go_off() {
    let fd = descriptor(WAIT, 0);
    assert_eq!(read(&fd), Err(Errno::EAGAIN));
    let ahead = Ahead::new();
    assert!(poll(&fd), "it has not gone off");
    assert_eq!(read(&fd), Ok(1));
    drop(ahead);
    assert_eq!(read(&fd), Err(Errno::EAGAIN));
}

fn descriptors_are_cancelled() {
    let cancel = libc::TFD_TIMER_CANCEL_ON_SET;
    // To a time that does not come by the change.
    const LATER: u64 = 2 * JUMP;
    let (fd, other) = (descriptor(LATER, cancel), descriptor(LATER, cancel));
    assert_eq!(read(&fd), Err(Errno::EAGAIN));
    let ahead = Ahead::new();
    assert!(poll(&fd), "nobody was told");
    assert_eq!(read(&fd), Err(Errno::ECANCELED));
    // Each is told once.
    assert_eq!(read(&fd), Err(Errno::EAGAIN));
    assert_eq!(set(&other, LATER, cancel), Err(Errno::ECANCELED));
    assert_eq!(read(&other), Err(Errno::EAGAIN));
    drop(ahead);
    assert!(poll(&other), "nobody was told");
    assert_eq!(set(&other, LATER, 0), Ok(0));
    assert_eq!(read(&other), Err(Errno::EAGAIN));
}

fn a_wait_for_a_descriptor_is_cancelled() {
    let fd = descriptor(WAIT, libc::TFD_TIMER_CANCEL_ON_SET);
    // SAFETY: takes integers.
    sys::check(unsafe { libc::fcntl(fd.raw(), libc::F_SETFL, 0) }).expect("F_SETFL");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&fd));
        wait_for_sleepers(1);
        // Backwards: the timer does not go off.
        set_by(-(JUMP as i64));
        let read = reader.join().unwrap();
        set_by(JUMP as i64);
        assert_eq!(read, Err(Errno::ECANCELED));
    });
}

fn relative_times_stay() {
    let descriptor = Timer::new(Kind::Descriptor(libc::CLOCK_REALTIME), 0, 0).unwrap();
    let signal = Timer::new(Kind::Silent(libc::CLOCK_REALTIME), 0, 0).unwrap();
    for timer in [descriptor, signal] {
        timer.set(WAIT, 0).unwrap();
    }
    let ahead = Ahead::new();
    for timer in [descriptor, signal] {
        let (left, _) = timer.get();
        assert!((WAIT / 2..=WAIT).contains(&left), "{timer:?}: {left} of {WAIT}");
    }
    drop(ahead);
}

fn set_back() {
    let descriptor = Timer::new(Kind::Descriptor(libc::CLOCK_REALTIME), 0, 0).unwrap();
    let signal = Timer::new(Kind::Silent(libc::CLOCK_REALTIME), 0, 0).unwrap();
    for timer in [descriptor, signal] {
        timer.set_absolute(real_time() + WAIT, 0).unwrap();
    }
    set_by(-(JUMP as i64));
    let left = [descriptor, signal].map(|timer| timer.get().0);
    set_by(JUMP as i64);
    for left in left {
        assert!((WAIT / 2 + JUMP..=WAIT + JUMP).contains(&left), "{left}");
    }
}
