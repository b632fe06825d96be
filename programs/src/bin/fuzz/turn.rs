//! One call of an actor: draws its arguments, makes it, and notes what came of it.
//!
//! What runs here allocates nothing and uses no thread-local variable: it runs in children of processes with several threads, on
//! stacks of a few KiB, in threads that the C library does not know, and between calls that may have unmapped anything.

use std::cell::UnsafeCell;
use std::fmt::Write;
use std::mem::MaybeUninit;

use roundtable_programs::huge::{GIB, HUGE};
use roundtable_programs::rng::Rng;
use roundtable_programs::sys::PAGE;
use syscalls::Sysno;

use crate::board::{Area, BOARD, Ring};
use crate::journal;
use crate::plan::Plan;

/// Where fixed mappings go: far from the program, its stack and what mmap chooses, so that an actor seldom hits itself.
const ARENA: usize = 0x2000_0000_0000;
const ARENA_SLOTS: usize = 4;

/// Values at the ends of what an argument can be.
const EDGES: &[usize] = &[
    0,
    1,
    7,
    PAGE - 1,
    PAGE,
    HUGE - 1,
    HUGE,
    GIB,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_e000,
    0x7fff_ffff_f000,
    0x8000_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_8000_0000_0000,
    0xffff_ffff_8000_0000,
    usize::MAX - PAGE + 1,
    usize::MAX,
];

/// What an argument means.
#[derive(Clone, Copy)]
pub enum Arg {
    Is(usize),
    OneOf(&'static [usize]),
    /// Some of these, ORed.
    Bits(&'static [usize]),
    Below(usize),
    /// An address in a known area, or in the arena.
    Address,
    /// Bytes from the last [`Arg::Address`] on.
    Length,
    /// Bytes of a file.
    Offset,
    /// Bytes to transfer.
    Size,
    Descriptor,
    /// A descriptor of a kind, mostly.
    File,
    Socket,
    Events,
    Clock,
    /// Where a segment is attached.
    Attached,
    Process,
    Thread,
    Signal,
    Path,
    /// Memory that the kernel may read or write.
    Buffer,
    /// A pointer to an [`Arg::Offset`], or null.
    OffsetPointer,
    Timespec,
    Itimerspec,
    Itimerval,
    SignalSet,
    /// A pointer to buffers; their number is the next [`Arg::Count`].
    Iovec,
    /// The same, of areas instead of buffers.
    RemoteIovec,
    Count,
    Segment,
    Timer,
    Word,
}

/// Bytes that arguments point to: threads share them, and nothing in them means anything to this program.
struct Shared<const N: usize>(UnsafeCell<MaybeUninit<[u8; N]>>);
// SAFETY: only the kernel reads and writes the bytes; races give other bytes, and any are right.
unsafe impl<const N: usize> Sync for Shared<N> {}
static BUFFER: Shared<{ 64 << 10 }> = Shared(UnsafeCell::new(MaybeUninit::zeroed()));
/// Words for futexes.
pub static WORDS: [std::sync::atomic::AtomicU32; 8] = [const { std::sync::atomic::AtomicU32::new(0) }; 8];

/// Names in the actors' folder, which is a tmpfs; `huge` in it is a hugetlbfs.
const PATHS: &[&[u8]] = &[
    b"a\0",
    b"b\0",
    b"dir\0",
    b"dir/c\0",
    b"link\0",
    b"dir/d\0",
    b"huge/a\0",
    b"huge/b\0",
    b"huge/dir\0",
    b"huge/dir/c\0",
    b"huge/a\0",
    b"huge/b\0",
    b".\0",
    b"\0",
    b"huge\0",
    b"fifo\0",
    b"/proc/self/maps\0",
    b"/proc/self/smaps\0",
    b"/proc/self/pagemap\0",
    b"/proc/self/status\0",
    b"/proc/self/mem\0",
    b"/proc/meminfo\0",
    b"/dev/zero\0",
    b"/dev/null\0",
    b"/proc/self/fd/3\0",
    b"/proc/self/fd/5\0",
    b"no/such/path\0",
];

pub struct Turn<'a> {
    pub plan: &'a Plan,
    pub actor: u32,
    pub index: u32,
    pub salt: u64,
    /// Forks and threads between the actor's first process and this one.
    pub depth: u32,
    pub rng: Rng,
    /// The call's place in the grammar.
    pub place: usize,
    area: Area,
    count: usize,
    /// Small structures that arguments point to.
    scratch: [u64; 64],
    used: usize,
}

impl<'a> Turn<'a> {
    pub fn new(plan: &'a Plan, actor: u32, index: u32, salt: u64, depth: u32) -> Turn<'a> {
        Turn {
            plan,
            actor,
            index,
            salt,
            depth,
            rng: plan.rng(actor, index, salt),
            place: usize::MAX,
            area: Area { address: ARENA, length: HUGE },
            count: 1,
            scratch: [0; 64],
            used: 0,
        }
    }

    /// Makes a call; its result, or errno.
    pub fn call(&mut self, number: Sysno, arguments: [usize; 6]) -> Result<usize, i32> {
        self.say(number.name(), &arguments);
        // SAFETY: this program is made to do anything to itself: it keeps nothing in its memory whose loss would be more than the end
        // of one actor, who is started again.
        let result = unsafe {
            syscalls::syscall!(
                number,
                arguments[0],
                arguments[1],
                arguments[2],
                arguments[3],
                arguments[4],
                arguments[5]
            )
        };
        let result = result.map_err(|error| error.into_raw());
        self.answer(result);
        result
    }

    /// Tells what is about to happen: it may be the machine's last word.
    pub fn say(&self, name: &str, arguments: &[usize]) {
        if !self.plan.trace {
            return;
        }
        let mut line = journal::Line::new();
        let _ = write!(line, "{}:{} ", self.actor, self.index);
        if self.depth > 0 {
            let _ = write!(line, "child {:x} ", self.salt & 0xffff);
        }
        let _ = write!(line, "{name}(");
        for (place, argument) in arguments.iter().enumerate() {
            let comma = if place > 0 { ", " } else { "" };
            let _ = if *argument < 4096 {
                write!(line, "{comma}{argument}")
            } else if (*argument as isize) < 0 && *argument as isize > -4096 {
                write!(line, "{comma}{}", *argument as isize)
            } else {
                write!(line, "{comma}{argument:#x}")
            };
        }
        let _ = line.write_str(")\n");
        line.print();
    }

    pub fn answer(&self, result: Result<usize, i32>) {
        journal::count(self.actor, self.place, result.is_ok());
        if !self.plan.trace {
            return;
        }
        let mut line = journal::Line::new();
        let _ = write!(line, "{}:{}     = ", self.actor, self.index);
        let _ = match result {
            Ok(value) if value < 4096 => writeln!(line, "{value}"),
            Ok(value) => writeln!(line, "{value:#x}"),
            Err(errno) => writeln!(line, "-{errno} {:?}", nix::errno::Errno::from_raw(errno)),
        };
        line.print();
    }

    /// Draws an argument: mostly what is meant, sometimes at the ends of what it can be, seldom anything.
    pub fn draw(&mut self, arg: Arg) -> usize {
        if self.rng.chance(60) && !matches!(arg, Arg::Is(_)) {
            return if self.rng.chance(3) { self.rng.draw() as usize } else { self.one_of(EDGES) };
        }
        match arg {
            Arg::Is(value) => value,
            Arg::OneOf(values) => self.one_of(values),
            Arg::Bits(bits) => self.bits(bits),
            Arg::Below(end) => self.rng.below(end),
            Arg::Address => self.address(),
            Arg::Length => self.length(),
            Arg::Offset => self.offset(),
            Arg::Size => self.one_of(&[0, 1, 100, PAGE, PAGE + 1, 4 * PAGE, 60 << 10]),
            Arg::Descriptor => BOARD.descriptors.pick(&mut self.rng).unwrap_or(0) as usize,
            Arg::File => self.of_kind(&BOARD.files),
            Arg::Socket => self.of_kind(&BOARD.sockets),
            Arg::Events => self.of_kind(&BOARD.events),
            Arg::Clock => self.of_kind(&BOARD.clocks),
            Arg::Attached => BOARD.attached.pick(&mut self.rng).map_or(0, |area| area.address),
            Arg::Process => self.process(),
            Arg::Thread => BOARD.threads.pick(&mut self.rng).unwrap_or(0) as usize,
            Arg::Signal => self.one_of(&[0, 10, 12, 14, 17, 18, 19, 20, 23, 34, 35, 64]),
            Arg::Path => {
                // Mostly what can be made.
                let most = if self.rng.chance(4) { PATHS.len() } else { 10 };
                PATHS[self.rng.below(most)].as_ptr() as usize
            }
            Arg::Buffer => self.buffer(),
            Arg::OffsetPointer if self.rng.chance(3) => 0,
            Arg::OffsetPointer => {
                let offset = self.offset() as u64;
                self.put(&[offset])
            }
            Arg::Timespec => {
                let time = self.time();
                self.put(&time)
            }
            Arg::Itimerspec => {
                let (interval, value) = (self.time(), self.time());
                self.put(&[interval[0], interval[1], value[0], value[1]])
            }
            Arg::Itimerval => {
                let (interval, value) = (self.time(), self.time());
                self.put(&[interval[0], interval[1] / 1000, value[0], value[1] / 1000])
            }
            Arg::SignalSet => {
                let set =
                    [0, 1 << 9, 1 << 11, 1 << 33, 1 << 16, u64::MAX, self.rng.draw()][self.rng.below(7)];
                self.put(&[set])
            }
            Arg::Iovec => self.iovec(false),
            Arg::RemoteIovec => self.iovec(true),
            Arg::Count => self.count,
            Arg::Segment => BOARD.segments.pick(&mut self.rng).unwrap_or(0) as usize,
            Arg::Timer => BOARD.timers.pick(&mut self.rng).unwrap_or(0) as usize,
            Arg::Word => WORDS[self.rng.below(WORDS.len())].as_ptr() as usize,
        }
    }

    fn of_kind<const N: usize>(&mut self, ring: &Ring<N>) -> usize {
        let other = self.rng.chance(8);
        let kind = ring.pick(&mut self.rng).filter(|_| !other);
        kind.or_else(|| BOARD.descriptors.pick(&mut self.rng)).unwrap_or(0) as usize
    }

    pub fn one_of(&mut self, values: &[usize]) -> usize {
        values.get(self.rng.below(values.len())).copied().unwrap_or(0)
    }

    pub fn bits(&mut self, bits: &[usize]) -> usize {
        let chosen = self.rng.draw() & self.rng.draw();
        bits.iter()
            .enumerate()
            .filter(|(place, _)| chosen >> place & 1 != 0)
            .fold(0, |all, (_, bit)| all | bit)
    }

    /// Puts words where an argument can point to them until the call is over.
    pub fn put(&mut self, words: &[u64]) -> usize {
        if self.used + words.len() > self.scratch.len() {
            self.used = 0;
        }
        let place = &mut self.scratch[self.used..][..words.len()];
        place.copy_from_slice(words);
        self.used += words.len();
        place.as_ptr() as usize
    }

    /// What stands at the start of the last [`Turn::put`] of two `int`s.
    pub fn two_ints(&self, address: usize) -> [i32; 2] {
        let first = self.scratch.as_ptr() as usize;
        let word = self.scratch.get(address.wrapping_sub(first) / 8).copied().unwrap_or(0);
        [word as i32, (word >> 32) as i32]
    }

    /// Somewhere in the arena, often near the ends of a slot of 1 GiB.
    pub fn arena(&mut self) -> usize {
        let slot = self.rng.below(ARENA_SLOTS) * GIB;
        let huge = self.one_of(&[0, 1, 2, 3, 4, 5, 8, 100, 508, 510, 511]) * HUGE;
        let page = if self.rng.chance(4) { self.one_of(&[1, 2, 3, 16, 510, 511]) * PAGE } else { 0 };
        ARENA + slot + huge + page
    }

    fn address(&mut self) -> usize {
        let area = BOARD.areas.pick(&mut self.rng).filter(|_| !self.rng.chance(8));
        let Some(area) = area else {
            let address = self.arena();
            self.area = Area { address, length: HUGE };
            return address;
        };
        let offset = match self.rng.below(8) {
            0 => self.rng.below(area.length / HUGE + 1) * HUGE,
            1 => self.rng.below(area.length.min(GIB) / PAGE + 1) * PAGE,
            2 => area.length.wrapping_sub(PAGE),
            3 if self.rng.chance(4) => self.rng.below(area.length),
            4 if self.rng.chance(4) => PAGE.wrapping_neg(),
            _ => 0,
        };
        self.area = Area {
            address: area.address.wrapping_add(offset),
            length: area.length.saturating_sub(offset).max(PAGE),
        };
        self.area.address
    }

    pub fn length(&mut self) -> usize {
        let left = self.area.length;
        match self.rng.below(10) {
            0..4 => left,
            4 => (left / 2).next_multiple_of(PAGE),
            5 => PAGE,
            6 => HUGE,
            7 => self.new_length(),
            8 => left.saturating_add(HUGE),
            _ => self.rng.below(left.min(GIB)) + 1,
        }
    }

    /// The length of something new.
    pub fn new_length(&mut self) -> usize {
        match self.rng.below(16) {
            0..5 => (1 + self.rng.below(16)) * PAGE,
            5..11 => (1 + self.rng.below(6)) * HUGE,
            11 => HUGE + PAGE,
            12 => GIB,
            13 => 2 * GIB,
            14 => self.one_of(&[64 * HUGE, 511 * HUGE, 513 * HUGE, 1 << 40, 4 << 40]),
            _ => 1 + self.rng.below(8 * PAGE),
        }
    }

    pub fn offset(&mut self) -> usize {
        match self.rng.below(8) {
            0..3 => 0,
            3..5 => self.rng.below(8) * HUGE,
            5 => self.rng.below(64) * PAGE,
            6 => self.one_of(&[100, 511 * HUGE, GIB, 1 << 40, 1 << 62]),
            _ => self.rng.below(4 * PAGE),
        }
    }

    fn process(&mut self) -> usize {
        match self.rng.below(8) {
            0 => 0,
            // Every process of this actor's group.
            1 => 0usize.wrapping_sub(self.group()),
            2 => self.group(),
            3 => journal::process(self.rng.below(crate::plan::MOST_ACTORS as usize) as u32) as usize,
            _ => BOARD.processes.pick(&mut self.rng).unwrap_or(0) as usize,
        }
    }

    fn group(&self) -> usize {
        journal::process(self.actor) as usize
    }

    fn buffer(&mut self) -> usize {
        if self.rng.chance(3) {
            return self.address();
        }
        BUFFER.0.get() as usize + self.one_of(&[0, 0, 1, 8, PAGE - 1])
    }

    /// Seconds and nanoseconds: mostly of some milliseconds at most.
    fn time(&mut self) -> [u64; 2] {
        match self.rng.below(16) {
            0..3 => [0, 0],
            3 => [0, 1],
            4 => [0, 999],
            5 => [0, 1_000_000_000],
            6 => [u64::MAX, 0],
            7 => [i64::MAX as u64, 999_999_999],
            8 => [1, 0],
            _ => [0, self.rng.below(5_000_000) as u64],
        }
    }

    fn iovec(&mut self, remote: bool) -> usize {
        self.count = 1 + self.rng.below(4);
        let mut list = [0; 8];
        for pair in list.chunks_exact_mut(2).take(self.count) {
            pair[0] = if remote { self.address() } else { self.buffer() } as u64;
            pair[1] = self.one_of(&[0, 1, 64, PAGE, 3 * PAGE, HUGE]) as u64;
        }
        self.put(&list)
    }
}
