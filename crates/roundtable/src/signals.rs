//! Signals as something to wait for.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::event::{PollFd, PollFlags};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGTSTP, SIGWINCH};

/// Those that end this program.
const ENDS: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// As long as one of these lives, a signal that would end the program waits; then it ends it.
#[derive(Debug)]
pub struct Held(&'static Holding);

#[derive(Debug, Default)]
struct Holding {
    /// Whether a signal ends the program at once, as it would if nobody had asked.
    ends: Arc<AtomicBool>,
    caught: Arc<AtomicUsize>,
}

impl Held {
    /// Holds them from now on.
    pub fn begin() -> io::Result<Held> {
        // A handler of this library stays for good, and what it does is decided here.
        static HOLDING: OnceLock<Holding> = OnceLock::new();
        if HOLDING.get().is_none() {
            let holding = Holding::default();
            for signal in ENDS {
                signal_hook::flag::register_usize(signal, holding.caught.clone(), signal as usize)?;
                signal_hook::flag::register_conditional_default(signal, holding.ends.clone())?;
            }
            let _ = HOLDING.set(holding);
        }
        let holding = HOLDING.get().ok_or(io::ErrorKind::Other)?;
        holding.ends.store(false, Ordering::SeqCst);
        Ok(Held(holding))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.ends.store(true, Ordering::SeqCst);
        let caught = self.0.caught.load(Ordering::SeqCst) as i32;
        if caught != 0 {
            let _ = signal_hook::low_level::emulate_default_handler(caught);
        }
    }
}

/// Signals as something to wait for: those that end this program, since the terminal must be put right first,
/// and those that tell of the terminal.
#[derive(Debug)]
pub struct Signals {
    last: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    continued: Arc<AtomicBool>,
    resized: Arc<AtomicBool>,
    wake: UnixStream,
    sender: UnixStream,
}

impl Signals {
    /// Catches SIGINT, SIGTERM and SIGHUP from now on.
    pub fn catch() -> io::Result<Signals> {
        let (wake, sender) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let signals = Signals {
            last: Arc::default(),
            stop: Arc::default(),
            continued: Arc::default(),
            resized: Arc::default(),
            wake,
            sender,
        };
        for signal in ENDS {
            // In this order, here and below: who wakes up finds what is set.
            signal_hook::flag::register_usize(signal, signals.last.clone(), signal as usize)?;
            signals.wake_by(signal)?;
        }
        Ok(signals)
    }

    /// Catches SIGTSTP, SIGCONT and SIGWINCH as well from now on, for [`Caught::Terminal`].
    pub fn catch_terminal(&self) -> io::Result<()> {
        for (signal, flag) in [(SIGTSTP, &self.stop), (SIGCONT, &self.continued), (SIGWINCH, &self.resized)] {
            signal_hook::flag::register(signal, flag.clone())?;
            self.wake_by(signal)?;
        }
        Ok(())
    }

    fn wake_by(&self, signal: i32) -> io::Result<()> {
        signal_hook::low_level::pipe::register(signal, self.sender.try_clone()?)?;
        Ok(())
    }

    /// Readable when something was caught.
    pub fn poll_entry(&self) -> PollFd<'_> {
        PollFd::new(&self.wake, PollFlags::IN)
    }

    /// What was caught; of several things one.
    pub fn take(&self) -> Option<Caught> {
        let mut bytes = [0; 64];
        while matches!((&self.wake).read(&mut bytes), Ok(1..)) {}
        let signal = self.last.swap(0, Ordering::SeqCst);
        if signal != 0 {
            return Some(Caught::End(signal as i32));
        }
        let changes = [
            (&self.stop, Change::Stop),
            (&self.continued, Change::Continued),
            (&self.resized, Change::Resized),
        ];
        let change = changes.into_iter().find(|(flag, _)| flag.swap(false, Ordering::SeqCst));
        change.map(|(_, change)| Caught::Terminal(change))
    }
}

/// What was caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caught {
    /// We were told to end, by this signal.
    End(i32),
    /// Something about our terminal.
    Terminal(Change),
}

/// What happened to our terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// We are to stop until somebody continues us.
    Stop,
    /// Somebody did; the terminal may have other settings than we left it with.
    Continued,
    /// It has another size.
    Resized,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    const CHILD: &str = "ROUNDTABLE_TEST_HELD";

    /// The child of this test interrupts itself twice: while a file is being written, and later.
    #[test]
    fn a_signal_waits_for_the_end_of_what_was_begun() {
        if let Some(when) = std::env::var_os(CHILD) {
            let held = Held::begin().unwrap();
            if when == "within" {
                signal_hook::low_level::raise(SIGINT).unwrap();
            }
            eprintln!("the end");
            drop(held);
            signal_hook::low_level::raise(SIGTERM).unwrap();
            std::process::exit(0);
        }
        for (when, signal) in [("within", SIGINT), ("behind", SIGTERM)] {
            let name = "signals::tests::a_signal_waits_for_the_end_of_what_was_begun";
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name, "--nocapture"])
                .env(CHILD, when)
                .output()
                .unwrap();
            assert!(String::from_utf8_lossy(&output.stderr).contains("the end"), "{when}: {output:?}");
            assert_eq!(output.status.signal(), Some(signal), "{when}");
        }
    }
}
