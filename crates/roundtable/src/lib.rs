//! The host side: initial RAM disks, QEMU, the guest's reports; audits of Linux hosts.
#![warn(missing_docs)]

pub mod archive;
pub mod audit;
pub mod bench;
pub mod console;
pub mod content;
pub mod figures;
pub mod guest;
pub mod initramfs;
pub mod machine;
pub mod network;
pub mod options;
pub mod output;
pub mod packages;
pub mod plan;
pub mod preset;
pub mod program;
pub mod root;
pub mod run;
mod session;
pub mod signals;
pub mod size;
pub mod tarball;
pub mod terminal;
pub mod volume;
pub mod watch;

/// Makes a panic of any thread the end of the program: it has a bug then, and whoever waits for the thread would wait for ever. The
/// first thing that a tool of ours does.
pub fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload_as_str().is_some_and(is_left_reader) {
            // SAFETY: ends the process at once, as the signal would that Rust has switched off.
            unsafe { libc::_exit(128 + libc::SIGPIPE) };
        }
        report(panic);
        std::process::abort();
    }));
}

/// Whether a panic is that of print! upon a pipe whose reader has left, as `| head` does: no bug, and the end of what there is to say.
fn is_left_reader(message: &str) -> bool {
    message.starts_with("failed printing to std") && message.contains("Broken pipe")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words are the standard library's.
    #[test]
    fn a_reader_that_has_left_is_no_bug() {
        let program = "ROUNDTABLE_PRINTS";
        if std::env::var_os(program).is_some() {
            abort_on_panic();
            loop {
                println!("{}", "a line of a long table ".repeat(100));
            }
        }
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::a_reader_that_has_left_is_no_bug", "--nocapture"])
            .env(program, "1")
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // The runner of the tests speaks first.
        let mut output = child.stdout.take().unwrap();
        std::io::Read::read_exact(&mut output, &mut [0; 4096]).unwrap();
        drop(output);
        assert_eq!(child.wait().unwrap().code(), Some(141));
        assert!(!is_left_reader("index out of bounds"));
    }
}
