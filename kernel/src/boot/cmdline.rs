//! The kernel command line: `name`, `name=value`, values in double quotes where they have blanks.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

const MAX: usize = 4096;

struct Line(UnsafeCell<[u8; MAX]>);

// SAFETY: written once, at boot, before anybody reads.
unsafe impl Sync for Line {}

static LINE: Line = Line(UnsafeCell::new([0; MAX]));
static LENGTH: AtomicUsize = AtomicUsize::new(0);

/// Keeps a copy of the loader's line, of which what follows the 4096th byte or is not UTF-8 is cut off.
pub(super) fn set(line: &[u8]) {
    let line = &line[..line.len().min(MAX)];
    let valid = core::str::from_utf8(line).map_or_else(|error| error.valid_up_to(), str::len);
    // SAFETY: at boot, before any reader.
    unsafe { (&mut *LINE.0.get())[..valid].copy_from_slice(&line[..valid]) };
    LENGTH.store(valid, Ordering::SeqCst);
}

/// The whole line: `/proc/cmdline`.
pub fn line() -> &'static str {
    // SAFETY: no writer any more, and `set` checked the encoding.
    unsafe { core::str::from_utf8_unchecked(&(&*LINE.0.get())[..LENGTH.load(Ordering::SeqCst)]) }
}

/// The words of the line: parameters and, after `--`, arguments of the first program.
fn words() -> impl Iterator<Item = &'static str> {
    let mut rest = line().trim();
    core::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut quoted = false;
        let end = rest
            .find(|c: char| {
                quoted ^= c == '"';
                !quoted && c.is_whitespace()
            })
            .unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after.trim_start();
        Some(word)
    })
}

fn unquote(value: &'static str) -> &'static str {
    value.strip_prefix('"').map_or(value, |value| value.strip_suffix('"').unwrap_or(value))
}

/// All parameters before `--`, in order, as name and value; a parameter without `=` has none.
///
/// The order matters to `hugepagesz=` and `hugepages=`.
pub fn parameters() -> impl Iterator<Item = (&'static str, Option<&'static str>)> {
    words().take_while(|word| *word != "--").map(|word| match word.split_once('=') {
        Some((name, value)) => (name, Some(unquote(value))),
        None => (unquote(word), None),
    })
}

/// The last value of a parameter; empty when it has none. `-` and `_` in names are the same.
pub fn get(name: &str) -> Option<&'static str> {
    parameters().filter(|(other, _)| same(name, other)).last().map(|(_, value)| value.unwrap_or(""))
}

/// Whether a parameter is there, with a value or without.
pub fn has(name: &str) -> bool {
    get(name).is_some()
}

fn same(a: &str, b: &str) -> bool {
    let plain = |c: u8| if c == b'-' { b'_' } else { c };
    a.len() == b.len() && a.bytes().map(plain).eq(b.bytes().map(plain))
}

/// What follows `--`: arguments of the first program.
pub fn init_arguments() -> impl Iterator<Item = &'static str> {
    words().skip_while(|word| *word != "--").skip(1).map(unquote)
}
