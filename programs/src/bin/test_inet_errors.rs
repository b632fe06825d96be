//! Internet sockets: who gets which port, options, and what is refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use roundtable_programs::child::in_child;
use roundtable_programs::file::Fd;
use roundtable_programs::inet::{self, V4, V6, connection, socket, stream};
use roundtable_programs::sys::check;
use roundtable_programs::{Errno, tests};

tests! {
    kinds_of_sockets, a_port_has_one_owner, reused_addresses, shared_ports, ports_of_both_families,
    privileged_ports, addresses_of_others, states, options_are_read_back, buffers, descriptors_in_messages,
    ports_come_back: 120,
}

const ANY_V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ANY_V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

fn kinds_of_sockets() {
    let errno = |family: i32, kind: i32, protocol: i32| {
        // SAFETY: takes integers.
        check(unsafe { libc::socket(family, kind, protocol) }).map(|fd| drop(Fd::own(fd)))
    };
    for family in [libc::AF_INET, libc::AF_INET6] {
        assert_eq!(errno(family, libc::SOCK_STREAM, libc::IPPROTO_TCP), Ok(()));
        assert_eq!(errno(family, libc::SOCK_DGRAM, libc::IPPROTO_UDP), Ok(()));
        assert_eq!(errno(family, libc::SOCK_STREAM, libc::IPPROTO_UDP), Err(Errno::EPROTONOSUPPORT));
        assert_eq!(errno(family, libc::SOCK_RAW, 0), Err(Errno::EPROTONOSUPPORT));
        assert_eq!(errno(family, 9, 0), Err(Errno::ESOCKTNOSUPPORT));
        let mut ends = [0; 2];
        // SAFETY: room for two descriptors.
        let pair = unsafe { libc::socketpair(family, libc::SOCK_STREAM, 0, ends.as_mut_ptr()) };
        assert_eq!((pair, Errno::last()), (-1, Errno::EOPNOTSUPP));
    }
    assert_eq!(errno(12345, libc::SOCK_STREAM, 0), Err(Errno::EAFNOSUPPORT));
}

/// A port of a listener that nobody has any more.
fn free_port() -> u16 {
    TcpListener::bind((V4, 0)).unwrap().local_addr().unwrap().port()
}

fn bound(ip: IpAddr, port: u16, options: &[i32]) -> Result<Fd, Errno> {
    let fd = stream(ip);
    for option in options {
        inet::set(&fd, libc::SOL_SOCKET, *option, 1).unwrap();
    }
    inet::bind(&fd, SocketAddr::new(ip, port)).map(|_| fd)
}

fn a_port_has_one_owner() {
    let port = free_port();
    let first = bound(V4, port, &[]).unwrap();
    assert_eq!(bound(V4, port, &[]).unwrap_err(), Errno::EADDRINUSE);
    assert_eq!(bound(ANY_V4, port, &[]).unwrap_err(), Errno::EADDRINUSE);
    // Another address, and another protocol, have ports of their own.
    let other = bound("127.0.0.2".parse().unwrap(), port, &[]).unwrap();
    let _udp = UdpSocket::bind((V4, port)).unwrap();
    assert_eq!(inet::bind(&first, SocketAddr::new(V4, 0)), Err(Errno::EINVAL), "it has one already");
    drop(first);
    assert_eq!(bound(ANY_V4, port, &[]).unwrap_err(), Errno::EADDRINUSE);
    drop(other);
    let all = bound(ANY_V4, port, &[]).unwrap();
    assert_eq!(bound(V4, port, &[]).unwrap_err(), Errno::EADDRINUSE);
    drop(all);
}

fn reused_addresses() {
    let reuse = [libc::SO_REUSEADDR];
    let port = free_port();
    // Who does not listen lets others in who say the same.
    let (a, b) = (bound(V4, port, &reuse).unwrap(), bound(V4, port, &reuse).unwrap());
    assert_eq!(bound(V4, port, &[]).unwrap_err(), Errno::EADDRINUSE);
    inet::listen(&a, 1).unwrap();
    assert_eq!(inet::listen(&b, 1), Err(Errno::EADDRINUSE));
    assert_eq!(bound(V4, port, &reuse).unwrap_err(), Errno::EADDRINUSE);
    drop(b);
    // The connections of a server that is gone do not keep its successor away, if both say so.
    let listener = inet::into_listener(a);
    let client = TcpStream::connect((V4, port)).unwrap();
    let (server, _) = listener.accept().unwrap();
    drop(listener);
    assert_eq!(bound(V4, port, &[]).unwrap_err(), Errno::EADDRINUSE);
    let next = bound(V4, port, &reuse).unwrap();
    inet::listen(&next, 1).unwrap();
    drop((client, server));
}

fn shared_ports() {
    let share = [libc::SO_REUSEPORT];
    let port = free_port();
    let fds: Vec<_> = (0..3).map(|_| bound(V4, port, &share).unwrap()).collect();
    assert_eq!(bound(V4, port, &[]).unwrap_err(), Errno::EADDRINUSE);
    let listeners: Vec<_> = fds
        .into_iter()
        .map(|fd| {
            inet::listen(&fd, 100).unwrap();
            let listener = inet::into_listener(fd);
            listener.set_nonblocking(true).unwrap();
            listener
        })
        .collect();
    let clients: Vec<_> = (0..60).map(|_| TcpStream::connect((V4, port)).unwrap()).collect();
    let accepted: Vec<_> =
        listeners.iter().map(|listener| std::iter::from_fn(|| listener.accept().ok()).count()).collect();
    assert_eq!(accepted.iter().sum::<usize>(), clients.len(), "{accepted:?}");
    assert!(accepted.iter().all(|count| *count > 0), "{accepted:?}");
}

fn ports_of_both_families() {
    let port = free_port();
    let dual = bound(ANY_V6, port, &[]).unwrap();
    for ip in [V4, ANY_V4, V6, ANY_V6] {
        assert_eq!(bound(ip, port, &[]).unwrap_err(), Errno::EADDRINUSE, "{ip}");
    }
    drop(dual);
    let only = |port| {
        let fd = stream(ANY_V6);
        inet::set(&fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1).unwrap();
        inet::bind(&fd, SocketAddr::new(ANY_V6, port)).map(|_| fd)
    };
    let v6 = only(port).unwrap();
    let v4 = bound(ANY_V4, port, &[]).unwrap();
    assert_eq!(inet::get(&v6, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY), Ok(1));
    assert_eq!(inet::set(&v6, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0), Err(Errno::EINVAL));
    inet::listen(&v6, 5).unwrap();
    assert_eq!(TcpStream::connect((V4, port)).unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
    assert!(TcpStream::connect((V6, port)).is_ok());
    drop((v4, v6));
    let v4 = bound(V4, port, &[]).unwrap();
    assert_eq!(bound(ANY_V6, port, &[]).unwrap_err(), Errno::EADDRINUSE);
    assert!(only(port).is_ok());
    drop(v4);
}

fn privileged_ports() {
    in_child(|| {
        // SAFETY: takes integers.
        assert_eq!(unsafe { libc::setuid(1234) }, 0);
        assert_eq!(bound(V4, 80, &[]).unwrap_err(), Errno::EACCES);
        assert!(bound(V4, 8080, &[libc::SO_REUSEADDR]).is_ok());
        let raw = socket(libc::AF_INET, libc::SOCK_RAW).unwrap_err();
        assert_eq!(raw, Errno::EPROTONOSUPPORT);
    });
    assert!(bound(V4, 81, &[libc::SO_REUSEADDR]).is_ok());
}

fn addresses_of_others() {
    let far: SocketAddr = "192.0.2.1:80".parse().unwrap();
    assert_eq!(inet::bind(&stream(V4), far), Err(Errno::EADDRNOTAVAIL));
    assert_eq!(inet::connect(&stream(V4), far), Err(Errno::ENETUNREACH));
    assert_eq!(inet::connect(&stream(V6), "[2001:db8::1]:80".parse().unwrap()), Err(Errno::ENETUNREACH));
    let udp = UdpSocket::bind((ANY_V4, 0)).unwrap();
    assert_eq!(udp.send_to(b"x", far).unwrap_err().raw_os_error(), Some(libc::ENETUNREACH));
    assert_eq!(inet::connect(&stream(V4), SocketAddr::new(V6, 80)), Err(Errno::EAFNOSUPPORT));
    assert_eq!(inet::bind(&stream(V4), SocketAddr::new(V6, 0)), Err(Errno::EAFNOSUPPORT));
    let fd = stream(V4);
    // SAFETY: the address is longer than is said.
    let short = unsafe { libc::connect(fd.raw(), [0u8; 16].as_ptr().cast(), 1) };
    assert_eq!((short, Errno::last()), (-1, Errno::EINVAL));
}

fn states() {
    let fd = stream(V4);
    let mut byte = [0];
    assert_eq!(fd.read(&mut byte), Err(Errno::ENOTCONN));
    assert_eq!(inet::shutdown(&fd, libc::SHUT_WR), Err(Errno::ENOTCONN));
    // SAFETY: takes integers and no address.
    let accepted = unsafe { libc::accept(fd.raw(), std::ptr::null_mut(), std::ptr::null_mut()) };
    assert_eq!((accepted, Errno::last()), (-1, Errno::EINVAL));
    // A listener without an address gets a port.
    inet::listen(&fd, 1).unwrap();
    assert_eq!(inet::get(&fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN), Ok(1));
    let listener = inet::into_listener(fd);
    let at = listener.local_addr().unwrap();
    assert!(at.port() != 0 && at.ip() == ANY_V4, "{at}");
    assert_eq!(inet::connect(&listener, at), Err(Errno::EISCONN));
    let (_listener, client, _server) = connection(V4);
    assert_eq!(inet::connect(&client, at), Err(Errno::EISCONN));
    assert_eq!(inet::listen(&client, 1), Err(Errno::EINVAL));
    let udp = socket(libc::AF_INET, libc::SOCK_DGRAM).unwrap();
    assert_eq!(inet::listen(&udp, 1), Err(Errno::EOPNOTSUPP));
    assert_eq!(inet::shutdown(&udp, libc::SHUT_RD), Err(Errno::ENOTCONN));
    // A second attempt after a refusal is as good as the first.
    let fd = stream(V4);
    let nobody = SocketAddr::new(V4, free_port());
    assert_eq!(inet::connect(&fd, nobody), Err(Errno::ECONNREFUSED));
    assert_eq!(inet::connect(&fd, nobody), Err(Errno::ECONNREFUSED));
    assert_eq!(inet::connect(&fd, at), Ok(0));
}

fn options_are_read_back() {
    let fd = stream(V6);
    let (tcp, socket) = (libc::IPPROTO_TCP, libc::SOL_SOCKET);
    for (level, name, value) in [
        (tcp, libc::TCP_NODELAY, 1),
        (tcp, libc::TCP_KEEPIDLE, 60),
        (tcp, libc::TCP_KEEPINTVL, 10),
        (tcp, libc::TCP_KEEPCNT, 3),
        (tcp, libc::TCP_USER_TIMEOUT, 5000),
        (socket, libc::SO_KEEPALIVE, 1),
        (socket, libc::SO_REUSEADDR, 1),
        (socket, libc::SO_REUSEPORT, 1),
        (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1),
        (libc::IPPROTO_IP, libc::IP_TOS, 8),
        (libc::IPPROTO_IP, libc::IP_TTL, 7),
    ] {
        assert_eq!(inet::get(&fd, level, name).map(|old| old == value), Ok(false), "{level} {name}");
        assert_eq!(inet::set(&fd, level, name, value), Ok(0), "{level} {name}");
        assert_eq!(inet::get(&fd, level, name), Ok(value), "{level} {name}");
    }
    assert_eq!(inet::get(&fd, socket, libc::SO_TYPE), Ok(libc::SOCK_STREAM));
    assert_eq!(inet::get(&fd, socket, libc::SO_DOMAIN), Ok(libc::AF_INET6));
    assert_eq!(inet::get(&fd, socket, libc::SO_PROTOCOL), Ok(libc::IPPROTO_TCP));
    assert_eq!(inet::set(&fd, tcp, 9999, 1), Err(Errno::ENOPROTOOPT));
    assert_eq!(inet::set(&fd, tcp, libc::TCP_KEEPCNT, 1000), Err(Errno::EINVAL));
    // What is accepted has its listener's options.
    let listener = TcpListener::bind((V4, 0)).unwrap();
    inet::set(&listener, tcp, libc::TCP_NODELAY, 1).unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    assert!(listener.accept().unwrap().0.nodelay().unwrap());
}

fn buffers() {
    let fd = stream(V4);
    for name in [libc::SO_SNDBUF, libc::SO_RCVBUF] {
        inet::set(&fd, libc::SOL_SOCKET, name, 50_000).unwrap();
        assert_eq!(inet::get(&fd, libc::SOL_SOCKET, name), Ok(100_000));
        inet::set(&fd, libc::SOL_SOCKET, name, 0).unwrap();
        assert!(inet::get(&fd, libc::SOL_SOCKET, name).unwrap() > 0);
    }
    // What there is no room for is lost, not kept.
    let receiver = UdpSocket::bind((V4, 0)).unwrap();
    let sender = UdpSocket::bind((V4, 0)).unwrap();
    receiver.set_nonblocking(true).unwrap();
    for _ in 0..2000 {
        assert_eq!(sender.send_to(&[0; 1000], receiver.local_addr().unwrap()).unwrap(), 1000);
    }
    let mut buffer = [0; 1000];
    let count = std::iter::from_fn(|| receiver.recv(&mut buffer).ok()).count();
    assert!((20..1000).contains(&count), "{count}");
}

fn descriptors_in_messages() {
    let (_listener, client, _server) = connection(V4);
    let fd = Fd::own(std::os::fd::IntoRawFd::into_raw_fd(client) as usize);
    let sent = roundtable_programs::socket::send_files(&fd, b"x", &[0]);
    // They are for the Unix domain, and nobody looks at them here.
    assert_eq!(sent, Ok(1));
}

fn ports_come_back() {
    // More of them than there are ports, one after the other.
    for _ in 0..300 {
        let all: Vec<_> = (0..100).map(|_| bound(V4, 0, &[]).unwrap()).collect();
        let mut ports: Vec<_> = all
            .into_iter()
            .map(|fd| {
                inet::listen(&fd, 1).unwrap();
                inet::into_listener(fd).local_addr().unwrap().port()
            })
            .collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 100);
    }
}
