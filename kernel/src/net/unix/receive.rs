//! Receiving.

use alloc::sync::Arc;
use alloc::vec::Vec;

use linux_raw_sys::net;

use super::address::Address;
use super::{Kind, Role, Socket};
use crate::errno::{Errno, Result};
use crate::fs::{File, Sink};
use crate::memory::fallible::CopyUnderLock;
use crate::net::message::{Message, Rights, TAKING, Ucred};
use crate::net::options::{deadline, wait_error};
use crate::process;

/// What one receive got.
#[derive(Default)]
pub struct Received {
    /// Bytes; with MSG_TRUNC the whole message's.
    pub count: usize,
    /// `MSG_TRUNC` when a message was longer than the memory for it.
    pub flags: u32,
    /// The sender's address: of datagrams, and of sockets that have one.
    pub from: Option<Address>,
    /// Files that came along.
    pub files: Vec<Arc<File>>,
    /// Who sent it.
    pub credentials: Option<Ucred>,
}

impl Socket {
    /// Receives into `sink`. `flags` are `MSG_*`.
    pub fn receive(&self, sink: &mut Sink, flags: u32) -> Result<Received> {
        if flags & net::MSG_OOB != 0 {
            return Err(if self.kind == Kind::Stream { Errno::EINVAL } else { Errno::EOPNOTSUPP });
        }
        match self.kind {
            Kind::Stream => self.receive_stream(sink, flags),
            _ => self.receive_message(sink, flags),
        }
    }

    /// Is there something to read, or will there never be? `Some(false)` is the end of the connection.
    fn look(&self) -> Option<Result<bool>> {
        if !self.queue.lock().is_empty() {
            return Some(Ok(true));
        }
        let mut state = self.state.lock();
        if let Some(error) = state.error.take() {
            return Some(Err(error));
        }
        if state.receive_closed {
            // What came before the end comes first: it may have come since the look at the queue.
            return Some(Ok(!self.queue.lock().is_empty()));
        }
        None
    }

    /// Waits for something to read; false at the end of the connection.
    fn wait_readable(&self, flags: u32, deadline: Option<u64>, timeout: u64) -> Result<bool> {
        match self.look() {
            Some(result) => result,
            None if flags & net::MSG_DONTWAIT != 0 => Err(Errno::EAGAIN),
            None => self.readable.wait_event(deadline, || self.look()).map_err(|e| wait_error(e, timeout))?,
        }
    }

    fn check_connected(&self) -> Result<()> {
        match self.state.lock().role {
            Role::Connected(_) | Role::Orphaned => Ok(()),
            _ if self.kind == Kind::Stream => Err(Errno::EINVAL),
            _ => Err(Errno::ENOTCONN),
        }
    }

    fn receive_stream(&self, sink: &mut Sink, flags: u32) -> Result<Received> {
        self.check_connected()?;
        let timeout = self.options.lock().receive_timeout;
        let deadline = deadline(timeout);
        let mut received = Received::default();
        let mut turn = None;
        let whole = flags & net::MSG_WAITALL != 0 && flags & net::MSG_PEEK == 0;
        // With MSG_PEEK nothing is taken: how far it has looked.
        let mut peeked = 0;
        while sink.remaining() > 0 {
            if received.count == 0 || whole && self.queue.lock().is_empty() {
                // Others may be served with less.
                turn = None;
                match self.wait_readable(flags, deadline, timeout) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(_) if received.count > 0 => break,
                    Err(error) => return Err(error),
                }
            }
            if turn.is_none() {
                let taken = match flags & net::MSG_DONTWAIT {
                    0 => self.reading.take(deadline, timeout),
                    _ => self.reading.try_take().ok_or(Errno::EAGAIN),
                };
                match taken {
                    Ok(taken) => turn = Some(taken),
                    Err(_) if received.count > 0 => break,
                    Err(error) => return Err(error),
                }
            }
            let step = if flags & net::MSG_PEEK != 0 {
                self.peek_piece(sink, &mut peeked, &mut received)
            } else {
                self.take_piece(sink, &mut received)
            };
            match step {
                Ok(true) => {}
                // Another reader was faster.
                Ok(false) if received.count == 0 => {}
                Ok(false) => break,
                Err(_) if received.count > 0 => break,
                Err(error) => return Err(error),
            }
            if sink.remaining() > 0 && process::is_killed() {
                break;
            }
        }
        drop(turn);
        if received.count > 0 {
            received.from = self.state.lock().peer_address.clone();
        }
        Ok(received)
    }

    /// May a piece be joined to what was received before? Not when it has another sender that counts, or when files would get mixed.
    fn joins(&self, message: &Message, received: &Received) -> bool {
        if received.count == 0 {
            return true;
        }
        let passing = self.options.lock().pass_credentials;
        let same_sender = !passing || received.credentials == Some(message.credentials);
        same_sender && received.files.is_empty() && message.rights.is_none()
    }

    /// Takes from the first message. False when the receive is to end. It is the caller's turn: nobody else takes.
    fn take_piece(&self, sink: &mut Sink, received: &mut Received) -> Result<bool> {
        let mut bytes = CopyUnderLock::new();
        let has_rights = loop {
            let has_rights = {
                let queue = self.queue.lock();
                let Some(front) = queue.front() else { return Ok(false) };
                if !self.joins(front, received) {
                    return Ok(false);
                }
                let len = front.rest().len().min(sink.remaining());
                bytes.copy(&front.rest()[..len]);
                front.rights.is_some()
            };
            if bytes.is_done()? {
                break has_rights;
            }
        };
        let bytes = bytes.into_vec();
        // Copied without a spin lock: user memory may have to be faulted in.
        let count = sink.write(&bytes)?;
        let taking = match has_rights {
            true => Some(TAKING.lock_killable().ok_or(Errno::EINTR)?),
            false => None,
        };
        received.count += count;
        let mut queue = self.queue.lock();
        let Some(front) = queue.front_mut() else { return Ok(false) };
        received.credentials = Some(front.credentials);
        let rights = front.rights.take();
        front.taken += count;
        let finished = if front.rest().is_empty() { self.take_message(&mut queue) } else { None };
        drop(queue);
        let files = rights.map(Rights::into_files);
        drop(taking);
        if finished.is_some() {
            self.made_room();
        }
        drop(finished);
        if let Some(files) = files {
            received.files = files;
            return Ok(false);
        }
        Ok(count == bytes.len())
    }

    /// Looks at the stream without taking anything. `peeked`: how far it has got.
    fn peek_piece(&self, sink: &mut Sink, peeked: &mut usize, received: &mut Received) -> Result<bool> {
        let mut copy = Copy::default();
        let (credentials, has_rights) = loop {
            let seen = {
                let queue = self.queue.lock();
                let mut skip = *peeked;
                let mut found = None;
                for message in queue.iter() {
                    if skip < message.rest().len() {
                        found = Some(message);
                        break;
                    }
                    skip -= message.rest().len();
                }
                let Some(message) = found else { return Ok(false) };
                if !self.joins(message, received) {
                    return Ok(false);
                }
                let rest = &message.rest()[skip..];
                copy.look(message, &rest[..rest.len().min(sink.remaining())]);
                (message.credentials, message.rights.is_some())
            };
            if copy.is_done()? {
                break seen;
            }
        };
        received.credentials = Some(credentials);
        let (bytes, files) = copy.into_parts();
        let count = sink.write(&bytes)?;
        received.count += count;
        *peeked += count;
        if has_rights {
            received.files = files;
            return Ok(false);
        }
        Ok(count == bytes.len())
    }

    fn receive_message(&self, sink: &mut Sink, flags: u32) -> Result<Received> {
        if self.kind == Kind::SeqPacket {
            self.check_connected()?;
        }
        let timeout = self.options.lock().receive_timeout;
        let deadline = deadline(timeout);
        loop {
            if !self.wait_readable(flags, deadline, timeout)? {
                return Ok(Received::default());
            }
            if flags & net::MSG_PEEK != 0 {
                let peeked = self.peek_message();
                // It is still there for the next one who waits.
                self.readable.wake_one();
                let Some((bytes, mut received)) = peeked? else { continue };
                let copied = if sink.remaining() > 0 { sink.write(&bytes)? } else { 0 };
                finish(&mut received, bytes.len(), copied, flags);
                return Ok(received);
            }
            let taken = self.take_whole().inspect_err(|_| self.readable.wake_one());
            let Some((mut message, files)) = taken? else { continue };
            self.made_room();
            let mut received = Received {
                from: message.from.take(),
                files,
                credentials: Some(message.credentials),
                ..Received::default()
            };
            // A message is gone even when the memory for it is not there.
            let copied = if sink.remaining() > 0 && !message.bytes.is_empty() {
                sink.write(&message.bytes)?
            } else {
                0
            };
            finish(&mut received, message.bytes.len(), copied, flags);
            return Ok(received);
        }
    }

    /// Takes the first message out of the queue, and the files out of the message. `EINTR` for a thread that is killed while it waits for a
    /// search for garbage: only messages with files have to.
    fn take_whole(&self) -> Result<Option<(Message, Vec<Arc<File>>)>> {
        {
            let mut queue = self.queue.lock();
            if queue.front().is_none_or(|front| front.rights.is_none()) {
                return Ok(self.take_message(&mut queue).map(|message| (message, Vec::new())));
            }
        }
        let taking = TAKING.lock_killable().ok_or(Errno::EINTR)?;
        let message = self.take_message(&mut self.queue.lock());
        let taken = message.map(|mut message| {
            let files = message.rights.take().map(Rights::into_files).unwrap_or_default();
            (message, files)
        });
        drop(taking);
        Ok(taken)
    }

    fn peek_message(&self) -> Result<Option<(Vec<u8>, Received)>> {
        let mut copy = Copy::default();
        loop {
            let (from, credentials) = {
                let queue = self.queue.lock();
                let Some(message) = queue.front() else { return Ok(None) };
                copy.look(message, &message.bytes);
                (message.from.clone(), Some(message.credentials))
            };
            if copy.is_done()? {
                let (bytes, files) = copy.into_parts();
                return Ok(Some((bytes, Received { from, files, credentials, ..Received::default() })));
            }
        }
    }
}

/// A copy of what a message brings, which stays where it is.
struct Copy {
    bytes: CopyUnderLock<u8>,
    files: CopyUnderLock<Arc<File>>,
}

impl Default for Copy {
    fn default() -> Self {
        Self { bytes: CopyUnderLock::new(), files: CopyUnderLock::new() }
    }
}

impl Copy {
    /// Copies these bytes of the message, and its files, if there is room. Under the queue's lock.
    fn look(&mut self, message: &Message, bytes: &[u8]) {
        self.bytes.copy(bytes);
        self.files.copy(message.rights.as_ref().map_or(&[], Rights::files));
    }

    /// Whether all was copied; else it is to be looked at again. Without the lock.
    fn is_done(&mut self) -> Result<bool> {
        let done = [self.bytes.is_done()?, self.files.is_done()?];
        if done == [true; 2] {
            return Ok(true);
        }
        self.bytes.clear();
        self.files.clear();
        Ok(false)
    }

    fn into_parts(self) -> (Vec<u8>, Vec<Arc<File>>) {
        (self.bytes.into_vec(), self.files.into_vec())
    }
}

fn finish(received: &mut Received, len: usize, copied: usize, flags: u32) {
    if copied < len {
        received.flags |= net::MSG_TRUNC;
    }
    received.count = if flags & net::MSG_TRUNC != 0 { len } else { copied };
}
