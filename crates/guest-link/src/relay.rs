//! The job's standard input over the serial line, byte-stuffed so that it has an end.
//!
//! The line has no flow control, so the host sends at most [`WINDOW`] bytes more than init has reported as
//! taken ([`crate::Frame::Credit`]).

const ESCAPE: u8 = 0x10;
const END: u8 = 0x04;

/// How many stuffed bytes may be under way. A terminal's input queue holds 4,095.
pub const WINDOW: usize = 2048;

/// Stuffs input bytes.
pub fn stuff(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 8);
    for &byte in bytes {
        if byte == ESCAPE {
            out.push(ESCAPE);
        }
        out.push(byte);
    }
    out
}

/// The bytes that mean the end of the input.
pub const fn end() -> [u8; 2] {
    [ESCAPE, END]
}

/// Takes the stuffing out again.
#[derive(Debug, Default)]
pub struct Unstuff {
    escaped: bool,
    ended: bool,
}

impl Unstuff {
    /// The input bytes in this piece of the line's stream; nothing follows once [`Unstuff::ended`].
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            match (self.ended, self.escaped, byte) {
                (true, ..) => break,
                (_, false, ESCAPE) => self.escaped = true,
                (_, true, END) => self.ended = true,
                _ => {
                    self.escaped = false;
                    out.push(byte);
                }
            }
        }
        out
    }

    /// Whether the end has come.
    pub fn ended(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_however_the_stream_is_cut() {
        let input: Vec<u8> = (0..=255).chain([ESCAPE, ESCAPE, END, END, ESCAPE]).collect();
        let mut line = stuff(&input);
        line.extend(end());
        for size in [1, 2, 3, 100, line.len()] {
            let mut unstuff = Unstuff::default();
            let output: Vec<u8> = line.chunks(size).flat_map(|chunk| unstuff.feed(chunk)).collect();
            assert_eq!(output, input, "cut into pieces of {size}");
            assert!(unstuff.ended());
        }
    }

    #[test]
    fn nothing_follows_the_end() {
        let mut unstuff = Unstuff::default();
        assert_eq!(unstuff.feed(b"a\x10\x04b"), b"a");
        assert_eq!(unstuff.feed(b"c"), b"");
    }
}
