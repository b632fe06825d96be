//! System calls about memory nodes: policies, and where pages are. There is one node.

use core::ops::Range;

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::mm::{memory_of, space};
use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::mm::PAGE;
use crate::mm::policy::{self, Policy};
use crate::mm::uaccess::{self, read_user, read_user_array, write_user};
use crate::{process, sched};

pub const TABLE: &[(Sysno, Handler)] = &[
    (Sysno::get_mempolicy, get_mempolicy),
    (Sysno::set_mempolicy, set_mempolicy),
    (Sysno::set_mempolicy_home_node, set_mempolicy_home_node),
    (Sysno::mbind, mbind),
    (Sysno::migrate_pages, migrate_pages),
    (Sysno::move_pages, move_pages),
];

const MPOL_DEFAULT: u32 = 0;
const MPOL_PREFERRED: u32 = 1;
const MPOL_LOCAL: u32 = 4;
const MPOL_MAX: u32 = 7;
const MPOL_F_NODE: usize = 1;
const MPOL_F_ADDR: usize = 2;
const MPOL_F_MEMS_ALLOWED: usize = 4;

/// There is one memory node, so every policy that is valid means the same.
fn check_policy(whole: u32, mask: usize, bits: usize) -> Result<Policy> {
    let mode = whole & !policy::FLAGS;
    if mode >= MPOL_MAX {
        return Err(Errno::EINVAL);
    }
    let nodes = read_nodes(mask, bits)?;
    if !policy::may_have_flags(mode, whole & policy::FLAGS, nodes) {
        return Err(Errno::EINVAL);
    }
    match mode {
        MPOL_DEFAULT | MPOL_LOCAL if nodes != 0 => Err(Errno::EINVAL),
        MPOL_DEFAULT | MPOL_LOCAL | MPOL_PREFERRED => Ok(Policy::new(whole, nodes)),
        _ if nodes & 1 == 0 => Err(Errno::EINVAL),
        _ => Ok(Policy::new(whole, nodes)),
    }
}

/// The first word of a node mask; `EINVAL` when it names a node that there is not.
fn read_nodes(mask: usize, bits: usize) -> Result<u64> {
    let bits = bits.saturating_sub(1);
    if mask == 0 || bits == 0 {
        return Ok(0);
    }
    if bits > PAGE as usize * 8 {
        return Err(Errno::EINVAL);
    }
    let words: alloc::vec::Vec<u64> = read_user_array(mask, bits.div_ceil(64))?;
    if words[0] & !1 != 0 && bits > 1 || words[1..].iter().any(|word| *word != 0) {
        return Err(Errno::EINVAL);
    }
    Ok(words[0] & 1)
}

fn set_mempolicy(args: &mut Args) -> Result<usize> {
    let [mode, mask, bits, ..] = args.a;
    let policy = check_policy(mode as u32, mask, bits)?;
    process::current().memory_policy.set(policy);
    Ok(0)
}

fn mbind(args: &mut Args) -> Result<usize> {
    let [address, len, mode, mask, bits, flags] = args.a;
    const FLAGS: usize = 7;
    if flags & !FLAGS != 0 || !(address as u64).is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    let policy = check_policy(mode as u32, mask, bits)?;
    let range = pages(address, len)?;
    if !range.is_empty() {
        space()?.set_policy(range, policy)?;
    }
    Ok(0)
}

/// The pages that have a byte of the range. As Linux: a length that wraps around when it is rounded up is none.
fn pages(address: usize, len: usize) -> Result<Range<u64>> {
    let start = address as u64;
    let len = (len as u64).checked_next_multiple_of(PAGE).unwrap_or(0);
    Ok(start..start.checked_add(len).ok_or(Errno::EINVAL)?)
}

/// Says from which node pages come first where areas name several: there is one, so nothing is to be kept.
fn set_mempolicy_home_node(args: &mut Args) -> Result<usize> {
    let [address, len, node, flags, ..] = args.a;
    if !(address as u64).is_multiple_of(PAGE) || flags != 0 || node != 0 {
        return Err(Errno::EINVAL);
    }
    let range = pages(address, len)?;
    if !range.is_empty() {
        space()?.check_home_node(range)?;
    }
    Ok(0)
}

fn get_mempolicy(args: &mut Args) -> Result<usize> {
    let [mode, mask, bits, address, flags, _] = args.a;
    let known = MPOL_F_NODE | MPOL_F_ADDR | MPOL_F_MEMS_ALLOWED;
    if flags & !known != 0 || mask != 0 && bits < 1 {
        return Err(Errno::EINVAL);
    }
    let allowed = flags & MPOL_F_MEMS_ALLOWED != 0;
    if allowed && flags & (MPOL_F_NODE | MPOL_F_ADDR) != 0 || flags & MPOL_F_ADDR == 0 && address != 0 {
        return Err(Errno::EINVAL);
    }
    let policy = match flags {
        0 | MPOL_F_NODE => process::current().memory_policy.get(),
        _ if flags & MPOL_F_ADDR != 0 => space()?.policy_at(address as u64)?,
        _ => Policy::default(),
    };
    if flags == MPOL_F_NODE && !policy.interleaves() {
        return Err(Errno::EINVAL);
    }
    if mode != 0 {
        // Where the number of a node is asked for, that is 0.
        write_user(mode, &if flags & MPOL_F_NODE == 0 { policy.mode() } else { 0 })?;
    }
    if mask != 0 {
        let bytes = bits.div_ceil(64) * 8;
        if uaccess::zero_user_raw(mask, bytes.min(PAGE as usize)) != 0 {
            return Err(Errno::EFAULT);
        }
        let nodes = if allowed { 1 } else { policy.nodes() };
        if nodes != 0 {
            write_user(mask, &nodes)?;
        }
    }
    Ok(0)
}

/// All pages are where they can be.
fn migrate_pages(args: &mut Args) -> Result<usize> {
    let [pid, bits, from, to, ..] = args.a;
    if pid != 0 && process::find_thread(pid as u32).is_none() {
        return Err(Errno::ESRCH);
    }
    read_nodes(from, bits)?;
    read_nodes(to, bits)?;
    Ok(0)
}

/// Tells where pages are, or moves them: there is one node, on which all are.
fn move_pages(args: &mut Args) -> Result<usize> {
    const MOVE: u32 = 2;
    const MOVE_ALL: u32 = 4;
    let [pid, count, pages, nodes, status, _] = args.a;
    let flags = args.uint(5);
    if flags & !(MOVE | MOVE_ALL) != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & MOVE_ALL != 0 && !process::current().credentials().capable(abi::CAP_SYS_NICE) {
        return Err(Errno::EPERM);
    }
    let space = match pid as i32 {
        0 => space()?,
        pid => {
            let pid = u32::try_from(pid).map_err(|_| Errno::ESRCH)?;
            let thread = process::find_thread(pid).ok_or(Errno::ESRCH)?;
            memory_of(&thread.process)?.ok_or(Errno::EINVAL)?
        }
    };
    for index in 0..count {
        let address: u64 = read_user(pages.wrapping_add(index * size_of::<u64>()))?;
        if nodes != 0 {
            let node: i32 = read_user(nodes.wrapping_add(index * size_of::<i32>()))?;
            if node != 0 {
                return Err(Errno::ENODEV);
            }
        }
        let found = space.node_of(address).unwrap_or_else(|errno| -errno.into_raw());
        write_user(status.wrapping_add(index * size_of::<i32>()), &found)?;
        sched::cond_resched();
        if process::current().kill_pending() {
            return Err(Errno::EINTR);
        }
    }
    Ok(0)
}
