//! Terminals, by way of pseudoterminals: line editing, signals, job control, settings.

use std::mem::zeroed;
use std::time::{Duration, Instant};

use roundtable_programs::child::{Child, End, fork};
use roundtable_programs::file::Fd;
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{check, settles};
use roundtable_programs::{Errno, place, signals, tests};

tests! { canonical_line, erasing, literal_next, end_of_file, echo_of_controls, newlines, raw_minimum_and_time,
switch_to_canonical, signals_reach_the_foreground, large_foreground_group, background_read_stops, background_write,
orphans_get_an_error, window_size, hangup_by_close, hangup_by_leader, hangup_and_the_foreground, vhangup,
serial_line, flow_control, flush, packet_mode, session_rules, settings_are_kept, names_and_locks }

/// Both sides of a new pseudoterminal.
struct Pty {
    master: Fd,
    slave: Fd,
}

fn ioctl<T>(fd: &Fd, request: u64, value: &mut T) -> Result<usize, Errno> {
    let value: *mut T = value;
    // SAFETY: the value has the type that the request wants.
    check(unsafe { libc::ioctl(fd.raw(), request, value) })
}

/// devpts, where it is not mounted yet.
fn mount_devpts() {
    if std::fs::metadata("/dev/pts/ptmx").is_err() {
        let _ = place::mkdir("/dev/pts", 0o755);
        let _ = place::mount("devpts", "/dev/pts", "devpts", 0, "");
    }
}

fn open_master() -> (Fd, u32) {
    mount_devpts();
    let master = Fd::open("/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY).expect("/dev/ptmx");
    let mut number = 0u32;
    ioctl(&master, libc::TIOCGPTN, &mut number).expect("TIOCGPTN");
    (master, number)
}

impl Pty {
    fn new() -> Pty {
        let (master, number) = open_master();
        ioctl(&master, libc::TIOCSPTLCK, &mut 0i32).expect("TIOCSPTLCK");
        let slave = Fd::open(&format!("/dev/pts/{number}"), libc::O_RDWR | libc::O_NOCTTY).expect("slave");
        Pty { master, slave }
    }

    /// The name below `/dev/pts`.
    fn number(&self) -> u32 {
        let mut number = 0;
        ioctl(&self.master, libc::TIOCGPTN, &mut number).expect("TIOCGPTN");
        number
    }

    /// Without echo, so that the master reads output only.
    fn silent() -> Pty {
        let pty = Pty::new();
        pty.change(|t| t.c_lflag &= !libc::ECHO);
        pty
    }

    fn settings(&self) -> libc::termios {
        // SAFETY: a termios of zeros is one, and the call fills it.
        unsafe {
            let mut settings: libc::termios = zeroed();
            check(libc::tcgetattr(self.slave.raw(), &mut settings)).expect("tcgetattr");
            settings
        }
    }

    fn change(&self, change: impl FnOnce(&mut libc::termios)) {
        let mut settings = self.settings();
        change(&mut settings);
        // SAFETY: the settings are a local.
        check(unsafe { libc::tcsetattr(self.slave.raw(), libc::TCSANOW, &settings) }).expect("tcsetattr");
    }

    fn type_in(&self, bytes: &[u8]) {
        assert_eq!(self.master.write(bytes), Ok(bytes.len()));
    }

    /// What a program reads.
    fn read(&self) -> Vec<u8> {
        let mut buffer = [0; 1000];
        let count = self.slave.read(&mut buffer).expect("read");
        buffer[..count].to_vec()
    }

    /// What appears on the screen, once there are `count` bytes.
    fn screen(&self, count: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < count {
            assert!(
                readable(&self.master, 5000),
                "the screen shows only {:?}",
                String::from_utf8_lossy(&all)
            );
            let mut buffer = [0; 1000];
            let got = self.master.read(&mut buffer).expect("read");
            all.extend_from_slice(&buffer[..got]);
        }
        all
    }
}

fn readable(fd: &Fd, timeout: i32) -> bool {
    let mut entry = libc::pollfd { fd: fd.raw(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, which lives through the call.
    check(unsafe { libc::poll(&mut entry, 1, timeout) }).expect("poll");
    entry.revents & libc::POLLIN != 0
}

fn canonical_line() {
    let pty = Pty::silent();
    pty.type_in(b"unfinished");
    assert!(!readable(&pty.slave, 50));
    pty.type_in(b" line\rnext\n");
    assert!(readable(&pty.slave, 1000));
    assert_eq!(pty.read(), b"unfinished line\n");
    // A short read gets a part of a line, the next one the rest.
    let mut buffer = [0; 2];
    assert_eq!(pty.slave.read(&mut buffer), Ok(2));
    assert_eq!(pty.read(), b"xt\n");
    assert!(!readable(&pty.slave, 0));
}

fn erasing() {
    let pty = Pty::new();
    pty.type_in(b"abc\x7f\x7fx\n");
    assert_eq!(pty.read(), b"ax\n");
    assert_eq!(pty.screen(12), b"abc\x08 \x08\x08 \x08x\r\n");
    pty.type_in(b"one two\x17three\n");
    assert_eq!(pty.read(), b"one three\n");
    let shown = pty.screen(7 + 9 + 7);
    assert!(shown.starts_with(b"one two\x08 \x08"));
    pty.type_in(b"gone\x15kept\n");
    assert_eq!(pty.read(), b"kept\n");
    pty.screen(4 + 12 + 6);
    // A whole character of UTF-8 goes at once when the terminal knows of it.
    pty.change(|t| t.c_iflag |= libc::IUTF8);
    pty.type_in("aäö\x7f\n".as_bytes());
    assert_eq!(pty.read(), "aä\n".as_bytes());
}

fn literal_next() {
    let pty = Pty::silent();
    pty.type_in(b"a\x16\x03b\x16\x7fc\n");
    assert_eq!(pty.read(), b"a\x03b\x7fc\n");
}

fn end_of_file() {
    let pty = Pty::silent();
    pty.type_in(b"rest\x04");
    assert_eq!(pty.read(), b"rest");
    assert!(!readable(&pty.slave, 0));
    pty.type_in(b"\x04");
    assert!(readable(&pty.slave, 1000));
    assert_eq!(pty.read(), b"");
    assert!(!readable(&pty.slave, 0));
}

fn echo_of_controls() {
    let pty = Pty::new();
    pty.type_in(b"a\x01\t\n");
    assert_eq!(pty.screen(6), b"a^A\t\r\n");
    // Without ECHO the end of a line can still be shown.
    pty.change(|t| t.c_lflag = t.c_lflag & !libc::ECHO | libc::ECHONL);
    pty.type_in(b"secret\n");
    assert_eq!(pty.screen(2), b"\r\n");
}

fn newlines() {
    let pty = Pty::silent();
    assert_eq!(pty.slave.write(b"a\nb\tc"), Ok(5));
    assert_eq!(pty.screen(6), b"a\r\nb\tc");
    pty.change(|t| t.c_oflag |= libc::XTABS);
    assert_eq!(pty.slave.write(b"\nb\tc"), Ok(4));
    assert_eq!(pty.screen(11), b"\r\nb       c");
    pty.change(|t| t.c_oflag &= !libc::OPOST);
    assert_eq!(pty.slave.write(b"a\nb"), Ok(3));
    assert_eq!(pty.screen(3), b"a\nb");
    pty.change(|t| t.c_iflag = libc::INLCR);
    pty.change(|t| t.c_lflag &= !libc::ICANON);
    pty.type_in(b"\n\r");
    assert_eq!(pty.read(), b"\r\r");
}

fn raw(pty: &Pty, minimum: u8, time: u8) {
    pty.change(|t| {
        t.c_lflag &= !libc::ICANON;
        t.c_cc[libc::VMIN] = minimum;
        t.c_cc[libc::VTIME] = time;
    });
}

fn raw_minimum_and_time() {
    let pty = Pty::silent();
    raw(&pty, 0, 0);
    assert_eq!(pty.read(), b"");
    raw(&pty, 0, 1);
    let start = Instant::now();
    assert_eq!(pty.read(), b"");
    assert!(start.elapsed() >= Duration::from_millis(90));
    raw(&pty, 3, 0);
    pty.type_in(b"ab");
    assert!(!readable(&pty.slave, 30));
    let child = fork(|| {
        std::thread::sleep(Duration::from_millis(50));
        pty.type_in(b"c");
    });
    assert_eq!(pty.read(), b"abc");
    child.ok();
    // The timer between bytes ends a read that has something.
    raw(&pty, 10, 1);
    pty.type_in(b"xy");
    assert_eq!(pty.read(), b"xy");
}

fn switch_to_canonical() {
    let pty = Pty::silent();
    raw(&pty, 1, 0);
    pty.type_in(b"typed before");
    assert!(settles(Duration::from_secs(5), || {
        let mut count = 0i32;
        ioctl(&pty.slave, libc::FIONREAD, &mut count).unwrap();
        count == 12
    }));
    pty.change(|t| t.c_lflag |= libc::ICANON);
    assert_eq!(pty.read(), b"typed before");
}

/// Runs in a session of its own, with the pseudoterminal as controlling terminal.
fn in_session(pty: &Pty, run: impl FnOnce()) {
    fork(|| {
        // SAFETY: take integers.
        unsafe {
            check(libc::setsid()).expect("setsid");
            check(libc::ioctl(pty.slave.raw(), libc::TIOCSCTTY, 0)).expect("TIOCSCTTY");
        }
        run();
    })
    .ok();
}

/// More than a signal reaches at once.
const MEMBERS: usize = 50;

fn large_foreground_group() {
    let pty = Pty::new();
    in_session(&pty, || {
        let shared = Shared::new();
        signals::mask(libc::SIG_BLOCK, &[libc::SIGINT]);
        let member = || {
            fork(|| {
                // A child of its own for each.
                let below = fork(|| {
                    shared.add(0);
                    signals::mask(libc::SIG_UNBLOCK, &[libc::SIGINT]);
                    loop {
                        std::thread::sleep(Duration::from_secs(100));
                    }
                });
                assert_eq!(below.wait(), End::Signal(libc::SIGINT));
                shared.add(1);
            })
        };
        let members: Vec<Child> = (0..MEMBERS).map(|_| member()).collect();
        shared.wait(0, MEMBERS as u32);
        pty.type_in(b"\x03");
        members.into_iter().for_each(Child::ok);
        assert_eq!(shared.get(1), MEMBERS as u32);
    });
}

/// Forks a child in a process group of its own.
fn in_group(run: impl FnOnce()) -> roundtable_programs::child::Child {
    let child = fork(|| {
        // SAFETY: takes integers.
        unsafe { libc::setpgid(0, 0) };
        run();
    });
    // SAFETY: takes integers. One of the two calls comes first; either is right.
    unsafe { libc::setpgid(child.pid, child.pid) };
    child
}

fn foreground(pty: &Pty, group: i32) -> Result<usize, Errno> {
    // SAFETY: takes integers.
    check(unsafe { libc::tcsetpgrp(pty.slave.raw(), group) })
}

fn signals_reach_the_foreground() {
    let pty = Pty::new();
    in_session(&pty, || {
        // As a shell does: it changes the foreground from the background.
        // SAFETY: takes integers.
        unsafe { libc::signal(libc::SIGTTOU, libc::SIG_IGN) };
        for (key, signal) in [(b"\x03", libc::SIGINT), (b"\x1c", libc::SIGQUIT)] {
            let child = in_group(|| {
                loop {
                    std::thread::sleep(Duration::from_secs(1));
                }
            });
            foreground(&pty, child.pid).unwrap();
            pty.type_in(key);
            assert_eq!(child.wait(), End::Signal(signal));
        }
        let child = in_group(|| {
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        foreground(&pty, child.pid).unwrap();
        pty.type_in(b"\x1a");
        let (_, end) = roundtable_programs::child::waitpid(child.pid, libc::WUNTRACED).unwrap();
        assert_eq!(end, End::Stopped(libc::SIGTSTP));
        child.end();
    });
    assert_eq!(pty.screen(6), b"^C^\\^Z");
}

fn background_read_stops() {
    let pty = Pty::silent();
    in_session(&pty, || {
        let child = in_group(|| {
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(pty.read(), b"for the child\n");
        });
        let (_, end) = roundtable_programs::child::waitpid(child.pid, libc::WUNTRACED).unwrap();
        assert_eq!(end, End::Stopped(libc::SIGTTIN));
        foreground(&pty, child.pid).unwrap();
        pty.type_in(b"for the child\n");
        child.kill(libc::SIGCONT);
        child.ok();
    });
}

fn background_write() {
    let pty = Pty::silent();
    in_session(&pty, || {
        // Allowed without TOSTOP.
        in_group(|| assert_eq!(pty.slave.write(b"x"), Ok(1))).ok();
        pty.change(|t| t.c_lflag |= libc::TOSTOP);
        let child = in_group(|| assert_eq!(pty.slave.write(b"y"), Ok(1)));
        let (_, end) = roundtable_programs::child::waitpid(child.pid, libc::WUNTRACED).unwrap();
        assert_eq!(end, End::Stopped(libc::SIGTTOU));
        child.end();
        // One who ignores the signal may write, and change the foreground.
        in_group(|| {
            // SAFETY: takes integers.
            unsafe { libc::signal(libc::SIGTTOU, libc::SIG_IGN) };
            assert_eq!(pty.slave.write(b"z"), Ok(1));
            foreground(&pty, std::process::id() as i32).unwrap();
        })
        .ok();
    });
    assert_eq!(pty.screen(2), b"xz");
}

fn orphans_get_an_error() {
    let pty = Pty::silent();
    in_session(&pty, || {
        let child = in_group(|| {
            // Its own child is left behind in a group that nobody of the session looks after.
            let orphan = fork(|| {
                // SAFETY: takes nothing.
                assert!(settles(Duration::from_secs(5), || unsafe { libc::getppid() } == 1));
                assert_eq!(pty.slave.read(&mut [0; 10]), Err(Errno::EIO));
                std::fs::write("/proc/self/comm", "done").unwrap();
                std::thread::sleep(Duration::from_secs(60));
            });
            std::fs::write(format!("/tmp/orphan-{}", std::process::id()), orphan.pid.to_string()).unwrap();
            std::mem::forget(orphan);
        });
        let file = format!("/tmp/orphan-{}", child.pid);
        child.ok();
        let orphan: i32 = std::fs::read_to_string(&file).unwrap().parse().unwrap();
        std::fs::remove_file(&file).unwrap();
        let name = || std::fs::read_to_string(format!("/proc/{orphan}/comm")).unwrap_or_default();
        assert!(
            settles(Duration::from_secs(10), || name() == "done\n"),
            "the orphan could not tell: {}",
            name()
        );
        // SAFETY: takes integers.
        unsafe { libc::kill(orphan, libc::SIGKILL) };
    });
}

fn window_size() {
    let pty = Pty::silent();
    let mut size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 1, ws_ypixel: 2 };
    ioctl(&pty.master, libc::TIOCSWINSZ, &mut size).unwrap();
    // SAFETY: a winsize of zeros is one.
    let mut got: libc::winsize = unsafe { zeroed() };
    ioctl(&pty.slave, libc::TIOCGWINSZ, &mut got).unwrap();
    assert_eq!((got.ws_row, got.ws_col, got.ws_xpixel, got.ws_ypixel), (24, 80, 1, 2));
    in_session(&pty, || {
        // SAFETY: the set is a local.
        unsafe {
            let mut set: libc::sigset_t = zeroed();
            libc::sigaddset(&mut set, libc::SIGWINCH);
            libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            size.ws_row = 25;
            ioctl(&pty.master, libc::TIOCSWINSZ, &mut size).unwrap();
            let timeout = libc::timespec { tv_sec: 5, tv_nsec: 0 };
            assert_eq!(libc::sigtimedwait(&set, std::ptr::null_mut(), &timeout), libc::SIGWINCH);
        }
    });
}

fn hangup_by_close() {
    let Pty { master, slave } = Pty::silent();
    let number = master.raw();
    let child = fork(|| {
        // SAFETY: take integers; the child's copy of the master goes, so that the parent's is the last.
        unsafe {
            libc::close(number);
            check(libc::setsid()).unwrap();
            check(libc::ioctl(slave.raw(), libc::TIOCSCTTY, 0)).unwrap();
        }
        std::thread::sleep(Duration::from_secs(60));
    });
    let session = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.pid)).unwrap();
        stat.split(' ').nth(6).unwrap() != "0"
    };
    assert!(settles(Duration::from_secs(5), session), "the child has no terminal");
    drop(master);
    assert_eq!(child.wait(), End::Signal(libc::SIGHUP));
    assert_eq!(slave.read(&mut [0; 10]), Ok(0));
    assert_eq!(slave.write(b"x"), Err(Errno::EIO));
}

fn hangup_by_leader() {
    let pty = Pty::silent();
    let (read, write) = roundtable_programs::file::pipe(0);
    fork(|| {
        // SAFETY: take integers.
        unsafe {
            check(libc::setsid()).unwrap();
            check(libc::ioctl(pty.slave.raw(), libc::TIOCSCTTY, 0)).unwrap();
        }
        let child = in_group(|| {
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        foreground(&pty, child.pid).unwrap();
        std::mem::forget(child);
        // The leader ends: the foreground gets SIGHUP.
    })
    .ok();
    drop(write);
    // The pipe's last copy was the foreground's: it is gone.
    assert_eq!(read.read(&mut [0; 10]), Ok(0));
    // Descriptors of a pseudoterminal outlive the session, unlike those of a serial port.
    assert_eq!(pty.slave.write(b"x"), Ok(1));
    assert_eq!(pty.screen(1), b"x");
}

/// Waits for a signal that was blocked before.
fn take_signal(signal: i32) {
    let timeout = libc::timespec { tv_sec: 20, tv_nsec: 0 };
    // SAFETY: the set and the time are locals.
    unsafe {
        let mut set: libc::sigset_t = zeroed();
        libc::sigaddset(&mut set, signal);
        assert_eq!(libc::sigtimedwait(&set, std::ptr::null_mut(), &timeout), signal);
    }
}

fn block_signal(signal: i32) {
    // SAFETY: the set is a local.
    unsafe {
        let mut set: libc::sigset_t = zeroed();
        libc::sigaddset(&mut set, signal);
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}

/// What a file is like whose terminal was hung up.
fn expect_hung_up(fd: &Fd) {
    assert_eq!(fd.read(&mut [0; 10]), Ok(0));
    assert_eq!(fd.write(b"x"), Err(Errno::EIO));
    assert_eq!(ioctl(fd, libc::TIOCGPGRP, &mut 0i32), Err(Errno::EIO));
    assert_eq!(ioctl(fd, libc::TIOCSPGRP, &mut 1i32), Err(Errno::ENOTTY));
    let mut entry = libc::pollfd { fd: fd.raw(), events: libc::POLLIN | libc::POLLOUT, revents: 0 };
    // SAFETY: one entry, which lives through the call.
    assert_eq!(check(unsafe { libc::poll(&mut entry, 1, 0) }), Ok(1));
    assert_eq!(entry.revents, libc::POLLIN | libc::POLLOUT | libc::POLLERR | libc::POLLHUP);
}

/// A hang-up tells the leader only. The group that was in the foreground hears of it when the leader ends.
fn hangup_and_the_foreground() {
    let pty = Pty::silent();
    let ready = Shared::new();
    let leader = fork(|| {
        block_signal(libc::SIGHUP);
        // SAFETY: take integers.
        unsafe {
            libc::close(pty.master.raw());
            libc::signal(libc::SIGTTOU, libc::SIG_IGN);
            check(libc::setsid()).unwrap();
            check(libc::ioctl(pty.slave.raw(), libc::TIOCSCTTY, 0)).unwrap();
        }
        let child = in_group(|| {
            ready.wait(0, 1);
            ready.add(1);
            take_signal(libc::SIGHUP);
            assert_eq!(ready.get(2), 1, "told while the leader lives");
            ready.add(3);
        });
        foreground(&pty, child.pid).unwrap();
        ready.add(0);
        take_signal(libc::SIGHUP);
        assert_eq!(Fd::open("/dev/tty", libc::O_RDWR).unwrap_err(), Errno::ENXIO);
        ready.add(2);
        std::mem::forget(child);
    });
    ready.wait(1, 1);
    let Pty { master, slave } = pty;
    drop(master);
    leader.ok();
    ready.wait(3, 1);
    expect_hung_up(&slave);
}

fn vhangup() {
    let pty = Pty::new();
    pty.change(|t| t.c_cc[libc::VINTR] = 7);
    let number = pty.number();
    in_session(&pty, || {
        block_signal(libc::SIGHUP);
        // SAFETY: takes nothing.
        assert_eq!(check(unsafe { libc::vhangup() }), Ok(0));
        take_signal(libc::SIGHUP);
        expect_hung_up(&pty.slave);
        assert_eq!(Fd::open("/dev/tty", libc::O_RDWR).unwrap_err(), Errno::ENXIO);
        // The leader may have it again, as new.
        let slave = Fd::open(&format!("/dev/pts/{number}"), libc::O_RDWR).unwrap();
        assert_eq!(Fd::open("/dev/tty", libc::O_RDWR).unwrap().write(b"x"), Ok(1));
        // SAFETY: a termios of zeros is one, and the call fills it.
        let settings = unsafe {
            let mut settings: libc::termios = zeroed();
            check(libc::tcgetattr(slave.raw(), &mut settings)).unwrap();
            settings
        };
        assert_eq!(settings.c_cc[libc::VINTR], 3);
    });
    assert_eq!(pty.screen(1), b"x");
}

/// A serial line is hung up when its session's leader ends. The console on it is spared, and the line keeps
/// its settings.
fn serial_line() {
    let open = |flags| Fd::open("/dev/ttyS0", libc::O_RDWR | flags).unwrap();
    let console = Fd::open("/dev/console", libc::O_RDWR | libc::O_NONBLOCK).unwrap();
    let line = Pty { master: open(libc::O_NOCTTY), slave: open(libc::O_NOCTTY) };
    let before = line.settings().c_cc[libc::VREPRINT];
    line.change(|t| t.c_cc[libc::VREPRINT] = 7);
    let ready = Shared::new();
    fork(|| {
        block_signal(libc::SIGHUP);
        // SAFETY: takes nothing.
        check(unsafe { libc::setsid() }).unwrap();
        // Neither the console nor a file for writing only becomes the terminal of the session.
        drop(Fd::open("/dev/console", libc::O_RDWR).unwrap());
        drop(Fd::open("/dev/ttyS0", libc::O_WRONLY).unwrap());
        assert_eq!(Fd::open("/dev/tty", libc::O_RDWR).unwrap_err(), Errno::ENXIO);
        let own = open(0);
        let mut session = 0i32;
        ioctl(&own, libc::TIOCGSID, &mut session).unwrap();
        assert_eq!(session, std::process::id() as i32);
        // One in the background is not stopped at the console.
        in_group(|| assert_eq!(console.read(&mut [0; 10]), Err(Errno::EAGAIN))).ok();
        // SAFETY: takes integers.
        unsafe { libc::signal(libc::SIGTTOU, libc::SIG_IGN) };
        let child = in_group(|| {
            ready.add(0);
            take_signal(libc::SIGHUP);
            expect_hung_up(&own);
            ready.add(1);
        });
        foreground(&line, child.pid).unwrap();
        ready.wait(0, 1);
        std::mem::forget(child);
        // Linux's hang-up forgets what was written and has not left, of the test before this one too.
        // SAFETY: takes an integer.
        check(unsafe { libc::tcdrain(console.raw()) }).unwrap();
    })
    .ok();
    // The hang-up was before the leader's end was told.
    expect_hung_up(&line.slave);
    assert_eq!(console.write(b"\n"), Ok(1));
    assert_eq!(console.read(&mut [0; 10]), Err(Errno::EAGAIN));
    ready.wait(1, 1);
    let line = Pty { master: line.master, slave: open(libc::O_NOCTTY) };
    assert_eq!(line.settings().c_cc[libc::VREPRINT], 7);
    line.change(|t| t.c_cc[libc::VREPRINT] = before);
    assert_eq!(line.slave.write(b"\n"), Ok(1));
}

fn flow_control() {
    let pty = Pty::silent();
    // Linux looks at what is typed in its own time, in order: when the line has come, the stop before it has
    // been seen.
    pty.type_in(b"\x13seen\n");
    assert!(readable(&pty.slave, 1000));
    let mut line = [0; 5];
    assert_eq!(pty.slave.read(&mut line), Ok(5));
    assert_eq!(&line, b"seen\n");
    let writer = fork(|| assert_eq!(pty.slave.write(b"held up"), Ok(7)));
    assert!(!readable(&pty.master, 100));
    pty.type_in(b"\x11");
    assert_eq!(pty.screen(7), b"held up");
    writer.ok();
    // SAFETY: takes integers.
    let flow = |action| check(unsafe { libc::tcflow(pty.slave.raw(), action) });
    assert_eq!(flow(libc::TCIOFF), Ok(0));
    assert_eq!(pty.screen(1), b"\x13");
    assert_eq!(flow(99), Err(Errno::EINVAL));
}

fn flush() {
    let pty = Pty::silent();
    pty.type_in(b"never read\n");
    assert!(readable(&pty.slave, 1000));
    // SAFETY: takes integers.
    let flush = |queue| check(unsafe { libc::tcflush(pty.slave.raw(), queue) });
    assert_eq!(flush(libc::TCIFLUSH), Ok(0));
    assert!(!readable(&pty.slave, 0));
    assert_eq!(flush(99), Err(Errno::EINVAL));
}

fn packet_mode() {
    let pty = Pty::silent();
    ioctl(&pty.master, libc::TIOCPKT, &mut 1i32).unwrap();
    assert_eq!(pty.slave.write(b"data"), Ok(4));
    assert_eq!(pty.screen(5), b"\0data");
    // SAFETY: takes integers.
    check(unsafe { libc::tcflush(pty.slave.raw(), libc::TCIOFLUSH) }).unwrap();
    let status = pty.screen(1);
    assert_eq!(status.len(), 1);
    // TIOCPKT_FLUSHWRITE.
    assert_ne!(status[0] & 2, 0);
}

fn session_rules() {
    let pty = Pty::silent();
    let mut group = 0i32;
    // It is nobody's terminal, so not ours.
    assert_eq!(ioctl(&pty.slave, libc::TIOCGPGRP, &mut group), Err(Errno::ENOTTY));
    assert_eq!(foreground(&pty, std::process::id() as i32), Err(Errno::ENOTTY));
    in_session(&pty, || {
        let own = std::process::id() as i32;
        ioctl(&pty.slave, libc::TIOCGPGRP, &mut group).unwrap();
        assert_eq!(group, own);
        let mut session = 0i32;
        ioctl(&pty.slave, libc::TIOCGSID, &mut session).unwrap();
        assert_eq!(session, own);
        assert_eq!(foreground(&pty, 1 << 21), Err(Errno::ESRCH));
        assert_eq!(foreground(&pty, 1), Err(Errno::EPERM));
        // `/dev/tty` is the terminal, by another name.
        let tty = Fd::open("/dev/tty", libc::O_RDWR).unwrap();
        assert_eq!(tty.write(b"x"), Ok(1));
        // A session has one terminal.
        let other = Pty::silent();
        // SAFETY: takes integers.
        let second = check(unsafe { libc::ioctl(other.slave.raw(), libc::TIOCSCTTY, 0) });
        assert_eq!(second, Err(Errno::EPERM));
        // SAFETY: as above.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
        // SAFETY: as above.
        assert_eq!(check(unsafe { libc::ioctl(tty.raw(), libc::TIOCNOTTY) }), Ok(0));
        assert_eq!(Fd::open("/dev/tty", libc::O_RDWR).unwrap_err(), Errno::ENXIO);
    });
    assert_eq!(pty.screen(1), b"x");
}

fn settings_are_kept() {
    let pty = Pty::new();
    let before = pty.settings();
    assert_eq!(before.c_iflag, libc::ICRNL | libc::IXON);
    assert_eq!(before.c_oflag, libc::OPOST | libc::ONLCR);
    assert_eq!(before.c_cflag & (libc::CBAUD | libc::CSIZE), libc::B38400 | libc::CS8);
    assert_eq!(before.c_cc[libc::VINTR], 3);
    pty.change(|t| {
        t.c_cc[libc::VINTR] = 7;
        t.c_lflag &= !libc::ECHOCTL;
        t.c_cflag = t.c_cflag & !libc::CBAUD | libc::B9600;
    });
    let after = pty.settings();
    assert_eq!((after.c_cc[libc::VINTR], after.c_lflag), (7, before.c_lflag & !libc::ECHOCTL));
    assert_eq!(after.c_cflag & libc::CBAUD, libc::B9600);
    let (read, _write) = roundtable_programs::file::pipe(0);
    // SAFETY: takes an integer.
    assert_eq!(unsafe { libc::isatty(read.raw()) }, 0);
}

fn names_and_locks() {
    let (master, number) = open_master();
    let path = format!("/dev/pts/{number}");
    assert_eq!(Fd::open(&path, libc::O_RDWR | libc::O_NOCTTY).unwrap_err(), Errno::EIO);
    ioctl(&master, libc::TIOCSPTLCK, &mut 0i32).unwrap();
    let slave = Fd::open(&path, libc::O_RDWR | libc::O_NOCTTY).unwrap();
    let target = std::fs::read_link(format!("/proc/self/fd/{}", slave.raw())).unwrap();
    assert_eq!(target.to_str().unwrap(), path);
    // The other way to it leads to the same name.
    let flags = libc::O_RDWR | libc::O_NOCTTY;
    // SAFETY: takes integers.
    let peer = Fd::own(check(unsafe { libc::ioctl(master.raw(), libc::TIOCGPTPEER, flags) }).unwrap());
    assert_eq!(std::fs::read_link(format!("/proc/self/fd/{}", peer.raw())).unwrap(), target);
    drop(peer);
    assert_eq!(slave.write(b"x"), Ok(1));
    drop(slave);
    // What was written before the close is read first; then there is nobody.
    let mut buffer = [0; 10];
    assert_eq!(master.read(&mut buffer), Ok(1));
    assert_eq!(master.read(&mut buffer), Err(Errno::EIO));
    drop(master);
    assert!(std::fs::metadata(&path).is_err());
}
