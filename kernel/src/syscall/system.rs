//! System calls: limits, usage, names, memory of the machine, randomness, restart.

use core::fmt::Write as _;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use alloc::string::String;
use alloc::vec::Vec;
use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::{Args, Handler};
use crate::arch::{cpu, power};
use crate::errno::{Errno, Result};
use crate::memory;
use crate::memory::fallible::Text;
use crate::mm::uaccess::{copy_from_user, copy_to_user, read_cstr, read_user, write_user};
use crate::namespaces::uts::{Names, padded};
use crate::namespaces::{self, UtsNamespace};
use crate::process::limits::{self, Limit};
use crate::process::{self, CAP_SYS_BOOT, CAP_SYS_RESOURCE, Process, Usage};
use crate::time::clock::Timeval;
use crate::time::{self, SECOND};

pub const TABLE: &[(Sysno, Handler)] = &[
    (Sysno::getrlimit, getrlimit),
    (Sysno::setrlimit, setrlimit),
    (Sysno::prlimit64, prlimit64),
    (Sysno::getrusage, getrusage),
    (Sysno::times, times),
    (Sysno::uname, uname),
    (Sysno::sethostname, sethostname),
    (Sysno::setdomainname, setdomainname),
    (Sysno::sysinfo, sysinfo),
    (Sysno::getrandom, getrandom),
    (Sysno::reboot, reboot),
    (Sysno::syslog, syslog),
];

fn getrlimit(args: &mut Args) -> Result<usize> {
    let limit = process::current().process.limits.lock().get(args.uint(0) as usize)?;
    write_user(args.a[1], &limit)?;
    Ok(0)
}

fn set_limit(process: &Process, resource: usize, new: Limit) -> Result<()> {
    let privileged = process::current().credentials().capable(CAP_SYS_RESOURCE);
    process.limits.lock().set(resource, new, privileged)?;
    if resource == limits::CPU {
        process.timers.limit_changed(new);
    }
    Ok(())
}

fn setrlimit(args: &mut Args) -> Result<usize> {
    let new: Limit = read_user(args.a[1])?;
    set_limit(&process::current().process, args.uint(0) as usize, new)?;
    Ok(0)
}

fn prlimit64(args: &mut Args) -> Result<usize> {
    let resource = args.uint(1) as usize;
    let current = process::current();
    let target = match args.int(0) {
        0 => current.process.clone(),
        pid => process::find_thread(pid as u32).ok_or(Errno::ESRCH)?.process.clone(),
    };
    if !alloc::sync::Arc::ptr_eq(&target, &current.process) {
        let (own, other) = (current.credentials(), target.credentials());
        let same = [other.euid, other.suid, other.uid].iter().all(|uid| *uid == own.uid)
            && [other.egid, other.sgid, other.gid].iter().all(|gid| *gid == own.gid);
        if !same && !own.capable_over(&other, CAP_SYS_RESOURCE) {
            return Err(Errno::EPERM);
        }
    }
    let new = if args.a[2] == 0 { None } else { Some(read_user::<Limit>(args.a[2])?) };
    let old = target.limits.lock().get(resource)?;
    if let Some(new) = new {
        set_limit(&target, resource, new)?;
    }
    if args.a[3] != 0 {
        write_user(args.a[3], &old)?;
    }
    Ok(0)
}

/// Writes a `struct rusage`.
pub(super) fn write_usage(at: usize, usage: &Usage) -> Result<()> {
    let mut words = [0i64; 18];
    let (user, system) = (Timeval::from_ns(usage.user), Timeval::from_ns(usage.system));
    (words[0], words[1]) = (user.seconds, user.microseconds);
    (words[2], words[3]) = (system.seconds, system.microseconds);
    words[4] = usage.max_rss as i64;
    words[8] = usage.minor_faults as i64;
    words[9] = usage.major_faults as i64;
    words[16] = usage.voluntary as i64;
    words[17] = usage.involuntary as i64;
    write_user(at, &words)
}

fn getrusage(args: &mut Args) -> Result<usize> {
    let thread = process::current();
    let usage = match args.int(0) {
        0 => Usage::of_process(&thread.process),
        -1 => Usage::of_children(&thread.process),
        1 => Usage::of_thread(&thread),
        _ => return Err(Errno::EINVAL),
    };
    write_usage(args.a[1], &usage)?;
    Ok(0)
}

fn times(args: &mut Args) -> Result<usize> {
    /// User space's clock ticks: 100 a second.
    const TICK: u64 = SECOND / 100;
    let process = &process::current().process;
    let (user, system) = process.cpu_times();
    let children = Usage::of_children(process);
    if args.a[0] != 0 {
        let words = [user, system, children.user, children.system].map(|time| time / TICK);
        write_user(args.a[0], &words)?;
    }
    Ok((time::now() / TICK) as usize)
}

/// The release that programs are told: the Linux whose interface this is.
pub const RELEASE: &str = "6.12.0-roundtable";
/// The version line of uname(2).
pub const VERSION: &str = "#1 SMP Roundtable";

fn uname(args: &mut Args) -> Result<usize> {
    let Names { host, domain } = UtsNamespace::current().names();
    let fields = [
        padded(b"Linux"),
        host,
        padded(RELEASE.as_bytes()),
        padded(VERSION.as_bytes()),
        padded(b"x86_64"),
        domain,
    ];
    copy_to_user(args.a[0], fields.as_flattened())?;
    Ok(0)
}

fn read_name(args: &Args) -> Result<([u8; 64], usize)> {
    UtsNamespace::current().check_may_change()?;
    let length = args.int(1);
    if !(0..=64).contains(&length) {
        return Err(Errno::EINVAL);
    }
    let mut name = [0; 64];
    copy_from_user(&mut name[..length as usize], args.a[0])?;
    Ok((name, length as usize))
}

fn sethostname(args: &mut Args) -> Result<usize> {
    let (name, length) = read_name(args)?;
    UtsNamespace::current().set_hostname(&name[..length]);
    Ok(0)
}

fn setdomainname(args: &mut Args) -> Result<usize> {
    let (name, length) = read_name(args)?;
    UtsNamespace::current().set_domainname(&name[..length]);
    Ok(0)
}

/// `struct sysinfo`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct SysInfo {
    uptime: i64,
    loads: [u64; 3],
    total_ram: u64,
    free_ram: u64,
    shared_ram: u64,
    buffer_ram: u64,
    total_swap: u64,
    free_swap: u64,
    processes: u16,
    pad: u16,
    pad_2: u32,
    total_high: u64,
    free_high: u64,
    unit: u32,
    pad_3: u32,
}

fn sysinfo(args: &mut Args) -> Result<usize> {
    const BOOTTIME: i32 = 7;
    let stats = memory::stats();
    let info = SysInfo {
        uptime: (time::now().saturating_add_signed(namespaces::time::offset(BOOTTIME)) / SECOND) as i64,
        loads: process::load_averages().map(|load| load << 5),
        total_ram: stats.total,
        free_ram: stats.free,
        processes: process::thread_count().min(usize::from(u16::MAX)) as u16,
        unit: 1,
        ..SysInfo::default()
    };
    write_user(args.a[0], &info)?;
    Ok(0)
}

fn getrandom(args: &mut Args) -> Result<usize> {
    let flags = args.uint(2);
    const KNOWN: u32 = abi::GRND_NONBLOCK | abi::GRND_RANDOM | abi::GRND_INSECURE;
    if flags & !KNOWN != 0
        || flags & (abi::GRND_RANDOM | abi::GRND_INSECURE) == abi::GRND_RANDOM | abi::GRND_INSECURE
    {
        return Err(Errno::EINVAL);
    }
    let length = args.a[1].min(i32::MAX as usize);
    let mut done = 0;
    let mut block = [0u8; 256];
    let mut numbers = crate::random::Stream::new();
    while done < length {
        let part = &mut block[..(length - done).min(256)];
        numbers.fill(part);
        if let Err(error) = copy_to_user(args.a[0] + done, part) {
            return if done == 0 { Err(error) } else { Ok(done) };
        }
        done += part.len();
        if done.is_multiple_of(1024) {
            crate::sched::cond_resched();
        }
        // As on Linux: less comes whole, whatever signals wait.
        if done.is_multiple_of(memory::PAGE_SIZE) && process::current().signal_pending() {
            break;
        }
    }
    Ok(done)
}

/// Whether Ctrl-Alt-Del restarts at once.
static CTRL_ALT_DEL: AtomicBool = AtomicBool::new(true);

fn reboot(args: &mut Args) -> Result<usize> {
    const MAGIC_1: u32 = 0xfee1_dead;
    const MAGIC_2: [u32; 4] = [672_274_793, 85_072_278, 369_367_448, 537_993_216];
    const RESTART: u32 = 0x0123_4567;
    const HALT: u32 = 0xcdef_0123;
    const CAD_ON: u32 = 0x89ab_cdef;
    const CAD_OFF: u32 = 0;
    const POWER_OFF: u32 = 0x4321_fedc;
    const RESTART_2: u32 = 0xa1b2_c3d4;
    process::current().credentials().require(CAP_SYS_BOOT)?;
    if args.uint(0) != MAGIC_1 || !MAGIC_2.contains(&args.uint(1)) {
        return Err(Errno::EINVAL);
    }
    match args.uint(2) {
        CAD_ON => CTRL_ALT_DEL.store(true, Ordering::SeqCst),
        CAD_OFF => CTRL_ALT_DEL.store(false, Ordering::SeqCst),
        RESTART | RESTART_2 => {
            if args.uint(2) == RESTART_2 {
                // A command for the firmware, of which only so much counts. This machine's has none to choose from.
                match read_cstr(args.a[3], 255, Errno::E2BIG) {
                    Ok(_) | Err(Errno::E2BIG) => {}
                    Err(error) => return Err(error),
                }
            }
            crate::tty::drain();
            log::info!("reboot: Restarting system");
            power::restart()
        }
        HALT => {
            crate::tty::drain();
            log::info!("reboot: System halted");
            power::halt()
        }
        POWER_OFF => {
            crate::tty::drain();
            log::info!("reboot: Power down");
            power::off()
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

fn syslog(args: &mut Args) -> Result<usize> {
    const READ_ALL: i32 = 3;
    const READ_CLEAR: i32 = 4;
    const CLEAR: i32 = 5;
    const CONSOLE_OFF: i32 = 6;
    const CONSOLE_ON: i32 = 7;
    const CONSOLE_LEVEL: i32 = 8;
    const SIZE_UNREAD: i32 = 9;
    const SIZE_BUFFER: i32 = 10;
    let command = args.int(0);
    // The log's size may be asked for by anybody, as on a Linux without dmesg_restrict.
    if !matches!(command, READ_ALL | SIZE_BUFFER) {
        process::current().credentials().require(process::CAP_SYSLOG)?;
    }
    match command {
        0 | 1 | CONSOLE_OFF | CONSOLE_ON => Ok(0),
        READ_ALL | READ_CLEAR => {
            if args.a[1] == 0 || args.int(2) < 0 {
                return Err(Errno::EINVAL);
            }
            let text = log_text()?;
            let length = text.len().min(args.a[2]);
            copy_to_user(args.a[1], &text[text.len() - length..])?;
            if command == READ_CLEAR {
                CLEARED.store(crate::log::bounds().1, Ordering::SeqCst);
            }
            Ok(length)
        }
        CLEAR => {
            CLEARED.store(crate::log::bounds().1, Ordering::SeqCst);
            Ok(0)
        }
        CONSOLE_LEVEL if !(1..=8).contains(&args.int(2)) => Err(Errno::EINVAL),
        CONSOLE_LEVEL => {
            crate::log::set_console_level(args.a[2] as u8);
            Ok(0)
        }
        SIZE_UNREAD => Ok(log_text()?.len()),
        SIZE_BUFFER => Ok(crate::log::RING_SIZE),
        _ => Err(Errno::EINVAL),
    }
}

/// The first record that syslog(2) shows: what was before has been cleared.
static CLEARED: AtomicU64 = AtomicU64::new(0);

/// The log as dmesg(1) has it: a line for each record, with its level and time.
fn log_text() -> Result<Vec<u8>> {
    let (first, end) = crate::log::bounds();
    let mut text = Text::new();
    for sequence in first.max(CLEARED.load(Ordering::SeqCst))..end {
        let Some(entry) = crate::log::read(sequence).filter(|entry| entry.sequence == sequence) else {
            continue;
        };
        let (seconds, micros) = (entry.time_ns / SECOND, entry.time_ns % SECOND / 1000);
        let _ = writeln!(text, "<{}>[{seconds:5}.{micros:06}] {}", entry.level, entry.text());
    }
    text.finish()
}

/// The line of /proc/version.
pub fn version_line() -> String {
    let mut line = String::new();
    let _ = write!(line, "Linux version {RELEASE} (rustc) {VERSION}, {} CPUs", cpu::count());
    line
}
