//! The way out: a network card, and the machine behind it.
//!
//! Sockets of this machine know each other and need no packets (see [`super`]). A connection with another machine keeps that form: its
//! other end is a socket of the kernel's own, the *stand-in*, which is connected to the user's as any peer is. What the user sends waits in the
//! stand-in's queue, until [`streams`] puts it into TCP's; what TCP receives goes into the user's queue as if the stand-in had sent it.
//! So waiting, windows, shutdown, resets, backlogs and poll(2) are those of every connection, and only this module knows of packets.
//! TCP itself and the answers to pings are `smoltcp`'s. Ethernet is ours: what a frame may bring ([`inbound`]), who is where ([`neighbours`]).
//!
//! One thread, `eth0`, does all of it: no lock of `smoltcp`'s, and no work in the interrupt, which wakes the thread. A round takes
//! [`worker::BUDGET`] frames at most, then others may run; what comes faster than that the card throws away, having no buffer for it.
//! The number of connections is bounded, and each has buffers of fixed size.
//!
//! The address is given as Linux takes it: `ip=ADDRESS::GATEWAY:MASK::eth0:off`. Without it the card stays as it is.

mod counters;
mod datagrams;
mod device;
mod inbound;
mod neighbours;
mod sequence;
mod streams;
mod worker;

use alloc::boxed::Box;
use core::net::Ipv4Addr;

use log::{error, info, warn};
use virtio_drivers::transport::DeviceType;

pub use self::counters::COUNTERS;
pub use self::datagrams::send;
pub use self::streams::connect;
use self::worker::Worker;
use crate::boot::cmdline;
use crate::errno::Result;
use crate::sync::Once;
use crate::{sched, virtio};

/// The card's name.
pub const NAME: &str = "eth0";

/// What the card was set up with.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// The machine's address there.
    pub ip: Ipv4Addr,
    /// Bits of the address that all machines on the line have.
    pub prefix: u8,
    /// Who leads to all others.
    pub gateway: Option<Ipv4Addr>,
    /// The card's own address.
    pub hardware: [u8; 6],
}

impl Setup {
    /// The bits of the prefix.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0))
    }

    /// The address of all machines on the line.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.ip.to_bits() | !self.mask().to_bits())
    }

    /// Whether a machine with this address is on the line itself.
    pub fn is_near(&self, ip: Ipv4Addr) -> bool {
        self.mask() & ip == self.network()
    }

    /// The line's own address.
    pub fn network(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.ip.to_bits() & self.mask().to_bits())
    }
}

static SETUP: Once<Setup> = Once::new();

/// How the card was set up; none without one.
pub fn setup() -> Option<&'static Setup> {
    SETUP.get()
}

/// Whether the card leads to `ip`.
pub fn leads_to(ip: Ipv4Addr) -> bool {
    let is_one = |setup: &Setup| !ip.is_multicast() && !ip.is_broadcast() && ip != setup.broadcast();
    setup().is_some_and(|setup| is_one(setup) && (setup.gateway.is_some() || setup.is_near(ip)))
}

/// Reads `ADDRESS:SERVER:GATEWAY:MASK:HOST:DEVICE:...`, of which what is not needed may be left out.
fn parse(text: &str) -> Option<Setup> {
    let mut fields = text.split(':');
    let ip = fields.next()?.parse().ok()?;
    let gateway = match fields.nth(1) {
        None | Some("") => None,
        Some(gateway) => Some(gateway.parse().ok()?),
    };
    let mask: Ipv4Addr = match fields.next() {
        None | Some("") => Ipv4Addr::new(255, 255, 255, 0),
        Some(mask) => mask.parse().ok()?,
    };
    let device = fields.nth(1).unwrap_or(NAME);
    let prefix = mask.to_bits().leading_ones();
    if !["", NAME].contains(&device) || mask.to_bits().count_ones() != prefix {
        return None;
    }
    Some(Setup { ip, prefix: prefix as u8, gateway, hardware: [0; 6] })
}

/// Looks for a card and sets it up.
pub fn init() {
    let Some(text) = cmdline::get("ip") else { return };
    let Some(setup) = parse(text) else {
        warn!("ip={text}: not ADDRESS::GATEWAY:MASK::{NAME}:off");
        return;
    };
    let Some(found) = virtio::find(DeviceType::Network) else {
        warn!("ip={text}: there is no virtio network card");
        return;
    };
    if let Err(error) = start(found, setup) {
        error!("{NAME}: {error}");
    }
}

fn start(found: virtio::Found, mut setup: Setup) -> Result<()> {
    let hears = found.hear(worker::interrupted);
    let line = device::Line::new(found.transport)?;
    setup.hardware = line.hardware_address();
    let worker = Box::new(Worker::new(device::Card::new(line, setup)?, &setup, hears)?);
    info!("{NAME}: {}/{}{}", setup.ip, setup.prefix, if hears { "" } else { ", polled" });
    worker::set_thread(sched::spawn_kernel_thread(NAME, move || worker.run()));
    let _ = SETUP.set(setup);
    Ok(())
}
