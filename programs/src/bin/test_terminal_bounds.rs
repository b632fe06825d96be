//! Terminals whose other side does not read, or writes without an end: nobody else is kept waiting, and nothing grows.

use std::time::Duration;

use roundtable_programs::child::{Child, End, fork, waitpid};
use roundtable_programs::file::Fd;
use roundtable_programs::kinds::call;
use roundtable_programs::mem::Map;
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::check;
use roundtable_programs::{Errno, place, procfs, signals, tests};

tests! { output_that_nobody_reads, tabs_that_nobody_reads, input_that_nobody_reads, reprint_of_controls, packet_status_takes_no_output,
readers_can_be_killed, writers_can_be_killed, masters_can_be_killed, endless_write_to_the_master: 60, endless_write_to_the_terminal: 60,
many_terminals: 60, single_bytes_that_nobody_reads, writer_of_single_bytes_is_killed, writer_of_single_bytes_loses_the_master,
tab_with_little_room, opened_while_the_last_is_closed: 60, signals_of_the_master, foreground_group_is_gone,
number_of_an_open_terminal }

/// Both sides of a new pseudoterminal.
struct Pty {
    master: Fd,
    slave: Fd,
}

fn ioctl<T>(fd: &Fd, request: u64, value: &mut T) {
    let value: *mut T = value;
    // SAFETY: the value has the type that the request wants.
    check(unsafe { libc::ioctl(fd.raw(), request, value) }).expect("ioctl");
}

fn open_master() -> Fd {
    if std::fs::metadata("/dev/pts/ptmx").is_err() {
        let _ = place::mkdir("/dev/pts", 0o755);
        let _ = place::mount("devpts", "/dev/pts", "devpts", 0, "");
    }
    Fd::open("/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY).expect("/dev/ptmx")
}

impl Pty {
    /// With these settings for input and output.
    fn new(local: u32, output: u32) -> Pty {
        let master = open_master();
        let mut number = 0u32;
        ioctl(&master, libc::TIOCGPTN, &mut number);
        ioctl(&master, libc::TIOCSPTLCK, &mut 0i32);
        let slave = Fd::open(&format!("/dev/pts/{number}"), libc::O_RDWR | libc::O_NOCTTY).expect("slave");
        // SAFETY: a termios of zeros is one, and the calls fill and take it.
        unsafe {
            let mut settings: libc::termios = std::mem::zeroed();
            check(libc::tcgetattr(slave.raw(), &mut settings)).expect("tcgetattr");
            (settings.c_lflag, settings.c_oflag) = (local, output);
            check(libc::tcsetattr(slave.raw(), libc::TCSANOW, &settings)).expect("tcsetattr");
        }
        Pty { master, slave }
    }
}

fn set_nonblocking(fd: &Fd) {
    // SAFETY: takes integers.
    check(unsafe { libc::fcntl(fd.raw(), libc::F_SETFL, libc::O_RDWR | libc::O_NONBLOCK) }).expect("F_SETFL");
}

fn set_blocking(fd: &Fd) {
    // SAFETY: takes integers.
    check(unsafe { libc::fcntl(fd.raw(), libc::F_SETFL, libc::O_RDWR) }).expect("F_SETFL");
}

fn set_output(fd: &Fd, output: u32) {
    // SAFETY: a termios of zeros is one, and the calls fill and take it.
    unsafe {
        let mut settings: libc::termios = std::mem::zeroed();
        check(libc::tcgetattr(fd.raw(), &mut settings)).expect("tcgetattr");
        settings.c_oflag = output;
        check(libc::tcsetattr(fd.raw(), libc::TCSANOW, &settings)).expect("tcsetattr");
    }
}

/// Writes until nothing is taken any more, and returns how much was.
fn fill(fd: &Fd, byte: u8) -> usize {
    set_nonblocking(fd);
    let mut all = 0;
    while let Ok(count) = fd.write(&[byte; 1024]) {
        all += count;
    }
    set_blocking(fd);
    all
}

/// Reads `count` bytes, as they come.
fn read(fd: &Fd, count: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < count {
        let mut buffer = vec![0; 8192];
        let got = fd.read(&mut buffer).expect("read");
        all.extend_from_slice(&buffer[..got]);
    }
    all
}

fn output_that_nobody_reads() {
    let pty = Pty::new(0, 0);
    let written = fill(&pty.slave, b'x');
    assert!(written > 4096, "{written}");
    assert_eq!(read(&pty.master, written), vec![b'x'; written]);
}

fn tabs_that_nobody_reads() {
    let pty = Pty::new(0, libc::OPOST | libc::XTABS);
    let written = fill(&pty.slave, b'\t');
    assert!(written > 100, "{written}");
    assert_eq!(read(&pty.master, written * 8), vec![b' '; written * 8]);
}

fn input_that_nobody_reads() {
    let pty = Pty::new(0, 0);
    let written = fill(&pty.master, b'y');
    assert!(written > 2048, "{written}");
    assert_eq!(read(&pty.slave, written), vec![b'y'; written]);
    // A line without an end, which is full at some point: what comes then is lost.
    let pty = Pty::new(libc::ICANON, 0);
    (0..10).for_each(|_| assert_eq!(pty.master.write(&[b'z'; 1000]), Ok(1000)));
    assert_eq!(pty.master.write(b"\n"), Ok(1));
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        line.extend(read(&pty.slave, 1));
    }
    assert!(line.len() > 2048 && line[..line.len() - 1].iter().all(|byte| *byte == b'z'), "{}", line.len());
}

/// ^R shows the line again, and each character of it as two.
fn reprint_of_controls() {
    let pty = Pty::new(libc::ICANON | libc::IEXTEN | libc::ECHO | libc::ECHOCTL, libc::OPOST);
    (0..3).for_each(|_| assert_eq!(pty.master.write(&[1; 1000]), Ok(1000)));
    assert_eq!(pty.master.write(&[0x12, b'\n']), Ok(2));
    assert_eq!(read(&pty.slave, 3001)[..3000], [1; 3000]);
    assert!(read(&pty.master, 4000).starts_with(b"^A^A"));
}

fn packet_status_takes_no_output() {
    let pty = Pty::new(0, 0);
    ioctl(&pty.master, libc::TIOCPKT, &mut 1i32);
    assert_eq!(pty.slave.write(b"hello"), Ok(5));
    for action in [libc::TCOOFF, libc::TCOON] {
        // SAFETY: takes integers.
        check(unsafe { libc::tcflow(pty.slave.raw(), action) }).unwrap();
        let mut status = [0; 10];
        assert_eq!(pty.master.read(&mut status), Ok(1));
        assert!(status[0] != 0);
    }
    let mut data = [7; 10];
    assert_eq!(pty.master.read(&mut data), Ok(6));
    assert_eq!(&data[..6], b"\0hello");
}

/// Of two processes that wait for the same thing, the one whose turn it is not yet ends when it is killed. The first goes on to wait.
#[track_caller]
fn second_can_be_killed(wait: impl Fn()) {
    let waiter = || -> Child {
        let child = fork(&wait);
        procfs::wait_for_sleep(child.pid);
        child
    };
    let (first, second) = (waiter(), waiter());
    second.kill(libc::SIGKILL);
    assert_eq!(second.wait(), End::Signal(libc::SIGKILL));
    assert_eq!(procfs::state(first.pid), Some('S'));
    first.end();
}

fn readers_can_be_killed() {
    let pty = Pty::new(libc::ICANON, 0);
    second_can_be_killed(|| panic!("{:?}", pty.slave.read(&mut [0])));
}

fn writers_can_be_killed() {
    let pty = Pty::new(0, 0);
    fill(&pty.slave, b'x');
    second_can_be_killed(|| panic!("{:?}", pty.slave.write(&[b'x'; 8192])));
}

fn masters_can_be_killed() {
    let pty = Pty::new(0, 0);
    second_can_be_killed(|| panic!("{:?}", pty.master.read(&mut [0])));
    fill(&pty.master, b'y');
    second_can_be_killed(|| panic!("{:?}", pty.master.write(&[b'y'; 8192])));
}

/// Two gigabytes in one call, which take no time to wait for.
fn write_without_end(fd: &Fd) -> usize {
    let piece = Map::anonymous(2 << 20);
    let vectors = [libc::iovec { iov_base: piece.address as *mut _, iov_len: 2 << 20 }; 1024];
    call(libc::SYS_writev, [fd.raw() as usize, vectors.as_ptr() as usize, vectors.len(), 0, 0, 0])
        .unwrap_or(0)
}

/// Kills a process that writes without an end.
fn kill_writer(writer: Child) {
    std::thread::sleep(Duration::from_millis(300));
    writer.kill(libc::SIGKILL);
    assert_eq!(writer.wait(), End::Signal(libc::SIGKILL));
}

fn endless_write_to_the_master() {
    let pty = Pty::new(libc::ICANON, 0);
    kill_writer(fork(|| panic!("{} bytes are written", write_without_end(&pty.master))));
}

fn endless_write_to_the_terminal() {
    let pty = Pty::new(0, 0);
    let reader = fork(|| {
        let mut buffer = vec![0; 8192];
        while pty.master.read(&mut buffer).is_ok() {}
    });
    kill_writer(fork(|| panic!("{} bytes are written", write_without_end(&pty.slave))));
    reader.end();
}

fn many_terminals() {
    const MANY: usize = 1100;
    let limit = libc::rlimit { rlim_cur: 4096, rlim_max: 4096 };
    // SAFETY: the limit lives through the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }).expect("RLIMIT_NOFILE");
    let masters: Vec<Fd> = (0..MANY).map(|_| open_master()).collect();
    let names = place::names("/dev/pts");
    assert!(names.len() > MANY, "{} names", names.len());
    drop(masters);
    assert!(place::names("/dev/pts").len() < MANY);
}

/// Each byte takes as much room as a tab might, so the last ones wait although there is some.
fn single_bytes_that_nobody_reads() {
    let pty = Pty::new(0, libc::OPOST);
    set_nonblocking(&pty.slave);
    let mut written = 0;
    let end = loop {
        match pty.slave.write(b"x") {
            Ok(count) => written += count,
            Err(error) => break error,
        }
    };
    assert_eq!(end, Errno::EAGAIN);
    assert_eq!(read(&pty.master, written), vec![b'x'; written]);
}

/// A process that writes byte by byte, and waits for room now.
fn writer_of_single_bytes(pty: &Pty, end: impl FnOnce(Errno)) -> Child {
    let writer = fork(|| {
        // SAFETY: the child's own copy, which it does not use.
        unsafe { libc::close(pty.master.raw()) };
        loop {
            if let Err(error) = pty.slave.write(b"x") {
                return end(error);
            }
        }
    });
    procfs::wait_for_sleep(writer.pid);
    writer
}

fn writer_of_single_bytes_is_killed() {
    let pty = Pty::new(0, libc::OPOST);
    let writer = writer_of_single_bytes(&pty, |error| panic!("{error}"));
    writer.kill(libc::SIGKILL);
    assert_eq!(writer.wait(), End::Signal(libc::SIGKILL));
}

fn writer_of_single_bytes_loses_the_master() {
    let pty = Pty::new(0, libc::OPOST);
    let writer = writer_of_single_bytes(&pty, |error| assert_eq!(error, Errno::EIO));
    drop(pty.master);
    writer.ok();
}

/// All of its blanks, or none.
fn tab_with_little_room() {
    for room in 1..8 {
        let pty = Pty::new(0, 0);
        let written = fill(&pty.slave, b'x');
        let mut some = vec![0; room];
        assert_eq!(pty.master.read(&mut some), Ok(room));
        set_output(&pty.slave, libc::OPOST | libc::XTABS);
        set_nonblocking(&pty.slave);
        let tabs = pty.slave.write(b"\t").unwrap_or(0);
        let all = written - room + tabs * 8;
        let bytes = read(&pty.master, all);
        assert_eq!(bytes.iter().filter(|byte| **byte == b' ').count(), tabs * 8, "room for {room}");
    }
}

/// Whoever has the terminal open is there for its master, also when another one closes it at that time.
fn opened_while_the_last_is_closed() {
    let Pty { master, slave } = Pty::new(0, 0);
    let mut number = 0u32;
    ioctl(&master, libc::TIOCGPTN, &mut number);
    drop(slave);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for round in 0..20_000 {
                    let slave = Fd::open(&format!("/dev/pts/{number}"), libc::O_RDWR | libc::O_NOCTTY);
                    let _slave = slave.expect("slave");
                    let mut poll = libc::pollfd { fd: master.raw(), events: 0, revents: 0 };
                    // SAFETY: one entry, which lives through the call.
                    check(unsafe { libc::poll(&mut poll, 1, 0) }).expect("poll");
                    assert_eq!(poll.revents, 0, "in round {round}");
                }
            });
        }
    });
}

/// Those that the terminal's own characters send, and no others.
fn signals_of_the_master() {
    const TIOCSIG: u64 = 0x4004_5436;
    let pty = Pty::new(0, 0);
    let shell = fork(|| {
        // SAFETY: takes integers.
        unsafe {
            check(libc::setsid()).expect("setsid");
            check(libc::ioctl(pty.slave.raw(), libc::TIOCSCTTY, 0)).expect("TIOCSCTTY");
        }
        loop {
            std::thread::park();
        }
    });
    procfs::wait_for_sleep(shell.pid);
    let send = |signal: i32| {
        // SAFETY: takes integers.
        check(unsafe { libc::ioctl(pty.master.raw(), TIOCSIG, signal) })
    };
    for signal in [0, libc::SIGHUP, libc::SIGKILL, libc::SIGSEGV, libc::SIGTERM, libc::SIGSTOP, 64, 65] {
        assert_eq!(send(signal), Err(Errno::EINVAL), "signal {signal}");
    }
    assert_eq!(procfs::state(shell.pid), Some('S'));
    assert_eq!(send(libc::SIGQUIT), Ok(0));
    assert_eq!(shell.wait(), End::Signal(libc::SIGQUIT));
}

/// Makes a child of this number; 0 in the child.
fn child_with_number(number: i32) -> usize {
    let numbers = [number];
    let arguments = [0, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0, numbers.as_ptr() as u64, 1, 0];
    call(libc::SYS_clone3, [arguments.as_ptr() as usize, 88, 0, 0, 0, 0]).expect("clone3")
}

/// A terminal's keys, window and end are for the group that was put into the foreground, not for who has its number later.
fn foreground_group_is_gone() {
    let pty = Pty::new(libc::ISIG, 0);
    let shared = Shared::new();
    let leader = fork(|| {
        // SAFETY: take integers.
        unsafe {
            check(libc::setsid()).expect("setsid");
            check(libc::ioctl(pty.slave.raw(), libc::TIOCSCTTY, 0)).expect("TIOCSCTTY");
        }
        let member = fork(|| {
            loop {
                std::thread::park();
            }
        });
        // SAFETY: take integers.
        unsafe {
            check(libc::setpgid(member.pid, member.pid)).expect("setpgid");
            check(libc::tcsetpgrp(pty.slave.raw(), member.pid)).expect("tcsetpgrp");
        }
        shared.set(1, member.pid as u32);
        member.end();
        shared.set(0, 1);
        loop {
            std::thread::park();
        }
    });
    shared.wait(0, 1);
    let number = shared.get(1) as i32;
    let all = [libc::SIGINT, libc::SIGQUIT, libc::SIGTSTP, libc::SIGHUP, libc::SIGCONT, libc::SIGWINCH];
    if child_with_number(number) == 0 {
        signals::mask(libc::SIG_BLOCK, &all);
        // SAFETY: takes nothing.
        let is_leader = unsafe { libc::setsid() } == number;
        shared.set(2, 1 + u32::from(is_leader));
        loop {
            std::thread::park();
        }
    }
    shared.wait(2, 2);
    assert_eq!(pty.master.write(b"\x03\x1c\x1a"), Ok(3));
    ioctl(&pty.master, libc::TIOCSWINSZ, &mut [10u16, 20, 0, 0]);
    leader.end();
    let heard = procfs::status_text(number, "ShdPnd");
    signals::kill(number, libc::SIGKILL).unwrap();
    waitpid(number, 0).unwrap();
    assert_eq!(u64::from_str_radix(heard.trim(), 16), Ok(0));
}

/// A terminal that is open keeps its number when its master is closed.
fn number_of_an_open_terminal() {
    fn device(fd: &Fd) -> u64 {
        fd.stat().st_rdev
    }
    let first = Pty::new(0, 0);
    let number = device(&first.slave);
    let Pty { master, slave } = first;
    drop(master);
    let name = format!("/dev/pts/{}", libc::minor(number));
    assert!(std::fs::metadata(&name).is_err(), "{name} is there");
    let second = Pty::new(0, 0);
    assert_ne!(device(&second.slave), number);
    drop(slave);
    // It is for others now.
    let third = Pty::new(0, 0);
    assert_eq!(device(&third.slave), number);
}
