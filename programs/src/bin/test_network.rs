//! The network card: connections and datagrams between the guest and the host.
//!
//! The host's end is the tests' own server; the kernel's parameter `peer=TCP:UDP` tells its ports. See `xtask/src/test/peer.rs`.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use roundtable_programs::card::{GUEST, HOST, PORT, ask, exchange, line_of, pattern, peer, serve};
use roundtable_programs::tests;

tests! {
    card_is_shown, bytes_go_out_and_back: 100, much_comes_in: 100, a_slow_reader_loses_nothing: 100,
    the_host_connects: 100, refused, reset_by_the_host, half_closed: 60, closed_with_data_unread,
    nonblocking_connect, datagrams_go_out_and_back, long_datagrams_are_refused_or_cut, datagrams_come_in: 100,
    a_flood_stops_no_cpu: 120, own_address_leads_back, loopback_stays_inside, an_attempt_for_another_place,
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

fn the_host_connects() {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
    let asked = ask("call 1 300000");
    serve(&listener, 1);
    assert_eq!(line_of(&asked), "ok");
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
