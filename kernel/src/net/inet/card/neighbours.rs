//! Who is where on the line: ARP.
//!
//! Packets for a machine that has not told its hardware address wait, a few for each machine, until it answers or all
//! questions were in vain. So a machine that is not there holds up nobody else, and nobody's questions wait for
//! another's. Only whom this machine sends to has a place in the list: what others say of themselves, or of each other,
//! does not fill it.

use alloc::vec::Vec;
use core::net::Ipv4Addr;

use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, Ipv4Packet,
};

use super::Setup;
use crate::errno::Result;
use crate::memory::fallible::{self, TryVec};

/// Bytes of Ethernet's header, and of a frame with a question.
pub const HEADER: usize = 14;
const QUESTION: usize = HEADER + 28;
/// Machines that are known, or asked for, at once.
const MOST: usize = 256;
/// Packets that wait for one machine: the newest.
const MOST_WAITING: usize = 4;
/// Questions until a machine is taken for absent, and how long each waits for an answer: as on Linux.
const QUESTIONS: u8 = 3;
const PAUSE: Duration = Duration::from_secs(1);
/// How long an answer is believed before the question is put again.
const FRESH: Duration = Duration::from_secs(60);

/// A machine on the line.
struct Machine {
    ip: Ipv4Addr,
    hardware: Option<EthernetAddress>,
    /// When it was heard of last, sent to, and asked.
    heard: Instant,
    used: Instant,
    asked: Instant,
    /// Questions since it was heard of.
    questions: u8,
    waiting: Vec<Vec<u8>>,
}

impl Machine {
    /// A question is to be put, or was the last one, and in vain.
    fn is_due(&self, now: Instant) -> bool {
        let wanted = self.hardware.is_none() || self.used > self.heard && now - self.heard >= FRESH;
        wanted && (self.questions == 0 || now - self.asked >= PAUSE)
    }

    fn keep(&mut self, packet: &[u8]) {
        if self.waiting.len() == MOST_WAITING {
            drop(self.waiting.remove(0));
        }
        // Without memory it is lost, as on the line.
        if let Ok(packet) = fallible::copy_of(packet) {
            let _ = self.waiting.try_push(packet);
        }
    }
}

/// The machines on the line that this one sends to.
pub struct Neighbours {
    setup: Setup,
    list: Vec<Machine>,
    /// Those that have not answered, until somebody wants to know.
    absent: Vec<Ipv4Addr>,
}

impl Neighbours {
    /// Without any. `ENOMEM`.
    pub fn new(setup: Setup) -> Result<Self> {
        Ok(Self { setup, list: fallible::with_capacity(MOST)?, absent: fallible::with_capacity(MOST)? })
    }

    /// The machine that a packet for `to` is handed to.
    pub fn hop(&self, to: Ipv4Addr) -> Option<Ipv4Addr> {
        if self.setup.is_near(to) { Some(to) } else { self.setup.gateway }
    }

    /// The place of a machine in the list, which it gets when it has none.
    fn place(&mut self, ip: Ipv4Addr, now: Instant) -> usize {
        if let Some(index) = self.list.iter().position(|machine| machine.ip == ip) {
            return index;
        }
        if self.list.len() >= MOST {
            // One that is asked for goes before one that is known, and of these the one that was sent to first.
            let key = |machine: &Machine| (machine.hardware.is_some(), machine.used);
            let oldest = self.list.iter().enumerate().min_by_key(|(_, machine)| key(machine));
            if let Some((index, _)) = oldest {
                drop(self.list.swap_remove(index));
            }
        }
        let waiting = Vec::new();
        self.list.push(Machine {
            ip,
            hardware: None,
            heard: now,
            used: now,
            asked: now,
            questions: 0,
            waiting,
        });
        self.list.len() - 1
    }

    /// Makes a frame of the packet of `len` bytes behind the place for the header; its length is returned. If the packet
    /// has to wait that is a question's, or 0 when none is due.
    pub fn wrap(&mut self, frame: &mut [u8], len: usize, now: Instant) -> usize {
        let packet = &frame[HEADER..HEADER + len];
        let Some(hop) = self.hop(Ipv4Packet::new_unchecked(packet).dst_addr()) else { return 0 };
        let index = self.place(hop, now);
        let machine = &mut self.list[index];
        machine.used = now;
        match machine.hardware {
            Some(hardware) => {
                self.head(frame, hardware, EthernetProtocol::Ipv4);
                HEADER + len
            }
            None => {
                machine.keep(packet);
                if machine.questions == 0 { self.ask(index, frame, now) } else { 0 }
            }
        }
    }

    fn head(&self, frame: &mut [u8], to: EthernetAddress, protocol: EthernetProtocol) {
        let mut frame = EthernetFrame::new_unchecked(frame);
        frame.set_src_addr(EthernetAddress(self.setup.hardware));
        frame.set_dst_addr(to);
        frame.set_ethertype(protocol);
    }

    fn say(&self, frame: &mut [u8], operation: ArpOperation, to: EthernetAddress, ip: Ipv4Addr) -> usize {
        let repr = ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: EthernetAddress(self.setup.hardware),
            source_protocol_addr: self.setup.ip,
            target_hardware_addr: to,
            target_protocol_addr: ip,
        };
        self.head(frame, to, EthernetProtocol::Arp);
        repr.emit(&mut ArpPacket::new_unchecked(&mut frame[HEADER..QUESTION]));
        QUESTION
    }

    fn ask(&mut self, index: usize, frame: &mut [u8], now: Instant) -> usize {
        let machine = &mut self.list[index];
        machine.questions += 1;
        machine.asked = now;
        let ip = machine.ip;
        self.say(frame, ArpOperation::Request, EthernetAddress::BROADCAST, ip)
    }

    /// What another machine says of itself. Gives whom it wants an answer for.
    pub fn hear(&mut self, packet: &[u8], now: Instant) -> Option<(EthernetAddress, Ipv4Addr)> {
        let packet = ArpPacket::new_checked(packet).ok()?;
        let ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: hardware,
            source_protocol_addr: ip,
            target_protocol_addr: to,
            ..
        } = ArpRepr::parse(&packet).ok()?
        else {
            return None;
        };
        let to_own = to == self.setup.ip;
        // One that has moved says so to itself.
        if !to_own && to != ip || ip == self.setup.ip || !hardware.is_unicast() {
            return None;
        }
        if let Some(machine) = self.list.iter_mut().find(|machine| machine.ip == ip) {
            machine.hardware = Some(hardware);
            machine.heard = now;
            machine.questions = 0;
        }
        (to_own && operation == ArpOperation::Request).then_some((hardware, ip))
    }

    /// Writes the answer to a question; its length is returned.
    pub fn answer(&self, frame: &mut [u8], (hardware, ip): (EthernetAddress, Ipv4Addr)) -> usize {
        self.say(frame, ArpOperation::Reply, hardware, ip)
    }

    /// Writes the next frame that is due: a packet that has waited, or a question. Its length is returned, or 0.
    pub fn due(&mut self, frame: &mut [u8], now: Instant) -> usize {
        let mut index = 0;
        while let Some(machine) = self.list.get_mut(index) {
            if let Some(hardware) = machine.hardware
                && !machine.waiting.is_empty()
            {
                let packet = machine.waiting.remove(0);
                frame[HEADER..HEADER + packet.len()].copy_from_slice(&packet);
                self.head(frame, hardware, EthernetProtocol::Ipv4);
                return HEADER + packet.len();
            }
            if !machine.is_due(now) {
                index += 1;
            } else if machine.questions < QUESTIONS {
                return self.ask(index, frame, now);
            } else {
                let machine = self.list.swap_remove(index);
                if self.absent.len() < MOST {
                    self.absent.push(machine.ip);
                }
            }
        }
        0
    }

    /// A machine that has not answered, told once.
    pub fn take_absent(&mut self) -> Option<Ipv4Addr> {
        self.absent.pop()
    }

    /// How long until something is due; none while nobody is asked for.
    pub fn delay(&self, now: Instant) -> Option<Duration> {
        let wait = |machine: &Machine| {
            if machine.hardware.is_some() && !machine.waiting.is_empty() {
                return Some(Duration::ZERO);
            }
            let until = machine.asked + PAUSE;
            (machine.questions > 0).then(|| if until > now { until - now } else { Duration::ZERO })
        };
        self.list.iter().filter_map(wait).min()
    }
}
