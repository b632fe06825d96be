//! The audit from the outside: recordings of hosts, golden outputs, formats, files that are replaced.
//!
//! `UPDATE_EXPECT=1 cargo test -p roundtable --test audit` writes the golden outputs anew.
//! `tests/recordings/README.md` says how the recordings were made.

mod commands;
mod deadline;
mod exposition;
mod golden;
mod manners;
mod monitoring;
mod output_file;
mod plan;
mod pools;
mod prometheus;
mod recordings;
mod scale;
mod strange;
mod streams;
mod watch;
