//! Init's reports, framed in the console's stream.
//!
//! A frame is `RS key ':' text US`. The key is drawn anew for every boot and known to init only, so that no
//! program prints a frame by accident and none can forge one. A frame that a kernel message was printed into
//! is not a frame any more: it comes out as text, and what matters (the ending) is sent twice.

use std::fmt;

const START: u8 = 0x1e;
const END: u8 = 0x1f;
/// Longer than any frame: where the decoder gives up waiting for the end.
const LONGEST: usize = 512;

/// One report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// All is mounted; what follows is the job's output.
    Start,
    /// The job is over.
    Exit(Ending),
    /// Test number `index` starts; what follows is its output.
    TestStart {
        /// Position in the job's list.
        index: usize,
    },
    /// Test number `index` is over.
    TestEnd {
        /// Position in the job's list.
        index: usize,
        /// How it ended.
        ending: Ending,
        /// How long it took.
        milliseconds: u64,
    },
    /// So many bytes of the relayed input were taken.
    Credit(usize),
    /// Something that init wants the user to know.
    Note(String),
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By exit, with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It could not be started: errno.
    NotStarted(i32),
    /// It was killed at its time limit.
    TimedOut,
}

impl Ending {
    /// The exit status that a shell would report for it.
    pub fn status(self) -> i32 {
        match self {
            Ending::Code(code) => code,
            Ending::Signal(signal) => 128 + signal,
            Ending::NotStarted(2) => 127,
            Ending::NotStarted(_) => 126,
            Ending::TimedOut => 124,
        }
    }

    fn parse(text: &str) -> Option<Ending> {
        if text == "timed-out" {
            return Some(Ending::TimedOut);
        }
        let (kind, number) = text.split_once(' ')?;
        let number = number.parse().ok()?;
        match kind {
            "code" => Some(Ending::Code(number)),
            "signal" => Some(Ending::Signal(number)),
            "not-started" => Some(Ending::NotStarted(number)),
            _ => None,
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::Code(code) => write!(f, "code {code}"),
            Ending::Signal(signal) => write!(f, "signal {signal}"),
            Ending::NotStarted(errno) => write!(f, "not-started {errno}"),
            Ending::TimedOut => write!(f, "timed-out"),
        }
    }
}

impl Frame {
    /// The bytes that init writes, in one `write`.
    pub fn encode(&self, key: &str) -> Vec<u8> {
        let text = match self {
            Frame::Start => "start".to_string(),
            Frame::Exit(ending) => format!("exit {ending}"),
            Frame::TestStart { index } => format!("test-start {index}"),
            Frame::TestEnd { index, ending, milliseconds } => {
                format!("test-end {index} {milliseconds} {ending}")
            }
            Frame::Credit(bytes) => format!("credit {bytes}"),
            Frame::Note(text) => format!("note {}", text.replace(|c: char| c.is_control(), " ")),
        };
        let mut out = vec![START];
        out.extend_from_slice(key.as_bytes());
        out.push(b':');
        out.extend_from_slice(text.as_bytes());
        out.truncate(LONGEST);
        out.push(END);
        out
    }

    fn parse(text: &str) -> Option<Frame> {
        let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
        match kind {
            "start" if rest.is_empty() => Some(Frame::Start),
            "exit" => Ending::parse(rest).map(Frame::Exit),
            "test-start" => Some(Frame::TestStart { index: rest.parse().ok()? }),
            "test-end" => {
                let (index, rest) = rest.split_once(' ')?;
                let (milliseconds, ending) = rest.split_once(' ')?;
                Some(Frame::TestEnd {
                    index: index.parse().ok()?,
                    milliseconds: milliseconds.parse().ok()?,
                    ending: Ending::parse(ending)?,
                })
            }
            "credit" => Some(Frame::Credit(rest.parse().ok()?)),
            "note" => Some(Frame::Note(rest.to_string())),
            _ => None,
        }
    }
}

/// What the console's stream consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// Output of the job or of the kernel.
    Text(Vec<u8>),
    /// A report of init.
    Frame(Frame),
}

/// Takes the frames out of the console's stream.
#[derive(Debug)]
pub struct Decoder {
    mark: Vec<u8>,
    held: Vec<u8>,
}

impl Decoder {
    /// A decoder for frames with this key.
    pub fn new(key: &str) -> Decoder {
        let mut mark = vec![START];
        mark.extend_from_slice(key.as_bytes());
        mark.push(b':');
        Decoder { mark, held: Vec::new() }
    }

    /// Takes the next bytes of the stream, in pieces of any size; holds back what may become a frame.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Item> {
        let mut items = Vec::new();
        let mut text = Vec::new();
        for &byte in bytes {
            let position = self.held.len();
            let expected = self.mark.get(position);
            if expected.is_some_and(|&expected| expected != byte) || position > LONGEST {
                text.append(&mut self.held);
                // The byte that broke the mark may start the next one.
                if byte == START {
                    self.held.push(byte);
                } else {
                    text.push(byte);
                }
                continue;
            }
            self.held.push(byte);
            if expected.is_none() && byte == END {
                let body = &self.held[self.mark.len()..self.held.len() - 1];
                match std::str::from_utf8(body).ok().and_then(Frame::parse) {
                    Some(frame) => {
                        if !text.is_empty() {
                            items.push(Item::Text(std::mem::take(&mut text)));
                        }
                        items.push(Item::Frame(frame));
                        self.held.clear();
                    }
                    None => text.append(&mut self.held),
                }
            }
        }
        if !text.is_empty() {
            items.push(Item::Text(text));
        }
        items
    }

    /// What was held back when the stream ended.
    pub fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "00ff00ff00ff00ff";

    fn frames() -> Vec<Frame> {
        vec![
            Frame::Start,
            Frame::Note("mount /proc: No such device".into()),
            Frame::TestStart { index: 0 },
            Frame::TestEnd { index: 0, ending: Ending::Code(0), milliseconds: 12 },
            Frame::TestEnd { index: 1, ending: Ending::Signal(11), milliseconds: 0 },
            Frame::TestEnd { index: 2, ending: Ending::TimedOut, milliseconds: 60_000 },
            Frame::Credit(512),
            Frame::Exit(Ending::NotStarted(8)),
        ]
    }

    /// Adjacent text joined, so that the cut of the input does not matter.
    fn joined(items: impl IntoIterator<Item = Item>) -> Vec<Item> {
        let mut out: Vec<Item> = Vec::new();
        for item in items {
            match (out.last_mut(), item) {
                (Some(Item::Text(old)), Item::Text(new)) => old.extend(new),
                (_, item) => out.push(item),
            }
        }
        out
    }

    #[test]
    fn frames_come_out_whole_however_the_stream_is_cut() {
        let mut stream = Vec::new();
        let mut expected = Vec::new();
        for frame in frames() {
            stream.extend_from_slice(b"some output\r\n");
            expected.push(Item::Text(b"some output\r\n".to_vec()));
            stream.extend(frame.encode(KEY));
            expected.push(Item::Frame(frame));
        }
        for size in [1, 2, 3, 7, 64, stream.len()] {
            let mut decoder = Decoder::new(KEY);
            let items: Vec<_> = stream.chunks(size).flat_map(|chunk| decoder.feed(chunk)).collect();
            assert_eq!(joined(items), expected, "cut into pieces of {size}");
            assert!(decoder.finish().is_empty());
        }
    }

    #[test]
    fn another_key_is_text() {
        let forged = Frame::Exit(Ending::Code(0)).encode("11ff00ff00ff00ff");
        let mut decoder = Decoder::new(KEY);
        assert_eq!(decoder.feed(&forged), vec![Item::Text(forged.clone())]);
    }

    #[test]
    fn a_frame_with_a_kernel_message_inside_is_text_and_the_next_one_is_found() {
        let good = Frame::Exit(Ending::Code(3)).encode(KEY);
        let mut stream = good[..9].to_vec();
        stream.extend_from_slice(b"[   1.0] oops\r\n");
        stream.extend_from_slice(&good[9..]);
        let broken = stream.clone();
        stream.extend_from_slice(&good);
        let mut decoder = Decoder::new(KEY);
        let items = joined(decoder.feed(&stream));
        assert_eq!(items, vec![Item::Text(broken), Item::Frame(Frame::Exit(Ending::Code(3)))]);
    }

    #[test]
    fn a_start_byte_right_before_a_frame_is_not_lost() {
        let mut stream = vec![START];
        stream.extend(Frame::Start.encode(KEY));
        let mut decoder = Decoder::new(KEY);
        assert_eq!(decoder.feed(&stream), vec![Item::Text(vec![START]), Item::Frame(Frame::Start)]);
    }

    #[test]
    fn a_frame_without_an_end_does_not_hold_the_stream_for_ever() {
        let mut stream = Frame::Start.encode(KEY);
        stream.pop();
        stream.extend(std::iter::repeat_n(b'x', 2 * LONGEST));
        let mut decoder = Decoder::new(KEY);
        let items = joined(decoder.feed(&stream));
        assert_eq!(items, vec![Item::Text(stream)]);
    }

    #[test]
    fn what_was_held_back_comes_out_at_the_end() {
        let mut decoder = Decoder::new(KEY);
        assert_eq!(decoder.feed(b"a\x1e00ff"), vec![Item::Text(b"a".to_vec())]);
        assert_eq!(decoder.finish(), b"\x1e00ff");
    }

    #[test]
    fn endings_become_the_status_that_a_shell_gives() {
        assert_eq!(Ending::Code(7).status(), 7);
        assert_eq!(Ending::Signal(9).status(), 137);
        assert_eq!(Ending::NotStarted(2).status(), 127);
        assert_eq!(Ending::NotStarted(8).status(), 126);
        assert_eq!(Ending::TimedOut.status(), 124);
    }
}
