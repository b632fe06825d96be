//! `roundtable watch` on a terminal of its own: what it shows, how it answers keys, sizes and signals, and what it leaves behind.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::recordings::folder;

/// A program on a terminal.
struct Session {
    program: Child,
    keyboard: File,
    slave: File,
    screen: Arc<Mutex<vt100::Parser>>,
}

impl Session {
    fn start(columns: u16, rows: u16) -> Session {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave =
            rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY, rustix::fs::Mode::empty()).unwrap();
        let slave = File::from(slave);
        let mut master = File::from(master);
        let screen = Arc::new(Mutex::new(vt100::Parser::new(some(rows), some(columns), 0)));
        resize(&master, columns, rows);
        // A session of its own: the terminal has to be its controlling one, to tell it of new sizes.
        let program = Command::new("setsid")
            .args([
                "--ctty",
                "--wait",
                env!("CARGO_BIN_EXE_roundtable"),
                "watch",
                "--interval",
                "1",
                "--root",
            ])
            .arg(folder("database"))
            .env("TERM", "xterm")
            .env("NO_COLOR", "1")
            .stdin(slave.try_clone().unwrap())
            .stdout(slave.try_clone().unwrap())
            .stderr(Stdio::piped())
            .spawn()
            .expect("setsid starts");
        let keyboard = master.try_clone().unwrap();
        let shown = screen.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = master.read(&mut buffer) {
                shown.lock().unwrap().process(&buffer[..count]);
            }
        });
        let session = Session { program, keyboard, slave, screen };
        session
            .wait("its screen", |screen| screen.alternate_screen() && screen.contents().contains("q leaves"));
        session
    }

    /// Waits until the screen is as expected.
    #[track_caller]
    fn wait(&self, what: &str, expected: impl Fn(&vt100::Screen) -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !expected(self.screen.lock().unwrap().screen()) {
            assert!(Instant::now() < end, "no {what}:\n{}", self.screen.lock().unwrap().screen().contents());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn contents(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    fn resize(&self, columns: u16, rows: u16) {
        self.screen.lock().unwrap().screen_mut().set_size(some(rows), some(columns));
        resize(&self.keyboard, columns, rows);
    }

    /// Waits for the end: the status, with the terminal as it was before.
    #[track_caller]
    fn end(mut self) -> Option<i32> {
        let status = self.program.wait().unwrap();
        self.wait("normal screen", |screen| !screen.alternate_screen() && !screen.hide_cursor());
        let modes = tcgetattr(&self.slave).unwrap().local_modes;
        assert!(modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG), "{modes:?}");
        status.code()
    }
}

fn some(number: u16) -> NonZero<u16> {
    NonZero::new(number).expect("a terminal has rows and columns")
}

fn resize(terminal: &File, columns: u16, rows: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).unwrap();
}

#[test]
fn keys_sizes_and_the_terminal_afterwards() {
    let mut session = Session::start(80, 24);
    let text = session.contents();
    for word in ["Linux 6.18", "anonymous memory", "tables", "faults/s", "page tables", "of 1180 free"] {
        assert!(text.contains(word), "{word} is not in\n{text}");
    }
    assert!(!text.contains("page  "), "there is no room for it");
    session.resize(120, 30);
    session.wait("column that has room now", |screen| screen.contents().contains("page  "));
    session.resize(30, 6);
    session.wait("small screen", |screen| {
        let text = screen.contents();
        text.contains("q leaves") && !text.contains("faults/s")
    });
    // Keys that mean nothing.
    session.keyboard.write_all(b"x\x1b[A\r").unwrap();
    session.keyboard.write_all(b"q").unwrap();
    assert_eq!(session.end(), Some(0));
}

#[test]
fn control_c_leaves() {
    let mut session = Session::start(40, 10);
    session.keyboard.write_all(b"\x03").unwrap();
    assert_eq!(session.end(), Some(0));
}

#[test]
fn a_signal_ends_it_in_good_order() {
    let session = Session::start(80, 24);
    // `setsid` waits for the program only where it has to fork; else it has become the program.
    let pid = Pid::from_raw(session.program.id() as i32).unwrap();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let child = children.split_whitespace().next().and_then(|child| Pid::from_raw(child.parse().ok()?));
    kill_process(child.unwrap_or(pid), Signal::TERM).unwrap();
    assert_eq!(session.end(), Some(128 + 15));
}
