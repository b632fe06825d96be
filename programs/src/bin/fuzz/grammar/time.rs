//! Time: sleeping, and timers of every kind with the smallest and largest intervals.

use libc::*;
use syscalls::Sysno;

use super::{Call, Kind, opens, plain, special};
use crate::board::BOARD;
use crate::turn::Arg::{self, Below, Buffer, Clock, Is, Itimerspec, Itimerval, OneOf, Timer, Timespec};
use crate::turn::Turn;

pub const CALLS: &[Call] = &[
    plain("nanosleep", 4, Sysno::nanosleep, &[Timespec, Buffer]),
    plain("clock_nanosleep", 3, Sysno::clock_nanosleep, &[CLOCK, Below(2), Timespec, Is(0)]),
    plain("clock_gettime", 1, Sysno::clock_gettime, &[CLOCK, Buffer]),
    plain("setitimer", 3, Sysno::setitimer, &[Below(3), Itimerval, Is(0)]),
    plain("getitimer", 1, Sysno::getitimer, &[Below(3), Buffer]),
    special("timer_create", 5, create),
    plain("timer_settime", 6, Sysno::timer_settime, &[Timer, Below(2), Itimerspec, Is(0)]),
    plain("timer_gettime", 1, Sysno::timer_gettime, &[Timer, Buffer]),
    plain("timer_getoverrun", 1, Sysno::timer_getoverrun, &[Timer]),
    plain("timer_delete", 3, Sysno::timer_delete, &[Timer]),
    opens(
        "timerfd_create",
        3,
        Sysno::timerfd_create,
        &[CLOCK, OneOf(&[0, O_NONBLOCK as usize])],
        Kind::Clock,
    ),
    plain("timerfd_settime", 5, Sysno::timerfd_settime, &[Clock, OneOf(&[0, 1, 3]), Itimerspec, Is(0)]),
    plain("timerfd_gettime", 1, Sysno::timerfd_gettime, &[Clock, Buffer]),
];

const CLOCK: Arg = OneOf(&[0, 1, 1, 1, 2, 3, 4, 7, 8]);

fn create(turn: &mut Turn) {
    let clock = turn.draw(CLOCK);
    let place = turn.put(&[0]);
    // A sigevent: a value, then the signal and SIGEV_SIGNAL or SIGEV_NONE.
    let (signal, how) = (turn.one_of(&[10, 12, 14, 34]) as u64, turn.rng.below(2) as u64);
    let event = turn.put(&[0, signal | how << 32, 0, 0, 0, 0, 0, 0]);
    let event = if turn.rng.chance(4) { 0 } else { event };
    if turn.call(Sysno::timer_create, [clock, event, place, 0, 0, 0]).is_ok() {
        let [timer, _] = turn.two_ints(place);
        BOARD.timers.put(timer);
    }
}
