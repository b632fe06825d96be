//! TCP and UDP between the processes of a machine: what arrives, and how a connection ends.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use roundtable_programs::child::fork;
use roundtable_programs::inet::{self, V4, V6, connection, poll, socket, stream};
use roundtable_programs::{Errno, tests};

tests! {
    streams_carry_bytes: 60, addresses_are_shown, one_listener_serves_both_families, half_closed,
    end_of_process_ends_connection, forked_ends_are_one, unread_bytes_reset, writing_to_nobody, lingering_resets,
    nonblocking_connections, a_full_backlog: 60, closed_listeners, datagrams, connected_datagrams,
    refused_datagrams, peeking_and_waiting, a_full_window: 60, many_connections: 120, shown_in_proc, interfaces,
    names_of_interfaces, interface_by_name,
}

fn both(run: impl Fn(IpAddr)) {
    [V4, V6].into_iter().for_each(run);
}

fn streams_carry_bytes() {
    const LEN: usize = 3 << 20;
    both(|ip| {
        let (_listener, mut client, mut server) = connection(ip);
        let writer = thread::spawn(move || {
            let bytes: Vec<u8> = (0..LEN).map(|i| (i * 7 + i / 251) as u8).collect();
            for piece in bytes.chunks(9999) {
                client.write_all(piece).unwrap();
            }
            client.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            answer
        });
        let mut got = Vec::new();
        server.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), LEN);
        assert!(got.iter().enumerate().all(|(i, byte)| *byte == (i * 7 + i / 251) as u8));
        server.write_all(b"thank you").unwrap();
        drop(server);
        assert_eq!(writer.join().unwrap(), "thank you");
    });
}

fn addresses_are_shown() {
    both(|ip| {
        let (listener, client, server) = connection(ip);
        let at = listener.local_addr().unwrap();
        assert_eq!(at.ip(), ip);
        assert_eq!((client.peer_addr().unwrap(), server.local_addr().unwrap()), (at, at));
        assert_eq!(client.local_addr().unwrap(), server.peer_addr().unwrap());
        let port = client.local_addr().unwrap().port();
        assert!((32768..=60999).contains(&port), "{port}");
        assert_eq!(listener.local_addr().unwrap().port(), at.port());
    });
    let fd = stream(V4);
    // SAFETY: the address is a local; a structure of zero bytes is valid.
    unsafe {
        let mut address: libc::sockaddr_in = std::mem::zeroed();
        let mut len = size_of_val(&address) as u32;
        assert_eq!(libc::getsockname(fd.raw(), (&raw mut address).cast(), &mut len), 0);
        assert_eq!((address.sin_family, address.sin_port, len), (libc::AF_INET as u16, 0, 16));
        assert_eq!(libc::getpeername(fd.raw(), (&raw mut address).cast(), &mut len), -1);
        assert_eq!(Errno::last(), Errno::ENOTCONN);
    }
}

fn one_listener_serves_both_families() {
    let listener = TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for ip in [V4, V6] {
        let client = TcpStream::connect((ip, port)).unwrap();
        let (server, peer) = listener.accept().unwrap();
        let mapped = match ip {
            IpAddr::V4(ip) => IpAddr::V6(ip.to_ipv6_mapped()),
            ip => ip,
        };
        assert_eq!((peer.ip(), peer.port()), (mapped, client.local_addr().unwrap().port()));
        assert_eq!(server.local_addr().unwrap().ip(), mapped);
    }
    // An address of IPv4 in the form of IPv6 leads there, too.
    let client = TcpStream::connect(SocketAddr::new("::ffff:127.0.0.1".parse().unwrap(), port)).unwrap();
    drop((listener.accept().unwrap(), client));
    // To all addresses means to oneself.
    let client = TcpStream::connect(("0.0.0.0", port)).unwrap();
    assert_eq!(client.peer_addr().unwrap().ip(), V4);
    // All of 127.0.0.0/8 are this machine's.
    assert_eq!(TcpStream::connect(("127.1.2.3", port)).unwrap().peer_addr().unwrap().port(), port);
}

fn half_closed() {
    let (_listener, mut client, mut server) = connection(V4);
    client.write_all(b"last").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let wanted = libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP;
    assert_eq!(poll(&server, wanted, 1000), wanted);
    let mut got = String::new();
    server.read_to_string(&mut got).unwrap();
    assert_eq!(got, "last");
    assert_eq!(client.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    server.write_all(b"answer").unwrap();
    let mut bytes = [0; 6];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"answer");
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut bytes).unwrap(), 0);
    assert_eq!(poll(&client, wanted, 1000) & (wanted | libc::POLLHUP), wanted | libc::POLLHUP);
}

fn end_of_process_ends_connection() {
    let listener = TcpListener::bind((V4, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    let child = fork(|| {
        let _client = TcpStream::connect(at).unwrap();
        loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        }
    });
    let (mut server, _) = listener.accept().unwrap();
    assert_eq!(poll(&server, libc::POLLIN, 0), 0);
    child.kill(libc::SIGKILL);
    assert_eq!(server.read(&mut [0; 8]).unwrap(), 0);
    child.wait();
}

fn forked_ends_are_one() {
    let (_listener, mut client, mut server) = connection(V4);
    let child = fork(|| {
        let mut byte = [0];
        server.try_clone().unwrap().read_exact(&mut byte).unwrap();
        server.try_clone().unwrap().write_all(&[byte[0] + 1]).unwrap();
    });
    client.write_all(&[41]).unwrap();
    let mut byte = [0];
    client.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [42]);
    child.ok();
    // The child's end is gone, ours is not.
    server.write_all(&[43]).unwrap();
    client.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [43]);
    client.write_all(&[44]).unwrap();
    server.read_exact(&mut byte).unwrap();
}

fn unread_bytes_reset() {
    let (_listener, mut client, server) = connection(V4);
    client.write_all(b"nobody reads this").unwrap();
    assert_eq!(poll(&server, libc::POLLIN, 1000), libc::POLLIN);
    drop(server);
    let events = poll(&client, libc::POLLIN, 1000);
    assert_eq!(events & (libc::POLLERR | libc::POLLHUP), libc::POLLERR | libc::POLLHUP, "{events:#x}");
    assert_eq!(client.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    // The error is told once.
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(client.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
}

fn writing_to_nobody() {
    let (_listener, mut client, mut server) = connection(V6);
    server.write_all(b"farewell").unwrap();
    drop(server);
    // The first one goes out, the answer to it is that nobody is there.
    client.write_all(b"anybody?").unwrap();
    assert_eq!(client.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    // What came before is there still.
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"farewell");
}

fn lingering_resets() {
    let (_listener, mut client, server) = connection(V4);
    roundtable_programs::socket::set_option(&server, libc::SO_LINGER, [1i32, 0]);
    drop(server);
    assert_eq!(client.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

fn nonblocking_connections() {
    let listener = TcpListener::bind((V4, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    let client = socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK).unwrap();
    assert_eq!(poll(&client, libc::POLLIN | libc::POLLOUT, 0), libc::POLLOUT | libc::POLLHUP);
    assert_eq!(inet::connect(&client, at), Err(Errno::EINPROGRESS));
    assert_eq!(poll(&client, libc::POLLOUT, 1000), libc::POLLOUT);
    assert_eq!(inet::get(&client, libc::SOL_SOCKET, libc::SO_ERROR), Ok(0));
    assert_eq!(inet::connect(&client, at), Ok(0));
    assert_eq!(inet::connect(&client, at), Err(Errno::EISCONN));
    listener.set_nonblocking(true).unwrap();
    listener.accept().unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(poll(&listener, libc::POLLIN | libc::POLLOUT, 0), 0);
    // To a port that nobody has.
    drop(listener);
    let client = socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK).unwrap();
    assert_eq!(inet::connect(&client, at), Err(Errno::EINPROGRESS));
    let events = poll(&client, libc::POLLOUT, 1000);
    assert_eq!(events, libc::POLLOUT | libc::POLLERR | libc::POLLHUP, "{events:#x}");
    assert_eq!(inet::get(&client, libc::SOL_SOCKET, libc::SO_ERROR), Ok(libc::ECONNREFUSED));
    assert_eq!(inet::get(&client, libc::SOL_SOCKET, libc::SO_ERROR), Ok(0));
}

fn a_full_backlog() {
    let fd = stream(V4);
    inet::bind(&fd, SocketAddr::new(V4, 0)).unwrap();
    inet::listen(&fd, 1).unwrap();
    let listener = inet::into_listener(fd);
    let at = listener.local_addr().unwrap();
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let client = socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK).unwrap();
            assert_eq!(inet::connect(&client, at), Err(Errno::EINPROGRESS));
            client
        })
        .collect();
    assert_eq!(poll(&clients[0], libc::POLLOUT, 1000), libc::POLLOUT);
    assert_eq!(poll(&clients[2], libc::POLLOUT, 0), 0, "there is no place for it");
    assert_eq!(inet::connect(&clients[2], at), Err(Errno::EALREADY));
    // All get in as places become free.
    let servers: Vec<_> = (0..3).map(|_| listener.accept().unwrap()).collect();
    for client in &clients {
        assert_eq!(poll(client, libc::POLLOUT, 10_000), libc::POLLOUT);
        assert_eq!(inet::get(client, libc::SOL_SOCKET, libc::SO_ERROR), Ok(0));
    }
    drop(servers);
}

fn closed_listeners() {
    let listener = TcpListener::bind((V4, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    let mut client = TcpStream::connect(at).unwrap();
    drop(listener);
    assert_eq!(client.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(TcpStream::connect(at).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    // A connection outlives its listener.
    let (listener, mut client, mut server) = connection(V4);
    drop(listener);
    client.write_all(b"still").unwrap();
    let mut bytes = [0; 5];
    server.read_exact(&mut bytes).unwrap();
    // Who waits for a connection hears of shutdown(2).
    let listener = TcpListener::bind((V4, 0)).unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| listener.accept().unwrap_err().raw_os_error());
        while !waiting.is_finished() {
            // Until it waits this is too early, and must be said again.
            let _ = inet::shutdown(&listener, libc::SHUT_RDWR);
            thread::yield_now();
        }
        assert_eq!(waiting.join().unwrap(), Some(libc::EINVAL));
    });
}

fn datagrams() {
    both(|ip| {
        let (a, b) = (UdpSocket::bind((ip, 0)).unwrap(), UdpSocket::bind((ip, 0)).unwrap());
        let (at_a, at_b) = (a.local_addr().unwrap(), b.local_addr().unwrap());
        let mut buffer = [0; 100];
        for text in ["one", "", "three"] {
            assert_eq!(a.send_to(text.as_bytes(), at_b).unwrap(), text.len());
        }
        for text in ["one", "", "three"] {
            assert_eq!(b.recv_from(&mut buffer).unwrap(), (text.len(), at_a));
            assert_eq!(&buffer[..text.len()], text.as_bytes());
        }
        // What does not fit is cut off.
        a.send_to(&[7; 50], at_b).unwrap();
        assert_eq!(b.recv_from(&mut buffer[..10]).unwrap(), (10, at_a));
        let largest = vec![1; 65507];
        assert_eq!(a.send_to(&largest, at_b).unwrap(), largest.len());
        let mut buffer = vec![0; 70000];
        assert_eq!(b.recv(&mut buffer).unwrap(), largest.len());
        assert_eq!(a.send_to(&[1; 65536], at_b).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
        b.set_nonblocking(true).unwrap();
        assert_eq!(b.recv(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(poll(&b, libc::POLLIN | libc::POLLOUT, 0), libc::POLLOUT);
        assert_eq!(a.send(b"where to").unwrap_err().raw_os_error(), Some(libc::EDESTADDRREQ));
    });
    // One that nobody gave an address to gets a port when it sends.
    let fd = socket(libc::AF_INET, libc::SOCK_DGRAM).unwrap();
    let receiver = UdpSocket::bind((V4, 0)).unwrap();
    inet::connect(&fd, receiver.local_addr().unwrap()).unwrap();
    fd.write(b"hello").unwrap();
    let (count, from) = receiver.recv_from(&mut [0; 10]).unwrap();
    assert!(count == 5 && from.ip() == V4 && from.port() != 0, "{count} {from}");
}

fn connected_datagrams() {
    let [a, b, c] = [0; 3].map(|_| UdpSocket::bind((V4, 0)).unwrap());
    let at_b = b.local_addr().unwrap();
    b.connect(a.local_addr().unwrap()).unwrap();
    c.send_to(b"a stranger", at_b).unwrap();
    a.send_to(b"a friend", at_b).unwrap();
    let mut buffer = [0; 20];
    let count = b.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..count], b"a friend");
    // Two sockets at one address: the one that is connected to the sender is closer.
    let at = {
        let probe = UdpSocket::bind((V4, 0)).unwrap();
        probe.local_addr().unwrap()
    };
    let sharing = || {
        let fd = socket(libc::AF_INET, libc::SOCK_DGRAM).unwrap();
        inet::set(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).unwrap();
        inet::bind(&fd, at).unwrap();
        fd
    };
    let (near, far) = (sharing(), sharing());
    inet::connect(&near, c.local_addr().unwrap()).unwrap();
    for _ in 0..3 {
        c.send_to(b"x", at).unwrap();
        a.send_to(b"yy", at).unwrap();
    }
    for _ in 0..3 {
        assert_eq!(near.read(&mut buffer), Ok(1));
        assert_eq!(far.read(&mut buffer), Ok(2));
    }
}

fn refused_datagrams() {
    let at = UdpSocket::bind((V4, 0)).unwrap().local_addr().unwrap();
    let socket = UdpSocket::bind((V4, 0)).unwrap();
    // Who is not connected does not hear of it.
    socket.send_to(b"x", at).unwrap();
    socket.send_to(b"x", at).unwrap();
    socket.connect(at).unwrap();
    socket.send(b"x").unwrap();
    assert_eq!(socket.recv(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    socket.send(b"x").unwrap();
    assert_eq!(socket.send(b"x").unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

fn peeking_and_waiting() {
    let (_listener, mut client, server) = connection(V4);
    client.write_all(b"abc").unwrap();
    let mut bytes = [0; 8];
    for _ in 0..2 {
        assert_eq!(server.peek(&mut bytes).unwrap(), 3);
    }
    let fd = std::os::fd::AsRawFd::as_raw_fd(&server);
    let receive = |bytes: &mut [u8], flags| {
        // SAFETY: the buffer is as long as is said.
        unsafe { libc::recv(fd, bytes.as_mut_ptr().cast(), bytes.len(), flags) }
    };
    thread::scope(|scope| {
        let whole = scope.spawn(move || {
            let mut bytes = [0; 6];
            (receive(&mut bytes, libc::MSG_WAITALL), bytes)
        });
        for byte in [b"d", b"e", b"f"] {
            client.write_all(byte).unwrap();
            thread::yield_now();
        }
        assert_eq!(whole.join().unwrap(), (6, *b"abcdef"));
    });
    assert_eq!((receive(&mut bytes, libc::MSG_DONTWAIT), Errno::last()), (-1, Errno::EAGAIN));
    client.write_all(b"ghi").unwrap();
    assert_eq!(receive(&mut bytes[..2], libc::MSG_TRUNC), 2);
    let mut count = 0i32;
    // SAFETY: the answer is a number.
    assert_eq!(unsafe { libc::ioctl(fd, libc::FIONREAD, &mut count) }, 0);
    assert_eq!((count, receive(&mut bytes, 0)), (1, 1));
    assert_eq!(bytes[0], b'i');
}

fn a_full_window() {
    let (_listener, mut client, mut server) = connection(V4);
    client.set_nonblocking(true).unwrap();
    let mut sent = 0;
    let error = loop {
        match client.write(&[5; 10_000]) {
            Ok(count) => sent += count,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert!(sent >= 100_000, "{sent}");
    assert_eq!(poll(&client, libc::POLLOUT, 0), 0);
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        server.read_to_end(&mut all).unwrap();
        all.len()
    });
    assert_eq!(poll(&client, libc::POLLOUT, 10_000), libc::POLLOUT);
    client.set_nonblocking(false).unwrap();
    client.write_all(&vec![6; 1 << 20]).unwrap();
    drop(client);
    assert_eq!(reader.join().unwrap(), sent + (1 << 20));
}

fn many_connections() {
    const ROUNDS: usize = 40;
    const AT_ONCE: usize = 50;
    let listener = TcpListener::bind((V4, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..ROUNDS * AT_ONCE {
                let (mut server, _) = listener.accept().unwrap();
                let mut byte = [0];
                server.read_exact(&mut byte).unwrap();
                server.write_all(&[!byte[0]]).unwrap();
            }
        });
        for round in 0..ROUNDS {
            let mut clients: Vec<_> = (0..AT_ONCE).map(|_| TcpStream::connect(at).unwrap()).collect();
            for client in &mut clients {
                client.write_all(&[round as u8]).unwrap();
            }
            for client in &mut clients {
                let mut answer = Vec::new();
                client.read_to_end(&mut answer).unwrap();
                assert_eq!(answer, [!(round as u8)]);
            }
        }
    });
}

fn shown_in_proc() {
    let (listener, client, _server) = connection(V4);
    let udp = UdpSocket::bind("[::1]:0").unwrap();
    let table = |name: &str| std::fs::read_to_string(format!("/proc/net/{name}")).unwrap();
    let tcp = table("tcp");
    let rows: Vec<Vec<&str>> = tcp.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    let port = |at: SocketAddr| format!("0100007F:{:04X}", at.port());
    let (at, own) = (port(listener.local_addr().unwrap()), port(client.local_addr().unwrap()));
    let state = |local: &str, remote: &str| {
        rows.iter().find(|row| row[1] == local && row[2] == remote).map(|row| row[3].to_string())
    };
    assert_eq!(state(&at, "00000000:0000").as_deref(), Some("0A"), "{tcp}");
    assert_eq!(state(&own, &at).as_deref(), Some("01"), "{tcp}");
    assert_eq!(state(&at, &own).as_deref(), Some("01"), "{tcp}");
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&listener));
    let link = std::fs::read_link(link).unwrap().into_os_string().into_string().unwrap();
    let inode = link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')).unwrap();
    assert!(rows.iter().any(|row| row[1] == at && row[9] == inode), "{inode}\n{tcp}");
    let udp6 = table("udp6");
    let name = format!("00000000000000000000000001000000:{:04X}", udp.local_addr().unwrap().port());
    assert!(udp6.contains(&name), "{name}\n{udp6}");
    assert!(table("dev").lines().any(|line| line.trim_start().starts_with("lo:")));
    assert!(table("if_inet6").ends_with("lo\n"));
}

fn interfaces() {
    let fd = socket(libc::AF_INET, libc::SOCK_DGRAM).unwrap();
    // SAFETY: structures of zero bytes are valid, live through the calls, and are as long as is said; the kernel
    // fills the members that are read.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[..2].copy_from_slice(&[b'l' as libc::c_char, b'o' as libc::c_char]);
        let ask = |request: &mut libc::ifreq, what: libc::c_ulong| libc::ioctl(fd.raw(), what as _, request);
        assert_eq!(ask(&mut request, libc::SIOCGIFFLAGS as _), 0);
        let flags = i32::from(request.ifr_ifru.ifru_flags);
        assert_eq!(flags & (libc::IFF_UP | libc::IFF_LOOPBACK), libc::IFF_UP | libc::IFF_LOOPBACK);
        assert_eq!(ask(&mut request, libc::SIOCGIFADDR as _), 0);
        assert_eq!(request.ifr_ifru.ifru_addr.sa_data[2..6], [127, 0, 0, 1]);
        assert_eq!(ask(&mut request, libc::SIOCGIFINDEX as _), 0);
        assert_eq!(request.ifr_ifru.ifru_ifindex, 1);
        request.ifr_name[0] = b'x' as libc::c_char;
        assert_eq!((ask(&mut request, libc::SIOCGIFFLAGS as _), Errno::last()), (-1, Errno::ENODEV));
        let mut requests: [libc::ifreq; 4] = std::mem::zeroed();
        let mut all = libc::ifconf {
            ifc_len: size_of_val(&requests) as i32,
            ifc_ifcu: libc::__c_anonymous_ifc_ifcu { ifcu_req: requests.as_mut_ptr() },
        };
        assert_eq!(libc::ioctl(fd.raw(), libc::SIOCGIFCONF as _, &mut all), 0);
        assert!(all.ifc_len as usize >= size_of::<libc::ifreq>());
        assert_eq!(requests[0].ifr_name[..3], [b'l' as libc::c_char, b'o' as libc::c_char, 0]);
    }
}

/// By netlink, as the C library asks.
fn names_of_interfaces() {
    let mut found = Vec::new();
    // SAFETY: the list is walked as the system gives it, and freed once.
    unsafe {
        let mut list = std::ptr::null_mut();
        assert_eq!(libc::getifaddrs(&mut list), 0, "{}", Errno::last());
        let mut at = list;
        while !at.is_null() {
            let name = std::ffi::CStr::from_ptr((*at).ifa_name).to_str().unwrap();
            let family = if (*at).ifa_addr.is_null() { 0 } else { (*(*at).ifa_addr).sa_family };
            found.push((name.to_string(), i32::from(family), (*at).ifa_flags & libc::IFF_UP as u32));
            at = (*at).ifa_next;
        }
        libc::freeifaddrs(list);
    }
    for family in [libc::AF_INET, libc::AF_INET6, libc::AF_PACKET] {
        assert!(found.contains(&("lo".into(), family, libc::IFF_UP as u32)), "{family} {found:?}");
    }
    // What nobody answers is refused, not left open.
    let fd = socket(libc::AF_NETLINK, libc::SOCK_RAW).unwrap();
    let mut request = [0u8; 32];
    request[..4].copy_from_slice(&32u32.to_ne_bytes());
    request[4..6].copy_from_slice(&18u16.to_ne_bytes());
    request[6..8].copy_from_slice(&1u16.to_ne_bytes());
    request[20..24].copy_from_slice(&77i32.to_ne_bytes());
    assert_eq!(fd.write(&request), Ok(32));
    let mut answer = [0; 256];
    assert!(fd.read(&mut answer).unwrap() >= 36);
    assert_eq!(answer[4..6], 2u16.to_ne_bytes());
    assert_eq!(answer[16..20], (-libc::ENODEV).to_ne_bytes());
}

/// By its name, which comes behind what else is asked, as `ip link show lo` does it; and by a socket of another family.
fn interface_by_name() {
    let fd = socket(libc::AF_NETLINK, libc::SOCK_RAW).unwrap();
    let ask = |name: &[u8; 8]| {
        let mut request = [0u8; 52];
        request[..4].copy_from_slice(&52u32.to_ne_bytes());
        request[4..6].copy_from_slice(&18u16.to_ne_bytes());
        request[6..8].copy_from_slice(&1u16.to_ne_bytes());
        // IFLA_EXT_MASK, and IFLA_IFNAME.
        request[32..36].copy_from_slice(&[8, 0, 29, 0]);
        request[36..40].copy_from_slice(&9u32.to_ne_bytes());
        request[40..44].copy_from_slice(&[12, 0, 3, 0]);
        request[44..].copy_from_slice(name);
        assert_eq!(fd.write(&request), Ok(52));
        let mut answer = [0; 8192];
        assert!(fd.read(&mut answer).unwrap() >= 36);
        (u16::from_ne_bytes([answer[4], answer[5]]), i32::from_ne_bytes(answer[16..20].try_into().unwrap()))
    };
    assert_eq!(ask(b"lo\0\0\0\0\0\0").0, 16);
    assert_eq!(ask(b"none\0\0\0\0"), (2, -libc::ENODEV));
    let local = socket(libc::AF_UNIX, libc::SOCK_DGRAM).unwrap();
    // SAFETY: the structure is a local of zero bytes, which is valid.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        assert_eq!(libc::ioctl(local.raw(), libc::SIOCGIFINDEX, &mut request), 0, "{}", Errno::last());
        assert_eq!(request.ifr_ifru.ifru_ifindex, 1);
        assert_eq!(libc::ioctl(local.raw(), libc::SIOCGIFADDR, &mut request), -1);
        assert_eq!(Errno::last(), Errno::ENOTTY);
    }
}
