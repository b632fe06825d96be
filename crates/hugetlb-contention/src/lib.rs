//! The cache lines that CPUs take from each other in the library's operations, counted.
//!
//! Two CPUs show nothing about 64. So the operations run on 64 simulated CPUs, one after the other on one thread, and every load
//! and store of the library is looked at: the compiler calls a function before each of them, in a build with
//! `-Zsanitizer=thread` (`cargo xtask bench --contention` makes it). A model of coherence ([`coherence`]) has which CPU has which
//! line, and counts how often one has to take a line that another has.
//!
//! * [`hooks`]: what the compiler calls. Recorded is what runs between [`hooks::library`] and its return, without what the machine
//!   does for the library (frames, walks of tables of the host), which is the host's business, and without the stack.
//! * [`heap`]: each simulated CPU has memory of its own, as with the caches of a kernel's allocator.
//! * [`machine`]: the simulated machine, with locks as large as the kernel's.
//! * [`scene`]: the operations.
//!
//! CPUs take turns: between two operations of one CPU each other CPU makes one. What is counted is which lines move, not how long they are
//! waited for.
#![warn(missing_docs)]
#![cfg_attr(roundtable_counted, feature(sanitize))]

pub mod coherence;
pub mod heap;
pub mod hooks;
pub mod machine;
pub mod scene;

/// Whether this build counts.
pub const COUNTS: bool = cfg!(roundtable_counted);
