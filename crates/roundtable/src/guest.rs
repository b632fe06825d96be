//! A running QEMU: its console's bytes in and out, and its end.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::signals::{Caught, Change, Signals};

/// What happened to a guest.
#[derive(Debug)]
pub enum Event {
    /// The console printed this.
    Output(Vec<u8>),
    /// Our own standard input has something to read, or has ended.
    Input,
    /// QEMU is gone.
    Closed,
    /// We were told to end.
    Signal(i32),
    /// Something about our terminal.
    Terminal(Change),
    /// The deadline is here.
    Deadline,
}

/// A running QEMU; killed when dropped, and by the kernel when we die.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    input: Option<ChildStdin>,
    output: ChildStdout,
    errors: File,
    pending: VecDeque<u8>,
}

impl Guest {
    /// Starts QEMU. To be called on a thread that lives as long as the guest shall.
    pub fn start(mut command: Command) -> Result<Guest> {
        let errors = tempfile::tempfile().context("a temporary file for QEMU's messages")?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors.try_clone()?)
            // The terminal's Ctrl-C is for us: we end the guest in order.
            .process_group(0);
        // SAFETY: the closure makes one system call, which is allowed between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let mut child = command.spawn().with_context(|| {
            let program = command.get_program().to_string_lossy();
            format!("{program} does not start")
        })?;
        let input = child.stdin.take().expect("piped above");
        let output = child.stdout.take().expect("piped above");
        // A guest that does not read must not keep us from reading what it prints.
        fcntl_setfl(&input, fcntl_getfl(&input)? | OFlags::NONBLOCK)?;
        Ok(Guest { child, input: Some(input), output, errors, pending: VecDeque::new() })
    }

    /// Queues bytes for the console; they go out while [`Guest::wait`] waits.
    pub fn send(&mut self, bytes: &[u8]) {
        self.pending.extend(bytes);
    }

    /// How many bytes are queued.
    pub fn queued(&self) -> usize {
        self.pending.len()
    }

    /// Waits for the next event; for input on `stdin` when it is given.
    pub fn wait(
        &mut self,
        signals: &Signals,
        deadline: Option<Instant>,
        stdin: Option<&io::Stdin>,
    ) -> Result<Event> {
        loop {
            // Several signals may have come in one wake-up.
            match signals.take() {
                Some(Caught::End(signal)) => return Ok(Event::Signal(signal)),
                Some(Caught::Terminal(change)) => return Ok(Event::Terminal(change)),
                None => {}
            }
            let timeout = match deadline {
                None => None,
                Some(deadline) => match deadline.checked_duration_since(Instant::now()) {
                    None => return Ok(Event::Deadline),
                    // Rounded up, or the last millisecond would be spent spinning.
                    Some(left) => Some(Timespec::try_from(left + Duration::from_millis(1))?),
                },
            };
            let mut fds = vec![PollFd::new(&self.output, PollFlags::IN), signals.poll_entry()];
            let stdin_at = stdin.map(|stdin| {
                fds.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN));
                fds.len() - 1
            });
            let input_at = self.input.as_ref().filter(|_| !self.pending.is_empty()).map(|input| {
                fds.push(PollFd::from_borrowed_fd(input.as_fd(), PollFlags::OUT));
                fds.len() - 1
            });
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error).context("poll"),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            if ready[1] {
                continue;
            }
            if input_at.is_some_and(|at| ready[at]) {
                self.flush();
            }
            if ready[0] {
                let mut buffer = vec![0; 1 << 16];
                let read = match self.output.read(&mut buffer) {
                    Ok(read) => read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error).context("QEMU's output"),
                };
                buffer.truncate(read);
                return Ok(if read == 0 { Event::Closed } else { Event::Output(buffer) });
            }
            if stdin_at.is_some_and(|at| ready[at]) {
                return Ok(Event::Input);
            }
        }
    }

    fn flush(&mut self) {
        let Some(input) = &mut self.input else { return };
        match input.write(self.pending.make_contiguous()) {
            Ok(written) => {
                self.pending.drain(..written);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // QEMU is going; its output's end tells.
            Err(_) => {
                self.pending.clear();
                self.input = None;
            }
        }
    }

    /// Ends QEMU when it still runs; gives how it ended and what it wrote to its standard error.
    pub fn finish(&mut self) -> Result<(ExitStatus, String)> {
        self.child.kill()?;
        self.reap()
    }

    /// Waits for a QEMU that has closed its output; gives what [`Guest::finish`] gives.
    pub fn reap(&mut self) -> Result<(ExitStatus, String)> {
        let status = self.child.wait()?;
        let mut errors = String::new();
        self.errors.seek(SeekFrom::Start(0))?;
        self.errors.read_to_string(&mut errors)?;
        Ok((status, errors.trim_end().to_string()))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may be gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Guest {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Guest::start(command).unwrap()
    }

    fn all_output(guest: &mut Guest) -> String {
        let signals = Signals::catch().unwrap();
        let limit = Some(Instant::now() + Duration::from_secs(20));
        let mut out = Vec::new();
        loop {
            match guest.wait(&signals, limit, None).unwrap() {
                Event::Output(bytes) => out.extend(bytes),
                Event::Closed => return String::from_utf8(out).unwrap(),
                event => panic!("{event:?}"),
            }
        }
    }

    #[test]
    fn bytes_go_both_ways_and_the_end_is_seen() {
        let mut guest = shell("read line; echo got $line; echo trouble >&2; exit 3");
        guest.send(b"some words\n");
        assert_eq!(all_output(&mut guest), "got some words\n");
        let (status, errors) = guest.reap().unwrap();
        assert_eq!((status.code(), errors.as_str()), (Some(3), "trouble"));
    }

    #[test]
    fn input_that_nobody_reads_does_not_block_the_output() {
        let mut guest = shell("head -c 300000 /dev/zero | tr '\\0' x; exec sleep 0.2");
        guest.send(&vec![b'y'; 1 << 20]);
        assert_eq!(all_output(&mut guest).len(), 300_000);
    }

    #[test]
    fn the_deadline_is_kept_and_dropping_kills() {
        let signals = Signals::catch().unwrap();
        let mut guest = shell("exec sleep 1000");
        let start = Instant::now();
        let event = guest.wait(&signals, Some(start + Duration::from_millis(50)), None).unwrap();
        assert!(matches!(event, Event::Deadline));
        assert!(start.elapsed() >= Duration::from_millis(50));
        drop(guest);
        assert!(start.elapsed() < Duration::from_secs(100));
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = Guest::start(Command::new("surely-no-such-program")).unwrap_err();
        assert!(error.to_string().contains("surely-no-such-program"));
    }
}
