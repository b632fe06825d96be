//! System calls: clocks, sleeping, timers.

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::mm::uaccess::{read_user, write_user};
use crate::process::{self, CAP_SYS_TIME};
use crate::sched::{self, Sleep};
use crate::signal;
use crate::sync::WaitError;
use crate::time::clock::{Timespec, Timeval};
use crate::time::posix_timers::Notify;
use crate::time::process_timers::{Setting, Which};
use crate::time::{self, ClockId, Deadline, SECOND};

pub const TABLE: &[(Sysno, Handler)] = &[
    (Sysno::clock_gettime, clock_gettime),
    (Sysno::clock_settime, clock_settime),
    (Sysno::clock_getres, clock_getres),
    (Sysno::clock_nanosleep, clock_nanosleep),
    (Sysno::nanosleep, nanosleep),
    (Sysno::gettimeofday, gettimeofday),
    (Sysno::settimeofday, settimeofday),
    (Sysno::time, time_call),
    (Sysno::getitimer, getitimer),
    (Sysno::setitimer, setitimer),
    (Sysno::timer_create, timer_create),
    (Sysno::timer_settime, timer_settime),
    (Sysno::timer_gettime, timer_gettime),
    (Sysno::timer_getoverrun, timer_getoverrun),
    (Sysno::timer_delete, timer_delete),
    (Sysno::adjtimex, adjtimex),
    (Sysno::clock_adjtime, clock_adjtime),
];

fn clock_gettime(args: &mut Args) -> Result<usize> {
    let clock = ClockId::from_number(args.int(0))?;
    write_user(args.a[1], &Timespec::from_ns(clock.now()))?;
    Ok(0)
}

fn clock_settime(args: &mut Args) -> Result<usize> {
    if !matches!(ClockId::from_number(args.int(0))?, ClockId::Realtime) || args.int(0) != 0 {
        return Err(Errno::EINVAL);
    }
    let time = read_user::<Timespec>(args.a[1])?.to_ns()?;
    process::current().credentials().require(CAP_SYS_TIME)?;
    time::clock::set_realtime(time);
    Ok(0)
}

fn clock_getres(args: &mut Args) -> Result<usize> {
    ClockId::from_number(args.int(0))?;
    if args.a[1] != 0 {
        write_user(args.a[1], &Timespec::from_ns(ClockId::resolution(args.int(0))))?;
    }
    Ok(0)
}

fn clock_nanosleep(args: &mut Args) -> Result<usize> {
    let clock = ClockId::from_number(args.int(0))?;
    ClockId::check_sleep(args.int(0))?;
    let duration = read_user::<Timespec>(args.a[2])?.to_ns()?;
    let absolute = args.uint(1) & abi::TIMER_ABSTIME != 0;
    match clock {
        // Sleeping while oneself does not use the clock would be for ever.
        ClockId::ThreadCpu(_) => Err(Errno::EINVAL),
        ClockId::ProcessCpu(_) if absolute => {
            sleep_to_cpu_time(&clock, duration).map_err(|_| Errno::ERESTARTNOHAND)
        }
        ClockId::ProcessCpu(_) => {
            let target = clock.now().saturating_add(duration);
            sleep_for_cpu_time(clock, target, args.a[3])
        }
        // A clock that is set meanwhile moves the deadline.
        _ if absolute => match sleep_until(clock.to_deadline(duration)?) {
            Ok(()) => Ok(0),
            Err(_) => Err(Errno::ERESTARTNOHAND),
        },
        _ => sleep_for(time::now().saturating_add(duration), args.a[3]),
    }
}

fn nanosleep(args: &mut Args) -> Result<usize> {
    let duration = read_user::<Timespec>(args.a[0])?.to_ns()?;
    sleep_for(time::now().saturating_add(duration), args.a[1])
}

fn sleep_until(deadline: impl Into<Deadline>) -> Result<(), WaitError> {
    match sched::sleep_to(Sleep::Interruptible, Some(deadline.into()), || false) {
        Err(WaitError::TimedOut) | Ok(()) => Ok(()),
        Err(WaitError::Interrupted) => Err(WaitError::Interrupted),
    }
}

/// Sleeps to the deadline. When a signal comes, the rest is written to `rest`, and the call goes on if no handler runs.
fn sleep_for(deadline: u64, rest: usize) -> Result<usize> {
    if sleep_until(deadline).is_ok() {
        return Ok(0);
    }
    let left = deadline.saturating_sub(time::now());
    if left == 0 {
        return Ok(0);
    }
    if rest != 0 {
        write_user(rest, &Timespec::from_ns(left))?;
    }
    process::current().set_restart(move |_| sleep_for(deadline, rest));
    Err(Errno::ERESTART_RESTARTBLOCK)
}

/// Sleeps until the clock of a process shows `target`: looked at once per tick, as it moves by running only.
fn sleep_to_cpu_time(clock: &ClockId, target: u64) -> Result<usize, WaitError> {
    loop {
        let now = clock.now();
        if now >= target {
            return Ok(0);
        }
        // All CPUs may run its threads at once.
        let step = ((target - now) / u64::from(crate::arch::cpu::count())).max(sched::TICK);
        sleep_until(time::now().saturating_add(step))?;
    }
}

/// As [`sleep_for`], by the clock of a process.
fn sleep_for_cpu_time(clock: ClockId, target: u64, rest: usize) -> Result<usize> {
    if sleep_to_cpu_time(&clock, target).is_ok() {
        return Ok(0);
    }
    if rest != 0 {
        write_user(rest, &Timespec::from_ns(target.saturating_sub(clock.now())))?;
    }
    process::current().set_restart(move |_| sleep_for_cpu_time(clock, target, rest));
    Err(Errno::ERESTART_RESTARTBLOCK)
}

fn gettimeofday(args: &mut Args) -> Result<usize> {
    if args.a[0] != 0 {
        write_user(args.a[0], &Timeval::from_ns(time::realtime_now()))?;
    }
    if args.a[1] != 0 {
        // The time zone is that of Greenwich.
        write_user(args.a[1], &[0i32; 2])?;
    }
    Ok(0)
}

fn settimeofday(args: &mut Args) -> Result<usize> {
    const MOST_MINUTES_WEST: u32 = 15 * 60;
    let mut time = None;
    if args.a[0] != 0 {
        time = Some(read_user::<Timeval>(args.a[0])?.to_ns()?);
    }
    if args.a[1] != 0 {
        let [minutes_west, _]: [i32; 2] = read_user(args.a[1])?;
        if minutes_west.unsigned_abs() > MOST_MINUTES_WEST {
            return Err(Errno::EINVAL);
        }
    }
    process::current().credentials().require(CAP_SYS_TIME)?;
    // The zone is not kept: it is obsolete, and gettimeofday(2) says Greenwich.
    if let Some(time) = time {
        time::clock::set_realtime(time);
    }
    Ok(0)
}

fn time_call(args: &mut Args) -> Result<usize> {
    let seconds = time::realtime_now() / SECOND;
    if args.a[0] != 0 {
        write_user(args.a[0], &seconds)?;
    }
    Ok(seconds as usize)
}

fn which(args: &Args) -> Result<Which> {
    match args.uint(0) {
        abi::ITIMER_REAL => Ok(Which::Real),
        abi::ITIMER_VIRTUAL => Ok(Which::Virtual),
        abi::ITIMER_PROF => Ok(Which::Prof),
        _ => Err(Errno::EINVAL),
    }
}

fn getitimer(args: &mut Args) -> Result<usize> {
    let setting = process::current().process.timers.get(which(args)?);
    write_user(args.a[1], &[Timeval::from_ns(setting.interval), Timeval::from_ns(setting.value)])?;
    Ok(0)
}

fn setitimer(args: &mut Args) -> Result<usize> {
    let which = which(args)?;
    let new = match args.a[1] {
        // As Linux: no new value is the same as zero.
        0 => Setting::default(),
        at => {
            let [interval, value]: [Timeval; 2] = read_user(at)?;
            Setting { value: value.to_ns()?, interval: interval.to_ns()? }
        }
    };
    let old = process::current().process.timers.set(which, new);
    if args.a[2] != 0 {
        write_user(args.a[2], &[Timeval::from_ns(old.interval), Timeval::from_ns(old.value)])?;
    }
    Ok(0)
}

/// `struct sigevent`, as far as the kernel looks at it.
#[repr(C)]
#[derive(Clone, Copy)]
struct SigEvent {
    value: u64,
    signal: i32,
    notify: i32,
    thread: i32,
    rest: [i32; 11],
}

const _: () = assert!(size_of::<SigEvent>() == 64);

fn timer_create(args: &mut Args) -> Result<usize> {
    const SIGEV_SIGNAL: i32 = 0;
    const SIGEV_NONE: i32 = 1;
    // The C library's own affair: a signal to the kernel.
    const SIGEV_THREAD: i32 = 2;
    const SIGEV_THREAD_ID: i32 = 4;
    let clock = ClockId::from_number(args.int(0))?;
    ClockId::check_timer(args.int(0))?;
    let event = if args.a[1] == 0 { None } else { Some(read_user::<SigEvent>(args.a[1])?) };
    let thread = process::current();
    let process = &thread.process;
    let id = process.timers.posix.create(process, clock, |id| {
        let Some(event) = event else {
            return Ok(Notify::Signal { signal: signal::SIGALRM, value: id as u64 });
        };
        if event.notify == SIGEV_NONE {
            return Ok(Notify::Nothing);
        }
        let signal = signal::from_user(event.signal as usize)?.ok_or(Errno::EINVAL)?;
        match event.notify {
            SIGEV_SIGNAL | SIGEV_THREAD => Ok(Notify::Signal { signal, value: event.value }),
            SIGEV_THREAD_ID => {
                let target = process::find_thread(event.thread as u32).ok_or(Errno::EINVAL)?;
                if !alloc::sync::Arc::ptr_eq(&target.process, process) {
                    return Err(Errno::EINVAL);
                }
                Ok(Notify::Thread {
                    signal,
                    value: event.value,
                    thread: alloc::sync::Arc::downgrade(&target),
                })
            }
            _ => Err(Errno::EINVAL),
        }
    })?;
    if let Err(error) = write_user(args.a[2], &id) {
        process.timers.posix.delete(id)?;
        return Err(error);
    }
    Ok(0)
}

fn read_setting(at: usize) -> Result<Setting> {
    let [interval, value]: [Timespec; 2] = read_user(at)?;
    Ok(Setting { value: value.to_ns()?, interval: interval.to_ns()? })
}

fn write_setting(at: usize, setting: Setting) -> Result<()> {
    write_user(at, &[Timespec::from_ns(setting.interval), Timespec::from_ns(setting.value)])
}

fn timer_settime(args: &mut Args) -> Result<usize> {
    if args.a[2] == 0 {
        return Err(Errno::EINVAL);
    }
    let new = read_setting(args.a[2])?;
    let timer = process::current().process.timers.posix.get(args.int(0))?;
    let old = timer.set(new, args.uint(1) & abi::TIMER_ABSTIME != 0);
    if args.a[3] != 0 {
        write_setting(args.a[3], old)?;
    }
    Ok(0)
}

fn timer_gettime(args: &mut Args) -> Result<usize> {
    let timer = process::current().process.timers.posix.get(args.int(0))?;
    write_setting(args.a[1], timer.get())?;
    Ok(0)
}

fn timer_getoverrun(args: &mut Args) -> Result<usize> {
    Ok(process::current().process.timers.posix.get(args.int(0))?.overrun() as usize)
}

fn timer_delete(args: &mut Args) -> Result<usize> {
    process::current().process.timers.posix.delete(args.int(0)).map(|()| 0)
}

/// Words of `struct timex`.
const TIMEX_WORDS: usize = 26;

fn adjust(address: usize) -> Result<usize> {
    const TIME_ERROR: usize = 5;
    const STA_UNSYNC: u64 = 0x40;
    let mut timex: [u64; TIMEX_WORDS] = read_user(address)?;
    let modes = timex[0] as u32;
    // What adjtime(3) has left to do, for everybody who asks: nothing.
    const ADJ_OFFSET_SS_READ: u32 = 0xa001;
    if modes != 0 && modes != ADJ_OFFSET_SS_READ {
        process::current().credentials().require(CAP_SYS_TIME)?;
        // There is no loop that steers the clock: it cannot be adjusted, only set.
        return Err(Errno::EOPNOTSUPP);
    }
    let now = time::realtime_now();
    timex[1] = 0; // offset
    timex[2] = 0; // frequency
    timex[3] = 16_000_000; // largest error, microseconds
    timex[4] = 16_000_000; // estimated error
    timex[5] = STA_UNSYNC;
    timex[6] = 2; // time constant
    timex[7] = 1; // precision, microseconds
    timex[8] = 32_768_000; // tolerance
    timex[9] = now / SECOND;
    timex[10] = now % SECOND / 1000;
    timex[11] = 10_000; // microseconds between ticks of the classical clock
    write_user(address, &timex)?;
    Ok(TIME_ERROR)
}

fn adjtimex(args: &mut Args) -> Result<usize> {
    adjust(args.a[0])
}

fn clock_adjtime(args: &mut Args) -> Result<usize> {
    match ClockId::from_number(args.int(0))? {
        ClockId::Realtime => adjust(args.a[1]),
        _ => Err(Errno::EOPNOTSUPP),
    }
}
