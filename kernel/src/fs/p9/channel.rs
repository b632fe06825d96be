//! The line to a server: virtio's queue, and some requests on their way at a time.
//!
//! A request and its reply have memory of their own, an [`Exchange`], which goes from hand to hand: free, with the caller who fills it, with
//! the device, with the caller again. So nobody looks at what the device writes. The queue is used with interrupts off and for moments; a
//! caller waits asleep, and a signal that kills ends that. Then the exchange stays with the device until the reply comes, which nobody
//! reads. The server need not be asked to give up (`Tflush`): QEMU answers that only when it has answered the request.

use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;
use virtio_drivers::transport::pci::PciTransport;

use super::session::Fid;
use super::wire::{Kind, NO_TAG, Reader, Writer};
use crate::errno::{Errno, Result};
use crate::sync::{IrqLock, WaitError, WaitQueue};
use crate::time::clock;
use crate::virtio::{Buffers, Memory};

/// Requests on their way at a time.
const SLOTS: usize = 8;
/// Places in the queue: each request takes one, and its reply one.
const RING: usize = 2 * SLOTS;
/// The queue's number.
const QUEUE: u16 = 0;
/// Bytes of a message at most: 64 KiB of data, and a page for the rest.
pub const MESSAGE: usize = (64 << 10) + (4 << 10);
/// Nanoseconds between two looks at a device whose interrupts do not arrive.
const POLL: u64 = 1_000_000;

bitflags::bitflags! {
    /// What the device and we know of the line.
    #[derive(Clone, Copy, Debug)]
    struct Features: u64 {
        const VERSION_1 = 1 << 32;
    }
}

/// Memory for a request, and behind it for its reply.
struct Exchange(Buffers);

impl Exchange {
    fn new() -> Result<Self> {
        Buffers::new(1, 2 * MESSAGE).map(Self)
    }

    fn both(&mut self) -> (&mut [u8], &mut [u8]) {
        self.0.get(0).split_at_mut(MESSAGE)
    }
}

/// Where an exchange is.
enum Place {
    Free(Exchange),
    /// With the caller.
    Taken,
    /// With the device: the request's length, and its first place in the queue.
    Sent {
        exchange: Exchange,
        len: usize,
        head: u16,
    },
    /// As `Sent`, and nobody waits. The fid is one that the request may have made.
    Abandoned {
        exchange: Exchange,
        len: usize,
        head: u16,
        fid: Option<Fid>,
    },
    /// The reply is there, of so many bytes by the device's word.
    Done {
        exchange: Exchange,
        len: usize,
    },
}

struct State {
    queue: VirtQueue<Memory, RING>,
    transport: PciTransport,
    places: [Place; SLOTS],
    /// The device has said what cannot be: nothing is asked of it any more.
    broken: bool,
}

/// The line.
pub struct Channel {
    state: IrqLock<State>,
    /// Who waits for the reply in a place.
    replies: [WaitQueue; SLOTS],
    /// Who waits for a free place.
    free: WaitQueue,
    /// The device's interrupts arrive.
    hears: bool,
}

impl Channel {
    /// Takes a device over. `ENOMEM`; `EIO` for a device that is none.
    pub fn new(mut transport: PciTransport, hears: bool) -> Result<Self> {
        let mut places = [const { Place::Taken }; SLOTS];
        for place in &mut places {
            *place = Place::Free(Exchange::new()?);
        }
        let _: Features = transport.begin_init(Features::all());
        let queue = VirtQueue::new(&mut transport, QUEUE, false, false).map_err(|error| match error {
            virtio_drivers::Error::DmaError => Errno::ENOMEM,
            _ => Errno::EIO,
        })?;
        transport.finish_init();
        Ok(Self {
            state: IrqLock::new(State { queue, transport, places, broken: false }),
            replies: core::array::from_fn(|_| WaitQueue::new()),
            free: WaitQueue::new(),
            hears,
        })
    }

    /// Sends a request and waits for its reply, of which `take` makes the result. `fid`: what the request makes; it is made on success, and
    /// given up when the request is abandoned. `EINTR` for a caller who is killed, `EIO` when the reply makes no sense.
    ///
    /// `fill` and `take` have one of few places: they touch no memory of users, whose fault may need another.
    pub fn call<R>(
        &self,
        kind: Kind,
        fid: &mut Option<Fid>,
        fill: impl FnOnce(&mut Writer),
        take: impl FnOnce(&mut Reader) -> Result<R>,
    ) -> Result<R> {
        let (slot, mut exchange) = self.wait(&self.free, State::take_free).map_err(|_| Errno::EINTR)??;
        let tag = if kind == Kind::Version { NO_TAG } else { slot as u16 };
        let mut request = Writer::new(exchange.both().0, kind, tag);
        fill(&mut request);
        let len = match request.finish() {
            Ok(len) => len,
            Err(error) => {
                self.put_back(slot, exchange);
                return Err(error);
            }
        };
        let sent = self.state.lock().send(slot, exchange, len);
        if sent.is_err() {
            self.free.wake_one();
        }
        sent?;
        let done = match self.wait(&self.replies[slot], |state| state.take_done(slot)) {
            Ok(done) => done?,
            // Unless it came in the last moment.
            Err(_) => self.state.lock().abandon(slot, fid).ok_or(Errno::EINTR)?,
        };
        let (mut exchange, len) = done;
        let taken =
            Reader::of_reply(exchange.both().1, len, kind, tag).and_then(|mut reply| take(&mut reply));
        self.put_back(slot, exchange);
        if taken.is_ok()
            && let Some(fid) = fid
        {
            fid.set_made();
        }
        taken
    }

    /// Waits until `ready` gives a value; the inner error when the line is broken.
    fn wait<T>(
        &self,
        queue: &WaitQueue,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<Result<T>, WaitError> {
        loop {
            let deadline = (!self.hears).then(|| clock::now() + POLL);
            let waited = queue.wait_killable(deadline, || {
                self.reap();
                let mut state = self.state.lock();
                match ready(&mut state) {
                    Some(value) => Some(Ok(value)),
                    None => state.broken.then_some(Err(Errno::EIO)),
                }
            });
            if !matches!(waited, Err(WaitError::TimedOut)) {
                return waited;
            }
        }
    }

    /// Takes what the device is done with off the queue. Usable in interrupt handlers.
    pub fn reap(&self) {
        // Each reply answers one of these; then the queue is empty, or broken.
        for _ in 0..SLOTS {
            let reaped = self.state.lock().reap();
            match reaped {
                Reaped::Nothing => return,
                Reaped::Done(slot) => self.replies[slot].wake_all(),
                Reaped::Freed(_fid) => self.free.wake_one(),
                Reaped::Nonsense => {
                    self.replies.iter().for_each(WaitQueue::wake_all);
                    self.free.wake_all();
                    return;
                }
            }
        }
    }

    fn put_back(&self, slot: usize, exchange: Exchange) {
        self.state.lock().places[slot] = Place::Free(exchange);
        self.free.wake_one();
    }
}

/// What was found on the queue.
enum Reaped {
    Nothing,
    /// A reply that somebody waits for.
    Done(usize),
    /// One that nobody waits for. The fid goes outside of the lock.
    Freed(Option<Fid>),
    /// What answers nothing.
    Nonsense,
}

impl State {
    fn take_free(&mut self) -> Option<(usize, Exchange)> {
        let slot = self.places.iter().position(|place| matches!(place, Place::Free(_)))?;
        match core::mem::replace(&mut self.places[slot], Place::Taken) {
            Place::Free(exchange) => Some((slot, exchange)),
            _ => None,
        }
    }

    fn take_done(&mut self, slot: usize) -> Option<(Exchange, usize)> {
        match core::mem::replace(&mut self.places[slot], Place::Taken) {
            Place::Done { exchange, len } => Some((exchange, len)),
            other => {
                self.places[slot] = other;
                None
            }
        }
    }

    /// Gives an exchange to the device. `EIO` when that has no place for it.
    fn send(&mut self, slot: usize, mut exchange: Exchange, len: usize) -> Result<()> {
        if self.broken {
            self.places[slot] = Place::Free(exchange);
            return Err(Errno::EIO);
        }
        let (request, reply) = exchange.both();
        // SAFETY: the exchange stays in its place, and nobody looks into it, until `reap` has it back.
        let sent = unsafe { self.queue.add(&[&request[..len]], &mut [reply]) };
        match sent {
            Ok(head) => {
                self.places[slot] = Place::Sent { exchange, len, head };
                if self.queue.should_notify() {
                    self.transport.notify(QUEUE);
                }
                Ok(())
            }
            Err(_) => {
                self.places[slot] = Place::Free(exchange);
                Err(Errno::EIO)
            }
        }
    }

    /// Nobody waits for the reply any more; gives it when it is there already.
    fn abandon(&mut self, slot: usize, fid: &mut Option<Fid>) -> Option<(Exchange, usize)> {
        match core::mem::replace(&mut self.places[slot], Place::Taken) {
            Place::Done { exchange, len } => Some((exchange, len)),
            Place::Sent { exchange, len, head } => {
                let mut fid = fid.take();
                // The server may have made it.
                fid.iter_mut().for_each(Fid::set_made);
                self.places[slot] = Place::Abandoned { exchange, len, head, fid };
                None
            }
            other => {
                self.places[slot] = other;
                None
            }
        }
    }

    /// Takes one reply off the queue.
    fn reap(&mut self) -> Reaped {
        let Some(token) = self.queue.peek_used() else { return Reaped::Nothing };
        let is_it = |place: &Place| match place {
            Place::Sent { head, .. } | Place::Abandoned { head, .. } => *head == token,
            _ => false,
        };
        let Some(slot) = self.places.iter().position(is_it).filter(|_| !self.broken) else {
            self.broken = true;
            return Reaped::Nonsense;
        };
        let (mut exchange, len, fid, waits) = match core::mem::replace(&mut self.places[slot], Place::Taken) {
            Place::Sent { exchange, len, .. } => (exchange, len, None, true),
            Place::Abandoned { exchange, len, fid, .. } => (exchange, len, fid, false),
            _ => unreachable!("it was one of these a moment ago"),
        };
        let (request, reply) = exchange.both();
        // SAFETY: these are the buffers that were sent with this token.
        let popped = unsafe { self.queue.pop_used(token, &[&request[..len]], &mut [reply]) };
        let Ok(len) = popped else {
            self.broken = true;
            return Reaped::Nonsense;
        };
        if !waits {
            self.places[slot] = Place::Free(exchange);
            return Reaped::Freed(fid);
        }
        self.places[slot] = Place::Done { exchange, len: len as usize };
        Reaped::Done(slot)
    }
}
