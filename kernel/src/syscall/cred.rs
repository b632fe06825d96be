//! System calls: users, groups, capabilities, prctl.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use linux_raw_sys::prctl as pr;
use syscalls::Sysno;

use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::mm::uaccess::{copy_to_user, read_user, read_user_array, write_user};
use crate::namespaces::user::groups_to_kernel;
use crate::process::{
    self, CAP_SETGID, CAP_SETPCAP, Credentials, LAST_CAPABILITY, securebits, user_dispatch,
};
use crate::sched;
use crate::signal;

pub const TABLE: &[(Sysno, Handler)] = &[
    (Sysno::getuid, getuid),
    (Sysno::geteuid, geteuid),
    (Sysno::getgid, getgid),
    (Sysno::getegid, getegid),
    (Sysno::getresuid, getresuid),
    (Sysno::getresgid, getresgid),
    (Sysno::getgroups, getgroups),
    (Sysno::setuid, setuid),
    (Sysno::setgid, setgid),
    (Sysno::setreuid, setreuid),
    (Sysno::setregid, setregid),
    (Sysno::setresuid, setresuid),
    (Sysno::setresgid, setresgid),
    (Sysno::setfsuid, setfsuid),
    (Sysno::setfsgid, setfsgid),
    (Sysno::setgroups, setgroups),
    (Sysno::capget, capget),
    (Sysno::capset, capset),
    (Sysno::prctl, prctl),
];

fn credentials() -> Arc<Credentials> {
    process::current().credentials()
}

fn getuid(_: &mut Args) -> Result<usize> {
    let own = credentials();
    Ok(own.shown_uid(own.uid) as usize)
}

fn geteuid(_: &mut Args) -> Result<usize> {
    let own = credentials();
    Ok(own.shown_uid(own.euid) as usize)
}

fn getgid(_: &mut Args) -> Result<usize> {
    let own = credentials();
    Ok(own.shown_gid(own.gid) as usize)
}

fn getegid(_: &mut Args) -> Result<usize> {
    let own = credentials();
    Ok(own.shown_gid(own.egid) as usize)
}

fn getresuid(args: &mut Args) -> Result<usize> {
    let own = credentials();
    for (at, id) in args.a.iter().zip([own.uid, own.euid, own.suid]) {
        write_user(*at, &own.shown_uid(id))?;
    }
    Ok(0)
}

fn getresgid(args: &mut Args) -> Result<usize> {
    let own = credentials();
    for (at, id) in args.a.iter().zip([own.gid, own.egid, own.sgid]) {
        write_user(*at, &own.shown_gid(id))?;
    }
    Ok(0)
}

fn getgroups(args: &mut Args) -> Result<usize> {
    let own = credentials();
    let room = args.int(0);
    if room < 0 {
        return Err(Errno::EINVAL);
    }
    if room != 0 {
        if (room as usize) < own.groups.len() {
            return Err(Errno::EINVAL);
        }
        const BATCH: usize = 256;
        for (index, gids) in own.groups.chunks(BATCH).enumerate() {
            let mut shown = [0u8; 4 * BATCH];
            for (to, gid) in shown.chunks_exact_mut(4).zip(gids) {
                to.copy_from_slice(&own.shown_gid(*gid).to_ne_bytes());
            }
            copy_to_user(args.a[1] + index * shown.len(), &shown[..4 * gids.len()])?;
            sched::cond_resched();
        }
    }
    Ok(own.groups.len())
}

/// Makes new credentials out of the present ones.
fn change(change: impl FnOnce(&mut Credentials) -> Result<()>) -> Result<usize> {
    let thread = process::current();
    let old = thread.credentials();
    let mut new = (*old).clone();
    change(&mut new)?;
    let (ids_changed, user_changed) = (
        (old.euid, old.egid, old.fsuid, old.fsgid) != (new.euid, new.egid, new.fsuid, new.fsgid),
        old.uid != new.uid,
    );
    if ids_changed {
        // What ran with other rights must not be looked into with these. Race: who looks at the credentials and then at this, on
        // another CPU, must not meet the new ones before it.
        thread.process.dumpable.store(0, Ordering::SeqCst);
        thread.parent_death_signal.store(0, Ordering::SeqCst);
    }
    thread.set_credentials(new);
    if user_changed {
        thread.recharge();
    }
    Ok(0)
}

/// A user that a call is given, by the kernel's number: -1 stays; `EINVAL` for one that the thread's namespace does not have.
fn uid(own: &Credentials, args: &Args, at: usize) -> Result<u32> {
    match args.uint(at) {
        u32::MAX => Ok(u32::MAX),
        uid => own.kernel_uid(uid).ok_or(Errno::EINVAL),
    }
}

/// As `uid`, of a group.
fn gid(own: &Credentials, args: &Args, at: usize) -> Result<u32> {
    match args.uint(at) {
        u32::MAX => Ok(u32::MAX),
        gid => own.kernel_gid(gid).ok_or(Errno::EINVAL),
    }
}

fn setuid(args: &mut Args) -> Result<usize> {
    change(|new| new.set_uid(uid(new, args, 0)?))
}

fn setgid(args: &mut Args) -> Result<usize> {
    change(|new| new.set_gid(gid(new, args, 0)?))
}

fn setreuid(args: &mut Args) -> Result<usize> {
    change(|new| new.set_reuid(uid(new, args, 0)?, uid(new, args, 1)?))
}

fn setregid(args: &mut Args) -> Result<usize> {
    change(|new| new.set_regid(gid(new, args, 0)?, gid(new, args, 1)?))
}

/// Whether these are what the caller is already, or stay. Then it is nobody new, and what it has opened is its own as before.
fn are_same(wanted: [u32; 3], present: [u32; 3]) -> bool {
    wanted.iter().zip(present).all(|(wanted, present)| *wanted == u32::MAX || *wanted == present)
}

fn setresuid(args: &mut Args) -> Result<usize> {
    let own = credentials();
    let [ruid, euid, suid] = [uid(&own, args, 0)?, uid(&own, args, 1)?, uid(&own, args, 2)?];
    // The user of file accesses follows the effective one, but where that is not named.
    let follows = euid == u32::MAX || own.fsuid == own.euid;
    if follows && are_same([ruid, euid, suid], [own.uid, own.euid, own.suid]) {
        return Ok(0);
    }
    change(|new| new.set_resuid(ruid, euid, suid))
}

fn setresgid(args: &mut Args) -> Result<usize> {
    let own = credentials();
    let [rgid, egid, sgid] = [gid(&own, args, 0)?, gid(&own, args, 1)?, gid(&own, args, 2)?];
    let follows = egid == u32::MAX || own.fsgid == own.egid;
    if follows && are_same([rgid, egid, sgid], [own.gid, own.egid, own.sgid]) {
        return Ok(0);
    }
    change(|new| new.set_resgid(rgid, egid, sgid))
}

fn setfsuid(args: &mut Args) -> Result<usize> {
    let mut old = 0;
    change(|new| {
        // One without a number changes nothing.
        let wanted = uid(new, args, 0).unwrap_or(u32::MAX);
        old = new.set_fsuid(wanted);
        old = new.shown_uid(old);
        Ok(())
    })?;
    Ok(old as usize)
}

fn setfsgid(args: &mut Args) -> Result<usize> {
    let mut old = 0;
    change(|new| {
        let wanted = gid(new, args, 0).unwrap_or(u32::MAX);
        old = new.set_fsgid(wanted);
        old = new.shown_gid(old);
        Ok(())
    })?;
    Ok(old as usize)
}

fn setgroups(args: &mut Args) -> Result<usize> {
    const MOST: usize = 65536;
    let own = credentials();
    if !own.capable_here(CAP_SETGID) || !own.user_namespace().allows_setgroups() {
        return Err(Errno::EPERM);
    }
    let count = args.uint(0) as usize;
    if count > MOST {
        return Err(Errno::EINVAL);
    }
    let groups: Vec<u32> = read_user_array(args.a[1], count)?;
    let mut groups = groups_to_kernel(&own, &groups)?;
    groups.sort_unstable();
    // Not as one object with its count: 65,536 of them are more than an allocation that cannot fail may take.
    let groups = Arc::new(groups);
    change(|new| {
        new.groups = groups;
        Ok(())
    })
}

/// The versions of `struct __user_cap_header_struct`.
const VERSION_1: u32 = 0x1998_0330;
const VERSION_2: u32 = 0x2007_1026;
const VERSION_3: u32 = 0x2008_0522;

/// How many words the sets of a version have; the kernel's own version is written back for an unknown one.
fn words_of_version(header: usize) -> Result<Option<usize>> {
    match read_user::<u32>(header)? {
        VERSION_1 => Ok(Some(1)),
        VERSION_2 | VERSION_3 => Ok(Some(2)),
        _ => {
            write_user(header, &VERSION_3)?;
            Ok(None)
        }
    }
}

fn capget(args: &mut Args) -> Result<usize> {
    let words = words_of_version(args.a[0])?;
    if args.a[1] == 0 {
        // A question for the version only.
        return Ok(0);
    }
    let words = words.ok_or(Errno::EINVAL)?;
    let pid: i32 = read_user(args.a[0] + 4)?;
    let own = match pid {
        0 => credentials(),
        pid if pid < 0 => return Err(Errno::EINVAL),
        pid => process::find_thread(pid as u32).ok_or(Errno::ESRCH)?.credentials(),
    };
    for word in 0..words {
        let part = |set: u64| (set >> (word * 32)) as u32;
        write_user(
            args.a[1] + word * 12,
            &[part(own.effective), part(own.permitted), part(own.inheritable)],
        )?;
    }
    Ok(0)
}

fn capset(args: &mut Args) -> Result<usize> {
    let words = words_of_version(args.a[0])?.ok_or(Errno::EINVAL)?;
    let pid: i32 = read_user(args.a[0] + 4)?;
    if pid != 0 && pid != process::current().number() as i32 {
        return Err(Errno::EPERM);
    }
    let (mut effective, mut permitted, mut inheritable) = (0u64, 0u64, 0u64);
    for word in 0..words {
        let parts: [u32; 3] = read_user(args.a[1] + word * 12)?;
        effective |= u64::from(parts[0]) << (word * 32);
        permitted |= u64::from(parts[1]) << (word * 32);
        inheritable |= u64::from(parts[2]) << (word * 32);
    }
    let all = process::ALL_CAPABILITIES;
    (effective, permitted, inheritable) = (effective & all, permitted & all, inheritable & all);
    change(|new| {
        let may_inherit =
            new.inheritable | if new.capable_here(CAP_SETPCAP) { new.bounding } else { new.permitted };
        if inheritable & !may_inherit != 0
            || inheritable & !(new.inheritable | new.bounding) != 0
            || permitted & !new.permitted != 0
            || effective & !permitted != 0
        {
            return Err(Errno::EPERM);
        }
        (new.effective, new.permitted, new.inheritable) = (effective, permitted, inheritable);
        new.ambient &= permitted & inheritable;
        Ok(())
    })
}

fn prctl(args: &mut Args) -> Result<usize> {
    let thread = process::current();
    let process = &thread.process;
    let value = args.a[1];
    let rest_is_zero = args.a[2..5].iter().all(|value| *value == 0);
    match args.uint(0) {
        pr::PR_SET_NAME => {
            let mut name = [0u8; 16];
            for (index, byte) in name.iter_mut().enumerate().take(15) {
                *byte = read_user(value + index)?;
                if *byte == 0 {
                    break;
                }
            }
            thread.set_comm(&name);
        }
        pr::PR_GET_NAME => copy_to_user(value, &thread.comm())?,
        pr::PR_SET_PDEATHSIG => {
            let signal = signal::from_user(value)?;
            thread.parent_death_signal.store(signal.unwrap_or(0), Ordering::SeqCst);
        }
        pr::PR_GET_PDEATHSIG => write_user(value, &thread.parent_death_signal.load(Ordering::SeqCst))?,
        pr::PR_SET_DUMPABLE if value <= 1 => process.dumpable.store(value as u32, Ordering::SeqCst),
        pr::PR_SET_DUMPABLE => return Err(Errno::EINVAL),
        pr::PR_GET_DUMPABLE => return Ok(process.dumpable.load(Ordering::SeqCst) as usize),
        pr::PR_SET_KEEPCAPS if value <= 1 => {
            return change(|new| new.keep_capabilities(value == 1));
        }
        pr::PR_GET_KEEPCAPS => return Ok(usize::from(thread.credentials().is_secure(securebits::KEEP_CAPS))),
        pr::PR_SET_CHILD_SUBREAPER => process.set_subreaper(value != 0),
        pr::PR_GET_CHILD_SUBREAPER => write_user(value, &i32::from(process.is_subreaper()))?,
        pr::PR_SET_NO_NEW_PRIVS if value == 1 && rest_is_zero => {
            thread.no_new_privileges.store(true, Ordering::SeqCst);
        }
        pr::PR_GET_NO_NEW_PRIVS if value == 0 && rest_is_zero => {
            return Ok(usize::from(thread.no_new_privileges.load(Ordering::SeqCst)));
        }
        pr::PR_SET_TIMERSLACK => {
            let slack = if value == 0 { 50_000 } else { value as u64 };
            thread.timer_slack.store(slack, Ordering::SeqCst);
        }
        pr::PR_GET_TIMERSLACK => return Ok(thread.timer_slack.load(Ordering::SeqCst) as usize),
        pr::PR_CAPBSET_READ => {
            let bit = capability(value)?;
            return Ok(usize::from(thread.credentials().bounding & bit != 0));
        }
        pr::PR_CAPBSET_DROP => {
            let bit = capability(value)?;
            return change(|new| {
                require_here(new, CAP_SETPCAP)?;
                new.bounding &= !bit;
                Ok(())
            });
        }
        pr::PR_CAP_AMBIENT => return ambient(args),
        pr::PR_GET_SECUREBITS => return Ok(thread.credentials().securebits as usize),
        pr::PR_SET_SECUREBITS => return change(|new| new.set_securebits(value)),
        pr::PR_GET_TID_ADDRESS => write_user(value, &thread.clear_child_tid.load(Ordering::SeqCst))?,
        pr::PR_SET_SYSCALL_USER_DISPATCH => {
            let [_, mode, offset, len, selector, _] = args.a;
            thread.set_user_dispatch(&user_dispatch::Config { mode, selector, offset, len })?;
        }
        pr::PR_GET_SECCOMP => return Ok(thread.seccomp.mode() as usize),
        pr::PR_SET_SECCOMP => return super::seccomp::set_mode(value as u32, args.a[2]),
        pr::PR_GET_TSC => write_user(value, &(pr::PR_TSC_ENABLE as i32))?,
        pr::PR_SET_TSC if value as u32 == pr::PR_TSC_ENABLE => {}
        pr::PR_TASK_PERF_EVENTS_DISABLE | pr::PR_TASK_PERF_EVENTS_ENABLE => {}
        // There are no transparent huge pages, so turning them off is no change.
        pr::PR_SET_THP_DISABLE if rest_is_zero => {}
        pr::PR_GET_THP_DISABLE => return Ok(1),
        // What execution is refused to: bits that only come, and what of them a child does not get.
        pr::PR_SET_MDWE if rest_is_zero => {
            let (refuse, no_inherit) =
                (pr::PR_MDWE_REFUSE_EXEC_GAIN as usize, pr::PR_MDWE_NO_INHERIT as usize);
            if value & !(refuse | no_inherit) != 0 || value & refuse == 0 && value & no_inherit != 0 {
                return Err(Errno::EINVAL);
            }
            // Relaxed, both: a setting of its own.
            let old = process.refused_gains.load(Ordering::Relaxed) as usize;
            if old != 0 && old != value {
                return Err(Errno::EPERM);
            }
            process.refused_gains.store(value as u32, Ordering::Relaxed);
        }
        pr::PR_GET_MDWE if value == 0 && rest_is_zero => {
            return Ok(process.refused_gains.load(Ordering::Relaxed) as usize);
        }
        // Names of anonymous memory: kept by nobody, as on a Linux without that option.
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

/// `EPERM` unless the capability is in effect in the thread's own user namespace.
fn require_here(own: &Credentials, capability: u32) -> Result<()> {
    if own.capable_here(capability) { Ok(()) } else { Err(Errno::EPERM) }
}

fn capability(number: usize) -> Result<u64> {
    // Of all bits: a large number is none of a capability's.
    if number > LAST_CAPABILITY as usize { Err(Errno::EINVAL) } else { Ok(1 << number) }
}

fn ambient(args: &Args) -> Result<usize> {
    let command = args.uint(1);
    let superfluous = if command == pr::PR_CAP_AMBIENT_CLEAR_ALL { 2..5 } else { 3..5 };
    if args.a[superfluous].iter().any(|value| *value != 0) {
        return Err(Errno::EINVAL);
    }
    if command == pr::PR_CAP_AMBIENT_CLEAR_ALL {
        return change(|new| {
            new.ambient = 0;
            Ok(())
        });
    }
    let bit = capability(args.a[2])?;
    match command {
        pr::PR_CAP_AMBIENT_IS_SET => Ok(usize::from(credentials().ambient & bit != 0)),
        pr::PR_CAP_AMBIENT_LOWER => change(|new| {
            new.ambient &= !bit;
            Ok(())
        }),
        pr::PR_CAP_AMBIENT_RAISE => change(|new| {
            if new.permitted & new.inheritable & bit == 0 || new.is_secure(securebits::NO_CAP_AMBIENT_RAISE) {
                return Err(Errno::EPERM);
            }
            new.ambient |= bit;
            Ok(())
        }),
        _ => Err(Errno::EINVAL),
    }
}
