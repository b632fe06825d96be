//! The memory devices: null, zero, full, random, urandom.

use alloc::sync::Arc;

use super::create_node;
use crate::errno::{Errno, Result};
use crate::fs::device::register_character_device;
use crate::fs::file::{File, FileOps, Whence};
use crate::fs::iobuf::{Sink, Source};
use crate::fs::path::Path;
use crate::fs::stat::DeviceId;
use crate::mm::backing::Backing;
use crate::random;

const MAJOR: u32 = 1;
/// The devices, by minor number.
const NODES: [(&str, u32, Device); 5] = [
    ("null", 3, Device::Null),
    ("zero", 5, Device::Zero),
    ("full", 7, Device::Full),
    ("random", 8, Device::Random),
    ("urandom", 9, Device::Random),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Device {
    Null,
    Zero,
    Full,
    Random,
}

pub(super) fn init() -> Result<()> {
    for (name, minor, _) in NODES {
        let id = DeviceId::new(MAJOR, minor);
        register_character_device(id, 1, open);
        create_node(name, id, 0o666)?;
    }
    Ok(())
}

fn open(id: DeviceId, _path: &Path, _flags: u32) -> Result<Arc<dyn FileOps>> {
    let found = NODES.iter().find(|(_, minor, _)| *minor == id.minor);
    found.map(|(_, _, device)| Arc::new(*device) as Arc<dyn FileOps>).ok_or(Errno::ENXIO)
}

/// Moves in steps, so that a signal ends a long transfer and other threads get their turn.
fn in_steps(mut step: impl FnMut() -> Result<usize>) -> Result<usize> {
    let mut done = 0;
    loop {
        match step() {
            Ok(0) => return Ok(done),
            Ok(count) => done += count,
            Err(error) if done == 0 => return Err(error),
            Err(_) => return Ok(done),
        }
        if crate::process::current().signal_pending() {
            return Ok(done);
        }
        crate::sched::cond_resched();
    }
}

impl FileOps for Device {
    fn seekable(&self) -> bool {
        true
    }

    fn read_at(&self, _file: &File, _offset: u64, sink: &mut Sink) -> Result<usize> {
        match self {
            Self::Null => Ok(0),
            Self::Zero | Self::Full => in_steps(|| sink.write_zeroes(1 << 16)),
            Self::Random => {
                let mut numbers = random::Stream::new();
                in_steps(|| {
                    let mut bytes = [0; 256];
                    let want = sink.remaining().min(bytes.len());
                    numbers.fill(&mut bytes[..want]);
                    sink.write(&bytes[..want])
                })
            }
        }
    }

    fn write_at(&self, _file: &File, _offset: &mut u64, source: &mut Source) -> Result<usize> {
        match self {
            Self::Null | Self::Zero => {
                let count = source.remaining();
                source.skip(count);
                Ok(count)
            }
            Self::Full => Err(Errno::ENOSPC),
            Self::Random => in_steps(|| {
                let mut bytes = [0; 256];
                let count = source.read(&mut bytes)?;
                random::mix(&bytes[..count]);
                Ok(count)
            }),
        }
    }

    fn seek(&self, _file: &File, whence: Whence, offset: i64, position: u64) -> Result<u64> {
        // As Linux: null, zero and full stay at the begin, whatever is asked; random has a position that
        // means nothing.
        if *self != Self::Random {
            return Ok(0);
        }
        let base = match whence {
            Whence::Start => 0,
            Whence::Current => position as i64,
            _ => return Err(Errno::EINVAL),
        };
        base.checked_add(offset).and_then(|at| u64::try_from(at).ok()).ok_or(Errno::EINVAL)
    }

    fn mmap(&self, _file: &Arc<File>, _offset: u64, _len: u64) -> Result<Backing> {
        match self {
            Self::Zero => Ok(Backing::Zero),
            _ => Err(Errno::ENODEV),
        }
    }

    fn ioctl(&self, _file: &File, command: u32, argument: usize) -> Result<usize> {
        const RNDGETENTCNT: u32 = 0x8004_5200;
        match (self, command) {
            (Self::Random, RNDGETENTCNT) => {
                crate::mm::uaccess::write_user(argument, &256i32)?;
                Ok(0)
            }
            _ => Err(Errno::ENOTTY),
        }
    }
}
