//! The user's terminal, raw while the guest's console is on it.

use std::io::{self, IsTerminal};

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// A terminal in raw mode; put right when dropped.
#[derive(Debug)]
pub struct Raw {
    before: Termios,
    raw: Termios,
}

impl Raw {
    /// Makes the terminal on standard input raw.
    pub fn enter() -> Result<Raw> {
        let before = tcgetattr(io::stdin()).context("the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        let terminal = Raw { before, raw };
        terminal.resume()?;
        Ok(terminal)
    }

    /// Puts it right for a while.
    pub fn suspend(&self) {
        // Nothing is left to do about a terminal that is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }

    /// Makes it raw again. What was typed ahead is kept, for the job or for the shell: here and when it is
    /// put right.
    pub fn resume(&self) -> Result<()> {
        tcsetattr(io::stdin(), OptionalActions::Now, &self.raw).context("the terminal's settings")
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.suspend();
    }
}

/// What a job has made of the screen, so that the screen can be put right when the job cannot do it any more.
#[derive(Default)]
pub struct Modes {
    parser: vt100::Parser,
}

impl Modes {
    /// Takes note of what the job prints.
    pub fn feed(&mut self, output: &[u8]) {
        self.parser.process(output);
    }

    /// What to print so that the screen is in its usual modes again; nothing when it is.
    pub fn reset(&self) -> String {
        let (screen, usual) = (self.parser.screen(), vt100::Parser::default());
        let mut out = usual.screen().input_mode_diff(screen);
        if screen.attributes_formatted() != usual.screen().attributes_formatted() {
            out.push_str("\x1b[m");
        }
        if screen.alternate_screen() {
            out.push_str("\x1b[?1049l");
        }
        if screen.hide_cursor() {
            out.push_str("\x1b[?25h");
        }
        out
    }
}

/// Stops this process, as SIGTSTP does to one that does not catch it: until somebody continues it, or not at
/// all when there is nobody who could.
pub fn stop() {
    // SAFETY: the actions are locals, of which zeros are one, and live through the calls.
    unsafe {
        let mut default: libc::sigaction = std::mem::zeroed();
        default.sa_sigaction = libc::SIG_DFL;
        let mut ours: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGTSTP, &default, &mut ours);
        libc::raise(libc::SIGTSTP);
        libc::sigaction(libc::SIGTSTP, &ours, std::ptr::null_mut());
    }
}

/// Whether a person sits at both ends of the console.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Rows and columns of the terminal on standard output.
pub fn window() -> Option<(u16, u16)> {
    tcgetwinsize(io::stdout()).ok().map(|size| (size.ws_row, size.ws_col)).filter(|size| size.0 > 0)
}

/// No table is made narrower than this: it would be unreadable, and the terminal's own line breaks are no worse.
const NARROWEST: u16 = 60;

/// Columns of the terminal that standard output is; `None` where it is none.
pub fn width() -> Option<u16> {
    window().map(|(_, columns)| columns).filter(|columns| *columns > 0).map(|columns| columns.max(NARROWEST))
}

/// Finds Ctrl-A X, the key that ends the machine, in what is typed. Ctrl-A Ctrl-A is Ctrl-A.
#[derive(Debug, Default)]
pub struct Escape {
    seen: bool,
}

impl Escape {
    /// The bytes for the guest, or `None` when the user wants the machine to end.
    pub fn filter(&mut self, typed: &[u8]) -> Option<Vec<u8>> {
        const CTRL_A: u8 = 1;
        let mut out = Vec::with_capacity(typed.len());
        for &byte in typed {
            match (std::mem::take(&mut self.seen), byte) {
                (false, CTRL_A) => self.seen = true,
                (true, b'x' | b'X') => return None,
                (true, CTRL_A) => out.push(CTRL_A),
                (true, byte) => out.extend([CTRL_A, byte]),
                (false, byte) => out.push(byte),
            }
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_that_are_left_are_put_right() {
        let mut modes = Modes::default();
        modes.feed(b"\x1b[1;31mred\x1b[m\r\n\x1b[?25l\x1b[?25h");
        assert_eq!(modes.reset(), "");
        modes.feed(b"\x1b[?1049h\x1b[?25l\x1b[32m\x1b[?2004h\x1b[?1h");
        let reset = modes.reset();
        modes.feed(reset.as_bytes());
        assert_eq!(modes.reset(), "", "{reset:?}");
        assert!(reset.contains("\x1b[?1049l") && reset.contains("\x1b[?25h"), "{reset:?}");
    }

    #[test]
    fn the_escape_key_is_found_across_reads() {
        let mut escape = Escape::default();
        assert_eq!(escape.filter(b"ab\x01"), Some(b"ab".to_vec()));
        assert_eq!(escape.filter(b"\x01c"), Some(b"\x01c".to_vec()));
        assert_eq!(escape.filter(b"\x01d"), Some(b"\x01d".to_vec()));
        assert_eq!(escape.filter(b"x\x01"), Some(b"x".to_vec()));
        assert_eq!(escape.filter(b"x"), None);
    }
}
