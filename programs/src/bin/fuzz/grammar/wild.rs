//! Any call with any arguments.

use syscalls::Sysno;

use super::{Call, special};
use crate::turn::{Arg, Turn};

pub const CALLS: &[Call] = &[special("wild", 12, wild)];

/// Not these: with them an actor does little but end, or leaves what the grammar's own versions keep track of.
const LEFT_OUT: [Sysno; 9] = [
    Sysno::exit,
    Sysno::exit_group,
    Sysno::fork,
    Sysno::vfork,
    Sysno::clone,
    Sysno::clone3,
    Sysno::rt_sigreturn,
    Sysno::close_range,
    Sysno::restart_syscall,
];

const KINDS: [Arg; 12] = [
    Arg::Address,
    Arg::Length,
    Arg::Offset,
    Arg::Descriptor,
    Arg::Path,
    Arg::Buffer,
    Arg::Process,
    Arg::Signal,
    Arg::Timespec,
    Arg::Below(8),
    Arg::Is(0),
    Arg::Size,
];

fn wild(turn: &mut Turn) {
    let Some(number) = Sysno::new(turn.rng.below(462)).filter(|number| !LEFT_OUT.contains(number)) else {
        return;
    };
    let mut arguments = [0; 6];
    for argument in &mut arguments {
        let kind = KINDS[turn.rng.below(KINDS.len())];
        *argument = turn.draw(kind);
    }
    let _ = turn.call(number, arguments);
}
