//! Signals as something to wait for.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::event::{PollFd, PollFlags};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGTSTP, SIGWINCH};

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
        for signal in [SIGINT, SIGTERM, SIGHUP] {
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
