//! What the host and the guest's init say to each other.
//!
//! One-way streams, all of them Linux interfaces that every kernel has, so that the same init works on
//! Roundtable and on Debian's Linux:
//!
//! * the [`Job`]: a file in the initramfs, written by the host, read and removed by init;
//! * [`Frame`]s: reports of init to the host, in between the job's output on the console;
//! * [`record`]s: what measuring programs print, for the host to collect;
//! * [`profile`]: marks in them, for who counts their instructions from outside;
//! * [`relay`]: the job's standard input, byte-stuffed: it has an end, and a terminal's size between its bytes.
#![warn(missing_docs)]

pub mod frame;
pub mod job;
pub mod profile;
pub mod record;
pub mod relay;

pub use frame::{Decoder, Ending, Frame, Item};
pub use job::{Input, Job, Test, Work};
