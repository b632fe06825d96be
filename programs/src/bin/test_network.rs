//! The network card: connections and datagrams between the guest and the host.
//!
//! The host's end is the tests' own server; the kernel's parameter `peer=TCP:UDP` tells its ports. See `xtask/src/test/peer.rs`.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use roundtable_programs::tests;

tests! {
    card_is_shown, bytes_go_out_and_back: 100, much_comes_in: 100, a_slow_reader_loses_nothing: 100,
    the_host_connects: 100, many_connect_at_once: 120, one_after_the_other: 120, beside_ends: 120, refused, reset_by_the_host,
    half_closed: 60, closed_with_data_unread, nonblocking_connect, datagrams_go_out_and_back,
    long_datagrams_are_refused_or_cut, datagrams_come_in: 100, a_flood_stops_no_cpu: 120,
    own_address_leads_back, loopback_stays_inside, nobody_there: 100, an_attempt_for_another_place,
    a_slow_reader_gets_the_end: 100, one_user_does_not_take_all: 120,
}

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const PORT: u16 = 7000;

/// The ports of the host's server, of TCP and UDP.
fn peer() -> (SocketAddr, SocketAddr) {
    let line = fs::read_to_string("/proc/cmdline").unwrap();
    let ports = line.split_whitespace().find_map(|word| word.strip_prefix("peer=")).expect("peer=TCP:UDP");
    let (tcp, udp) = ports.split_once(':').unwrap();
    ((HOST, tcp.parse::<u16>().unwrap()).into(), (HOST, udp.parse::<u16>().unwrap()).into())
}

/// A connection with the server that has been told what to do.
fn ask(what: &str) -> TcpStream {
    let mut stream = TcpStream::connect(peer().0).unwrap();
    stream.write_all(format!("{what}\n").as_bytes()).unwrap();
    stream
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251 + seed) as u8).collect()
}

fn line_of(stream: &TcpStream) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.trim_end().to_string()
}

fn card_is_shown() {
    let dev = fs::read_to_string("/proc/net/dev").unwrap();
    let counters = |text: &str| -> Vec<u64> {
        let line = text.lines().find_map(|line| line.trim_start().strip_prefix("eth0:")).expect("eth0");
        line.split_whitespace().map(|word| word.parse().unwrap()).collect()
    };
    let before = counters(&dev);
    let mut stream = ask("send 10000");
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), 10_000);
    let after = counters(&fs::read_to_string("/proc/net/dev").unwrap());
    assert!(after[0] >= before[0] + 10_000 && after[1] > before[1] + 6, "{before:?} {after:?}");
    assert!(after[8] > before[8] && after[9] > before[9], "{before:?} {after:?}");
    let route = fs::read_to_string("/proc/net/route").unwrap();
    assert!(route.contains("eth0\t00000000\t0202000A\t0003\t"), "{route}");
    assert!(route.contains("eth0\t0002000A\t00000000\t0001\t"), "{route}");
    let mut found = Vec::new();
    // SAFETY: the list is walked as the system gives it, and freed once.
    unsafe {
        let mut list = std::ptr::null_mut();
        assert_eq!(libc::getifaddrs(&mut list), 0);
        let mut at = list;
        while !at.is_null() {
            let name = std::ffi::CStr::from_ptr((*at).ifa_name).to_str().unwrap();
            let address = (*at).ifa_addr;
            if name == "eth0" && !address.is_null() && i32::from((*address).sa_family) == libc::AF_INET {
                let address = *address.cast::<libc::sockaddr_in>();
                let mask = *(*at).ifa_netmask.cast::<libc::sockaddr_in>();
                found.push((address.sin_addr.s_addr.to_ne_bytes(), mask.sin_addr.s_addr.to_ne_bytes()));
            }
            at = (*at).ifa_next;
        }
        libc::freeifaddrs(list);
    }
    assert_eq!(found, [(GUEST.octets(), [255, 255, 255, 0])]);
}

fn bytes_go_out_and_back() {
    const LEN: usize = 1 << 20;
    let stream = ask("echo");
    assert_eq!(stream.local_addr().unwrap().ip(), GUEST);
    let mut writer = stream.try_clone().unwrap();
    let sender = thread::spawn(move || {
        for piece in pattern(LEN, 1).chunks(9999) {
            writer.write_all(piece).unwrap();
        }
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    (&stream).read_to_end(&mut got).unwrap();
    sender.join().unwrap();
    assert!(got == pattern(LEN, 1), "{} bytes", got.len());
}

fn much_comes_in() {
    const LEN: usize = 4 << 20;
    let mut got = Vec::new();
    ask(&format!("send {LEN}")).read_to_end(&mut got).unwrap();
    assert!(got == pattern(LEN, 0), "{} bytes", got.len());
}

/// The queue is full for a while, and then all arrives.
fn a_slow_reader_loses_nothing() {
    const LEN: usize = 2 << 20;
    let mut stream = ask(&format!("send {LEN}"));
    let mut got = Vec::new();
    let mut piece = vec![0; 50_000];
    loop {
        // Less than what comes: the queue fills between two reads.
        thread::sleep(Duration::from_millis(2));
        match stream.read(&mut piece).unwrap() {
            0 => break,
            len => got.extend_from_slice(&piece[..len]),
        }
    }
    assert!(got == pattern(LEN, 0), "{} bytes", got.len());
}

/// Greets, and sends back what comes, on so many connections, each with a thread of its own.
fn serve(listener: &TcpListener, count: usize) {
    let servers: Vec<_> = (0..count)
        .map(|_| {
            let (mut stream, from) = listener.accept().unwrap();
            assert_eq!((from.ip(), stream.local_addr().unwrap().ip()), (HOST.into(), GUEST.into()));
            stream.write_all(b"go\n").unwrap();
            thread::spawn(move || {
                let mut bytes = vec![0; 1 << 16];
                loop {
                    match stream.read(&mut bytes).unwrap() {
                        0 => break,
                        len => stream.write_all(&bytes[..len]).unwrap(),
                    }
                }
            })
        })
        .collect();
    servers.into_iter().for_each(|server| server.join().unwrap());
}

fn the_host_connects() {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
    let asked = ask("call 1 300000");
    serve(&listener, 1);
    assert_eq!(line_of(&asked), "ok");
}

fn many_connect_at_once() {
    // One that serves both families, as most servers do.
    let listener = TcpListener::bind(("::", PORT)).unwrap();
    let asked = ask("call 60 20000");
    let servers: Vec<_> = (0..60)
        .map(|_| {
            let (mut stream, from) = listener.accept().unwrap();
            assert_eq!(from.ip(), HOST.to_ipv6_mapped());
            stream.write_all(b"go\n").unwrap();
            thread::spawn(move || {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).unwrap();
                stream.write_all(&bytes).unwrap();
            })
        })
        .collect();
    servers.into_iter().for_each(|server| server.join().unwrap());
    assert_eq!(line_of(&asked), "ok");
}

/// What one connection leaves behind does not stand in the way of the next.
fn one_after_the_other() {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
    for _ in 0..40 {
        let asked = ask("call 1 100");
        serve(&listener, 1);
        assert_eq!(line_of(&asked), "ok");
    }
}

/// A connection that has lost its socket here and waits for the other end keeps its port: nobody gets it for one of the same name.
fn beside_ends() {
    // So many that one of the later ones' random ports would be among them, all but for one run of a thousand.
    for _ in 0..200 {
        drop(ask("keep"));
    }
    for i in 0..1000 {
        let mut text = Vec::new();
        match TcpStream::connect(peer().0) {
            Ok(mut stream) => {
                stream.write_all(b"send 5\n").unwrap();
                stream.read_to_end(&mut text).unwrap();
            }
            Err(error) => panic!("connection {i}: {error}"),
        }
        assert_eq!(text, pattern(5, 0));
    }
}

fn refused() {
    // The port of the host's UDP socket is nobody's of TCP, or somebody's who is not ours; port 1 is nobody's.
    let error = TcpStream::connect((HOST, 1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

fn reset_by_the_host() {
    let mut stream = ask("reset");
    let error = stream.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    // It was told once; now it is an end.
    assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
    let error = stream.write(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
}

/// After our end was told, what comes from the host still arrives.
fn half_closed() {
    // The end may come just when the card's thread looks what there is to send.
    for _ in 0..200 {
        let mut stream = ask("echo");
        stream.write_all(b"before").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "before");
        assert_eq!(stream.write(b"after").unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}

/// The host's end learns that nobody reads: it cannot send all, and the next connection works.
fn closed_with_data_unread() {
    for _ in 0..5 {
        let mut stream = ask("send 3000000");
        stream.read_exact(&mut [0; 1000]).unwrap();
        drop(stream);
    }
    let mut text = Vec::new();
    ask("send 5").read_to_end(&mut text).unwrap();
    assert_eq!(text, pattern(5, 0));
}

fn nonblocking_connect() {
    use roundtable_programs::inet;
    let fd = inet::stream(GUEST.into());
    // SAFETY: takes integers.
    unsafe { assert_eq!(libc::fcntl(fd.raw(), libc::F_SETFL, libc::O_NONBLOCK), 0) };
    assert_eq!(inet::connect(&fd, peer().0), Err(roundtable_programs::Errno::EINPROGRESS));
    let mut entry = libc::pollfd { fd: fd.raw(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one entry, which lives through the call.
    assert_eq!(unsafe { libc::poll(&mut entry, 1, 30_000) }, 1);
    assert_eq!(entry.revents, libc::POLLOUT);
    assert_eq!(inet::connect(&fd, peer().0), Ok(0));
    assert_eq!(inet::connect(&fd, peer().0), Err(roundtable_programs::Errno::EISCONN));
}

/// Sends until the answer comes: the line may lose one.
fn exchange(socket: &UdpSocket, to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut room = vec![0; 65536];
    for _ in 0..20 {
        socket.send_to(bytes, to).unwrap();
        if let Ok((len, from)) = socket.recv_from(&mut room) {
            assert_eq!(from, to);
            return room[..len].to_vec();
        }
    }
    panic!("no answer of {to}");
}

fn datagrams_go_out_and_back() {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    for len in [0, 1, 100, 1400, 1472] {
        assert_eq!(exchange(&socket, peer().1, &pattern(len, len)), pattern(len, len), "{len}");
    }
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(peer().1).unwrap();
    assert_eq!(socket.local_addr().unwrap().ip(), GUEST);
    assert_eq!(socket.peer_addr().unwrap(), peer().1);
}

/// What does not fit into a frame is cut into several, on Linux; it is never sent in part.
fn long_datagrams_are_refused_or_cut() {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    match socket.send_to(&[7; 1473], peer().1) {
        Ok(len) => assert_eq!(len, 1473),
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE)),
    }
    // Another socket, to which what Linux has cut does not come back.
    let other = UdpSocket::bind("0.0.0.0:0").unwrap();
    assert_eq!(exchange(&other, peer().1, b"behind it"), b"behind it");
}

fn datagrams_come_in() {
    let socket = UdpSocket::bind(("0.0.0.0", PORT)).unwrap();
    let asked = ask("datagrams 2000");
    let mut bytes = [0; 2000];
    // Some are lost; those that come are whole.
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut count = 0;
    while count < 20 {
        let (len, from) = socket.recv_from(&mut bytes).unwrap();
        assert_eq!((len, from.ip()), (1000, HOST.into()));
        let first = usize::from(bytes[0]);
        assert!(bytes[..1000] == pattern(1000, first));
        count += 1;
    }
    let mut text = String::new();
    { &asked }.read_to_string(&mut text).unwrap();
    assert_eq!(text, "begun\ndone\n");
}

/// While datagrams come as fast as they go, each CPU does work of its own.
fn a_flood_stops_no_cpu() {
    // Nobody reads them: what has no room is thrown away.
    let _socket = UdpSocket::bind(("0.0.0.0", PORT)).unwrap();
    // SAFETY: takes an integer.
    let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) } as usize;
    let over = Arc::new(AtomicBool::new(false));
    let counts: Arc<Vec<AtomicU64>> = Arc::new((0..cpus).map(|_| AtomicU64::new(0)).collect());
    let workers: Vec<_> = (0..cpus)
        .map(|cpu| {
            let (over, counts) = (over.clone(), counts.clone());
            thread::spawn(move || {
                // SAFETY: the set is a local of zero bytes, which is valid.
                unsafe {
                    let mut set: libc::cpu_set_t = std::mem::zeroed();
                    libc::CPU_SET(cpu, &mut set);
                    assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &set), 0);
                }
                while !over.load(Ordering::SeqCst) {
                    counts[cpu].fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let read = || -> Vec<u64> { counts.iter().map(|count| count.load(Ordering::SeqCst)).collect() };
    let asked = ask("datagrams 20000");
    let mut reader = BufReader::new(&asked);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "begun\n");
    let before = read();
    line.clear();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "done\n");
    let after = read();
    over.store(true, Ordering::SeqCst);
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    assert!(before.iter().zip(&after).all(|(before, after)| after > before), "{before:?} {after:?}");
}

fn own_address_leads_back() {
    let listener = TcpListener::bind((GUEST, 0)).unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, from) = listener.accept().unwrap();
    assert_eq!((from.ip(), client.local_addr().unwrap().ip()), (GUEST.into(), GUEST.into()));
    client.write_all(b"round").unwrap();
    let mut bytes = [0; 5];
    server.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"round");
}

/// A socket of the loopback's address reaches nobody else, and nobody else reaches it.
fn loopback_stays_inside() {
    use roundtable_programs::inet;
    let fd = inet::stream(GUEST.into());
    inet::bind(&fd, "127.0.0.1:0".parse().unwrap()).unwrap();
    assert_eq!(inet::connect(&fd, peer().0), Err(roundtable_programs::Errno::EINVAL));
    let _listener = TcpListener::bind(("127.0.0.1", PORT)).unwrap();
    // QEMU's end takes the connection, and gives it up when the guest refuses.
    assert_ne!(line_of(&ask("call 1 100")), "ok");
}

/// An address on the line that nobody has.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 99);

/// Who sends to a machine that is not there holds up nobody else.
fn nobody_there() {
    let lost = UdpSocket::bind("0.0.0.0:0").unwrap();
    lost.set_nonblocking(true).unwrap();
    let waits = thread::spawn(|| TcpStream::connect((NOBODY, 9)).unwrap_err().kind());
    for round in 0..4 {
        // More than a queue of packets holds; whether each is taken does not matter.
        for _ in 0..500 {
            let _ = lost.send_to(&[0; 1000], (NOBODY, 9));
        }
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        assert_eq!(exchange(&socket, peer().1, b"beside it"), b"beside it", "{round}");
        let mut got = Vec::new();
        ask("send 10000").read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), 10_000);
        thread::sleep(Duration::from_millis(700));
    }
    assert_eq!(waits.join().unwrap(), ErrorKind::HostUnreachable);
}

/// A socket that was to go to the machine itself may go elsewhere afterwards.
fn an_attempt_for_another_place() {
    use roundtable_programs::inet;
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let fd = inet::stream(GUEST.into());
    assert_eq!(inet::connect(&fd, closed), Err(roundtable_programs::Errno::ECONNREFUSED));
    assert_eq!(inet::connect(&fd, peer().0), Ok(0));
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(closed).unwrap();
    inet::disconnect(&socket).unwrap();
    socket.connect(peer().1).unwrap();
    assert_eq!(socket.local_addr().unwrap().ip(), GUEST);
    assert_eq!(exchange(&socket, peer().1, b"elsewhere"), b"elsewhere");
}

/// What came before the end waits for its reader, however long after the end.
fn a_slow_reader_gets_the_end() {
    // More than the reader's queue holds, and less than that and TCP's.
    const LEN: usize = 300_000;
    let mut stream = ask(&format!("send {LEN}"));
    stream.shutdown(Shutdown::Write).unwrap();
    thread::sleep(Duration::from_secs(13));
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    assert!(got == pattern(LEN, 0), "{} bytes", got.len());
}

fn one_user_does_not_take_all() {
    use roundtable_programs::child::fork;
    use roundtable_programs::{inet, place};
    let (mut hears, mut told) = std::io::pipe().unwrap();
    let child = fork(|| {
        place::become_user(1001, 1001);
        let fds: Vec<_> = (0..520).map(|_| inet::stream(GUEST.into())).collect();
        let mut count = 0;
        for fd in &fds {
            match inet::connect(fd, peer().0) {
                Ok(_) => count += 1,
                Err(error) => assert_eq!(error, roundtable_programs::Errno::ENOBUFS),
            }
        }
        assert!(count >= 200, "{count}");
        told.write_all(b"x").unwrap();
        // SAFETY: takes nothing.
        unsafe { libc::pause() };
    });
    hears.read_exact(&mut [0]).unwrap();
    let mut got = Vec::new();
    ask("send 10000").read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), 10_000);
    child.end();
}
