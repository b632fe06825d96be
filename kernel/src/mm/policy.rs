//! Memory policies of threads: from which nodes their pages are to come.
//!
//! There is one node, so a policy decides nothing. It is remembered, since programs ask for what they have set.

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

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

/// A policy that is valid here: `MPOL_*` with its flags. The modes that name nodes name the one that there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Policy(u32);

impl Policy {
    /// What a valid mode with these nodes comes to: to prefer no node is to prefer the near one.
    pub fn new(mode: u32, nodes: u64) -> Policy {
        match mode & !FLAGS {
            0 => Policy(0),
            PREFERRED if nodes == 0 => Policy(LOCAL),
            _ => Policy(mode),
        }
    }

    /// As get_mempolicy(2) tells it.
    pub fn mode(self) -> u32 {
        self.0
    }

    /// The mask of its nodes.
    pub fn nodes(self) -> u64 {
        u64::from(!matches!(self.0 & !FLAGS, 0 | LOCAL))
    }

    /// Whether pages are to come from one node after the other: such a policy has a next node.
    pub fn interleaves(self) -> bool {
        matches!(self.0 & !FLAGS, INTERLEAVE | WEIGHTED_INTERLEAVE)
    }
}

/// As numa_maps writes it.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 & !FLAGS {
            PREFERRED => "prefer",
            BIND => "bind",
            INTERLEAVE => "interleave",
            LOCAL => "local",
            PREFERRED_MANY => "prefer (many)",
            WEIGHTED_INTERLEAVE => "weighted interleave",
            _ => "default",
        })?;
        if self.0 & STATIC != 0 {
            f.write_str("=static")?;
        } else if self.0 & RELATIVE != 0 {
            f.write_str("=relative")?;
        }
        if self.nodes() != 0 { f.write_str(":0") } else { Ok(()) }
    }
}

/// A thread's policy.
#[derive(Default)]
pub struct Current(AtomicU32);

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
