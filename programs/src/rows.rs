//! Tables of calls with the errno that each must answer: all rows run, and all that differ are shown.

use nix::errno::Errno;

/// The rows that answered otherwise.
#[derive(Default)]
pub struct Rows {
    wrong: Vec<String>,
}

/// What one call answered, as a table has it: `OK`, or the errno's name.
pub fn name(answer: Result<usize, Errno>) -> String {
    answer.map_or_else(|errno| format!("{errno:?}"), |_| "OK".into())
}

impl Rows {
    /// Notes what `call` answered if that is not `want`.
    pub fn check(&mut self, line: u32, call: &str, want: &str, got: Result<usize, Errno>) {
        let got = name(got);
        if got != want {
            let call = call.split_whitespace().collect::<Vec<_>>().join(" ");
            self.wrong.push(format!("line {line}: {got}, not {want}: {call}"));
        }
    }

    /// As [`Rows::check`], for the answers to one call about many things: words in one line.
    pub fn check_line(&mut self, call: &str, want: &str, got: &str) {
        if !want.split_whitespace().eq(got.split_whitespace()) {
            self.wrong.push(format!("{call}: {got}, not {want}"));
        }
    }

    /// Fails unless all rows answered what they must.
    #[track_caller]
    pub fn finish(self) {
        self.wrong.iter().for_each(|row| println!("# {row}"));
        assert!(self.wrong.is_empty(), "{} rows differ: {}", self.wrong.len(), self.wrong.join("; "));
    }
}

/// A row: `row!(rows, EINVAL, call)`, or `OK` for a call that succeeds.
#[macro_export]
macro_rules! row {
    ($rows:expr, $want:ident, $call:expr) => {
        $rows.check(line!(), stringify!($call), stringify!($want), $call)
    };
}
