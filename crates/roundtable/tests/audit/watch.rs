//! `roundtable watch` on a terminal of its own: what it shows, how it answers keys, sizes and signals, and
//! what it leaves behind.

use std::process::Command;
use std::time::Duration;

use screen::rustix::process::Signal;
use screen::{Size, Terminal};

use crate::recordings::folder;

fn start(columns: u16, rows: u16) -> Terminal {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roundtable"));
    command
        .args(["watch", "--interval", "1", "--root"])
        .arg(folder("database"))
        .env("TERM", "xterm")
        .env("NO_COLOR", "1");
    let terminal = Terminal::start(command, Size { rows, columns }, Duration::from_secs(60)).unwrap();
    wait(&terminal, "its screen", |screen| {
        screen.alternate_screen() && screen.contents().contains("q leaves")
    });
    terminal
}

fn wait(terminal: &Terminal, what: &str, expected: impl Fn(&screen::vt100::Screen) -> bool) {
    terminal.wait(what, |shown| expected(shown.screen())).unwrap();
}

/// Waits for the end: the status, with the terminal as it was before.
#[track_caller]
fn end(mut terminal: Terminal) -> i32 {
    let status = terminal.end().unwrap();
    terminal.expect_as_found().unwrap();
    status
}

#[test]
fn keys_sizes_and_the_terminal_afterwards() {
    let mut terminal = start(80, 24);
    let text = terminal.contents();
    for word in ["Linux 6.18", "anonymous memory", "tables", "faults/s", "page tables", "of 1180 free"] {
        assert!(text.contains(word), "{word} is not in\n{text}");
    }
    assert!(!text.contains("page  "), "there is no room for it");
    terminal.resize(Size { rows: 30, columns: 120 }).unwrap();
    wait(&terminal, "column that has room now", |screen| screen.contents().contains("page  "));
    terminal.resize(Size { rows: 6, columns: 30 }).unwrap();
    wait(&terminal, "small screen", |screen| {
        let text = screen.contents();
        text.contains("q leaves") && !text.contains("faults/s")
    });
    terminal.resize(Size { rows: 24, columns: 80 }).unwrap();
    wait(&terminal, "help in full", |screen| screen.contents().contains("Tab: next list, sort by t tables"));
    for title in ["programs", "units", "processes", "files"] {
        terminal.send("\t").unwrap();
        wait(&terminal, title, |screen| {
            screen.contents().lines().any(|line| line.starts_with('┌') && line.contains(title))
        });
    }
    // Keys that mean nothing.
    terminal.send("x\x1b[A\r").unwrap();
    terminal.send("q").unwrap();
    assert_eq!(end(terminal), 0);
}

#[test]
fn control_c_leaves() {
    let mut terminal = start(40, 10);
    terminal.send("\x03").unwrap();
    assert_eq!(end(terminal), 0);
}

#[test]
fn a_signal_ends_it_in_good_order() {
    let terminal = start(80, 24);
    terminal.signal(Signal::TERM).unwrap();
    assert_eq!(end(terminal), 128 + 15);
}

#[test]
fn a_shell_stops_it_and_goes_on_with_it() {
    let mut command = Command::new("sh");
    command.arg("-i").env("PS1", "host> ").env("TERM", "xterm").env_remove("ENV");
    let mut terminal =
        Terminal::start(command, Size { rows: 24, columns: 80 }, Duration::from_secs(60)).unwrap();
    terminal.expect("host> ").unwrap();
    let root = folder("database");
    let watch = format!("'{}' watch --root '{}'", env!("CARGO_BIN_EXE_roundtable"), root.display());
    terminal.send(&format!("{watch}\r")).unwrap();
    let is_there =
        |screen: &screen::vt100::Screen| screen.alternate_screen() && screen.contents().contains("q leaves");
    wait(&terminal, "its screen", is_there);
    terminal.send("\x1a").unwrap();
    terminal.expect("host> ").unwrap();
    wait(&terminal, "normal screen", |screen| !screen.alternate_screen() && !screen.hide_cursor());
    terminal.ask("stty -a | grep -c -e ' -icanon' -e ' -echo '", "\n0\n").unwrap();
    terminal.expect("host> ").unwrap();
    terminal.send("fg\r").unwrap();
    wait(&terminal, "its screen again", is_there);
    terminal.send("q").unwrap();
    terminal.expect("host> ").unwrap();
    terminal.send("exit\r").unwrap();
    assert_eq!(end(terminal), 0);
}

#[test]
fn a_terminal_that_is_closed_ends_it() {
    let mut terminal = start(80, 24);
    terminal.hang_up();
    assert_eq!(terminal.end().unwrap(), 128 + 1);
}
