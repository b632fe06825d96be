//! A process of the cast that maps the files: its threads fault, one of them disturbs.

use std::sync::atomic::{AtomicUsize, Ordering};

use roundtable_programs::Errno;
use roundtable_programs::fault;
use roundtable_programs::file::Fd;
use roundtable_programs::mem::{FIXED, Map, NORESERVE, RW, SHARED, mmap};
use roundtable_programs::rng::Rng;

use crate::board::{Board, Count, Finding, Kind, Step};
use crate::cast::Plot;
use crate::scale::{page_size, places, slot_size};
use crate::stamp::{LAST_QUARTER, USED, Word, stamp};
use crate::ways::SITTER;

/// A file's mapping: a whole 1 GiB slot, in one of two places.
pub struct View {
    /// The file's number.
    pub file: usize,
    fd: i32,
    home: Map,
    offset: AtomicUsize,
}

impl View {
    fn new(file: usize, fd: &Fd) -> Result<View, Errno> {
        let home = Map::reserve(2 * slot_size(), slot_size());
        let view = View { file, fd: fd.raw(), home, offset: AtomicUsize::new(0) };
        view.map(0, slot_size())?;
        Ok(view)
    }

    pub fn start(&self) -> usize {
        self.home.address + self.offset.load(Ordering::SeqCst)
    }

    pub fn other_start(&self) -> usize {
        self.home.address + (slot_size() - self.offset.load(Ordering::SeqCst))
    }

    /// The mapping is in the other place now.
    pub fn moved(&self) {
        self.offset.fetch_xor(slot_size(), Ordering::SeqCst);
    }

    pub fn address(&self, index: usize, place: usize) -> usize {
        self.start() + index * page_size() + place
    }

    /// Maps the file over a part of its place.
    pub fn map(&self, offset: usize, length: usize) -> Result<(), Errno> {
        let flags = SHARED | FIXED | NORESERVE;
        mmap(self.start() + offset, length, RW, flags, self.fd, offset as i64).map(drop)
    }
}

pub struct Actor<'a> {
    pub number: u32,
    pub plot: Plot,
    pub board: &'a Board,
    pub files: &'a [Fd],
    pub sitter: &'a Fd,
    pub views: Vec<View>,
}

impl<'a> Actor<'a> {
    pub fn new(
        number: u32,
        plot: Plot,
        board: &'a Board,
        files: &'a [Fd],
        sitter: &'a Fd,
    ) -> Result<Actor<'a>, Errno> {
        let views = files.iter().enumerate().map(|(file, fd)| View::new(file, fd));
        Ok(Actor { number, plot, board, files, sitter, views: views.collect::<Result<_, _>>()? })
    }

    /// A process that has nothing to do with the files: it maps none of them.
    pub fn outside(number: u32, plot: Plot, board: &'a Board, files: &'a [Fd], sitter: &'a Fd) -> Actor<'a> {
        Actor { number, plot, board, files, sitter, views: Vec::new() }
    }

    pub fn find(&self, kind: Kind, file: usize, index: usize, seen: u64, expected: u64) {
        let (process, file, index) = (self.number, file as u32, index as u32);
        self.board.report(Finding { kind, process, file, index, seen, expected });
    }

    /// A call that has no reason to fail: if it does, the run is worth nothing.
    #[track_caller]
    pub fn expect(&self, holds: bool, call: &str) {
        if !holds {
            let error = Errno::last();
            eprintln!("race: {call}: {} ({})", error.desc(), std::panic::Location::caller());
            std::process::abort();
        }
    }

    /// One load and maybe one store, somewhere.
    pub fn touch(&self, rng: &mut Rng) {
        let view = &self.views[rng.below(self.views.len())];
        let index = USED[rng.below(USED.len())];
        let address = view.address(index, places()[rng.below(places().len())]);
        self.board.add(Count::Touches, 1);
        match fault::load(address) {
            Ok(word) => self.judge(word, view.file, index),
            Err(_) => return self.board.add(Count::Refused, 1),
        }
        if rng.chance(2) {
            self.board.add(Count::Touches, 1);
            if fault::store(address, stamp(view.file, index, self.board.nonce())).is_err() {
                self.board.add(Count::Refused, 1);
            }
        }
    }

    fn judge(&self, word: u64, file: usize, index: usize) {
        let kind = match Word::of(word, file, index) {
            Word::Zero | Word::Right => return,
            Word::Foreign => Kind::Foreign,
            Word::Junk => Kind::Junk,
        };
        let by_sitter =
            self.plot.way.has_sitter() && index >= LAST_QUARTER && word == stamp(SITTER, index, 0);
        if !by_sitter {
            self.find(kind, file, index, word, 0);
        }
    }

    /// A faulting thread; the first one of a process speaks for it while all stand still.
    pub fn fault(&self, mut rng: Rng, leads: bool) {
        self.play(
            || {
                for _ in 0..4 {
                    self.touch(&mut rng);
                }
            },
            leads,
        );
    }

    /// The thread that does what the way is named for.
    pub fn disturb(&self, mut rng: Rng) {
        self.play(
            || {
                self.plot.way.act(self, &mut rng);
                self.board.add(Count::Acts, 1);
            },
            false,
        );
    }

    /// Does `run` again and again while everybody runs, and takes part in what comes between.
    pub fn play(&self, mut run: impl FnMut(), leads: bool) {
        loop {
            let (step, word) = self.board.step();
            match step {
                Step::Run => {
                    run();
                    continue;
                }
                Step::Stop => return,
                Step::Pause => {}
                Step::Write if leads && self.board.writer() == self.number => crate::compare::write(self),
                Step::Compare if leads => crate::compare::compare(self),
                Step::Write | Step::Compare => {}
            }
            self.board.arrive(word);
        }
    }
}
