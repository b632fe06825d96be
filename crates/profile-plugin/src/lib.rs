//! A plugin of QEMU that counts the instructions of operations by call stack.
//!
//! A program in the guest marks where an operation begins and ends (`guest_link::profile`). Between the two this plugin counts
//! every instruction of the machine, the kernel's by the functions that were called to come there. Of an operation that is
//! done several times the shortest run is kept, as the benchmark keeps the least cost.
//!
//! It also counts, for each operation, the cache lines that several CPUs write: [`lines`].
//!
//! It is for machines with one CPU, or with all CPUs on one thread (`-icount`).

mod block;
mod lines;
mod profile;
// The functions that QEMU has are missing in a test's program.
#[cfg(not(test))]
mod qemu;
