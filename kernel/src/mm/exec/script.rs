//! The first line of a script: `#! INTERPRETER [ARGUMENT]`.

use crate::errno::{Errno, Result};

/// How much of a file is looked at.
pub const HEAD: usize = 256;

/// What the line says.
pub struct Line<'a> {
    pub interpreter: &'a [u8],
    /// The rest of the line as one argument.
    pub argument: Option<&'a [u8]>,
}

fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// Reads the line at the begin of `head`; `whole` when the file is not longer. `None` when it is no script, `ENOEXEC` when it is one without
/// an interpreter or with a path that is cut off.
pub fn parse(head: &[u8], whole: bool) -> Result<Option<Line<'_>>> {
    let Some(rest) = head.strip_prefix(b"#!") else { return Ok(None) };
    let end = rest.iter().position(|byte| *byte == b'\n');
    let line = &rest[..end.unwrap_or(rest.len())];
    let line = line.split(|byte| *byte == 0).next().unwrap_or_default();
    let start = line.iter().position(|byte| !is_blank(byte)).ok_or(Errno::ENOEXEC)?;
    let line = &line[start..];
    let split = line.iter().position(is_blank);
    if split.is_none() && end.is_none() && !whole {
        return Err(Errno::ENOEXEC);
    }
    let (interpreter, argument) = line.split_at(split.unwrap_or(line.len()));
    let first = argument.iter().position(|byte| !is_blank(byte));
    let argument = first.map(|first| {
        let last = argument.iter().rposition(|byte| !is_blank(byte)).unwrap_or(first);
        &argument[first..=last]
    });
    Ok(Some(Line { interpreter, argument }))
}
