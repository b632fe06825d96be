//! The kernel's log: a ring of records for `dmesg`, and the console for those that matter.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, Ordering};

use ::log::{Level, LevelFilter, Metadata, Record};

use crate::arch::{clock, serial};
use crate::boot::cmdline;
use crate::sync::IrqLock;

/// Longest text of a record, in bytes; longer ones are cut.
pub const MAX_TEXT: usize = 1000;
/// Bytes of the ring.
pub const RING_SIZE: usize = 128 << 10;
/// Sequence number, time, level, length.
const HEADER_SIZE: usize = 8 + 8 + 1 + 2;

/// One line of the log.
#[derive(Clone)]
pub struct Entry {
    /// Counts from 0, one for each record since boot.
    pub sequence: u64,
    /// Nanoseconds since boot.
    pub time_ns: u64,
    /// Linux's level: 3 error, 4 warning, 6 information, 7 debugging.
    pub level: u8,
    text: Text,
}

impl Entry {
    pub fn text(&self) -> &str {
        self.text.as_str()
    }
}

/// Text of bounded length; what does not fit is dropped.
#[derive(Clone)]
struct Text {
    bytes: [u8; MAX_TEXT],
    length: usize,
}

impl Text {
    const fn new() -> Self {
        Self { bytes: [0; MAX_TEXT], length: 0 }
    }

    fn as_str(&self) -> &str {
        let bytes = &self.bytes[..self.length];
        // The end may have been cut inside a character.
        match core::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
        }
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let count = text.len().min(MAX_TEXT - self.length);
        self.bytes[self.length..self.length + count].copy_from_slice(&text.as_bytes()[..count]);
        self.length += count;
        Ok(())
    }
}

/// Records one after the other; positions count all bytes ever written, modulo the size.
struct Ring {
    bytes: [u8; RING_SIZE],
    first: usize,
    end: usize,
    first_sequence: u64,
    next_sequence: u64,
}

static RING: IrqLock<Ring> =
    IrqLock::new(Ring { bytes: [0; RING_SIZE], first: 0, end: 0, first_sequence: 0, next_sequence: 0 });

impl Ring {
    fn put(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.bytes[self.end % RING_SIZE] = *byte;
            self.end += 1;
        }
    }

    fn copy_out(&self, at: usize, bytes: &mut [u8]) {
        for (offset, byte) in bytes.iter_mut().enumerate() {
            *byte = self.bytes[(at + offset) % RING_SIZE];
        }
    }

    /// The record at a position without its text, and the text's length.
    fn header(&self, at: usize) -> (u64, u64, u8, usize) {
        let mut header = [0; HEADER_SIZE];
        self.copy_out(at, &mut header);
        let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        (word(0), word(8), header[16], u16::from_le_bytes([header[17], header[18]]) as usize)
    }

    fn push(&mut self, time_ns: u64, level: u8, text: &str) {
        let needed = HEADER_SIZE + text.len();
        while self.end + needed - self.first > RING_SIZE {
            self.first += HEADER_SIZE + self.header(self.first).3;
            self.first_sequence += 1;
        }
        self.put(&self.next_sequence.to_le_bytes());
        self.put(&time_ns.to_le_bytes());
        self.put(&[level]);
        self.put(&(text.len() as u16).to_le_bytes());
        self.put(text.as_bytes());
        self.next_sequence += 1;
    }
}

/// The record `sequence`, or the oldest that is left when that one is overwritten; `None` past the end.
///
/// A reader goes on with the returned record's sequence plus one.
pub fn read(sequence: u64) -> Option<Entry> {
    let ring = RING.lock();
    let mut at = ring.first;
    while at < ring.end {
        let (found, time_ns, level, length) = ring.header(at);
        at += HEADER_SIZE;
        if found >= sequence {
            let mut text = Text::new();
            ring.copy_out(at, &mut text.bytes[..length]);
            text.length = length;
            return Some(Entry { sequence: found, time_ns, level, text });
        }
        at += length;
    }
    None
}

/// Sequence numbers of the oldest record and of the next one to come.
pub fn bounds() -> (u64, u64) {
    let ring = RING.lock();
    (ring.first_sequence, ring.next_sequence)
}

/// Levels below this one go to the console, as Linux counts them.
static CONSOLE_LEVEL: AtomicU8 = AtomicU8::new(7);

/// The console's level: messages of lower number are shown.
pub fn console_level() -> u8 {
    CONSOLE_LEVEL.load(Ordering::SeqCst)
}

pub fn set_console_level(level: u8) {
    CONSOLE_LEVEL.store(level.clamp(1, 8), Ordering::SeqCst);
}

struct KernelLog;

static LOGGER: KernelLog = KernelLog;

fn linux_level(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

impl ::log::Log for KernelLog {
    fn enabled(&self, _metadata: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        let mut text = Text::new();
        // Writing to a `Text` does not fail.
        let _ = text.write_fmt(*record.args());
        let level = linux_level(record.level());
        let time = clock::now_ns();
        for line in text.as_str().lines() {
            RING.lock().push(time, level, line);
            if level < console_level() {
                print(time, line);
            }
        }
    }

    fn flush(&self) {}
}

fn print(time: u64, line: &str) {
    let mut whole = Text::new();
    let _ = writeln!(whole, "[{:5}.{:06}] {line}\r", time / 1_000_000_000, time / 1000 % 1_000_000);
    serial::write(whole.as_str().as_bytes());
}

/// Starts logging; the command line is known.
pub fn init() {
    if cmdline::has("debug") {
        set_console_level(8);
    } else if cmdline::has("quiet") {
        set_console_level(4);
    }
    if let Some(level) = cmdline::get("loglevel").and_then(|level| level.parse().ok()) {
        set_console_level(level);
    }
    let filter = if cmdline::has("debug") { LevelFilter::Trace } else { LevelFilter::Info };
    // It fails only when there is a logger already.
    let _ = ::log::set_logger(&LOGGER);
    ::log::set_max_level(filter);
}
