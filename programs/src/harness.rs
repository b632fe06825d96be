//! The test library: subtests in children of their own, each with a time limit.
//!
//! A program lists its subtests with [`crate::tests!`]. Without an argument all of them run in order, with names those;
//! `--list` lists them, and with `--patient` none is ended by its time limit: for a machine that has much else to do. A subtest is a function that panics when it fails. Each line of result is one of `ok NAME`,
//! `not ok NAME: reason`, `skip NAME: reason`; the exit status is 0 when none failed.

use std::any::Any;
use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::child::{End, waitpid};
use crate::huge;

/// One subtest.
pub struct Test {
    pub name: &'static str,
    pub run: fn(),
    /// Seconds that it may take, on a slow machine.
    pub limit: u64,
}

/// Writes `main` for a test program: `tests! { name, slow_one: 120, ... }`, in seconds.
#[macro_export]
macro_rules! tests {
    ($($name:ident $(: $limit:expr)?),* $(,)?) => {
        fn main() -> std::process::ExitCode {
            const DEFAULT: u64 = 30;
            $crate::harness::main(&[$($crate::harness::Test {
                name: stringify!($name),
                run: $name,
                limit: [DEFAULT $(, $limit)?][[0usize $(, { let _ = $limit; 1 })?].len() - 1],
            }),*])
        }
    };
}

struct Skip(String);

/// Ends the subtest: it cannot be run here.
pub fn skip(reason: &str) -> ! {
    std::panic::panic_any(Skip(reason.to_string()))
}

thread_local! {
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A panic's text with its place, in one line.
pub fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = if let Some(text) = payload.downcast_ref::<&str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "panic"
    };
    let place = PLACE.with_borrow_mut(Option::take).unwrap_or_default();
    format!("{} ({place})", text.split_whitespace().collect::<Vec<_>>().join(" "))
}

pub fn main(tests: &[Test]) -> std::process::ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let before = arguments.len();
    arguments.retain(|argument| argument != "--patient");
    let patient = arguments.len() < before;
    if arguments.iter().any(|argument| argument == "--list") {
        tests.iter().for_each(|test| println!("{}", test.name));
        return 0.into();
    }
    for argument in &arguments {
        if !tests.iter().any(|test| test.name == argument) {
            eprintln!("there is no subtest {argument}; --list lists them");
            return 2.into();
        }
    }
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|place| format!("{}:{}", place.file(), place.line()));
        PLACE.with_borrow_mut(|slot| *slot = place.clone());
        // Where a panic is the end, nobody will be there to hand the message on.
        if cfg!(panic = "abort") || std::thread::current().name() != Some("main") {
            eprintln!("{info}");
        }
    }));
    block_child_signal();
    let pool = huge_pool();
    let mut failed = false;
    for test in tests.iter().filter(|test| arguments.is_empty() || arguments.iter().any(|a| a == test.name)) {
        let start = Instant::now();
        match run(test, patient) {
            Outcome::Passed => println!("ok {}", test.name),
            Outcome::Skipped(reason) => println!("skip {}: {reason}", test.name),
            Outcome::Failed(reason) => {
                println!("not ok {}: {reason}", test.name);
                failed = true;
            }
        }
        if start.elapsed() > Duration::from_secs(5) {
            println!("# {} took {:.1} s", test.name, start.elapsed().as_secs_f32());
        }
        if let Some(pool) = pool {
            huge::set_overcommit(0);
            huge::set_pool(pool);
        }
    }
    u8::from(failed).into()
}

/// What a subtest may take where nobody is in a hurry: whoever runs the program has a limit for the whole.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// The persistent pages at the start, to go back to after each subtest.
fn huge_pool() -> Option<u64> {
    std::fs::read_to_string("/proc/sys/vm/nr_hugepages").ok()?.trim().parse().ok()
}

enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

fn run(test: &Test, patient: bool) -> Outcome {
    let (read, write) = match std::io::pipe() {
        Ok(ends) => ends,
        Err(error) => return Outcome::Failed(format!("pipe: {error}")),
    };
    let _ = std::io::stdout().flush();
    // SAFETY: this process has one thread.
    let pid = match unsafe { libc::fork() } {
        -1 => return Outcome::Failed(format!("fork: {}", std::io::Error::last_os_error())),
        0 => {
            drop(read);
            subtest(test, File::from(OwnedFd::from(write)))
        }
        pid => pid,
    };
    drop(write);
    let end = wait(pid, if patient { PATIENCE } else { Duration::from_secs(test.limit) });
    // Whatever the subtest has left behind, when it ended as when it hangs.
    // SAFETY: takes integers; the group is the subtest's own.
    unsafe { libc::kill(-pid, libc::SIGKILL) };
    let timed_out = end.is_none();
    let end = end.unwrap_or_else(|| waitpid(pid, 0).map_or(End::Continued, |(_, end)| end));
    if timed_out {
        return Outcome::Failed(format!("took longer than {} s", test.limit));
    }
    let mut message = String::new();
    if matches!(end, End::Code(1 | 2)) {
        // Written before the exit, and shorter than a pipe.
        message = crate::sys::drain(&read);
    }
    match end {
        End::Code(0) => Outcome::Passed,
        End::Code(1) => Outcome::Failed(message),
        End::Code(2) => Outcome::Skipped(message),
        end => Outcome::Failed(format!("its process ended: {end:?}")),
    }
}

/// The child's side of a subtest.
fn subtest(test: &Test, mut messages: File) -> ! {
    // SAFETY: plain system calls; the signal set is made by sigemptyset.
    unsafe {
        libc::setpgid(0, 0);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
    let code = match catch_unwind(AssertUnwindSafe(test.run)) {
        Ok(()) => 0,
        Err(payload) => {
            let (code, message) = match payload.downcast_ref::<Skip>() {
                Some(Skip(reason)) => (2, reason.clone()),
                None => (1, panic_message(payload.as_ref())),
            };
            let _ = messages.write_all(&message.as_bytes()[..message.len().min(2000)]);
            code
        }
    };
    let _ = std::io::stdout().flush();
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

fn child_signal() -> libc::sigset_t {
    // SAFETY: sigemptyset fills the set.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        set
    }
}

fn block_child_signal() {
    // SAFETY: the set lives through the call.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &child_signal(), std::ptr::null_mut()) };
}

/// Waits for the child; `None` when the limit is over. SIGCHLD is blocked, so none is missed.
fn wait(pid: i32, limit: Duration) -> Option<End> {
    let end = Instant::now() + limit;
    loop {
        match waitpid(pid, libc::WNOHANG) {
            Ok((0, _)) => {}
            Ok((_, end)) => return Some(end),
            Err(error) => panic!("waitpid: {error}"),
        }
        let left = end.checked_duration_since(Instant::now())?;
        let left = libc::timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        // SAFETY: the set and the time live through the call; no siginfo is asked for.
        unsafe { libc::sigtimedwait(&child_signal(), std::ptr::null_mut(), &left) };
    }
}
