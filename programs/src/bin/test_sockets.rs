//! Sockets of the Unix domain: names, streams, datagrams, readiness.

use std::io::{Read, Write};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use roundtable_programs::child::{End, fork};
use roundtable_programs::file::Fd;
use roundtable_programs::place::Place;
use roundtable_programs::socket::{pair, recv, send, set_option, socket};
use roundtable_programs::sys::check;
use roundtable_programs::{Errno, tests};

tests! { stream_carries_bytes, stream_ends, broken_pipe, unread_data_resets, many_clients, addresses,
abstract_names, bind_errors, connect_errors, backlog_fills, datagrams_keep_borders, datagram_destinations,
datagrams_fill_up, seqpacket, peek_and_wait_all, timeouts, shutdown, options, readiness, bytes_available,
many_messages, no_other_domains, shown_in_proc }

fn poll_one(fd: &impl AsRawFd, events: i16, timeout: i32) -> i16 {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: one entry, which lives through the call.
    check(unsafe { libc::poll(&mut entry, 1, timeout) }).expect("poll");
    entry.revents
}

fn option(fd: &impl AsRawFd, name: i32) -> Result<i32, Errno> {
    let (mut value, mut len) = (0i32, 4u32);
    // SAFETY: an integer, as long as we say.
    check(unsafe {
        let value: *mut i32 = &mut value;
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, value.cast(), &mut len)
    })
    .map(|_| value)
}

fn stream_carries_bytes() {
    const SIZE: usize = 5 << 20;
    let (mut a, mut b) = UnixStream::pair().unwrap();
    let writer = fork(|| {
        let data: Vec<u8> = (0..SIZE).map(|i| (i * 7 / 3) as u8).collect();
        a.write_all(&data).unwrap();
    });
    let mut data = vec![0; SIZE];
    b.read_exact(&mut data).unwrap();
    assert!(data.iter().enumerate().all(|(i, byte)| *byte == (i * 7 / 3) as u8));
    writer.ok();
}

fn stream_ends() {
    let (a, b) = pair(libc::SOCK_STREAM);
    assert_eq!(a.write(b"last"), Ok(4));
    drop(a);
    let mut buffer = [0; 10];
    assert_eq!(b.read(&mut buffer), Ok(4));
    assert_eq!(b.read(&mut buffer), Ok(0));
    assert_eq!(poll_one(&b.0, libc::POLLIN, 0), libc::POLLIN | libc::POLLHUP);
}

fn broken_pipe() {
    let (a, b) = pair(libc::SOCK_STREAM);
    drop(b);
    assert_eq!(send(&a, b"x", libc::MSG_NOSIGNAL), Err(Errno::EPIPE));
    let killed = fork(|| {
        // SAFETY: takes integers.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let _ = a.write(b"x");
    });
    assert_eq!(killed.wait(), End::Signal(libc::SIGPIPE));
}

fn unread_data_resets() {
    let (a, b) = pair(libc::SOCK_STREAM);
    assert_eq!(a.write(b"unread"), Ok(6));
    drop(b);
    assert_eq!(a.read(&mut [0; 10]), Err(Errno::ECONNRESET));
    assert_eq!(a.read(&mut [0; 10]), Ok(0));
}

fn many_clients() {
    let place = Place::new("");
    let path = place.path("server");
    let listener = UnixListener::bind(&path).unwrap();
    let clients: Vec<_> = (0..20u8)
        .map(|number| {
            fork(|| {
                let mut stream = UnixStream::connect(&path).unwrap();
                stream.write_all(&[number; 100]).unwrap();
                let mut answer = [0; 100];
                stream.read_exact(&mut answer).unwrap();
                assert_eq!(answer, [number + 1; 100]);
            })
        })
        .collect();
    for _ in 0..20 {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 100];
        stream.read_exact(&mut request).unwrap();
        stream.write_all(&request.map(|byte| byte + 1)).unwrap();
    }
    clients.into_iter().for_each(|client| client.ok());
}

fn addresses() {
    let place = Place::new("");
    let path = place.path("server");
    let listener = UnixListener::bind(&path).unwrap();
    let client = UnixStream::connect(&path).unwrap();
    let (server, from) = listener.accept().unwrap();
    assert!(from.is_unnamed());
    assert_eq!(client.peer_addr().unwrap().as_pathname().unwrap().to_str().unwrap(), path);
    assert_eq!(server.local_addr().unwrap().as_pathname().unwrap().to_str().unwrap(), path);
    assert!(client.local_addr().unwrap().is_unnamed());
    let stat = std::fs::metadata(&path).unwrap();
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    assert!(stat.file_type().is_socket());
    assert_eq!(stat.permissions().mode() & 0o777, 0o755);
    // Once the name is gone, so is the way.
    std::fs::remove_file(&path).unwrap();
    assert_eq!(UnixStream::connect(&path).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    assert_eq!(Fd::open(&path, libc::O_RDWR).unwrap_err(), Errno::ENOENT);
}

/// An abstract address, and its length.
fn abstract_address(name: &[u8]) -> (libc::sockaddr_un, u32) {
    // SAFETY: an address of zeros is one.
    let mut address: libc::sockaddr_un = unsafe { zeroed() };
    address.sun_family = libc::AF_UNIX as u16;
    for (to, from) in address.sun_path[1..].iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    (address, 3 + name.len() as u32)
}

fn bind(fd: &Fd, (address, len): &(libc::sockaddr_un, u32)) -> Result<usize, Errno> {
    let address: *const libc::sockaddr_un = address;
    // SAFETY: the address is as long as we say.
    check(unsafe { libc::bind(fd.raw(), address.cast(), *len) })
}

fn connect(fd: &Fd, (address, len): &(libc::sockaddr_un, u32)) -> Result<usize, Errno> {
    let address: *const libc::sockaddr_un = address;
    // SAFETY: the address is as long as we say.
    check(unsafe { libc::connect(fd.raw(), address.cast(), *len) })
}

fn listen(fd: &Fd, backlog: i32) -> Result<usize, Errno> {
    // SAFETY: takes integers.
    check(unsafe { libc::listen(fd.raw(), backlog) })
}

fn abstract_names() {
    let name = format!("roundtable\0{}", std::process::id());
    let address = abstract_address(name.as_bytes());
    let listener = socket(libc::SOCK_STREAM);
    bind(&listener, &address).unwrap();
    listen(&listener, 5).unwrap();
    assert_eq!(bind(&socket(libc::SOCK_STREAM), &address), Err(Errno::EADDRINUSE));
    let client = socket(libc::SOCK_STREAM);
    connect(&client, &address).unwrap();
    drop(listener);
    assert_eq!(connect(&socket(libc::SOCK_STREAM), &address), Err(Errno::ECONNREFUSED));
    // The connection that nobody accepted is reset.
    assert_eq!(client.read(&mut [0; 10]), Err(Errno::ECONNRESET));
    bind(&socket(libc::SOCK_STREAM), &address).unwrap();
    // The family alone: the kernel chooses five hexadecimal digits.
    let any = socket(libc::SOCK_DGRAM);
    bind(&any, &(address.0, 2)).unwrap();
    let (mut got, mut len) = (address.0, size_of::<libc::sockaddr_un>() as u32);
    // SAFETY: the address is as long as we say.
    check(unsafe {
        let got: *mut libc::sockaddr_un = &mut got;
        libc::getsockname(any.raw(), got.cast(), &mut len)
    })
    .unwrap();
    assert_eq!(len, 8);
    assert!(got.sun_path[1..6].iter().all(|c| (*c as u8).is_ascii_hexdigit()));
}

fn bind_errors() {
    let place = Place::new("");
    let listener = UnixListener::bind(place.path("taken")).unwrap();
    let again = UnixListener::bind(place.path("taken")).unwrap_err();
    assert_eq!(again.raw_os_error(), Some(libc::EADDRINUSE));
    let nowhere = UnixListener::bind(place.path("no/where")).unwrap_err();
    assert_eq!(nowhere.raw_os_error(), Some(libc::ENOENT));
    let bound = socket(libc::SOCK_STREAM);
    bind(&bound, &abstract_address(b"bind_errors 1")).unwrap();
    assert_eq!(bind(&bound, &abstract_address(b"bind_errors 2")), Err(Errno::EINVAL));
    assert_eq!(listen(&socket(libc::SOCK_STREAM), 1), Err(Errno::EINVAL));
    assert_eq!(listen(&socket(libc::SOCK_DGRAM), 1), Err(Errno::EOPNOTSUPP));
    drop(listener);
}

fn connect_errors() {
    let place = Place::new("");
    let path = place.path("server");
    drop(UnixListener::bind(&path).unwrap());
    assert_eq!(UnixStream::connect(&path).unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
    place.write("file", b"");
    let file = UnixStream::connect(place.path("file")).unwrap_err();
    assert_eq!(file.raw_os_error(), Some(libc::ECONNREFUSED));
    let datagram = UnixDatagram::bind(place.path("datagram")).unwrap();
    let kind = UnixStream::connect(place.path("datagram")).unwrap_err();
    assert_eq!(kind.raw_os_error(), Some(libc::EPROTOTYPE));
    let (a, _b) = pair(libc::SOCK_STREAM);
    let listener = socket(libc::SOCK_STREAM);
    let address = abstract_address(b"connect_errors");
    bind(&listener, &address).unwrap();
    listen(&listener, 1).unwrap();
    assert_eq!(connect(&a, &address), Err(Errno::EISCONN));
    assert_eq!(connect(&listener, &address), Err(Errno::EINVAL));
    assert_eq!(socket(libc::SOCK_STREAM).read(&mut [0]), Err(Errno::EINVAL));
    assert_eq!(send(&socket(libc::SOCK_STREAM), b"x", 0), Err(Errno::ENOTCONN));
    drop(datagram);
}

fn backlog_fills() {
    let address = abstract_address(b"backlog_fills");
    let listener = socket(libc::SOCK_STREAM);
    bind(&listener, &address).unwrap();
    listen(&listener, 1).unwrap();
    let clients: Vec<Fd> = (0..2).map(|_| socket(libc::SOCK_STREAM)).collect();
    for client in &clients {
        connect(client, &address).unwrap();
    }
    let third = socket(libc::SOCK_STREAM | libc::SOCK_NONBLOCK);
    assert_eq!(connect(&third, &address), Err(Errno::EAGAIN));
    let waiting = fork(|| {
        let client = socket(libc::SOCK_STREAM);
        connect(&client, &address).unwrap();
    });
    std::thread::sleep(Duration::from_millis(50));
    for _ in 0..3 {
        let null = std::ptr::null_mut();
        // SAFETY: no address is asked for.
        let fd = check(unsafe { libc::accept4(listener.raw(), null, std::ptr::null_mut(), 0) });
        drop(Fd::own(fd.unwrap()));
    }
    waiting.ok();
}

fn datagrams_keep_borders() {
    let (a, b) = pair(libc::SOCK_DGRAM);
    for message in [&b"one"[..], b"", b"three"] {
        assert_eq!(send(&a, message, 0), Ok(message.len()));
    }
    let mut buffer = [0; 100];
    assert_eq!(recv(&b, &mut buffer, 0), Ok(3));
    assert_eq!(recv(&b, &mut buffer, 0), Ok(0));
    // What does not fit is lost, and MSG_TRUNC tells how much there was.
    assert_eq!(recv(&b, &mut buffer[..2], libc::MSG_TRUNC), Ok(5));
    assert_eq!(recv(&b, &mut buffer, libc::MSG_DONTWAIT), Err(Errno::EAGAIN));
    assert_eq!(send(&a, &vec![0; 1 << 20], 0), Err(Errno::EMSGSIZE));
}

fn datagram_destinations() {
    let place = Place::new("");
    let server = UnixDatagram::bind(place.path("server")).unwrap();
    let client = UnixDatagram::bind(place.path("client")).unwrap();
    client.send_to(b"question", place.path("server")).unwrap();
    let mut buffer = [0; 100];
    let (count, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..count], b"question");
    server.send_to(b"answer", from.as_pathname().unwrap()).unwrap();
    assert_eq!(client.recv(&mut buffer).unwrap(), 6);
    client.connect(place.path("server")).unwrap();
    // One who is connected takes from its peer only.
    let other = UnixDatagram::unbound().unwrap();
    let refused = other.send_to(b"x", place.path("client")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
    drop(server);
    assert_eq!(client.send(b"x").unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
    assert_eq!(other.send(b"x").unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
}

fn datagrams_fill_up() {
    let (a, b) = pair(libc::SOCK_DGRAM);
    let mut sent = 0;
    while send(&a, b"x", libc::MSG_DONTWAIT).is_ok() {
        sent += 1;
    }
    assert!((1..=512).contains(&sent), "{sent} datagrams fit");
    assert_eq!(poll_one(&a.0, libc::POLLOUT, 0), 0);
    let sender = fork(|| assert_eq!(send(&a, b"waits", 0), Ok(5)));
    std::thread::sleep(Duration::from_millis(30));
    let mut buffer = [0; 10];
    for _ in 0..sent {
        assert_eq!(recv(&b, &mut buffer, 0), Ok(1));
    }
    assert_eq!(recv(&b, &mut buffer, 0), Ok(5));
    assert_eq!(poll_one(&a.0, libc::POLLOUT, 1000), libc::POLLOUT);
    sender.ok();
}

fn seqpacket() {
    let (a, b) = pair(libc::SOCK_SEQPACKET);
    assert_eq!(send(&a, b"first", 0), Ok(5));
    assert_eq!(send(&a, b"second", 0), Ok(6));
    let mut buffer = [0; 100];
    assert_eq!(recv(&b, &mut buffer[..2], 0), Ok(2));
    assert_eq!(recv(&b, &mut buffer, 0), Ok(6));
    drop(a);
    assert_eq!(recv(&b, &mut buffer, 0), Ok(0));
    assert_eq!(send(&b, b"x", libc::MSG_NOSIGNAL), Err(Errno::EPIPE));
}

fn peek_and_wait_all() {
    let (a, b) = pair(libc::SOCK_STREAM);
    assert_eq!(a.write(b"hello"), Ok(5));
    let mut buffer = [0; 10];
    assert_eq!(recv(&b, &mut buffer, libc::MSG_PEEK), Ok(5));
    assert_eq!(recv(&b, &mut buffer[..3], libc::MSG_PEEK), Ok(3));
    let writer = fork(|| {
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(a.write(b"world"), Ok(5));
    });
    assert_eq!(recv(&b, &mut buffer, libc::MSG_WAITALL), Ok(10));
    assert_eq!(&buffer, b"helloworld");
    writer.ok();
}

fn timeouts() {
    let (a, b) = pair(libc::SOCK_STREAM);
    set_option(&b.0, libc::SO_RCVTIMEO, libc::timeval { tv_sec: 0, tv_usec: 50_000 });
    set_option(&a.0, libc::SO_SNDTIMEO, libc::timeval { tv_sec: 0, tv_usec: 50_000 });
    let start = Instant::now();
    assert_eq!(b.read(&mut [0; 10]), Err(Errno::EAGAIN));
    // Linux counts ticks of 4 ms, the one that has begun too, and after a stall several come at once.
    assert!(start.elapsed() >= Duration::from_millis(40));
    let mut sent = 0;
    let error = loop {
        match a.write(&[0; 4096]) {
            Ok(count) => sent += count,
            Err(error) => break error,
        }
    };
    assert_eq!(error, Errno::EAGAIN);
    assert!(sent > 50_000, "{sent} bytes fit");
}

fn shutdown() {
    let (a, b) = pair(libc::SOCK_STREAM);
    // SAFETY: takes integers.
    let down = |fd: &Fd, how| check(unsafe { libc::shutdown(fd.raw(), how) });
    assert_eq!(a.write(b"end"), Ok(3));
    assert_eq!(down(&a, libc::SHUT_WR), Ok(0));
    assert_eq!(send(&a, b"x", libc::MSG_NOSIGNAL), Err(Errno::EPIPE));
    let events = libc::POLLIN | libc::POLLRDHUP;
    assert_eq!(poll_one(&b.0, events, 0), events);
    let mut buffer = [0; 10];
    assert_eq!(b.read(&mut buffer), Ok(3));
    assert_eq!(b.read(&mut buffer), Ok(0));
    // The other way is still open.
    assert_eq!(b.write(b"back"), Ok(4));
    assert_eq!(a.read(&mut buffer), Ok(4));
    assert_eq!(down(&b, libc::SHUT_RDWR), Ok(0));
    assert_eq!(poll_one(&a.0, libc::POLLIN, 0), libc::POLLIN | libc::POLLHUP);
    // A socket of this domain need not be connected for it.
    assert_eq!(down(&socket(libc::SOCK_STREAM), libc::SHUT_RD), Ok(0));
}

fn options() {
    let (a, _b) = pair(libc::SOCK_STREAM);
    assert_eq!(option(&a.0, libc::SO_TYPE), Ok(libc::SOCK_STREAM));
    assert_eq!(option(&a.0, libc::SO_DOMAIN), Ok(libc::AF_UNIX));
    assert_eq!(option(&a.0, libc::SO_ERROR), Ok(0));
    assert_eq!(option(&a.0, libc::SO_ACCEPTCONN), Ok(0));
    assert_eq!(option(&a.0, libc::SO_SNDBUF), Ok(212_992));
    set_option(&a.0, libc::SO_SNDBUF, 10_000i32);
    assert_eq!(option(&a.0, libc::SO_SNDBUF), Ok(20_000));
    set_option(&a.0, libc::SO_SNDBUF, 1i32);
    assert_eq!(option(&a.0, libc::SO_SNDBUF), Ok(4608));
    assert_eq!(option(&Fd::temporary().0, libc::SO_TYPE), Err(Errno::ENOTSOCK));
    assert_eq!(option(&a.0, 9999), Err(Errno::ENOPROTOOPT));
}

fn readiness() {
    let (a, b) = pair(libc::SOCK_STREAM);
    assert_eq!(poll_one(&a.0, libc::POLLIN | libc::POLLOUT, 0), libc::POLLOUT);
    while send(&a, &[0; 4096], libc::MSG_DONTWAIT).is_ok() {}
    assert_eq!(poll_one(&a.0, libc::POLLOUT, 0), 0);
    let reader = fork(|| {
        let mut left = vec![0; 1 << 20];
        while recv(&b, &mut left, libc::MSG_DONTWAIT).is_ok() {}
    });
    assert_eq!(poll_one(&a.0, libc::POLLOUT, 10_000), libc::POLLOUT);
    reader.ok();
    let fresh = socket(libc::SOCK_STREAM);
    assert_eq!(poll_one(&fresh.0, libc::POLLIN | libc::POLLOUT, 0), libc::POLLOUT | libc::POLLHUP);
    bind(&fresh, &abstract_address(b"readiness")).unwrap();
    listen(&fresh, 1).unwrap();
    assert_eq!(poll_one(&fresh.0, libc::POLLIN | libc::POLLOUT, 0), 0);
    let client = socket(libc::SOCK_STREAM);
    connect(&client, &abstract_address(b"readiness")).unwrap();
    assert_eq!(poll_one(&fresh.0, libc::POLLIN | libc::POLLOUT, 0), libc::POLLIN);
}

fn bytes_available() {
    let available = |fd: &Fd| {
        let mut count = 0i32;
        // SAFETY: the integer is a local.
        check(unsafe { libc::ioctl(fd.raw(), libc::FIONREAD, &mut count) }).unwrap();
        count
    };
    let (a, b) = pair(libc::SOCK_STREAM);
    assert_eq!((a.write(b"abc"), a.write(b"de")), (Ok(3), Ok(2)));
    assert_eq!(available(&b), 5);
    let (a, b) = pair(libc::SOCK_DGRAM);
    assert_eq!((a.write(b"abc"), a.write(b"de")), (Ok(3), Ok(2)));
    assert_eq!(available(&b), 3);
}

fn many_messages() {
    let (a, b) = pair(libc::SOCK_DGRAM);
    let mut data = [*b"0123", *b"4567", *b"89ab"];
    // SAFETY: all buffers are locals that live through the calls.
    unsafe {
        let mut pieces: Vec<libc::iovec> = data
            .iter_mut()
            .enumerate()
            .map(|(i, piece)| libc::iovec { iov_base: piece.as_mut_ptr().cast(), iov_len: i + 2 })
            .collect();
        let mut headers: Vec<libc::mmsghdr> = pieces
            .iter_mut()
            .map(|piece| {
                let mut header: libc::mmsghdr = zeroed();
                header.msg_hdr.msg_iov = piece;
                header.msg_hdr.msg_iovlen = 1;
                header
            })
            .collect();
        assert_eq!(check(libc::sendmmsg(a.raw(), headers.as_mut_ptr(), 3, 0)), Ok(3));
        assert_eq!(headers.iter().map(|header| header.msg_len).collect::<Vec<_>>(), [2, 3, 4]);
        pieces.iter_mut().for_each(|piece| piece.iov_len = 4);
        let flags = libc::MSG_DONTWAIT;
        let null = std::ptr::null_mut();
        assert_eq!(check(libc::recvmmsg(b.raw(), headers.as_mut_ptr(), 3, flags, null)), Ok(3));
        assert_eq!(headers.iter().map(|header| header.msg_len).collect::<Vec<_>>(), [2, 3, 4]);
    }
    let taken = b.0.try_clone().map(Fd).unwrap();
    assert_eq!(recv(&taken, &mut [0; 10], libc::MSG_DONTWAIT), Err(Errno::EAGAIN));
}

fn no_other_domains() {
    // SAFETY: takes integers.
    let make = |domain, kind, protocol| check(unsafe { libc::socket(domain, kind, protocol) });
    assert_eq!(make(99, libc::SOCK_STREAM, 0), Err(Errno::EAFNOSUPPORT));
    assert_eq!(make(libc::AF_UNIX, 9, 0), Err(Errno::ESOCKTNOSUPPORT));
    assert_eq!(make(libc::AF_UNIX, libc::SOCK_STREAM, 77), Err(Errno::EPROTONOSUPPORT));
    let fd = make(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0).unwrap();
    // SAFETY: the descriptor is ours.
    drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
}

/// The lines of /proc/net/unix about one inode, or those that end so, from the flags on.
fn lines(what: &str) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/net/unix").unwrap();
    assert!(text.starts_with("Num       RefCount Protocol Flags    Type St Inode Path\n"), "{text}");
    let fields = text.lines().skip(1).map(|line| line.split_whitespace().skip(3).collect::<Vec<_>>());
    fields.filter(|fields| fields[3] == what || fields.get(4) == Some(&what)).map(|f| f.join(" ")).collect()
}

fn inode(of: &impl AsRawFd) -> String {
    // SAFETY: the structure is a local of zero bytes, which is valid.
    unsafe {
        let mut stat: libc::stat = zeroed();
        assert_eq!(libc::fstat(of.as_raw_fd(), &mut stat), 0);
        stat.st_ino.to_string()
    }
}

fn shown_in_proc() {
    let place = Place::new("");
    let path = place.path("listed");
    let listener = UnixListener::bind(&path).unwrap();
    let name = path.as_str();
    assert_eq!(lines(name), [format!("00010000 0001 01 {} {name}", inode(&listener))]);
    let client = UnixStream::connect(&path).unwrap();
    assert_eq!(lines(&inode(&client)), [format!("00000000 0001 03 {}", inode(&client))]);
    // One that nobody has accepted has no inode; behind that it has, and the listener's name.
    assert!(lines(name).contains(&format!("00000000 0001 02 0 {name}")), "{:?}", lines(name));
    let (server, _) = listener.accept().unwrap();
    assert!(
        lines(name).contains(&format!("00000000 0001 03 {} {name}", inode(&server))),
        "{:?}",
        lines(name)
    );
    let datagrams = socket(libc::SOCK_DGRAM);
    let found = inode(&datagrams.0);
    assert_eq!(lines(&found), [format!("00000000 0002 01 {found}")]);
    drop(datagrams);
    assert_eq!(lines(&found), [""; 0]);
    let (one, other) = pair(libc::SOCK_DGRAM);
    for end in [&one, &other] {
        assert_eq!(lines(&inode(&end.0)), [format!("00000000 0002 03 {}", inode(&end.0))]);
    }
    drop((listener, client, server));
    assert_eq!(lines(name), [""; 0]);
}
