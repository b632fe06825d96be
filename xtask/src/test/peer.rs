//! The other end of a guest's network in the tests: a server on the host that does what a guest's test asks of it.
//!
//! A guest reaches it at 10.0.2.2. It says in a line what it wants: `echo`, `send BYTES`, `reset`, `keep` (open, until the server's end), `call TIMES BYTES` (connections into the
//! guest, by the forwarded port), `datagrams COUNT` (into the guest, as fast as they go). Datagrams are sent back to where they came from.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use roundtable::network::{Forward, Network};

/// The port in the guest that the host's leads to, of TCP and of UDP.
const GUEST: u16 = 7000;
/// Nobody waits longer for the other end.
const PATIENCE: Duration = Duration::from_secs(60);

/// The server; it ends with the value.
pub struct Peer {
    at: SocketAddr,
    datagrams: u16,
    forwarded: u16,
    over: Arc<AtomicBool>,
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

impl Peer {
    /// Starts it.
    pub fn start() -> Result<Peer> {
        let listener = TcpListener::bind(local(0))?;
        let socket = UdpSocket::bind(local(0))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        // QEMU takes the same number of both protocols; nobody else asks for it in the moment between.
        let forwarded = TcpListener::bind(local(0))?.local_addr()?.port();
        let over = Arc::new(AtomicBool::new(false));
        let peer = Peer {
            at: listener.local_addr()?,
            datagrams: socket.local_addr()?.port(),
            forwarded,
            over: over.clone(),
        };
        let is_over = over.clone();
        let kept = Arc::<Mutex<Vec<TcpStream>>>::default();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(stream) = stream {
                    let kept = kept.clone();
                    thread::spawn(move || serve(stream, forwarded, &kept));
                }
            }
        });
        thread::spawn(move || {
            let mut bytes = [0; 65536];
            while !over.load(Ordering::SeqCst) {
                if let Ok((len, from)) = socket.recv_from(&mut bytes) {
                    // What does not arrive is the test's business.
                    let _ = socket.send_to(&bytes[..len], from);
                }
            }
        });
        Ok(peer)
    }

    /// The guest's network.
    pub fn network(&self) -> Result<Network> {
        let forward = |end: &str| format!("{}:{GUEST}{end}", self.forwarded).parse::<Forward>();
        let forwards = [forward(""), forward("/udp")].into_iter().collect::<Result<Vec<_>, String>>();
        Ok(Network { forwards: forwards.map_err(anyhow::Error::msg)? })
    }

    /// The parameter by which the guest's test finds it.
    pub fn parameter(&self) -> String {
        format!("peer={}:{}", self.at.port(), self.datagrams)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Lets the thread that accepts look.
        let _ = TcpStream::connect(self.at);
    }
}

/// The bytes that both ends know.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251 + seed) as u8).collect()
}

/// Does what a line asks for. An error is the other end's, which has gone.
fn serve(stream: TcpStream, forwarded: u16, kept: &Mutex<Vec<TcpStream>>) {
    let answer = (|| -> Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |index: usize| words.get(index).and_then(|word| word.parse::<usize>().ok()).unwrap_or(0);
        let mut stream = &stream;
        match words.first().copied() {
            Some("echo") => {
                let mut bytes = vec![0; 1 << 16];
                loop {
                    let len = reader.read(&mut bytes)?;
                    if len == 0 {
                        break;
                    }
                    stream.write_all(&bytes[..len])?;
                }
                stream.shutdown(Shutdown::Write)?;
            }
            Some("send") => {
                stream.write_all(&pattern(number(1), 0))?;
                stream.shutdown(Shutdown::Write)?;
                // Until the other end has closed: what it has not read must not be taken back.
                while reader.read(&mut [0; 256])? > 0 {}
            }
            Some("reset") => rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO))?,
            Some("keep") => kept.lock().unwrap().push(stream.try_clone()?),
            Some("call") => {
                let result = call(forwarded, number(1), number(2));
                let text = result.map_or_else(|error| format!("{error:#}"), |()| "ok".into());
                stream.write_all(format!("{text}\n").as_bytes())?;
            }
            Some("datagrams") => {
                let socket = UdpSocket::bind(local(0))?;
                stream.write_all(b"begun\n")?;
                for i in 0..number(1) {
                    // A full queue of the host's loses one, as the line may.
                    let _ = socket.send_to(&pattern(1000, i), local(forwarded));
                }
                stream.write_all(b"done\n")?;
            }
            _ => {}
        }
        Ok(())
    })();
    // The test in the guest sees that the connection is gone.
    drop(answer);
}

/// Connects into the guest so many times; each connection's bytes have to come back, and all go at once.
fn call(port: u16, times: usize, bytes: usize) -> Result<()> {
    let mut callers = Vec::new();
    for seed in 0..times {
        let mut stream = TcpStream::connect(local(port)).context("connect")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // The guest has it before the next one comes: QEMU lets one or two wait, and no more.
        let mut greeting = [0; 3];
        stream.read_exact(&mut greeting).context("greeting")?;
        ensure!(greeting == *b"go\n", "the greeting is {greeting:?}");
        callers.push(thread::spawn(move || exchange(stream, bytes, seed)));
    }
    callers.into_iter().try_for_each(|caller| caller.join().expect("a panic ends the program"))
}

/// Sends bytes and reads them again.
fn exchange(mut stream: TcpStream, bytes: usize, seed: usize) -> Result<()> {
    let wanted = pattern(bytes, seed);
    let sent = wanted.clone();
    let mut writer = stream.try_clone()?;
    let sender = thread::spawn(move || -> std::io::Result<()> {
        writer.write_all(&sent)?;
        writer.shutdown(Shutdown::Write)
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).context("read")?;
    sender.join().expect("a panic ends the program").context("write")?;
    ensure!(got == wanted, "{} bytes of {bytes} came back as they were sent", got.len());
    Ok(())
}
