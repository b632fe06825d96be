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
            let filled = done * 30 / self.total;
            let bar = format!("{}{}", "#".repeat(filled), ".".repeat(30 - filled));
            print!("\r[{bar}] {done:>6} of {} {verb:<8} {seconds:6.1} s ", self.total);
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
