//! The line that outsiders boot our kernel with, in machines of all kinds.

use roundtable::size::Size;

use super::boots::{BOOT, Boot, End, Kernels, Script, Talk, Work};
use super::conversations::busybox_init;
use Talk::Expect;

/// The boots: other sizes of QEMU's PC, and other machines. The plain one is the table's first.
pub fn boots() -> Vec<Boot> {
    let mut boots = vec![
        Boot { name: "outsider-gzip", work: outsider(true, OUTSIDER), kernels: Kernels::Ours, ..BOOT },
        Boot { name: "outsider-1-cpu", cpus: 1, work: outsider(false, OUTSIDER_1_CPU), ..BOOT },
        Boot {
            name: "outsider-8-cpus",
            cpus: 8,
            memory: Size::gibibytes(8),
            kernels: Kernels::Ours,
            work: outsider(false, OUTSIDER_8_CPUS),
            ..BOOT
        },
        // As many as have numbers that an APIC knows without its extension.
        Boot {
            name: "outsider-255-cpus",
            cpus: 255,
            kernels: Kernels::Ours,
            work: outsider(false, OUTSIDER_255_CPUS),
            ..BOOT
        },
        Boot {
            name: "outsider-512-mib",
            memory: Size::mebibytes(512),
            kernels: Kernels::Ours,
            work: outsider(false, OUTSIDER),
            ..BOOT
        },
        Boot {
            name: "outsider-icount",
            cpus: 1,
            icount: true,
            kernels: Kernels::Ours,
            work: outsider(false, OUTSIDER_1_CPU),
            ..BOOT
        },
    ];
    boots.extend(others());
    boots
}

/// Machines that tell the kernel of CPUs, interrupts, time and its archive in other ways than QEMU's PC does.
fn others() -> [Boot; 6] {
    let booted = |name, machine, firmware| Boot {
        name,
        machine: Some(machine),
        firmware,
        memory: Size::mebibytes(512),
        kernels: Kernels::Ours,
        work: outsider(false, OUTSIDER),
        ..BOOT
    };
    const SEABIOS: Option<&str> = Some("bios-microvm.bin");
    [
        booted("outsider-q35", "q35", None),
        // Without QEMU's ACPI tables: the firmware makes its own of ACPI 1.0, or none.
        booted("outsider-q35-acpi-off", "q35,acpi=off", None),
        booted("outsider-microvm", "microvm", None),
        booted("outsider-microvm-seabios", "microvm", SEABIOS),
        booted("outsider-microvm-acpi-off", "microvm,acpi=off", SEABIOS),
        // Nothing of a PC: the clock's rate is the APIC's, and it begins in 1970.
        booted("outsider-microvm-bare", "microvm,acpi=off,pit=off,pic=off,rtc=off", None),
    ]
}

/// An archive as outsiders make them: nothing but /init in an otherwise empty root.
pub fn outsider(gzip: bool, talk: &'static [Talk]) -> Work {
    Work::Console(Script {
        archive: |parts| busybox_init(parts, include_str!("outsider.sh")),
        gzip,
        talk,
        end: End::PowerOff,
    })
}

pub const OUTSIDER: &[Talk] =
    &[Expect("init is 1"), Expect("cpus 2"), Expect("pool 16"), Expect("file 4194304"), Expect("bye")];
const OUTSIDER_1_CPU: &[Talk] =
    &[Expect("init is 1"), Expect("cpus 1"), Expect("pool 16"), Expect("file 4194304"), Expect("bye")];
const OUTSIDER_8_CPUS: &[Talk] =
    &[Expect("init is 1"), Expect("cpus 8"), Expect("pool 16"), Expect("file 4194304"), Expect("bye")];
const OUTSIDER_255_CPUS: &[Talk] =
    &[Expect("init is 1"), Expect("cpus 255"), Expect("pool 16"), Expect("file 4194304"), Expect("bye")];
