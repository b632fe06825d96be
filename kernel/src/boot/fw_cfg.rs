//! QEMU's configuration device, as far as a machine needs it whose firmware does not pass the initial RAM disk on:
//! qboot and the microvm's SeaBIOS start a PVH kernel without a module (QEMU's docs/specs/fw_cfg.rst).

use super::info::StartInfo;
use crate::arch::port;
use crate::memory::early::Range;
use crate::memory::{PAGE_SIZE, VirtAddr};

const SELECT: u16 = 0x510;
const DATA: u16 = 0x511;
/// The address of a request, high half first, both big-endian; the write of the low half starts it.
const DMA_HIGH: u16 = 0x514;
const DMA_LOW: u16 = 0x518;

const SIGNATURE: u16 = 0;
const FEATURES: u16 = 1;
const INITRD_SIZE: u16 = 0x0b;
const INITRD_DATA: u16 = 0x12;

const FEATURE_DMA: u8 = 2;
const DMA_ERROR: u32 = 1;
const DMA_READ: u32 = 2;
const DMA_SELECT: u32 = 8;

/// What the boot tables show, and a copy by the device may go to.
const REACHABLE: u64 = 4 << 30;

/// A request to the device; all fields are big-endian.
#[repr(C)]
struct Request {
    control: u32,
    length: u32,
    address: u64,
}

/// Fetches the initial RAM disk into the highest RAM that holds it; nothing is there without such a device.
///
/// # Safety
/// At boot, before anybody uses RAM beside the kernel's image, and with the boot page tables.
pub(super) unsafe fn fetch_initrd(info: &StartInfo, image: Range) -> Option<Range> {
    let mut signature = [0; 4];
    let mut features = [0; 1];
    let mut size = [0; 4];
    item(SIGNATURE, &mut signature);
    if &signature != b"QEMU" {
        return None;
    }
    item(FEATURES, &mut features);
    item(INITRD_SIZE, &mut size);
    let size = u32::from_le_bytes(size);
    if size == 0 || features[0] & FEATURE_DMA == 0 {
        return None;
    }
    let page = PAGE_SIZE as u64;
    let fits = |range: &Range| {
        let start = range.end.min(REACHABLE).checked_sub(size.into())? & !(page - 1);
        let place = Range { start, end: start + u64::from(size) };
        let clear = place.end <= image.start || image.end <= place.start;
        (start >= range.start && start >= 1 << 20 && clear).then_some(place)
    };
    let place = info.ram().iter().filter_map(fits).max_by_key(|place| place.start)?;
    let mut request = Request {
        control: (u32::from(INITRD_DATA) << 16 | DMA_SELECT | DMA_READ).to_be(),
        length: size.to_be(),
        address: place.start.to_be(),
    };
    let pointer = &raw mut request;
    // On the boot stack, which is part of the image.
    let address = VirtAddr::from_ptr(pointer).to_phys()?;
    // SAFETY: the request and the place are RAM that nobody else uses; the device is there by its signature. It writes
    // both before the second store to its port returns.
    let control = unsafe {
        port::write_u32(DMA_HIGH, ((address.as_u64() >> 32) as u32).to_be());
        port::write_u32(DMA_LOW, (address.as_u64() as u32).to_be());
        (&raw mut (*pointer).control).read_volatile()
    };
    (u32::from_be(control) & DMA_ERROR == 0).then_some(place)
}

/// Reads an item's first bytes, one by one.
fn item(key: u16, into: &mut [u8]) {
    // SAFETY: ports of the device, or of nothing: then all bits are set.
    unsafe {
        port::write_u16(SELECT, key);
        into.fill_with(|| port::read_u8(DATA));
    }
}
