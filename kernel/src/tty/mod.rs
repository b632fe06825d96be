//! Terminals: the serial console, pseudoterminals, line discipline, job control.
//!
//! A [`Tty`](core::Tty) has a [`Driver`](driver::Driver) below it and the line discipline inside; programs see it through a
//! [`TtyFile`](file::TtyFile).

pub mod core;
mod discipline;
mod driver;
mod file;
mod ioctl;
pub mod job;
pub mod pty;
mod serial;
mod termios;

pub use file::init;
pub use job::session_leader_ends;
pub use serial::drain;
