//! What the firmware's ACPI tables say: CPUs, interrupt controllers, timer, power registers. Where they are not,
//! [`mptable`] knows the first two.

use acpi::address::{AddressSpace, GenericAddress};
use acpi::fadt::Fadt;
use acpi::madt::{Madt, MadtEntry};
use acpi::sdt::{SdtHeader, Signature};
use acpi::{AcpiHandler, AcpiTable, AcpiTables, PhysicalMapping};
use alloc::vec::Vec;
use core::mem::MaybeUninit;
use core::ptr::NonNull;

use super::mptable;
use super::srat::{self, Affinity};
use crate::boot::info::Rsdp;
use crate::memory::{self, PhysAddr};
use crate::sync::Once;

/// A table of which only the header is looked at here.
macro_rules! table {
    ($name:ident, $signature:ident) => {
        #[repr(transparent)]
        struct $name(SdtHeader);

        // SAFETY: all tables begin with the header, and nothing but integers is read.
        unsafe impl AcpiTable for $name {
            const SIGNATURE: Signature = Signature::$signature;

            fn header(&self) -> &SdtHeader {
                &self.0
            }
        }
    };
}

table!(Srat, SRAT);
table!(Slit, SLIT);

/// Maps tables through the direct map, or as device memory where firmware put them outside of RAM.
#[derive(Clone)]
struct Mapper;

impl AcpiHandler for Mapper {
    unsafe fn map_physical_region<T>(&self, address: usize, size: usize) -> PhysicalMapping<Self, T> {
        let address = PhysAddr(address as u64);
        let pointer = memory::paging::map_firmware(address, size as u64).as_ptr::<T>();
        let pointer = NonNull::new(pointer).expect("kernel addresses are not null");
        // SAFETY: the region is mapped, and stays so.
        unsafe { PhysicalMapping::new(address.as_usize(), pointer, size, size, Self) }
    }

    // Mappings stay: there are a dozen small tables, read at boot.
    fn unmap_physical_region<T>(_region: &PhysicalMapping<Self, T>) {}
}

/// An I/O interrupt controller.
#[derive(Clone, Copy, Debug)]
pub struct IoApicInfo {
    pub address: PhysAddr,
    /// First global interrupt that it serves.
    pub first: u32,
}

/// How an ISA interrupt is wired.
#[derive(Clone, Copy, Debug)]
pub struct IsaRoute {
    pub isa: u8,
    pub global: u32,
    pub active_low: bool,
    pub level: bool,
}

/// The power-management timer.
#[derive(Clone, Copy, Debug)]
pub struct PmTimer {
    pub port: u16,
    /// 32 bits, not 24.
    pub wide: bool,
}

/// A register that firmware describes.
#[derive(Clone, Copy, Debug)]
pub struct Register {
    pub port: bool,
    pub address: u64,
}

/// How to switch off and restart.
#[derive(Clone, Copy, Debug, Default)]
pub struct PowerRegisters {
    pub pm1a_control: Option<Register>,
    pub pm1b_control: Option<Register>,
    /// Of hardware-reduced ACPI: takes the place of the PM1 control registers.
    pub sleep_control: Option<Register>,
    /// Sleep types of state S5 for the two PM1 registers.
    pub s5: Option<(u8, u8)>,
    pub reset: Option<(Register, u8)>,
    /// Port and value that turn the ACPI registers on.
    pub enable: Option<(u16, u8)>,
}

/// All that the kernel wants to know.
#[derive(Debug, Default)]
pub struct Firmware {
    /// APIC identifiers of usable CPUs, in the table's order.
    pub cpus: Vec<u32>,
    pub io_apics: Vec<IoApicInfo>,
    pub isa_routes: Vec<IsaRoute>,
    pub pm_timer: Option<PmTimer>,
    pub power: PowerRegisters,
    /// Which memory is near to which CPUs, where a table says so that can be believed.
    pub affinity: Option<Affinity>,
}

static FIRMWARE: Once<Firmware> = Once::new();

/// Reads the tables.
pub(super) fn init(rsdp: Option<Rsdp>) {
    let mut firmware = read(rsdp).unwrap_or_else(|error| {
        log::warn!("no usable ACPI tables ({error:?}): no power-off");
        Firmware::default()
    });
    if firmware.cpus.is_empty() {
        if mptable::read(&mut firmware) {
            log::info!("{} CPUs by the MultiProcessor table", firmware.cpus.len());
        } else {
            log::warn!(
                "neither ACPI nor a MultiProcessor table lists CPUs: one CPU, no interrupts of devices"
            );
        }
    }
    FIRMWARE.call_once(|| firmware);
}

/// What the tables say; nothing before they are read.
pub fn firmware() -> Option<&'static Firmware> {
    FIRMWARE.get()
}

pub(super) fn pm_timer() -> Option<PmTimer> {
    firmware()?.pm_timer
}

fn read(rsdp: Option<Rsdp>) -> Result<Firmware, acpi::AcpiError> {
    // SAFETY: the loader's pointer, or the places where the BIOS leaves it; the tables are only read.
    let tables = unsafe {
        match rsdp {
            Some(Rsdp::At(address)) => AcpiTables::from_rsdp(Mapper, address.as_usize())?,
            Some(Rsdp::Read { revision, tables }) => AcpiTables::from_rsdt(Mapper, revision, tables)?,
            None => AcpiTables::search_for_rsdp_bios(Mapper)?,
        }
    };
    let mut firmware = Firmware::default();
    match tables.find_table::<Madt>() {
        Ok(madt) => read_madt(&madt, &mut firmware),
        Err(error) => log::warn!("no table of CPUs: {error:?}"),
    }
    match tables.find_table::<Fadt>() {
        Ok(fadt) => {
            let fadt = whole(&fadt);
            read_fadt(&fadt, &mut firmware);
            firmware.power.s5 = fadt.dsdt_address().ok().and_then(|address| find_s5(byte_code(address)));
        }
        Err(error) => log::warn!("no fixed ACPI description: {error:?}"),
    }
    if let Ok(nodes) = tables.find_table::<Srat>() {
        let distances = tables.find_table::<Slit>().ok();
        match srat::read(content(&nodes), distances.as_ref().map(content)) {
            Ok(affinity) => firmware.affinity = Some(affinity),
            Err(what) => log::warn!("the table of memory nodes is not used: {what}"),
        }
    }
    Ok(firmware)
}

/// All of a table, its header included.
fn content<T: AcpiTable>(mapping: &PhysicalMapping<Mapper, T>) -> &'static [u8] {
    let start = mapping.virtual_start().as_ptr().cast::<u8>();
    // SAFETY: mapped for good, and never changed.
    unsafe { core::slice::from_raw_parts(start, mapping.region_length()) }
}

fn read_madt(madt: &PhysicalMapping<Mapper, Madt>, firmware: &mut Firmware) {
    const ENABLED: u32 = 1;
    const BROADCAST: u32 = 255;
    for entry in madt.get().entries() {
        match entry {
            MadtEntry::LocalApic(entry) if { entry.flags } & ENABLED != 0 => {
                firmware.cpus.push(entry.apic_id as u32);
            }
            // Only identifiers that fit into xAPIC's eight bits can be addressed.
            MadtEntry::LocalX2Apic(entry)
                if { entry.flags } & ENABLED != 0 && { entry.x2apic_id } < BROADCAST =>
            {
                firmware.cpus.push(entry.x2apic_id);
            }
            MadtEntry::IoApic(entry) => firmware.io_apics.push(IoApicInfo {
                address: PhysAddr(entry.io_apic_address as u64),
                first: entry.global_system_interrupt_base,
            }),
            MadtEntry::InterruptSourceOverride(entry) => firmware.isa_routes.push(IsaRoute {
                isa: entry.irq,
                global: entry.global_system_interrupt,
                active_low: entry.flags & 3 == 3,
                level: entry.flags >> 2 & 3 == 3,
            }),
            _ => {}
        }
    }
}

fn register(address: GenericAddress) -> Option<Register> {
    match address.address_space {
        AddressSpace::SystemIo => Some(Register { port: true, address: address.address }),
        AddressSpace::SystemMemory => Some(Register { port: false, address: address.address }),
        _ => None,
    }
    .filter(|register| register.address != 0)
}

/// The fixed description with zeroes for what this version of it does not have: that of ACPI 1.0 is 116 bytes long, and
/// what follows is another table, or no memory at all.
fn whole(mapping: &PhysicalMapping<Mapper, Fadt>) -> Fadt {
    let mut whole = MaybeUninit::<Fadt>::zeroed();
    let length = mapping.region_length().min(size_of::<Fadt>());
    let table = mapping.virtual_start().as_ptr().cast::<u8>();
    // SAFETY: the region is mapped, and the table is integers only, of which zeroes are fine.
    unsafe {
        core::ptr::copy_nonoverlapping(table, whole.as_mut_ptr().cast::<u8>(), length);
        whole.assume_init()
    }
}

fn read_fadt(fadt: &Fadt, firmware: &mut Firmware) {
    let flags = fadt.flags;
    if let Ok(Some(block)) = fadt.pm_timer_block()
        && let Some(Register { port: true, address }) = register(block)
    {
        firmware.pm_timer = Some(PmTimer { port: address as u16, wide: flags.pm_timer_is_32_bit() });
    }
    let power = &mut firmware.power;
    power.pm1a_control = fadt.pm1a_control_block().ok().and_then(register);
    power.pm1b_control = fadt.pm1b_control_block().ok().flatten().and_then(register);
    if flags.system_is_hw_reduced_acpi() {
        power.sleep_control = fadt.sleep_control_register().ok().flatten().and_then(register);
    }
    if flags.supports_system_reset_via_fadt() {
        power.reset =
            fadt.reset_register().ok().and_then(register).map(|register| (register, fadt.reset_value));
    }
    let command = fadt.smi_cmd_port;
    if command != 0 && fadt.acpi_enable != 0 {
        power.enable = Some((command as u16, fadt.acpi_enable));
    }
}

/// The code of the DSDT at a physical address: what follows its header. Nothing where no such table is.
fn byte_code(address: usize) -> &'static [u8] {
    /// More than any firmware has.
    const MOST: usize = 16 << 20;
    let table = |bytes: usize| memory::paging::map_firmware(PhysAddr(address as u64), bytes as u64);
    let header = table(size_of::<SdtHeader>()).as_ptr::<SdtHeader>();
    // SAFETY: mapped just now; a header of integers, wherever it lies.
    let header = unsafe { header.read_unaligned() };
    let length = header.length as usize;
    if header.signature.as_str() != "DSDT" || !(size_of::<SdtHeader>()..=MOST).contains(&length) {
        return &[];
    }
    // SAFETY: mapped just now, and never changed.
    let table = unsafe { core::slice::from_raw_parts(table(length).as_ptr::<u8>(), length) };
    &table[size_of::<SdtHeader>()..]
}

/// Finds the sleep types of state S5 in the DSDT's byte code.
///
/// `_S5_` is a name with a package of constants, in every firmware that has it, so no interpreter is needed:
/// the name, the package operator, a length, a count, and integers (ACPI 6.5, 20.2.5.4 and 20.2.3).
fn find_s5(code: &[u8]) -> Option<(u8, u8)> {
    const NAME_OP: u8 = 0x08;
    const PACKAGE_OP: u8 = 0x12;
    let start = code.windows(4).enumerate().position(|(at, name)| {
        name == b"_S5_" && code[..at].last().is_some_and(|before| matches!(*before, NAME_OP | b'\\'))
    })?;
    let package = code.get(start + 4..)?;
    if *package.first()? != PACKAGE_OP {
        return None;
    }
    // The length's first byte says in its top bits how many more bytes it has; the count follows.
    let mut rest = package.get(3 + (*package.get(1)? >> 6) as usize..)?;
    let mut next = || -> Option<u8> {
        let (value, size) = match *rest.first()? {
            0 => (0, 1),                // ZeroOp
            1 => (1, 1),                // OneOp
            0x0a => (*rest.get(1)?, 2), // byte constant
            0x0b => (*rest.get(1)?, 3), // word constant
            0x0c => (*rest.get(1)?, 5), // double-word constant
            _ => return None,
        };
        rest = rest.get(size..)?;
        Some(value)
    };
    let first = next()?;
    Some((first, next().unwrap_or(0)))
}
