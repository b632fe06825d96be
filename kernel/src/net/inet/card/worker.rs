//! The card's thread.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketSet, SocketStorage};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};

use super::Setup;
use super::datagrams;
use super::device::Card;
use super::inbound::Inbound;
use super::streams::{self, Streams};
use crate::errno::{Errno, Result};
use crate::memory::fallible;
use crate::process::Thread;
use crate::sched::{self, Sleep};
use crate::sync::{Once, Watcher};
use crate::time::clock;

/// Frames, and rounds of sending, in one round of the thread.
pub const BUDGET: usize = 64;
/// Nanoseconds after which what could not be sent or received at once is tried again.
const SOON: u64 = 1_000_000;
/// Nanoseconds between two looks at a card whose interrupts do not arrive.
const POLL: u64 = 2_000_000;
/// Nanoseconds between two looks at connections of which nothing is heard.
const IDLE: u64 = 1_000_000_000;

static THREAD: Once<Arc<Thread>> = Once::new();
/// There is something to do.
static WORK: AtomicBool = AtomicBool::new(false);

pub fn set_thread(thread: Arc<Thread>) {
    let _ = THREAD.set(thread);
    wake();
}

/// Tells the thread that there is something to do. Usable in interrupt handlers.
pub fn wake() {
    if !WORK.swap(true, Ordering::SeqCst)
        && let Some(thread) = THREAD.get()
    {
        sched::wake(thread);
    }
}

/// The card has interrupted.
pub fn interrupted() {
    wake();
}

/// Tells the thread when a stand-in's user has done something.
pub struct Bell;

impl Watcher for Bell {
    fn notify(&self) {
        wake();
    }
}

/// What the thread has.
pub struct Worker {
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    streams: Streams,
    /// The card's interrupts arrive.
    hears: bool,
}

/// The time as `smoltcp` counts it.
pub fn now() -> Instant {
    Instant::from_micros((clock::now() / 1000) as i64)
}

impl Worker {
    /// Sets up the interface. `ENOMEM`.
    pub fn new(mut card: Card, setup: &Setup, hears: bool) -> Result<Self> {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = crate::random::number();
        let mut interface = Interface::new(config, &mut card, now());
        let mut result = Ok(());
        interface.update_ip_addrs(|addresses| {
            let own = IpCidr::new(setup.ip.into(), setup.prefix);
            result = addresses.push(own).map_err(|_| Errno::ENOMEM);
        });
        result?;
        if let Some(gateway) = setup.gateway {
            interface.routes_mut().add_default_ipv4_route(gateway).map_err(|_| Errno::ENOMEM)?;
        }
        // The set never grows beyond this, so it never allocates.
        let room: alloc::vec::Vec<SocketStorage<'static>> = fallible::with_capacity(streams::MOST + 1)?;
        let sockets = SocketSet::new(room);
        Ok(Self { card, interface, sockets, streams: Streams::new()?, hears })
    }

    /// Works for ever.
    pub fn run(mut self) -> ! {
        self.card.enable_interrupts();
        loop {
            WORK.store(false, Ordering::SeqCst);
            let busy = self.round();
            if busy {
                // Others have their turn, however fast frames come.
                sched::yield_now();
                continue;
            }
            let deadline = self.pause().map(|pause| clock::now() + pause);
            let card = &mut self.card;
            // A wake ends it, or the time: both mean another round.
            let _ = sched::sleep(Sleep::Interruptible, deadline, || {
                WORK.load(Ordering::SeqCst) || card.has_work()
            });
        }
    }

    /// Takes some frames, moves data between both sides, sends some frames; true when there is more to do.
    fn round(&mut self) -> bool {
        let mut left = BUDGET;
        while left > 0 {
            let Some(frame) = self.card.next_frame() else { break };
            left -= 1;
            match frame {
                Some(Inbound::Arp(_)) => self.card.hear(),
                Some(Inbound::Datagram(packet)) => {
                    // What is no datagram is nobody's.
                    let _ = datagrams::receive(packet);
                    self.card.end_frame();
                }
                Some(Inbound::Segment(packet)) if !self.streams.admit(packet, &mut self.sockets) => {
                    self.card.drop_frame();
                }
                Some(Inbound::Segment(_) | Inbound::Other) => {
                    let result = self.interface.poll_ingress_single(now(), &mut self.card, &mut self.sockets);
                    self.streams.after_frame(&mut self.sockets);
                    if matches!(result, PollIngressSingleResult::None) {
                        // No buffer for an answer: the frame waits.
                        break;
                    }
                }
                None => self.card.drop_frame(),
            }
            sched::cond_resched();
        }
        self.card.tend();
        while let Some(absent) = self.card.neighbours().take_absent() {
            self.streams.lose(absent, self.card.neighbours(), &mut self.sockets);
        }
        datagrams::transmit(&mut self.card);
        self.streams.begin(&mut self.interface, &mut self.sockets);
        self.streams.serve(&mut self.sockets);
        let mut sent = 0;
        while sent < BUDGET {
            let result = self.interface.poll_egress(now(), &mut self.card, &mut self.sockets);
            if matches!(result, PollResult::None) {
                break;
            }
            sent += 1;
            sched::cond_resched();
        }
        if sent > 0 {
            // Some may have come to their end.
            self.streams.serve(&mut self.sockets);
        }
        left == 0
    }

    /// Nanoseconds until something is to be done by itself; none for never.
    fn pause(&mut self) -> Option<u64> {
        let delay = self.interface.poll_delay(now(), &self.sockets);
        let delays = [delay, self.card.neighbours().delay(now())];
        let timer = delays.into_iter().flatten().min().map(|delay| (delay.total_micros() * 1000).max(SOON));
        let streams =
            (!self.streams.is_empty()).then_some(if self.streams.is_held_up() { SOON } else { IDLE });
        let poll = (!self.hears).then_some(POLL);
        [timer, streams, poll].into_iter().flatten().min()
    }
}
