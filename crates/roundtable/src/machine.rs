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
    /// Memory nodes, each with its part of CPUs and memory.
    pub nodes: u32,
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

    /// Each node's part of memory, in whole huge pages but for the last one's, and of the CPUs.
    fn node_arguments(&self) -> Vec<Node> {
        const HUGE: u64 = 2 << 20;
        let nodes = u64::from(self.nodes);
        let part = self.memory.0 / nodes / HUGE * HUGE;
        let mut out = Vec::new();
        for node in 0..nodes {
            let bytes = if node + 1 < nodes { part } else { self.memory.0 - part * (nodes - 1) };
            let first_cpu = |node: u64| node * u64::from(self.cpus) / nodes;
            let (first, end) = (first_cpu(node), first_cpu(node + 1));
            let cpus = if first < end { format!(",cpus={first}-{}", end - 1) } else { String::new() };
            out.push(Node { bytes, cpus });
        }
        out
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
        if self.nodes > 1 {
            for (index, node) in self.node_arguments().iter().enumerate() {
                let Node { bytes, cpus } = node;
                add(&["-object", &format!("memory-backend-ram,id=node{index},size={bytes}")]);
                add(&["-numa", &format!("node,nodeid={index},memdev=node{index}{cpus}")]);
            }
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

/// A memory node's part of the machine.
struct Node {
    bytes: u64,
    /// Its CPUs as QEMU wants them, a comma in front; nothing without any.
    cpus: String,
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
            nodes: 1,
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
    fn nodes_have_parts_of_memory_and_cpus() {
        assert!(!line(&machine()).contains("-numa"));
        let two = line(&Machine { nodes: 2, ..machine() });
        assert!(two.contains(
            "-object memory-backend-ram,id=node0,size=1073741824 -numa node,nodeid=0,memdev=node0,cpus=0-0 \
             -object memory-backend-ram,id=node1,size=1073741824 -numa node,nodeid=1,memdev=node1,cpus=1-1 "
        ));
        // What does not divide evenly is the last one's, and there are nodes without CPUs.
        let three = line(&Machine { nodes: 3, ..machine() });
        assert!(
            three.contains("id=node1,size=715128832 -numa node,nodeid=1,memdev=node1,cpus=0-0 "),
            "{three}"
        );
        assert!(
            three.contains("id=node2,size=717225984 -numa node,nodeid=2,memdev=node2,cpus=1-1 "),
            "{three}"
        );
        assert!(three.contains("-numa node,nodeid=0,memdev=node0 "), "{three}");
    }

    #[test]
    fn instruction_counting_needs_one_thread() {
        let line = line(&Machine { icount: true, machine: Some("q35".into()), ..machine() });
        assert!(line.contains("tcg,thread=single"));
        assert!(line.contains("-M q35 -icount shift=0,sleep=off"));
    }
}
