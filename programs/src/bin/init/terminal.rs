//! The job's terminal: a pseudoterminal, whose bytes and size go over the console.
//!
//! The console itself would not do. What is typed has to come in between sizes, a hang-up of the line at the
//! end of the job would lose what the job wrote last, and the kernel's messages would be subject to the job's
//! settings.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt;

use guest_link::{Ending, Frame, relay};

use crate::{Init, block_child_signal, ending_of};

/// Both sides of the pseudoterminal.
pub struct Terminal {
    master: File,
    /// The side that is the job's.
    pub side: File,
}

impl Terminal {
    /// A terminal of so many rows and columns.
    pub fn open(size: Option<(u16, u16)>) -> io::Result<Terminal> {
        let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
        let master = OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/ptmx")?;
        let unlocked: i32 = 0;
        // SAFETY: the call reads one integer.
        done(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &unlocked) })?;
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        // SAFETY: takes integers.
        let side = done(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
        // SAFETY: the call above has made the descriptor for us.
        let side = unsafe { File::from_raw_fd(side) };
        let terminal = Terminal { master, side };
        if let Some((rows, columns)) = size {
            set_window_size(&terminal.master, rows, columns)?;
        }
        Ok(terminal)
    }
}

/// Sets a terminal's size; its foreground group hears of a new one.
pub fn set_window_size(terminal: &File, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize.
    done(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) }).map(drop)
}

fn done(result: i32) -> io::Result<i32> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Init {
    /// Carries the terminal's bytes until `job` ends and all that it wrote is out. This is the first
    /// process's own work: what a job does to all processes does not end it.
    pub fn carry(&mut self, terminal: &Terminal, job: i32) -> io::Result<Ending> {
        // Blocked but in ppoll, which it interrupts: so no end of a child goes unseen.
        block_child_signal();
        extern "C" fn nothing(_: i32) {}
        // SAFETY: the handler does nothing, which is allowed at any time.
        unsafe { libc::signal(libc::SIGCHLD, nothing as extern "C" fn(i32) as libc::sighandler_t) };
        let mut carrier = Carrier::default();
        let mut ending = None;
        loop {
            let mut status = 0;
            // SAFETY: `status` lives through the call.
            match unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) } {
                pid if pid == job => ending = Some(ending_of(status)),
                1.. => continue,
                _ => {}
            }
            let done = carrier.turn(self, &terminal.master, ending.is_some())?;
            if let (Some(ending), true) = (ending, done) {
                return Ok(ending);
            }
        }
    }
}

/// What is on its way to the job.
#[derive(Default)]
struct Carrier {
    unstuff: relay::Unstuff,
    /// What the terminal has had no room for so far.
    pending: Vec<u8>,
    /// Stuffed bytes that the host has not been told of.
    taken: usize,
    /// Bytes that were shown since the job's end.
    shown: usize,
}

/// More than a terminal holds. What comes when so much was shown was written after the job's end, by a
/// process that it left behind.
const MOST: usize = 64 << 10;

impl Carrier {
    /// Waits until there is something to carry, and carries it. Once the job has ended it waits no more, and
    /// takes nothing from the console. Tells whether all that the job wrote is out.
    fn turn(&mut self, init: &mut Init, master: &File, ended: bool) -> io::Result<bool> {
        let entry = |file: &File, events| libc::pollfd { fd: file.as_raw_fd(), events, revents: 0 };
        let to_terminal = if self.pending.is_empty() { 0 } else { libc::POLLOUT };
        let mut entries = [entry(master, libc::POLLIN | to_terminal), entry(&init.console, libc::POLLIN)];
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let limit = if ended { &raw const at_once } else { std::ptr::null() };
        let count = if ended { 1 } else { entries.len() };
        // SAFETY: the entries, the time and the set live through the call. A set of zero bytes is empty.
        let polled = unsafe {
            let none: libc::sigset_t = std::mem::zeroed();
            libc::ppoll(entries.as_mut_ptr(), count as libc::nfds_t, limit, &none)
        };
        match done(polled) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
            other => other?,
        };
        let mut buffer = [0; 4096];
        let has_output = entries[0].revents & libc::POLLIN != 0;
        if has_output {
            let count = (&*master).read(&mut buffer)?;
            init.console.write_all(&buffer[..count])?;
            self.shown += if ended { count } else { 0 };
        }
        if entries[1].revents != 0 {
            let count = (&init.console).read(&mut buffer)?;
            self.pending.extend(self.unstuff.feed(&buffer[..count]));
            self.taken += count;
        }
        if let Some((rows, columns)) = self.unstuff.take_window_size() {
            set_window_size(master, rows, columns)?;
        }
        self.deliver(init, master)?;
        Ok(ended && (!has_output || self.shown >= MOST))
    }

    /// Types what is pending, and tells the host when it may send more.
    fn deliver(&mut self, init: &mut Init, mut master: &File) -> io::Result<()> {
        if !self.pending.is_empty() {
            match master.write(&self.pending) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        // A frame costs more than the bytes that it is about; half the window keeps the line busy.
        if self.pending.is_empty() && self.taken >= relay::WINDOW / 2 {
            init.report(Frame::Credit(std::mem::take(&mut self.taken)));
        }
        Ok(())
    }
}
