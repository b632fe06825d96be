//! Child processes that run a closure, and what became of them.

use std::io::{PipeReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;

use crate::sys::{check, drain};

/// How a process ended, or that it was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Code(i32),
    Signal(i32),
    Stopped(i32),
    Continued,
}

impl End {
    pub fn of(status: i32) -> End {
        if libc::WIFEXITED(status) {
            End::Code(libc::WEXITSTATUS(status))
        } else if libc::WIFSTOPPED(status) {
            End::Stopped(libc::WSTOPSIG(status))
        } else if libc::WIFCONTINUED(status) {
            End::Continued
        } else {
            End::Signal(libc::WTERMSIG(status))
        }
    }
}

/// The status of a child whose closure panicked.
pub const PANICKED: i32 = 101;

/// A child; not waited for when dropped, but killed.
#[derive(Debug)]
pub struct Child {
    pub pid: i32,
    messages: PipeReader,
    waited: bool,
}

/// Forks; the child runs the closure and ends with its result as status, or 101 when it panics.
pub fn fork_code(run: impl FnOnce() -> i32) -> Child {
    let (read, mut write) = std::io::pipe().expect("pipe");
    let _ = std::io::stdout().flush();
    // SAFETY: test programs fork while they have one thread, or run only what needs no other in the child.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", Errno::last()),
        0 => {
            drop(read);
            let code = match catch_unwind(AssertUnwindSafe(run)) {
                Ok(code) => code,
                Err(payload) => {
                    let message = crate::harness::panic_message(payload.as_ref());
                    let _ = write.write_all(message.as_bytes());
                    PANICKED
                }
            };
            let _ = std::io::stdout().flush();
            // SAFETY: ends the process; nothing of the parent's may run twice.
            unsafe { libc::_exit(code) }
        }
        pid => Child { pid, messages: read, waited: false },
    }
}

/// Forks; the child runs the closure and ends with status 0.
pub fn fork(run: impl FnOnce()) -> Child {
    fork_code(|| {
        run();
        0
    })
}

/// Runs the closure in a child and expects it not to fail.
#[track_caller]
pub fn in_child(run: impl FnOnce()) {
    fork(run).ok();
}

/// waitpid, started again when a signal interrupts it.
pub fn waitpid(pid: i32, options: i32) -> Result<(i32, End), Errno> {
    loop {
        let mut status = 0;
        // SAFETY: `status` lives through the call.
        match check(unsafe { libc::waitpid(pid, &mut status, options) }) {
            Ok(pid) => return Ok((pid as i32, End::of(status))),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

impl Child {
    /// Waits for its end.
    pub fn wait(mut self) -> End {
        self.waited = true;
        waitpid(self.pid, 0).expect("waitpid").1
    }

    /// Waits for its end and expects that all went well.
    #[track_caller]
    pub fn ok(mut self) {
        self.waited = true;
        let end = waitpid(self.pid, 0).expect("waitpid").1;
        if end != End::Code(0) {
            panic!("child: {end:?} {}", drain(&self.messages));
        }
    }

    pub fn kill(&self, signal: i32) {
        // SAFETY: takes integers.
        check(unsafe { libc::kill(self.pid, signal) }).expect("kill");
    }

    /// Leaves it to who waits for it by its number.
    pub fn release(mut self) -> i32 {
        self.waited = true;
        self.pid
    }

    /// Kills it and waits.
    pub fn end(self) {
        self.kill(libc::SIGKILL);
        self.wait();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.waited {
            // SAFETY: takes integers; the process is our child, not waited for.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            let _ = waitpid(self.pid, 0);
        }
    }
}
