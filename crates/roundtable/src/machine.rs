//! The virtual machine: QEMU's command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use crate::network::Network;
use crate::size::Size;
use crate::volume::Volume;

/// The program that we run machines with.
pub const QEMU: &str = "qemu-system-x86_64";

/// One virtual machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The kernel: an ELF file with a PVH note, or a Linux bzImage.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: PathBuf,
    /// Number of CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: Size,
    /// QEMU's machine type; its own choice when absent.
    pub machine: Option<String>,
    /// Its firmware, a file or a name that QEMU knows; the machine type's own when absent.
    pub firmware: Option<String>,
    /// Count instructions: time passes with them, and two runs are alike.
    pub icount: bool,
    /// The network that it is on.
    pub network: Option<Network>,
    /// Folders of the host in it.
    pub volumes: Vec<Volume>,
    /// Kernel parameters behind `console=ttyS0 panic=-1`.
    pub parameters: Vec<String>,
}

impl Machine {
    /// The command line for it. The kernel's console is QEMU's standard input and output.
    pub fn command(&self) -> Command {
        let mut command = Command::new(QEMU);
        command.args(self.arguments());
        command
    }

    fn arguments(&self) -> Vec<OsString> {
        let mut out: Vec<OsString> = Vec::new();
        let mut add = |words: &[&str]| out.extend(words.iter().map(OsString::from));
        // QEMU counts instructions on one thread only.
        add(&["-accel", if self.icount { "tcg,thread=single" } else { "tcg,thread=multi" }]);
        let mut cpus = self.cpus.to_string();
        if self.machine.as_ref().is_some_and(|machine| machine.split(',').any(|word| word == "acpi=off")) {
            // The MultiProcessor table, which is what tells of CPUs then, has the first one of each package.
            cpus = format!("{cpus},sockets={cpus}");
        }
        add(&["-cpu", "max", "-smp", &cpus, "-m", &self.memory.to_string()]);
        if let Some(machine) = &self.machine {
            add(&["-M", machine]);
        }
        if let Some(firmware) = &self.firmware {
            add(&["-bios", firmware]);
        }
        if self.icount {
            add(&["-icount", "shift=0,sleep=off"]);
        }
        // Without QEMU's monitor on the same line: a byte of the job's input must never be a command to QEMU.
        add(&["-nographic", "-no-reboot", "-monitor", "none", "-serial", "stdio"]);
        if let Some(network) = &self.network {
            out.extend(network.arguments().into_iter().map(OsString::from));
        }
        for (index, volume) in self.volumes.iter().enumerate() {
            out.extend(volume.arguments(index));
        }
        out.extend(["-kernel".into(), self.kernel.clone().into()]);
        out.extend(["-initrd".into(), self.initrd.clone().into()]);
        let mut append = String::from("console=ttyS0 panic=-1");
        for parameter in self.parameters.iter().chain(&self.network.as_ref().map(Network::parameter)) {
            append.push(' ');
            append.push_str(parameter);
        }
        out.extend(["-append".into(), append.into()]);
        out
    }
}

/// Kernel parameters for pools of both sizes at boot.
pub fn pool_parameters(huge_2m: u64, huge_1g: u64) -> Vec<String> {
    let mut out = Vec::new();
    for (size, count) in [("1G", huge_1g), ("2M", huge_2m)] {
        if count > 0 {
            out.push(format!("hugepagesz={size}"));
            out.push(format!("hugepages={count}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            kernel: "kernel.elf".into(),
            initrd: "archive".into(),
            cpus: 2,
            memory: Size::gibibytes(2),
            machine: None,
            firmware: None,
            icount: false,
            network: None,
            volumes: Vec::new(),
            parameters: pool_parameters(512, 1),
        }
    }

    fn line(machine: &Machine) -> String {
        machine.arguments().into_iter().map(|word| word.into_string().unwrap() + " ").collect()
    }

    #[test]
    fn the_line_is_the_one_that_outsiders_use() {
        let line = line(&machine());
        assert!(line.starts_with("-accel tcg,thread=multi -cpu max -smp 2 -m 2G -nographic -no-reboot "));
        assert!(line.ends_with(
            "-kernel kernel.elf -initrd archive -append console=ttyS0 panic=-1 \
             hugepagesz=1G hugepages=1 hugepagesz=2M hugepages=512 "
        ));
    }

    #[test]
    fn a_network_is_a_card_and_an_address() {
        let line = line(&Machine { network: Some(Network::default()), ..machine() });
        assert!(line.contains(" -netdev user,id=net0,ipv6=off -device virtio-net-pci,netdev=net0,romfile= "));
        assert!(line.ends_with(" ip=10.0.2.15::10.0.2.2:255.255.255.0::eth0:off "), "{line}");
    }

    #[test]
    fn instruction_counting_needs_one_thread() {
        let line = line(&Machine { icount: true, machine: Some("q35".into()), ..machine() });
        assert!(line.contains("tcg,thread=single"));
        assert!(line.contains("-M q35 -icount shift=0,sleep=off"));
    }
}
