//! The job's standard input over the serial line, byte-stuffed so that it has an end.
//!
//! The line has no flow control, so the host sends at most [`WINDOW`] bytes more than init has reported as
//! taken ([`crate::Frame::Credit`]).

const ESCAPE: u8 = 0x10;
const END: u8 = 0x04;
const WINDOW_SIZE: u8 = 0x17;

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

/// The bytes that tell the size of the user's terminal.
pub const fn window_size(rows: u16, columns: u16) -> [u8; 6] {
    let ([a, b], [c, d]) = (rows.to_be_bytes(), columns.to_be_bytes());
    [ESCAPE, WINDOW_SIZE, a, b, c, d]
}

/// Takes the stuffing out again.
#[derive(Debug, Default)]
pub struct Unstuff {
    state: State,
    ended: bool,
    window_size: Option<(u16, u16)>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Plain,
    Escaped,
    /// In a window's size: so many bytes of it have come.
    WindowSize([u8; 4], usize),
}

impl Unstuff {
    /// The input bytes in this piece of the line's stream; nothing follows once [`Unstuff::ended`].
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            if self.ended {
                break;
            }
            self.state = match (std::mem::take(&mut self.state), byte) {
                (State::Plain, ESCAPE) => State::Escaped,
                (State::Escaped, WINDOW_SIZE) => State::WindowSize([0; 4], 0),
                (State::Escaped, END) => {
                    self.ended = true;
                    State::Plain
                }
                (State::WindowSize(mut size, at), byte) => {
                    size[at] = byte;
                    if at + 1 < size.len() {
                        State::WindowSize(size, at + 1)
                    } else {
                        let [a, b, c, d] = size;
                        self.window_size = Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])));
                        State::Plain
                    }
                }
                (State::Plain | State::Escaped, byte) => {
                    out.push(byte);
                    State::Plain
                }
            };
        }
        out
    }

    /// Whether the end has come.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Rows and columns of the terminal, when they have come since this was asked last.
    pub fn take_window_size(&mut self) -> Option<(u16, u16)> {
        self.window_size.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_however_the_stream_is_cut() {
        let input: Vec<u8> =
            (0..=255).chain([ESCAPE, ESCAPE, END, END, ESCAPE, WINDOW_SIZE, ESCAPE]).collect();
        let mut line = stuff(&input);
        line.extend(end());
        for size in [1, 2, 3, 100, line.len()] {
            let mut unstuff = Unstuff::default();
            let output: Vec<u8> = line.chunks(size).flat_map(|chunk| unstuff.feed(chunk)).collect();
            assert_eq!(output, input, "cut into pieces of {size}");
            assert!(unstuff.ended());
            assert_eq!(unstuff.take_window_size(), None);
        }
    }

    #[test]
    fn nothing_follows_the_end() {
        let mut unstuff = Unstuff::default();
        assert_eq!(unstuff.feed(b"a\x10\x04b"), b"a");
        assert_eq!(unstuff.feed(b"c"), b"");
    }

    #[test]
    fn a_window_size_comes_between_bytes_however_it_is_cut() {
        // Numbers that look like the marks themselves.
        for (rows, columns) in [(24, 80), (0x1010, 0x0410), (0x1017, 0x1004), (0, u16::MAX)] {
            let mut line = stuff(b"be\x10fore");
            line.extend(window_size(rows, columns));
            line.extend(stuff(b"after"));
            for size in 1..line.len() {
                let mut unstuff = Unstuff::default();
                let output: Vec<u8> = line.chunks(size).flat_map(|chunk| unstuff.feed(chunk)).collect();
                assert_eq!(output, b"be\x10foreafter");
                assert_eq!(unstuff.take_window_size(), Some((rows, columns)));
                assert_eq!(unstuff.take_window_size(), None);
            }
        }
    }
}
