//! /dev/kmsg: writing puts a line into the kernel's log.

use alloc::string::String;
use alloc::sync::Arc;

use super::create_node;
use crate::errno::{Errno, Result};
use crate::fs::device::register_character_device;
use crate::fs::file::{File, FileOps};
use crate::fs::iobuf::Source;
use crate::fs::path::Path;
use crate::fs::stat::DeviceId;

const ID: DeviceId = DeviceId::new(1, 11);
/// The longest line, bytes: Linux's `LOG_LINE_MAX`.
const LINE_MAX: usize = 1024 - 32;

pub(super) fn init() -> Result<()> {
    register_character_device(ID, 1, open);
    create_node("kmsg", ID, 0o644)
}

fn open(_: DeviceId, _path: &Path, _flags: u32) -> Result<Arc<dyn FileOps>> {
    Ok(Arc::new(Kmsg))
}

struct Kmsg;

impl FileOps for Kmsg {
    fn write_at(&self, _file: &File, _offset: &mut u64, source: &mut Source) -> Result<usize> {
        let len = source.remaining();
        if len > LINE_MAX {
            return Err(Errno::EINVAL);
        }
        let mut bytes = [0; LINE_MAX];
        source.read_exact(&mut bytes[..len])?;
        let text = String::from_utf8_lossy(&bytes[..len]);
        // `<LEVEL>` in front is the priority, of which the low three bits count.
        let (level, line) = match text.strip_prefix('<').and_then(|rest| rest.split_once('>')) {
            Some((number, rest)) if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => {
                (number.parse::<u32>().unwrap_or(6) & 7, rest)
            }
            _ => (4, &*text),
        };
        let level = match level {
            0..=3 => log::Level::Error,
            4 => log::Level::Warn,
            5 | 6 => log::Level::Info,
            _ => log::Level::Debug,
        };
        log::log!(level, "{}", line.trim_end_matches('\n'));
        Ok(len)
    }
}
