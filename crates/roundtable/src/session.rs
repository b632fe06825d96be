//! One guest on the user's terminal, or on pipes: bytes both ways, until its job and the machine end.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use guest_link::{Decoder, Ending, Frame, Input, Item, Job, relay};
use indicatif::ProgressBar;
use rustix::io::Errno;

use crate::console::{self, Log};
use crate::guest::{Event, Guest};
use crate::machine::Machine;
use crate::options::{Kernel, RunOptions};
use crate::run::MACHINE_FAILED;
use crate::signals::{Change, Signals};
use crate::terminal::{self, Escape, Modes, Raw};

/// How long a guest may take to power off once its job is over.
const POWER_OFF: Duration = Duration::from_secs(20);
/// What is left of the window for a size or an end of the input, whatever was typed.
const RESERVE: usize = 8;
/// How much of what is typed waits for the guest. There is a limit, or a paste would fill the memory; and it
/// is large, since the key that ends the machine must be seen when the guest takes nothing.
const MOST_TYPED: usize = 1 << 20;

/// One guest on the terminal.
pub struct Session<'a> {
    options: &'a RunOptions,
    guest: Guest,
    signals: Signals,
    decoder: Decoder,
    log: &'a mut Log,
    input: Input,
    raw: Option<Raw>,
    modes: Modes,
    escape: Escape,
    /// Stuffed bytes that the guest may still be sent.
    window: usize,
    /// Input that the guest has no room for yet.
    typed: VecDeque<u8>,
    input_open: bool,
    /// The size that the guest was told.
    size: Option<(u16, u16)>,
    started: bool,
    ending: Option<Ending>,
    spinner: ProgressBar,
    deadline: Option<Instant>,
}

/// Why a session is over.
enum Stop {
    Closed,
    Signal(i32),
    Deadline,
    User,
    /// Nobody reads our output any more.
    Output,
}

/// The terminal is gone: what the kernel tells by a signal as well, sooner or later.
const TERMINAL_GONE: Stop = Stop::Signal(libc::SIGHUP);

impl<'a> Session<'a> {
    /// Starts the machine.
    pub fn new(
        options: &'a RunOptions,
        job: &Job,
        machine: &Machine,
        log: &'a mut Log,
    ) -> Result<Session<'a>> {
        let signals = Signals::catch()?;
        if job.input == Input::Terminal {
            signals.catch_terminal()?;
        }
        let guest = Guest::start(machine.command())?;
        let spinner = ProgressBar::new_spinner();
        if !options.verbose {
            let name = match &options.kernel {
                Kernel::Roundtable => "Roundtable".into(),
                Kernel::Linux => "Debian's Linux".into(),
                Kernel::File(path) => path.display().to_string(),
            };
            spinner.set_message(format!("booting {name}"));
            spinner.enable_steady_tick(Duration::from_millis(100));
        }
        Ok(Session {
            options,
            guest,
            signals,
            decoder: Decoder::new(&job.key),
            log,
            input: job.input,
            raw: None,
            modes: Modes::default(),
            escape: Escape::default(),
            window: relay::WINDOW,
            typed: VecDeque::new(),
            input_open: true,
            size: job.window,
            started: false,
            ending: None,
            spinner,
            // One beyond what a clock can show never comes.
            deadline: options
                .time_limit
                .and_then(|limit| Instant::now().checked_add(Duration::from_secs(limit))),
        })
    }

    /// Serves it to its end; gives the exit status for the shell.
    pub fn run(mut self) -> Result<i32> {
        let stop = self.serve()?;
        self.spinner.finish_and_clear();
        drop(self.raw.take());
        if self.ending.is_none() {
            // The job cannot put its screen right any more.
            let _ = io::stdout().write_all(self.modes.reset().as_bytes()).and_then(|()| io::stdout().flush());
        }
        let (status, errors) = match stop {
            Stop::Closed => self.guest.reap()?,
            _ => self.guest.finish()?,
        };
        let held = self.decoder.finish();
        self.log.add(&held)?;
        match (self.ending, stop) {
            (Some(ending), Stop::Closed) => Ok(self.report(ending)),
            (Some(ending), Stop::Deadline) => {
                self.report(ending);
                eprintln!("roundtable: the machine did not power off after the program ended");
                Ok(MACHINE_FAILED)
            }
            (None, Stop::Closed) if !status.success() || (!errors.is_empty() && !self.started) => {
                eprintln!("roundtable: QEMU failed ({status}): {errors}");
                Ok(MACHINE_FAILED)
            }
            (None, Stop::Closed) => {
                eprintln!("roundtable: the machine went down before the program ended");
                self.show_log();
                Ok(MACHINE_FAILED)
            }
            (None, Stop::Deadline) => {
                let limit = self.options.time_limit.unwrap_or_default();
                eprintln!("roundtable: stopped at the time limit of {limit} s");
                self.show_log();
                Ok(Ending::TimedOut.status())
            }
            (_, Stop::Signal(signal)) => Ok(128 + signal),
            // As a program on the host would end: by SIGPIPE, without a word.
            (_, Stop::Output) => Ok(128 + libc::SIGPIPE),
            (_, Stop::User) => {
                eprintln!("roundtable: the machine was ended by Ctrl-A X");
                Ok(128 + libc::SIGINT)
            }
        }
    }

    /// The status for the shell, with a word on endings that a status alone does not explain.
    fn report(&self, ending: Ending) -> i32 {
        if let Ending::NotStarted(errno) = ending {
            let error = io::Error::from_raw_os_error(errno);
            eprintln!("roundtable: the guest cannot run the program: {error}");
        }
        ending.status()
    }

    /// The end of the console, unless the user saw it already.
    fn show_log(&self) {
        if !self.options.verbose {
            eprintln!(
                "roundtable: the last lines of its console (all of it: {}):",
                self.log.path().display()
            );
            for line in self.log.last_lines(40).lines() {
                eprintln!("  | {line}");
            }
        }
    }

    fn serve(&mut self) -> Result<Stop> {
        let stdin = io::stdin();
        loop {
            self.send_input();
            let watched = self.wants_input().then_some(&stdin);
            let stop = match self.guest.wait(&self.signals, self.deadline, watched)? {
                Event::Output(bytes) => self.show(&bytes)?,
                Event::Input => self.take_input(),
                Event::Closed => Some(Stop::Closed),
                Event::Signal(signal) => Some(Stop::Signal(signal)),
                Event::Deadline => Some(Stop::Deadline),
                Event::Terminal(change) => {
                    self.change(change)?;
                    None
                }
            };
            if let Some(stop) = stop {
                return Ok(stop);
            }
        }
    }

    fn show(&mut self, bytes: &[u8]) -> Result<Option<Stop>> {
        for item in self.decoder.feed(bytes) {
            let stop = self.take(item)?;
            if stop.is_some() {
                return Ok(stop);
            }
        }
        Ok(None)
    }

    /// Handles one item of the console's stream.
    fn take(&mut self, item: Item) -> Result<Option<Stop>> {
        match item {
            Item::Text(text) => {
                self.log.add(&text)?;
                if self.options.verbose || (self.started && self.ending.is_none()) {
                    if self.input == Input::Terminal {
                        self.modes.feed(&text);
                    }
                    let mut out = io::stdout().lock();
                    match out.write_all(&text).and_then(|()| out.flush()) {
                        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                            return Ok(Some(Stop::Output));
                        }
                        Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                            return Ok(Some(TERMINAL_GONE));
                        }
                        result => result.context("standard output")?,
                    }
                }
            }
            Item::Frame(Frame::Start) => {
                self.spinner.finish_and_clear();
                self.started = true;
                if self.input == Input::Terminal {
                    self.raw = Some(Raw::enter()?);
                }
            }
            Item::Frame(Frame::Exit(ending)) => {
                self.ending = Some(ending);
                drop(self.raw.take());
                self.deadline = Some(Instant::now() + POWER_OFF);
            }
            Item::Frame(Frame::Credit(bytes)) => self.window += bytes,
            Item::Frame(Frame::Note(note)) => {
                self.log.add(format!("init: {note}\r\n").as_bytes())?;
                if self.options.verbose {
                    eprintln!("init: {}", console::printable(note.as_bytes()));
                }
            }
            Item::Frame(Frame::TestStart { .. } | Frame::TestEnd { .. }) => {}
        }
        Ok(None)
    }

    /// Whether the job takes input now.
    fn is_fed(&self) -> bool {
        self.started && self.ending.is_none() && matches!(self.input, Input::Terminal | Input::Relay)
    }

    fn wants_input(&self) -> bool {
        let most = if self.input == Input::Terminal { MOST_TYPED } else { 1 };
        self.is_fed() && self.input_open && self.typed.len() < most
    }

    /// Takes what our standard input has.
    fn take_input(&mut self) -> Option<Stop> {
        let mut buffer = [0; 1024];
        // Straight from the descriptor: the standard library's own buffer would hide bytes from poll.
        let read = match rustix::io::read(io::stdin(), &mut buffer) {
            Ok(read) => read,
            Err(Errno::INTR | Errno::AGAIN) => return None,
            // A background process may not read from its terminal; the job then has no input.
            Err(_) => 0,
        };
        match (self.input, read) {
            // In its raw mode a terminal has no end of a file: it was hung up.
            (Input::Terminal, 0) => return Some(TERMINAL_GONE),
            (Input::Terminal, _) => match self.escape.filter(&buffer[..read]) {
                Some(bytes) => self.typed.extend(bytes),
                None => return Some(Stop::User),
            },
            _ => self.typed.extend(&buffer[..read]),
        }
        self.input_open = read > 0;
        if !self.input_open {
            // More is taken only when all before was sent, so this comes behind it, and the reserve has room
            // for it.
            self.guest.send(&relay::end());
        }
        None
    }

    /// Sends the guest as much of its input as it has room for, and the terminal's size when that has
    /// changed.
    fn send_input(&mut self) {
        if !self.is_fed() {
            return;
        }
        let size = terminal::window().filter(|_| self.input == Input::Terminal && self.size.is_some());
        if let Some((rows, columns)) = size.filter(|_| size != self.size) {
            let bytes = relay::window_size(rows, columns);
            // Else the size of a later moment is told, when there is room again.
            if self.window >= bytes.len() {
                self.size = size;
                self.send(&bytes);
            }
        }
        // Stuffing may double the bytes, and the window is counted in stuffed ones.
        let room = self.window.saturating_sub(RESERVE) / 2;
        if room > 0 && !self.typed.is_empty() {
            let bytes: Vec<u8> = self.typed.drain(..room.min(self.typed.len())).collect();
            self.send(&relay::stuff(&bytes));
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.window -= bytes.len();
        self.guest.send(bytes);
    }

    /// The user's shell stopped or continued us. A new size alone is seen when input is sent next, which is
    /// now.
    fn change(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Stop => {
                if let Some(raw) = &self.raw {
                    raw.suspend();
                }
                terminal::stop();
                self.change(Change::Continued)?;
            }
            Change::Continued => {
                if let Some(raw) = &self.raw {
                    raw.resume()?;
                }
            }
            Change::Resized => {}
        }
        Ok(())
    }
}
