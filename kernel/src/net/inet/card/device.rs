//! The network card: frames in and out of virtio's two rings. `smoltcp` sees the packets in them.

use alloc::boxed::Box;

use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::transport::pci::PciTransport;

use super::Setup;
use super::counters::COUNTERS;
use super::inbound::{self, Inbound};
use super::neighbours::{HEADER, Neighbours};
use super::sequence;
use super::worker::now;
use crate::errno::{Errno, Result};
use crate::virtio::{Buffers, Memory};

/// Frames that either ring holds.
const RING: usize = 64;
/// A frame, the header that virtio puts before it, and room to spare: the device refuses less.
const BUFFER: usize = 2048;
/// The longest frame: the header of Ethernet, and 1500 bytes.
const FRAME: usize = 1514;

/// The card.
pub struct Card {
    line: Line,
    setup: Setup,
    neighbours: Neighbours,
    /// The frame that is looked at.
    frame: Box<[u8; FRAME]>,
    len: usize,
}

/// The rings and their buffers.
pub struct Line {
    raw: VirtIONetRaw<Memory, PciTransport, RING>,
    received: Buffers,
    sent: Buffers,
    /// Which buffer a place in a ring has. The device may tell of one that has none.
    received_at: [Option<u16>; RING],
    sent_at: [Option<u16>; RING],
    /// The device has told nonsense: its rings are looked at no more, and what is sent is lost.
    is_broken: bool,
    /// Buffers for sending that the device does not have.
    free: smallvec::SmallVec<[u16; RING]>,
}

impl Line {
    /// Takes a device over.
    pub fn new(transport: PciTransport) -> Result<Self> {
        let raw = VirtIONetRaw::new(transport).map_err(|_| Errno::ENOMEM)?;
        let mut line = Line {
            raw,
            received: Buffers::new(RING, BUFFER)?,
            sent: Buffers::new(RING, BUFFER)?,
            received_at: [None; RING],
            sent_at: [None; RING],
            is_broken: false,
            free: (0..RING as u16).collect(),
        };
        for index in 0..line.received.len() {
            line.offer(index as u16);
        }
        Ok(line)
    }

    /// The card's hardware address.
    pub fn hardware_address(&self) -> [u8; 6] {
        self.raw.mac_address()
    }
}

impl Card {
    /// One that is set up.
    pub fn new(line: Line, setup: Setup) -> Result<Self> {
        let neighbours = Neighbours::new(setup)?;
        Ok(Self { line, setup, neighbours, frame: Box::new([0; FRAME]), len: 0 })
    }

    /// The machines on the line.
    pub fn neighbours(&mut self) -> &mut Neighbours {
        &mut self.neighbours
    }

    /// Whether a frame waits, or one that was sent is to be put away.
    pub fn has_work(&mut self) -> bool {
        let raw = &mut self.line.raw;
        !self.line.is_broken && (raw.poll_receive().is_some() || raw.poll_transmit().is_some())
    }

    /// The device interrupts from now on when there is something to do.
    pub fn enable_interrupts(&mut self) {
        self.line.raw.enable_interrupts();
    }

    /// Takes the next frame off the ring, unless one is still to be looked at; the ring has the buffer back at once. What the frame brings,
    /// or that it is to be thrown away.
    pub fn next_frame(&mut self) -> Option<Option<Inbound<'_>>> {
        self.line.reap();
        if self.len == 0 {
            self.len = self.line.take(&mut self.frame)?;
        }
        Some(inbound::sort(&self.frame[..self.len], &self.setup))
    }

    /// The frame has been looked at.
    pub fn end_frame(&mut self) {
        self.len = 0;
    }

    /// What another machine says of itself is in the frame that is looked at.
    pub fn hear(&mut self) {
        let asked = match inbound::sort(&self.frame[..self.len], &self.setup) {
            Some(Inbound::Arp(packet)) => self.neighbours.hear(packet, now()),
            _ => None,
        };
        self.end_frame();
        // Without a buffer it has to ask again.
        if let Some(asked) = asked.filter(|_| self.can_send()) {
            let neighbours = &self.neighbours;
            self.line.send(|frame| neighbours.answer(frame, asked));
        }
    }

    /// Whether there is a buffer for a frame.
    pub fn can_send(&self) -> bool {
        !self.line.free.is_empty()
    }

    /// Sends a packet of `len` bytes that `fill` writes. There is a buffer.
    pub fn send<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        self.line.send_packet(&mut self.neighbours, len, fill)
    }

    /// Sends what has waited for others to tell where they are, and asks those again who have not.
    pub fn tend(&mut self) {
        self.line.reap();
        let now = now();
        while self.can_send() {
            let neighbours = &mut self.neighbours;
            if !self.line.send(|frame| neighbours.due(frame, now)) {
                break;
            }
        }
    }

    /// Throws away the frame that is looked at.
    pub fn drop_frame(&mut self) {
        if core::mem::take(&mut self.len) != 0 {
            COUNTERS.receive.lose();
        }
    }
}

impl Line {
    /// Lets the device fill a buffer.
    fn offer(&mut self, index: u16) {
        let buffer = self.received.get(index.into());
        // SAFETY: nobody touches the buffer before `take` has it back.
        let token = unsafe { self.raw.receive_begin(buffer) };
        if let Ok(token) = token
            && let Some(place) = self.received_at.get_mut(usize::from(token))
        {
            *place = Some(index);
        }
    }

    /// The buffer that the device has in this place, which is ours again. Without one it is broken.
    fn take_back(places: &mut [Option<u16>; RING], token: u16, is_broken: &mut bool) -> Option<u16> {
        let index = places.get_mut(usize::from(token)).and_then(Option::take);
        *is_broken |= index.is_none();
        index
    }

    /// Copies the next frame that fits; gives its length.
    fn take(&mut self, frame: &mut [u8; FRAME]) -> Option<usize> {
        while !self.is_broken {
            let token = self.raw.poll_receive()?;
            let index = Self::take_back(&mut self.received_at, token, &mut self.is_broken)?;
            let buffer = self.received.get(index.into());
            // SAFETY: it is the buffer that `offer` gave for this place.
            let result = unsafe { self.raw.receive_complete(token, buffer) };
            let (start, len) = match result {
                Ok(place) => place,
                // Too short for virtio's header.
                Err(virtio_drivers::Error::IoError) => (0, 0),
                Err(_) => {
                    self.is_broken = true;
                    break;
                }
            };
            // The length is the device's word.
            let copied = match buffer.get(start..start.saturating_add(len)) {
                Some(bytes) if (1..=FRAME).contains(&len) => {
                    frame[..len].copy_from_slice(bytes);
                    true
                }
                _ => false,
            };
            self.offer(index);
            if copied {
                COUNTERS.receive.count(len);
                return Some(len);
            }
            COUNTERS.receive.lose();
        }
        None
    }

    /// Takes back the buffers of what was sent.
    fn reap(&mut self) {
        while !self.is_broken
            && let Some(token) = self.raw.poll_transmit()
            && let Some(index) = Self::take_back(&mut self.sent_at, token, &mut self.is_broken)
        {
            let buffer = self.sent.get(index.into());
            // SAFETY: it is the buffer that was sent in this place, of any length.
            match unsafe { self.raw.transmit_complete(token, buffer) } {
                Ok(_) => self.free.push(index),
                Err(_) => self.is_broken = true,
            }
        }
    }

    /// Sends a packet to where it goes to, or lets it wait there.
    fn send_packet<R>(
        &mut self,
        neighbours: &mut Neighbours,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        let mut result = None;
        self.send(|frame| {
            result = Some(fill(&mut frame[HEADER..HEADER + len]));
            neighbours.wrap(frame, len, now())
        });
        result.expect("a frame is written once")
    }

    /// Sends a frame; `fill` writes it and gives its length. False when that is 0, and nothing is sent.
    fn send(&mut self, fill: impl FnOnce(&mut [u8]) -> usize) -> bool {
        // Who sends has looked whether there is one.
        let index = self.free.pop().expect("a frame has a buffer");
        let buffer = self.sent.get(index.into());
        let header = self.raw.fill_buffer_header(buffer).expect("a buffer has room for the header");
        let len = fill(&mut buffer[header..header + FRAME]);
        if len == 0 {
            self.free.push(index);
            return false;
        }
        if self.is_broken {
            COUNTERS.send.lose();
            self.free.push(index);
            return true;
        }
        // SAFETY: nobody touches the buffer before `reap` has it back.
        match unsafe { self.raw.transmit_begin(&buffer[..header + len]) } {
            Ok(token) => {
                COUNTERS.send.count(len);
                if let Some(place) = self.sent_at.get_mut(usize::from(token)) {
                    *place = Some(index);
                }
            }
            Err(_) => {
                COUNTERS.send.lose();
                self.free.push(index);
            }
        }
        true
    }
}

/// The packet that was received.
pub struct Received<'a>(&'a [u8]);

/// Room for a packet to send.
pub struct Sending<'a>(&'a mut Line, &'a mut Neighbours);

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.0.send_packet(self.1, len, |packet| {
            let result = f(packet);
            sequence::shift_out(packet);
            result
        })
    }
}

impl phy::Device for Card {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        if self.len <= HEADER || self.line.free.is_empty() {
            return None;
        }
        let len = core::mem::take(&mut self.len);
        sequence::shift_back(&mut self.frame[HEADER..len]);
        Some((Received(&self.frame[HEADER..len]), Sending(&mut self.line, &mut self.neighbours)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        self.line.reap();
        if self.line.free.is_empty() { None } else { Some(Sending(&mut self.line, &mut self.neighbours)) }
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        // Those of what comes are looked at before it goes to `smoltcp`, those of what goes are written behind it.
        capabilities.checksum.tcp = Checksum::None;
        capabilities.max_transmission_unit = FRAME - HEADER;
        capabilities
    }
}
