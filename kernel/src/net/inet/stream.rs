//! TCP's bytes: sending and receiving.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use linux_raw_sys::net;

use super::{Role, Socket, check_errors};
use crate::errno::{Errno, Result};
use crate::fs::{Events, Sink, Source};
use crate::memory::fallible::{self, CopyUnderLock, TryVec};
use crate::net::calls::Incoming;
use crate::net::options::{deadline, wait_error};
use crate::process;
use crate::signal;

/// The most bytes that are copied at once.
const PIECE: usize = 32 * 1024;
/// Memory for a short message, so that the next ones may join it.
const SHORT: usize = 1024;

/// The most bytes that wait in a connection which is not accepted yet.
const UNACCEPTED: usize = 64 * 1024;

/// Bytes that were received, in pieces.
#[derive(Default)]
pub struct Bytes {
    pieces: VecDeque<Vec<u8>>,
    /// Bytes of the first piece that were read.
    taken: usize,
    len: usize,
    held: usize,
}

impl Bytes {
    /// Bytes to read.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes of memory that they take.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Puts a piece at the end. What is not needed of it is given back, to be dropped without the lock.
    fn push(&mut self, piece: Vec<u8>) -> Result<Option<Vec<u8>>> {
        if let Some(last) = self.pieces.back_mut()
            && last.capacity() - last.len() >= piece.len()
        {
            last.extend_from_slice(&piece);
            self.len += piece.len();
            return Ok(Some(piece));
        }
        fallible::reserve_queue(&mut self.pieces, 1).map_err(|_| Errno::ENOBUFS)?;
        self.len += piece.len();
        self.held += piece.capacity();
        self.pieces.push_back(piece);
        Ok(None)
    }

    /// What lies `skip` bytes behind the front, of one piece at most.
    pub fn part(&self, mut skip: usize, most: usize) -> &[u8] {
        skip += self.taken;
        for piece in &self.pieces {
            if skip < piece.len() {
                let end = piece.len().min(skip.saturating_add(most));
                return &piece[skip..end];
            }
            skip -= piece.len();
        }
        &[]
    }

    /// Takes bytes of the first piece away; gives the piece when it is used up.
    pub fn take(&mut self, count: usize) -> Option<Vec<u8>> {
        self.taken += count;
        self.len -= count;
        if self.pieces.front().is_some_and(|piece| piece.len() > self.taken) {
            return None;
        }
        self.taken = 0;
        let piece = self.pieces.pop_front();
        self.held -= piece.as_ref().map_or(0, Vec::capacity);
        piece
    }
}

impl Socket {
    /// Bytes that may wait in the queue of `peer` for what this socket sends.
    pub(super) fn window(&self, peer: &Socket) -> usize {
        let own = self.options.lock().send_buffer;
        let window = own + peer.options.lock().receive_buffer;
        // Nobody reads it yet, and perhaps nobody will.
        if peer.waits.load(Ordering::SeqCst) { window.min(UNACCEPTED) } else { window }
    }

    /// The peer of a connection that may be sent to; none when nobody reads any more what is sent.
    fn open_peer(&self) -> Result<Option<Arc<Socket>>> {
        let mut state = self.state.lock();
        if let Some(error) = state.error.take() {
            return Err(error);
        }
        if state.send_closed {
            return Err(Errno::EPIPE);
        }
        match &state.role {
            Role::Connected(peer) => Ok(peer.upgrade()),
            Role::Connecting => Err(Errno::EAGAIN),
            _ => Err(Errno::EPIPE),
        }
    }

    /// Sends what `source` has.
    pub(super) fn send_stream(&self, source: &mut Source, flags: u32) -> Result<usize> {
        let mut done = 0;
        let result = loop {
            match self.send_piece(source, flags) {
                Ok(count) => done += count,
                Err(error) => break Err(error),
            }
            // While the peer takes it all there is always room.
            if source.remaining() == 0 || process::is_killed() {
                break Ok(());
            }
        };
        match result {
            Err(error) if done == 0 => {
                if error == Errno::EPIPE && flags & net::MSG_NOSIGNAL == 0 {
                    signal::send_thread(&process::current().to_arc(), signal::SIGPIPE);
                }
                Err(error)
            }
            _ => Ok(done),
        }
    }

    fn send_piece(&self, source: &mut Source, flags: u32) -> Result<usize> {
        let timeout = self.options.lock().send_timeout;
        let ready = || match self.open_peer() {
            Ok(Some(peer)) => {
                let room = self.window(&peer).saturating_sub(peer.bytes.lock().held());
                (room > 0).then_some(Ok(Some((peer, room))))
            }
            Ok(None) => Some(Ok(None)),
            Err(Errno::EAGAIN) => None,
            Err(error) => Some(Err(error)),
        };
        let found = match ready() {
            Some(found) => found?,
            None if flags & net::MSG_DONTWAIT != 0 => return Err(Errno::EAGAIN),
            None => self
                .writable
                .wait_event(deadline(timeout), ready)
                .map_err(|error| wait_error(error, timeout))??,
        };
        let room = found.as_ref().map_or(PIECE, |(_, room)| *room);
        let len = source.remaining().min(room).min(PIECE);
        let capacity = len.max(SHORT.min(room));
        let mut piece = fallible::with_capacity(capacity).map_err(|_| Errno::ENOBUFS)?;
        piece.try_resize(len, 0).map_err(|_| Errno::ENOBUFS)?;
        // Without a lock: user memory may have to be faulted in.
        let count = if len > 0 { source.read(&mut piece)? } else { 0 };
        piece.truncate(count);
        if count == 0 {
            return Ok(0);
        }
        match found {
            Some((peer, _)) if self.deliver(&peer, piece)? => {}
            // Nobody has that port any more: the answer to what is sent is a reset.
            _ => self.reset(),
        }
        Ok(count)
    }

    /// Puts bytes into the queue of `peer`; false when its file is closed.
    pub(super) fn deliver(&self, peer: &Socket, piece: Vec<u8>) -> Result<bool> {
        let left = {
            let state = peer.state.lock();
            if state.released {
                return Ok(false);
            }
            peer.bytes.lock().push(piece)?
        };
        drop(left);
        peer.readable.wake_all();
        Ok(true)
    }

    /// Is there something to read, or will there never be? `Some(false)` is the end of the connection.
    fn look(&self) -> Option<Result<bool>> {
        if self.bytes.lock().len() > 0 {
            return Some(Ok(true));
        }
        let mut state = self.state.lock();
        if let Some(error) = state.error.take() {
            return Some(Err(error));
        }
        match state.role {
            // What came before the end comes first: it may have come since the look at the queue.
            Role::Connected(_) | Role::Closed if state.receive_closed => {
                Some(Ok(self.bytes.lock().len() > 0))
            }
            Role::Connected(_) | Role::Connecting => None,
            Role::Closed => Some(Ok(false)),
            _ => Some(Err(Errno::ENOTCONN)),
        }
    }

    /// A copy of what lies `skip` bytes behind the front, of one piece at most.
    fn copy_part(&self, skip: usize, most: usize) -> Result<Vec<u8>> {
        let mut copy = CopyUnderLock::new();
        loop {
            copy.copy(self.bytes.lock().part(skip, most));
            if copy.is_done()? {
                return Ok(copy.into_vec());
            }
        }
    }

    /// Receives into `sink`. `flags` are `MSG_*`.
    pub(super) fn receive_stream(&self, sink: &mut Sink, flags: u32) -> Result<Incoming> {
        if flags & net::MSG_OOB != 0 {
            return Err(Errno::EINVAL);
        }
        check_errors(flags)?;
        let timeout = self.options.lock().receive_timeout;
        let deadline = deadline(timeout);
        let mut incoming = Incoming::default();
        let waits = flags & net::MSG_DONTWAIT == 0;
        let mut turn = None;
        let peeks = flags & net::MSG_PEEK != 0;
        let whole = flags & net::MSG_WAITALL != 0 && !peeks;
        // MSG_TRUNC throws the bytes away.
        let discards = flags & net::MSG_TRUNC != 0 && !peeks;
        loop {
            let room = sink.remaining() - if discards { incoming.count } else { 0 };
            if room == 0 && incoming.count > 0 {
                break;
            }
            if incoming.count == 0 || whole && self.bytes.lock().len() == 0 {
                // Others may be served with less.
                turn = None;
                let readable = match self.look() {
                    Some(result) => result,
                    None if !waits => Err(Errno::EAGAIN),
                    None => self
                        .readable
                        .wait_event(deadline, || self.look())
                        .map_err(|error| wait_error(error, timeout))
                        .flatten(),
                };
                match readable {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(_) if incoming.count > 0 => break,
                    Err(error) => return Err(error),
                }
            }
            if room == 0 {
                break;
            }
            if turn.is_none() {
                let taken = match waits {
                    true => self.reading.take(deadline, timeout),
                    false => self.reading.try_take().ok_or(Errno::EAGAIN),
                };
                match taken {
                    Ok(taken) => turn = Some(taken),
                    Err(_) if incoming.count > 0 => break,
                    Err(error) => return Err(error),
                }
            }
            let skip = if peeks { incoming.count } else { 0 };
            let copied = self.copy_part(skip, room.min(PIECE)).and_then(|bytes| {
                let count = if discards { bytes.len() } else { sink.write(&bytes)? };
                Ok((count, bytes.len()))
            });
            let (count, wanted) = match copied {
                Ok(copied) => copied,
                Err(_) if incoming.count > 0 => break,
                Err(error) => return Err(error),
            };
            if wanted == 0 {
                // Another reader was faster.
                if whole || incoming.count == 0 {
                    continue;
                }
                break;
            }
            incoming.count += count;
            if !peeks {
                let used = self.bytes.lock().take(count);
                drop(used);
                if let Some(peer) = self.peer() {
                    peer.writable.wake_all();
                }
            }
            if count < wanted || count < room && process::is_killed() {
                break;
            }
        }
        drop(turn);
        Ok(incoming)
    }

    pub(super) fn poll_stream(&self) -> Events {
        let mut events = Events::empty();
        let peer = {
            let state = self.state.lock();
            if state.error.is_some() {
                events |= Events::ERR;
            }
            if state.receive_closed {
                events |= Events::READABLE | Events::RDHUP;
            }
            match &state.role {
                Role::Listening { pending, .. } => {
                    return if pending.is_empty() { Events::empty() } else { Events::READABLE };
                }
                Role::Connecting => return events,
                Role::Idle => {
                    // An attempt that has failed reads as an end, too.
                    if state.untold {
                        events |= Events::READABLE | Events::RDHUP;
                    }
                    return events | Events::WRITABLE | Events::HUP;
                }
                Role::Closed => return events | Events::READABLE | Events::WRITABLE | Events::HUP,
                Role::Connected(peer) => {
                    if state.receive_closed && state.send_closed {
                        events |= Events::HUP;
                    }
                    if state.send_closed { Err(()) } else { Ok(peer.upgrade()) }
                }
            }
        };
        if self.bytes.lock().len() > 0 {
            events |= Events::READABLE;
        }
        let writable = match peer {
            Ok(Some(peer)) => {
                let held = peer.bytes.lock().held();
                held * 3 < self.window(&peer) * 2
            }
            _ => true,
        };
        if writable {
            events |= Events::WRITABLE;
        }
        events
    }

    /// shutdown(2) of a stream.
    pub(super) fn shutdown_stream(&self, receive: bool, send: bool) -> Result<()> {
        let peer = {
            let mut state = self.state.lock();
            match &state.role {
                Role::Listening { .. } if receive => {
                    drop(state);
                    self.stop_listening();
                    return Ok(());
                }
                Role::Listening { .. } => return Ok(()),
                Role::Connected(peer) => {
                    let peer = peer.upgrade();
                    state.receive_closed |= receive;
                    let first = send && !state.send_closed;
                    state.send_closed |= send;
                    peer.filter(|_| first)
                }
                _ => return Err(Errno::ENOTCONN),
            }
        };
        self.wake();
        if let Some(peer) = peer {
            peer.finish();
        }
        Ok(())
    }
}
