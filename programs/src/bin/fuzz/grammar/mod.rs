//! The calls that actors make, and how often.

mod files;
mod ipc;
mod memory;
mod processes;
mod regions;
mod signals;
mod time;
mod wild;

pub use processes::{CONTINUE, Child, run_child};
pub use signals::catch_all;

use roundtable_programs::rng::Rng;
use syscalls::Sysno;

use crate::board::BOARD;
use crate::plan::Plan;
use crate::turn::{Arg, Turn};

/// A call of the grammar.
pub struct Call {
    pub name: &'static str,
    /// How often it is made, compared with others.
    weight: u32,
    what: What,
}

enum What {
    /// A system call with these arguments.
    Plain(Sysno, &'static [Arg]),
    /// The same; its result is a descriptor, also remembered by its kind.
    Opens(Sysno, &'static [Arg], Kind),
    /// What needs more than one list of arguments.
    Special(fn(&mut Turn)),
}

#[derive(Clone, Copy)]
enum Kind {
    Any,
    File,
    Events,
    Clock,
}

/// Remembers a descriptor.
fn opened(descriptor: i32, kind: Kind) {
    BOARD.descriptors.put(descriptor);
    match kind {
        Kind::Any => {}
        Kind::File => BOARD.files.put(descriptor),
        Kind::Events => BOARD.events.put(descriptor),
        Kind::Clock => BOARD.clocks.put(descriptor),
    }
}

const fn plain(name: &'static str, weight: u32, number: Sysno, arguments: &'static [Arg]) -> Call {
    Call { name, weight, what: What::Plain(number, arguments) }
}

const fn opens(
    name: &'static str,
    weight: u32,
    number: Sysno,
    arguments: &'static [Arg],
    kind: Kind,
) -> Call {
    Call { name, weight, what: What::Opens(number, arguments, kind) }
}

const fn special(name: &'static str, weight: u32, run: fn(&mut Turn)) -> Call {
    Call { name, weight, what: What::Special(run) }
}

const GROUPS: [&[Call]; 8] = [
    memory::CALLS,
    regions::CALLS,
    files::CALLS,
    processes::CALLS,
    signals::CALLS,
    time::CALLS,
    ipc::CALLS,
    wild::CALLS,
];

/// The calls of one round. Each round leaves some out and makes others more often: a state that takes many calls of one kind to reach
/// is not reached by an even mixture.
pub struct Mixture {
    /// The sum of the weights up to here, the call, and its place in the grammar.
    calls: Vec<(u32, &'static Call, usize)>,
    sum: u32,
}

impl Mixture {
    pub fn of(plan: &Plan) -> Mixture {
        let mut rng = plan.round_rng();
        let mut mixture = Mixture { calls: Vec::new(), sum: 0 };
        let mut place = 0;
        for group in GROUPS {
            let often = [1, 1, 2, 4][rng.below(4)];
            for call in group {
                let factor = [0, 1, 1, 1, 4][rng.below(5)];
                place += 1;
                if plan.without.iter().any(|name| name == call.name) {
                    continue;
                }
                mixture.sum += call.weight * often * factor;
                mixture.calls.push((mixture.sum, call, place - 1));
            }
        }
        mixture
    }

    fn choose(&self, rng: &mut Rng) -> Option<(&'static Call, usize)> {
        let at = rng.below(self.sum.max(1) as usize) as u32;
        // The first one whose sum is greater: a call of weight 0 has the sum of the one before it.
        let place = self.calls.partition_point(|&(sum, ..)| sum <= at);
        self.calls.get(place).map(|&(_, call, place)| (call, place))
    }

    /// Makes the call that this turn is for.
    pub fn play(&self, turn: &mut Turn) {
        let Some((call, place)) = self.choose(&mut turn.rng) else { return };
        turn.place = place;
        match call.what {
            What::Plain(number, list) => _ = make(turn, number, list),
            What::Opens(number, list, kind) => {
                if let Ok(descriptor) = make(turn, number, list) {
                    opened(descriptor as i32, kind);
                }
            }
            What::Special(run) => run(turn),
        }
    }
}

fn make(turn: &mut Turn, number: Sysno, list: &[Arg]) -> Result<usize, i32> {
    let mut arguments = [0; 6];
    for (place, &arg) in arguments.iter_mut().zip(list) {
        *place = turn.draw(arg);
    }
    turn.call(number, arguments)
}

/// The names of all calls.
pub fn names() -> impl Iterator<Item = &'static str> {
    GROUPS.into_iter().flatten().map(|call| call.name)
}
