//! Terminals whose other side does not read, or writes without an end: nobody else is kept waiting, and nothing grows.

use std::time::Duration;

use roundtable_programs::child::{Child, End, fork};
use roundtable_programs::file::Fd;
use roundtable_programs::kinds::call;
use roundtable_programs::mem::Map;
use roundtable_programs::sys::check;
use roundtable_programs::{place, procfs, tests};

tests! { output_that_nobody_reads, tabs_that_nobody_reads, input_that_nobody_reads, reprint_of_controls, packet_status_takes_no_output,
readers_can_be_killed, writers_can_be_killed, masters_can_be_killed, endless_write_to_the_master: 60, endless_write_to_the_terminal: 60,
many_terminals: 60 }

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

/// Writes until nothing is taken any more, and returns how much was.
fn fill(fd: &Fd, byte: u8) -> usize {
    set_nonblocking(fd);
    let mut all = 0;
    while let Ok(count) = fd.write(&[byte; 1024]) {
        all += count;
    }
    // SAFETY: takes integers.
    check(unsafe { libc::fcntl(fd.raw(), libc::F_SETFL, libc::O_RDWR) }).expect("F_SETFL");
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
