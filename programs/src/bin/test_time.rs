//! Clocks, sleeping and timers. Nothing here expects a busy machine to be on time, only never early.

use std::time::{Duration, Instant, SystemTime};

use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::rows::Rows;
use roundtable_programs::{Errno, child, place, row, signals, sys, tests};

tests! { monotonic_never_goes_back, monotonic_agrees_over_cpus, clocks_agree_with_the_calls, wall_clock_is_sane,
resolution, cpu_time, sleep_is_not_early, absolute_sleep, wrong_times, interval_timer, posix_timer, timer_descriptor,
timer_that_is_stopped, time_of_day, uptime, clocks_to_sleep_by, rest_of_a_sleep_by_cpu_time, questions_of_everybody }

fn now(clock: i32) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time lives through the call.
    sys::check(unsafe { libc::clock_gettime(clock, &mut time) }).expect("clock_gettime");
    assert!((0..1_000_000_000).contains(&time.tv_nsec));
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Past the vDSO.
fn now_by_call(clock: i32) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time lives through the call.
    unsafe { sys::raw(libc::SYS_clock_gettime, [clock as usize, &raw mut time as usize, 0, 0, 0, 0]) }
        .expect("clock_gettime");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn monotonic_never_goes_back() {
    let mut last = now(libc::CLOCK_MONOTONIC);
    for _ in 0..100_000 {
        let next = now(libc::CLOCK_MONOTONIC);
        assert!(next >= last, "{last:?}, then {next:?}");
        last = next;
    }
}

fn monotonic_agrees_over_cpus() {
    let cpus = sys::cpus();
    let mut last = now(libc::CLOCK_MONOTONIC);
    for turn in 0..200 {
        sys::pin(cpus[turn % cpus.len()]);
        let next = now(libc::CLOCK_MONOTONIC);
        assert!(next >= last, "CPU {}: {last:?}, then {next:?}", cpus[turn % cpus.len()]);
        last = next;
    }
}

fn clocks_agree_with_the_calls() {
    for clock in [libc::CLOCK_MONOTONIC, libc::CLOCK_REALTIME, libc::CLOCK_BOOTTIME] {
        for _ in 0..100 {
            let (before, by_call, after) = (now(clock), now_by_call(clock), now(clock));
            assert!(before <= by_call && by_call <= after, "clock {clock}: {before:?} {by_call:?} {after:?}");
        }
    }
    let (coarse, fine) = (now(libc::CLOCK_MONOTONIC_COARSE), now(libc::CLOCK_MONOTONIC));
    assert!(coarse <= fine && fine - coarse < Duration::from_secs(1));
}

fn wall_clock_is_sane() {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    // Later than this was written.
    assert!(since > Duration::from_secs(1_700_000_000), "{since:?}");
}

fn resolution() {
    let mut time = libc::timespec { tv_sec: 1, tv_nsec: 0 };
    // SAFETY: the time lives through the call.
    sys::check(unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC, &mut time) }).unwrap();
    assert_eq!((time.tv_sec, time.tv_nsec), (0, 1));
    // SAFETY: as above.
    assert_eq!(sys::check(unsafe { libc::clock_gettime(9999, &mut time) }), Err(Errno::EINVAL));
}

fn cpu_time() {
    let (process, thread) = (now(libc::CLOCK_PROCESS_CPUTIME_ID), now(libc::CLOCK_THREAD_CPUTIME_ID));
    let wall = Instant::now();
    while now(libc::CLOCK_THREAD_CPUTIME_ID) < thread + Duration::from_millis(50) {
        assert!(wall.elapsed() < Duration::from_secs(20), "this thread's clock stands still");
    }
    assert!(now(libc::CLOCK_PROCESS_CPUTIME_ID) >= process + Duration::from_millis(50));
    let before = now(libc::CLOCK_PROCESS_CPUTIME_ID);
    std::thread::sleep(Duration::from_millis(300));
    assert!(now(libc::CLOCK_PROCESS_CPUTIME_ID) - before < Duration::from_millis(200), "sleeping counts");
}

fn sleep_is_not_early() {
    for milliseconds in [0, 1, 5, 20, 100] {
        let time = Duration::from_millis(milliseconds);
        let start = Instant::now();
        std::thread::sleep(time);
        assert!(start.elapsed() >= time, "{:?} instead of {time:?}", start.elapsed());
    }
}

fn absolute_sleep() {
    let until = now(libc::CLOCK_MONOTONIC) + Duration::from_millis(50);
    let time = libc::timespec { tv_sec: until.as_secs() as i64, tv_nsec: until.subsec_nanos().into() };
    // SAFETY: the time lives through the call.
    let sleep = || unsafe {
        libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &time, std::ptr::null_mut())
    };
    assert_eq!(sleep(), 0);
    assert!(now(libc::CLOCK_MONOTONIC) >= until);
    // What is over is over.
    assert_eq!(sleep(), 0);
}

fn wrong_times() {
    for (tv_sec, tv_nsec) in [(0, 1_000_000_000), (0, -1), (-1, 0)] {
        let time = libc::timespec { tv_sec, tv_nsec };
        // SAFETY: the time lives through the call.
        assert_eq!(sys::check(unsafe { libc::nanosleep(&time, std::ptr::null_mut()) }), Err(Errno::EINVAL));
    }
}

static TICKS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

extern "C" fn tick(_: i32) {
    TICKS.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
}

fn ticks() -> u32 {
    TICKS.load(std::sync::atomic::Ordering::SeqCst)
}

fn interval_timer() {
    let time = libc::timeval { tv_sec: 0, tv_usec: 10_000 };
    let timer = libc::itimerval { it_interval: time, it_value: time };
    // SAFETY: the handler touches an atomic; the timer lives through the call.
    unsafe {
        libc::signal(libc::SIGALRM, tick as *const () as usize);
        sys::check(libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut())).unwrap();
    }
    assert!(sys::settles(Duration::from_secs(20), || ticks() >= 5));
    // SAFETY: a timer of zeros stops it.
    unsafe {
        let none: libc::itimerval = std::mem::zeroed();
        let mut old: libc::itimerval = std::mem::zeroed();
        sys::check(libc::setitimer(libc::ITIMER_REAL, &none, &mut old)).unwrap();
        assert_eq!(old.it_interval.tv_usec, 10_000);
    }
    let count = ticks();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(ticks(), count);
}

fn posix_timer() {
    // SAFETY: the handler touches an atomic; all structures live through the calls.
    unsafe {
        libc::signal(libc::SIGUSR1, tick as *const () as usize);
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGUSR1;
        let mut timer = std::mem::zeroed();
        sys::check(libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer)).unwrap();
        let time = libc::timespec { tv_sec: 0, tv_nsec: 10_000_000 };
        let setting = libc::itimerspec { it_interval: time, it_value: time };
        sys::check(libc::timer_settime(timer, 0, &setting, std::ptr::null_mut())).unwrap();
        assert!(sys::settles(Duration::from_secs(20), || ticks() >= 3));
        sys::check(libc::timer_delete(timer)).unwrap();
        let count = ticks();
        std::thread::sleep(Duration::from_millis(100));
        assert!(ticks() <= count + 1);
    }
}

fn timer_descriptor() {
    // SAFETY: structures live through the calls; the buffer has eight bytes.
    unsafe {
        let fd = sys::check(libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC)).unwrap();
        let fd = roundtable_programs::file::Fd::own(fd);
        let time = libc::timespec { tv_sec: 0, tv_nsec: 5_000_000 };
        let setting = libc::itimerspec { it_interval: time, it_value: time };
        sys::check(libc::timerfd_settime(fd.raw(), 0, &setting, std::ptr::null_mut())).unwrap();
        let mut count = [0; 8];
        assert_eq!(fd.read(&mut count), Ok(8));
        assert!(u64::from_ne_bytes(count) >= 1);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(fd.read(&mut count), Ok(8));
        assert!(u64::from_ne_bytes(count) >= 5, "{count:?}");
        assert_eq!(fd.read(&mut [0; 4]), Err(Errno::EINVAL));
    }
}

fn timer_that_is_stopped() {
    child::in_child(|| {
        // SAFETY: takes integers.
        unsafe {
            libc::alarm(1);
            assert_eq!(libc::alarm(0), 1);
        }
        std::thread::sleep(Duration::from_millis(1300));
    });
    // A timer is not inherited.
    // SAFETY: takes integers.
    unsafe { libc::alarm(20) };
    // SAFETY: takes integers.
    child::in_child(|| assert_eq!(unsafe { libc::alarm(0) }, 0));
}

fn time_of_day() {
    // SAFETY: the structure lives through the call; time takes null.
    let (day, seconds) = unsafe {
        let mut day = libc::timeval { tv_sec: 0, tv_usec: 0 };
        sys::check(libc::gettimeofday(&mut day, std::ptr::null_mut())).unwrap();
        (day, libc::time(std::ptr::null_mut()))
    };
    assert!((0..1_000_000).contains(&day.tv_usec));
    // Linux's time(2) is that of the last tick, which may be before.
    assert!((-1..=2).contains(&(seconds - day.tv_sec)), "{seconds} and {}", day.tv_sec);
}

fn uptime() {
    let text = std::fs::read_to_string("/proc/uptime").unwrap();
    let up: f64 = text.split_whitespace().next().unwrap().parse().unwrap();
    let boot = now(libc::CLOCK_BOOTTIME).as_secs_f64();
    assert!((boot - up).abs() < 2.0, "{up} and {boot}");
}

fn sleep_by(clock: i32) -> Answer {
    let nothing = [0u64; 2];
    call(libc::SYS_clock_nanosleep, [clock as usize, 0, &raw const nothing as usize, 0, 0, 0])
}

fn timer_by(clock: i32, kind: i32) -> Answer {
    let mut id = 0i32;
    let event = [0u64, libc::SIGUSR1 as u64 | (kind as u64) << 32, 0, 0, 0, 0, 0, 0];
    let (event, id_at) = (&raw const event as usize, &raw mut id as usize);
    call(libc::SYS_timer_create, [clock as usize, event, id_at, 0, 0, 0])?;
    call(libc::SYS_timer_delete, [id as usize, 0, 0, 0, 0, 0])
}

fn clocks_to_sleep_by() {
    child::in_child(|| {
        place::become_user(1000, 1000);
        let mut rows = Rows::default();
        for clock in [libc::CLOCK_REALTIME, libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME, libc::CLOCK_TAI] {
            row!(rows, OK, sleep_by(clock));
            row!(rows, OK, timer_by(clock, libc::SIGEV_SIGNAL));
        }
        row!(rows, OK, sleep_by(libc::CLOCK_PROCESS_CPUTIME_ID));
        row!(rows, OK, timer_by(libc::CLOCK_PROCESS_CPUTIME_ID, libc::SIGEV_SIGNAL));
        row!(rows, EOPNOTSUPP, sleep_by(libc::CLOCK_THREAD_CPUTIME_ID));
        row!(rows, OK, timer_by(libc::CLOCK_THREAD_CPUTIME_ID, libc::SIGEV_SIGNAL));
        let plain = [libc::CLOCK_MONOTONIC_RAW, libc::CLOCK_REALTIME_COARSE, libc::CLOCK_MONOTONIC_COARSE];
        for clock in plain {
            row!(rows, EOPNOTSUPP, sleep_by(clock));
            row!(rows, EOPNOTSUPP, timer_by(clock, libc::SIGEV_SIGNAL));
        }
        for clock in [libc::CLOCK_REALTIME_ALARM, libc::CLOCK_BOOTTIME_ALARM] {
            // Linux says EOPNOTSUPP where nothing can wake the machine.
            assert!(matches!(sleep_by(clock), Err(Errno::EPERM | Errno::EOPNOTSUPP)));
            assert!(matches!(timer_by(clock, libc::SIGEV_SIGNAL), Err(Errno::EPERM | Errno::EOPNOTSUPP)));
        }
        row!(rows, OK, timer_by(libc::CLOCK_MONOTONIC, libc::SIGEV_THREAD));
        row!(rows, EINVAL, timer_by(libc::CLOCK_MONOTONIC, 3));
        rows.finish();
    });
}

/// A signal ends it, and what was left is told.
fn rest_of_a_sleep_by_cpu_time() {
    child::in_child(|| {
        signals::catch(libc::SIGALRM);
        let busy = || {
            // The alarm is the sleeper's.
            signals::mask(libc::SIG_BLOCK, &[libc::SIGALRM]);
            loop {
                std::hint::spin_loop();
            }
        };
        std::thread::spawn(busy);
        const WHOLE: u64 = 1000;
        let (whole, mut rest) = ([WHOLE, 0u64], [u64::MAX; 2]);
        // SAFETY: takes an integer.
        unsafe { libc::alarm(1) };
        let arguments = [
            libc::CLOCK_PROCESS_CPUTIME_ID as usize,
            0,
            &raw const whole as usize,
            &raw mut rest as usize,
            0,
            0,
        ];
        assert_eq!(call(libc::SYS_clock_nanosleep, arguments), Err(Errno::EINTR));
        assert!(rest[0] < WHOLE && rest[1] < 1_000_000_000, "{rest:?}");
    });
}

/// adjtime(3) without a change.
fn questions_of_everybody() {
    child::in_child(|| {
        place::become_user(1000, 1000);
        let mut timex = [0u64; 26];
        timex[0] = 0xa001;
        assert!(call(libc::SYS_adjtimex, [timex.as_mut_ptr() as usize, 0, 0, 0, 0, 0]).is_ok());
        timex[0] = 0x8001;
        let refused = call(libc::SYS_adjtimex, [timex.as_mut_ptr() as usize, 0, 0, 0, 0, 0]);
        assert_eq!(refused, Err(Errno::EPERM));
    });
}
