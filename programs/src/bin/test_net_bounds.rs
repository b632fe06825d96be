//! What one user of sockets can do to the machine and to others: how many wait, and with what addresses, must not matter.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use roundtable_programs::child::{Child, End, fork};
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::harness::skip;
use roundtable_programs::inet::{self, V4};
use roundtable_programs::kinds::call;
use roundtable_programs::place::Place;
use roundtable_programs::signals;
use roundtable_programs::socket::{pair, recv, send, set_option};
use roundtable_programs::sys::{check, is_linux, settles};
use roundtable_programs::{Errno, procfs, tests};

tests! { requests_at_the_last_addresses, requests_by_the_thousand, an_answer_before_a_failure, readers_that_wait_can_be_killed,
readers_that_wait_have_a_time_limit, readers_share_a_stream: 60, a_port_of_another_user, no_errors_in_the_queue,
a_connection_without_a_descriptor, ends_of_peers_with_unread_data, one_wake_for_a_datagram: 60, one_wake_for_a_connection: 60,
one_wake_for_a_place: 60, one_wake_for_a_byte: 60, a_peek_passes_the_wake_on, flows_stay_together, a_chosen_source_is_forgotten,
a_connection_leaves_nothing_to_the_next, a_bound_port_stays_with_connect }

fn netlink() -> Fd {
    Fd::own(call(libc::SYS_socket, [libc::AF_NETLINK as usize, libc::SOCK_RAW as usize, 0, 0, 0, 0]).unwrap())
}

fn requests_at_the_last_addresses() {
    for family in [libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            let fd = inet::socket(family, kind).unwrap();
            // All requests about interfaces.
            for request in 0x8910..0x8948usize {
                for address in [usize::MAX, usize::MAX - 15, usize::MAX - 16, usize::MAX - 39] {
                    let result = call(libc::SYS_ioctl, [fd.raw() as usize, request, address, 0, 0, 0]);
                    assert!(result.is_err(), "{request:#x} at {address:#x}");
                }
            }
            let index = call(libc::SYS_ioctl, [fd.raw() as usize, 0x8933, usize::MAX, 0, 0, 0]);
            assert_eq!(index, Err(Errno::EFAULT));
        }
    }
    let fd = netlink();
    assert_eq!(call(libc::SYS_ioctl, [fd.raw() as usize, 0x8933, usize::MAX, 0, 0, 0]), Err(Errno::EFAULT));
}

/// A request for all interfaces.
fn request(sequence: u32) -> Vec<u8> {
    const GET_LINK: u16 = 18;
    const REQUEST_DUMP: u16 = 0x301;
    let mut bytes = 20u32.to_ne_bytes().to_vec();
    bytes.extend(GET_LINK.to_ne_bytes());
    bytes.extend(REQUEST_DUMP.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes
}

fn answers(fd: &Fd) {
    assert_eq!(send(fd, &request(7), 0), Ok(20));
    let mut answer = [0; 8192];
    assert!(recv(fd, &mut answer, 0).unwrap() > 16);
    assert_eq!(u32::from_ne_bytes(answer[8..12].try_into().unwrap()), 7);
}

fn requests_by_the_thousand() {
    let fd = netlink();
    set_option(&fd.0, libc::SO_RCVBUF, 1 << 20);
    let all: Vec<u8> = (0..1600).flat_map(|_| request(1)).collect();
    // As many as find room are answered.
    for _ in 0..4 {
        let sent = send(&fd, &all, 0);
        assert!(sent == Ok(all.len()) || sent == Err(Errno::ENOBUFS), "{sent:?}");
    }
    drop(fd);
    answers(&netlink());
}

fn an_answer_before_a_failure() {
    let fd = netlink();
    set_option(&fd.0, libc::SO_RCVBUF, 4096);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| recv(&fd, &mut [0; 8192], 0));
        procfs::wait_for_sleepers(1);
        let all: Vec<u8> = (0..1600).flat_map(|_| request(1)).collect();
        let _ = send(&fd, &all, 0);
        // Linux tells the failure to whoever reads.
        let answer = reader.join().unwrap();
        assert!(answer == Err(Errno::ENOBUFS) || answer.is_ok_and(|len| len > 16), "{answer:?}");
    });
}

/// Streams with nothing to read, and what keeps them open.
fn silent_streams() -> Vec<(&'static str, Fd, Fd)> {
    let (a, b) = pair(libc::SOCK_STREAM);
    let listener = TcpListener::bind((V4, 0)).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    let own = |stream: TcpStream| Fd(stream.into());
    vec![("unix", a, b), ("inet", own(client), own(server))]
}

fn reader(fd: &Fd) -> Child {
    let child = fork(|| {
        let _ = recv(fd, &mut [0; 10], 0);
    });
    procfs::wait_for_sleep(child.pid);
    child
}

fn readers_that_wait_can_be_killed() {
    for (what, fd, _other) in silent_streams() {
        let first = reader(&fd);
        let second = reader(&fd);
        second.kill(libc::SIGKILL);
        assert_eq!(second.wait(), End::Signal(libc::SIGKILL), "{what}");
        first.kill(libc::SIGKILL);
        assert_eq!(first.wait(), End::Signal(libc::SIGKILL), "{what}");
    }
}

fn readers_that_wait_have_a_time_limit() {
    for (what, fd, other) in silent_streams() {
        let first = reader(&fd);
        set_option(&fd.0, libc::SO_RCVTIMEO, libc::timeval { tv_sec: 0, tv_usec: 50_000 });
        assert_eq!(recv(&fd, &mut [0; 10], 0), Err(Errno::EAGAIN), "{what}");
        assert_eq!(recv(&fd, &mut [0; 10], libc::MSG_DONTWAIT), Err(Errno::EAGAIN), "{what}");
        assert_eq!(send(&other, b"x", 0), Ok(1));
        first.ok();
    }
}

/// Each byte arrives at one of many readers, and each reader sees the end.
fn readers_share_a_stream() {
    const LEN: usize = 200_000;
    for (what, fd, other) in silent_streams() {
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let read = || {
                    let mut piece = [0; 777];
                    loop {
                        match recv(&fd, &mut piece, 0).unwrap() {
                            0 => return,
                            len => sum.fetch_add(len, Ordering::SeqCst),
                        };
                    }
                };
                scope.spawn(read);
            }
            let mut left = LEN;
            while left > 0 {
                left -= send(&other, &vec![1; left.min(5000)], 0).unwrap();
            }
            drop(other);
        });
        assert_eq!(sum.load(Ordering::SeqCst), LEN, "{what}");
    }
}

fn as_user(uid: u32, run: impl FnOnce()) -> Child {
    fork(|| {
        // SAFETY: takes integers.
        assert_eq!(unsafe { (libc::setgid(uid), libc::setuid(uid)) }, (0, 0));
        run();
    })
}

fn sharing(at: SocketAddr) -> Result<Fd, Errno> {
    let fd = inet::stream(at.ip());
    for option in [libc::SO_REUSEADDR, libc::SO_REUSEPORT] {
        inet::set(&fd, libc::SOL_SOCKET, option, 1).unwrap();
    }
    inet::bind(&fd, at).map(|_| fd)
}

fn a_port_of_another_user() {
    for (first, second) in [("0.0.0.0", "0.0.0.0"), ("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1")] {
        let port = TcpListener::bind((V4, 0)).unwrap().local_addr().unwrap().port();
        let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), port);
        // Who has bound, and does not listen yet, shares the address; but not what comes for it.
        let (mut stranger_told, stranger_hears) = UnixStream::pair().unwrap();
        let stranger = as_user(1001, || {
            let fd = sharing(at(first)).unwrap();
            (&stranger_hears).write_all(b"b").unwrap();
            (&stranger_hears).read_exact(&mut [0]).unwrap();
            assert_eq!(inet::listen(&fd, 5), Err(Errno::EADDRINUSE));
        });
        stranger_told.read_exact(&mut [0]).unwrap();
        let (mut owner_told, owner_hears) = UnixStream::pair().unwrap();
        let owner = as_user(1002, || {
            let fd = sharing(at(second)).unwrap();
            inet::listen(&fd, 5).unwrap();
            (&owner_hears).write_all(b"l").unwrap();
            (&owner_hears).read_exact(&mut [0]).unwrap();
        });
        owner_told.read_exact(&mut [0]).unwrap();
        stranger_told.write_all(b"l").unwrap();
        stranger.ok();
        owner_told.write_all(b"e").unwrap();
        owner.ok();
    }
    // One's own share it, as before.
    as_user(1003, || {
        let fd = sharing((V4, 0).into()).unwrap();
        inet::listen(&fd, 5).unwrap();
        let at = inet::into_listener(fd).local_addr().unwrap();
        let fd = sharing(at).unwrap();
        let other = sharing(at).unwrap();
        assert_eq!((inet::listen(&fd, 5), inet::listen(&other, 5)), (Ok(0), Ok(0)));
    })
    .ok();
}

fn no_errors_in_the_queue() {
    const RECVERR: i32 = 11;
    let server = UdpSocket::bind((V4, 0)).unwrap();
    inet::set(&server, libc::IPPROTO_IP, RECVERR, 1).unwrap();
    let client = UdpSocket::bind((V4, 0)).unwrap();
    client.send_to(b"data", server.local_addr().unwrap()).unwrap();
    let receive = |fd: i32, flags| {
        let mut bytes = [0u8; 10];
        // SAFETY: the buffer is as long as we say.
        check(unsafe { libc::recv(fd, bytes.as_mut_ptr().cast(), bytes.len(), flags) as i64 })
    };
    assert_eq!(receive(server.as_raw_fd(), libc::MSG_ERRQUEUE), Err(Errno::EAGAIN));
    assert_eq!(receive(server.as_raw_fd(), 0), Ok(4));
    // It does not wait for one either.
    assert_eq!(receive(server.as_raw_fd(), libc::MSG_ERRQUEUE), Err(Errno::EAGAIN));
    let (_listener, mut one, other) = inet::connection(V4);
    one.write_all(b"data").unwrap();
    assert_eq!(receive(other.as_raw_fd(), libc::MSG_ERRQUEUE), Err(Errno::EAGAIN));
    assert_eq!(receive(other.as_raw_fd(), 0), Ok(4));
}

fn limit_descriptors(limit: u64) {
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: 1000 };
    // SAFETY: the limit is a local.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }).unwrap();
}

fn a_connection_without_a_descriptor() {
    let place = Place::new("");
    let path = place.path("socket");
    let unix = UnixListener::bind(&path).unwrap();
    let listener = TcpListener::bind((V4, 0)).unwrap();
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut unix_stream = UnixStream::connect(&path).unwrap();
    let free = Fd::open("/dev/null", libc::O_RDONLY).unwrap();
    let next = free.raw() as u64;
    drop(free);
    limit_descriptors(next);
    assert_eq!(listener.accept().unwrap_err().raw_os_error(), Some(libc::EMFILE));
    assert_eq!(unix.accept().unwrap_err().raw_os_error(), Some(libc::EMFILE));
    // Without anybody there, too.
    limit_descriptors(1000);
    let (mut accepted, _) = listener.accept().unwrap();
    let (mut unix_accepted, _) = unix.accept().unwrap();
    accepted.write_all(b"x").unwrap();
    unix_accepted.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    unix_stream.read_exact(&mut [0]).unwrap();
}

fn ends_of_peers_with_unread_data() {
    signals::catch(libc::SIGPIPE);
    let before = signals::count();
    for (kind, errors, caught) in [
        (libc::SOCK_STREAM, [Errno::EPIPE, Errno::EPIPE], 2),
        (libc::SOCK_SEQPACKET, [Errno::ECONNRESET, Errno::EPIPE], 0),
    ] {
        let (a, b) = pair(kind);
        assert_eq!(send(&a, b"unread", 0), Ok(6));
        drop(b);
        let before = signals::count();
        assert_eq!([send(&a, b"x", 0), send(&a, b"x", 0)], errors.map(Err));
        assert_eq!(signals::count() - before, caught);
    }
    // What a stream's end hides stays for the reader.
    let (a, b) = pair(libc::SOCK_STREAM);
    assert_eq!(send(&a, b"unread", 0), Ok(6));
    drop(b);
    assert_eq!(send(&a, b"x", libc::MSG_NOSIGNAL), Err(Errno::EPIPE));
    assert_eq!(recv(&a, &mut [0; 10], 0), Err(Errno::ECONNRESET));
    assert_eq!(signals::count() - before, 2);
}

/// How often this process's threads have gone to sleep.
fn sleeps() -> i64 {
    // SAFETY: the structure is a local, of zeros at first.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        check(libc::getrusage(libc::RUSAGE_SELF, &mut usage)).unwrap();
        usage.ru_nvcsw
    }
}

/// Has many threads wait for something of which there is one at a time, and brings it for each: how often threads went to sleep then.
fn wakes(count: usize, wait: impl Fn() + Sync, mut bring: impl FnMut()) -> i64 {
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..count {
            let wait = || {
                wait();
                done.fetch_add(1, Ordering::SeqCst);
            };
            std::thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, wait).unwrap();
        }
        procfs::wait_for_sleepers(count);
        let before = sleeps();
        for number in 1..=count {
            bring();
            assert!(settles(Duration::from_secs(20), || done.load(Ordering::SeqCst) >= number), "{number}");
        }
        sleeps() - before
    })
}

/// If each wakes all, thousands; the caller sleeps while it waits, too.
const COUNT: usize = 150;
const MOST: i64 = 30 * COUNT as i64;

fn one_wake_for_a_datagram() {
    let server = UdpSocket::bind((V4, 0)).unwrap();
    let at = server.local_addr().unwrap();
    let client = UdpSocket::bind((V4, 0)).unwrap();
    let receive = || assert_eq!(server.recv(&mut [0; 10]).unwrap(), 1);
    let count = wakes(COUNT, receive, || assert_eq!(client.send_to(b"x", at).unwrap(), 1));
    assert!(count < MOST, "inet: {count}");
    for kind in [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
        let (a, b) = pair(kind);
        let receive = || assert_eq!(recv(&a, &mut [0; 10], 0), Ok(1));
        let count = wakes(COUNT, receive, || assert_eq!(send(&b, b"x", 0), Ok(1)));
        assert!(count < MOST, "unix: {count}");
    }
}

fn one_wake_for_a_connection() {
    let listener = TcpListener::bind((V4, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    let accept = || drop(listener.accept().unwrap());
    let count = wakes(COUNT, accept, || drop(TcpStream::connect(at).unwrap()));
    assert!(count < MOST, "inet: {count}");
    let place = Place::new("");
    let path = place.path("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let accept = || drop(listener.accept().unwrap());
    let count = wakes(COUNT, accept, || drop(UnixStream::connect(&path).unwrap()));
    assert!(count < MOST, "unix: {count}");
}

fn one_wake_for_a_place() {
    let place = Place::new("");
    let path = place.path("log");
    let log = UnixDatagram::bind(&path).unwrap();
    let client = UnixDatagram::unbound().unwrap();
    client.set_nonblocking(true).unwrap();
    while client.send_to(b"x", &path).is_ok() {}
    client.set_nonblocking(false).unwrap();
    let write = || assert_eq!(client.send_to(b"x", &path).unwrap(), 1);
    let count = wakes(COUNT, write, || assert_eq!(log.recv(&mut [0; 10]).unwrap(), 1));
    assert!(count < MOST, "datagrams: {count}");
}

fn one_wake_for_a_byte() {
    let (read, write) = pipe(0);
    let take = || assert_eq!(read.read(&mut [0; 1]), Ok(1));
    let count = wakes(COUNT, take, || assert_eq!(write.write(b"x"), Ok(1)));
    assert!(count < MOST, "readers: {count}");
    // Who finds more than he takes tells the next.
    let mut number = 0;
    let count = wakes(COUNT, take, || {
        if number % 10 == 0 {
            assert_eq!(write.write(&[0; 10]), Ok(10));
        }
        number += 1;
    });
    assert!(count < MOST, "readers of more: {count}");
    assert_eq!(write.write(&[0; 65536]), Ok(65536));
    let put = || assert_eq!(write.write(&[0; 4096]), Ok(4096));
    let count = wakes(COUNT, put, || assert_eq!(read.read(&mut [0; 4096]), Ok(4096)));
    assert!(count < MOST, "writers: {count}");
}

fn a_peek_passes_the_wake_on() {
    if is_linux() {
        skip("Linux wakes one, whatever that one does with the datagram");
    }
    let (a, b) = pair(libc::SOCK_DGRAM);
    let server = UdpSocket::bind((V4, 0)).unwrap();
    let at = server.local_addr().unwrap();
    let client = UdpSocket::bind((V4, 0)).unwrap();
    let client_sends = || assert_eq!(client.send_to(b"x", at).unwrap(), 1);
    std::thread::scope(|scope| {
        // They came first, and are woken first.
        for _ in 0..3 {
            scope.spawn(|| assert_eq!(recv(&a, &mut [0; 10], libc::MSG_PEEK), Ok(1)));
            scope.spawn(|| assert_eq!(server.peek(&mut [0; 10]).unwrap(), 1));
        }
        procfs::wait_for_sleepers(6);
        let takers = [scope.spawn(|| recv(&a, &mut [0; 10], 0)), {
            let server = &server;
            scope.spawn(move || Ok(server.recv(&mut [0; 10]).unwrap()))
        }];
        procfs::wait_for_sleepers(8);
        assert_eq!(send(&b, b"x", 0), Ok(1));
        client_sends();
        takers.into_iter().for_each(|taker| assert_eq!(taker.join().unwrap(), Ok(1)));
        // Who peeks may have come too late for these.
        assert_eq!(send(&b, b"x", 0), Ok(1));
        client_sends();
    });
}

fn receiver(at: SocketAddr, options: &[i32]) -> UdpSocket {
    let fd = inet::socket(libc::AF_INET, libc::SOCK_DGRAM).unwrap();
    options.iter().for_each(|option| _ = inet::set(&fd, libc::SOL_SOCKET, *option, 1).unwrap());
    inet::bind(&fd, at).unwrap();
    let socket = UdpSocket::from(fd.0);
    socket.set_nonblocking(true).unwrap();
    socket
}

/// How many datagrams wait.
fn waiting(socket: &UdpSocket) -> usize {
    (0..).take_while(|_| socket.recv(&mut [0; 10]).is_ok()).count()
}

fn flows_stay_together() {
    let first = receiver((V4, 0).into(), &[libc::SO_REUSEPORT]);
    let at = first.local_addr().unwrap();
    let sockets: Vec<_> =
        std::iter::once(first).chain((0..3).map(|_| receiver(at, &[libc::SO_REUSEPORT]))).collect();
    let mut used = [0; 4];
    for _ in 0..40 {
        let client = UdpSocket::bind((V4, 0)).unwrap();
        for _ in 0..5 {
            client.send_to(b"x", at).unwrap();
        }
        let counts: Vec<_> = sockets.iter().map(waiting).collect();
        let one = counts.iter().position(|count| *count == 5);
        used[one.unwrap_or_else(|| panic!("{counts:?}"))] += 1;
    }
    assert!(used.iter().filter(|count| **count > 0).count() > 1, "{used:?}");
    // Who shares the address only gives it up to the next.
    let first = receiver((V4, 0).into(), &[libc::SO_REUSEADDR]);
    let at = first.local_addr().unwrap();
    let last = receiver(at, &[libc::SO_REUSEADDR]);
    let client = UdpSocket::bind((V4, 0)).unwrap();
    for _ in 0..10 {
        client.send_to(b"x", at).unwrap();
    }
    assert_eq!((waiting(&first), waiting(&last)), (0, 10));
}

fn a_chosen_source_is_forgotten() {
    let other = UdpSocket::bind((V4, 0)).unwrap();
    let to = other.local_addr().unwrap();
    let free = UdpSocket::bind((V4, 0)).unwrap().local_addr().unwrap().port();
    let at = |text: &str| -> SocketAddr { text.parse().unwrap() };
    for (bound, after) in [
        (None, at("0.0.0.0:0")),
        (Some(at("127.0.0.1:0")), at("127.0.0.1:0")),
        (Some(SocketAddr::new([0, 0, 0, 0].into(), free)), SocketAddr::new([0, 0, 0, 0].into(), free)),
    ] {
        let fd = inet::socket(libc::AF_INET, libc::SOCK_DGRAM).unwrap();
        if let Some(bound) = bound {
            inet::bind(&fd, bound).unwrap();
        }
        inet::connect(&fd, to).unwrap();
        let socket = UdpSocket::from(fd.0);
        assert_eq!(socket.local_addr().unwrap().ip(), V4);
        inet::disconnect(&socket).unwrap();
        assert_eq!(socket.local_addr().unwrap(), after, "{bound:?}");
        // As good as before.
        inet::connect(&socket, to).unwrap();
        assert_eq!(socket.send(b"again").unwrap(), 5);
        let (_, from) = other.recv_from(&mut [0; 10]).unwrap();
        assert_eq!(from, socket.local_addr().unwrap());
        other.send_to(b"back", from).unwrap();
        assert_eq!(socket.recv(&mut [0; 10]).unwrap(), 4);
    }
}

fn a_connection_leaves_nothing_to_the_next() {
    let listener = TcpListener::bind((V4, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    let client = TcpStream::connect(at).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    server.write_all(b"old").unwrap();
    assert_ne!(inet::poll(&client, libc::POLLIN, 10_000), 0);
    inet::disconnect(&client).unwrap();
    inet::connect(&client, at).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    server.write_all(b"new").unwrap();
    drop(server);
    let mut text = String::new();
    (&client).read_to_string(&mut text).unwrap();
    assert_eq!(text, "new");
}

/// The port that bind(2) has chosen is that of the connection.
fn a_bound_port_stays_with_connect() {
    let listener = TcpListener::bind((V4, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    for ip in [V4, [0, 0, 0, 0].into()] {
        let fd = inet::stream(V4);
        inet::bind(&fd, SocketAddr::new(ip, 0)).unwrap();
        let port = inet::name(&fd).unwrap().port();
        inet::connect(&fd, at).unwrap();
        assert_eq!(inet::name(&fd).unwrap(), SocketAddr::new(V4, port));
        assert_eq!(listener.accept().unwrap().1, SocketAddr::new(V4, port));
    }
}
