//! The line discipline: editing, echo, special characters, output processing.
//!
//! It knows neither the device nor processes: echo and processed output go to a byte sink, and what else is to happen comes back
//! as [`Action`]. Rules and corner cases are those of termios(3) as Linux implements them.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use linux_raw_sys::general as abi;

use super::termios::Termios;
use crate::errno::Result;
use crate::memory::fallible;

/// Bytes of input that a terminal holds: `N_TTY_BUF_SIZE`. One less is used.
pub const INPUT_SIZE: usize = 4096;
/// Bytes of echo that are on their way to the device.
const ECHO_SIZE: usize = 4096;
/// What a terminal's buffers take, in bytes.
pub const MEMORY: usize = INPUT_SIZE * size_of::<Cell>() + ECHO_SIZE;

/// Bytes for the device. It never grows, since terminals are locked while it is filled: what there is no room for is lost.
#[derive(Default)]
pub struct Output(Vec<u8>);

impl Output {
    /// With room for so many bytes.
    pub fn with_room(bytes: usize) -> Result<Self> {
        fallible::with_capacity(bytes).map(Self)
    }

    /// Adds a byte.
    pub fn push(&mut self, byte: u8) {
        if self.0.len() < self.0.capacity() {
            self.0.push(byte);
        }
    }

    fn extend_from_slice(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.push(*byte));
    }

    /// Makes it empty.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// What is in it.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// More than half of it is used.
    pub fn is_filling(&self) -> bool {
        self.0.len() > self.0.capacity() / 2
    }
}

/// What a received character asks for beyond the buffer and the echo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// Readers may go on.
    Ready,
    /// Send this signal to the foreground group; `flush`: drop pending input and output, too.
    Signal { signal: u32, flush: bool },
    /// Stop or go on with output.
    Stopped(bool),
}

/// A byte of input with what it means for canonical reads.
#[derive(Clone, Copy)]
struct Cell {
    byte: u8,
    /// A line ends with it.
    ends_line: bool,
    /// It is the end-of-file character: it ends a line and is not part of it.
    is_eof: bool,
}

/// What one character has begun, and goes on with in another hold of the lock.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unfinished {
    Nothing,
    /// The line that is being edited is shown again, from this character of it on.
    Reprint {
        at: usize,
    },
    /// Characters are erased; `in_word`: one of the word is gone.
    Erase {
        what: Erase,
        in_word: bool,
    },
    /// One of them is a tab.
    Tab(Tab),
}

/// A tab that is erased: so many characters before it are looked at, and take so many places. And the erasure that it is part of.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Tab {
    looked_at: usize,
    chars: usize,
    what: Erase,
    in_word: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Erase {
    Character,
    Word,
    Line,
}

/// State of the line discipline.
pub struct Discipline {
    /// The settings.
    pub termios: Termios,
    input: VecDeque<Cell>,
    /// How many cells at the front are complete lines; behind them is the line that is being edited.
    complete: usize,
    /// The next character is taken as it is.
    literal_next: bool,
    /// A `\` of ECHOPRT is open.
    erasing: bool,
    unfinished: Unfinished,
    /// Characters that may yet be looked at in this hold of the lock.
    steps: usize,
    /// Where the cursor is.
    column: usize,
    /// Where it was when the line that is being edited began.
    line_column: usize,
    /// Output is stopped by the STOP character or by TCXONC.
    pub stopped: bool,
    /// For echoes, while characters are received; else empty.
    pub echo: Output,
}

fn is_control(byte: u8) -> bool {
    byte < 0x20 || byte == 0x7f
}

impl Discipline {
    /// Nothing typed yet. All buffers have their full size from the start: later they are used with a spin lock held.
    pub fn new(termios: Termios) -> Result<Self> {
        let mut input = VecDeque::new();
        fallible::reserve_queue(&mut input, INPUT_SIZE)?;
        Ok(Self {
            termios,
            input,
            complete: 0,
            literal_next: false,
            erasing: false,
            unfinished: Unfinished::Nothing,
            steps: 0,
            column: 0,
            line_column: 0,
            stopped: false,
            echo: Output::with_room(ECHO_SIZE)?,
        })
    }

    /// The lock was taken, to look at so many characters.
    pub fn begin_hold(&mut self, steps: usize) {
        self.steps = steps;
    }

    /// May more be done in this hold of the lock?
    pub fn may_go_on(&self) -> bool {
        self.steps > 0
    }

    fn count_steps(&mut self, steps: usize) {
        self.steps = self.steps.saturating_sub(steps);
    }

    /// Has the last character begun something that is not over? Then [`Self::go_on`] comes before the next one.
    pub fn is_unfinished(&self) -> bool {
        self.unfinished != Unfinished::Nothing
    }

    /// Goes on with what a character has begun, as far as the steps of this hold go.
    pub fn go_on(&mut self, out: &mut Output) {
        match self.unfinished {
            Unfinished::Nothing => {}
            Unfinished::Reprint { at } => self.reprint(at, out),
            Unfinished::Erase { what, in_word } => self.erase_some(what, in_word, out),
            Unfinished::Tab(tab) => {
                if self.erase_tab(tab, out) {
                    self.erased_one(tab.what, tab.in_word, out);
                }
            }
        }
    }

    fn canonical(&self) -> bool {
        self.termios.local(abi::ICANON)
    }

    /// Takes new settings, with what they mean for the input that is there: in canonical mode all of it becomes a line, without it all
    /// may be read.
    pub fn set_termios(&mut self, new: Termios) {
        let switched = (self.termios.local ^ new.local) & abi::ICANON != 0;
        self.termios = new;
        if !switched {
            return;
        }
        for cell in &mut self.input {
            cell.ends_line = false;
            cell.is_eof = false;
        }
        self.complete = 0;
        if self.canonical()
            && let Some(last) = self.input.back_mut()
        {
            last.ends_line = true;
            self.complete = self.input.len();
        }
        self.erasing = false;
        self.literal_next = false;
        self.unfinished = Unfinished::Nothing;
    }

    /// Drops all input.
    pub fn flush_input(&mut self) {
        self.input.clear();
        self.complete = 0;
        self.literal_next = false;
        self.erasing = false;
        self.unfinished = Unfinished::Nothing;
    }

    /// Bytes that FIONREAD reports: in canonical mode those of complete lines.
    pub fn available(&self) -> usize {
        if self.canonical() {
            self.input.iter().take(self.complete).filter(|c| !c.is_eof).count()
        } else {
            self.input.len()
        }
    }

    /// May a read go on: a line in canonical mode, else `minimum` bytes?
    pub fn readable(&self, minimum: usize) -> bool {
        if self.canonical() { self.complete > 0 } else { self.input.len() >= minimum.max(1) }
    }

    /// Is there room for one more character? When a line without an end fills the buffer there always is: what does not fit is lost.
    pub fn has_room(&self) -> bool {
        self.input.len() < INPUT_SIZE - 1 || self.canonical() && self.complete == 0
    }

    /// What one read(2) of `size` bytes gets: puts the bytes into `bytes`, which is empty and has room for them, and returns how many
    /// cells [`Self::consume`] is then to take away (one more than bytes when an end of file is met; that alone is an end of file for the
    /// reader).
    pub fn peek(&self, size: usize, bytes: &mut Vec<u8>) -> usize {
        if !self.canonical() {
            bytes.extend(self.input.iter().take(size).map(|c| c.byte));
            return bytes.len();
        }
        for cell in self.input.iter().take(self.complete) {
            // An end of file right after the bytes that just fit belongs to this read.
            if cell.is_eof {
                return bytes.len() + 1;
            }
            if bytes.len() == size {
                break;
            }
            bytes.push(cell.byte);
            if cell.ends_line {
                break;
            }
        }
        bytes.len()
    }

    /// Takes `cells` away that a reader has got. Fewer may be there: input can be flushed in between.
    pub fn consume(&mut self, cells: usize) {
        let cells = cells.min(self.input.len());
        self.input.drain(..cells);
        self.complete = self.complete.saturating_sub(cells);
    }

    fn put(&mut self, byte: u8, ends_line: bool, is_eof: bool) {
        if self.input.len() >= INPUT_SIZE - 1 && self.canonical() && self.complete < self.input.len() {
            // The line is too long: its last character makes room, so that its end still comes through.
            self.input.pop_back();
        }
        self.input.push_back(Cell { byte, ends_line, is_eof });
        if ends_line {
            self.complete = self.input.len();
        }
    }

    /// One character has come from the device. Nothing is unfinished.
    pub fn receive(&mut self, byte: u8, out: &mut Output) -> Action {
        self.count_steps(1);
        let t = self.termios;
        let mut c = byte;
        if t.input(abi::ISTRIP) {
            c &= 0x7f;
        }
        if t.input(abi::IUCLC) && t.local(abi::IEXTEN) {
            c = c.to_ascii_lowercase();
        }
        if t.local(abi::EXTPROC) {
            self.put(c, false, false);
            return Action::Ready;
        }
        if self.literal_next {
            self.literal_next = false;
            return self.ordinary(c, out);
        }
        if t.input(abi::IXON) {
            if t.is_char(c, abi::VSTART) {
                self.stopped = false;
                return Action::Stopped(false);
            }
            if t.is_char(c, abi::VSTOP) {
                self.stopped = true;
                return Action::Stopped(true);
            }
        }
        if t.local(abi::ISIG) {
            let signals = [(abi::VINTR, abi::SIGINT), (abi::VQUIT, abi::SIGQUIT), (abi::VSUSP, abi::SIGTSTP)];
            for (index, signal) in signals {
                if t.is_char(c, index) {
                    return self.signal(c, signal, out);
                }
            }
        }
        let resumed = self.stopped && t.input(abi::IXON) && t.input(abi::IXANY);
        if resumed {
            self.stopped = false;
        }
        let action = self.translated(c, out);
        if resumed && action == Action::None { Action::Stopped(false) } else { action }
    }

    fn signal(&mut self, c: u8, signal: u32, out: &mut Output) -> Action {
        let flush = !self.termios.local(abi::NOFLSH);
        if flush {
            self.flush_input();
            out.clear();
        }
        if self.termios.input(abi::IXON) {
            self.stopped = false;
        }
        if self.termios.local(abi::ECHO) {
            self.echo(c, out);
        }
        Action::Signal { signal, flush }
    }

    /// What is neither flow control nor a signal.
    fn translated(&mut self, mut c: u8, out: &mut Output) -> Action {
        let t = self.termios;
        if c == b'\r' {
            if t.input(abi::IGNCR) {
                return Action::None;
            }
            if t.input(abi::ICRNL) {
                c = b'\n';
            }
        } else if c == b'\n' && t.input(abi::INLCR) {
            c = b'\r';
        }
        if !self.canonical() {
            return self.ordinary(c, out);
        }
        let extended = t.local(abi::IEXTEN);
        let echo = t.local(abi::ECHO);
        if t.is_char(c, abi::VERASE) {
            self.erase(Erase::Character, c, out);
            Action::None
        } else if t.is_char(c, abi::VKILL) {
            self.erase(Erase::Line, c, out);
            Action::None
        } else if extended && t.is_char(c, abi::VWERASE) {
            self.erase(Erase::Word, c, out);
            Action::None
        } else if extended && t.is_char(c, abi::VLNEXT) {
            self.literal_next = true;
            if echo {
                self.finish_erasing(out);
                if t.local(abi::ECHOCTL) {
                    out.extend_from_slice(b"^\x08");
                }
            }
            Action::None
        } else if extended && echo && t.is_char(c, abi::VREPRINT) {
            self.finish_erasing(out);
            self.echo(c, out);
            self.emit(b'\n', out);
            self.reprint(0, out);
            Action::None
        } else if c == b'\n' {
            if t.local(abi::ECHO | abi::ECHONL) {
                self.emit(b'\n', out);
            }
            self.put(c, true, false);
            Action::Ready
        } else if t.is_char(c, abi::VEOF) {
            self.put(0, true, true);
            Action::Ready
        } else if t.is_char(c, abi::VEOL) || extended && t.is_char(c, abi::VEOL2) {
            if echo {
                self.begin_line();
                self.echo(c, out);
            }
            self.double_mark(c);
            self.put(c, true, false);
            Action::Ready
        } else {
            self.ordinary(c, out)
        }
    }

    /// A character that is just a character.
    fn ordinary(&mut self, c: u8, out: &mut Output) -> Action {
        if self.termios.local(abi::ECHO) {
            self.finish_erasing(out);
            if c == b'\n' {
                self.emit(b'\n', out);
            } else {
                self.begin_line();
                self.echo(c, out);
            }
        }
        self.double_mark(c);
        self.put(c, false, false);
        if self.canonical() { Action::None } else { Action::Ready }
    }

    /// With PARMRK a byte 0xff is doubled, since a single one announces an error.
    fn double_mark(&mut self, c: u8) {
        if c == 0xff && self.termios.input(abi::PARMRK) && !self.termios.input(abi::ISTRIP) {
            self.put(c, false, false);
        }
    }

    fn begin_line(&mut self) {
        if self.complete == self.input.len() {
            self.line_column = self.column;
        }
    }

    fn finish_erasing(&mut self, out: &mut Output) {
        if self.erasing {
            self.emit(b'/', out);
            self.erasing = false;
        }
    }

    /// Echoes with control characters as `^X`.
    fn echo(&mut self, c: u8, out: &mut Output) {
        if self.termios.local(abi::ECHOCTL) && is_control(c) && c != b'\t' {
            out.extend_from_slice(&[b'^', c ^ 0o100]);
            self.column += 2;
        } else {
            self.emit(c, out);
        }
    }

    /// Shows the line that is being edited, from its character `at` on.
    fn reprint(&mut self, mut at: usize, out: &mut Output) {
        while let Some(cell) = self.input.get(self.complete + at) {
            if !self.may_go_on() {
                self.unfinished = Unfinished::Reprint { at };
                return;
            }
            self.echo(cell.byte, out);
            self.count_steps(1);
            at += 1;
        }
        self.unfinished = Unfinished::Nothing;
    }

    /// Is it a further byte of a UTF-8 sequence?
    fn is_continuation(&self, byte: u8) -> bool {
        self.termios.input(abi::IUTF8) && byte & 0xc0 == 0x80
    }

    fn erase(&mut self, mut what: Erase, c: u8, out: &mut Output) {
        let t = self.termios;
        if self.input.len() == self.complete {
            return;
        }
        if what == Erase::Line {
            if !t.local(abi::ECHO) {
                self.input.truncate(self.complete);
                return;
            }
            if !(t.local(abi::ECHOK) && t.local(abi::ECHOKE) && t.local(abi::ECHOE)) {
                self.input.truncate(self.complete);
                self.finish_erasing(out);
                self.echo(c, out);
                if t.local(abi::ECHOK) {
                    self.emit(b'\n', out);
                }
                return;
            }
        } else if what == Erase::Character && t.is_char(c, abi::VWERASE) && !t.is_char(c, abi::VERASE) {
            what = Erase::Word;
        }
        self.erase_some(what, false, out);
    }

    /// Erases characters, as far as the steps of this hold of the lock go.
    fn erase_some(&mut self, what: Erase, mut in_word: bool, out: &mut Output) {
        let t = self.termios;
        self.unfinished = Unfinished::Nothing;
        while self.input.len() > self.complete {
            if !self.may_go_on() {
                self.unfinished = Unfinished::Erase { what, in_word };
                return;
            }
            // One character: its last byte and, in UTF-8, those before it up to the first.
            let mut start = self.input.len() - 1;
            while self.is_continuation(self.input[start].byte) && start > self.complete {
                start -= 1;
            }
            self.count_steps(self.input.len() - start);
            let first = self.input[start].byte;
            if self.is_continuation(first) {
                break;
            }
            if what == Erase::Word {
                if first.is_ascii_alphanumeric() || first == b'_' || first >= 0x80 {
                    in_word = true;
                } else if in_word {
                    break;
                }
            }
            let (echo, print) = (t.local(abi::ECHO), t.local(abi::ECHOPRT));
            if echo && print {
                self.print_erased(start, out);
            }
            self.input.truncate(start);
            let shows = echo && !print;
            if shows && first == b'\t' && (what != Erase::Character || t.local(abi::ECHOE)) {
                if !self.erase_tab(Tab { looked_at: 0, chars: 0, what, in_word }, out) {
                    return;
                }
            } else if shows {
                self.show_erased(what, first, out);
            }
            if what == Erase::Character {
                break;
            }
        }
        self.end_erasure(out);
    }

    /// A character is erased, in a hold of the lock of its own: the others are, too, if it is not the only one.
    fn erased_one(&mut self, what: Erase, in_word: bool, out: &mut Output) {
        if what == Erase::Character {
            self.unfinished = Unfinished::Nothing;
            self.end_erasure(out);
        } else {
            self.erase_some(what, in_word, out);
        }
    }

    fn end_erasure(&mut self, out: &mut Output) {
        if self.input.len() == self.complete && self.termios.local(abi::ECHO) {
            self.finish_erasing(out);
        }
    }

    /// ECHOPRT: shows what is erased, from `start` to the end of the input.
    fn print_erased(&mut self, start: usize, out: &mut Output) {
        if !self.erasing {
            self.emit(b'\\', out);
            self.erasing = true;
        }
        self.echo(self.input[start].byte, out);
        for i in start + 1..self.input.len() {
            let byte = self.input[i].byte;
            self.emit(byte, out);
        }
    }

    /// Makes a character disappear from the screen that was erased, and is no tab; `c` is the first byte of it.
    fn show_erased(&mut self, what: Erase, c: u8, out: &mut Output) {
        let t = self.termios;
        if what == Erase::Character && !t.local(abi::ECHOE) {
            self.echo(t.char(abi::VERASE), out);
        } else {
            let shown_as_two = is_control(c) && t.local(abi::ECHOCTL);
            if !is_control(c) || shown_as_two {
                for _ in 0..1 + usize::from(shown_as_two) {
                    out.extend_from_slice(b"\x08 \x08");
                    self.column = self.column.saturating_sub(1);
                }
            }
        }
    }

    /// Moves back over a tab: how far depends on what is before it in the line, which takes `chars` as far as it is looked at. False if
    /// the rest is for another hold of the lock.
    fn erase_tab(&mut self, tab: Tab, out: &mut Output) -> bool {
        let two = 2 * usize::from(self.termios.local(abi::ECHOCTL));
        let Tab { mut looked_at, mut chars, .. } = tab;
        let line = self.input.len() - self.complete;
        while looked_at < line {
            if !self.may_go_on() {
                self.unfinished = Unfinished::Tab(Tab { looked_at, chars, ..tab });
                return false;
            }
            let c = self.input[self.complete + line - 1 - looked_at].byte;
            if c == b'\t' {
                break;
            }
            chars += match c {
                _ if is_control(c) => two,
                _ if self.is_continuation(c) => 0,
                _ => 1,
            };
            looked_at += 1;
            self.count_steps(1);
        }
        if looked_at == line {
            chars += self.line_column;
        }
        for _ in 0..8 - chars % 8 {
            out.push(b'\x08');
            self.column = self.column.saturating_sub(1);
        }
        true
    }

    /// Output processing of one byte that a program wrote or an echo.
    pub fn emit(&mut self, c: u8, out: &mut Output) {
        let t = self.termios;
        if !t.output(abi::OPOST) {
            out.push(c);
            return;
        }
        match c {
            b'\n' => {
                if t.output(abi::ONLRET) {
                    self.column = 0;
                }
                if t.output(abi::ONLCR) {
                    self.column = 0;
                    out.push(b'\r');
                }
                self.line_column = self.column;
                out.push(c);
            }
            b'\r' => {
                if t.output(abi::ONOCR) && self.column == 0 {
                    return;
                }
                if t.output(abi::OCRNL) {
                    if t.output(abi::ONLRET) {
                        self.column = 0;
                    }
                    self.line_column = self.column;
                    out.push(b'\n');
                } else {
                    self.column = 0;
                    self.line_column = 0;
                    out.push(c);
                }
            }
            b'\t' => {
                let spaces = 8 - self.column % 8;
                self.column += spaces;
                if t.output & abi::TABDLY == abi::XTABS {
                    (0..spaces).for_each(|_| out.push(b' '));
                } else {
                    out.push(c);
                }
            }
            b'\x08' => {
                self.column = self.column.saturating_sub(1);
                out.push(c);
            }
            _ => {
                let c = if t.output(abi::OLCUC) { c.to_ascii_uppercase() } else { c };
                if !is_control(c) && !self.is_continuation(c) {
                    self.column += 1;
                }
                out.push(c);
            }
        }
    }
}
