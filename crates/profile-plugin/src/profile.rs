//! Call stacks from the order of blocks, and the instructions spent in each.
//!
//! A block that ends with a call is followed by the callee's first block, and the callee's return by the block behind the call.
//! A return to anywhere else is a switch to another thread. Its stack was put by when it was switched from, and is found again
//! by the address to which it returns.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use guest_link::profile::{Mark, OPERATIONS};

use crate::block::{Block, Ending};

/// The stacks of threads that wait are kept for so many; those of threads that have ended stay until then.
const PARKED: usize = 256;
/// A node without a parent: code of user space, or nobody's.
const ROOT: u32 = 0;

#[derive(Clone, Copy)]
struct Frame {
    node: u32,
    /// `None` for what an exception of the kernel began.
    returns_to: Option<u64>,
}

/// Instructions by node and start of block.
type Counts = HashMap<(u32, u64), u64>;

#[derive(Default)]
struct Operation {
    now: Option<Counts>,
    least: Option<(u64, Counts)>,
}

/// What was seen of a machine so far.
pub struct Profile {
    /// The parent of each function that was called, and its address.
    nodes: Vec<(u32, u64)>,
    children: HashMap<(u32, u64), u32>,
    stack: Vec<Frame>,
    parked: Vec<Vec<Frame>>,
    /// Where user space enters the kernel.
    entries: HashSet<u64>,
    previous: Option<Block>,
    operations: [Operation; OPERATIONS],
}

fn is_kernel(address: u64) -> bool {
    address >> 63 == 1
}

impl Profile {
    /// Nothing was seen.
    pub fn new() -> Profile {
        Profile {
            nodes: vec![(ROOT, 0)],
            children: HashMap::new(),
            stack: Vec::new(),
            parked: Vec::new(),
            entries: HashSet::new(),
            previous: None,
            operations: Default::default(),
        }
    }

    /// A block begins.
    pub fn enter(&mut self, block: &Block) {
        let previous = self.previous.replace(*block);
        self.follow(previous, block.start);
        let node = self.top();
        for counts in self.operations.iter_mut().filter_map(|operation| operation.now.as_mut()) {
            let start = if is_kernel(block.start) { block.start } else { 0 };
            *counts.entry((node, start)).or_default() += block.instructions;
        }
    }

    fn top(&self) -> u32 {
        self.stack.last().map_or(ROOT, |frame| frame.node)
    }

    fn push(&mut self, function: u64, returns_to: Option<u64>) {
        let parent = self.top();
        let node = *self.children.entry((parent, function)).or_insert_with(|| {
            self.nodes.push((parent, function));
            self.nodes.len() as u32 - 1
        });
        self.stack.push(Frame { node, returns_to });
    }

    /// Brings the stack from the end of a block to the start of the next.
    fn follow(&mut self, previous: Option<Block>, start: u64) {
        let Some(previous) = previous else { return };
        match (is_kernel(previous.start), is_kernel(start)) {
            (_, false) => self.stack.clear(),
            (false, true) => {
                self.entries.insert(start);
                self.stack.clear();
                self.push(start, None);
            }
            (true, true) if self.entries.contains(&start) => self.push(start, None),
            (true, true) => match previous.ending {
                Ending::Call => self.push(start, Some(previous.end)),
                Ending::Return => self.leave(start),
                Ending::ReturnFromTrap => {
                    let trap = self.stack.iter().rposition(|frame| frame.returns_to.is_none());
                    self.stack.truncate(trap.unwrap_or(0));
                }
                Ending::Other => {}
            },
        }
    }

    /// Follows a return.
    fn leave(&mut self, start: u64) {
        let is_from = |frame: &Frame| frame.returns_to == Some(start);
        if let Some(depth) = self.stack.iter().rposition(is_from) {
            self.stack.truncate(depth);
            return;
        }
        let left = std::mem::take(&mut self.stack);
        if let Some(place) = self.parked.iter().rposition(|stack| stack.last().is_some_and(is_from)) {
            self.stack = self.parked.remove(place);
            self.stack.pop();
        }
        if self.parked.len() == PARKED {
            self.parked.remove(0);
        }
        self.parked.push(left);
    }

    /// A mark was met.
    pub fn mark(&mut self, mark: Mark) {
        let Some(operation) = self.operations.get_mut(mark.operation) else { return };
        if mark.begins {
            operation.now = Some(Counts::new());
        } else if let Some(counts) = operation.now.take() {
            let total = counts.values().sum();
            if operation.least.as_ref().is_none_or(|(least, _)| total < *least) {
                operation.least = Some((total, counts));
            }
        }
    }

    /// A line for each place in each operation: the operation's number, the functions from the outermost on and the block, all in
    /// hexadecimal, and the instructions. User space is the address 0.
    pub fn lines(&self) -> String {
        let mut out = String::new();
        for (number, operation) in self.operations.iter().enumerate() {
            let Some((_, counts)) = &operation.least else { continue };
            for (&(node, block), count) in counts {
                let mut functions = Vec::new();
                let mut at = node;
                while at != ROOT {
                    let (parent, function) = self.nodes[at as usize];
                    functions.push(function);
                    at = parent;
                }
                let _ = write!(out, "{number:x} ");
                for function in functions.iter().rev() {
                    let _ = write!(out, "{function:x};");
                }
                let _ = writeln!(out, "{block:x} {count}");
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: u64 = 0xffff_ffff_8000_0000;

    fn block(start: u64, instructions: u64, ending: Ending) -> Block {
        let start = if start < 0x1000 { start } else { KERNEL + start };
        Block { start, end: start + 0x10, instructions, ending }
    }

    fn mark(profile: &mut Profile, begins: bool) {
        profile.mark(Mark { operation: 3, begins });
    }

    /// The lines, with the kernel's addresses as the tests write them.
    fn lines(profile: &Profile) -> Vec<String> {
        let text = profile.lines().replace("ffffffff8000", "");
        let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
        lines.sort();
        lines
    }

    #[test]
    fn instructions_are_counted_where_calls_led() {
        let mut profile = Profile::new();
        profile.enter(&block(0x10, 100, Ending::Other));
        mark(&mut profile, true);
        for (start, instructions, ending) in [
            (0x20, 1, Ending::Other),
            (0x5000, 2, Ending::Call),
            (0x6000, 3, Ending::Call),
            (0x7000, 4, Ending::Return),
            (0x6010, 5, Ending::Return),
            (0x5010, 6, Ending::Other),
            (0x30, 7, Ending::Other),
        ] {
            profile.enter(&block(start, instructions, ending));
        }
        mark(&mut profile, false);
        profile.enter(&block(0x40, 100, Ending::Other));
        let expected = [
            "3 0 8",
            "3 5000;5000 2",
            "3 5000;5010 6",
            "3 5000;6000;6000 3",
            "3 5000;6000;6010 5",
            "3 5000;6000;7000;7000 4",
        ];
        assert_eq!(lines(&profile), expected);
    }

    #[test]
    fn the_shortest_run_is_kept() {
        let mut profile = Profile::new();
        for instructions in [9, 4, 6] {
            mark(&mut profile, true);
            profile.enter(&block(0x10, instructions, Ending::Other));
            mark(&mut profile, false);
        }
        assert_eq!(lines(&profile), ["3 0 4"]);
    }

    #[test]
    fn a_thread_that_is_switched_to_has_its_own_stack() {
        let mut profile = Profile::new();
        // A thread enters the kernel at 5000 and switches, in 6000, to one that has not run yet and begins at 9000.
        for (start, ending) in [
            (0x10, Ending::Other),
            (0x5000, Ending::Call),
            (0x6000, Ending::Return),
            (0x9000, Ending::Call),
            // That one calls the switch as well, and it comes back to the first.
            (0x6000, Ending::Return),
        ] {
            profile.enter(&block(start, 1, ending));
        }
        mark(&mut profile, true);
        profile.enter(&block(0x5010, 1, Ending::Other));
        mark(&mut profile, false);
        assert_eq!(lines(&profile), ["3 5000;5010 1"]);
    }

    #[test]
    fn an_interrupt_of_the_kernel_is_left_as_it_was_entered() {
        let mut profile = Profile::new();
        // The entry is known because user space came in there before.
        for (start, ending) in
            [(0x10, Ending::Other), (0x8000, Ending::ReturnFromTrap), (0x20, Ending::Other)]
        {
            profile.enter(&block(start, 1, ending));
        }
        mark(&mut profile, true);
        for (start, ending) in [
            (0x5000, Ending::Call),
            (0x6000, Ending::Other),
            (0x8000, Ending::ReturnFromTrap),
            (0x6020, Ending::Return),
            (0x5010, Ending::Other),
        ] {
            profile.enter(&block(start, 1, ending));
        }
        mark(&mut profile, false);
        let expected = [
            "3 5000;5000 1",
            "3 5000;5010 1",
            "3 5000;6000;6000 1",
            "3 5000;6000;6020 1",
            "3 5000;6000;8000;8000 1",
        ];
        assert_eq!(lines(&profile), expected);
    }
}
