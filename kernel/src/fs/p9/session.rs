//! A session with a server: its fids, and what can be asked of it.
//!
//! A fid is a number by which the server knows a file that we have walked to or opened. It is given back (`Tclunk`) when its last user lets
//! it go, which may be anywhere, in an interrupt too: a thread of the session's own does that later. A number is used again only after the
//! server has answered, so a late request never meets another file.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};

use virtio_drivers::transport::Transport;

use super::channel::{Channel, MESSAGE};
use super::wire::{Attr, Change, Kind, NO_FID, Reader, Writer};
use crate::errno::{Errno, Result};
use crate::fs::stat::Statfs;
use crate::memory::{PAGE_SIZE, fallible};
use crate::process::Thread;
use crate::sched::{self, Sleep};
use crate::sync::{IrqLock, Once};
use crate::virtio;

/// The protocol's name.
const VERSION: &[u8] = b"9P2000.L";
/// What a read or write has beside its data, at most.
const OVERHEAD: usize = 24;
/// The longest tag that a device may have, bytes.
const MOST_TAG: usize = 255;

/// A number for a fid, in a list when nobody has it.
struct Number {
    number: u32,
    next: Option<Box<Number>>,
}

/// Numbers that nobody has.
#[derive(Default)]
struct Numbers {
    /// The server knows none of these.
    free: Option<Box<Number>>,
    /// It is to be told that these are not used any more.
    given_up: Option<Box<Number>>,
}

fn push(list: &mut Option<Box<Number>>, mut number: Box<Number>) {
    number.next = list.take();
    *list = Some(number);
}

fn pop(list: &mut Option<Box<Number>>) -> Option<Box<Number>> {
    let mut first = list.take()?;
    *list = first.next.take();
    Some(first)
}

/// A session, which lasts as long as the system.
pub struct Session {
    channel: Channel,
    /// Bytes of data in a read or write, once the server has agreed.
    most: Once<usize>,
    numbers: IrqLock<Numbers>,
    next: AtomicU32,
    thread: Once<Arc<Thread>>,
}

/// A file that the server knows by a number.
pub struct Fid {
    session: &'static Session,
    /// There until it is dropped.
    number: Option<Box<Number>>,
    /// The server knows it, or may.
    made: bool,
}

impl Fid {
    pub(super) fn set_made(&mut self) {
        self.made = true;
    }

    fn number(&self) -> u32 {
        self.number.as_ref().map_or(NO_FID, |number| number.number)
    }

    /// The session that it is of.
    pub fn session(&self) -> &'static Session {
        self.session
    }
}

impl Drop for Fid {
    fn drop(&mut self) {
        let Some(number) = self.number.take() else { return };
        let mut numbers = self.session.numbers.lock();
        if !self.made {
            push(&mut numbers.free, number);
            return;
        }
        push(&mut numbers.given_up, number);
        drop(numbers);
        if let Some(thread) = self.session.thread.get() {
            sched::wake(thread);
        }
    }
}

/// Reads the tag by which a device is known.
pub fn tag_of(transport: &impl Transport) -> Option<Box<[u8]>> {
    let len = usize::from(transport.read_config_space::<u16>(0).ok()?);
    if len == 0 || len > MOST_TAG {
        return None;
    }
    (0..len).map(|index| transport.read_config_space::<u8>(2 + index).ok()).collect()
}

impl Session {
    /// A session with the server behind a device; [`Session::begin`] is next.
    pub fn new(found: virtio::Found, interrupted: fn()) -> Result<&'static Self> {
        let hears = found.hear(interrupted);
        let session: &'static Self = Box::leak(fallible::boxed(Self {
            channel: Channel::new(found.transport, hears)?,
            most: Once::new(),
            numbers: IrqLock::new(Numbers::default()),
            next: AtomicU32::new(0),
            thread: Once::new(),
        })?);
        let thread = sched::spawn_kernel_thread("9p", move || session.give_back());
        let _ = session.thread.set(thread);
        Ok(session)
    }

    /// Agrees with the server on the protocol, unless that was done. `EIO` when it speaks another one.
    pub fn begin(&self) -> Result<()> {
        if self.most.get().is_some() {
            return Ok(());
        }
        let offer = |request: &mut Writer| {
            request.u32(MESSAGE as u32).text(VERSION);
        };
        let agreed = |reply: &mut Reader| {
            let size = reply.u32()? as usize;
            // A server that cannot move a page at a time is of no use.
            let fits = (PAGE_SIZE + OVERHEAD..=MESSAGE).contains(&size);
            if fits && reply.text()? == VERSION { Ok(size) } else { Err(Errno::EIO) }
        };
        let size = self.channel.call(Kind::Version, &mut None, offer, agreed)?;
        let _ = self.most.set(size - OVERHEAD);
        Ok(())
    }

    /// The device has interrupted.
    pub fn interrupted(&self) {
        self.channel.reap();
    }

    /// Bytes that one read or write moves at most.
    pub fn most(&self) -> usize {
        self.most.get().copied().unwrap_or(0)
    }

    /// Tells the server which numbers are free again, for ever.
    fn give_back(&self) {
        loop {
            sched::sleep_until(Sleep::Uninterruptible, || self.numbers.lock().given_up.is_some());
            let Some(number) = pop(&mut self.numbers.lock().given_up) else { continue };
            let fid = number.number;
            let told = self.channel.call(
                Kind::Clunk,
                &mut None,
                |request| {
                    request.u32(fid);
                },
                |_| Ok(()),
            );
            // With an error it is gone as well; only a server that is gone itself has it still.
            if told != Err(Errno::EIO) {
                push(&mut self.numbers.lock().free, number);
            }
        }
    }

    /// A fid that the server does not know yet.
    fn fid(&'static self) -> Result<Fid> {
        let reused = pop(&mut self.numbers.lock().free);
        let number = match reused {
            Some(number) => number,
            None => {
                // Ordering: only the numbers have to differ.
                let number = self.next.fetch_add(1, Ordering::Relaxed);
                fallible::boxed(Number { number, next: None })?
            }
        };
        Ok(Fid { session: self, number: Some(number), made: false })
    }

    fn make<R>(
        &'static self,
        kind: Kind,
        fill: impl FnOnce(&mut Writer, u32),
        take: impl FnOnce(&mut Reader) -> Result<R>,
    ) -> Result<(Fid, R)> {
        let fid = self.fid()?;
        let number = fid.number();
        let mut fid = Some(fid);
        let result = self.channel.call(kind, &mut fid, |request| fill(request, number), take)?;
        Ok((fid.ok_or(Errno::EIO)?, result))
    }

    /// The root of what the server shows.
    pub fn attach(&'static self) -> Result<Fid> {
        let fill = |request: &mut Writer, fid| {
            request.u32(fid).u32(NO_FID).text(b"root").text(b"").u32(0);
        };
        self.make(Kind::Attach, fill, |reply| reply.file_number()).map(|(fid, _)| fid)
    }
}

impl Fid {
    fn ask<R>(
        &self,
        kind: Kind,
        fill: impl FnOnce(&mut Writer),
        take: impl FnOnce(&mut Reader) -> Result<R>,
    ) -> Result<R> {
        let fill = |request: &mut Writer| {
            request.u32(self.number());
            fill(request);
        };
        self.session.channel.call(kind, &mut None, fill, take)
    }

    /// Another fid for the entry `name`, or for the same file.
    pub fn walk(&self, name: Option<&[u8]>) -> Result<Fid> {
        let wanted = u16::from(name.is_some());
        let fill = |request: &mut Writer, fid| {
            request.u32(self.number()).u32(fid).u16(wanted);
            name.iter().for_each(|name| {
                request.text(name);
            });
        };
        let take = |reply: &mut Reader| if reply.u16()? == wanted { Ok(()) } else { Err(Errno::ENOENT) };
        self.session.make(Kind::Walk, fill, take).map(|(fid, ())| fid)
    }

    /// What stat(2) tells.
    pub fn attributes(&self) -> Result<Attr> {
        self.ask(
            Kind::GetAttributes,
            |request| {
                request.u64(Attr::BASIC);
            },
            Attr::read,
        )
    }

    /// Changes attributes.
    pub fn change(&self, change: &Change) -> Result<()> {
        self.ask(Kind::SetAttributes, |request| change.write(request), |_| Ok(()))
    }

    /// Opens the file; `flags` are Linux's `O_*`. From now on the fid is for reading and writing only.
    pub fn open(&self, flags: u32) -> Result<()> {
        self.ask(
            Kind::Open,
            |request| {
                request.u32(flags);
            },
            |_| Ok(()),
        )
    }

    /// Creates and opens a file in this directory: the fid is the file's then.
    pub fn create(&self, name: &[u8], flags: u32, permissions: u32, gid: u32) -> Result<()> {
        self.ask(
            Kind::Create,
            |request| {
                request.text(name).u32(flags).u32(permissions).u32(gid);
            },
            |_| Ok(()),
        )
    }

    pub fn make_directory(&self, name: &[u8], permissions: u32, gid: u32) -> Result<()> {
        self.ask(
            Kind::MakeDirectory,
            |request| {
                request.text(name).u32(permissions).u32(gid);
            },
            |_| Ok(()),
        )
    }

    pub fn make_node(&self, name: &[u8], mode: u32, gid: u32) -> Result<()> {
        self.ask(
            Kind::MakeNode,
            |request| {
                request.text(name).u32(mode).u32(0).u32(0).u32(gid);
            },
            |_| Ok(()),
        )
    }

    pub fn symlink(&self, name: &[u8], target: &[u8], gid: u32) -> Result<()> {
        self.ask(
            Kind::Symlink,
            |request| {
                request.text(name).text(target).u32(gid);
            },
            |_| Ok(()),
        )
    }

    pub fn read_link(&self) -> Result<alloc::vec::Vec<u8>> {
        self.ask(Kind::ReadLink, |_| {}, |reply| fallible::copy_of(reply.text()?))
    }

    /// A further name for `file` in this directory.
    pub fn link(&self, name: &[u8], file: &Fid) -> Result<()> {
        self.ask(
            Kind::Link,
            |request| {
                request.u32(file.number()).text(name);
            },
            |_| Ok(()),
        )
    }

    /// Removes an entry, by Linux's `AT_REMOVEDIR` or 0.
    pub fn unlink(&self, name: &[u8], flags: u32) -> Result<()> {
        self.ask(
            Kind::Unlink,
            |request| {
                request.text(name).u32(flags);
            },
            |_| Ok(()),
        )
    }

    /// Moves an entry of this directory.
    pub fn rename(&self, name: &[u8], new_dir: &Fid, new_name: &[u8]) -> Result<()> {
        self.ask(
            Kind::Rename,
            |request| {
                request.text(name).u32(new_dir.number()).text(new_name);
            },
            |_| Ok(()),
        )
    }

    /// Reads as much as one request can; 0 at the end.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> Result<usize> {
        self.read_by(Kind::Read, offset, to)
    }

    /// Reads entries of an open directory.
    pub fn read_directory(&self, offset: u64, to: &mut [u8]) -> Result<usize> {
        self.read_by(Kind::ReadDirectory, offset, to)
    }

    fn read_by(&self, kind: Kind, offset: u64, to: &mut [u8]) -> Result<usize> {
        let wanted = to.len().min(self.session.most());
        self.ask(
            kind,
            |request| {
                request.u64(offset).u32(wanted as u32);
            },
            |reply| {
                let len = reply.u32()? as usize;
                let bytes = reply.bytes(len)?;
                to.get_mut(..len).filter(|_| len <= wanted).ok_or(Errno::EIO)?.copy_from_slice(bytes);
                Ok(len)
            },
        )
    }

    /// Writes as much as one request can, and tells how much that was.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<usize> {
        let wanted = from.len().min(self.session.most());
        self.ask(
            Kind::Write,
            |request| {
                request.u64(offset).u32(wanted as u32).bytes(&from[..wanted]);
            },
            |reply| {
                let len = reply.u32()? as usize;
                // A server that takes nothing would be asked for ever.
                if len > wanted || len == 0 && wanted > 0 { Err(Errno::EIO) } else { Ok(len) }
            },
        )
    }

    /// What was written is on the host's disk when this returns.
    pub fn sync(&self) -> Result<()> {
        self.ask(
            Kind::Sync,
            |request| {
                request.u32(0);
            },
            |_| Ok(()),
        )
    }

    pub fn statfs(&self) -> Result<Statfs> {
        self.ask(
            Kind::Statfs,
            |_| {},
            |reply| {
                let (_kind, block_size) = (reply.u32()?, reply.u32()?);
                let (blocks, blocks_free, blocks_available) = (reply.u64()?, reply.u64()?, reply.u64()?);
                let (files, files_free, _id, name_max) =
                    (reply.u64()?, reply.u64()?, reply.u64()?, reply.u32()?);
                Ok(Statfs {
                    magic: super::MAGIC,
                    block_size: block_size.into(),
                    blocks,
                    blocks_free,
                    blocks_available,
                    files,
                    files_free,
                    name_max: name_max.into(),
                })
            },
        )
    }
}
