//! Where output goes may be closed, full, narrow, or interrupted.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use screen::{Size, Terminal};

use crate::recordings::{copy, folder};

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roundtable"));
    command.args(arguments).current_dir(folder("database").parent().unwrap());
    command
}

/// A pipe of which nobody reads any more.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// As behind `| head`: nobody is told of it, and the status is what it would have been.
#[test]
fn a_reader_that_has_left_is_no_error() {
    for (arguments, status) in [
        (&["audit", "--root", "database"][..], 0),
        (&["audit", "--json", "--root", "database"], 0),
        (&["audit", "--prometheus", "-o", "-", "--root", "database"], 0),
        (&["audit", "--root", "database", "--fail-on", "tables=1M"], 2),
        (&["plan", "--size", "1G", "--processes", "2"], 0),
        (&["explain", "8", "--root", "database"], 0),
        (&["completions", "bash"], 0),
        (&["manual"], 0),
        (&["audit", "--help"], 0),
    ] {
        let output = command(arguments).stdout(closed()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {errors}");
        assert!(!errors.contains("panicked") && !errors.contains("Broken pipe"), "{arguments:?}: {errors}");
    }
}

#[test]
fn without_anybody_to_complain_to_the_status_stays() {
    for (arguments, status) in [
        (&["audit", "--root", "database", "--fail-on", "tables=1M"][..], 2),
        (&["audit", "--root", "nowhere"], 3),
        (&["audit", "--no-such-option"], 3),
    ] {
        let status_seen = command(arguments).stdout(Stdio::null()).stderr(closed()).status().unwrap();
        assert_eq!(status_seen.code(), Some(status), "{arguments:?}");
    }
}

#[test]
fn a_full_disk_below_standard_output_is_an_error() {
    for arguments in [&["audit", "--root", "database"][..], &["plan", "--size", "1G", "--processes", "2"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = command(arguments).stdout(full).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {errors}");
        assert!(errors.contains("No space left"), "{errors}");
    }
}

/// Ctrl-C in the middle of an audit: what was there stays, and nothing else is left.
#[test]
fn an_interrupted_audit_leaves_the_older_output() {
    let host = copy("database");
    // Whoever reads this waits for somebody to write.
    let meminfo = host.path().join("proc/meminfo");
    fs::remove_file(&meminfo).unwrap();
    assert!(Command::new("mkfifo").arg(&meminfo).status().unwrap().success());
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("roundtable.prom");
    fs::write(&path, "old\n").unwrap();
    let mut audit = command(&["audit", "--prometheus", "--root"])
        .arg(host.path())
        .arg("--output")
        .arg(&path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // Opens when the audit has opened it, which is then in the middle.
    let writer = fs::OpenOptions::new().write(true).open(&meminfo).unwrap();
    let pid = screen::rustix::process::Pid::from_raw(audit.id() as i32).unwrap();
    screen::rustix::process::kill_process(pid, screen::rustix::process::Signal::INT).unwrap();
    assert_eq!(audit.wait().unwrap().signal(), Some(libc::SIGINT));
    drop(writer);
    assert_eq!(fs::read_to_string(&path).unwrap(), "old\n");
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
}

/// On a terminal of 80 columns each row of a table is one line of it.
#[test]
fn tables_fit_a_terminal_of_80_columns() {
    let mut command = command(&["audit", "--root", "hostile"]);
    command.env("TERM", "xterm");
    let size = Size { rows: 400, columns: 80 };
    let mut terminal = Terminal::start(command, size, Duration::from_secs(60)).unwrap();
    terminal
        .wait("all of it", |shown| shown.screen().contents().contains("Beside the kernel's own figures"))
        .unwrap();
    assert_eq!(terminal.end().unwrap(), 0);
    let text = terminal.contents();
    let rows: Vec<&str> = text.lines().filter(|line| line.contains('│') || line.contains('┆')).collect();
    assert!(rows.len() > 10, "{text}");
    for row in rows {
        assert!(row.starts_with('│') && row.trim_end().ends_with('│'), "{row}");
    }
}
