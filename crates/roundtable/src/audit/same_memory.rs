//! Processes that run on one memory: a child between vfork and exec, or one made with CLONE_VM.
//!
//! /proc shows their mappings and page tables twice, where there are only one. The kernel tells (kcmp) whether a child
//! has its parent's memory; it is asked only where the two look alike.

use std::collections::HashMap;

use super::collect::Process;

/// Leaves out children that have their parent's memory.
pub fn leave_out(processes: &mut Vec<Process>, is_one: impl Fn(i32, i32) -> bool) {
    let sizes: HashMap<i32, (u64, u64)> =
        processes.iter().map(|process| (process.pid, (process.vm_size, process.vm_pte))).collect();
    processes.retain(|process| {
        let alike = sizes.get(&process.parent) == Some(&(process.vm_size, process.vm_pte));
        !(alike && process.readable && is_one(process.pid, process.parent))
    });
}

/// Whether two processes have one memory; `false` where the kernel does not tell.
pub fn have_one(one: i32, other: i32) -> bool {
    const KCMP_VM: libc::c_int = 1;
    // SAFETY: takes integers, and changes nothing in either process.
    unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_VM, 0, 0) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32, vm_size: u64) -> Process {
        Process { pid, parent, vm_size, vm_pte: 8192, readable: true, ..Process::default() }
    }

    #[test]
    fn only_children_with_the_parents_memory_are_left_out() {
        let mut all = vec![process(1, 0, 10), process(2, 1, 10), process(3, 1, 10), process(4, 1, 20)];
        leave_out(&mut all, |child, parent| (child, parent) == (3, 1) || child == 4);
        let pids: Vec<i32> = all.iter().map(|process| process.pid).collect();
        assert_eq!(pids, [1, 2, 4], "2 is a fork, 4 does not look like its parent");
    }

    #[test]
    fn a_process_has_its_own_memory_and_not_its_parents() {
        let own = std::process::id() as i32;
        assert!(have_one(own, own));
        assert!(!have_one(own, rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get())));
    }
}
