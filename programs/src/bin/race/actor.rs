//! A process of the cast that maps the files: its threads fault, one of them disturbs.

use roundtable_programs::Errno;
use roundtable_programs::fault;
use roundtable_programs::file::Fd;
use roundtable_programs::rng::Rng;

use crate::board::{Board, Count, Finding, Kind, Step};
use crate::cast::Plot;
use crate::scale::places;
use crate::stamp::{LAST_QUARTER, USED, Word, stamp};
use crate::view::{Ground, View};
use crate::ways::SITTER;

pub struct Actor<'a> {
    pub number: u32,
    pub plot: Plot,
    pub board: &'a Board,
    pub grounds: &'a [Ground],
    pub sitter: &'a Fd,
    pub views: Vec<View<'a>>,
}

impl<'a> Actor<'a> {
    pub fn new(
        number: u32,
        plot: Plot,
        board: &'a Board,
        grounds: &'a [Ground],
        sitter: &'a Fd,
    ) -> Result<Actor<'a>, Errno> {
        let views = grounds.iter().enumerate().map(|(file, ground)| View::new(file, ground));
        Ok(Actor { number, plot, board, grounds, sitter, views: views.collect::<Result<_, _>>()? })
    }

    /// A process that has nothing to do with the files: it maps none of them.
    pub fn outside(number: u32, plot: Plot, board: &'a Board, sitter: &'a Fd) -> Actor<'a> {
        Actor { number, plot, board, grounds: &[], sitter, views: Vec::new() }
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

    /// The file of a view.
    pub fn file(&self, view: &View) -> &Fd {
        &self.grounds[view.file].file
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
