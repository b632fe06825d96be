//! What the tests of the network card share: the host's end is the tests' own server, and the kernel's parameter `peer=TCP:UDP` tells its
//! ports. See `xtask/src/test/peer.rs`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

/// The guest's address.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The host's.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The guest's port that a port of the host's leads to.
pub const PORT: u16 = 7000;

/// The ports of the host's server, of TCP and UDP.
pub fn peer() -> (SocketAddr, SocketAddr) {
    let line = fs::read_to_string("/proc/cmdline").unwrap();
    let ports = line.split_whitespace().find_map(|word| word.strip_prefix("peer=")).expect("peer=TCP:UDP");
    let (tcp, udp) = ports.split_once(':').unwrap();
    ((HOST, tcp.parse::<u16>().unwrap()).into(), (HOST, udp.parse::<u16>().unwrap()).into())
}

/// A connection with the server that has been told what to do.
pub fn ask(what: &str) -> TcpStream {
    let mut stream = TcpStream::connect(peer().0).unwrap();
    stream.write_all(format!("{what}\n").as_bytes()).unwrap();
    stream
}

/// Bytes that are told from others.
pub fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251 + seed) as u8).collect()
}

/// The next line of a connection.
pub fn line_of(stream: &TcpStream) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.trim_end().to_string()
}

/// Greets, and sends back what comes, on so many connections, each with a thread of its own.
pub fn serve(listener: &TcpListener, count: usize) {
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

/// Sends until the answer comes: the line may lose one.
pub fn exchange(socket: &UdpSocket, to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
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
