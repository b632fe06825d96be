//! Sockets: of the Unix domain only.

pub mod message;
pub mod options;
pub mod unix;
