//! A progress line that lives on a terminal, and a few lines elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

pub struct Progress {
    terminal: bool,
    total: usize,
    started: Instant,
    last: Option<Instant>,
    /// What was printed last: the verb and the tenth that it was at.
    printed: (&'static str, usize),
}

impl Progress {
    pub fn new(total: usize) -> Progress {
        // A console whose other end is a file or a pipe says so by its TERM.
        let dumb = std::env::var_os("TERM").is_some_and(|kind| kind == "dumb");
        let terminal = std::io::stdout().is_terminal() && !dumb;
        Progress { terminal, total, started: Instant::now(), last: None, printed: ("", 0) }
    }

    /// How long to wait before it is worth showing again.
    pub fn interval(&self) -> Duration {
        Duration::from_millis(if self.terminal { 100 } else { 1000 })
    }

    pub fn show(&mut self, verb: &'static str, done: usize) {
        let tenth = done * 10 / self.total;
        let due = if self.terminal {
            done == self.total || self.last.is_none_or(|last| last.elapsed() >= self.interval())
        } else {
            tenth > 0 && self.printed != (verb, tenth)
        };
        if !due {
            return;
        }
        self.last = Some(Instant::now());
        self.printed = (verb, tenth);
        let seconds = self.started.elapsed().as_secs_f32();
        if self.terminal {
            print!("\r{}", line(columns(), done, self.total, verb, seconds));
            let _ = std::io::stdout().flush();
        } else {
            println!("{done} of {} {verb} after {seconds:.1} s", self.total);
        }
    }

    pub fn finish(self) {
        if self.terminal {
            println!();
        }
    }
}

/// The bar at its longest.
const BAR: usize = 30;

/// The line for a terminal of so many columns. It leaves the last one free: a cursor that stands behind it
/// would be in the next row.
fn line(columns: usize, done: usize, total: usize, verb: &str, seconds: f32) -> String {
    let width = total.to_string().len();
    let text = format!("{done:>width$} of {total} {verb:<8} {seconds:6.1} s");
    let room = columns.saturating_sub(1);
    // Two brackets and a space.
    let length = room.saturating_sub(text.len() + 3).min(BAR);
    if length < BAR / 5 {
        return text.chars().take(room).collect();
    }
    let filled = done * length / total;
    format!("[{}{}] {text}", "#".repeat(filled), ".".repeat(length - filled))
}

/// The terminal's columns; it may have others the next time. 80 where it does not tell.
fn columns() -> usize {
    // SAFETY: a winsize of zeros is one, and the call fills it.
    let size = unsafe {
        let mut size: libc::winsize = std::mem::zeroed();
        libc::ioctl(1, libc::TIOCGWINSZ, &mut size);
        size
    };
    if size.ws_col == 0 { 80 } else { size.ws_col.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_fits_the_terminal() {
        let usual = line(80, 500, 1000, "attached", 5.8);
        assert_eq!(usual, "[###############...............]  500 of 1000 attached    5.8 s");
        assert_eq!(line(50, 500, 1000, "gone", 5.8), "[########........]  500 of 1000 gone        5.8 s");
        assert_eq!(line(38, 500, 1000, "gone", 5.8), " 500 of 1000 gone        5.8 s");
        for columns in 1..100 {
            let longest = line(columns, 10_000, 10_000, "attached", 9999.9);
            assert!(longest.len() < columns, "{columns}: {longest}");
        }
    }
}
