//! The user's terminal, raw while the guest's console is on it.

use std::io::{self, IsTerminal};

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// A terminal in raw mode; put right when dropped.
#[derive(Debug)]
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Makes the terminal on standard input raw.
    pub fn enter() -> Result<Raw> {
        let before = tcgetattr(io::stdin()).context("the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Flush, &raw).context("the terminal's settings")?;
        Ok(Raw { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing is left to do about a terminal that is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
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
    fn the_escape_key_is_found_across_reads() {
        let mut escape = Escape::default();
        assert_eq!(escape.filter(b"ab\x01"), Some(b"ab".to_vec()));
        assert_eq!(escape.filter(b"\x01c"), Some(b"\x01c".to_vec()));
        assert_eq!(escape.filter(b"\x01d"), Some(b"\x01d".to_vec()));
        assert_eq!(escape.filter(b"x\x01"), Some(b"x".to_vec()));
        assert_eq!(escape.filter(b"x"), None);
    }
}
