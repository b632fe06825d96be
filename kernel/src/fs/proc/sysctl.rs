//! `/proc/sys`: settings of the kernel as files.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::fmt::Display;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::errno::{Errno, Result};
use crate::fs::pseudo::Functions;
use crate::fs::{aio, lease, mount, pipe};
use crate::mm::{accounting, broken, exec, shm, userfault};
use crate::namespaces::UtsNamespace;
use crate::namespaces::user::OVERFLOW_ID;
use crate::net::unix;
use crate::process::{self, limits};
use crate::sync::Once;

/// Registers the setting `path` (below `/proc/sys`, as in `vm/nr_hugepages`). `read` gives the text without the end of line; `write`
/// gets what was written, without white space around it.
pub fn register(
    path: &str,
    read: impl Fn() -> Result<String> + Send + Sync + 'static,
    write: impl Fn(&str) -> Result<()> + Send + Sync + 'static,
) -> Result<()> {
    add(path, 0o644, read, write)
}

/// Registers a setting that cannot be changed.
pub fn register_read_only(
    path: &str,
    read: impl Fn() -> Result<String> + Send + Sync + 'static,
) -> Result<()> {
    add(path, 0o444, read, |_| Err(Errno::EPERM))
}

fn add(
    path: &str,
    permissions: u32,
    read: impl Fn() -> Result<String> + Send + Sync + 'static,
    write: impl Fn(&str) -> Result<()> + Send + Sync + 'static,
) -> Result<()> {
    let show = move || {
        let mut text = read()?;
        text.push('\n');
        Ok(text)
    };
    let store = move |text: &str| write(text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\0'));
    super::tree().register(&alloc::format!("sys/{path}"), permissions, Arc::new(Functions { show, store }))
}

/// A number as the kernel's settings are written: decimal, or with `0x` or `0` in front. `EINVAL`.
pub fn parse<T: TryFrom<u64>>(text: &str) -> Result<T> {
    // Several numbers may be given; the first counts.
    parse_numbers(text).next().ok_or(Errno::EINVAL)?
}

/// The numbers of a setting that has several.
pub fn parse_numbers<T: TryFrom<u64>>(text: &str) -> impl Iterator<Item = Result<T>> {
    text.split_ascii_whitespace().map(parse_word)
}

fn parse_word<T: TryFrom<u64>>(word: &str) -> Result<T> {
    let number = if let Some(hex) = word.strip_prefix("0x") {
        u64::from_str_radix(hex, 16)
    } else if let Some(octal) = word.strip_prefix('0').filter(|rest| !rest.is_empty()) {
        u64::from_str_radix(octal, 8)
    } else {
        word.parse()
    };
    T::try_from(number.map_err(|_| Errno::EINVAL)?).map_err(|_| Errno::EINVAL)
}

fn text(value: impl Display) -> Result<String> {
    Ok(value.to_string())
}

/// A number that is kept here because nothing but its readers looks at it.
fn register_number(path: &str, initial: u64, range: core::ops::RangeInclusive<u64>) -> Result<()> {
    let value = Arc::new(AtomicU64::new(initial));
    let stored = value.clone();
    register(
        path,
        move || text(value.load(Ordering::SeqCst)),
        move |new| {
            let new: u64 = parse(new)?;
            if !range.contains(&new) {
                return Err(Errno::EINVAL);
            }
            stored.store(new, Ordering::SeqCst);
            Ok(())
        },
    )
}

/// A number that others keep, from 0 to the largest `int`.
fn register_kept(path: &str, value: &'static AtomicUsize) -> Result<()> {
    // Relaxed, both: settings of their own.
    register(
        path,
        || text(value.load(Ordering::Relaxed)),
        |new| {
            let new: u32 = parse(new)?;
            let new = i32::try_from(new).map_err(|_| Errno::EINVAL)?;
            value.store(new as usize, Ordering::Relaxed);
            Ok(())
        },
    )
}

/// A random UUID, version 4.
fn uuid() -> String {
    let mut b = [0u8; 16];
    crate::random::fill(&mut b);
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    let n = u128::from_be_bytes(b);
    let part = |shift: u32, digits: u32| n >> shift & ((1 << (digits * 4)) - 1);
    alloc::format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        part(96, 8),
        part(80, 4),
        part(64, 4),
        part(48, 4),
        part(0, 12)
    )
}

/// The settings that belong to no other room.
pub fn init() -> Result<()> {
    kernel()?;
    memory()?;
    files()?;
    crate::namespaces::register()?;
    register("net/core/somaxconn", || text(unix::max_backlog()), |new| unix::set_max_backlog(parse(new)?))
}

/// Sets one of the names of the writer's UTS namespace.
fn set_name(set: fn(&UtsNamespace, &[u8]), name: &[u8]) -> Result<()> {
    let namespace = UtsNamespace::current();
    namespace.check_may_change()?;
    set(&namespace, name);
    Ok(())
}

fn kernel() -> Result<()> {
    use crate::syscall::system;
    register_read_only("kernel/seccomp/actions_avail", || text(crate::seccomp::ACTIONS))?;
    register_read_only("kernel/ostype", || text("Linux"))?;
    register_read_only("kernel/osrelease", || text(system::RELEASE))?;
    register_read_only("kernel/version", || text(system::VERSION))?;
    register(
        "kernel/hostname",
        || text(UtsNamespace::current().hostname()),
        |name| set_name(UtsNamespace::set_hostname, name.as_bytes()),
    )?;
    register(
        "kernel/domainname",
        || text(UtsNamespace::current().domainname()),
        |name| set_name(UtsNamespace::set_domainname, name.as_bytes()),
    )?;
    register_read_only("kernel/pid_max", || text(process::PID_MAX))?;
    register(
        "kernel/threads-max",
        || text(process::max_threads()),
        |new| {
            process::set_max_threads(parse(new)?);
            Ok(())
        },
    )?;
    register_read_only("kernel/ngroups_max", || text(65536))?;
    register_read_only("kernel/cap_last_cap", || text(process::LAST_CAPABILITY))?;
    register(
        "kernel/randomize_va_space",
        || text(exec::randomize_va_space()),
        |new| match parse(new)? {
            level @ 0..=2 => {
                exec::set_randomize_va_space(level);
                Ok(())
            }
            _ => Err(Errno::EINVAL),
        },
    )?;
    register_read_only("kernel/tainted", || text(0))?;
    register_read_only("kernel/random/boot_id", || {
        static BOOT_ID: Once<String> = Once::new();
        Ok(BOOT_ID.call_once(uuid).clone())
    })?;
    register_read_only("kernel/random/uuid", || Ok(uuid()))?;
    register_read_only("kernel/random/entropy_avail", || text(256))?;
    register_read_only("kernel/random/poolsize", || text(256))?;
    register(
        "kernel/shmmax",
        || text(shm::shmmax()),
        |new| {
            shm::set_shmmax(parse(new)?);
            Ok(())
        },
    )?;
    register(
        "kernel/shmall",
        || text(shm::shmall()),
        |new| {
            shm::set_shmall(parse(new)?);
            Ok(())
        },
    )?;
    register("kernel/shmmni", || text(shm::shmmni()), |new| shm::set_shmmni(parse(new)?))?;
    register_number("kernel/panic", 0, 0..=u64::MAX)?;
    register_number("kernel/kptr_restrict", 0, 0..=2)?;
    register_number("kernel/dmesg_restrict", 0, 0..=1)?;
    register_number("kernel/perf_event_paranoid", 2, 0..=4)?;
    register_number("kernel/sched_rt_runtime_us", 950_000, 0..=1_000_000)?;
    register("kernel/core_pattern", || text("core"), |_| Ok(()))
}

/// A setting that is on or off.
fn register_switch(name: &str, switch: &'static AtomicBool) -> Result<()> {
    register(
        name,
        // Relaxed, both: a setting of its own.
        move || text(u8::from(switch.load(Ordering::Relaxed))),
        move |new| match parse(new)? {
            value @ 0..=1u8 => {
                switch.store(value == 1, Ordering::Relaxed);
                Ok(())
            }
            _ => Err(Errno::EINVAL),
        },
    )
}

fn memory() -> Result<()> {
    // Nothing is compacted, so nothing is kept from it.
    register_number("vm/compact_unevictable_allowed", 1, 0..=1)?;
    register_switch("vm/unprivileged_userfaultfd", &userfault::UNPRIVILEGED)?;
    register_switch("vm/enable_soft_offline", &broken::SOFT_OFFLINE)?;
    register(
        "vm/overcommit_memory",
        || text(accounting::overcommit_memory()),
        |new| accounting::set_overcommit_memory(parse(new)?),
    )?;
    register(
        "vm/overcommit_ratio",
        || text(accounting::overcommit_ratio()),
        |new| {
            accounting::set_overcommit_ratio(parse(new)?);
            Ok(())
        },
    )?;
    register(
        "vm/max_map_count",
        || text(accounting::max_map_count()),
        |new| {
            accounting::set_max_map_count(parse(new)?);
            Ok(())
        },
    )?;
    // There is no cache of a disk to drop, and memory is compacted where it is needed: both accept what Linux accepts.
    register_number("vm/drop_caches", 0, 1..=4)?;
    add(
        "vm/compact_memory",
        0o200,
        || text(0),
        |new| match parse(new)? {
            1u64 => Ok(()),
            _ => Err(Errno::EINVAL),
        },
    )?;
    let minimum = || (crate::memory::minimum() * crate::memory::PAGE_SIZE as u64) >> 10;
    register_read_only("vm/min_free_kbytes", move || text(minimum()))?;
    register_number("vm/zone_reclaim_mode", 0, 0..=7)?;
    register_number("vm/swappiness", 60, 0..=200)?;
    register_number("vm/panic_on_oom", 0, 0..=2)?;
    register_number("vm/oom_kill_allocating_task", 0, 0..=1)?;
    register_number("vm/mmap_min_addr", 65536, 0..=u64::MAX)
}

fn files() -> Result<()> {
    register_kept("fs/aio-max-nr", &aio::MOST)?;
    register_read_only("fs/aio-nr", || text(aio::COUNT.load(Ordering::SeqCst)))?;
    register_number("fs/file-max", i64::MAX as u64, 0..=i64::MAX as u64)?;
    register_read_only("fs/file-nr", || {
        Ok(alloc::format!("{}\t0\t{}", crate::fs::file::open_count(), i64::MAX))
    })?;
    register(
        "fs/nr_open",
        || text(limits::nr_open()),
        |new| {
            // Linux takes a thousand million; a table of so many places is nothing that one may ask for here.
            let new: usize = parse(new)?;
            if !(64..=1 << 22).contains(&new) {
                return Err(Errno::EINVAL);
            }
            // Relaxed: a setting of its own.
            limits::NR_OPEN.store(new, Ordering::Relaxed);
            Ok(())
        },
    )?;
    register("fs/pipe-max-size", || text(pipe::max_size()), |new| pipe::set_max_size(parse(new)?))?;
    register_kept("fs/pipe-user-pages-hard", &pipe::HARD_PAGES)?;
    register_kept("fs/pipe-user-pages-soft", &pipe::SOFT_PAGES)?;
    use crate::fs::inotify;
    register_kept("fs/inotify/max_user_instances", &inotify::MAX_INSTANCES)?;
    register_kept("fs/inotify/max_queued_events", &inotify::MAX_EVENTS)?;
    register(
        "fs/inotify/max_user_watches",
        || text(inotify::max_watches()),
        |new| {
            inotify::MAX_WATCHES.store(parse(new)?, Ordering::Relaxed);
            Ok(())
        },
    )?;
    use crate::fs::epoll;
    register(
        "fs/epoll/max_user_watches",
        || text(epoll::max_watches()),
        |new| {
            epoll::MAX_WATCHES.store(parse(new)?, Ordering::Relaxed);
            Ok(())
        },
    )?;
    register_kept("fs/lease-break-time", &lease::BREAK_TIME)?;
    register_kept("fs/mount-max", &mount::MOST_MOUNTS)?;
    register_kept("fs/leases-enable", &lease::ENABLED)?;
    register_read_only("kernel/overflowuid", || text(OVERFLOW_ID))?;
    register_read_only("kernel/overflowgid", || text(OVERFLOW_ID))?;
    register_read_only("fs/overflowuid", || text(65534))?;
    register_read_only("fs/overflowgid", || text(65534))
}
