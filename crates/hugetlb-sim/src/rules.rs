//! What architectures do differently.

use hugetlb::Level;

/// The rules of a simulated machine, beside the format of its entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// An entry that leads to a table takes rights away from all below it ("hierarchical permissions").
    pub rights_combine: bool,
    /// *Break before make*: two translations of one address to two places must never be valid at once, in whichever TLBs.
    /// [`SimMachine::check`](crate::SimMachine::check) tells of the first break that was left out.
    pub break_before_make: bool,
    /// A page fault drops what the CPU has for the address. Else the host has to, or the access faults for ever.
    pub fault_forgets: bool,
    /// The level of the entries in the root table.
    pub root: Level,
}

impl Rules {
    /// x86-64 with four levels.
    pub const X86_64: Rules =
        Rules { rights_combine: true, break_before_make: false, fault_forgets: true, root: Level::Pgd };
    /// RISC-V, Sv39: three levels, and the rights in the leaves only.
    pub const SV39: Rules = Rules { root: Level::Pud, ..Rules::SV48 };
    /// RISC-V, Sv48.
    pub const SV48: Rules = Rules { rights_combine: false, fault_forgets: false, ..Rules::X86_64 };
    /// AArch64 with four levels.
    pub const AARCH64: Rules = Rules { break_before_make: true, fault_forgets: false, ..Rules::X86_64 };
}
