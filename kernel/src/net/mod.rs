//! Sockets: of the Unix domain, and of TCP and UDP between the processes of this machine, and those that tell
//! of its interface.

pub mod calls;
mod flow;
pub mod inet;
pub mod message;
pub mod netlink;
pub mod options;
mod turn;
pub mod unix;
