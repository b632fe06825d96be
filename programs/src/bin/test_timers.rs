//! Timers that users set to the shortest and the longest times, one and ten thousand of them: the machine stays usable, and what
//! was missed is counted.

use roundtable_programs::harness::skip;
use roundtable_programs::signals::{self, mask};
use roundtable_programs::sys::is_linux;
use roundtable_programs::timers::{self, KINDS, Kind, Timer, now, take};
use roundtable_programs::{Errno, child, sys, tests};

tests! { shortest_interval_of_each_kind: 60, ten_thousand_shortest_intervals: 120, longest_times_of_each_kind,
periods_that_passed_are_overruns, overruns_of_a_descriptor, timer_rests_while_its_signal_is_ignored,
discarded_signal_does_not_stop_its_timer, new_setting_forgets_the_old_signal, silent_timer_goes_on,
ten_thousand_at_one_instant: 120, sleepers_at_one_instant: 60, timers_count_for_their_user, signals_count_for_their_user,
standard_signals_of_several_timers, signals_go_to_threads_that_wait, limit_of_cpu_time_is_inherited: 60,
numbers_are_not_given_again_at_once }

const MANY: usize = 10_000;

/// Lets this process have as many timers and descriptors as it wants.
fn lift_limits() {
    for resource in [libc::RLIMIT_SIGPENDING, libc::RLIMIT_NOFILE] {
        let limit = libc::rlimit { rlim_cur: 2 * MANY as u64, rlim_max: 2 * MANY as u64 };
        // SAFETY: the limit lives through the call.
        sys::check(unsafe { libc::setrlimit(resource, &limit) }).expect("setrlimit");
    }
}

/// Others get on: they start, end, sleep and are waited for.
fn machine_is_usable() {
    for _ in 0..20 {
        child::in_child(|| std::thread::sleep(std::time::Duration::from_micros(100)));
    }
}

/// Runs until it is killed, and takes what comes.
fn spin(timers: &[Timer]) -> ! {
    let descriptor = timers.iter().find_map(|timer| match timer {
        Timer::Descriptor(fd) => Some(*fd),
        _ => None,
    });
    loop {
        if let Some(fd) = descriptor {
            let mut count = 0u64;
            // SAFETY: the buffer has eight bytes.
            unsafe { libc::read(fd, (&raw mut count).cast(), 8) };
        }
        std::hint::black_box(sys::pid());
    }
}

fn shortest_interval_of_each_kind() {
    for kind in KINDS {
        let signal = match kind {
            Kind::Interval(libc::ITIMER_REAL) => libc::SIGALRM,
            Kind::Interval(libc::ITIMER_VIRTUAL) => libc::SIGVTALRM,
            Kind::Interval(_) => libc::SIGPROF,
            _ => libc::SIGUSR1,
        };
        let (mut ready, mut set) = std::io::pipe().expect("pipe");
        let child = child::fork(move || {
            signals::catch(signal);
            let timer = Timer::new(*kind, signal, 0).expect("a timer");
            timer.set(1, 1).expect("the shortest time");
            std::io::Write::write_all(&mut set, b"!").expect("tell");
            spin(&[timer])
        });
        std::io::Read::read_exact(&mut ready, &mut [0]).unwrap_or_else(|_| panic!("{kind:?} ended"));
        machine_is_usable();
        child.end();
        machine_is_usable();
    }
}

fn ten_thousand_shortest_intervals() {
    for kind in [
        Kind::Signal(libc::CLOCK_MONOTONIC),
        Kind::Signal(libc::CLOCK_PROCESS_CPUTIME_ID),
        Kind::Descriptor(libc::CLOCK_MONOTONIC),
    ] {
        let (mut ready, mut set) = std::io::pipe().expect("pipe");
        let child = child::fork(move || {
            lift_limits();
            signals::catch(libc::SIGRTMIN());
            let timers: Vec<_> = (0..MANY)
                .map(|value| Timer::new(kind, libc::SIGRTMIN(), value).expect("one of many timers"))
                .collect();
            // Before they are set: on Linux the process hardly gets on any more afterwards.
            std::io::Write::write_all(&mut set, b"!").expect("tell");
            for timer in &timers {
                timer.set(1, 1).expect("the shortest time");
            }
            spin(&timers)
        });
        std::io::Read::read_exact(&mut ready, &mut [0]).unwrap_or_else(|_| panic!("{kind:?} ended"));
        machine_is_usable();
        timers::sleep_until(now() + 200_000_000);
        machine_is_usable();
        child.end();
        machine_is_usable();
    }
}

fn longest_times_of_each_kind() {
    const LONGEST: u64 = i64::MAX as u64;
    mask(libc::SIG_BLOCK, &[libc::SIGUSR1, libc::SIGALRM, libc::SIGVTALRM, libc::SIGPROF]);
    for kind in KINDS {
        let timer = Timer::new(*kind, libc::SIGUSR1, 0).expect("a timer");
        timer.set(LONGEST, LONGEST).expect("the longest time");
        let (left, interval) = timer.get();
        assert!(left > LONGEST / 2 && interval > LONGEST / 2, "{kind:?}: {left} {interval}");
        // Short, and then as good as never.
        timer.set(1, LONGEST).expect("the longest interval");
        if let Timer::Posix(_) = timer
            && !matches!(kind, Kind::Silent(_))
        {
            let busy = now() + 50_000_000;
            while now() < busy {}
            let came =
                take(&[libc::SIGUSR1], 20_000_000_000).unwrap_or_else(|error| panic!("{kind:?}: {error}"));
            assert_eq!(came.overruns, 0, "{kind:?}");
        }
        timer.set(0, 0).expect("stop it");
        assert_eq!(timer.get(), (0, 0), "{kind:?}");
    }
}

fn periods_that_passed_are_overruns() {
    const INTERVAL: u64 = 1_000_000;
    mask(libc::SIG_BLOCK, &[libc::SIGUSR1]);
    for interval in [INTERVAL, 1] {
        let timer = Timer::new(Kind::Signal(libc::CLOCK_MONOTONIC), libc::SIGUSR1, 7).expect("a timer");
        let before = now();
        timer.set(interval, interval).expect("set");
        let after = now();
        timers::sleep_until(after + 50 * INTERVAL);
        let early = now();
        let came = take(&[libc::SIGUSR1], 20_000_000_000).expect("its signal");
        let late = now();
        assert_eq!((came.signal, came.value), (libc::SIGUSR1, 7));
        // It went off so often that the last of these times has passed and the next has not.
        let least = ((early - after) / interval - 1).min(i32::MAX as u64);
        let most = ((late - before) / interval).min(i32::MAX as u64);
        let told = came.overruns as u64;
        assert!(least <= told && told <= most, "{least} <= {told} <= {most}");
        let Timer::Posix(id) = timer else { unreachable!("made by timer_create") };
        // SAFETY: takes a timer's number.
        unsafe {
            assert_eq!(libc::timer_getoverrun(id), came.overruns);
            assert_eq!(libc::timer_delete(id), 0);
        }
        // It went on after its signal was taken, and what it sent before it was deleted may wait still.
        let _ = take(&[libc::SIGUSR1], 0);
    }
}

fn overruns_of_a_descriptor() {
    const INTERVAL: u64 = 1_000_000;
    let timer = Timer::new(Kind::Descriptor(libc::CLOCK_MONOTONIC), 0, 0).expect("a timer");
    let Timer::Descriptor(fd) = timer else { unreachable!("made by timerfd_create") };
    for interval in [INTERVAL, 1] {
        let before = now();
        timer.set(interval, interval).expect("set");
        let after = now();
        timers::sleep_until(after + 20 * INTERVAL);
        let early = now();
        let mut count = 0u64;
        // SAFETY: the buffer has eight bytes.
        assert_eq!(unsafe { libc::read(fd, (&raw mut count).cast(), 8) }, 8);
        let late = now();
        let (least, most) = ((early - after) / interval, (late - before) / interval);
        assert!(least <= count && count <= most, "{least} <= {count} <= {most}");
    }
}

fn timer_rests_while_its_signal_is_ignored() {
    // SAFETY: the signal is ignored.
    unsafe { libc::signal(libc::SIGUSR1, libc::SIG_IGN) };
    let timer = Timer::new(Kind::Signal(libc::CLOCK_MONOTONIC), libc::SIGUSR1, 0).expect("a timer");
    timer.set(1, 1_000_000).expect("set");
    timers::sleep_until(now() + 20_000_000);
    assert_eq!(timer.get().1, 1_000_000);
    signals::catch(libc::SIGUSR1);
    assert!(sys::settles(std::time::Duration::from_secs(20), || signals::count() >= 3));
}

fn discarded_signal_does_not_stop_its_timer() {
    mask(libc::SIG_BLOCK, &[libc::SIGUSR1]);
    signals::catch(libc::SIGUSR1);
    let timer = Timer::new(Kind::Signal(libc::CLOCK_MONOTONIC), libc::SIGUSR1, 0).expect("a timer");
    timer.set(1, 1_000_000).expect("set");
    timers::sleep_until(now() + 20_000_000);
    // SAFETY: the signal that waits is thrown away.
    unsafe { libc::signal(libc::SIGUSR1, libc::SIG_IGN) };
    signals::catch(libc::SIGUSR1);
    if sys::is_linux() {
        // Linux up to 6.12 forgets the timer here.
        timer.set(1, 1_000_000).expect("set");
    }
    mask(libc::SIG_UNBLOCK, &[libc::SIGUSR1]);
    assert!(sys::settles(std::time::Duration::from_secs(20), || signals::count() >= 2));
}

fn new_setting_forgets_the_old_signal() {
    mask(libc::SIG_BLOCK, &[libc::SIGUSR1]);
    let timer = Timer::new(Kind::Signal(libc::CLOCK_MONOTONIC), libc::SIGUSR1, 0).expect("a timer");
    timer.set(1, 1).expect("set");
    timers::sleep_until(now() + 20_000_000);
    timer.set(0, 0).expect("stop it");
    let came = take(&[libc::SIGUSR1], 20_000_000_000);
    // Whether the signal that waited still comes is left open; it does not set the timer in motion again.
    if let Ok(came) = came {
        assert_eq!(came.overruns, 0);
    }
    assert_eq!(take(&[libc::SIGUSR1], 20_000_000), Err(Errno::EAGAIN));
    assert_eq!(timer.get(), (0, 0));
}

fn silent_timer_goes_on() {
    let timer = Timer::new(Kind::Silent(libc::CLOCK_MONOTONIC), 0, 0).expect("a timer");
    timer.set(1_000_000, 10_000_000).expect("set");
    timers::sleep_until(now() + 30_000_000);
    let (left, interval) = timer.get();
    assert!(left > 0 && left <= 10_000_000 && interval == 10_000_000, "{left} {interval}");
    timer.set(1_000_000, 0).expect("set");
    timers::sleep_until(now() + 5_000_000);
    assert_eq!(timer.get(), (0, 0));
}

fn ten_thousand_at_one_instant() {
    lift_limits();
    let signal = libc::SIGRTMIN();
    mask(libc::SIG_BLOCK, &[signal]);
    let timers: Vec<_> = (0..MANY)
        .map(|value| Timer::new(Kind::Signal(libc::CLOCK_MONOTONIC), signal, value).expect("one of many"))
        .collect();
    let instant = now() + 200_000_000;
    for timer in &timers {
        timer.set_absolute(instant, 0).expect("set");
    }
    let mut seen = vec![false; MANY];
    for _ in 0..MANY {
        let came = take(&[signal], 60_000_000_000).expect("each timer's signal");
        assert!(now() >= instant, "early");
        assert!(!std::mem::replace(&mut seen[came.value], true), "timer {} twice", came.value);
    }
    assert_eq!(take(&[signal], 1), Err(Errno::EAGAIN));
}

fn sleepers_at_one_instant() {
    let instant = now() + 300_000_000;
    let sleepers: Vec<_> = (0..500)
        .map(|_| {
            std::thread::Builder::new()
                .stack_size(64 << 10)
                .spawn(move || {
                    timers::sleep_until(instant);
                    now()
                })
                .expect("a thread")
        })
        .collect();
    for sleeper in sleepers {
        assert!(sleeper.join().expect("a sleeper") >= instant, "early");
    }
}

/// As a user who has nothing yet, with room for so many signals.
fn as_user(uid: u32, limit: u64) {
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: the limit lives through the call; the rest takes integers.
    unsafe {
        sys::check(libc::setrlimit(libc::RLIMIT_SIGPENDING, &limit)).expect("setrlimit");
        sys::check(libc::setresuid(uid, uid, uid)).expect("setresuid");
    }
}

fn timers_count_for_their_user() {
    child::in_child(|| {
        as_user(4711, 5);
        let new = || Timer::new(Kind::Signal(libc::CLOCK_MONOTONIC), libc::SIGUSR1, 0);
        let timers: Vec<_> = (0..3).map(|_| new().expect("three")).collect();
        // Another process of the same user has what is left.
        child::in_child(|| {
            (0..2).for_each(|_| _ = new().expect("two more"));
            assert_eq!(new().unwrap_err(), Errno::EAGAIN);
        });
        (0..2).for_each(|_| _ = new().expect("two more"));
        assert_eq!(new().unwrap_err(), Errno::EAGAIN);
        let Timer::Posix(id) = timers[0] else { unreachable!("made by timer_create") };
        // SAFETY: takes a timer's number.
        sys::check(unsafe { libc::timer_delete(id) }).expect("timer_delete");
        new().expect("one was deleted");
        let status = std::fs::read_to_string("/proc/self/status").expect("status");
        assert!(status.contains("SigQ:\t5/5\n"), "{status}");
    });
}

fn signals_count_for_their_user() {
    child::in_child(|| {
        as_user(4712, 4);
        let signal = libc::SIGRTMIN();
        mask(libc::SIG_BLOCK, &[signal]);
        let value = libc::sigval { sival_ptr: std::ptr::null_mut() };
        // SAFETY: takes integers and a value.
        let send = || sys::check(unsafe { libc::sigqueue(sys::pid(), signal, value) });
        (0..4).for_each(|_| _ = send().expect("four"));
        assert_eq!(send(), Err(Errno::EAGAIN));
        take(&[signal], 1).expect("one of them");
        send().expect("one was taken");
        assert_eq!(send(), Err(Errno::EAGAIN));
    });
}

fn standard_signals_of_several_timers() {
    mask(libc::SIG_BLOCK, &[libc::SIGUSR1]);
    for value in 0..3 {
        let timer = Timer::new(Kind::Signal(libc::CLOCK_MONOTONIC), libc::SIGUSR1, value).expect("a timer");
        timer.set(1, 0).expect("set");
    }
    timers::sleep_until(now() + 20_000_000);
    let mut values: Vec<_> =
        (0..3).map(|_| take(&[libc::SIGUSR1], 20_000_000_000).expect("each timer's own").value).collect();
    values.sort();
    assert_eq!(values, [0, 1, 2]);
}

fn signals_go_to_threads_that_wait() {
    if is_linux() {
        skip("on an emulated Linux it does not always end in its time");
    }
    let signal = libc::SIGRTMIN();
    mask(libc::SIG_BLOCK, &[signal]);
    // Both have to come: whoever has one waits for the other.
    let barrier = std::sync::Arc::new(std::sync::Barrier::new(2));
    let waiters: Vec<_> = (0..2)
        .map(|_| {
            let barrier = barrier.clone();
            std::thread::spawn(move || {
                take(&[signal], 20_000_000_000).expect("a signal for each");
                barrier.wait();
            })
        })
        .collect();
    timers::sleep_until(now() + 20_000_000);
    for value in 0..2 {
        let timer = Timer::new(Kind::Signal(libc::CLOCK_MONOTONIC), signal, value).expect("a timer");
        timer.set(1, 0).expect("set");
    }
    for waiter in waiters {
        waiter.join().expect("a waiter");
    }
}

fn limit_of_cpu_time_is_inherited() {
    let limit = libc::rlimit { rlim_cur: 1, rlim_max: 2 };
    child::in_child(|| {
        // SAFETY: the limit lives through the call.
        sys::check(unsafe { libc::setrlimit(libc::RLIMIT_CPU, &limit) }).expect("setrlimit");
        let heir = child::fork(|| {
            loop {
                std::hint::black_box(sys::pid());
            }
        });
        assert_eq!(heir.wait(), child::End::Signal(libc::SIGXCPU));
    });
}

fn numbers_are_not_given_again_at_once() {
    let new = || match Timer::new(Kind::Silent(libc::CLOCK_MONOTONIC), 0, 0) {
        Ok(Timer::Posix(id)) => id,
        other => panic!("{other:?}"),
    };
    let first = new();
    // SAFETY: takes a timer's number.
    sys::check(unsafe { libc::timer_delete(first) }).expect("timer_delete");
    assert_ne!(new(), first);
}
