//! Pipes, readiness, and descriptors for events.

use alloc::sync::Arc;
use alloc::vec::Vec;

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::fs::epoll::{Change, Epoll};
use crate::fs::signalfd::SignalFd;
use crate::fs::timerfd::{Setting, TimerFd};
use crate::fs::watch::in_turns;
use crate::fs::{Events, File, caller, epoll, eventfd, pipe, signalfd, timerfd, watch};
use crate::memory::fallible::{self, TryVec};
use crate::mm::uaccess::{self, read_user, write_user};
use crate::process;
use crate::signal::SigSet;
use crate::time::{self, clock::Timespec};

/// This room's part of the table.
pub const TABLE: &[(Sysno, Handler)] = &[
    (Sysno::pipe, pipe_old),
    (Sysno::pipe2, pipe2),
    (Sysno::eventfd, eventfd_old),
    (Sysno::eventfd2, eventfd2),
    (Sysno::signalfd, signalfd_old),
    (Sysno::signalfd4, signalfd4),
    (Sysno::timerfd_create, timerfd_create),
    (Sysno::timerfd_settime, timerfd_settime),
    (Sysno::timerfd_gettime, timerfd_gettime),
    (Sysno::epoll_create, epoll_create),
    (Sysno::epoll_create1, epoll_create1),
    (Sysno::epoll_ctl, epoll_ctl),
    (Sysno::epoll_wait, epoll_wait),
    (Sysno::epoll_pwait, epoll_pwait),
    (Sysno::epoll_pwait2, epoll_pwait2),
    (Sysno::poll, poll),
    (Sysno::ppoll, ppoll),
    (Sysno::select, select),
    (Sysno::pselect6, pselect6),
];

fn install(file: Arc<File>, flags: u32) -> Result<usize> {
    let close = flags & abi::O_CLOEXEC != 0;
    let fd = caller::files().install(file, 0, caller::descriptor_limit(), close)?;
    Ok(fd as usize)
}

fn pipe_old(args: &mut Args) -> Result<usize> {
    make_pipe(args.a[0], 0)
}

fn pipe2(args: &mut Args) -> Result<usize> {
    make_pipe(args.a[0], args.uint(1))
}

fn make_pipe(address: usize, flags: u32) -> Result<usize> {
    if flags & !(abi::O_CLOEXEC | abi::O_NONBLOCK | abi::O_DIRECT) != 0 {
        return Err(Errno::EINVAL);
    }
    let (read, write) = pipe::create(flags)?;
    let reader = install(read, flags)? as i32;
    let result = install(write, flags).and_then(|writer| {
        let pair = [reader, writer as i32];
        write_user(address, &pair).inspect_err(|_| {
            // A descriptor that another thread has closed already is none of ours any more.
            let _ = caller::files().close(pair[1]);
        })
    });
    if let Err(error) = result {
        // As above.
        let _ = caller::files().close(reader);
        return Err(error);
    }
    Ok(0)
}

fn eventfd_old(args: &mut Args) -> Result<usize> {
    install(eventfd::create(args.uint(0), 0), 0)
}

fn eventfd2(args: &mut Args) -> Result<usize> {
    let flags = args.uint(1);
    if flags & !(abi::EFD_SEMAPHORE | abi::O_CLOEXEC | abi::O_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    install(eventfd::create(args.uint(0), flags), flags)
}

fn signalfd_old(args: &mut Args) -> Result<usize> {
    set_signalfd(args.int(0), args.a[1], args.a[2], 0)
}

fn signalfd4(args: &mut Args) -> Result<usize> {
    set_signalfd(args.int(0), args.a[1], args.a[2], args.uint(3))
}

fn set_signalfd(fd: i32, address: usize, size: usize, flags: u32) -> Result<usize> {
    if size != size_of::<SigSet>() || flags & !(abi::O_CLOEXEC | abi::O_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    let mask = SigSet(read_user(address)?);
    if fd == -1 {
        return install(signalfd::create(mask, flags), flags);
    }
    let file = caller::files().get(fd)?;
    file.ops_as::<SignalFd>().ok_or(Errno::EINVAL)?.set_mask(mask);
    Ok(fd as usize)
}

fn timerfd_create(args: &mut Args) -> Result<usize> {
    let (clock, flags) = (args.int(0), args.uint(1));
    if flags & !(abi::O_CLOEXEC | abi::O_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    match clock as u32 {
        abi::CLOCK_REALTIME | abi::CLOCK_MONOTONIC | abi::CLOCK_BOOTTIME => {}
        abi::CLOCK_REALTIME_ALARM | abi::CLOCK_BOOTTIME_ALARM => {
            if !process::current().credentials().capable(abi::CAP_WAKE_ALARM) {
                return Err(Errno::EPERM);
            }
        }
        _ => return Err(Errno::EINVAL),
    }
    install(timerfd::create(clock, flags), flags)
}

/// `struct itimerspec`: interval, value.
fn read_setting(address: usize) -> Result<Setting> {
    let [interval, value]: [Timespec; 2] = read_user(address)?;
    Ok(Setting { value: value.to_ns()?, interval: interval.to_ns()? })
}

fn write_setting(address: usize, setting: Setting) -> Result<()> {
    write_user(address, &[Timespec::from_ns(setting.interval), Timespec::from_ns(setting.value)])
}

fn timerfd_settime(args: &mut Args) -> Result<usize> {
    let flags = args.uint(1);
    if flags & !(abi::TFD_TIMER_ABSTIME | abi::TFD_TIMER_CANCEL_ON_SET) != 0 {
        return Err(Errno::EINVAL);
    }
    let new = read_setting(args.a[2])?;
    let file = caller::files().get(args.int(0))?;
    let old = file.ops_as::<TimerFd>().ok_or(Errno::EINVAL)?.set(new, flags)?;
    if args.a[3] != 0 {
        write_setting(args.a[3], old)?;
    }
    Ok(0)
}

fn timerfd_gettime(args: &mut Args) -> Result<usize> {
    let file = caller::files().get(args.int(0))?;
    let setting = file.ops_as::<TimerFd>().ok_or(Errno::EINVAL)?.get();
    write_setting(args.a[1], setting)?;
    Ok(0)
}

fn epoll_create(args: &mut Args) -> Result<usize> {
    if args.int(0) <= 0 {
        return Err(Errno::EINVAL);
    }
    install(epoll::create(), 0)
}

fn epoll_create1(args: &mut Args) -> Result<usize> {
    if args.uint(0) & !abi::O_CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    install(epoll::create(), args.uint(0))
}

/// `struct epoll_event`, which has no padding on this architecture.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct EpollEvent {
    events: u32,
    data: u64,
}

fn epoll_ctl(args: &mut Args) -> Result<usize> {
    let change = args.uint(1);
    let event =
        if change == abi::EPOLL_CTL_DEL { EpollEvent { events: 0, data: 0 } } else { read_user(args.a[3])? };
    let files = caller::files();
    let file = files.get(args.int(0))?;
    let target = files.get(args.int(2))?;
    let change = match change {
        abi::EPOLL_CTL_ADD => Change::Add,
        abi::EPOLL_CTL_MOD => Change::Modify,
        abi::EPOLL_CTL_DEL => Change::Delete,
        _ => return Err(Errno::EINVAL),
    };
    let epoll = file.ops_as::<Epoll>().ok_or(Errno::EINVAL)?;
    epoll.control(change, args.int(2), &target, event.events, event.data)?;
    Ok(0)
}

fn epoll_wait(args: &mut Args) -> Result<usize> {
    let deadline = deadline_ms(args.int(3));
    fetch_events(args, deadline, None)
}

fn epoll_pwait(args: &mut Args) -> Result<usize> {
    let mask = read_mask(args.a[4], args.a[5])?;
    let deadline = deadline_ms(args.int(3));
    fetch_events(args, deadline, mask)
}

fn epoll_pwait2(args: &mut Args) -> Result<usize> {
    let deadline = read_timeout(args.a[3])?;
    let mask = read_mask(args.a[4], args.a[5])?;
    fetch_events(args, deadline, mask)
}

fn fetch_events(args: &Args, deadline: Option<u64>, mask: Option<SigSet>) -> Result<usize> {
    let most = usize::try_from(args.int(2)).ok().filter(|m| *m > 0).ok_or(Errno::EINVAL)?;
    let size = size_of::<EpollEvent>();
    let bytes = most.checked_mul(size).filter(|b| *b <= i32::MAX as usize).ok_or(Errno::EINVAL)?;
    let address = args.a[1];
    uaccess::check_range(address, bytes)?;
    let file = caller::files().get(args.int(0))?;
    let epoll = file.ops_as::<Epoll>().ok_or(Errno::EINVAL)?;
    let mut count = 0;
    with_mask(mask, || {
        epoll.wait(most, deadline, |events, data| {
            write_user(address + count * size, &EpollEvent { events, data })?;
            count += 1;
            Ok(())
        })
    })
}

/// Monotonic nanoseconds at which a timeout in milliseconds ends; `None` for a negative one, 0 for none at all.
fn deadline_ms(timeout: i32) -> Option<u64> {
    match timeout {
        0 => Some(0),
        ..0 => None,
        _ => Some(time::now().saturating_add(timeout as u64 * 1_000_000)),
    }
}

fn deadline_ns(timeout: u64) -> u64 {
    if timeout == 0 { 0 } else { time::now().saturating_add(timeout) }
}

pub(super) fn read_timeout(address: usize) -> Result<Option<u64>> {
    if address == 0 {
        return Ok(None);
    }
    let timeout: Timespec = read_user(address)?;
    Ok(Some(deadline_ns(timeout.to_ns()?)))
}

pub(super) fn read_mask(address: usize, size: usize) -> Result<Option<SigSet>> {
    if address == 0 {
        return Ok(None);
    }
    if size != size_of::<SigSet>() {
        return Err(Errno::EINVAL);
    }
    Ok(Some(SigSet(read_user(address)?)))
}

/// Runs a call with another signal mask. When a signal ends it, its handler still runs under that mask, and the old one comes back
/// after it.
pub(super) fn with_mask<T>(mask: Option<SigSet>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(mask) = mask else { return work() };
    let thread = process::current();
    thread.set_temporary_mask(mask);
    let result = work();
    match result {
        // Signals are delivered under the call's mask; that brings the old one back.
        Err(Errno::EINTR | Errno::ERESTARTNOHAND | Errno::ERESTART_RESTARTBLOCK) => {
            thread.due.set(process::Due::MASK);
        }
        _ => thread.restore_mask(),
    }
    result
}

/// `struct pollfd`.
#[repr(C)]
#[derive(Clone, Copy)]
struct PollFd {
    fd: i32,
    events: i16,
    revents: i16,
}

fn read_pollfds(address: usize, count: usize) -> Result<Vec<PollFd>> {
    if count > caller::descriptor_limit() {
        return Err(Errno::EINVAL);
    }
    uaccess::read_user_array(address, count)
}

/// Polls until something is ready; how many are.
fn poll_files(fds: &mut [PollFd], deadline: Option<u64>) -> Result<usize> {
    let table = caller::files();
    // In the order of descriptors, each once.
    let mut numbers = fallible::collect(in_turns(&*fds).map(|entry| entry.fd).filter(|fd| *fd >= 0))?;
    numbers.sort_unstable();
    numbers.dedup();
    let mut files = fallible::with_capacity(numbers.len())?;
    files.extend(in_turns(&numbers).filter_map(|fd| Some((*fd, table.get(*fd).ok()?))));
    let file_of = |fd: i32| files.binary_search_by_key(&fd, |(fd, _)| *fd).ok().map(|at| &files[at].1);
    let held = size_of_val(&*fds) + size_of_val(&*numbers) + size_of_val(&*files);
    watch::wait(
        deadline,
        held,
        || fallible::collect(in_turns(&files).map(|(_, file)| file.clone())),
        || {
            let mut ready = 0;
            for entry in in_turns(fds.iter_mut()) {
                let events = match file_of(entry.fd) {
                    _ if entry.fd < 0 => Events::empty(),
                    None => Events::NVAL,
                    Some(file) => {
                        let wanted = Events::from_bits_retain(u32::from(entry.events as u16));
                        file.poll() & (wanted | Events::UNCONDITIONAL)
                    }
                };
                entry.revents = events.bits() as i16;
                ready += usize::from(!events.is_empty());
            }
            ready
        },
    )
}

fn write_revents(address: usize, fds: &[PollFd]) -> Result<()> {
    for (i, entry) in in_turns(fds).enumerate() {
        // Only the result goes out: the rest is the caller's, and another thread may be changing it.
        write_user(address + i * size_of::<PollFd>() + 6, &entry.revents)?;
    }
    Ok(())
}

fn poll(args: &mut Args) -> Result<usize> {
    let (address, count) = (args.a[0], args.uint(1) as usize);
    poll_until(address, count, deadline_ms(args.int(2)))
}

fn poll_until(address: usize, count: usize, deadline: Option<u64>) -> Result<usize> {
    let mut fds = read_pollfds(address, count)?;
    match poll_files(&mut fds, deadline) {
        Ok(ready) => {
            write_revents(address, &fds)?;
            Ok(ready)
        }
        Err(error) if error != Errno::ERESTARTSYS => Err(error),
        Err(_) => {
            // If no handler runs it goes on, and ends when it would have ended.
            process::current().set_restart(move |_| poll_until(address, count, deadline));
            Err(Errno::ERESTART_RESTARTBLOCK)
        }
    }
}

fn ppoll(args: &mut Args) -> Result<usize> {
    let (address, count) = (args.a[0], args.uint(1) as usize);
    let deadline = read_timeout(args.a[2])?;
    let mask = read_mask(args.a[3], args.a[4])?;
    let result = with_mask(mask, || {
        let mut fds = read_pollfds(address, count)?;
        let ready = poll_files(&mut fds, deadline).map_err(not_restarted)?;
        write_revents(address, &fds)?;
        Ok(ready)
    });
    let left = |ns: u64| Timespec::from_ns(ns);
    finish_timeout(result, deadline, |ns| match args.a[2] {
        0 => Ok(()),
        address => write_user(address, &left(ns)),
    })
}

/// A signal ends these calls for good if it has a handler.
fn not_restarted(error: Errno) -> Errno {
    if error == Errno::ERESTARTSYS { Errno::ERESTARTNOHAND } else { error }
}

/// Writes back what is left of a timeout. When that fails the call cannot be restarted: it would wait too long.
fn finish_timeout(
    result: Result<usize>,
    deadline: Option<u64>,
    write: impl FnOnce(u64) -> Result<()>,
) -> Result<usize> {
    let Some(deadline) = deadline else { return result };
    let left = deadline.saturating_sub(time::now());
    if write(left).is_err() && result == Err(Errno::ERESTARTNOHAND) {
        return Err(Errno::EINTR);
    }
    result
}

/// The three sets of select(2), as words.
struct Sets {
    count: usize,
    addresses: [usize; 3],
    wanted: [Vec<u64>; 3],
}

/// What counts as readable, writable, exceptional.
const SELECT_EVENTS: [Events; 3] = [
    Events::READABLE.union(Events::RDBAND).union(Events::HUP).union(Events::ERR).union(Events::NVAL),
    Events::WRITABLE.union(Events::WRBAND).union(Events::ERR).union(Events::NVAL),
    Events::PRI.union(Events::NVAL),
];

impl Sets {
    fn read(count: i32, addresses: [usize; 3]) -> Result<Self> {
        let count = usize::try_from(count).map_err(|_| Errno::EINVAL)?;
        // Descriptors that no process of this table has had are not looked at, as in Linux.
        let count = count.min(caller::files().capacity().max(64));
        let words = count.div_ceil(64);
        let mut wanted = [Vec::new(), Vec::new(), Vec::new()];
        for (set, address) in wanted.iter_mut().zip(addresses) {
            *set = match address {
                0 => fallible::filled(0, words)?,
                _ => uaccess::read_user_array(address, words)?,
            };
            if count % 64 != 0
                && let Some(last) = set.last_mut()
            {
                *last &= (1 << (count % 64)) - 1;
            }
        }
        Ok(Self { count, addresses, wanted })
    }

    fn run(&self, deadline: Option<u64>) -> Result<usize> {
        let table = caller::files();
        let mut files = Vec::new();
        for fd in in_turns(0..self.count) {
            let asked = |set: &Vec<u64>| set[fd / 64] >> (fd % 64) & 1 != 0;
            let which: [bool; 3] = core::array::from_fn(|i| asked(&self.wanted[i]));
            if which.contains(&true) {
                files.try_push((fd, which, table.get(fd as i32)?))?;
            }
        }
        let mut found: [Vec<u64>; 3] = [Vec::new(), Vec::new(), Vec::new()];
        for (found, wanted) in found.iter_mut().zip(&self.wanted) {
            *found = fallible::filled(0, wanted.len())?;
        }
        let sets = 2 * self.wanted.iter().map(|set| size_of_val(&**set)).sum::<usize>();
        let ready = watch::wait(
            deadline,
            sets + size_of_val(&*files),
            || fallible::collect(in_turns(&files).map(|(_, _, file)| file.clone())),
            || {
                let mut ready = 0;
                for (fd, which, file) in in_turns(&files) {
                    let events = file.poll();
                    for i in 0..3 {
                        if which[i] && events.intersects(SELECT_EVENTS[i]) {
                            found[i][fd / 64] |= 1 << (fd % 64);
                            ready += 1;
                        }
                    }
                }
                ready
            },
        );
        let ready = ready.map_err(not_restarted)?;
        for (set, address) in found.iter().zip(self.addresses) {
            if address != 0 {
                for (i, word) in set.iter().enumerate() {
                    write_user::<u64>(address + 8 * i, word)?;
                }
            }
        }
        Ok(ready)
    }
}

fn select(args: &mut Args) -> Result<usize> {
    let address = args.a[4];
    let deadline = if address == 0 {
        None
    } else {
        let [seconds, microseconds]: [i64; 2] = read_user(address)?;
        let seconds = u64::try_from(seconds).map_err(|_| Errno::EINVAL)?;
        let microseconds = u64::try_from(microseconds).map_err(|_| Errno::EINVAL)?;
        let ns = seconds.saturating_mul(time::SECOND).saturating_add(microseconds.saturating_mul(1000));
        Some(deadline_ns(ns))
    };
    let result = Sets::read(args.int(0), [args.a[1], args.a[2], args.a[3]]).and_then(|s| s.run(deadline));
    finish_timeout(result, deadline, |ns| match address {
        0 => Ok(()),
        address => write_user(address, &[ns / time::SECOND, ns % time::SECOND / 1000]),
    })
}

fn pselect6(args: &mut Args) -> Result<usize> {
    let deadline = read_timeout(args.a[4])?;
    let mask = match args.a[5] {
        0 => None,
        pair => {
            let [address, size]: [usize; 2] = read_user(pair)?;
            read_mask(address, size)?
        }
    };
    let result =
        with_mask(mask, || Sets::read(args.int(0), [args.a[1], args.a[2], args.a[3]])?.run(deadline));
    finish_timeout(result, deadline, |ns| match args.a[4] {
        0 => Ok(()),
        address => write_user(address, &Timespec::from_ns(ns)),
    })
}
