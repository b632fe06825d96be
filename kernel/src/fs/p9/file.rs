//! An open regular file of the host.
//!
//! A file without a name is known to the server by its open fids alone, which can read and write but neither tell its size nor change
//! it. Nobody but this system has it open then, so its size is counted here; what is behind it on the server is zeroes, and is not
//! read.

use alloc::sync::Arc;
use core::fmt::Write as _;

use linux_raw_sys::general as abi;

use super::node::{self, Node};
use super::session::Fid;
use super::wire::Change;
use crate::errno::{Errno, Result};
use crate::fs::file::{AT_END, File, FileOps};
use crate::fs::inode::Inode;
use crate::fs::iobuf::{Sink, Source};
use crate::fs::{attributes, caller};
use crate::memory::fallible::{self, Text};
use crate::mm::backing::Backing;
use crate::sched;

/// The largest file, bytes.
const MAX_SIZE: u64 = i64::MAX as u64;

/// What stands behind one open file.
pub struct OpenFile {
    fid: Arc<Fid>,
}

/// The content is about to change: see [`attributes::remove_privileges`]. The host's kernel does that for a server that is not root.
fn remove_privileges(inode: &Inode, node: &Node) {
    let before = inode.attributes().permissions;
    attributes::remove_privileges(inode);
    let after = inode.attributes().permissions;
    if before != after {
        // Who may not change the mode could not have written either.
        let _ = node.change(&Change { permissions: Some(after), ..Change::default() });
    }
}

impl OpenFile {
    /// For a fid that is open.
    pub fn new(fid: Fid) -> Self {
        Self { fid: Arc::new(fid) }
    }

    /// Where the file ends now.
    fn end(&self, inode: &Inode, node: &Node) -> Result<u64> {
        if node.is_gone() { Ok(node.content().len()) } else { Ok(node.ask(inode)?.size) }
    }

    /// Writes from `source` until it is empty or something fails; tells how much was written.
    fn write_from(&self, offset: u64, source: &mut Source) -> Result<usize> {
        let mut buffer = fallible::filled(0u8, source.remaining().min(self.fid.session().most()))?;
        let mut done = 0;
        while source.remaining() > 0 {
            // Through a buffer: a fault of user memory may need the line to the server.
            let want = source.remaining().min(buffer.len());
            let taken = source.read(&mut buffer[..want]);
            let written = taken.and_then(|taken| self.fid.write(offset + done as u64, &buffer[..taken]));
            let (taken, written) = match (taken, written) {
                (Ok(taken), Ok(written)) => (taken, written),
                (_, Err(error)) if done == 0 => return Err(error),
                _ => break,
            };
            done += written;
            source.rewind(taken - written);
            if taken < want {
                break;
            }
            sched::cond_resched();
        }
        Ok(done)
    }

    /// Sets the size of a file without a name. What it loses becomes zeroes, so that it can grow again.
    fn resize_gone(&self, node: &Node, size: u64) -> Result<()> {
        let old = node.content().len();
        let mut at = size;
        if at < old {
            let zeroes = fallible::filled(0u8, self.fid.session().most())?;
            while at < old {
                let len = (old - at).min(zeroes.len() as u64) as usize;
                at += self.fid.write(at, &zeroes[..len])? as u64;
                sched::cond_resched();
            }
        }
        node.content().resized(size)
    }
}

impl FileOps for OpenFile {
    fn appends(&self) -> bool {
        true
    }

    fn seekable(&self) -> bool {
        true
    }

    fn read_at(&self, file: &File, offset: u64, sink: &mut Sink) -> Result<usize> {
        let node = node::of(file.inode())?;
        let end = if node.is_gone() { node.content().len() } else { u64::MAX };
        let wanted = sink.remaining().min(end.saturating_sub(offset).min(usize::MAX as u64) as usize);
        let mut buffer = fallible::filled(0u8, wanted.min(self.fid.session().most()))?;
        let mut done = 0;
        while done < wanted {
            let want = buffer.len().min(wanted - done);
            let part = &mut buffer[..want];
            let read = match self.fid.read(offset + done as u64, part) {
                // What it was made longer by.
                Ok(read) if read < want && node.is_gone() => {
                    part[read..].fill(0);
                    want
                }
                Ok(read) => read,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            };
            let moved = match sink.write(&part[..read]) {
                Ok(moved) => moved,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            };
            done += moved;
            if moved < want {
                break;
            }
            sched::cond_resched();
        }
        Ok(done)
    }

    fn write_at(&self, file: &File, offset: &mut u64, source: &mut Source) -> Result<usize> {
        if source.remaining() == 0 {
            return Ok(0);
        }
        let inode = file.inode();
        let node = node::of(inode)?;
        let _writers = inode.lock.lock_killable().ok_or(Errno::EINTR)?;
        if file.appending() || *offset == AT_END {
            *offset = self.end(inode, node)?;
        }
        let room = caller::write_room(*offset, MAX_SIZE)?;
        let cut = source.truncate(room.min(usize::MAX as u64) as usize);
        remove_privileges(inode, node);
        let result = self.write_from(*offset, source);
        source.extend(cut);
        let done = result?;
        node.content().written(*offset..*offset + done as u64);
        inode.touch_modified();
        if file.flags() & abi::O_DSYNC != 0 {
            self.fid.sync()?;
        }
        Ok(done)
    }

    fn mmap(&self, file: &Arc<File>, _offset: u64, _len: u64) -> Result<Backing> {
        let node = node::of(file.inode())?;
        let attr = if node.is_gone() { None } else { Some(node.ask(file.inode())?) };
        node.content().map(&self.fid, attr.as_ref());
        Ok(Backing::PageCache(node.content().clone()))
    }

    fn truncate(&self, file: &File, size: u64) -> Result<()> {
        if size > MAX_SIZE {
            return Err(Errno::EFBIG);
        }
        let inode = file.inode();
        let node = node::of(inode)?;
        let _writers = inode.lock.lock_killable().ok_or(Errno::EINTR)?;
        if node.is_gone() {
            self.resize_gone(node, size)?;
        } else {
            inode.ops.truncate(inode, size)?;
        }
        remove_privileges(inode, node);
        inode.touch_modified();
        Ok(())
    }

    fn sync(&self, _file: &File) -> Result<()> {
        self.fid.sync()
    }

    fn describe(&self, file: &File, out: &mut Text) {
        let _ = writeln!(out, "size:\t{}", node::of(file.inode()).map_or(0, |node| node.content().len()));
    }
}
