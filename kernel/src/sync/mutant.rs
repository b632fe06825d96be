//! Points at which a model can break the kernel on purpose, to see that it notices. In the kernel each is a constant `false`.

#[path = "mutants.rs"]
mod mutants;

pub use mutants::Mutant;

/// Whether the kernel is broken in this way.
#[inline(always)]
pub const fn is(_: Mutant) -> bool {
    false
}
