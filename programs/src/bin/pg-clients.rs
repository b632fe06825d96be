//! Connects many clients to a PostgreSQL server, and tells what that took: time, page tables, memory.
//!
//! It speaks the server's own protocol, so that a client costs nothing that is not the server's. All clients stay connected, and
//! each runs the same query once, so that its server process has touched what the query reads.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use roundtable_programs::procfs::Meminfo;

/// Version 3.0 of the protocol.
const PROTOCOL: u32 = 196_608;

/// One connected client.
struct Client(UnixStream);

impl Client {
    fn connect(socket: &str, user: &str) -> io::Result<Client> {
        let mut client = Client(UnixStream::connect(socket)?);
        let words = format!("user\0{user}\0database\0postgres\0\0");
        let mut packet = PROTOCOL.to_be_bytes().to_vec();
        packet.extend(words.bytes());
        client.0.write_all(&(packet.len() as u32 + 4).to_be_bytes())?;
        client.0.write_all(&packet)?;
        client.wait()?;
        Ok(client)
    }

    fn query(&mut self, text: &str) -> io::Result<()> {
        self.0.write_all(b"Q")?;
        self.0.write_all(&(text.len() as u32 + 5).to_be_bytes())?;
        self.0.write_all(text.as_bytes())?;
        self.0.write_all(&[0])?;
        self.wait()
    }

    /// Reads until the server is ready for a query.
    fn wait(&mut self) -> io::Result<()> {
        loop {
            let mut head = [0; 5];
            self.0.read_exact(&mut head)?;
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
            let mut body = vec![0; length.saturating_sub(4) as usize];
            self.0.read_exact(&mut body)?;
            match head[0] {
                b'Z' => return Ok(()),
                b'E' => return Err(io::Error::other(String::from_utf8_lossy(&body).replace('\0', " "))),
                _ => {}
            }
        }
    }
}

/// The value below which so many of a hundred lie.
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)].as_secs_f64() * 1000.0
}

/// How far it is: many clients take minutes where processors are emulated.
fn tell(what: &str, number: usize, count: usize) {
    const STEP: usize = 250;
    if number.is_multiple_of(STEP) {
        println!("   {number} of {count} {what}");
    }
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, row, socket, user, count, query] = arguments.as_slice() else {
        eprintln!("usage: pg-clients ROW SOCKET USER COUNT QUERY");
        std::process::exit(2);
    };
    let count: usize = count.parse().map_err(io::Error::other)?;
    // What the first connection alone loads is not a client's.
    Client::connect(socket, user)?.query(query)?;
    let before = Meminfo::read();
    let (mut clients, mut times) = (Vec::new(), Vec::new());
    for number in 1..=count {
        let start = Instant::now();
        clients.push(Client::connect(socket, user)?);
        times.push(start.elapsed());
        tell("connected", number, count);
    }
    times.sort();
    let connected = Meminfo::read();
    for (index, client) in clients.iter_mut().enumerate() {
        client.query(query)?;
        tell("ran the query", index + 1, count);
    }
    let after = Meminfo::read();
    let each = |before: &Meminfo, after: &Meminfo, name: &str| {
        let (before, after) = (before.get(name) as i64, after.get(name) as i64);
        (after - before).unsigned_abs() as f64 / count as f64
    };
    for (name, value) in [
        ("connect, median", format!("{:.2} ms", percentile(&times, 50))),
        ("connect, 99 %", format!("{:.2} ms", percentile(&times, 99))),
        ("page tables of a new client", format!("{:.1} KiB", each(&before, &connected, "PageTables"))),
        (
            "page tables of a client after the query",
            format!("{:.1} KiB", each(&before, &after, "PageTables")),
        ),
        ("memory of a client after the query", format!("{:.0} KiB", each(&before, &after, "MemFree"))),
    ] {
        println!("figure: {row} | {name} | {value}");
    }
    Ok(())
}
