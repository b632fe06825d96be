//! Memory policies of threads and of areas: from which nodes their pages are to come.
//!
//! There is one node, so a policy decides nothing. It is remembered, since programs ask for what they have set.

use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicU16, Ordering};

use super::space::{AddressSpace, Areas};
use crate::errno::{Errno, Result};
use crate::sched;

const PREFERRED: u32 = 1;
const BIND: u32 = 2;
const INTERLEAVE: u32 = 3;
const LOCAL: u32 = 4;
const PREFERRED_MANY: u32 = 5;
const WEIGHTED_INTERLEAVE: u32 = 6;
/// The flags of a mode.
const STATIC: u32 = 1 << 15;
const RELATIVE: u32 = 1 << 14;
const BALANCING: u32 = 1 << 13;
pub const FLAGS: u32 = STATIC | RELATIVE | BALANCING;

/// Whether a mode with these nodes may have these flags: they say what becomes of nodes, so there have to be some.
pub fn may_have_flags(mode: u32, flags: u32, nodes: u64) -> bool {
    let moves = flags & (STATIC | RELATIVE);
    let nowhere = mode == LOCAL || mode == PREFERRED && nodes == 0;
    let balances = flags & BALANCING != 0 && !matches!(mode, BIND | PREFERRED_MANY);
    moves != STATIC | RELATIVE && !(moves != 0 && nowhere) && !balances
}

/// A policy that is valid here: `MPOL_*` with its flags. The modes that name nodes name the one that there is. The default of
/// an area is that of the thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Policy(u16);

impl Policy {
    /// What a valid mode with these nodes comes to: to prefer no node is to prefer the near one.
    pub fn new(mode: u32, nodes: u64) -> Policy {
        match mode & !FLAGS {
            0 => Policy(0),
            PREFERRED if nodes == 0 => Policy(LOCAL as u16),
            // Mode and flags have 16 bits.
            _ => Policy(mode as u16),
        }
    }

    /// As get_mempolicy(2) tells it.
    pub fn mode(self) -> u32 {
        self.0.into()
    }

    /// The mode alone.
    fn base(self) -> u32 {
        self.mode() & !FLAGS
    }

    /// The mask of its nodes.
    pub fn nodes(self) -> u64 {
        u64::from(!matches!(self.base(), 0 | LOCAL))
    }

    /// Whether pages are to come from one node after the other: such a policy has a next node.
    pub fn interleaves(self) -> bool {
        matches!(self.base(), INTERLEAVE | WEIGHTED_INTERLEAVE)
    }
}

/// As numa_maps writes it.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.base() {
            PREFERRED => "prefer",
            BIND => "bind",
            INTERLEAVE => "interleave",
            LOCAL => "local",
            PREFERRED_MANY => "prefer (many)",
            WEIGHTED_INTERLEAVE => "weighted interleave",
            _ => "default",
        })?;
        if self.mode() & STATIC != 0 {
            f.write_str("=static")?;
        } else if self.mode() & RELATIVE != 0 {
            f.write_str("=relative")?;
        }
        if self.nodes() != 0 { f.write_str(":0") } else { Ok(()) }
    }
}

/// A thread's policy.
#[derive(Default)]
pub struct Current(AtomicU16);

impl Current {
    /// What it is.
    pub fn get(&self) -> Policy {
        // Relaxed, here and below: a setting of its own.
        Policy(self.0.load(Ordering::Relaxed))
    }

    /// Sets it.
    pub fn set(&self, policy: Policy) {
        self.0.store(policy.0, Ordering::Relaxed);
    }
}

impl AddressSpace {
    /// mbind(2): the areas of a range get a policy. `EFAULT` where there are none, which counts for nothing when it is the default.
    pub fn set_policy(&self, range: Range<u64>, policy: Policy) -> Result<()> {
        let mut guard = self.write();
        let areas: &mut Areas = &mut guard;
        let there = match policy {
            Policy(0) => areas.set.is_occupied(range.clone()),
            _ => areas.set.covers(range.clone()),
        };
        if !there {
            return Err(Errno::EFAULT);
        }
        let mut at = range.start;
        let mut result = Ok(());
        // An area that has the policy is not cut, and may reach beyond the range.
        while at < range.end
            && result.is_ok()
            && let Some(vma) = areas.set.find_from(at).filter(|vma| vma.start < range.end)
        {
            let part = vma.start.max(at)..vma.end.min(range.end);
            at = part.end;
            if vma.policy != policy {
                result = areas.set.allow_cut(vma, &part);
                result = result.and_then(|()| areas.set.isolate(part.clone(), self.weak()));
                if result.is_ok() {
                    areas.set.update(part.start, |vma| vma.policy = policy);
                }
            }
            sched::cond_resched();
        }
        areas.set.merge(range);
        result
    }

    /// The policy of the area at an address.
    pub fn policy_at(&self, address: u64) -> Result<Policy> {
        self.read().set.find(address).map(|vma| vma.policy).ok_or(Errno::EFAULT)
    }

    /// Whether the areas of a range that have policies take a home node: `ENOENT` if none has one.
    pub fn check_home_node(&self, range: Range<u64>) -> Result<()> {
        let areas = self.read();
        let mut result = Err(Errno::ENOENT);
        for vma in areas.set.overlapping(range) {
            match vma.policy.base() {
                0 => {}
                BIND | PREFERRED_MANY => result = Ok(()),
                _ => return Err(Errno::EOPNOTSUPP),
            }
        }
        result
    }
}
