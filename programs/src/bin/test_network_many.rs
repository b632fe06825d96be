//! The network card with much at once, and for long: connections by the hundred, their ends, and users that want all.

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use roundtable_programs::card::{GUEST, HOST, PORT, ask, exchange, line_of, pattern, peer, serve};
use roundtable_programs::{inet, tests};

tests! {
    many_connect_at_once: 120, one_after_the_other: 120, beside_ends: 120, ports_come_again_late: 60,
    nobody_there: 100,
    a_slow_reader_gets_the_end: 100, one_user_does_not_take_all: 120,
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
    let kept: HashSet<u16> = (0..40).map(|_| ask("keep").local_addr().unwrap().port()).collect();
    assert_eq!(kept.len(), 40);
    // At random, each port that may be had would come more than once.
    for i in 0..60_000 {
        let fd = inet::stream(GUEST.into());
        inet::bind(&fd, (GUEST, 0).into()).unwrap();
        let port = inet::name(&fd).unwrap().port();
        assert!(!kept.contains(&port), "port {port} after {i}");
    }
    for _ in 0..100 {
        let mut text = Vec::new();
        ask("send 5").read_to_end(&mut text).unwrap();
        assert_eq!(text, pattern(5, 0));
    }
}

/// The other end remembers a connection for a while after its end: the same port does not come again so soon.
fn ports_come_again_late() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let to = listener.local_addr().unwrap();
    let mut ports = HashSet::new();
    for i in 0..1000 {
        let client = TcpStream::connect(to).unwrap();
        listener.accept().unwrap();
        let port = client.local_addr().unwrap().port();
        assert!(ports.insert(port), "port {port} again after {i}");
    }
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
    drop(told);
    hears.read_exact(&mut [0]).expect("the child has failed");
    let mut got = Vec::new();
    ask("send 10000").read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), 10_000);
    child.end();
}
