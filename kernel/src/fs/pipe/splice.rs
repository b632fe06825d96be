//! Moving data between pipes and files without user memory: splice(2), tee(2), vmsplice(2).
//!
//! Whole buffers move from pipe to pipe; everything else is copied, which nobody can tell. A buffer that is on its way is in no
//! pipe, and goes back to the front of its own when the other side does not take it. So neither pipe's lock is held while the other side sleeps.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::{Buffer, End, Pipe, Woken};
use crate::errno::{Errno, Result};
use crate::fs::File;
use crate::fs::iobuf::{Sink, Source};
use crate::memory::PAGE_SIZE;
use crate::memory::fallible;
use crate::memory::frame::{Frame, Use};
use crate::process;
use crate::sched;
use crate::signal;

/// The pipe of an open file that is an end of one.
pub fn pipe_of(file: &File) -> Option<&Arc<Pipe>> {
    file.ops_as::<End>().map(|end| &end.pipe)
}

impl Buffer {
    fn new() -> Result<Self> {
        let frame = Frame::alloc(Use::Other).ok_or(Errno::ENOMEM)?;
        Ok(Self { frame, start: 0, end: 0, packet: false })
    }

    fn len(&self) -> usize {
        self.end - self.start
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the frame is this buffer's, and what lies in it was written.
        unsafe { core::slice::from_raw_parts(self.frame.as_ptr().add(self.start), self.len()) }
    }

    /// The whole frame, to be filled.
    fn space(&mut self) -> &mut [u8] {
        // SAFETY: the frame is this buffer's alone; bytes of whatever value are valid.
        unsafe { core::slice::from_raw_parts_mut(self.frame.as_ptr(), PAGE_SIZE) }
    }

    /// A copy of its first `len` bytes.
    fn copy(&self, len: usize) -> Result<Self> {
        let mut copy = Self::new()?;
        copy.space()[..len].copy_from_slice(&self.bytes()[..len]);
        copy.end = len;
        copy.packet = self.packet;
        Ok(copy)
    }
}

/// Lets others run between two buffers: while somebody fills the pipe there is always one more. True when a signal waits.
fn is_asked_to_stop() -> bool {
    sched::cond_resched();
    process::current().signal_pending()
}

/// Counts as a writer of the pipe.
struct InFlight<'a>(&'a Pipe);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if self.0.writers.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.readable.wake_all();
        }
        // What was taken out of this pipe is gone where it could be neither moved on nor put back, and nobody has told of the room.
        if !self.0.is_full() {
            self.0.writable.wake_one();
        }
    }
}

impl Pipe {
    /// Waits until there is something to read. False when there is nothing and no writer.
    fn wait_for_data<'a>(&'a self, nonblocking: bool, woken: &mut Option<Woken<'a>>) -> Result<bool> {
        if self.is_empty() && self.has_writers() {
            if nonblocking {
                return Err(Errno::EAGAIN);
            }
            woken.get_or_insert(Woken(self));
            self.readable.wait_event(None, || (!self.is_empty() || !self.has_writers()).then_some(()))?;
        }
        Ok(!self.is_empty())
    }

    /// Waits until there is room. SIGPIPE and `EPIPE` when nobody reads.
    fn wait_for_room<'a>(&'a self, nonblocking: bool, woken: &mut Option<Woken<'a>>) -> Result<()> {
        loop {
            if !self.has_readers() {
                signal::send_thread(&process::current().to_arc(), signal::SIGPIPE);
                return Err(Errno::EPIPE);
            }
            if !self.is_full() {
                return Ok(());
            }
            if nonblocking {
                return Err(Errno::EAGAIN);
            }
            woken.get_or_insert(Woken(self));
            self.writable.wait_event(None, || (!self.is_full() || !self.has_readers()).then_some(()))?;
        }
    }

    /// Buffers that there is room for.
    fn room(&self) -> usize {
        self.limit.load(Ordering::SeqCst).saturating_sub(self.used.load(Ordering::SeqCst))
    }

    /// A buffer is about to be on its way: until it is back or gone, no reader takes the pipe for one at its end.
    fn in_flight(&self) -> InFlight<'_> {
        self.writers.fetch_add(1, Ordering::SeqCst);
        InFlight(self)
    }

    /// Takes the first buffer out.
    fn detach(&self) -> Result<Option<Buffer>> {
        let mut ring = self.ring()?;
        let Some(buffer) = ring.buffers.pop_front() else { return Ok(None) };
        self.bytes.fetch_sub(buffer.len(), Ordering::SeqCst);
        self.used.store(ring.buffers.len(), Ordering::SeqCst);
        Ok(Some(buffer))
    }

    /// Puts a buffer back that was detached, or what is left of it. With a thread that is killed while it waits for the ring it is lost, as
    /// what a program has read and not written.
    fn put_back(&self, buffer: Buffer) -> Result<()> {
        let mut ring = self.ring()?;
        fallible::reserve_queue(&mut ring.buffers, 1)?;
        self.bytes.fetch_add(buffer.len(), Ordering::SeqCst);
        ring.buffers.push_front(buffer);
        self.used.store(ring.buffers.len(), Ordering::SeqCst);
        drop(ring);
        self.readable.wake_all();
        Ok(())
    }

    /// Adds a buffer at the end; as above.
    fn attach(&self, buffer: Buffer) -> Result<()> {
        let mut ring = self.ring()?;
        fallible::reserve_queue(&mut ring.buffers, 1)?;
        self.bytes.fetch_add(buffer.len(), Ordering::SeqCst);
        ring.buffers.push_back(buffer);
        self.used.store(ring.buffers.len(), Ordering::SeqCst);
        drop(ring);
        self.readable.wake_one();
        Ok(())
    }

    /// Fills the room that there is with what `read` gives, at most `count` bytes. `all`: a read that fills its buffer is followed by another one.
    pub fn fill(
        &self,
        count: usize,
        nonblocking: bool,
        all: bool,
        mut read: impl FnMut(&mut [u8]) -> Result<usize>,
    ) -> Result<usize> {
        let mut woken = None;
        self.wait_for_room(nonblocking, &mut woken)?;
        let count = count.min(self.room().max(1) * PAGE_SIZE);
        let mut done = 0;
        while done < count {
            // Others may fill it, too.
            if done > 0 && (process::is_killed() || self.is_full()) {
                break;
            }
            let mut buffer = Buffer::new()?;
            let want = (count - done).min(PAGE_SIZE);
            let got = match read(&mut buffer.space()[..want]) {
                Ok(0) => break,
                Ok(got) => got,
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            };
            buffer.end = got;
            self.attach(buffer)?;
            done += got;
            if got < want || !all {
                break;
            }
        }
        Ok(done)
    }

    /// Gives what there is to `write`, at most `count` bytes; waits for the first of it only.
    pub fn drain(
        &self,
        count: usize,
        nonblocking: bool,
        mut write: impl FnMut(&[u8]) -> Result<usize>,
    ) -> Result<usize> {
        let (mut done, mut woken) = (0, None);
        while done < count {
            if done > 0 && is_asked_to_stop() {
                break;
            }
            if done == 0 && !self.wait_for_data(nonblocking, &mut woken)? {
                break;
            }
            let _flight = self.in_flight();
            let Some(mut buffer) = self.detach()? else {
                if done > 0 {
                    break;
                }
                continue;
            };
            let want = buffer.len().min(count - done);
            let written = write(&buffer.bytes()[..want]);
            let taken = *written.as_ref().unwrap_or(&0);
            buffer.start += taken;
            done += taken;
            if buffer.len() > 0 {
                self.put_back(buffer)?;
            } else if !self.is_full() {
                self.writable.wake_one();
            }
            match written {
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
                Ok(taken) if taken < want => break,
                Ok(_) => {}
            }
        }
        Ok(done)
    }

    /// splice(2) from this pipe to another: buffers that are wanted whole move.
    pub fn move_to(&self, other: &Pipe, count: usize, nonblocking: bool) -> Result<usize> {
        let (mut done, mut from, mut to) = (0, None, None);
        while done < count {
            if done == 0 {
                if !self.wait_for_data(nonblocking, &mut from)? {
                    break;
                }
                other.wait_for_room(nonblocking, &mut to)?;
            } else if is_asked_to_stop() || other.is_full() || !other.has_readers() {
                break;
            }
            let _flight = self.in_flight();
            let Some(mut buffer) = self.detach()? else {
                if done > 0 {
                    break;
                }
                continue;
            };
            let want = buffer.len().min(count - done);
            if want == buffer.len() {
                other.attach(buffer)?;
                if !self.is_full() {
                    self.writable.wake_one();
                }
            } else {
                let part = buffer.copy(want);
                buffer.start += if part.is_ok() { want } else { 0 };
                self.put_back(buffer)?;
                other.attach(part?)?;
            }
            done += want;
        }
        Ok(done)
    }

    /// tee(2): copies what there is to another pipe, as much as it has room for, and takes nothing out.
    pub fn copy_to(&self, other: &Pipe, count: usize, nonblocking: bool) -> Result<usize> {
        let (mut from, mut to) = (None, None);
        if !self.wait_for_data(nonblocking, &mut from)? {
            return Ok(0);
        }
        other.wait_for_room(nonblocking, &mut to)?;
        let mut done = 0;
        let mut index = 0;
        while done < count && other.has_readers() && !other.is_full() {
            if done > 0 && process::is_killed() {
                break;
            }
            let copy = {
                let ring = self.ring()?;
                let Some(buffer) = ring.buffers.get(index) else { break };
                buffer.copy(buffer.len().min(count - done))?
            };
            index += 1;
            done += copy.len();
            other.attach(copy)?;
        }
        Ok(done)
    }

    /// vmsplice(2) into the pipe: as much of the user's memory as there is room for.
    pub fn fill_from_user(&self, source: &mut Source, nonblocking: bool) -> Result<usize> {
        let count = source.remaining();
        self.fill(count, nonblocking, true, |space| source.read(space))
    }

    /// vmsplice(2) out of the pipe.
    pub fn drain_to_user(&self, sink: &mut Sink, nonblocking: bool) -> Result<usize> {
        let count = sink.remaining();
        self.drain(count, nonblocking, |bytes| sink.write(bytes))
    }
}
