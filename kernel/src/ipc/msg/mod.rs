//! System V message queues: msgget(2), msgsnd(2), msgrcv(2), msgctl(2).

mod control;
mod messages;
mod receivers;
mod senders;

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

pub use self::control::{Status, list};
use self::messages::Messages;
use self::messages::Parcel;
pub use self::messages::{Message, Selection};
use self::receivers::{Receiver, Receivers};
use self::senders::{Sender, Senders};
use super::ids::{Limits, Object};
use super::permissions::{Permissions, READ, WRITE};
use crate::errno::{Errno, Result};
use crate::namespaces::ipc::{Home, here};
use crate::process::Pid;
use crate::sched;
use crate::sync::Mutex;

/// `kernel.msgmax`, `kernel.msgmnb` in bytes, `kernel.msgmni`.
pub struct Settings {
    pub largest_message: AtomicUsize,
    pub bytes_in_queue: AtomicUsize,
    pub queues: AtomicUsize,
}

/// The settings.
pub static SETTINGS: Settings = Settings {
    largest_message: AtomicUsize::new(8192),
    bytes_in_queue: AtomicUsize::new(16384),
    queues: AtomicUsize::new(32000),
};

/// Messages in all queues, and their bytes.
static MESSAGES: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

/// Messages in all queues, and their bytes.
pub fn totals() -> (u64, u64) {
    // Relaxed: statistics.
    (MESSAGES.load(Ordering::Relaxed), BYTES.load(Ordering::Relaxed))
}

/// What the lock of a queue guards.
struct State {
    permissions: Permissions,
    sent_at: i64,
    received_at: i64,
    changed_at: i64,
    /// Bytes, and messages, that the queue may hold.
    limit: usize,
    last_sender: Pid,
    last_receiver: Pid,
    messages: Messages,
    receivers: Receivers,
    senders: Senders,
    /// Taken out of its namespace: whoever has found it before gets `EIDRM`.
    removed: bool,
}

/// A queue of messages.
pub struct Queue {
    id: i32,
    home: Home,
    state: Mutex<State>,
}

impl Object for Queue {
    fn id(&self) -> i32 {
        self.id
    }

    fn permissions(&self) -> Permissions {
        self.state.lock().permissions
    }

    fn weight(&self) -> u64 {
        0
    }

    fn suits(&self, _: u64) -> Result<()> {
        Ok(())
    }
}

/// msgget(2).
pub fn get(key: i32, flags: u32) -> Result<i32> {
    // Relaxed, as all of these: settings of their own.
    let limits = || Limits { objects: SETTINGS.queues.load(Ordering::Relaxed), weight: u64::MAX };
    here().queues.get(key, 0, flags, limits, || {
        let state = State {
            permissions: Permissions::new(key, flags),
            sent_at: 0,
            received_at: 0,
            changed_at: super::now(),
            limit: SETTINGS.bytes_in_queue.load(Ordering::Relaxed),
            last_sender: 0,
            last_receiver: 0,
            messages: Messages::default(),
            receivers: Receivers::default(),
            senders: Senders::default(),
            removed: false,
        };
        Ok((0, move |id| Queue { id, home: Home::current(), state: Mutex::new(state) }))
    })
}

impl State {
    /// `EACCES`, or `EIDRM` when the queue was removed.
    fn check(&self, want: u32) -> Result<()> {
        self.permissions.check(want)?;
        if self.removed { Err(Errno::EIDRM) } else { Ok(()) }
    }

    /// The size of the largest message that there is room for.
    fn room(&self) -> Option<usize> {
        if self.messages.len() < self.limit { self.limit.checked_sub(self.messages.bytes()) } else { None }
    }

    /// Hands a message to the first receiver that waits for one like it, or puts it into the queue.
    fn send(&mut self, parcel: Parcel, sender: Pid) {
        self.last_sender = sender;
        self.sent_at = super::now();
        while let Some(receiver) = self.receivers.take_for(parcel.message().kind) {
            if receiver.too_small_for(parcel.message()) {
                receiver.complete(Err(Errno::E2BIG));
                sched::cond_resched();
                continue;
            }
            self.last_receiver = receiver.pid;
            self.received_at = self.sent_at;
            receiver.complete(Ok(parcel.into_message()));
            return;
        }
        self.messages.push(parcel);
    }

    /// Sends the messages of waiting senders as long as there is room.
    fn refill(&mut self) {
        while let Some(room) = self.room()
            && let Some(sender) = self.senders.take_first(room)
        {
            if let Some(parcel) = sender.take_parcel() {
                self.send(parcel, sender.pid);
            }
            sender.complete(Ok(()));
            sched::cond_resched();
        }
    }
}

/// msgsnd(2).
pub fn send(id: i32, message: Message, nonblocking: bool) -> Result<()> {
    let queue = here().queues.by_id(id)?;
    // A message stays when its sender is gone.
    let mut parcel = Some(Parcel::new(message)?);
    let pid = super::current_pid();
    loop {
        let mut state = queue.state.lock();
        state.check(WRITE)?;
        let Some(ready) = parcel.take() else { return Ok(()) };
        if state.room().is_some_and(|room| ready.message().len() <= room) {
            state.send(ready, pid);
            return Ok(());
        }
        if nonblocking {
            return Err(Errno::EAGAIN);
        }
        let sender = Arc::new(Sender::new(ready, pid));
        let ticket = state.senders.add(sender.clone());
        drop(state);
        let result = sender.queue.wait_event(None, || sender.outcome()).unwrap_or_else(|_| {
            let mut state = queue.state.lock();
            // Somebody may have sent it meanwhile.
            sender.outcome().unwrap_or_else(|| {
                state.senders.remove(ticket);
                Err(Errno::ERESTARTNOHAND)
            })
        });
        match result {
            // The queue was changed by msgctl(2): all is looked at again.
            Err(Errno::EAGAIN) => parcel = sender.take_parcel(),
            result => return result,
        }
    }
}

/// What a receiver asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub selection: Selection,
    /// The largest message that fits.
    pub size: usize,
    /// A larger one is cut: `MSG_NOERROR`.
    pub cut: bool,
    pub nonblocking: bool,
}

/// msgrcv(2).
pub fn receive(id: i32, wanted: Wanted) -> Result<Message> {
    let queue = here().queues.by_id(id)?;
    loop {
        let mut state = queue.state.lock();
        state.check(READ)?;
        if let Some(found) = state.messages.find(wanted.selection) {
            if !wanted.cut && state.messages.len_of(found) > wanted.size {
                return Err(Errno::E2BIG);
            }
            let Some(message) = state.messages.take(found) else { return Err(Errno::ENOMSG) };
            state.received_at = super::now();
            state.last_receiver = super::current_pid();
            state.refill();
            return Ok(message);
        }
        if wanted.nonblocking {
            return Err(Errno::ENOMSG);
        }
        let receiver = Arc::new(Receiver::new(wanted, super::current_pid()));
        let ticket = state.receivers.add(receiver.clone());
        drop(state);
        let result = receiver.queue.wait_event(None, || receiver.take_outcome()).unwrap_or_else(|_| {
            let mut state = queue.state.lock();
            // Somebody may have handed it a message meanwhile.
            receiver.take_outcome().unwrap_or_else(|| {
                state.receivers.remove(ticket);
                Err(Errno::ERESTARTNOHAND)
            })
        });
        match result {
            // The queue was changed by msgctl(2): all is looked at again.
            Err(Errno::EAGAIN) => {}
            result => return result,
        }
    }
}

/// msgrcv(2) with `MSG_COPY`: the message at a place of the queue, which stays.
pub fn copy(id: i32, place: i64, size: usize, cut: bool) -> Result<Message> {
    let queue = here().queues.by_id(id)?;
    let state = queue.state.lock();
    state.check(READ)?;
    let place = usize::try_from(place).map_err(|_| Errno::ENOMSG)?;
    let message = state.messages.at(place).ok_or(Errno::ENOMSG)?;
    match message.len() > size {
        true if cut => Err(Errno::EINVAL),
        true => Err(Errno::E2BIG),
        false => message.try_clone(),
    }
}
