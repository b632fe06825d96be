//! System calls about memory nodes: policies, where pages are, and their moves.

use alloc::sync::Arc;
use core::ops::Range;

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::mm::{memory_of, space};
use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::memory::node::{self, NodeMask};
use crate::mm::nodes::Move;
use crate::mm::policy::{MASK_BITS, Places, Policy, UserMask};
use crate::mm::uaccess::{self, read_user, read_user_array, write_user};
use crate::mm::{AddressSpace, PAGE};
use crate::process::{self, Process};
use crate::sched;

pub const TABLE: &[(Sysno, Handler)] = &[
    (Sysno::get_mempolicy, get_mempolicy),
    (Sysno::set_mempolicy, set_mempolicy),
    (Sysno::set_mempolicy_home_node, set_mempolicy_home_node),
    (Sysno::mbind, mbind),
    (Sysno::migrate_pages, migrate_pages),
    (Sysno::move_pages, move_pages),
];

const MPOL_DEFAULT: u32 = 0;
const MPOL_F_NODE: usize = 1;
const MPOL_F_ADDR: usize = 2;
const MPOL_F_MEMS_ALLOWED: usize = 4;
const MPOL_MF_STRICT: usize = 1;
const MPOL_MF_MOVE: usize = 2;
const MPOL_MF_MOVE_ALL: usize = 4;

/// A program's mask of nodes, of which it says one bit more than there are; `EINVAL` when it names one that no machine has.
fn read_nodes(mask: usize, bits: usize) -> Result<UserMask> {
    let mut nodes: UserMask = [0; MASK_BITS / 64];
    let bits = bits.wrapping_sub(1);
    if mask == 0 || bits == 0 {
        return Ok(nodes);
    }
    if bits > PAGE as usize * 8 {
        return Err(Errno::EINVAL);
    }
    let mut words: alloc::vec::Vec<u64> = read_user_array(mask, bits.div_ceil(64))?;
    if let Some(last) = words.last_mut().filter(|_| !bits.is_multiple_of(64)) {
        *last &= (1 << (bits % 64)) - 1;
    }
    if words.iter().skip(nodes.len()).any(|word| *word != 0) {
        return Err(Errno::EINVAL);
    }
    for (node, word) in nodes.iter_mut().zip(words) {
        *node = word;
    }
    Ok(nodes)
}

/// The nodes of a mask that there could be, and whether it has others.
fn possible(mask: &UserMask) -> (NodeMask, bool) {
    let nodes = mask[0] as NodeMask;
    (nodes, mask[0] != u64::from(nodes) || mask[1..].iter().any(|word| *word != 0))
}

fn set_mempolicy(args: &mut Args) -> Result<usize> {
    let [mode, mask, bits, ..] = args.a;
    Policy::check_mode(mode as u32)?;
    let policy = Policy::new(mode as u32, &read_nodes(mask, bits)?)?;
    process::current().memory_policy.set(policy);
    Ok(0)
}

fn mbind(args: &mut Args) -> Result<usize> {
    let [address, len, mode, mask, bits, mut flags] = args.a;
    // In Linux's order.
    Policy::check_mode(mode as u32)?;
    let nodes = read_nodes(mask, bits)?;
    if flags & !(MPOL_MF_STRICT | MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & MPOL_MF_MOVE_ALL != 0 && !process::current().credentials().capable(abi::CAP_SYS_NICE) {
        return Err(Errno::EPERM);
    }
    if !(address as u64).is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    let range = pages(address, len)?;
    if range.is_empty() {
        return Ok(0);
    }
    let policy = Policy::new(mode as u32, &nodes)?;
    if policy.mode() == MPOL_DEFAULT {
        flags &= !MPOL_MF_STRICT;
    }
    let space = space()?;
    let fits = possible(&nodes).0;
    let moves = flags & (MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) != 0;
    // As Linux: what lies elsewhere is found before the policy is set, and an error then sets none.
    if flags & MPOL_MF_STRICT != 0 && !moves && space.has_pages_outside(range.clone(), fits)? {
        return Err(Errno::EIO);
    }
    space.set_policy(range.clone(), policy)?;
    if moves {
        let all = flags & MPOL_MF_MOVE_ALL != 0;
        let moved = space.move_range(
            range,
            all,
            |node| fits >> node & 1 == 0,
            |_, index| policy.places(index),
            || true,
        );
        // As Linux: no room is a failure like others.
        if moved != Ok(0) && flags & MPOL_MF_STRICT != 0 {
            return Err(Errno::EIO);
        }
    }
    Ok(0)
}

/// The pages that have a byte of the range. As Linux: a length that wraps around when it is rounded up is none.
fn pages(address: usize, len: usize) -> Result<Range<u64>> {
    let start = address as u64;
    let len = (len as u64).checked_next_multiple_of(PAGE).unwrap_or(0);
    Ok(start..start.checked_add(len).ok_or(Errno::EINVAL)?)
}

/// Says from which node pages come first where areas name several.
fn set_mempolicy_home_node(args: &mut Args) -> Result<usize> {
    let [address, len, node, flags, ..] = args.a;
    if !(address as u64).is_multiple_of(PAGE) || flags != 0 || node >= node::count() {
        return Err(Errno::EINVAL);
    }
    let range = pages(address, len)?;
    if !range.is_empty() {
        space()?.set_home_node(range, node)?;
    }
    Ok(0)
}

fn get_mempolicy(args: &mut Args) -> Result<usize> {
    let [mode, mask, bits, address, flags, _] = args.a;
    let known = MPOL_F_NODE | MPOL_F_ADDR | MPOL_F_MEMS_ALLOWED;
    if flags & !known != 0 || mask != 0 && bits < node::count() {
        return Err(Errno::EINVAL);
    }
    let allowed = flags & MPOL_F_MEMS_ALLOWED != 0;
    if allowed && flags & (MPOL_F_NODE | MPOL_F_ADDR) != 0 || flags & MPOL_F_ADDR == 0 && address != 0 {
        return Err(Errno::EINVAL);
    }
    let current = &process::current().memory_policy;
    let policy = match flags {
        0 | MPOL_F_NODE => current.get(),
        _ if flags & MPOL_F_ADDR != 0 => space()?.policy_at(address as u64)?,
        _ => Policy::default(),
    };
    if flags == MPOL_F_NODE && !policy.interleaves() {
        return Err(Errno::EINVAL);
    }
    let told = match flags {
        MPOL_F_NODE => current.next_turn() as u32,
        _ if flags & MPOL_F_NODE != 0 => space()?.node_for_reading(address as u64)?,
        _ => policy.mode(),
    };
    if mode != 0 {
        write_user(mode, &told)?;
    }
    if mask != 0 {
        // The last bit is none: as Linux counts.
        let bytes = bits.saturating_sub(1).div_ceil(64) * 8;
        if bytes > PAGE as usize {
            return Err(Errno::EINVAL);
        }
        if uaccess::zero_user_raw(mask, bytes) != 0 {
            return Err(Errno::EFAULT);
        }
        let nodes = if allowed { node::with_memory().into() } else { policy.told_nodes() };
        if nodes != 0 && bytes != 0 {
            write_user(mask, &nodes)?;
        }
    }
    Ok(0)
}

/// A process, and its memory for moves and questions: `None` without any. Who takes a long time looks whether the process is still there, and
/// who may sleep for long, as at an access to the caller's memory, does not have it meanwhile: it comes back when it is let go of.
fn memory_for_moves(pid: usize) -> Result<(Arc<Process>, Option<Arc<AddressSpace>>)> {
    match pid as i32 {
        0 => Ok((process::current().process.clone(), Some(space()?))),
        pid => {
            let pid = u32::try_from(pid).map_err(|_| Errno::ESRCH)?;
            let process = process::find_thread(pid).ok_or(Errno::ESRCH)?.process.clone();
            let space = memory_of(&process)?;
            Ok((process, space))
        }
    }
}

fn is_ending(process: &Process) -> bool {
    process.signals.state.lock().ending.is_some()
}

/// Moves the pages of a process from nodes to others, the first to the first: as Linux, the new nodes in turn where there are fewer.
/// Returns how many could not be moved.
fn migrate_pages(args: &mut Args) -> Result<usize> {
    let [pid, bits, from, to, ..] = args.a;
    let (from, to) = (read_nodes(from, bits)?, read_nodes(to, bits)?);
    let (process, space) = memory_for_moves(pid)?;
    let is_privileged = process::current().credentials().capable(abi::CAP_SYS_NICE);
    let ((from, _), (to, has_others)) = (possible(&from), possible(&to));
    let there = node::with_memory();
    if (has_others || to & !there != 0) && !is_privileged {
        return Err(Errno::EPERM);
    }
    let to = to & there;
    if to == 0 {
        return Err(Errno::EINVAL);
    }
    let space = space.ok_or(Errno::EINVAL)?;
    let target = |node: usize| {
        let place = (from & ((1 << node) - 1)).count_ones() % to.count_ones();
        node::list(to).nth(place as usize).unwrap_or(node)
    };
    // A page that is on a node of its own target stays.
    let leaves = |node: usize| from >> node & 1 != 0 && target(node) != node;
    let places = |node: usize, _: u64| Some(Places::these(1 << target(node)));
    space.move_range(0..crate::mm::TASK_SIZE, is_privileged, leaves, places, || !is_ending(&process))
}

/// Tells where pages are, or moves them.
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
    /// So many pages are one look at whether the process ends.
    const AT_ONCE: usize = 64;
    let (process, space) = memory_for_moves(pid)?;
    let held = Arc::downgrade(&space.ok_or(Errno::EINVAL)?);
    for index in 0..count {
        if index % AT_ONCE == 0 && is_ending(&process) {
            return Err(Errno::ESRCH);
        }
        let address: u64 = read_user(pages.wrapping_add(index * size_of::<u64>()))?;
        let node: Option<i32> = match nodes {
            0 => None,
            nodes => Some(read_user(nodes.wrapping_add(index * size_of::<i32>()))?),
        };
        let space = held.upgrade().ok_or(Errno::ESRCH)?;
        let result = if let Some(node) = node {
            let node = usize::try_from(node).ok().filter(|node| *node < node::count());
            let node = node.filter(|node| node::with_memory() >> node & 1 != 0).ok_or(Errno::ENODEV)?;
            match space.move_page(address, flags & MOVE_ALL != 0, &Places::these(1 << node)) {
                Ok(Move::Done | Move::NotNeeded) => Ok(node as i32),
                Ok(Move::Absent) => Err(Errno::ENOENT),
                Ok(Move::Busy) => Err(Errno::EBUSY),
                Ok(Move::Shared) => Err(Errno::EACCES),
                // As Linux: the other pages are not tried.
                Err(Errno::ENOMEM) => return Err(Errno::ENOMEM),
                Err(errno) => Err(errno),
            }
        } else {
            space.node_of(address)
        };
        drop(space);
        let found = result.unwrap_or_else(|errno| -errno.into_raw());
        write_user(status.wrapping_add(index * size_of::<i32>()), &found)?;
        sched::cond_resched();
        if process::current().kill_pending() {
            return Err(Errno::EINTR);
        }
    }
    Ok(0)
}
