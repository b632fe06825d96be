//! Processes that have the file mapped and its table attached, and otherwise sleep.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use roundtable_programs::child::{End, waitpid};
use roundtable_programs::shared::{Shared, wait, wake};

/// Counts up: everybody touches. `LEAVE` ends them.
const TURN: usize = 0;
const ARRIVED: usize = 1;
/// At this count of arrivals somebody waits.
const WANTED: usize = 2;
const LEAVE: u32 = u32::MAX;

/// How long all of them may take.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct Crew {
    control: Shared,
    pids: Vec<i32>,
}

impl Crew {
    pub fn new() -> Crew {
        Crew { control: Shared::new(), pids: Vec::new() }
    }

    pub fn count(&self) -> usize {
        self.pids.len()
    }

    pub fn pids(&self) -> &[i32] {
        &self.pids
    }

    /// Starts processes until there are so many, each of which calls `touch` at once and at every turn.
    pub fn grow(&mut self, count: usize, touch: impl Fn()) -> Result<(), String> {
        let more = count.saturating_sub(self.pids.len());
        if more == 0 {
            return Ok(());
        }
        self.expect_arrivals(more);
        for _ in 0..more {
            // SAFETY: this process has one thread, and the child makes system calls and touches memory only.
            match unsafe { libc::fork() } {
                -1 => {
                    let error = std::io::Error::last_os_error();
                    return Err(format!("fork of process {}: {error}", self.pids.len() + 1));
                }
                0 => self.live(&touch),
                pid => self.pids.push(pid),
            }
        }
        self.await_arrivals("started")
    }

    /// Everybody touches again. Also for a child of this process.
    pub fn touch(&self) -> Result<(), String> {
        if self.pids.is_empty() {
            return Ok(());
        }
        self.expect_arrivals(self.pids.len());
        self.control.add(TURN);
        self.await_arrivals("came to their turn")
    }

    fn expect_arrivals(&self, count: usize) {
        self.control.set(ARRIVED, 0);
        self.control.set(WANTED, count as u32);
    }

    fn await_arrivals(&self, what: &str) -> Result<(), String> {
        let (arrived, wanted) = (self.control.word(ARRIVED), self.control.get(WANTED));
        let end = Instant::now() + PATIENCE;
        loop {
            let now = arrived.load(Ordering::SeqCst);
            if now >= wanted {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(format!("only {now} of {wanted} processes {what}"));
            }
            wait(arrived, now, Some(Duration::from_secs(1)));
        }
    }

    fn live(&self, touch: &impl Fn()) -> ! {
        let turn = self.control.word(TURN);
        loop {
            let now = turn.load(Ordering::SeqCst);
            if now == LEAVE {
                // SAFETY: ends the process; the parent's values must not be dropped here.
                unsafe { libc::_exit(0) }
            }
            touch();
            // Only the last one wakes who waits: ten thousand wake-ups would be what is measured.
            if self.control.word(ARRIVED).fetch_add(1, Ordering::SeqCst) + 1 == self.control.get(WANTED) {
                wake(self.control.word(ARRIVED), i32::MAX);
            }
            while turn.load(Ordering::SeqCst) == now {
                wait(turn, now, None);
            }
        }
    }

    /// Ends them all.
    pub fn leave(mut self) -> Result<(), String> {
        self.control.set(TURN, LEAVE);
        for pid in std::mem::take(&mut self.pids) {
            match waitpid(pid, 0) {
                Ok((_, End::Code(0))) => {}
                end => return Err(format!("a sharer ended: {end:?}")),
            }
        }
        Ok(())
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for &pid in &self.pids {
            // SAFETY: takes integers; the children were not waited for.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            let _ = waitpid(pid, 0);
        }
    }
}
