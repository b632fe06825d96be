//! The network card: frames in and out of virtio's two rings, as `smoltcp` wants them.

use alloc::boxed::Box;

use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::transport::pci::PciTransport;

use super::counters::COUNTERS;
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
    /// The frame that is looked at.
    frame: Box<[u8; FRAME]>,
    len: usize,
}

/// The rings and their buffers.
struct Line {
    raw: VirtIONetRaw<Memory, PciTransport, RING>,
    received: Buffers,
    sent: Buffers,
    /// Which buffer a place in a ring has.
    received_at: [u16; RING],
    sent_at: [u16; RING],
    /// Buffers for sending that the device does not have.
    free: smallvec::SmallVec<[u16; RING]>,
}

impl Card {
    /// Takes a device over.
    pub fn new(transport: PciTransport) -> Result<Self> {
        let raw = VirtIONetRaw::new(transport).map_err(|_| Errno::ENOMEM)?;
        let mut line = Line {
            raw,
            received: Buffers::new(RING, BUFFER)?,
            sent: Buffers::new(RING, BUFFER)?,
            received_at: [0; RING],
            sent_at: [0; RING],
            free: (0..RING as u16).collect(),
        };
        for index in 0..line.received.len() {
            line.offer(index as u16);
        }
        Ok(Self { line, frame: Box::new([0; FRAME]), len: 0 })
    }

    /// Its hardware address.
    pub fn hardware_address(&self) -> [u8; 6] {
        self.line.raw.mac_address()
    }

    /// Whether a frame waits, or one that was sent is to be put away.
    pub fn has_work(&mut self) -> bool {
        self.line.raw.poll_receive().is_some() || self.line.raw.poll_transmit().is_some()
    }

    /// The device interrupts from now on when there is something to do.
    pub fn enable_interrupts(&mut self) {
        self.line.raw.enable_interrupts();
    }

    /// Takes the next frame off the ring, unless one is still to be looked at; the ring has the buffer back at once.
    pub fn next_frame(&mut self) -> Option<&[u8]> {
        self.line.reap();
        if self.len == 0 {
            self.len = self.line.take(&mut self.frame)?;
        }
        Some(&self.frame[..self.len])
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
            *place = index;
        }
    }

    /// Copies the next frame that fits; gives its length.
    fn take(&mut self, frame: &mut [u8; FRAME]) -> Option<usize> {
        loop {
            let token = self.raw.poll_receive()?;
            let index = *self.received_at.get(usize::from(token))?;
            let buffer = self.received.get(index.into());
            // SAFETY: it is the buffer that `offer` gave for this place.
            let result = unsafe { self.raw.receive_complete(token, buffer) };
            let Ok((start, len)) = result else {
                COUNTERS.receive.lose();
                self.offer(index);
                continue;
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
    }

    /// Takes back the buffers of what was sent.
    fn reap(&mut self) {
        while let Some(token) = self.raw.poll_transmit() {
            let Some(index) = self.sent_at.get(usize::from(token)).copied() else { return };
            let buffer = self.sent.get(index.into());
            // SAFETY: it is the buffer that was sent in this place, of any length.
            if unsafe { self.raw.transmit_complete(token, buffer) }.is_err() {
                return;
            }
            self.free.push(index);
        }
    }

    fn send<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        // A token is there only while a buffer is.
        let index = self.free.pop().expect("a frame has a buffer");
        let buffer = self.sent.get(index.into());
        let header = self.raw.fill_buffer_header(buffer).expect("a buffer has room for the header");
        let result = fill(&mut buffer[header..header + len]);
        // SAFETY: nobody touches the buffer before `reap` has it back.
        match unsafe { self.raw.transmit_begin(&buffer[..header + len]) } {
            Ok(token) => {
                COUNTERS.send.count(len);
                if let Some(place) = self.sent_at.get_mut(usize::from(token)) {
                    *place = index;
                }
            }
            Err(_) => {
                COUNTERS.send.lose();
                self.free.push(index);
            }
        }
        result
    }
}

/// The frame that was received.
pub struct Received<'a>(&'a [u8]);

/// Room for a frame to send.
pub struct Sending<'a>(&'a mut Line);

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.0.send(len, f)
    }
}

impl phy::Device for Card {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        if self.len == 0 || self.line.free.is_empty() {
            return None;
        }
        let len = core::mem::take(&mut self.len);
        Some((Received(&self.frame[..len]), Sending(&mut self.line)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        self.line.reap();
        if self.line.free.is_empty() { None } else { Some(Sending(&mut self.line)) }
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        capabilities
    }
}
