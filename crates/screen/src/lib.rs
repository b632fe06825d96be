//! A program on a terminal, for tests: what it shows, what it is typed, what it leaves behind.
//!
//! The program gets a pseudoterminal as its controlling terminal, in a session of its own. A thread reads
//! what it prints into a screen of so many rows and columns and into a transcript, so that a test can ask for
//! either.
#![warn(missing_docs)]

use std::fs::File;
use std::io::{PipeWriter, Read, Write};
use std::num::NonZero;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, ioctl_tiocsctty, kill_process, kill_process_group, setsid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

pub use rustix;
pub use vt100;

/// What no program prints: the harness's own word that all before it was read.
const MARK: &[u8] = b"\x1f\x1e\x1f";
/// How much of a transcript a failure shows.
const SHOWN: usize = 4000;

/// Rows and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

/// The size that terminals have had since the VT100.
pub const USUAL: Size = Size { rows: 24, columns: 80 };

impl Size {
    fn rows_and_columns(self) -> (NonZero<u16>, NonZero<u16>) {
        let some = |number| NonZero::new(number).expect("a terminal has rows and columns");
        (some(self.rows), some(self.columns))
    }

    fn set(self, terminal: &File) -> Result<()> {
        let size = Winsize { ws_row: self.rows, ws_col: self.columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(terminal, size).context("the terminal's size")
    }
}

/// A program on a terminal; it gets SIGHUP and is killed when this is dropped.
pub struct Terminal {
    keyboard: Option<File>,
    program_side: File,
    shared: Arc<Shared>,
    /// Ends the thread that reads when dropped.
    reading: Option<PipeWriter>,
    pid: Pid,
    limit: Duration,
    settings: String,
    /// Up to here the transcript was looked through by [`Terminal::expect`].
    position: usize,
}

struct Shared {
    shown: Mutex<Shown>,
    changed: Condvar,
}

/// What a program has shown so far.
pub struct Shown {
    parser: vt100::Parser,
    transcript: Vec<u8>,
    status: Option<ExitStatus>,
}

impl Shown {
    /// The screen.
    pub fn screen(&self) -> &vt100::Screen {
        self.parser.screen()
    }

    /// All bytes.
    pub fn transcript(&self) -> &[u8] {
        &self.transcript
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().expect("nobody panics with it")
    }

    fn change(&self, change: impl FnOnce(&mut Shown)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

impl Terminal {
    /// Starts a program on a new terminal. Whatever is waited for has to come within `limit`.
    pub fn start(mut command: Command, size: Size, limit: Duration) -> Result<Terminal> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let program_side = File::from(rustix::fs::open(&name, flags, Mode::empty())?);
        let master = File::from(master);
        size.set(&master)?;
        command
            .stdin(program_side.try_clone()?)
            .stdout(program_side.try_clone()?)
            .stderr(program_side.try_clone()?);
        // SAFETY: the closure makes system calls only, which is allowed between fork and exec; 0 is open by
        // then.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                Ok(ioctl_tiocsctty(BorrowedFd::borrow_raw(0))?)
            });
        }
        let settings = settings(&program_side)?;
        let mut program = command.spawn().with_context(|| format!("{:?}", command.get_program()))?;
        drop(command);
        let pid = Pid::from_child(&program);
        let (rows, columns) = size.rows_and_columns();
        let shown =
            Shown { parser: vt100::Parser::new(rows, columns, 0), transcript: Vec::new(), status: None };
        let shared = Arc::new(Shared { shown: Mutex::new(shown), changed: Condvar::new() });
        let (stopped, reading) = std::io::pipe()?;
        let (keyboard, for_reader) = (master.try_clone()?, shared.clone());
        std::thread::spawn(move || read(master, stopped, &for_reader));
        let for_waiter = shared.clone();
        std::thread::spawn(move || {
            let status = program.wait().expect("nobody else waits for it");
            for_waiter.change(|shown| shown.status = Some(status));
        });
        Ok(Terminal {
            keyboard: Some(keyboard),
            program_side,
            shared,
            reading: Some(reading),
            pid,
            limit,
            settings,
            position: 0,
        })
    }

    /// The program's process, which leads the session.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Types.
    pub fn send(&mut self, keys: &str) -> Result<()> {
        let keyboard = self.keyboard.as_mut().context("the terminal was hung up")?;
        keyboard.write_all(keys.as_bytes()).context("the keyboard")
    }

    /// Gives the terminal another size; its foreground group hears of it.
    pub fn resize(&mut self, size: Size) -> Result<()> {
        let (rows, columns) = size.rows_and_columns();
        self.shared.change(|shown| {
            shown.parser.screen_mut().set_size(rows, columns);
        });
        size.set(self.keyboard.as_ref().context("the terminal was hung up")?)
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid, signal).context("kill")
    }

    /// Sends a signal to the terminal's foreground group.
    pub fn signal_foreground(&self, signal: Signal) -> Result<()> {
        let group = rustix::termios::tcgetpgrp(self.keyboard.as_ref().context("the terminal was hung up")?)?;
        kill_process_group(group, signal).context("kill")
    }

    /// Closes the terminal, as when its window is closed or the network to it is lost.
    pub fn hang_up(&mut self) {
        self.reading = None;
        self.keyboard = None;
    }

    /// Looks at what is shown now.
    pub fn look<T>(&self, look: impl FnOnce(&Shown) -> T) -> T {
        look(&self.shared.lock())
    }

    /// The text on the screen now.
    pub fn contents(&self) -> String {
        self.look(|shown| shown.screen().contents())
    }

    /// Waits until what is shown is as expected. Fails when the program ends before, or at the limit.
    pub fn wait(&self, what: &str, mut expected: impl FnMut(&Shown) -> bool) -> Result<()> {
        let end = Instant::now() + self.limit;
        let mut guard = self.shared.lock();
        loop {
            if expected(&guard) {
                return Ok(());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("no {what} in {} s:\n{}", self.limit.as_secs(), guard.tail());
            }
            // What a program that has ended wrote last may not have been read yet: that has a second more.
            let ended = guard.status;
            let left = if ended.is_some() { left.min(Duration::from_secs(1)) } else { left };
            let (next, timeout) =
                self.shared.changed.wait_timeout(guard, left).expect("nobody panics with it");
            guard = next;
            if let (Some(status), true) = (ended, timeout.timed_out()) {
                bail!("no {what}, and the program ended with {status}:\n{}", guard.tail());
            }
        }
    }

    /// Waits until this text is printed, behind what was waited for before. Carriage returns count for
    /// nothing.
    pub fn expect(&mut self, text: &str) -> Result<()> {
        let mut position = self.position;
        self.wait(&format!("{text:?}"), |shown| {
            let new = &shown.transcript[self.position..];
            let found = find(new, text.as_bytes());
            position = self.position + found.unwrap_or(0);
            found.is_some()
        })?;
        self.position = position;
        Ok(())
    }

    /// Types a line and waits for what it leads to.
    pub fn ask(&mut self, line: &str, answer: &str) -> Result<()> {
        self.send(&format!("{line}\r"))?;
        self.expect(answer)
    }

    /// Waits for the program's end; the status that a shell would have. All that it printed has been read
    /// then.
    pub fn end(&mut self) -> Result<i32> {
        let mut status = None;
        self.wait("end of the program", |shown| {
            status = shown.status;
            status.is_some()
        })?;
        let status = status.expect("waited for above");
        if self.keyboard.is_some() {
            self.program_side.write_all(MARK)?;
            self.wait("end of the output", |shown| shown.transcript.ends_with(MARK))?;
            self.shared.change(|shown| shown.transcript.truncate(shown.transcript.len() - MARK.len()));
        }
        Ok(status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1))
    }

    /// Fails unless the terminal is as the program found it: its settings, and the modes of its screen.
    pub fn expect_as_found(&self) -> Result<()> {
        let now = settings(&self.program_side)?;
        ensure!(now == self.settings, "other settings: {now}\nthan it found: {}", self.settings);
        self.look(|shown| {
            let screen = shown.screen();
            let new = vt100::Parser::default();
            let modes = screen.input_mode_diff(new.screen());
            ensure!(modes.is_empty(), "modes of the keyboard are left: {modes:?}");
            ensure!(!screen.alternate_screen(), "the alternate screen is left");
            ensure!(!screen.hide_cursor(), "the cursor is hidden");
            let pen = |screen: &vt100::Screen| {
                let faces =
                    [screen.bold(), screen.dim(), screen.italic(), screen.underline(), screen.inverse()];
                (screen.fgcolor(), screen.bgcolor(), faces)
            };
            ensure!(pen(screen) == pen(new.screen()), "colours are left: {:?}", pen(screen));
            Ok(())
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.hang_up();
        // It may be gone, which is what is wanted.
        let ended = self.look(|shown| shown.status.is_some());
        if !ended {
            let _ = kill_process(self.pid, Signal::KILL);
        }
    }
}

impl Shown {
    fn tail(&self) -> String {
        let start = self.transcript.len().saturating_sub(SHOWN);
        let transcript = String::from_utf8_lossy(&self.transcript[start..]);
        format!("{}\n-- as bytes:\n{transcript:?}", self.screen().contents())
    }
}

/// Where a text ends in bytes between whose characters carriage returns may stand.
fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    (0..bytes.len()).find_map(|start| {
        let mut rest = text.iter();
        let mut next = rest.next()?;
        for (at, byte) in bytes.iter().enumerate().skip(start) {
            if byte == next {
                match rest.next() {
                    Some(byte) => next = byte,
                    None => return Some(at + 1),
                }
            } else if *byte != b'\r' {
                return None;
            }
        }
        None
    })
}

fn settings(terminal: &File) -> Result<String> {
    Ok(format!("{:?}", tcgetattr(terminal).context("the terminal's settings")?))
}

/// Reads what is printed until the terminal is closed.
fn read(mut master: File, stopped: impl AsFd, shared: &Shared) {
    let mut buffer = [0; 4096];
    loop {
        let mut entries =
            [PollFd::new(&master, PollFlags::IN), PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN)];
        if poll(&mut entries, None).is_err_and(|error| error != rustix::io::Errno::INTR)
            || !entries[1].revents().is_empty()
        {
            return;
        }
        let Ok(count @ 1..) = master.read(&mut buffer) else { return };
        shared.change(|shown| {
            shown.parser.process(&buffer[..count]);
            shown.transcript.extend_from_slice(&buffer[..count]);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn shell(script: &str) -> Terminal {
        let mut command = Command::new("sh");
        command.args(["-c", script]).env("TERM", "xterm");
        Terminal::start(command, USUAL, LIMIT).unwrap()
    }

    #[test]
    fn what_is_typed_and_shown_and_the_status() {
        let mut terminal = shell("read -r line; stty size; echo \"got $line\"; exit 3");
        terminal.send("a word\r").unwrap();
        terminal.expect("24 80\ngot a word\n").unwrap();
        assert_eq!(terminal.end().unwrap(), 3);
        assert_eq!(terminal.contents(), "a word\n24 80\ngot a word\n".trim_end());
        terminal.expect_as_found().unwrap();
        assert!(terminal.expect("again").is_err());
    }

    #[test]
    fn the_program_hears_of_signals_sizes_and_the_end() {
        let mut terminal = shell(
            "trap 'stty size' WINCH; trap 'echo INT; exit 9' INT; echo ready; while :; do sleep 0.1; done",
        );
        terminal.expect("ready").unwrap();
        terminal.resize(Size { rows: 10, columns: 33 }).unwrap();
        terminal.expect("10 33").unwrap();
        terminal.send("\x03").unwrap();
        terminal.expect("INT").unwrap();
        assert_eq!(terminal.end().unwrap(), 9);
        let mut terminal = shell("echo ready; exec sleep 1000");
        terminal.expect("ready").unwrap();
        terminal.hang_up();
        assert_eq!(terminal.end().unwrap(), 128 + 1);
    }

    #[test]
    fn what_is_left_behind_is_seen() {
        for left in [
            "stty -echo",
            "printf '\\033[?25l'",
            "printf '\\033[31m'",
            "printf '\\033[?1049h'",
            "printf '\\033[?2004h'",
        ] {
            let mut terminal = shell(left);
            assert_eq!(terminal.end().unwrap(), 0);
            assert!(terminal.expect_as_found().is_err(), "{left}");
        }
    }

    #[test]
    fn a_program_that_ends_is_not_waited_for() {
        let mut terminal = shell("echo some; exit 1");
        let error = terminal.expect("other").unwrap_err().to_string();
        assert!(error.contains("ended with exit status: 1"), "{error}");
        assert!(error.contains("some"), "{error}");
    }
}
