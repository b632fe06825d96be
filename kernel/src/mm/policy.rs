//! Memory policies of threads and of areas: from which nodes their pages are to come.
//!
//! A page that a fault or a call makes for a process comes from where the policy of its area says, or else that of the thread: [`wanted`].
//! The fault notes the area's ([`Placing`]) where there are several nodes; with one nothing is noted, and nobody asks. The kernel's own
//! memory comes from the node of the CPU.

use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use super::space::{AddressSpace, Areas};
use crate::errno::{Errno, Result};
use crate::memory::node::{self, MAX_NODES, NodeMask};
use crate::process::{self, Thread};
use crate::sched;

const DEFAULT: u32 = 0;
const PREFERRED: u32 = 1;
const BIND: u32 = 2;
const INTERLEAVE: u32 = 3;
const LOCAL: u32 = 4;
const PREFERRED_MANY: u32 = 5;
const WEIGHTED_INTERLEAVE: u32 = 6;
const MAX: u32 = 7;
/// The flags of a mode.
const STATIC: u32 = 1 << 15;
const RELATIVE: u32 = 1 << 14;
const BALANCING: u32 = 1 << 13;
const FLAGS: u32 = STATIC | RELATIVE | BALANCING;

/// Bits that a program's mask of nodes may have: those of Debian's kernel.
pub const MASK_BITS: usize = 1024;
/// Such a mask.
pub type UserMask = [u64; MASK_BITS / 64];

/// A policy: `MPOL_*` with its flags, and its nodes. The default of an area is that of the thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Policy {
    mode: u16,
    /// The nodes that it comes to; none for the default and for the near node.
    nodes: NodeMask,
    /// With `MPOL_F_STATIC_NODES` and `MPOL_F_RELATIVE_NODES`: the mask as it was given, as far as there could be nodes.
    given: NodeMask,
    /// One more than the home node.
    home: u16,
}

/// The nodes of a relative mask: its bits count the nodes that there are, again and again.
fn relative(mask: &UserMask, there: NodeMask) -> NodeMask {
    let count = there.count_ones() as usize;
    let bits = (0..MASK_BITS).filter(|bit| mask[bit / 64] >> (bit % 64) & 1 != 0);
    bits.filter_map(|bit| node::list(there).nth(bit % count)).fold(0, |nodes, node| nodes | 1 << node)
}

impl Policy {
    /// Whether there are such a mode and such flags of it: what Linux asks before it reads the nodes.
    pub fn check_mode(whole: u32) -> Result<()> {
        let (mode, flags) = (whole & !FLAGS, whole & FLAGS);
        let both = STATIC | RELATIVE;
        let may_balance = flags & BALANCING == 0 || matches!(mode, BIND | PREFERRED_MANY);
        if mode >= MAX || flags & both == both || !may_balance { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// The policy of a mode with its flags and of a program's nodes. `EINVAL` as Linux: unknown modes and flags, flags that say what
    /// becomes of nodes without any, nodes none of which has memory.
    pub fn new(whole: u32, mask: &UserMask) -> Result<Policy> {
        Policy::check_mode(whole)?;
        let (mode, flags) = (whole & !FLAGS, whole & FLAGS);
        let is_none = mask.iter().all(|word| *word == 0);
        let moves = flags & (STATIC | RELATIVE);
        match mode {
            DEFAULT if is_none => return Ok(Policy::default()),
            // To prefer no node is to prefer the near one.
            LOCAL | PREFERRED if is_none && moves == 0 => {
                return Ok(Policy { mode: (LOCAL | flags) as u16, ..Policy::default() });
            }
            DEFAULT | LOCAL => return Err(Errno::EINVAL),
            _ if is_none => return Err(Errno::EINVAL),
            _ => {}
        }
        let there = node::with_memory();
        let given = mask[0] as NodeMask;
        let mut nodes = if flags & RELATIVE != 0 { relative(mask, there) } else { given & there };
        if mode == PREFERRED {
            nodes &= nodes.wrapping_neg();
        }
        if nodes == 0 {
            return Err(Errno::EINVAL);
        }
        Ok(Policy { mode: whole as u16, nodes, given: if moves != 0 { given } else { 0 }, home: 0 })
    }

    /// As get_mempolicy(2) tells it.
    pub fn mode(self) -> u32 {
        self.mode.into()
    }

    /// The mode alone.
    fn base(self) -> u32 {
        self.mode() & !FLAGS
    }

    /// The mask of its nodes as get_mempolicy(2) tells it.
    pub fn told_nodes(self) -> u64 {
        if self.mode() & (STATIC | RELATIVE) != 0 { self.given.into() } else { self.nodes.into() }
    }

    /// Whether all of its pages come from these nodes.
    fn is_bound_to(self, nodes: NodeMask) -> bool {
        self.base() == BIND && self.nodes & !nodes == 0
    }

    /// Whether pages are to come from one node after the other: such a policy has a next node.
    pub fn interleaves(self) -> bool {
        matches!(self.base(), INTERLEAVE | WEIGHTED_INTERLEAVE)
    }

    /// Which node's turn it is for the page at an index, of a policy that interleaves.
    fn turn(self, index: u64) -> usize {
        let weight = |node: &usize| match self.base() {
            // Relaxed: a setting of its own.
            WEIGHTED_INTERLEAVE => u64::from(WEIGHTS[*node].load(Ordering::Relaxed)),
            _ => 1,
        };
        let sum: u64 = node::list(self.nodes).map(|node| weight(&node)).sum();
        let mut left = index % sum.max(1);
        let turn = node::list(self.nodes).find(|node| match left.checked_sub(weight(node)) {
            Some(rest) => {
                left = rest;
                false
            }
            None => true,
        });
        turn.unwrap_or(0)
    }

    /// Where the page at an index is to come from; `None` for the near node.
    pub fn places(self, index: u64) -> Option<Places> {
        let near = if self.home != 0 { usize::from(self.home) - 1 } else { node::here() };
        let is_named = |node: &&u8| self.nodes >> **node & 1 != 0;
        let mut places = Places::default();
        match self.base() {
            BIND => node::nearest(near).iter().filter(is_named).for_each(|node| places.add(*node)),
            PREFERRED_MANY => {
                node::nearest(near).iter().filter(is_named).for_each(|node| places.add(*node));
                node::nearest(near).iter().filter(|node| !is_named(node)).for_each(|node| places.add(*node));
            }
            PREFERRED => {
                let first = self.nodes.trailing_zeros() as usize;
                node::nearest(first).iter().for_each(|node| places.add(*node));
            }
            INTERLEAVE | WEIGHTED_INTERLEAVE => {
                node::nearest(self.turn(index)).iter().for_each(|node| places.add(*node));
            }
            _ => return None,
        }
        Some(places)
    }

    fn to_bits(self) -> u64 {
        let part = |part: u16, shift: u32| u64::from(part) << shift;
        part(self.mode, 0) | part(self.nodes, 16) | part(self.given, 32) | part(self.home, 48)
    }

    fn from_bits(bits: u64) -> Policy {
        let part = |shift: u32| (bits >> shift) as u16;
        Policy { mode: part(0), nodes: part(16), given: part(32), home: part(48) }
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
        if self.nodes == 0 {
            return Ok(());
        }
        write!(f, ":{}", crate::fs::sys::node::list(node::list(self.nodes)))
    }
}

/// How many pages in a row a node has of those that take turns by weight.
static WEIGHTS: [AtomicU8; MAX_NODES] = [const { AtomicU8::new(1) }; MAX_NODES];

/// A node's weight, for `/sys/kernel/mm/mempolicy/weighted_interleave`.
pub fn weight(node: usize) -> u8 {
    WEIGHTS[node].load(Ordering::Relaxed)
}

/// Sets it.
pub fn set_weight(node: usize, weight: u8) {
    WEIGHTS[node].store(weight, Ordering::Relaxed);
}

/// Nodes from which memory is to come, the first one first, and from no others.
#[derive(Clone, Copy, Debug, Default)]
pub struct Places {
    nodes: [u8; MAX_NODES],
    len: u8,
}

impl Places {
    fn add(&mut self, node: u8) {
        if let Some(place) = self.nodes.get_mut(usize::from(self.len)) {
            *place = node;
            self.len += 1;
        }
    }

    /// These nodes, in ascending order.
    pub fn these(nodes: NodeMask) -> Places {
        let mut places = Places::default();
        node::list(nodes).for_each(|node| places.add(node as u8));
        places
    }

    /// All nodes, the nearest to this one first.
    pub fn near(node: usize) -> Places {
        let mut places = Places::default();
        node::nearest(node).iter().for_each(|node| places.add(*node));
        places
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.nodes[..usize::from(self.len)]
    }

    fn mask(&self) -> NodeMask {
        self.as_slice().iter().fold(0, |mask, node| mask | 1 << node)
    }
}

/// A thread's policy, and that of the page that it makes just now.
#[derive(Default)]
pub struct Current {
    policy: AtomicU64,
    /// Where pages take turns: how many were made outside of faults.
    turn: AtomicU64,
    /// The area's, while a fault is on its way; 0 for none.
    placing: AtomicU64,
    index: AtomicU64,
    /// The nodes that had nothing for the fault that is on its way, or for the one before, while others had: whoever is killed for it must
    /// have memory there.
    full: AtomicU16,
}

/// Without [`IS_PLACING`].
const NOT_PLACING: u64 = 0;
/// Tells the note of a default policy from none.
const IS_PLACING: u64 = 1 << 12;

impl Current {
    /// What it is.
    pub fn get(&self) -> Policy {
        // Relaxed, here and below: a setting of its own.
        Policy::from_bits(self.policy.load(Ordering::Relaxed))
    }

    /// Whether all that the thread takes is from these nodes.
    pub fn is_bound_to(&self, nodes: NodeMask) -> bool {
        self.get().is_bound_to(nodes)
    }

    /// Sets it.
    pub fn set(&self, policy: Policy) {
        self.policy.store(policy.to_bits(), Ordering::Relaxed);
        self.turn.store(0, Ordering::Relaxed);
    }

    /// The node that has its turn next, of a policy that interleaves.
    pub fn next_turn(&self) -> usize {
        self.get().turn(self.turn.load(Ordering::Relaxed))
    }

    /// The nodes that had nothing for the thread's last fault though others had; 0 if that was not it.
    pub fn take_full(&self) -> NodeMask {
        self.full.swap(0, Ordering::Relaxed)
    }

    fn places(&self) -> Option<Places> {
        let placing = self.placing.load(Ordering::Relaxed);
        if placing != NOT_PLACING {
            return Policy::from_bits(placing & !IS_PLACING).places(self.index.load(Ordering::Relaxed));
        }
        let policy = self.get();
        let index = if policy.interleaves() { self.turn.fetch_add(1, Ordering::Relaxed) } else { 0 };
        policy.places(index)
    }
}

/// Where a page that the current thread makes for a process is to come from; `None` for the near node. Asked only where there are several.
pub fn wanted() -> Option<Places> {
    process::try_current()?.memory_policy.places()
}

/// There was no page in these places, while there is memory. Whether it may come from elsewhere: for the first process, without which nobody
/// is left. A fault of others notes it, see [`Current::take_full`].
pub fn may_go_elsewhere(places: &Places) -> bool {
    let mask = places.mask();
    if mask & node::with_memory() == node::with_memory() {
        return false;
    }
    let Some(thread) = process::try_current() else { return true };
    if thread.process.pid == 1 {
        return true;
    }
    let current = &thread.memory_policy;
    if current.placing.load(Ordering::Relaxed) != NOT_PLACING {
        current.full.store(mask, Ordering::Relaxed);
    }
    false
}

/// While this is, pages that the current thread makes come from where an area's policy says.
pub struct Placing<'a>(Option<Noted<'a>>);

/// A thread, and what it had noted before: a fault in a region is one inside of another.
struct Noted<'a> {
    thread: &'a Thread,
    placing: u64,
    index: u64,
}

impl Placing<'_> {
    /// For the page at an index of an area with this policy. Free of cost where there is one node.
    #[inline]
    pub fn new(thread: &Thread, of_area: impl FnOnce() -> (Policy, u64)) -> Placing<'_> {
        if node::count() == 1 {
            return Placing(None);
        }
        Self::note(thread, of_area())
    }

    #[cold]
    fn note(thread: &Thread, (policy, index): (Policy, u64)) -> Placing<'_> {
        let current = &thread.memory_policy;
        // Relaxed, here and below: of the thread alone.
        let outer = current.placing.load(Ordering::Relaxed);
        let bits = match policy == Policy::default() {
            false => policy.to_bits() | IS_PLACING,
            // An area inside of another that says nothing itself.
            true if outer != NOT_PLACING => outer,
            true => current.get().to_bits() | IS_PLACING,
        };
        current.full.store(0, Ordering::Relaxed);
        current.placing.store(bits, Ordering::Relaxed);
        Placing(Some(Noted { thread, placing: outer, index: current.index.swap(index, Ordering::Relaxed) }))
    }
}

impl Drop for Placing<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(Noted { thread, placing, index }) = &self.0 {
            // Relaxed: as above.
            thread.memory_policy.placing.store(*placing, Ordering::Relaxed);
            thread.memory_policy.index.store(*index, Ordering::Relaxed);
        }
    }
}

impl AddressSpace {
    /// mbind(2): the areas of a range get a policy. `EFAULT` where there are none, which counts for nothing when it is the default.
    pub fn set_policy(&self, range: Range<u64>, policy: Policy) -> Result<()> {
        let mut guard = self.write();
        let areas: &mut Areas = &mut guard;
        let there = if policy == Policy::default() {
            areas.set.is_occupied(range.clone())
        } else {
            areas.set.covers(range.clone())
        };
        if !there {
            return Err(Errno::EFAULT);
        }
        let mut at = range.start;
        let mut result = Ok(());
        while result.is_ok()
            && let Some(vma) = areas.set.find_in(at..range.end)
        {
            let part = vma.start.max(at)..vma.end.min(range.end);
            at = part.end;
            if vma.policy != policy {
                result = areas.set.allow_cut(vma, &part);
                result = result.and_then(|()| areas.set.change(part, self.weak(), |vma| vma.policy = policy));
            }
            sched::cond_resched();
        }
        result
    }

    /// The policy of the area at an address.
    pub fn policy_at(&self, address: u64) -> Result<Policy> {
        self.read().set.find(address).map(|vma| vma.policy).ok_or(Errno::EFAULT)
    }

    /// set_mempolicy_home_node(2): says from which node pages come first where the areas of a range name several. `ENOENT` if none has
    /// a policy.
    pub fn set_home_node(&self, range: Range<u64>, home: usize) -> Result<()> {
        let mut guard = self.write();
        let areas: &mut Areas = &mut guard;
        let mut result = Err(Errno::ENOENT);
        let mut at = range.start;
        while let Some(vma) = areas.set.find_in(at..range.end) {
            let part = vma.start.max(at)..vma.end.min(range.end);
            at = part.end;
            let policy = Policy { home: home as u16 + 1, ..vma.policy };
            match vma.policy.base() {
                DEFAULT => {}
                // Also what was merged with the part before it.
                BIND | PREFERRED_MANY if vma.policy == policy => result = Ok(()),
                BIND | PREFERRED_MANY => {
                    let cut = areas.set.allow_cut(vma, &part);
                    result =
                        cut.and_then(|()| areas.set.change(part, self.weak(), |vma| vma.policy = policy));
                }
                _ => result = Err(Errno::EOPNOTSUPP),
            }
            if !matches!(result, Ok(()) | Err(Errno::ENOENT)) {
                break;
            }
            sched::cond_resched();
        }
        result
    }
}
