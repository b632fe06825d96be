//! Pipes and sockets: who waits for what a stranger does is let through, or can be killed.

use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use roundtable_programs::child::{Child, End, fork};
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::harness::skip;
use roundtable_programs::inet::{self, V4};
use roundtable_programs::kinds::call;
use roundtable_programs::mem::{ANON, Map, PRIVATE, RW};
use roundtable_programs::shared::Shared;
use roundtable_programs::socket::{pair, recv, send, send_along, set_option, socket};
use roundtable_programs::sys::{PAGE, check, cpus, is_linux, pin, settles};
use roundtable_programs::uffd::{MISSING, Uffd};
use roundtable_programs::{Errno, procfs, tests};

tests! { receivers_beside_a_search: 60, writers_that_readers_keep_up_with: 100, a_pipe_behind_a_fault: 60, a_file_behind_a_fault: 60, clients_that_were_closed: 60, senders_behind_faults: 60 }

/// Two CPUs.
fn two() -> [usize; 2] {
    match cpus()[..] {
        [first, second, ..] => [first, second],
        _ => skip("it takes two CPUs"),
    }
}

/// Waits until the child has ended; it stays to be waited for.
fn has_ended(child: &Child) -> bool {
    settles(Duration::from_secs(20), || procfs::state(child.pid) == Some('Z'))
}

/// Sends so many sockets on their way, each in one of a few messages; what keeps them there.
fn on_their_way(messages: usize) -> (Fd, Fd) {
    let (a, b) = pair(libc::SOCK_STREAM);
    for _ in 0..messages {
        let sockets: Vec<Fd> = (0..253).map(|_| socket(libc::SOCK_STREAM)).collect();
        let fds: Vec<u8> = sockets.iter().flat_map(|fd| fd.raw().to_ne_bytes()).collect();
        assert_eq!(send_along(&a, b"x", libc::SCM_RIGHTS, &fds), Ok(1));
    }
    (a, b)
}

/// A process that looks for garbage among sockets nearly all of its time, and one that takes its CPU away for as long as it is told.
fn receivers_beside_a_search() {
    const ROUNDS: u32 = 12;
    const READY: usize = 0;
    const ROUND: usize = 1;
    const SPINS: usize = 2;
    const OVER: usize = 3;
    let [here, there] = two();
    let shared = Shared::new();
    let searcher = fork(|| {
        let limit = libc::rlimit { rlim_cur: 8192, rlim_max: 8192 };
        // SAFETY: the limit lives through the call.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }).unwrap();
        let _kept = on_their_way(12);
        pin(there);
        shared.set(READY, 1);
        loop {
            drop(socket(libc::SOCK_STREAM));
        }
    });
    shared.wait(READY, 1);
    let spinner = fork(|| {
        pin(there);
        let urgent = libc::sched_param { sched_priority: 1 };
        // SAFETY: the parameters live through the call.
        check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &urgent) }).unwrap();
        for round in 1..=ROUNDS {
            shared.wait(ROUND, round);
            shared.set(SPINS, round);
            while shared.get(OVER) < round {
                std::hint::spin_loop();
            }
        }
    });
    pin(here);
    let pairs = [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET].map(pair);
    let (with_files, takes_files) = pair(libc::SOCK_DGRAM);
    for round in 1..=ROUNDS {
        for (sender, _) in &pairs {
            assert_eq!(send(sender, b"x", 0), Ok(1));
        }
        let fd = pairs[0].0.raw().to_ne_bytes();
        assert_eq!(send_along(&with_files, b"x", libc::SCM_RIGHTS, &fd), Ok(1));
        // Who takes files waits for the search; but not deaf.
        let taker = fork(|| {
            shared.wait(SPINS, round);
            let _ = recv(&takes_files, &mut [0; 10], 0);
            loop {
                std::thread::park();
            }
        });
        let done = AtomicBool::new(false);
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                shared.wait(SPINS, round);
                for (_, receiver) in &pairs {
                    assert_eq!(recv(receiver, &mut [0; 10], 0), Ok(1));
                }
                done.store(true, Ordering::SeqCst);
            });
            shared.set(ROUND, round);
            let received = settles(Duration::from_secs(10), || done.load(Ordering::SeqCst));
            taker.kill(libc::SIGKILL);
            let killed = has_ended(&taker);
            shared.set(OVER, round);
            (received, killed)
        });
        assert_eq!(taker.wait(), End::Signal(libc::SIGKILL));
        assert_eq!(result, (true, true), "received, killed: round {round}");
        // If it was killed before it had it.
        let _ = recv(&takes_files, &mut [0; 10], libc::MSG_DONTWAIT);
    }
    spinner.ok();
    searcher.end();
}

/// What takes away what comes, as fast as it can; 0 at the end.
type Drain = fn(&Fd, &Fd) -> Result<usize, Errno>;

fn splice_away(from: &Fd, null: &Fd) -> Result<usize, Errno> {
    call(libc::SYS_splice, [from.raw() as usize, 0, null.raw() as usize, 0, 1 << 20, 0])
}

fn throw_away(from: &Fd, _: &Fd) -> Result<usize, Errno> {
    let address = from as *const Fd as usize;
    call(libc::SYS_recvfrom, [from.raw() as usize, address, 1 << 20, libc::MSG_TRUNC as usize, 0, 0])
}

fn read_away(from: &Fd, _: &Fd) -> Result<usize, Errno> {
    from.read(&mut [0; 1 << 16])
}

/// A write of 2 GiB ends with its writer, however fast the other side is.
fn writers_that_readers_keep_up_with() {
    if is_linux() {
        skip("Linux looks for a signal only where a writer waits");
    }
    const PART: usize = 2 << 20;
    const ALL: usize = 0x7fff_f000;
    let [here, there] = two();
    let part = Map::new(PART, RW, PRIVATE | ANON, -1, 0).unwrap();
    (0..PART).step_by(PAGE).for_each(|at| part.set(at, 1));
    let vectors = vec![[part.address, PART]; 1024];
    let own = |stream: TcpStream| Fd(stream.into());
    let (_listener, near, far) = inet::connection(V4);
    let kinds: [(&str, (Fd, Fd), Drain); 3] = [
        ("pipe", pipe(0), splice_away),
        ("unix", pair(libc::SOCK_STREAM), read_away),
        ("inet", (own(far), own(near)), throw_away),
    ];
    for (what, (read, write), drain) in kinds {
        let null = Fd::open("/dev/null", libc::O_WRONLY).unwrap();
        let count = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                pin(there);
                while let Ok(taken @ 1..) = drain(&read, &null) {
                    count.fetch_add(taken, Ordering::SeqCst);
                }
            });
            let writer = fork(|| {
                pin(here);
                let arguments = [write.raw() as usize, vectors.as_ptr() as usize, vectors.len(), 0, 0, 0];
                let _ = call(libc::SYS_writev, arguments);
                loop {
                    std::thread::park();
                }
            });
            let begun = settles(Duration::from_secs(20), || count.load(Ordering::SeqCst) > PART);
            writer.kill(libc::SIGKILL);
            let end = writer.wait();
            drop(write);
            assert_eq!((begun, end), (true, End::Signal(libc::SIGKILL)), "{what}");
        });
        let count = count.load(Ordering::SeqCst);
        println!("# {what}: {count}");
        assert!(count < ALL, "{what}: all was written");
    }
}

/// A process in which a call upon the file waits for a page that nobody brings.
fn behind_a_fault(number: i64, file: &Fd) -> Child {
    let shared = Shared::new();
    let holder = fork(|| {
        let map = Map::new(PAGE, RW, PRIVATE | ANON, -1, 0).unwrap();
        let uffd = Uffd::new(0);
        uffd.register(&map, MISSING).unwrap();
        let (fd, at) = (file.raw() as usize, map.address);
        std::thread::spawn(move || call(number, [fd, at, 4, 0, 0, 0]));
        uffd.next();
        shared.set(0, 1);
        loop {
            std::thread::park();
        }
    });
    shared.wait(0, 1);
    holder
}

/// Each call waits for the holder, and ends when it is killed.
fn can_be_killed(holder: Child, calls: &[(&str, i64, [usize; 6])]) {
    let shared = Shared::new();
    for (what, number, arguments) in calls {
        let child = fork(|| {
            shared.add(0);
            let result = call(*number, *arguments);
            panic!("{what}: {result:?}");
        });
        shared.wait(0, 1);
        shared.set(0, 0);
        let waits = settles(Duration::from_secs(20), || matches!(procfs::state(child.pid), Some('S' | 'D')));
        child.kill(libc::SIGKILL);
        let ended = has_ended(&child);
        if !ended {
            holder.kill(libc::SIGKILL);
        }
        assert_eq!(child.wait(), End::Signal(libc::SIGKILL), "{what}");
        assert_eq!((waits, ended), (true, true), "{what}");
    }
    holder.end();
}

/// Somebody reads a pipe into memory of which nobody tells what is there.
fn a_pipe_behind_a_fault() {
    if is_linux() {
        skip("Linux waits, deaf to a kill");
    }
    let (read, write) = pipe(0);
    let (other_read, other_write) = pipe(0);
    assert_eq!(write.write(b"text"), Ok(4));
    assert_eq!(other_write.write(b"text"), Ok(4));
    let reader = behind_a_fault(libc::SYS_read, &read);
    let [read, write, other_read, other_write] =
        [&read, &write, &other_read, &other_write].map(|fd| fd.raw() as usize);
    let byte = b"x".as_ptr() as usize;
    let mut into = [0u8; 4];
    let into = into.as_mut_ptr() as usize;
    let vector = [byte, 1];
    let vector = vector.as_ptr() as usize;
    let calls = [
        ("write", libc::SYS_write, [write, byte, 1, 0, 0, 0]),
        ("read", libc::SYS_read, [read, into, 4, 0, 0, 0]),
        ("F_SETPIPE_SZ", libc::SYS_fcntl, [write, libc::F_SETPIPE_SZ as usize, 1 << 20, 0, 0, 0]),
        ("splice from", libc::SYS_splice, [read, 0, other_write, 0, 4, 0]),
        ("splice to", libc::SYS_splice, [other_read, 0, write, 0, 1, 0]),
        ("tee", libc::SYS_tee, [read, other_write, 4, 0, 0, 0]),
        ("vmsplice", libc::SYS_vmsplice, [write, vector, 1, 0, 0, 0]),
    ];
    can_be_killed(reader, &calls);
}

/// Who waits for a file in memory that another one writes to, from memory that nobody brings, can be killed.
fn a_file_behind_a_fault() {
    if is_linux() {
        skip("Linux waits, deaf to a kill");
    }
    let file = Fd::memfd("shared", 0).unwrap();
    file.truncate(PAGE as u64).unwrap();
    let writer = behind_a_fault(libc::SYS_pwrite64, &file);
    let (fd, byte) = (file.raw() as usize, b"x".as_ptr() as usize);
    let calls = [
        ("write", libc::SYS_pwrite64, [fd, byte, 1, 0, 0, 0]),
        ("ftruncate", libc::SYS_ftruncate, [fd, 1, 0, 0, 0, 0]),
        ("fallocate", libc::SYS_fallocate, [fd, 0, 0, PAGE, 0, 0]),
    ];
    can_be_killed(writer, &calls);
}

/// Senders of what nobody brings wait for a full queue; who has something to send gets a place as they would.
fn senders_behind_faults() {
    const SENDERS: usize = 30;
    let (from, to) = pair(libc::SOCK_DGRAM);
    let mut full = 0;
    while send(&from, b"x", libc::MSG_DONTWAIT).is_ok() {
        full += 1;
    }
    let child = fork(|| {
        let map = Map::new(PAGE, RW, PRIVATE | ANON, -1, 0).unwrap();
        let uffd = Uffd::new(0);
        uffd.register(&map, MISSING).unwrap();
        let (fd, at) = (from.raw() as usize, map.address);
        for _ in 0..SENDERS {
            std::thread::spawn(move || call(libc::SYS_sendto, [fd, at, 1, 0, 0, 0]));
        }
        procfs::wait_for_sleepers(SENDERS);
        fork(|| assert_eq!(send(&from, b"p", 0), Ok(1))).ok();
        // SAFETY: ends the process with its threads.
        unsafe { libc::_exit(0) };
    });
    let plain_waits = || procfs::child_of(child.pid).is_some_and(|pid| procfs::state(pid) == Some('S'));
    assert!(settles(Duration::from_secs(20), plain_waits), "nobody waits");
    let second = libc::timeval { tv_sec: 20, tv_usec: 0 };
    set_option(&to, libc::SO_RCVTIMEO, second);
    let mut byte = [0];
    for _ in 0..full {
        assert_eq!((recv(&to, &mut byte, 0), byte), (Ok(1), *b"x"));
    }
    assert_eq!((recv(&to, &mut byte, 0), byte), (Ok(1), *b"p"));
    child.ok();
}

/// They wait for a place in a listener's backlog, and are closed.
fn clients_that_were_closed() {
    let fd = inet::stream(V4);
    inet::bind(&fd, (V4, 0).into()).unwrap();
    inet::listen(&fd, 0).unwrap();
    let listener: TcpListener = inet::into_listener(fd);
    let at = listener.local_addr().unwrap();
    let first = TcpStream::connect(at).unwrap();
    for _ in 0..procfs::number("/proc/sys/net/core/somaxconn") {
        let client = inet::stream(V4);
        // SAFETY: takes integers.
        check(unsafe { libc::fcntl(client.raw(), libc::F_SETFL, libc::O_NONBLOCK) }).unwrap();
        assert_eq!(inet::connect(&client, at), Err(Errno::EINPROGRESS));
    }
    std::thread::scope(|scope| {
        let another = scope.spawn(|| TcpStream::connect(at).map(drop));
        procfs::wait_for_sleepers(1);
        drop(listener.accept().unwrap());
        another.join().unwrap().unwrap();
    });
    drop(first);
}
