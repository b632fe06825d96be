//! A fault of the emulator that Debian's Linux meets once in some hundred boots.
//!
//! Linux patches its own code while it runs: it puts a breakpoint over an instruction, changes what follows, and takes the
//! breakpoint away. QEMU with a thread for each CPU may still run the breakpoint then, and the kernel, who is not patching there any
//! more, dies of it (bugzilla.redhat.com, bug 2216496; "Oops: int3" at an instruction that is none). It has nothing to do with what
//! is tested: Linux boots again, and the report says so. Our kernel does not patch its code; no fault of its own is excused.

use super::Subject;
use super::report::Report;

/// How often in a row this is believed.
pub const MOST: u32 = 2;

/// Whether a machine that went down before its tests did so for this reason, by the end of its console; says so, if it did.
pub fn is_to_blame(subject: Subject, name: &str, console: &str, report: &mut Report) -> bool {
    let is = subject == Subject::Linux && has_spurious_breakpoint(console);
    if is {
        report.print(&format!(
            "      again [linux] {name}: QEMU ran a breakpoint that Linux had removed (Oops: int3)"
        ));
    }
    is
}

fn has_spurious_breakpoint(console: &str) -> bool {
    // The first one decides: what follows an Oops may be its consequence.
    console
        .lines()
        .find(|line| line.contains("Oops: "))
        .is_some_and(|line| line.contains("Oops: int3: 0000 [#1]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_first_breakpoint_is_excused() {
        let int3 = "[    1.967632] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI\n";
        assert!(has_spurious_breakpoint(&format!(
            "Probing EDD... o{int3}RIP: 0010:sched_clock_cpu+0x9/0x190"
        )));
        assert!(!has_spurious_breakpoint(&format!(
            "[    1.0] Oops: general protection fault: 0000 [#1]\n{int3}"
        )));
        assert!(!has_spurious_breakpoint("Kernel panic - not syncing: VFS: Unable to mount root fs"));
        assert!(!has_spurious_breakpoint(""));
    }
}
